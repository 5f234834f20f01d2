"""New tasks, from an agent or a person: whether they can join the queue."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from daemon.index import Entry, Tasks, number, status_of
from daemon.lifecycle import CANCELLED, ENDED, PARKED, PLANNED, START, STARTS, Machine, dependencies
from daemon.model import Move, is_task_id

MOST = 200  # tasks that one attempt may add, subtasks too; a plan is far below that
#: What Rolecall alone writes into a task.
OURS = (
    "agent",
    "lease",
    "token",
    "attempts",
    "adaptations",
    "not_before",
    "last_error",
    "parked_from",
    "branch",
    "commit",
    "git_changed",
    "updated_at",
)
#: An id of ours, for a task that comes without one.
NUMBERED = re.compile(r"T(\d{1,9})")
PARENTS = ("parent", "parent_task")
#: What a task that has to wait is given by mistake: it would not wait, and nobody would notice.
MEANT = dict.fromkeys(("depends", "depends_on", "deps", "blocked_by", "requires"), "dependencies")


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
    for task in _flat(found):
        if mistaken := next((key for key in task if key in MEANT), ""):
            meant = f"did you mean {MEANT[mistaken]!r}?"
            raise ValueError(f"the new task {task['id']} has {mistaken}, which is unknown: {meant}")
    _refuse_rings(found, tasks, {})
    return found


def of_agent(
    new: Iterable[object], tasks: Tasks, machine: Machine, entry: Entry, role: str
) -> list[dict[str, Any]]:
    """What an attempt of the role on that task may add, ready to be written. Raises ValueError.

    Narrower than for a person: none of our own keys, a status that a role claims or that is
    parked, no dependency or parent that does not exist, nothing that could never be claimed. A
    null, and a key of ours that says nothing, is as if it were left out. Without a parent a new
    task gets the task, where that is planned by this, and else the task's own parent.
    """
    new = list(new)
    many = sum(1 for _ in _flat(new))  # counted first: it bounds how deep they are nested, too
    if many > MOST:
        raise ValueError(f"{many} new tasks are more than {MOST}")
    given = [_without_nothing(each) for each in new]
    every = list(_flat(given))
    ended = {rules.on_exhausted for rules in machine.roles.values()} - ENDED
    allowed = machine.claimed | PARKED | ended
    cancelled: set[object] = {each.task["id"] for each in tasks.in_status(CANCELLED)}
    known = {*tasks.by_id, *(str(task.get("id")) for task in every)}
    for task in every:
        if why := _agent_may_not(task, allowed, known, cancelled):
            raise ValueError(f"the new task {task.get('id')!s:.80} has {why}")
    planned = machine.roles[role].on_success == PLANNED
    parent = entry.task["id"] if planned else _parent_of(entry)
    for task in given:
        if parent and isinstance(task, dict) and not any(task.get(key) for key in PARENTS):
            task["parent"] = parent
    found = checked(given, tasks, machine)
    waiting: dict[str, list[str]] = {}  # stories are done when their children have ended
    for task in found:
        for story in {task[key] for key in PARENTS if task.get(key)}:
            known_story = tasks.by_id.get(story)
            if (planned and story == entry.task["id"]) or (
                known_story and status_of(known_story.task) == PLANNED
            ):
                waiting.setdefault(story, []).append(task["id"])
    _refuse_rings(found, tasks, waiting)
    return found


def number_of(task_id: str) -> int:
    """The number in an id that is one of ours; 0 for any other."""
    found = NUMBERED.fullmatch(task_id)
    return int(found[1]) if found else 0


def named(new: Iterable[object]) -> set[str]:
    """The ids that new tasks have, and those that they name: what a check looks up in the queue.

    Beside that it looks at what these wait for, one behind another, up to what has ended.
    (And at the parent that a new task inherits, but only where one of them waits for that.)
    """
    return {
        each
        for task in _flat(new)
        for each in (task.get("id"), *map(task.get, PARENTS), *dependencies(task))
        if is_task_id(each)
    }


def _without_nothing(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    task = {
        key: each
        for key, each in value.items()
        if each is not None and (key not in OURS or each not in ("", 0, [], {}))
    }
    if isinstance(task.get("subtasks"), list):
        task["subtasks"] = [_without_nothing(each) for each in task["subtasks"]]
    return task


def _flat(values: Iterable[object]) -> Iterator[dict[str, Any]]:
    """Each task and subtask, depth first; without recursion, for depth is an agent's to choose."""
    left = [*values][::-1]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            children = value.get("subtasks")
            left += reversed(children) if isinstance(children, list) else ()


def _agent_may_not(
    task: dict[str, Any], allowed: set[str], known: set[str], cancelled: set[object]
) -> str:
    """What an agent may not say of a new task, beside what nobody may; "" for nothing."""
    own = next((key for key in OURS if key in task), "")
    if own:
        return f"{own}, which only Rolecall writes"
    status = task.get("status")
    if isinstance(status, str) and status not in allowed:
        return f"the status {status!r:.80}, which is none of {', '.join(sorted(allowed))}"
    for key in ("title", "type", "description", *PARENTS):
        if not isinstance(task.get(key, ""), str):
            return f"a {key} that is no text"
    if number(task.get("priority", 1)) is None:
        return f"a priority that is no number: {task['priority']!r:.80}"
    parent = next((task[key] for key in PARENTS if task.get(key)), "")
    if parent and parent not in known:
        return f"a parent that is not in the queue: {parent:.80}"
    for needed in (each for each in dependencies(task) if isinstance(each, str)):
        if needed not in known:
            return f"a dependency that is not in the queue: {needed:.80}"
        if needed in cancelled:
            return f"a dependency that is cancelled, and so never satisfied: {needed:.80}"
    return ""


def _parent_of(entry: Entry) -> str | None:
    named = (entry.task.get("parent"), entry.task.get("parent_task"), entry.parent)
    return next((name for name in named if isinstance(name, str) and name), None)


def _refuse_rings(new: list[dict[str, Any]], tasks: Tasks, more: dict[str, list[str]]) -> None:
    """Raise ValueError with a way from a new task back to itself over what waits for what.

    ``more``: what tasks wait for beside their dependencies.
    """
    fresh = {task["id"]: task for task in _flat(new)}

    def needs(name: str) -> Iterator[str]:
        entry = tasks.by_id.get(name)
        task = fresh.get(name) or (entry.task if entry else {})
        if status_of(task) not in ENDED:
            yield from (each for each in dependencies(task) if isinstance(each, str))
            yield from more.get(name, ())

    safe: set[str] = set()
    for start in fresh:
        way = {start: needs(start)}  # a walk in depth, without recursion
        while way:
            last = next(reversed(way))
            name = next(way[last], None)
            if name is None:
                del way[last]
                safe.add(last)
            elif name in way:
                ring = [*list(way)[list(way).index(name) :], name]
                if not fresh.keys().isdisjoint(ring):  # else it was there before
                    raise ValueError(f"new tasks wait for each other: {' -> '.join(ring)[:300]}")
            elif name not in safe:
                way[name] = needs(name)


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
