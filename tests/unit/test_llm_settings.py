"""What the loop is told, and what it makes of it before anything is loaded; its transcript."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from daemon.agents import llm as preset
from daemon.config import Config, Llm, from_json, load, to_json
from daemon.errors import ConfigError
from daemon.llm import settings, transcript
from daemon.llm.transcript import Transcript
from tests.workspace import Workspace

KEYS = {"OPENAI_API_KEY": "sk-openai", "ANTHROPIC_API_KEY": "sk-anthropic"}


def told(model: str, env: dict[str, str], **llm: Any) -> settings.Settings:
    said = {"model": model, "llm": Llm()._replace(**llm)._asdict(), "env": ["CI"]}
    return settings.read({preset.SETTINGS: json.dumps(said), "PATH": "/bin", **env})


def config_of(ws: Workspace, **role: Any) -> Config:
    ws.write_config(builder={"agent": "llm", "model": "openai:m", **role})
    return load(str(ws.config))


@pytest.mark.parametrize("prefix", preset.WIRES)
def test_the_prefix_of_the_model_names_the_wire(prefix: str) -> None:
    """And with it the variables of the key and of the address; a model's name may hold colons."""
    key, base = preset.WIRES[prefix]
    found = told(f"{prefix}:some:model", {**KEYS, base: "http://here/v1"})
    assert (found.wire, found.model) == (prefix, "some:model")
    assert found.key == KEYS[key]
    assert found.base_url == "http://here/v1"
    assert told(f"{prefix}:m", KEYS, base_url="http://there").base_url == "http://there"


def test_a_key_that_is_missing_is_named() -> None:
    """A server of one's own may need none."""
    for model, env, llm, name in (
        ("openai:m", {}, {}, "OPENAI_API_KEY"),
        ("anthropic:m", {}, {"base_url": "http://here"}, "ANTHROPIC_API_KEY"),
        ("openai:m", KEYS, {"base_url": "http://here", "key_env": "OTHER_KEY"}, "OTHER_KEY"),
    ):
        with pytest.raises(ConfigError, match=f"{name} is not set") as caught:
            told(model, env, **llm)
        assert f"pass_env: [{name}]" in caught.value.problems[0].hint
    assert told("openai:m", {}, base_url="http://here").key == ""


def test_what_commands_do_not_get_is_secret() -> None:
    """Whatever came by pass_env or env_file is masked, and nothing else."""
    environ = {**KEYS, "CI": "1", "PATH": "/bin", "ROLECALL_TASK_ID": "T1", "PYTHONPATH": "/x"}
    found = told("openai:m", environ)
    assert found.secrets(environ) == KEYS
    assert found.env["CI"] == "1"


def test_a_key_of_any_name_is_kept_from_commands() -> None:
    """Also one that is called as our own variables are, or that the role's ``env`` holds.

    Broken once by passing on whatever begins with ROLECALL_.
    """
    environ = {"ROLECALL_KEY": "sk-1234567", "ROLECALL_TASK_ID": "T1", "ROLECALL_NEW": "x"}
    llm = Llm(key_env="ROLECALL_KEY")
    told = {"model": "openai:x", "llm": llm._asdict(), "env": ["ROLECALL_KEY"]}
    read = settings.read({**environ, preset.SETTINGS: json.dumps(told)})
    assert read.key == "sk-1234567"
    assert dict(read.env) == {"ROLECALL_TASK_ID": "T1", "TERM": "dumb"}
    assert "ROLECALL_KEY" in read.secrets(environ)


def test_a_role_tells_the_loop(ws: Workspace) -> None:
    """Through one variable of ours, which no role can set itself; nothing in it is secret."""
    llm = {"commands": [["pytest", "-q"]], "turns": 7, "base_url": "https://host/v1"}
    role = config_of(ws, llm=llm, env={"CI": "1"}).roles["builder"]
    assert (role.worktree, role.evidence) == (True, True)
    variables = preset.settings(role)
    found = settings.read({**variables, **KEYS, "CI": "1"})
    assert found.llm == Llm("https://host/v1", commands=(("pytest", "-q"),), turns=7)
    assert dict(found.env) == {"CI": "1", "TERM": "dumb"}
    assert (found.tokens, found.cost_usd) == (None, None)


def test_the_keys_of_the_loop_travel_with_the_config(ws: Workspace) -> None:
    """As JSON, and as the file that units run with."""
    config = config_of(ws, llm={"commands": [["a"]], "key_env": "K", "output_tokens": 5})
    assert from_json(to_json(config)) == config
    ws.config.write_text(to_json(config))
    assert load(str(ws.config)) == config


@pytest.mark.parametrize(
    ("role", "why"),
    [
        ({"model": None}, "wants a model that names its wire"),
        ({"model": "gpt-5"}, "wants a model that names its wire"),
        ({"model": "openai:"}, "wants a model that names its wire"),
        ({"llm": {"base_url": "https://me:hunter22@host/v1"}}, "base_url must be an address"),
        ({"llm": {"base_url": "https://host/v1?key=hunter22"}}, "base_url must be an address"),
        ({"llm": {"base_url": "ftp://host"}}, "base_url must be an address"),
        ({"llm": {"commands": ["pytest"]}}, "commands[1] must be a list"),
        ({"llm": {"turn": 3}}, 'unknown key "turn"'),
        ({"llm": {"turns": 0}}, "turns must be a whole number, 1 or more"),
    ],
)
def test_settings_that_cannot_work_are_a_problem(
    ws: Workspace, role: dict[str, Any], why: str
) -> None:
    """Said when the config is read, with file and line, and without a password in it."""
    with pytest.raises(ConfigError) as caught:
        config_of(ws, **role)
    assert why in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_a_transcript_is_masked_bounded_and_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry stands in the file when ``add`` returns; what is too much is left out."""
    monkeypatch.setattr(transcript, "LIMIT", 200_000)
    found = Transcript(str(tmp_path), ("sk-secret",))
    path = tmp_path / transcript.NAME
    found.add("message", {"parts": ["the key is sk-secret", "x" * 100_000], "nothing": None})
    entry = json.loads(path.read_text())
    assert entry["message"]["parts"][0] == "the key is ***"
    assert entry["message"]["parts"][1].endswith("x[34464 characters are left out]")
    assert "nothing" not in entry["message"]
    for _ in range(5):
        found.add("message", "y" * 60_000)
    found.close()
    assert path.stat().st_size < 200_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
