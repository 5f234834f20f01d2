"""The life of a task once more, small and on its own: what lifecycle and queues are compared with.

Written from the design's table and sentences; it imports nothing of ours and knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

Task = dict[str, Any]
Change = tuple[str, object, object]  # a task's id, its status before and after


class Row(NamedTuple):
    """One role's line of the table."""

    claims: str
    holds: str
    success: str
    rejected: str
    spent: str


TABLE = {
    "planner": Row("needs_plan", "planning", "planning_complete", "needs_manual", "needs_manual"),
    "builder": Row("ready", "in_progress", "awaiting_test", "needs_adapt", "needs_manual"),
    "tester": Row(
        "awaiting_test", "testing", "ready_for_integrator", "needs_adapt", "needs_manual"
    ),
    "refiner": Row("needs_adapt", "adapting", "awaiting_test", "needs_manual", "needs_manual"),
    "integrator": Row("ready_for_integrator", "integrating", "done", "needs_adapt", "needs_manual"),
}
SATISFIED = ("done", "completed")
ENDED = (*SATISFIED, "cancelled")
STARTS = {"Story": "needs_plan", "Test": "awaiting_test", "Testing": "awaiting_test"}
MAX_ATTEMPTS, MAX_ADAPTATIONS, BASE, CAP = 3, 3, 30.0, 3600.0
#: What we write into a task; every other key is its owner's.
OWN = (
    *("status", "agent", "lease", "token", "attempts", "adaptations"),
    *("not_before", "last_error", "parked_from", "updated_at"),
)


def own_words(row: Row) -> set[str]:
    """The statuses in which a task is held: the role's, and those that its agent may write."""
    return {row.holds, row.success, row.rejected} - {row.spent}


def declared() -> set[tuple[str, str]]:
    """Every move of a status that anything but a person's hand may make."""
    moves = {("planning_complete", "done")} | {("blocked", s) for s in (*STARTS.values(), "ready")}
    for row in TABLE.values():
        moves.add((row.claims, row.holds))
        ends = (row.success, row.rejected, row.spent, row.claims)
        moves |= {(held, end) for held in own_words(row) for end in ends}
    return moves


def count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def stamp(seconds: float) -> str:
    found = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return found.replace("+00:00", "Z")


def seconds(text: object) -> float:
    """The time that the text names; long ago where it names none."""
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else 0.0
    except ValueError:
        return 0.0


def walk(tasks: object, parent: object = None) -> Iterator[tuple[Task, object]]:
    """Each task with the id of the one it stands in, depth first."""
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict):
            yield task, parent
            yield from walk(task.get("subtasks"), task.get("id"))


def seen(task: Task) -> Task:
    """What is compared of a task: times of writing aside, and nothing is as good as null."""
    own = {key: task.get(key) for key in OWN if task.get(key) not in (None, 0, "")}
    own.pop("updated_at", None)
    own["last_error"] = bool(own.get("last_error"))
    if isinstance(lease := own.get("lease"), dict):
        own["lease"] = {key: lease.get(key) for key in ("owner", "token")}
    rest = {key: value for key, value in task.items() if key not in (*OWN, "subtasks")}
    return rest | own


def held(task: Task, role: str, token: int) -> bool:
    """Whether an attempt of the role with this token may still settle the task."""
    lease = task.get("lease")
    tokens = {count(lease.get("token")) if isinstance(lease, dict) else 0, count(task.get("token"))}
    words = own_words(TABLE[role])
    return token > 0 and tokens == {token} and any(task.get("status") == word for word in words)


def weighed(role: str, outcome: str, asked: str | None) -> str:
    """What an outcome is worth with the status that the agent asks for."""
    row = TABLE[role]
    if asked is None or outcome != "success":
        return outcome
    words = {row.spent: "blocked", row.rejected: "rejected", row.success: "success"}
    return words.get(asked, "error")


def settle(  # noqa: PLR0913  # all that decides
    task: Task, role: str, outcome: str, *, wait: float | None, luck: float, now: float
) -> None:
    """Write a weighed outcome into the task. ``luck`` is the share of the backoff."""
    row, later = TABLE[role], None
    attempts, adaptations = count(task.get("attempts")), count(task.get("adaptations"))
    attempts += outcome == "error"
    adaptations += outcome == "rejected" and row.rejected in {r.claims for r in TABLE.values()}
    status = {"success": row.success, "rejected": row.rejected, "blocked": row.spent}.get(outcome)
    if attempts >= MAX_ATTEMPTS and outcome == "error":
        status = row.spent
    elif outcome == "error":
        later = now + luck * min(CAP, BASE * 2 ** (attempts - 1))
    elif outcome == "throttled":
        later = now + (BASE if wait is None else wait)
    if adaptations > MAX_ADAPTATIONS and outcome == "rejected" and row.rejected != row.spent:
        status = row.spent
    if outcome in ("success", "rejected", "blocked", "error"):
        task["last_error"] = None if outcome == "success" else "!"
    task.update(
        status=status or row.claims,
        agent=None,
        lease=None,
        attempts=0 if status else attempts,
        adaptations=adaptations,
        not_before=None if later is None else stamp(later),
        parked_from=row.claims if status == row.spent else None,
    )


def by_itself(tasks: object, leased: Collection[str] = ()) -> list[Change]:
    """Make the moves that happen by themselves, until there is none.

    ``leased``: the ids with a lease; what an agent that still works says of its task moves nothing.
    """
    found, known, again = list[Change](), dict(in_order(tasks)), True
    while again:
        again = False
        for name, task in known.items():
            needs, status = task.get("dependencies") or [], task.get("status")
            if claimed(task, leased):
                continue
            children = [
                None if claimed(each, leased) else each.get("status")
                for each, parent in walk(tasks)
                if name in (each.get("parent"), each.get("parent_task"), parent)
                and each.get("id") != name
            ]
            if status == "blocked" and needs and satisfied(needs, known, leased):
                if task.get("blocked_reason") or task.get("blocker"):
                    continue
                target = STARTS.get(str(task.get("type")), "ready")
            elif status == "planning_complete" and ended(children):
                target = "done"
            else:
                continue
            task["status"], again = target, True
            found.append((name, status, target))
    return found


def in_order(tasks: object) -> list[tuple[str, Task]]:
    """The tasks by their ids; without one it is none, and of two with one id the first has it."""
    found = dict[str, Task]()
    for task, _ in walk(tasks):
        name = task.get("id")
        if isinstance(name, str) and re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
            found.setdefault(name, task)
    return list(found.items())


def claimed(task: Task, leased: Collection[str]) -> bool:
    """Whether its status is only what an agent claims that still works on it."""
    token = count(task.get("token"))
    lease = task.get("lease")
    own = count(lease.get("token")) if isinstance(lease, dict) else 0
    return own > 0 and own == token and str(task.get("id")) in leased


def satisfied(needs: object, known: dict[str, Task], leased: Collection[str] = ()) -> bool:
    needed = needs if isinstance(needs, list) else [needs]
    found = [known[n] for n in needed if isinstance(n, str) and n in known]
    return len(found) == len(needed) and all(
        task.get("status") in SATISFIED and not claimed(task, leased) for task in found
    )


def ended(statuses: list[object]) -> bool:
    return all(each in ENDED for each in statuses) and any(each in SATISFIED for each in statuses)


def started(task: Task) -> Task:
    return {"status": STARTS.get(str(task.get("type")), "ready"), **task}
