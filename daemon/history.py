"""What the earlier attempts on a task left in their run folders: verdicts, and output that failed.

An agent may have put anything there: what is no verdict of ours says nothing, and harms nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from daemon import evidence
from daemon.errors import RolecallError
from daemon.evidence import FOLDER
from daemon.model import Outcome

MOST = 10  # attempts that are told of, the last ones
VERDICT_BYTES = 4 * evidence.RESULT_BYTES  # ours holds the agent's tasks, and escapes more
NOTE = 2000  # characters, as of a result
TAIL = 8 * 1024  # bytes of a gate's output: what failed stands at its end
CONFLICT = 16 * 1024  # bytes; the first conflicts
LONGEST_NUMBER = 18  # digits; a longer name is no token of ours
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Past(NamedTuple):
    """One earlier attempt. Without a verdict its ``outcome`` is "": it ended early, or runs still.

    ``gate`` is the number of the gate that did not pass (0: none) and ``output`` the end of what
    that printed; ``conflict`` what git said of a merge. ``claimed`` holds what the agent said
    where its attempt came to something else. ``seconds`` it took, ``usage`` as of a result.
    """

    token: int
    role: str = ""
    attempt: int = 0
    outcome: str = ""
    note: str = ""
    gate: int = 0
    output: str = ""
    conflict: str = ""
    claimed: dict[str, str] = {}  # noqa: RUF012  # never written to
    agent: str = ""
    model: str = ""
    session: str = ""
    usage: dict[str, float] = {}  # noqa: RUF012  # as above
    seconds: float | None = None
    ended_at: str = ""


def read(runs: str, task_id: str, before: int | None = None, most: int = MOST) -> list[Past]:
    """The last attempts on a task, oldest first, with the output that failed.

    ``before``: only those of smaller tokens. Nothing is raised.
    """
    found = []
    with _folder(os.path.join(runs, task_id)) as task:
        for token in tokens(task, before)[-most:]:
            with _folder(str(token), task) as run:
                past = verdict(run, token)
                output = _text(run, f"gate-{past.gate}.log", TAIL) if past.gate else ""
                conflict = _text(run, "conflict.txt", CONFLICT, last=False)
                found.append(past._replace(output=output, conflict=conflict))
    return found


def verdicts(runs: str, task_id: str, most: int | None = None) -> list[Past]:
    """The last attempts on a task (all of them for None), oldest first, without any output."""
    found = []
    with _folder(os.path.join(runs, task_id)) as task:
        every = tokens(task)
        for token in every if most is None else every[-most:]:
            with _folder(str(token), task) as run:
                found.append(verdict(run, token))
    return found


@contextmanager
def _folder(path: str, where: int | None = None) -> Iterator[int | None]:
    """An open folder, no link followed; None for what is no such thing."""
    try:
        descriptor = os.open(path, FOLDER, dir_fd=where)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def tokens(task: int | None, before: int | None = None) -> list[int]:
    """The tokens that have a run folder in a task's, ascending."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(task) if task is not None else []
    found = [
        int(name)
        for name in names
        if len(name) <= LONGEST_NUMBER and name.isdecimal() and name == str(int(name))
    ]
    return sorted(token for token in found if before is None or token < before)


def verdict(run: int | None, token: int) -> Past:
    """What the result.json of a run folder says, if it is the final one of this token."""
    said: Any = None
    with suppress(OSError, ValueError, RecursionError):
        data = _bytes(run, evidence.RESULT, VERDICT_BYTES)
        said = json.loads(data) if len(data) < VERDICT_BYTES else None
    if not isinstance(said, dict) or said.get("token") != token:
        return Past(token)
    outcome, claimed, usage = said.get("outcome"), said.get("claimed"), said.get("usage")
    if outcome not in list(Outcome):
        return Past(token)
    words = {
        key: clean(str(said[key]))[:NOTE]
        for key in ("role", "note", "agent", "model", "session", "ended_at")
        if isinstance(said.get(key), str)
    }
    return Past(
        token,
        outcome=str(outcome),
        attempt=int(_number(said.get("attempt")) or 0),
        gate=int(_number(said.get("gate")) or 0),
        seconds=_number(said.get("seconds")),
        claimed={
            str(key): clean(value)[:NOTE]
            for key, value in (claimed.items() if isinstance(claimed, dict) else ())
            if isinstance(value, str)
        },
        usage={
            str(key): number
            for key, value in (usage.items() if isinstance(usage, dict) else ())
            if (number := _number(value)) is not None
        },
        **words,
    )


def _number(value: object) -> float | None:
    """A number that can be shown: no boolean, nothing endless, nothing below zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10**15:
        return None
    return value


def _bytes(run: int | None, name: str, most: int, *, last: bool = False) -> bytes:
    """At most so many bytes of a file: its first ones, or its last ones."""
    if run is None:
        return b""
    with suppress(RolecallError, OSError):
        file = evidence.open_regular(name, run)
        if file is not None:
            with file:
                if last:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - most))
                return file.read(most)
    return b""


def _text(run: int | None, name: str, most: int, *, last: bool = True) -> str:
    """The part of a file that is shown to an agent, valid and printable."""
    data = _bytes(run, name, most + 1, last=last)
    if len(data) <= most:
        return clean(data.decode(errors="replace")).strip("\n")
    if last:
        kept = clean(data[1:].lstrip(bytes(range(0x80, 0xC0))).decode(errors="replace"))
        return f"[the beginning is left out]\n{kept}".strip("\n")
    kept = clean(data[:most].decode(errors="ignore"))
    return f"{kept}\n[the rest is left out]".strip("\n")


def clean(text: str) -> str:
    """Text without what drives a terminal or turns its direction; lines and tabs stay."""
    text = ESCAPES.sub("", text.replace("\r\n", "\n"))
    return CONTROLS.sub("", text.replace("\r", "\n"))
