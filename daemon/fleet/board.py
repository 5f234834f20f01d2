"""The queue as a person sees it: listed, shown, added to, checked."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from daemon.config import Config, Role
from daemon.fleet import leftover, runs
from daemon.fleet.agents import span
from daemon.fleet.here import UsageError, one_of
from daemon.fleet.output import Style, as_json, escape, table, value_text
from daemon.fleet.waiting import KINDS, PROBLEMS, Standing, View, Wait, standing
from daemon.index import Tasks, uncollected
from daemon.lifecycle import ENDED, PARKED, attempts_of
from daemon.model import Lease, format_time
from daemon.queue import Pause, Queue
from daemon.queue.opening import how_to_make, open_queue

COLOUR_OF = {
    "claimable": "cyan",
    "held": "yellow",
    "parked": "red",
    "budget": "red",
    "id": "red",
    **dict.fromkeys(PROBLEMS, "red"),
}
QUIET = frozenset({"claimable", "ended", "held"})  # nothing to wait for


def pauses(queue: Queue, roles: Collection[str]) -> dict[str, Pause]:
    """The roles that claim nothing on this host now, and the reason that lasts longest."""
    found = ((role, queue.memory.pauses(role)) for role in roles)
    return {role: max(reasons, key=lambda each: each.lasts) for role, reasons in found if reasons}


def spent(queue: Queue, tasks: Tasks, roles: Iterable[Role]) -> dict[str, str]:
    """The tasks that could be claimed but for a budget of their own, and why."""
    found: dict[str, str] = {}
    for role in roles:
        found |= queue.memory.spent(
            role.name, [each.task["id"] for each in tasks.in_status(*role.claims)]
        )
    return found


def _free_slots(config: Config, leases: Iterable[Lease]) -> dict[str, int]:
    here = os.uname().nodename
    taken = Counter(lease.role for lease in leases if lease.host == here)
    slots = {name: config.roles[name].slots for name in config.run}
    return {name: max(0, most - taken[name]) for name, most in slots.items() if most is not None}


class Board:
    """One workspace's queue, read once."""

    @uncollected()
    def __init__(self, config: Config, *, now: float | None = None) -> None:
        self.config = config
        queue = open_queue(config)
        self.missing = not queue.exists()
        snapshot = queue.snapshot()
        moment = time.time() if now is None else now
        self.view = View(
            snapshot.tasks,
            snapshot.wip_limits,
            snapshot.leases,
            config.machine,
            config.run,
            moment,
            pauses(queue, config.run),
            _free_slots(config, snapshot.leases.values()),
            snapshot.barred,
            spent(queue, snapshot.tasks, config.roles.values()),
        )
        self.standing: Standing = standing(self.view)
        #: What is wrong with the queue, its tasks and its leases, for a person.
        self.problems = list(dict.fromkeys((*self.standing.problems, *queue.problems())))
        #: Whether its file was taken away from under the workers; a database is not taken so.
        self.taken = self.missing and not config.on_postgres and runs.are_left(config.paths.runs)
        if self.taken:
            self.problems.insert(0, f"{queue.name}: {runs.TAKEN}; {runs.LOOK_FOR_IT}")
        if left := leftover.problem(config):
            self.problems.append(f"{left}; {leftover.HINT}")

    def hint(self) -> None:
        """Say on stderr that there is no queue, where there is none."""
        where = escape(self.config.queue_name)
        if self.taken:
            sys.stderr.write(f"problem: {where}: {runs.TAKEN}\nhint:  {runs.LOOK_FOR_IT}\n")
        elif self.missing:
            hint = f"hint:  {how_to_make(self.config)}"
            sys.stderr.write(f"{where}: no queue here yet\n{hint}\n")

    def pick(
        self,
        statuses: Collection[str] = (),
        role: str | None = None,
        type_: str | None = None,
        kind: str | None = None,
    ) -> list[Wait]:
        """The tasks with one of the statuses, that the role holds or claims, of type and kind."""
        if kind is not None:
            one_of("standing", kind, KINDS)
        if type_ is not None:
            types = {str(wait.entry.task.get("type")) for wait in self.standing.waits}
            one_of("type", type_, sorted(types))
        if role is not None:
            one_of("role", role, self.config.roles)
        known = {str(wait.entry.task.get("status")) for wait in self.standing.waits}
        for rules in self.config.machine.roles.values():
            known |= {*rules.claims, rules.holds, rules.on_success, rules.on_rejected}
        for status in statuses:
            one_of("status", status, sorted(known | PARKED | ENDED))
        return [
            wait
            for wait in self.standing.waits
            if (not statuses or wait.entry.task.get("status") in statuses)
            and (role is None or role == wait.role)
            and (type_ is None or type_ == wait.entry.task.get("type"))
            and (kind is None or kind == wait.kind)
        ]

    def find(self, task_id: str) -> Wait:
        """The task of that id. Raises UsageError."""
        entry = self.view.tasks.by_id.get(task_id)
        if entry is None:
            one_of("task", task_id, self.view.tasks.by_id)
            raise UsageError(f'unknown task "{task_id}"')
        return next(wait for wait in self.standing.waits if wait.entry is entry)


def facts(wait: Wait) -> dict[str, Any]:
    """One task's line, for a program."""
    task = wait.entry.task
    return {
        "id": task.get("id"),
        "status": task.get("status"),
        "role": wait.role or None,
        "agent": task.get("agent"),
        "priority": task.get("priority"),
        "attempts": attempts_of(task),
        "title": task.get("title"),
        "parent": wait.entry.parent or task.get("parent") or task.get("parent_task"),
        "standing": wait.kind,
        "why": wait.why,
        "until": None if wait.until is None else format_time(wait.until),
        "hint": wait.hint,
    }


def why(board: Board, wait: Wait, *, hint: bool = False) -> str:
    """What it waits for, how long, and what to type where that is asked for."""
    until = "" if wait.until is None else f" (in {span(wait.until - board.view.now)})"
    return f"{wait.why}{until}" + f" -> {wait.hint}" * bool(hint and wait.hint)


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _row(board: Board, wait: Wait) -> list[str]:
    task = wait.entry.task
    told = why(board, wait).removeprefix("waits for ")
    return [
        _text(task.get("id")),
        _text(task.get("status")),
        wait.role,
        _text(task.get("priority")),
        _text(attempts_of(task) or None),
        _text(task.get("title")),
        "" if wait.kind in QUIET and not wait.why.startswith("goes to") else told,
    ]


def _paint(wait: Wait) -> dict[int, str]:
    colour = "green" if wait.entry.task.get("status") in ENDED else COLOUR_OF.get(wait.kind)
    return {1: colour} if colour else {}


def listing(board: Board, waits: list[Wait], style: Style) -> str:
    """The tasks as a table."""
    if not waits:
        return "no tasks"
    header = ["id", "status", "role", "prio", "tries", "title", "waits for"]
    colours = [_paint(wait) for wait in waits]
    return table(header, [_row(board, wait) for wait in waits], style, colours=colours, shrink=5)


def columns(board: Board, waits: list[Wait], style: Style) -> str:
    """The tasks by status, in the order of a task's life, with each role's WIP."""
    order: list[str] = []
    for rules in board.config.machine.roles.values():
        order += [*rules.claims, rules.holds, rules.on_success]
    order += [*sorted(PARKED), *sorted(ENDED)]
    found = {str(wait.entry.task.get("status")) for wait in waits}
    found_in_order = sorted(found, key=lambda s: (order.index(s) if s in order else len(order), s))
    wips = {board.config.machine.roles[each.role].holds: each for each in board.standing.wips}
    parts = []
    for status in found_in_order:
        group = [wait for wait in waits if str(wait.entry.task.get("status")) == status]
        head = style.paint(f"{escape(status)} ({len(group)})", "bold")
        if status in wips:
            head += f"  {wips[status].role}: WIP {wips[status].held} of {wips[status].limit}"
        rows = [["", *(_row(board, wait)[i] for i in (0, 5, 6))] for wait in group]
        body = table(["", "id", "title", "waits for"], rows, style, shrink=2)
        lines = [line.strip("\n") for line in body.splitlines()[1:]]
        parts.append("\n".join([head, *("  " + line for line in lines)]))
    return "\n\n".join(parts) or "no tasks"


def detail(board: Board, wait: Wait) -> dict[str, Any]:
    """Everything about one task, for a program."""
    task_id = wait.entry.task["id"]
    lease: Lease | None = board.view.leases.get(task_id)
    return {
        **facts(wait),
        "lease": lease._asdict() if lease else None,
        "runs": [run._asdict() for run in runs.of(board.config.paths.runs, task_id)],
        "task": wait.entry.task,
    }


def show(board: Board, wait: Wait, style: Style) -> str:
    """Everything about one task, for a person."""
    task = wait.entry.task
    task_id = task["id"]
    parts = [style.paint(f"{task_id}  {value_text(task.get('title') or '')}".rstrip(), "bold")]
    pairs = [("status", value_text(task.get("status") or ""))]
    pairs += [("role", wait.role)] * bool(wait.role)
    pairs += [("why", escape(why(board, wait, hint=wait.kind != "parked")))] * bool(wait.why)
    if wait.entry.parent:
        pairs.append(("subtask of", wait.entry.parent))
    lease = board.view.leases.get(task_id)
    if lease:
        pairs += [
            (f"lease {key}", value_text(value))
            for key, value in lease._asdict().items()
            if key != "task_id" and value not in ("", (), 0)
        ]
    shown = ("id", "title", "status", "subtasks")
    pairs += [(escape(key), value_text(task[key])) for key in task if key not in shown]
    children = [
        str(each.task.get("id")) for each in board.view.tasks.every if each.parent == task_id
    ]
    if children:
        pairs.append(("subtasks", escape(", ".join(children))))
    size = max(len(name) for name, _ in pairs)
    parts += [f"{name:<{size}}  {value}" for name, value in pairs]
    found = runs.of(board.config.paths.runs, task_id)
    parts += ["", runs.listing(found, style)] if found else []
    return "\n".join(parts)


def check_facts(board: Board) -> dict[str, Any]:
    """The check, for a program."""
    return {
        "queue": board.config.queue_name,
        "problems": board.problems,
        "wip": {
            wip.role: {"held": wip.held, "limit": wip.limit, "claimable": wip.claimable}
            for wip in board.standing.wips
        },
        "tasks": [facts(wait) for wait in board.standing.waits],
    }


def check(board: Board, style: Style) -> str:
    """Each role's WIP, why each task that has not ended is where it is, and what to mend."""
    rows = [[w.role, f"{w.held} of {w.limit}", w.claimable] for w in board.standing.wips]
    parts = [table(["role", "WIP", "claimable"], rows, style)]
    open_tasks = [wait for wait in board.standing.waits if wait.kind != "ended"]
    if open_tasks:
        cells = [
            [_text(w.entry.task.get("id")), _row(board, w)[1], why(board, w, hint=True)]
            for w in open_tasks
        ]
        colours = [_paint(wait) for wait in open_tasks]
        parts.append(table(["id", "status", "why"], cells, style, colours=colours))
    problems = board.problems
    if problems:
        told = [each.removeprefix("error: ").replace("\n", "; ") for each in problems]
        parts.append("\n".join(style.paint("problem: ", "red") + escape(each) for each in told))
    else:
        ended = len(board.standing.waits) - len(open_tasks)
        parts.append(f"no problems in the queue; open tasks: {len(open_tasks)}, ended: {ended}")
    parked = [wait for wait in open_tasks if wait.kind == "parked"]
    if parked:
        names = ", ".join(sorted({str(wait.entry.task["status"]) for wait in parked}))
        count = "1 task waits" if len(parked) == 1 else f"{len(parked)} tasks wait"
        typed = "invoke queue.show ID, then invoke queue.retry ID"
        parts.append(f"{count} for a person ({names}): {typed}")
    return "\n\n".join(parts)


def print_list(board: Board, waits: list[Wait], *, json_: bool, by_status: bool) -> str:
    """What ``queue.list`` prints."""
    if json_:
        return as_json([facts(wait) for wait in waits])
    style = Style.of(sys.stdout)
    return columns(board, waits, style) if by_status else listing(board, waits, style)
