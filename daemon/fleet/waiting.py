"""Why each task of a queue waits, and what is wrong with the queue. Pure functions over a view."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from daemon.fleet.cycles import cycles
from daemon.index import Entry, Tasks
from daemon.lifecycle import (
    ENDED,
    PARKED,
    PLANNED,
    SATISFIED,
    START,
    STARTS,
    Machine,
    Rules,
    Transition,
    children,
    claimable,
    dependencies,
    held_by_us,
    moves,
    waits_for,
    why_not,
    wip,
    wip_limit,
)
from daemon.model import Lease, is_task_id, parse_time
from daemon.queue import Pause


class View(NamedTuple):
    """A queue at one moment, and the state machine to judge it by.

    ``run``: this host's roles; ``pauses``: those that claim nothing for a while, and why;
    ``free_slots``: how many attempts more this host makes, for roles with slots of their own;
    ``barred``: why nobody may claim a task that has no live lease; ``spent``: why a task's own
    budget lets nobody claim it.
    """

    tasks: Tasks
    limits: object
    leases: Mapping[str, Lease]
    machine: Machine
    run: tuple[str, ...]
    now: float
    pauses: Mapping[str, Pause] = MappingProxyType({})
    free_slots: Mapping[str, int] = MappingProxyType({})
    barred: Mapping[str, str] = MappingProxyType({})
    spent: Mapping[str, str] = MappingProxyType({})


class Wait(NamedTuple):
    """One task's standing. ``role`` holds it, or claims its status; ``why`` is for a person.

    ``kind`` is one of KINDS. ``until``: when that ends by itself, in seconds since the epoch;
    ``hint``: what to type.
    """

    entry: Entry
    role: str
    kind: str
    why: str
    until: float | None = None
    hint: str = ""


class Wip(NamedTuple):
    """One role's work in progress; ``claimable`` is none while the role is paused."""

    role: str
    held: int
    limit: int
    claimable: int


class Standing(NamedTuple):
    """All there is to say: every task's standing, every role's WIP, and what to mend."""

    waits: list[Wait]
    wips: list[Wip]
    problems: list[str]


PROBLEMS = frozenset({"cycle", "unknown", "cancelled", "unclaimed"})
#: Dependencies that are never satisfied as they are: the worst first.
NEVER = {
    "unknown": "no task has that id",
    "cancelled": "what is cancelled is never satisfied",
}
KINDS = (
    *("ended", "held", "claimable", "moves", "dependency", "wip", "slots", "paused", "backoff"),
    *("credential", "budget", "lease", "children", "parked", "id"),
    *sorted(PROBLEMS),
)


def standing(view: View) -> Standing:
    """Judge the whole queue, as a worker will find it: the automatic moves come first."""
    found = moves(view.tasks, view.machine, view.now, view.leases)
    coming = {move.entry.index: move for move in found}
    moved = Tasks(
        entry._replace(task={**entry.task, **coming[entry.index].changes})
        if entry.index in coming
        else entry
        for entry in view.tasks.every
    )
    judge = _Judge(view._replace(tasks=moved))
    waits = [
        _announce(judge.wait(after), before, coming.get(before.index))
        for after, before in zip(moved.every, view.tasks.every, strict=True)
    ]
    problems = list(view.tasks.problems)
    problems += [f"{w.entry.task['id']}: {w.why}" for w in waits if w.kind in PROBLEMS]
    problems += _limit_problems(view, judge.wips)
    wips = [
        wip._replace(claimable=0) if wip.role in view.pauses else wip for wip in judge.wips.values()
    ]
    return Standing(waits, wips, problems)


def _announce(wait: Wait, before: Entry, move: Transition | None) -> Wait:
    """The standing of the task as it is written now, and the move that is to come."""
    if move is None:
        return wait._replace(entry=before)
    why = f"goes to {move.target} at the next look: {move.why}"
    if wait.kind == "ended":
        return Wait(before, "", "moves", why)
    return wait._replace(entry=before, why=f"{why}; then {wait.why}")


def _limit_problems(view: View, wips: Mapping[str, Wip]) -> list[str]:
    found = []
    limits = view.limits
    if limits is not None and not isinstance(limits, dict):
        found.append("wip_limits is no object: the roles' own limits count")
    for name, rules in view.machine.roles.items():
        if isinstance(limits, dict) and name in limits:
            value = limits[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                found.append(
                    f"wip_limits.{name} is no number of 0 or more:"
                    f" the role's own, {rules.wip_limit}, counts"
                )
        if wips[name].held > wips[name].limit:
            found.append(
                f"{wips[name].held} tasks are {rules.holds}, {name}'s WIP limit is"
                f" {wips[name].limit}"
            )
    return found


def _circle(way: list[str]) -> str:
    return f"waits for itself: {' -> '.join(way)}"


class _Judge:
    """What is worked out once for all tasks of a view."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.cycles = cycles(view.tasks)
        planned = {entry.task["id"] for entry in view.tasks.in_status(PLANNED)}
        self.families = children(view.tasks, planned)
        roles = view.machine.roles
        self.claimers: dict[Any, Rules] = {}
        for rules in roles.values():
            for status in rules.claims:
                self.claimers.setdefault(status, rules)
        self.holders = {rules.holds: rules for rules in reversed(roles.values())}
        self.taken = view.leases.keys() | view.barred.keys()
        self.line: dict[int, int] = {}  # index of a claimable task: how many are claimed before it
        self.wips: dict[str, Wip] = {}
        for name, rules in roles.items():
            ready = list(claimable(view.tasks, rules, view.now, self.taken))
            self.line.update({entry.index: place for place, entry in enumerate(ready)})
            held, limit = wip(view.tasks, rules), wip_limit(view.limits, rules)
            self.wips[name] = Wip(name, held, limit, len(ready))

    def wait(self, entry: Entry) -> Wait:
        """Why this task is where it is."""
        task, view = entry.task, self.view
        status = task.get("status")
        if not isinstance(status, str):
            return Wait(entry, "", self._usable(entry, "unclaimed"), "it has no status")
        if status in ENDED:
            return Wait(entry, "", "ended", "")
        if view.tasks.by_id.get(str(task.get("id"))) is not entry:
            return Wait(entry, "", "id", "its id is not valid, or taken: it is left alone")
        if status in self.holders:
            return Wait(entry, self.holders[status].name, "held", self._hold(task, status))
        rules = self.claimers.get(status)
        name = rules.name if rules else ""
        if (needs := self._needs(entry, name)) is not None and (rules or status == "blocked"):
            return needs
        if rules:
            return self._help(Wait(entry, name, *self._claim(entry, rules)))
        if status == PLANNED:
            way = self.cycles.get(entry.task["id"])
            kind, why = ("cycle", _circle(way)) if way else ("children", self._children(entry))
            return Wait(entry, "", kind, why)
        if status in PARKED:
            return self._help(Wait(entry, "", "parked", self._parked(task, status)))
        return Wait(entry, "", "unclaimed", f"no role claims status {status}")

    def _help(self, wait: Wait) -> Wait:
        """With what to type, and when it ends by itself."""
        name, pause = wait.entry.task["id"], self.view.pauses.get(wait.role)
        until = pause.until if pause and pause.kind == wait.kind and pause.why in wait.why else None
        hint = {
            "parked": f"invoke queue.show {name}, then invoke queue.retry {name}",
            "credential": f"at once: invoke queue.retry {name}",
            "backoff": f"at once: invoke queue.retry {name}",
            "paused": f"at once: invoke agents.restart --role {wait.role}",
        }.get(wait.kind, "")
        if wait.kind == "budget" and "until it is raised" in wait.why:
            hint = "raise it in the inventory, then invoke deploy"
        return wait._replace(until=until, hint=hint)

    def _usable(self, entry: Entry, kind: str) -> str:
        usable = self.view.tasks.by_id.get(str(entry.task.get("id"))) is entry
        return kind if usable else "id"

    def _hold(self, task: dict[str, Any], status: str) -> str:
        lease = self.view.leases.get(task["id"])
        if lease:
            beat = parse_time(lease.heartbeat_at)
            age = "" if beat is None else f", last heartbeat {self.view.now - beat:.0f} s ago"
            number = f", attempt {lease.attempt}" if lease.token else ""
            return f"held by {lease.owner}{number}{age}"
        if task["id"] in self.view.barred:
            return self.view.barred[task["id"]]
        if held_by_us(task):
            return "its attempt is gone: the next look of a worker recovers it"
        holder = self.holders[status].name
        return f"a person holds it: it counts for {holder}'s WIP, and nothing moves it by itself"

    def _needs(self, entry: Entry, role: str) -> Wait | None:
        """Its standing where dependencies keep it waiting: by the worst of their kinds."""
        waiting = list(waits_for(entry.task, self.view.tasks, self.view.leases))
        if not waiting:
            return None
        own = entry.task["id"]
        if way := self.cycles.get(own):
            return Wait(entry, role, "cycle", _circle(way))
        text = f"waits for {', '.join(f'{name} ({status})' for name, status in waiting)}"
        if not isinstance(entry.task.get("dependencies"), list):
            text = "dependencies is no list of ids"
            return Wait(entry, role, "unknown", text, hint=self._way_out(own, ""))
        for kind, why in NEVER.items():
            for name, status in waiting:
                if status == kind:
                    hint = self._way_out(own, name)
                    return Wait(entry, role, kind, f"{text}: {why}", hint=hint)
        return Wait(entry, role, "dependency", text)

    def _way_out(self, own: str, needed: str) -> str:
        """What to type where a task waits for one that is cancelled, or not there."""
        found = self.view.tasks.by_id.get(needed)
        if found is None and not is_task_id(needed):
            return f"invoke queue.cancel {own}, then add it anew"
        typed = f'invoke queue.add --id {needed} --title "..."'
        if found is not None:
            start = STARTS.get(str(found.task.get("type")), START)
            typed = f"invoke queue.retry {needed} --status {start}"
        return f"{typed}, or invoke queue.cancel {own}"

    def _claim(self, entry: Entry, rules: Rules) -> tuple[str, str]:
        view = self.view
        why = why_not(entry, view.tasks, rules, view.now, self.taken)
        pause = view.pauses.get(rules.name)
        if why:
            if why.startswith("not before"):
                later = parse_time(entry.task.get("not_before")) or view.now
                if pause and pause.kind == "credential":  # it is of the task's own attempt
                    return pause.kind, pause.why
                if pause is None or pause.lasts <= later:
                    return "backoff", f"{why} (in {later - view.now:.0f} s)"
                return pause.kind, f"{rules.name} is paused: {pause.why}"
            lease = view.leases.get(entry.task["id"])
            live = f"a live lease of {lease.owner} is on it" if lease else why
            return "lease", view.barred.get(entry.task["id"], live)
        known = self.wips[rules.name]
        before, free = self.line[entry.index], max(0, known.limit - known.held)
        where = "" if rules.name in view.run else f" (no worker of this host runs {rules.name})"
        if spent := view.spent.get(entry.task["id"]):
            return "budget", spent
        if pause:
            told = (
                pause.why if pause.kind == "credential" else f"{rules.name} is paused: {pause.why}"
            )
            return pause.kind, told + where
        slots = view.free_slots.get(rules.name)
        if before < free and slots is not None and before >= slots:
            return "slots", f"the slots of {rules.name} on this host are taken{where}"
        if before < free:
            return "claimable", f"claimable by {rules.name}{where}"
        line = f", {before} before it" if before else ""
        full = f"{rules.name}'s WIP is {known.held} of {known.limit}"
        return "wip", f"{full}{line}{where}"

    def _children(self, entry: Entry) -> str:
        found = [child.task for child in self.families[entry.task["id"]]]
        left = [str(child.get("id")) for child in found if child.get("status") not in ENDED]
        if not found:
            return "no task names it as its parent: a person has to move it"
        if not left and not any(child.get("status") in SATISFIED for child in found):
            return "all its children are cancelled: a person has to move it"
        return f"waits for its children {', '.join(left)}" if left else "its children have ended"

    def _parked(self, task: dict[str, Any], status: str) -> str:
        named = next(
            (task[key] for key in ("blocked_reason", "blocker", "last_error") if task.get(key)), ""
        )
        if named:
            return f"a person has to look: {named}"
        if status == "blocked" and not dependencies(task):
            return "blocked without dependencies: a person has to move it"
        return "a person has to look"
