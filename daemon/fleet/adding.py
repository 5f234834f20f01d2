"""``queue.add``: new tasks from the command line or a JSON file."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet.here import UsageError
from daemon.fleet.output import escape
from daemon.fleet.telling import Events
from daemon.lifecycle import START, STARTS
from daemon.queue.intake import number_of
from daemon.queue.opening import open_queue

TRIES = 5  # of finding an id that nobody takes in the meantime


def read_tasks(path: str) -> list[dict[str, Any]]:
    """Tasks out of a JSON file ("-": standard input): one, a list, or a queue's ``tasks``."""
    where = "standard input" if path == "-" else path
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        value = json.loads(text)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=where) from error
    except json.JSONDecodeError as error:
        where = f"{where}:{error.lineno}"
        raise UsageError(f"it is not JSON: {error.msg}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is not JSON: {error}", where=where) from error
    if isinstance(value, dict) and isinstance(value.get("tasks"), list):
        value = value["tasks"]
    tasks = value if isinstance(value, list) else [value]
    if not tasks or not all(isinstance(task, dict) for task in tasks):
        raise UsageError("it holds no task: an object, or a list of objects", where=where)
    return tasks


def complete(task: dict[str, Any], last: int) -> dict[str, Any]:
    """The task with an id and a status, in the order in which people read tasks.

    Without an id of its own it gets the one after the last of ours: T001, T002, ...
    """
    kind = task.get("type")
    defaults = {
        "id": task.get("id") or f"T{last + 1:03d}",
        "title": task.get("title"),
        "type": kind,
        "status": task.get("status") or STARTS.get(str(kind), START),
        "priority": task.get("priority"),
        "agent": None,
        "lease": None,
        "dependencies": task.get("dependencies") or [],
    }
    given = {key: value for key, value in task.items() if key not in defaults or value is not None}
    optional = ("title", "type", "priority")
    first = {key: value for key, value in defaults.items() if key not in optional or key in given}
    return {**first, **{key: value for key, value in given.items() if key not in first}}


def new_tasks(path: str | None, *, depends: str | None, **keys: str | None) -> list[dict[str, Any]]:
    """The tasks that ``queue.add`` was asked for: of a file, or of single keys."""
    given: dict[str, Any] = {key: value for key, value in keys.items() if value is not None}
    if depends is not None:
        given["dependencies"] = [name.strip() for name in depends.split(",") if name.strip()]
    if path is not None:
        if given:
            raise UsageError("--json brings whole tasks: leave the other options out")
        return read_tasks(path)
    if not given.get("title"):
        raise UsageError("a task needs a title", hint='invoke queue.add --title "..."')
    if "priority" in given:
        given["priority"] = _priority(given["priority"])
    return [given]


def _priority(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--priority {text}: want a number, 1 first")
    return int(number) if number.is_integer() else number


def add(config: Config, tasks: list[dict[str, Any]]) -> list[str]:
    """Append the tasks; returns a line for each, and for each move that this brought about."""
    events = Events(config)
    queue = open_queue(config, teller=events)
    for left in reversed(range(TRIES)):
        last = queue.last_number()
        completed: list[dict[str, Any]] = []
        for task in tasks:
            completed.append(complete(task, last))
            last = max(last, number_of(str(completed[-1]["id"])))
        generated = {
            str(full["id"])
            for full, task in zip(completed, tasks, strict=True)
            if not task.get("id")
        }
        try:
            queue.add(completed)
        except RolecallError:
            if not left or generated.isdisjoint(queue.snapshot(generated).tasks.by_id):
                raise
        else:
            return [_added(config, task) for task in completed] + [
                line for line in events.lines if " -> " in line
            ]
    raise AssertionError


def _added(config: Config, task: dict[str, Any]) -> str:
    claimers = [name for name, role in config.roles.items() if task["status"] in role.claims]
    told = f"{task['id']}: added, {task['status']}"
    if not claimers:
        told += ", which no role claims"
    return escape(told)
