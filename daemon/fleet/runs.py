"""What the attempts on a task left behind, as ``queue.show`` tells it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from daemon import evidence
from daemon.errors import RolecallError
from daemon.fleet.output import Style, table
from daemon.history import Past, verdicts
from daemon.model import format_time

TAKEN = "there is no queue, but its tasks have run folders"
LOOK_FOR_IT = "a git stash or clean may have taken it: git stash list"
HEADER = ("run", "role", "started", "seconds", "outcome", "usage", "note", "folder")


class Run(NamedTuple):
    """What an attempt left behind; its ``outcome`` is "" where no verdict was kept."""

    token: int
    folder: str
    started: str
    role: str
    attempt: int
    outcome: str
    note: str
    seconds: float | None
    usage: dict[str, float]
    claimed: dict[str, str]
    files: tuple[str, ...]


def are_left(runs: str) -> bool:
    """Whether any task has a run folder: then there was a queue."""
    with contextlib.suppress(OSError), os.scandir(runs) as found:
        return any(each.is_dir(follow_symlinks=False) and each.name[0] != "." for each in found)
    return False


def of(runs: str, task_id: str) -> list[Run]:
    """The attempts that left a folder, oldest first."""
    return [_run(os.path.join(runs, task_id), past) for past in verdicts(runs, task_id)]


def listing(found: Sequence[Run], style: Style) -> str:
    """They as a table."""
    return table(HEADER, [_cells(run) for run in found], style, shrink=HEADER.index("note"))


def _run(of_task: str, past: Past) -> Run:
    folder = os.path.join(of_task, str(past.token))
    note, claimed = past.note, past.claimed
    if not past.outcome:  # it runs still, or it ended early: the file is the agent's own
        try:
            said = evidence.read_result(folder)
            claimed = {"outcome": said.outcome.value, "note": said.note} if said else {}
        except (RolecallError, OSError) as error:
            note = f"result.json: {str(error).removeprefix('error: ')}"
    started, files = "", []
    with contextlib.suppress(OSError):
        files = sorted(os.listdir(folder))
        started = format_time(os.stat(os.path.join(folder, "task.json")).st_mtime)
    return Run(
        past.token,
        folder,
        started,
        past.role,
        past.attempt,
        past.outcome,
        note,
        past.seconds,
        past.usage,
        claimed,
        tuple(files),
    )


def usage_text(usage: Mapping[str, float]) -> str:
    """Tokens and money, for a person."""
    counts = (("input_tokens", "in"), ("output_tokens", "out"))
    told = [f"{usage[key]:,.0f} {name}" for key, name in counts if key in usage]
    told += [f"${usage['cost_usd']:.4f}"] if "cost_usd" in usage else []
    return ", ".join(told)


def _cells(run: Run) -> list[Any]:
    seconds = "" if run.seconds is None else f"{run.seconds:.1f}"
    usage = usage_text(run.usage)
    return [run.token, run.role, run.started, seconds, run.outcome, usage, _note(run), run.folder]


def _note(run: Run) -> str:
    said = run.claimed.get("outcome", "")
    note = run.note or (run.claimed.get("note", "") if not run.outcome else "")
    told = f"the agent says {said}" if not run.outcome else f"the agent said {said}"
    return "; ".join(filter(None, [note, told if said else ""]))
