"""What a preset consists of: how a CLI is run, and how the traces of its run are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from daemon.model import Outcome

LINE = 8 << 20  # bytes of one line, or of a document, at most
TAIL = 1000  # bytes of a log's end, where an error stands
NOTE = 1000  # characters of a note


class Record(NamedTuple):
    """What a CLI says of its own run.

    ``retry_after`` is seconds, ``usage`` any of input_tokens, output_tokens and cost_usd (US
    dollars) that the CLI tells; ``session`` is what it calls the conversation. ``denied``: what is
    blocked is so for whoever has the credential, not for the role alone (a model's name, say).
    """

    outcome: Outcome
    note: str = ""
    retry_after: float | None = None
    usage: Mapping[str, float] | None = None
    session: str = ""
    denied: bool = True


class Traces(NamedTuple):
    """What a run left behind: its exit status (-N for signal N), and the folder of its logs.

    ``now`` is when it ended, in seconds since the epoch: a limit's reset counts from there.
    """

    status: int
    folder: str
    now: float

    def lines(self, name: str = "stdout.log") -> Iterator[str]:
        """The lines of a log, one at a time; one that is too long to be of use is left out."""
        try:
            log = open(os.path.join(self.folder, name), "rb")  # noqa: SIM115  # closed below
        except OSError:
            return
        with log:
            while line := log.readline(LINE):
                if len(line) < LINE or line.endswith(b"\n"):
                    yield line.decode(errors="replace").strip()
                    continue
                while line and not line.endswith(b"\n"):
                    line = log.readline(LINE)

    def events(self, name: str = "stdout.log") -> Iterator[dict[str, Any]]:
        """The JSON objects of a log that has one in a line; other lines are passed over."""
        for line in self.lines(name):
            found = parsed(line) if line.startswith("{") else None
            if isinstance(found, dict):
                yield found

    def document(self, name: str = "stdout.log") -> dict[str, Any]:
        """The one JSON object that a log consists of, from the first line that begins one.

        Empty where there is none.
        """
        data = self._read(name, LINE)
        start = 0 if data.startswith(b"{") else data.find(b"\n{") + 1
        found = parsed(data[start:]) if data[start : start + 1] == b"{" else None
        return found if isinstance(found, dict) else {}

    def tail(self, name: str = "stderr.log") -> str:
        """The end of a log."""
        return self._read(name, TAIL, end=True).decode(errors="replace").strip()

    def _read(self, name: str, most: int, *, end: bool = False) -> bytes:
        try:
            with open(os.path.join(self.folder, name), "rb") as log:
                if end:
                    log.seek(max(0, os.fstat(log.fileno()).st_size - most))
                return log.read(most)
        except OSError:
            return b""


class Preset(NamedTuple):
    """One agent CLI.

    ``argv`` asks for no permission and no terminal. ``{name}`` in it is as in a role's command,
    and also ``{model}`` and ``{run_folder}``. ``model`` and ``cost_limit`` are put behind it where
    the role has a model, or the attempt a limit of money that the CLI can hold itself (``{model}``,
    ``{cost_usd}``); then the role's ``args``; then, for ``prompt_via: argument``, the prompt.
    ``settings`` gives further variables, of a role's config: what argv should not hold.
    ``read`` tells what a run came to. ``provider`` names the credential, ``pass_env`` the variables
    that may hold it, ``write_paths`` the CLI's folders of state: they are made (0700) before an
    attempt's unit starts, for in it the CLI cannot. ``tried`` is the version that this was measured
    with, "" where it comes from the vendor's documents alone. ``version`` is an argv that prints
    the version, ``install`` and ``login`` are hints for a person.
    ``tells`` is what its record has of tokens and cost_usd: what budgets can go by.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    read: Callable[[Traces], Record]
    provider: str
    model: tuple[str, ...] = ()
    prompt_via: str = "stdin"
    env: Mapping[str, str] = MappingProxyType({})
    settings: Callable[[Any], Mapping[str, str]] = lambda _role: {}
    pass_env: tuple[str, ...] = ()
    write_paths: tuple[str, ...] = ()
    tried: str = ""
    version: tuple[str, ...] = ()
    install: str = ""
    login: str = ""
    cost_limit: tuple[str, ...] = ()
    tells: tuple[str, ...] = ("tokens", "cost_usd")


def read(preset: Preset, traces: Traces) -> Record:
    """What the run came to by the CLI's own record; output of any form gives an answer."""
    try:
        record = preset.read(traces)
    # The output is the CLI's, of whatever version: nothing in it may keep a task from settling.
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        note = f"its output is not as expected: {type(error).__name__}: {error}"
        record = Record(Outcome.ERROR, note)
    silent = "" if record.outcome is Outcome.SUCCESS else "it failed and did not say why"
    return record._replace(note=" ".join((record.note or silent).split())[:NOTE])


def parsed(data: str | bytes) -> Any:
    """The value that JSON text stands for, None for what is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def amount(value: object) -> float:
    """A number that is one, else 0."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15  # noqa: PLR2004  # NaN and infinity are no amounts
    return value if fits and isinstance(value, int | float) else 0
