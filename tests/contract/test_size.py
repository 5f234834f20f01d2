"""A large queue and a small one behave alike, but for the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from daemon.fleet.waiting import View, standing
from daemon.model import Lease, Outcome, Result
from daemon.queue import Queue
from tests.queues import Backend, FileBackend

STATUSES = ("ready", "awaiting_test", "blocked", "needs_plan", "needs_adapt")
#: What stands around the tasks: nothing that a builder, tester, planner or refiner could take.
AROUND: list[dict[str, Any]] = [
    {"status": "done", "type": "Build", "own": 1.50},
    {"status": "cancelled", "dependencies": ["T1"]},
    {"status": "blocked", "dependencies": ["T1"], "blocked_reason": "a person"},
    {"status": "ready_for_integrator", "priority": 1},
    {"status": "needs_manual", "subtasks": [{"title": "no id", "status": "done"}]},
    {"status": "planning_complete"},
    {"status": "completed", "title": "\u2028é"},
]


def lines(around: int) -> Iterator[str]:
    """A hundred tasks, a line each, and so many others before each of them."""
    for place in range(100):
        for number in range(around):
            task = {"id": f"around-{place}-{number}", **AROUND[number % len(AROUND)]}
            yield json.dumps(task, separators=(",", " :  "), ensure_ascii=number % 2 > 0)
        task = {"id": f"T{place}", "own": [1, {"é": None}], "status": STATUSES[place % 5]}
        if task["status"] == "blocked":
            task["dependencies"] = [f"T{place - 2}"]
        elif task["status"] == "needs_plan":
            task |= {"type": "Story", "priority": place % 3}
        yield json.dumps(task, separators=(" , ", ":"), ensure_ascii=False)


def text(around: int) -> str:
    limits = {"builder": 4, "tester": 3, "refiner": 2}
    tasks = ",\n".join(lines(around))
    return f'{{"wip_limits":{json.dumps(limits)}, "tasks" : [\n{tasks}\n]\n, "z":1.50}}\n'


class Script:
    """A day of work. Each step gives all that a worker or a person would see of it."""

    def __init__(self, backend: Backend, around: int) -> None:
        self.backend, self.held = backend, list[Lease]()
        backend.clock.wall, backend.clock.boot = 1_800_000_000.0, 5_000.0
        backend.save(text(around))
        self.queue: Queue = backend.open(random=0.5)

    def steps(self) -> Iterator[Callable[[], object]]:
        for role in ("builder", "builder", "tester", "planner", "refiner", "tester"):
            yield partial(self.claim, role)
        yield self.check
        for outcome in (Outcome.SUCCESS, Outcome.REJECTED, Outcome.SUCCESS, Outcome.ERROR):
            yield partial(self.settle, Result(outcome))
        for name, status in (("T0", "done"), ("T1", "cancelled"), ("T5", "completed")):
            yield partial(self.by_hand, name, status)
        for _ in range(6):
            yield lambda: self.claim("builder")
        yield lambda: self.settle(Result(Outcome.THROTTLED, retry_after=9))
        yield lambda: self.settle(Result(Outcome.SUCCESS, add_tasks=({"id": "N1", "title": "→"},)))
        yield lambda: self.queue.add([{"id": "N2", "status": "blocked", "dependencies": ["T0"]}])
        yield lambda: self.backend.drop_lease(self.held.pop().task_id)
        yield self.recover
        yield lambda: self.backend.clock.step(61)
        yield self.recover
        yield self.check
        yield lambda: self.claim("tester")

    def claim(self, role: str) -> object:
        claim = self.queue.claim(role, "me")
        if claim is None:
            return None
        self.held.append(claim.lease)
        return claim.lease.task_id, claim.lease.token, claim.task, claim.moves

    def settle(self, result: Result) -> object:
        return self.queue.settle(self.held.pop(0), result)

    def recover(self) -> object:
        found = self.queue.stale()
        return [(s.task_id, s.why, s.lease.token, self.queue.recover(s)) for s in found]

    def lines(self) -> list[str]:
        """What each task says, a line each; of a file as it stands there."""
        if isinstance(self.backend, FileBackend):
            return self.backend.text().split("\n")
        document = self.backend.document()
        return [*map(json.dumps, document.pop("tasks")), json.dumps(document)]

    def by_hand(self, name: str, status: str) -> None:
        if not isinstance(self.backend, FileBackend):
            self.backend.change(name, status=status)
            return
        old = next(line for line in self.backend.text().split("\n") if f'"{name}"' in line[:20])
        was = self.backend.task(name)["status"]
        new = old.replace(f'"status":"{was}"', f'"status":"{status}"')
        assert new != old
        self.backend.save(self.backend.text().replace(old, new))

    def check(self) -> object:
        """What queue.check says of our tasks, and of each role's WIP; the integrator has others."""
        view, config = self.queue.snapshot(), self.backend.config
        found = standing(
            View(view.tasks, view.wip_limits, view.leases, config.machine, config.run, 1.8e9)
        )
        waits = [(each.entry.task.get("id"), *each[1:]) for each in found.waits]
        ours = [
            each
            for each in waits
            if each[1] != "integrator" and (each[0] or "around").startswith(("T", "N"))
        ]
        return ours, [wip for wip in found.wips if wip.role != "integrator"]


def test_ten_thousand_tasks_are_no_other_queue_than_a_hundred(
    queues: Callable[..., Backend], tmp_path: Path
) -> None:
    """Each step gives the same, the tasks come out the same byte for byte, the others untouched.

    Broken once by looking for the claimable among the first 1,000 tasks only, and by writing the
    text of all tasks anew: each time this failed.
    """
    small, large = (Script(queues(tmp_path / name), around) for name, around in SIZES)
    others = [line for line in large.lines() if "around-" in line]
    assert len(large.backend.document()["tasks"]) == 10_000
    moved = 0
    for one, other in zip(small.steps(), large.steps(), strict=True):
        found, wanted = other(), one()
        assert (found, large.backend.told.moves) == (wanted, small.backend.told.moves)
        moved += bool(wanted)
        after = large.lines()
        ours = [line for line in after if "around-" not in line]
        # Compared as one: a difference of such lists takes pytest minutes to tell.
        assert "\n".join(ours) == "\n".join(small.lines())
        untouched = [line for line in after if "around-" in line] == others
        assert untouched
    assert moved > 20


SIZES = (("small", 0), ("large", 99))
