"""What a person asks of a task: cancel it, release it, try it again. Pure functions."""

from __future__ import annotations

from typing import Any

from daemon.index import status_of
from daemon.lifecycle import (
    CANCELLED,
    PARKED,
    START,
    STARTS,
    Changes,
    Machine,
    Rules,
    claimed_from,
    differing,
)
from daemon.model import format_time


def cancel(task: dict[str, Any], now: float) -> Changes:
    """What cancelling writes into the task; its attempt, if there was one, is dead.

    Raises ValueError for one that is cancelled already.
    """
    if status_of(task) == CANCELLED:
        raise ValueError("it is cancelled already")
    return _moved(task, CANCELLED, now)


def release(task: dict[str, Any], machine: Machine, now: float) -> Changes:
    """What releasing a held task writes: it goes back, and nothing is counted.

    Raises ValueError, with why, for a task that no role holds.
    """
    rules = holder(task, machine)
    if rules is None:
        raise ValueError(f"nobody holds it: its status is {status_of(task)}")
    return _moved(task, claimed_from(task, rules), now)


def retry(task: dict[str, Any], machine: Machine, now: float, status: str | None = None) -> Changes:
    """What a retry writes: the task can be claimed at once, and nothing is on its account.

    A parked task goes back to where it came from, else to where its type starts; one that only
    waits stays in its status; any goes to ``status``, where that is named. Raises ValueError, with
    why, for a task that is held, and for one of another status where ``status`` is left open.
    """
    present = status_of(task)
    if holder(task, machine):
        raise ValueError(f"it is being worked on: its status is {present}")
    if status is None:
        source = task.get("parked_from")
        if present in PARKED:
            known = isinstance(source, str) and source in machine.claimed
            status = str(source) if known else STARTS.get(str(task.get("type")), START)
        elif present in machine.claimed:
            status = present
        else:
            raise ValueError(f"its status is {present}: say which one it shall have")
    return _moved(task, status, now, attempts=0, adaptations=0)


def holder(task: dict[str, Any], machine: Machine) -> Rules | None:
    """The role in whose held status the task is."""
    status = status_of(task)
    return next((rules for rules in machine.roles.values() if rules.holds == status), None)


def _moved(task: dict[str, Any], status: str, now: float, **counts: int) -> Changes:
    wanted = {"status": status, "agent": None, "lease": None, "not_before": None}
    changes = differing(task, {**wanted, "parked_from": None, **counts})
    return {**changes, "updated_at": format_time(now)}
