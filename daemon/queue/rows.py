"""A queue's JSON document taken apart into rows, and put together again: every value and its order.

A row's document is the task as it was written, without the subtasks that are rows themselves. What
Rolecall has changed of it since stands beside it. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from daemon import lifecycle
from daemon.index import Entry, Tasks, number, status_of
from daemon.model import is_task_id, parse_time

MANY = 10**9  # tasks: as good as no limit
LONGEST = 500  # characters of a status; a longer one is no role's
LAST = 250_000_000_000.0  # seconds since the epoch: no server knows a time as far away as JSON does
Facts = dict[str, Any]  # a row's columns, as ``rolecall.append`` takes them


class Row(NamedTuple):
    """What is read of a row to make its task again."""

    place: int
    parent: int | None
    document: str
    ours: Mapping[str, Any]


class Apart(NamedTuple):
    """A list of tasks as rows: what their columns hold, and their documents beside."""

    facts: list[Facts]
    documents: list[str]

    def parts(self, size: int) -> Iterator[Apart]:
        """The same in parts, to be appended one behind another."""
        for first in range(0, len(self.facts), size):
            facts = self.facts[first : first + size]
            if first:  # a parent in an earlier part has a number below 1
                facts = [
                    {**each, "parent": each["parent"] and each["parent"] - first} for each in facts
                ]
            yield Apart(facts, self.documents[first : first + size])

    def counted(self) -> Apart:
        """The same as a queue of its own: what each waits for, and its children, counted."""
        status = {each["id"]: each["status"] for each in self.facts if each["id"] is not None}
        made = [{**each} for each in self.facts]
        by_id = {each["id"]: each for each in made if each["id"] is not None}
        for each in made:
            each["waiting"] += sum(
                status.get(name) not in lifecycle.SATISFIED for name in each["needs"]
            )
            for parent in filter(None, map(by_id.get, each["parents"])):
                parent["open_children"] += each["status"] not in lifecycle.ENDED
                parent["good_children"] += each["status"] in lifecycle.SATISFIED
        return Apart(made, self.documents)


def root(document: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """The document without its tasks, and its sane WIP limits by role."""
    limits = document.get("wip_limits")
    numbers = {
        plain(role): int(min(limit, MANY))
        for role, value in (limits.items() if isinstance(limits, dict) else ())
        if (limit := number(value)) is not None and limit >= 0
    }
    return text({**document, "tasks": _slots(document["tasks"])}), numbers


def apart(values: list[Any]) -> Apart:
    """The tasks of a list and their subtasks, depth first."""
    known = list(_walk(values))
    tasks = Tasks(Entry(index, task, None) for index, (task, _) in enumerate(known))
    problems = iter(tasks.problems)
    made = Apart([], [])
    for index, (task, parent) in enumerate(known):
        entry, problem = tasks.every[index], ""
        if not tasks.is_usable(entry):
            problem = next(problems)
        facts = {"id": None if problem else task["id"], "problem": plain(problem)}
        facts["parent"] = None if parent is None else parent + 1
        own = None if parent is None else known[parent][0].get("id")
        made.facts.append({**facts, **columns(task), **_relations(task, own)})
        subtasks = task.get("subtasks")
        whole = {**task, "subtasks": _slots(subtasks)} if isinstance(subtasks, list) else task
        made.documents.append(text(whole))
    return made


def columns(task: dict[str, Any]) -> Facts:
    """What of a task's own values is looked for, as columns."""
    return {
        **standing(task),
        "start": lifecycle.STARTS.get(str(task.get("type")), lifecycle.START),
        "priority": number(task.get("priority")),
        "token": lifecycle.token_of(task),
    }


def status(task: dict[str, Any]) -> str:
    """The status that its column holds."""
    found = status_of(task)
    return plain(found) if len(found) <= LONGEST else ""


def standing(task: dict[str, Any]) -> Facts:
    """Those of them that a settling changes."""
    times = (parse_time(task.get("not_before")), _hand_expiry(task))
    free = max((each for each in times if each is not None), default=None)
    return {
        "status": status(task),
        "free_at": None if free is None else min(max(0.0, free), LAST),
        "attempts": lifecycle.attempts_of(task),
    }


def _relations(task: dict[str, Any], own: object) -> Facts:
    needed = lifecycle.dependencies(task)
    named = (task.get("parent"), task.get("parent_task"), own)
    parents = {each for each in named if is_task_id(each) and each != task.get("id")}
    return {
        "stuck": bool(task.get("blocked_reason") or task.get("blocker") or not needed),
        # Those that can be no task's id are never satisfied; ``counted`` sees to all others.
        "waiting": sum(not is_task_id(each) for each in needed),
        "open_children": 0,
        "good_children": 0,
        "needs": sorted({each for each in needed if is_task_id(each)}),
        "parents": sorted(parents),
    }


def _hand_expiry(task: dict[str, Any]) -> float | None:
    """When a lease that another tool or a person put into the task runs out."""
    held = task.get("lease")
    if not isinstance(held, dict) or lifecycle.held_by_us(task):
        return None
    beat, seconds = parse_time(held.get("heartbeat_at")), number(held.get("ttl_seconds"))
    return None if beat is None or seconds is None else beat + seconds


def _walk(values: list[Any]) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Each task with the number of the one that it stands in; in the order of ``jsontext.flat``."""
    waiting: list[tuple[Any, int | None]] = [(each, None) for each in reversed(values)]
    count = 0
    while waiting:
        task, parent = waiting.pop()
        if not isinstance(task, dict):
            continue
        yield task, parent
        children = task.get("subtasks")
        if isinstance(children, list):
            waiting += [(each, count) for each in reversed(children)]
        count += 1


def _slots(values: Any) -> Any:
    """A list of tasks with an empty object for each; an empty list where it holds nothing else."""
    if not isinstance(values, list) or all(isinstance(each, dict) for each in values):
        return [] if isinstance(values, list) else values
    return [{} if isinstance(each, dict) else each for each in values]


def together(rows: Iterable[Row]) -> tuple[list[Entry], list[dict[str, Any]]]:
    """The entries of rows in the order of their places, and those tasks that stand in no other."""
    entries: list[Entry] = []
    tops: list[dict[str, Any]] = []
    made: dict[int, tuple[dict[str, Any], Iterator[int]]] = {}
    for place, parent, document, ours in rows:
        task = {**json.loads(document), **ours}
        subtasks = task.get("subtasks")
        made[place] = task, iter(_empty(subtasks))
        name = None
        if parent is None:
            tops.append(task)
        else:
            above, slots = made[parent]
            _fill(above["subtasks"], slots, task)
            own = above.get("id")
            name = own if isinstance(own, str) else None
        entries.append(Entry(len(entries), task, name))
    return entries, tops


def whole(document: str, tops: list[dict[str, Any]]) -> dict[str, Any]:
    """The queue's document with its tasks in their places."""
    made: dict[str, Any] = json.loads(document)
    slots = iter(_empty(made["tasks"]))
    for task in tops:
        _fill(made["tasks"], slots, task)
    return made


def _empty(values: Any) -> list[int]:
    return [n for n, each in enumerate(values) if each == {}] if isinstance(values, list) else []


def _fill(values: list[Any], slots: Iterator[int], task: dict[str, Any]) -> None:
    at = next(slots, None)
    if at is None:
        values.append(task)
    else:
        values[at] = task


def text(value: Any, indent: int | None = None) -> str:
    """JSON as a database takes it: half a character of a pair only escaped.

    Raises ValueError for a number that JSON has no words for.
    """
    try:
        made = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        raise ValueError("a number in it is larger than any that can be written") from None
    return made if _is_whole(made) else json.dumps(value, indent=indent)


def plain(value: str) -> str:
    """A text that any column takes: without NUL, and without half characters."""
    value = value.replace("\0", "\ufffd")
    return value if _is_whole(value) else value.encode(errors="replace").decode()


def plainly(value: Any) -> Any:
    """A JSON value whose texts are all plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): plainly(each) for key, each in value.items()}
    return [plainly(each) for each in value] if isinstance(value, list | tuple) else value


def _is_whole(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
