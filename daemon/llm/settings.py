"""What the loop is told: the role's settings in one environment variable, none of them secret."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

from daemon.agents.llm import SETTINGS, WIRES, wire_of
from daemon.config import Llm, llm_from
from daemon.errors import ConfigError
from daemon.llm.commands import without_credentials


class Settings(NamedTuple):
    """``wire`` and ``model`` are the parts of the role's ``model``.

    ``key`` is the provider's key ("" for none), ``base_url`` "" where the provider's own counts;
    ``env`` is what commands get. ``tokens`` and ``cost_usd`` limit the attempt, None for no limit;
    ``price`` is what a million tokens of input and of output cost in US dollars, where the role
    says so.
    """

    wire: str
    model: str
    base_url: str
    key: str
    key_env: str
    llm: Llm
    env: Mapping[str, str]
    tokens: int | None = None
    cost_usd: float | None = None
    price: tuple[float, float] | None = None

    def secrets(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that commands do not get: what they hold is masked in the transcript."""
        return {
            key: value
            for key, value in environ.items()
            if key not in self.env and key not in {SETTINGS, "PYTHONPATH"}
        }


def read(environ: Mapping[str, str]) -> Settings:
    """The settings out of the program's environment. Raises ConfigError."""
    text = environ.get(SETTINGS)
    if text is None:
        raise ConfigError(f"{SETTINGS} is not set", hint="an attempt of a role with agent: llm is")
    said = json.loads(text)
    llm = llm_from(said["llm"])
    named = wire_of(said["model"])
    if named is None:
        raise ConfigError(
            f"model {said['model']!r} names no wire",
            hint=f"write model: PREFIX:NAME with one of {', '.join(WIRES)}",
        )
    wire, model = named
    key_name, base_name = WIRES[wire]
    key_name = llm.key_env or key_name
    base_url = llm.base_url or environ.get(base_name, "")
    key = environ.get(key_name, "")
    if not key and (wire == "anthropic" or llm.key_env or not base_url):
        raise ConfigError(
            f"{key_name} is not set, so there is no key for the provider",
            hint=f"set it in the role's env_file, or where the worker starts, with "
            f"pass_env: [{key_name}]",
        )
    return Settings(
        wire=wire,
        model=model,
        base_url=base_url,
        key=key,
        key_env=key_name,
        llm=llm,
        env=without_credentials(environ, {*said["env"]} - {key_name}),
        tokens=said.get("tokens"),
        cost_usd=said.get("cost_usd"),
        price=said.get("price") and tuple(said["price"]),
    )


def run_folder(environ: Mapping[str, str]) -> str:
    """The folder of the run's files."""
    return os.path.dirname(environ["ROLECALL_RESULT_FILE"])
