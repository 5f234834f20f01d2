"""A queue once more, small and on its own: a document, the leases, two clocks, and no files.

Each call says what a queue of ours must have made of the same call, or refused.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from tests.model import (
    ENDED,
    TABLE,
    Change,
    Task,
    by_itself,
    count,
    held,
    in_order,
    satisfied,
    seconds,
    settle,
    started,
    walk,
    weighed,
)

TTL = 60.0  # seconds


class Who(NamedTuple):
    """A process: of one machine, at one boot of it."""

    machine: str
    boot: str
    pid: int


class Lease(NamedTuple):
    """A lease file; ``who`` is None in one that a person wrote."""

    role: str
    token: int
    who: Who | None
    wall: float
    boot: float


class Stale(NamedTuple):
    task_id: str
    why: str
    role: str
    token: int


class Refused(Exception):  # it is an answer
    """The model lets nothing happen."""


class Model:
    """A queue: what each call does to it. Calls give the changes of status that they make."""

    def __init__(self, document: Task, wall: float, boot: float) -> None:
        self.document, self.wall, self.boot = document, wall, boot
        self.leases: dict[str, Lease] = {}
        self.largest: dict[
            str, int
        ] = {}  # the token of each task's last claim, whatever became of it
        self.dead: set[Who] = set()

    def tasks(self) -> dict[str, Task]:
        return dict(in_order(self.document["tasks"]))

    def gone(self, lease: Lease, viewer: Who) -> str:
        """As one process can know it of another: its death at once on the same machine."""
        who = lease.who
        if who and who.machine == viewer.machine and (who.boot != viewer.boot or who in self.dead):
            return "died"
        ran = self.boot - lease.boot if who and who.boot == viewer.boot else self.wall - lease.wall
        if ran < -TTL:  # a beat to come counts from its file's own time, long before these clocks
            return "expired"
        return "expired" if ran >= TTL else ""

    def live(self, viewer: Who) -> dict[str, Lease]:
        return {n: each for n, each in sorted(self.leases.items()) if not self.gone(each, viewer)}

    def _begin(self, viewer: Who) -> list[Change]:
        """What precedes every change: holds that an old buffer undid, then what moves by itself."""
        found, tasks = list[Change](), self.tasks()
        for name, lease in self.live(viewer).items():
            task = tasks.get(name, {})
            row = TABLE[lease.role]
            if count(task.get("token")) < lease.token and task.get("status") == row.claims:
                found.append((name, row.claims, row.holds))
                self._hold(task, lease.role, lease.token)
        return found + by_itself(self.document["tasks"], self.leases)

    def _before(self, viewer: Who) -> list[Change]:
        """What precedes a change that is no claim."""
        return self._begin(viewer)

    def by_hand(self) -> None:
        """A person has put another document in place."""

    def _hold(self, task: Task, role: str, token: int) -> None:
        hold = {"owner": "me", "token": token}
        task.update(status=TABLE[role].holds, agent=role, lease=hold, token=token)

    def wip(self, role: str) -> int:
        every = walk(self.document["tasks"])
        return sum(task.get("status") == TABLE[role].holds for task, _ in every)

    def limit(self, role: str) -> float:
        limits = self.document.get("wip_limits")
        found = limits.get(role) if isinstance(limits, dict) else None
        if isinstance(found, bool) or not isinstance(found, int | float) or found < 0:
            return 1
        return int(found)

    def ready(self, role: str) -> list[str]:
        """What the role may claim by the tasks alone, in the order of claiming."""
        tasks, found = self.tasks(), []
        for place, (name, task) in enumerate(in_order(self.document["tasks"])):
            lease, priority = task.get("lease"), task.get("priority")
            hand = lease if isinstance(lease, dict) and not count(lease.get("token")) else {}
            if (
                task.get("status") == TABLE[role].claims
                and satisfied(task.get("dependencies") or [], tasks, self.leases)
                and seconds(task.get("not_before")) <= self.wall
                and seconds(hand.get("heartbeat_at")) + TTL <= self.wall
            ):
                usable = type(priority) in (int, float)
                found.append((not usable, priority if usable else 0, place, name))
        return [name for *_, name in sorted(found)]

    def claim(self, role: str, viewer: Who, *, ignore_wip: bool) -> tuple[str | None, list[Change]]:
        changes, live = self._begin(viewer), self.live(viewer)
        if self.wip(role) >= self.limit(role) and not ignore_wip:
            return None, changes
        barred = {name for name, lease in self.leases.items() if lease.token} | set(live)
        for name in self.ready(role):
            if name not in barred:
                task = self.tasks()[name]
                token = 1 + max(count(task.get("token")), self.largest.get(name, 0))
                self._hold(task, role, token)
                self.largest[name] = token
                self.leases[name] = Lease(role, token, viewer, self.wall, self.boot)
                return name, [*changes, (name, TABLE[role].claims, TABLE[role].holds)]
        return None, changes

    def renew(self, name: str, role: str, token: int, holder: Who | None = None) -> None:
        now = self.leases.get(name)
        if now is None or (now.role, now.token) != (role, token):
            raise Refused
        self.leases[name] = Lease(role, token, holder or now.who, self.wall, self.boot)

    def take_over(self, name: str, role: str, token: int, claimer: Who, me: Who) -> None:
        if name in self.leases and self.leases[name].who not in (claimer, me):
            raise Refused
        self.renew(name, role, token, me)

    def settle(  # noqa: PLR0913  # a result and who brings it
        self,
        name: str,
        role: str,
        token: int,
        outcome: str,
        viewer: Who,
        *,
        asked: str | None = None,
        wait: float | None = None,
        luck: float = 1.0,
        new: list[Task] | None = None,
        dead: bool = False,
    ) -> list[Change]:
        """All of it or, for one who may not, nothing but the end of the lease."""
        before, now = copy.deepcopy(self.document), self.leases.get(name)
        changes, task = self._before(viewer), self.tasks().get(name, {})
        if now is not None and now.token == token:
            del self.leases[name]
        late = self.largest.get(name, 0) > token and not dead
        if late or (now is not None and now.token > token) or not held(task, role, token):
            self.document = before
            raise Refused
        status = task["status"]
        said = status if asked is None and status != TABLE[role].holds else asked
        outcome = weighed(role, outcome, said)
        good = new is not None and outcome in ("success", "rejected")
        if good:
            new = [{**self._parent(name, role), **each} for each in copy.deepcopy(new or [])]
            story = name if role == "planner" else ""
            if not (self._acceptable(new) and self._proper(new)) or self._rings(new, story):
                outcome, good = "error", False
        settle(task, role, outcome, wait=wait, luck=luck, now=self.wall)
        changes.append((name, status, task["status"]))
        if good:
            changes += self._join(new or [])
        return changes + by_itself(self.document["tasks"], self.leases)

    def _join(self, new: list[Task]) -> list[Change]:
        """Put new tasks behind the others; each comes from nowhere."""
        fresh = [started(each) for each in new]
        self.document["tasks"] += fresh
        return [(task["id"], "", task["status"]) for task, _ in walk(fresh)]

    def _acceptable(self, new: list[Task]) -> bool:
        names, holds = [each["id"] for each in new], {row.holds for row in TABLE.values()}
        fresh = len(set(names) | set(self.tasks())) == len(names) + len(self.tasks())
        return fresh and not any(each.get("status") in holds for each in new)

    def _proper(self, new: list[Task]) -> bool:
        """Whether an agent may add them: statuses that wait, dependencies that are there."""
        every = [task for task, _ in walk(new)]
        known = {*self.tasks(), *(each["id"] for each in every)}
        waits = {"ready", "blocked", "needs_manual", *(row.claims for row in TABLE.values())}
        return all(
            each.get("status", "ready") in waits and known >= {*(each.get("dependencies") or [])}
            for each in every
        )

    def _rings(self, new: list[Task], planned: str) -> bool:
        """Whether a new task waits for itself; a story that is planned waits for its children."""
        tasks, fresh, more = self.tasks(), dict(in_order(new)), dict[object, list[str]]()
        for each in new:
            for story in {each[key] for key in ("parent", "parent_task") if each.get(key)}:
                if story == planned or tasks.get(story, {}).get("status") == "planning_complete":
                    more.setdefault(story, []).append(each["id"])

        def needs(name: object) -> list[object]:
            task = fresh.get(str(name)) or tasks.get(str(name), {})
            over = task.get("status") in ENDED
            return [] if over else [*(task.get("dependencies") or []), *more.get(name, [])]

        for start in fresh:
            seen, left = set[object](), needs(start)
            while left:
                name = left.pop()
                if name == start:
                    return True
                left += needs(name) if name not in seen else []
                seen.add(name)
        return False

    def _parent(self, name: str, role: str) -> Task:
        """What a new task is a child of that does not say so."""
        if role == "planner":
            return {"parent": name}
        task, above = next((t, p) for t, p in walk(self.document["tasks"]) if t.get("id") == name)
        found = task.get("parent") or task.get("parent_task") or above
        return {"parent": found} if found else {}

    def add(self, new: list[Task], viewer: Who) -> list[Change]:
        before = copy.deepcopy(self.document)
        changes = self._before(viewer)
        if not self._acceptable(new):
            self.document = before
            raise Refused
        return changes + self._join(new) + by_itself(self.document["tasks"], self.leases)

    def stale(self, viewer: Who) -> list[Stale]:
        found, tasks = [], self.tasks()
        for name, lease in sorted(self.leases.items()):
            why = self.gone(lease, viewer)
            is_held = held(tasks.get(name, {}), lease.role, lease.token)
            if why:
                found.append(Stale(name, why if is_held else "orphan", lease.role, lease.token))
        for name, task in in_order(self.document["tasks"]):
            role = next((r for r, row in TABLE.items() if row.holds == task.get("status")), None)
            token = count(task.get("token"))
            if name not in self.leases and role and held(task, role, token):
                found.append(Stale(name, "vanished", role, token))
        return found

    def recover(self, stale: Stale, viewer: Who, luck: float) -> list[Change]:
        now, outcome = self.leases.get(stale.task_id), "error"
        if stale.why == "vanished":
            outcome = "released"
            if now is not None:
                return []
        elif now is None or now.token != stale.token or not self.gone(now, viewer):
            return []
        elif not held(self.tasks().get(stale.task_id, {}), now.role, now.token):
            del self.leases[stale.task_id]
            return []
        try:
            name, role, token = stale.task_id, stale.role, stale.token
            return self.settle(name, role, token, outcome, viewer, luck=luck, dead=True)
        except Refused:
            return []

    def over(self, task: Task) -> bool:
        """Whether the task, where nothing is held and every wait is over, waits for a person."""
        tasks, status = self.tasks(), task.get("status")
        needs = task.get("dependencies") or []
        if status in {row.claims for row in TABLE.values()}:
            return not satisfied(needs, tasks)
        for role, row in TABLE.items():
            if status == row.holds:
                return not held(task, role, count(task.get("token")))
        return True


class Rows(Model):
    """The same where a lease is part of its task: who moves a task by hand has ended it.

    One clock judges all leases, and what moves by itself moves behind every change.
    """

    def gone(self, lease: Lease, viewer: Who) -> str:
        who = lease.who
        if who and who.machine == viewer.machine and (who.boot != viewer.boot or who in self.dead):
            return "died"
        return "expired" if self.wall - lease.wall >= TTL else ""

    def _begin(self, viewer: Who) -> list[Change]:  # noqa: ARG002  # as it is called
        return by_itself(self.document["tasks"], self.leases)

    def _before(self, viewer: Who) -> list[Change]:  # noqa: ARG002  # as it is called
        return []

    def by_hand(self) -> None:
        tasks = self.tasks()
        for name, lease in list(self.leases.items()):
            task = tasks.get(name, {})
            hold = task.get("status") == TABLE[lease.role].holds
            if not (hold and held(task, lease.role, lease.token)):
                del self.leases[name]
