"""New tasks, from an agent or a person: whether they can join the queue."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from daemon.index import Tasks
from daemon.lifecycle import START, STARTS, Machine
from daemon.model import Move, is_task_id


def checked(new: Iterable[object], tasks: Tasks, machine: Machine) -> list[dict[str, Any]]:
    """The new tasks, ready to be written. Raises ValueError with what is wrong, for a person.

    A task without a status gets the one its type starts in.
    """
    taken: set[Any] = set(tasks.by_id)
    held = {rules.holds for rules in machine.roles.values()}
    try:
        found = [_task(each, taken, held) for each in new]
        json.dumps(found, allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"a new task cannot be written as JSON: {error}") from None
    return found


def told(new: Iterable[object], why: str) -> list[Move]:
    """That the tasks are there now, and their subtasks."""
    found: list[Move] = []
    for task in new:
        if not isinstance(task, dict):
            continue
        found.append(Move(str(task.get("id")), "", "", str(task.get("status", "")), why))
        children = task.get("subtasks")
        found += told(children if isinstance(children, list) else (), why)
    return found


def _task(value: object, taken: set[Any], held: set[str]) -> dict[str, Any]:
    task = value if isinstance(value, dict) else {}
    name = task.get("id")
    if not is_task_id(name):
        raise ValueError(f"a new task has no valid id: {name or value!r:.80}")
    if name in taken:
        raise ValueError(f"a new task has an id that is taken: {name}")
    taken.add(name)
    status = task.get("status", STARTS.get(str(task.get("type")), START))
    children = task.get("subtasks", [])
    why = ""
    if not isinstance(status, str) or not status:
        why = f"no valid status: {status!r:.80}"
    elif status in held:
        why = f"the status {status}, which only a claim gives"
    elif task.get("lease") or task.get("token"):
        why = "a lease or a token, which only a claim gives"
    elif not _is_ids(task.get("dependencies", [])):
        why = "dependencies that are no list of ids"
    elif not isinstance(children, list):
        why = "subtasks that are no list"
    if why:
        raise ValueError(f"the new task {name} has {why}")
    ready = {**task, "status": status}
    if children:
        ready["subtasks"] = [_task(each, taken, held) for each in children]
    return ready


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
