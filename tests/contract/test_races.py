"""Twelve users of a queue at once, over and over, some of them killed in the middle of it."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from daemon import process
from daemon.config import Amounts, Budget
from daemon.model import Outcome, Result
from tests.queues import FAR, Backend
from tests.workspace import wait_for

USERS, TASKS, LIMIT = 12, 60, 3
ROUNDS = 8.0  # seconds in which new rounds begin; one does in any case
PATIENCE = 120.0  # seconds; only ever waited for when something is wrong


class Marks:
    """Who holds what, by the word of those who hold: a file each, named for task and process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settled, self.counts = folder, folder / "settled", folder / "counts"
        self.running = folder / "running"
        self.running.mkdir()
        self.settled.touch()

    def held(self) -> Counter[str]:
        """How many living processes hold each task; a killed one holds nothing any more."""
        named = [name.split("@") for name in os.listdir(self.running)]
        return Counter(task for task, pid, since in named if process.is_alive(int(pid), int(since)))

    def hold(self, task_id: str) -> None:
        me = process.identity()
        mark = self.running / f"{task_id}@{me.pid}@{me.pid_started}"
        mark.touch()
        held = self.held()
        with self.counts.open("a") as file:
            file.write(f"{held.total()} {held[task_id]}\n")
        mark.unlink()

    def ended(self, task_id: str) -> None:
        with self.settled.open("a") as file:
            file.write(task_id + "\n")


def work(backend: Backend, marks: Marks) -> None:
    """Claim, hold, settle and recover until every task is over."""
    queue, until = backend.open(random=0.0), time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for stale in queue.stale():
            queue.recover(stale)
        claim = queue.claim("builder", "me")
        if claim is not None:
            queue.renew(queue.take_over(claim.lease, process.identity()))
            marks.hold(claim.lease.task_id)
            queue.settle(claim.lease, Result(Outcome.SUCCESS))
            marks.ended(claim.lease.task_id)
        elif {task["status"] for task in backend.document()["tasks"]} == {"awaiting_test"}:
            return
    raise AssertionError("not in time")


def test_users_race_and_die_and_nothing_is_lost(
    queues: Callable[..., Backend], tmp_path: Path, forked: Callable[[Callable[[], object]], int]
) -> None:
    """Never a fourth at once, by their own count and the queue's; none twice, none lost.

    With every tenth task that is settled one of them is killed, wherever it is, and another starts.
    Broken once by claims without the lock, and by a WIP limit of one more: each time this failed.
    """
    until, rounds = time.monotonic() + ROUNDS, 0
    while not rounds or time.monotonic() < until:
        backend = queues(tmp_path / f"{rounds}", max_attempts=1000)
        backend.fill(
            *({"id": f"T{i}", "status": "ready"} for i in range(TASKS)),
            wip_limits={"builder": LIMIT},
        )
        marks = Marks(backend.folder)
        race(backend, marks, lambda: forked(lambda: work(backend, marks)))  # noqa: B023  # called here
        settled = marks.settled.read_text().split()
        assert len(settled) == len(set(settled))
        counts = [line.split() for line in marks.counts.read_text().splitlines()]
        assert max(int(running) for running, _ in counts) <= LIMIT
        assert {task for _, task in counts} == {"1"}
        assert {task["status"] for task in backend.document()["tasks"]} == {"awaiting_test"}
        assert (backend.open().live(), backend.open().stale()) == ([], [])
        backend.close()
        rounds += 1


def race(backend: Backend, marks: Marks, start: Callable[[], int]) -> None:
    """Let them run until all have ended by themselves, and look at the queue meanwhile."""
    pids, killed = [start() for _ in range(USERS)], 0
    while pids:
        statuses = Counter(task["status"] for task in backend.document()["tasks"])
        assert statuses["in_progress"] <= LIMIT
        if statuses["awaiting_test"] > 10 * killed + 5:
            victim = pids.pop(0)
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            killed += 1
            pids.append(start())
        for pid in pids:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                assert status == 0
                pids.remove(pid)
                break


def test_claims_at_once_never_overrun_a_budget(
    queues: Callable[..., Backend], tmp_path: Path, forked: Callable[[Callable[[], object]], int]
) -> None:
    """Twelve processes, room for five reservations: five claims, in each of several rounds.

    Broken once by judging before the lock only, and once by reserving behind the queue's write.
    """
    for number in range(2):
        backend = queues(
            tmp_path / f"{number}",
            wip_limit=USERS,
            budget=Budget(attempt=Amounts(tokens=100), day=Amounts(tokens=500)),
        )
        backend.fill(*({"id": f"T{i}", "status": "ready"} for i in range(2 * USERS)))
        ready, go = backend.folder / "ready", backend.folder / "go"
        ready.mkdir()

        def compete(backend: Backend = backend, ready: Path = ready, go: Path = go) -> None:
            queue = backend.open(FAR)  # of a process whose end nobody here can see
            (ready / str(os.getpid())).touch()
            wait_for(go.exists)
            for _ in range(3):
                queue.claim("builder", "me", ignore_wip=True)

        pids = [forked(compete) for _ in range(USERS)]
        wait_for(lambda: len(os.listdir(ready)) == USERS)  # noqa: B023  # called in this turn
        go.touch()
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * USERS
        statuses = Counter(task["status"] for task in backend.document()["tasks"])
        assert statuses["in_progress"] == 5
        assert len(backend.open().live()) == 5
