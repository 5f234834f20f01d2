"""What every queue promises, whatever it is kept in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import process
from daemon.errors import LeaseLost, RolecallError
from daemon.model import Claim, Outcome, Result
from daemon.process import Identity
from daemon.queue import Queue
from tests.queues import FAR, Backend


@pytest.fixture
def backend(queues: Callable[..., Backend], tmp_path: Path) -> Backend:
    """An empty queue of each kind."""
    made = queues(tmp_path)
    made.fill()
    return made


def ready(task_id: str, **values: Any) -> dict[str, Any]:
    """A task that a builder can claim."""
    return {"id": task_id, "title": "é", "status": "ready", **values}


def claimed(queue: Queue, role: str = "builder") -> Claim:
    """A claim that has to be won."""
    claim = queue.claim(role, "me")
    assert claim is not None
    return claim


def dead() -> Identity:
    """A process of this host that has ended."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    found = process.identity(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return found


# --- claiming ------------------------------------------------------------------------------------


def test_a_claim_holds_the_task_under_a_lease(backend: Backend) -> None:
    """Status, agent, lease and token are in the task; the lease is live; the run has a folder."""
    backend.fill(ready("T1"))
    queue = backend.open()
    claim = claimed(queue)
    task = backend.task("T1")
    assert (task["status"], task["agent"], task["token"]) == ("in_progress", "builder", 1)
    assert set(task["lease"]) == {"owner", "token", "started_at"}
    assert claim.task == task
    assert (claim.lease.token, claim.lease.attempt, claim.lease.owner) == (1, 1, "me")
    assert queue.live() == [claim.lease] == queue.live("builder", os.uname().nodename)
    assert queue.live("tester") == queue.live(host="elsewhere") == []
    assert queue.stale() == []
    assert Path(claim.run_dir).stat().st_mode & 0o777 == 0o700
    assert [(move.source, move.target) for move in claim.moves] == [("ready", "in_progress")]


def test_an_empty_queue_gives_no_claim_and_is_not_written(backend: Backend) -> None:
    """Nothing to do leaves no trace: no lock, no lease, no write."""
    before = backend.open().signature()
    assert backend.open().claim("builder", "me") is None
    assert backend.open().signature() == before
    assert not (backend.folder / "locks").exists()


def test_priority_then_order_decides(backend: Backend) -> None:
    """The lowest number comes first; a task without one comes last."""
    backend.fill(ready("A"), ready("B", priority=2), ready("C", priority=1), ready("D", priority=1))
    queue = backend.open()
    won = [claimed_id(queue.claim("builder", "me", ignore_wip=True)) for _ in range(5)]
    assert won == ["C", "D", "B", "A", None]


def claimed_id(claim: Claim | None) -> str | None:
    """Whose claim it is."""
    return claim.lease.task_id if claim else None


def test_the_queues_own_wip_limit_wins(backend: Backend) -> None:
    """A held task of anybody counts, at any depth; ignoring WIP is possible."""
    person = {"id": "P", "status": "done", "subtasks": [{"id": "S", "status": "in_progress"}]}
    backend.fill(person, ready("A"), ready("B"), wip_limits={"builder": 2})
    queue = backend.open()
    assert claimed(queue).lease.task_id == "A"
    assert queue.claim("builder", "me") is None
    assert claimed_id(queue.claim("builder", "me", ignore_wip=True)) == "B"


def test_a_dry_run_says_and_writes_nothing(backend: Backend) -> None:
    """It names the task that would be claimed."""
    backend.fill(ready("T1"))
    before = backend.written()
    assert claimed_id(backend.open().claim("builder", "me", dry_run=True)) == "T1"
    assert backend.written() == before
    assert backend.open().live() == []


def test_automatic_moves_come_before_the_claim(backend: Backend) -> None:
    """A blocked task whose dependencies are satisfied is claimed in the same write."""
    backend.fill({"id": "D", "status": "done"}, ready("T1", status="blocked", dependencies=["D"]))
    moves = claimed(backend.open()).moves
    assert [(m.source, m.target) for m in moves] == [("blocked", "ready"), ("ready", "in_progress")]


def test_moves_without_a_claim_are_told_once(backend: Backend) -> None:
    """A role that finds nothing still makes the moves, and tells them."""
    backend.fill({"id": "D", "status": "done"}, ready("T1", status="blocked", dependencies=["D"]))
    queue = backend.open()
    assert queue.claim("tester", "me") is None
    assert queue.claim("tester", "me") is None
    assert [move.target for move in backend.told.moves] == ["ready"]


def test_a_subtask_is_claimed_and_settled(backend: Backend) -> None:
    """Tasks in tasks are tasks; the story closes when they have ended."""
    story = {"id": "S", "status": "planning_complete", "subtasks": [ready("S.1")]}
    backend.fill(story)
    queue = backend.open()
    claim = claimed(queue)
    assert claim.lease.task_id == "S.1"
    moves = queue.settle(claim.lease, Result(Outcome.SUCCESS))
    assert [move.target for move in moves] == ["awaiting_test"]
    for role in ("tester", "integrator"):
        moves = queue.settle(claimed(queue, role).lease, Result(Outcome.SUCCESS))
    assert [(move.task_id, move.target) for move in moves] == [("S.1", "done"), ("S", "done")]


# --- leases --------------------------------------------------------------------------------------


def test_an_attempt_takes_over_and_renews(backend: Backend) -> None:
    """The same token goes on under the attempt's own process; nobody else can take it."""
    backend.fill(ready("T1"))
    queue = backend.open()
    claim = claimed(queue)
    me = process.identity(os.getppid())
    lease = queue.take_over(claim.lease, me, "a.service")
    assert (lease.pid, lease.token, lease.unit) == (me.pid, 1, "a.service")
    with pytest.raises(LeaseLost):
        queue.take_over(claim.lease, process.identity())
    backend.clock.step(50)
    renewed = queue.renew(lease, (5, 6))
    assert renewed.sessions == (5, 6)
    assert renewed.heartbeat_at > lease.heartbeat_at
    backend.clock.step(50)
    assert queue.stale() == []


@pytest.mark.parametrize("why", ["died", "expired", "vanished"])
def test_a_lost_attempt_is_recovered(backend: Backend, why: str) -> None:
    """A dead or silent attempt is an error with backoff; a removed lease only a release."""
    backend.fill(ready("T1"))
    lease = claimed(backend.open(dead() if why == "died" else None)).lease
    queue = backend.open()
    if why == "expired":
        backend.clock.step(61)
    if why == "vanished":
        backend.drop_lease("T1")
    (stale,) = queue.stale()
    assert (stale.task_id, stale.why, stale.lease.token) == ("T1", why, 1)
    assert (stale.lease.role, stale.lease.owner) == (lease.role, lease.owner)
    assert queue.claim("builder", "me") is None
    (move,) = queue.recover(stale)
    task = backend.task("T1")
    assert (task["status"], task["lease"], queue.stale()) == ("ready", None, [])
    assert move.outcome == ("released" if why == "vanished" else "error")
    assert task.get("attempts", 0) == (why != "vanished")
    with pytest.raises(LeaseLost):
        queue.renew(lease)
    with pytest.raises(LeaseLost):
        queue.settle(lease, Result(Outcome.SUCCESS))
    assert queue.recover(stale) == ()
    backend.clock.step(3600)
    assert claimed(queue).lease.token == 2


def test_what_came_back_is_not_recovered(backend: Backend) -> None:
    """A lease that was renewed after the look is left alone."""
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    backend.clock.step(61)
    (stale,) = queue.stale()
    queue.renew(lease)
    assert queue.recover(stale) == ()
    assert queue.settle(lease, Result(Outcome.SUCCESS))


def test_another_hosts_lease_expires_by_wall_time(backend: Backend) -> None:
    """A process elsewhere cannot be looked up: its lease counts until it runs out."""
    backend.fill(ready("T1"))
    claimed(backend.open(FAR))
    queue = backend.open()
    assert queue.stale() == []
    assert len(queue.live(host="far")) == 1
    backend.clock.step(61)
    assert [stale.why for stale in queue.stale()] == ["expired"]


def test_next_time_is_the_end_of_a_wait_or_of_a_lease(backend: Backend) -> None:
    """Where nothing will happen there is no next time."""
    queue = backend.open()
    assert queue.next_time("builder", backend.clock.wall) is None
    backend.fill(ready("T1"), ready("T2", not_before="2999-01-01T00:00:00Z"))
    assert queue.next_time("builder", backend.clock.wall) == pytest.approx(32472144000)
    claimed(queue)
    end = queue.next_time("tester", backend.clock.wall)
    assert end == pytest.approx(backend.clock.wall + 60)


# --- settling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "status", "attempts"),
    [
        (Outcome.SUCCESS, "awaiting_test", 0),
        (Outcome.REJECTED, "needs_adapt", 0),
        (Outcome.ERROR, "ready", 1),
        (Outcome.BLOCKED, "needs_manual", 0),
        (Outcome.THROTTLED, "ready", 0),
        (Outcome.RELEASED, "ready", 0),
    ],
)
def test_each_outcome_moves_the_task(
    backend: Backend, outcome: Outcome, status: str, attempts: int
) -> None:
    """The lease ends with the write that moves the task, and the move says how long it took."""
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    backend.clock.step(7)
    (move,) = queue.settle(lease, Result(outcome, "a note", changes={"branch": "b"}))
    task = backend.task("T1")
    assert (task["status"], task["agent"], task["lease"]) == (status, None, None)
    assert (task.get("attempts", 0), task["branch"], task["token"]) == (attempts, "b", 1)
    assert (move.source, move.target, move.outcome) == ("in_progress", status, outcome)
    assert move.seconds == pytest.approx(7, abs=0.01)
    assert (queue.live(), backend.has_lease("T1")) == ([], False)
    with pytest.raises(LeaseLost):
        queue.settle(lease, Result(Outcome.SUCCESS))


def test_only_the_later_attempt_settles(backend: Backend) -> None:
    """A frozen attempt that wakes up behind its successor is refused by its token."""
    backend.fill(ready("T1"))
    queue = backend.open()
    old = claimed(queue).lease
    backend.clock.step(61)
    queue.recover(queue.stale()[0])
    backend.clock.step(3600)
    new = claimed(queue).lease
    for refused in (queue.renew, lambda lease: queue.settle(lease, Result(Outcome.SUCCESS))):
        with pytest.raises(LeaseLost):
            refused(old)
    assert backend.task("T1")["status"] == "in_progress"
    assert queue.settle(new, Result(Outcome.SUCCESS))


@pytest.mark.parametrize("hand", [{"status": "cancelled"}, {"lease": None}, {"status": "ready"}])
def test_a_task_that_a_person_moved_is_theirs(backend: Backend, hand: dict[str, Any]) -> None:
    """The attempt's settling writes nothing, and its lease is gone."""
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    backend.change("T1", **hand)
    before = backend.written()
    with pytest.raises(LeaseLost):
        queue.settle(lease, Result(Outcome.SUCCESS))
    assert backend.written() == before
    assert queue.live() == []


def test_a_task_that_was_removed_is_lost(backend: Backend) -> None:
    """Nothing is written for a task that is not there."""
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    backend.fill()
    with pytest.raises(LeaseLost):
        queue.settle(lease, Result(Outcome.SUCCESS))
    assert queue.live() == []


def test_add_tasks_join_in_the_settling_write(backend: Backend) -> None:
    """A planner's new tasks are there in the same instant as its own move."""
    backend.fill({"id": "S", "type": "Story", "status": "needs_plan"})
    queue = backend.open()
    new = ({"id": "S-1", "title": "é"}, {"id": "S-2", "status": "blocked", "dependencies": ["S-1"]})
    queue.settle(claimed(queue, "planner").lease, Result(Outcome.SUCCESS, add_tasks=new))
    found = [(task["id"], task["status"]) for task in backend.document()["tasks"]]
    assert found == [("S", "planning_complete"), ("S-1", "ready"), ("S-2", "blocked")]


BAD_TASKS: list[Any] = [
    {"id": "S"},
    {"id": "../x"},
    {"title": "no id"},
    "no object",
    {"id": "X", "status": "in_progress"},
    {"id": "X", "lease": {"owner": "me"}},
    {"id": "X", "token": 9},
    {"id": "X", "status": 5},
    {"id": "X", "dependencies": "S"},
    {"id": "X", "subtasks": [{"id": "X"}]},
    {"id": "X", "n": float("nan")},
]


@pytest.mark.parametrize("bad", BAD_TASKS, ids=str)
def test_bad_add_tasks_make_an_error(backend: Backend, bad: Any) -> None:
    """None of them is added, and the task says why."""
    backend.fill({"id": "S", "status": "needs_plan"})
    queue = backend.open()
    result = Result(Outcome.SUCCESS, add_tasks=({"id": "good"}, bad))
    (move,) = queue.settle(claimed(queue, "planner").lease, result)
    assert (move.outcome, move.target) == ("error", "needs_plan")
    assert "add_tasks" in backend.task("S")["last_error"]
    assert len(backend.document()["tasks"]) == 1


def test_add_appends_or_says_what_is_wrong(backend: Backend) -> None:
    """A person's new task is checked like an agent's."""
    queue = backend.open()
    queue.add([{"id": "T1", "title": "é"}])
    assert backend.task("T1") == {"id": "T1", "title": "é", "status": "ready"}
    with pytest.raises(RolecallError, match="taken"):
        queue.add([{"id": "T2"}, {"id": "T1"}])
    assert len(backend.document()["tasks"]) == 1


# --- hostile input -------------------------------------------------------------------------------


def test_strange_tasks_stop_no_other(backend: Backend) -> None:
    """What has no usable id is passed over with one problem each."""
    strange: list[Any] = [
        *(
            {"id": name, "status": "ready"}
            for name in ("../x", "a/b", "", ".x", "x" * 200, 7, None)
        ),
        {"id": "D", "status": "done"},
        {"id": "D", "status": "ready"},
        {"status": "ready"},
        {"id": "L", "status": ["ready"], "dependencies": [["x"]], "priority": [], "token": "x"},
        {"id": "M", "status": "ready", "dependencies": {"a": 1}, "lease": [], "subtasks": 4},
        "text",
        ready("T1", priority="high", attempts="many", not_before=12),
    ]
    backend.fill(*strange)
    queue = backend.open()
    assert queue.stale() == []  # a worker's look begins so
    assert claimed(queue).lease.task_id == "T1"
    assert len(queue.problems()) == 9


# --- races ---------------------------------------------------------------------------------------


def test_twelve_workers_never_pass_the_wip_limit(
    backend: Backend, forked: Callable[[Callable[[], object]], int]
) -> None:
    """At any instant at most three tasks are held; each is settled exactly once."""
    tasks, limit = 24, 3
    backend.fill(*(ready(f"T{i}") for i in range(tasks)), wip_limits={"builder": limit})
    log = backend.folder / "settled"
    log.touch()

    def work() -> None:
        queue = backend.open()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            claim = queue.claim("builder", "me")
            statuses = [task["status"] for task in backend.document()["tasks"]]
            if claim is not None:
                queue.renew(queue.take_over(claim.lease, process.identity()))
                queue.settle(claim.lease, Result(Outcome.SUCCESS))
                with log.open("a") as file:
                    file.write(claim.lease.task_id + "\n")
            elif not set(statuses) & {"ready", "in_progress"}:
                return
        raise AssertionError("not in time")

    pids = [forked(work) for _ in range(12)]
    most = 0
    while pids:
        held = [t["status"] for t in backend.document()["tasks"]].count("in_progress")
        most = max(most, held)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0
            pids.remove(pid)
    assert most <= limit
    assert sorted(log.read_text().split()) == sorted(f"T{i}" for i in range(tasks))
    assert {task["token"] for task in backend.document()["tasks"]} == {1}
    assert (backend.open().live(), backend.open().stale()) == ([], [])


def test_killed_workers_leave_nothing_stuck(
    backend: Backend, forked: Callable[[Callable[[], object]], int]
) -> None:
    """Workers are killed at every moment; the queue goes on all the same."""
    backend.fill(*(ready(f"T{i}") for i in range(6)), wip_limits={"builder": 2})
    backend.role["max_attempts"] = 10_000

    def work() -> None:
        queue = backend.open(random=0.0)
        while True:
            for stale in queue.stale():
                queue.recover(stale)
            claim = queue.claim("builder", "me")
            if claim is not None:
                queue.settle(claim.lease, Result(Outcome.RELEASED))

    for i in range(40):
        pid = forked(work)
        time.sleep(0.01 + i * 0.001)  # any moment will do: that is what is tested
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert {t["status"] for t in backend.document()["tasks"]} <= {"ready", "in_progress"}
    queue = backend.open()
    for stale in queue.stale():
        queue.recover(stale)
    assert queue.stale() == []
    won = [claimed(queue) for _ in range(2)]
    assert queue.claim("builder", "me") is None
    for claim in won:
        queue.settle(claim.lease, Result(Outcome.SUCCESS))
    assert backend.open().live() == []


# --- events --------------------------------------------------------------------------------------


def test_each_change_is_told_once_in_order(backend: Backend) -> None:
    """Claims, settling, what follows by itself, new tasks: the chain of each task is whole."""
    backend.fill(
        {"id": "S", "type": "Story", "status": "needs_plan"},
        ready("B", status="blocked", dependencies=["T1"]),
    )
    queue = backend.open()
    new = ({"id": "T1", "subtasks": [{"id": "T1.1", "status": "needs_manual"}]},)
    queue.settle(claimed(queue, "planner").lease, Result(Outcome.SUCCESS, add_tasks=new))
    for role in ("builder", "tester", "integrator"):
        queue.settle(claimed(queue, role).lease, Result(Outcome.SUCCESS))
    queue.add([{"id": "N"}])
    chains: dict[str, list[str]] = {}
    for move in backend.told.moves:
        assert move.source == chains.get(move.task_id, [move.source])[-1]
        chains.setdefault(move.task_id, [move.source] * bool(move.source)).append(move.target)
    assert chains["S"] == ["needs_plan", "planning", "planning_complete", "done"]
    assert chains["T1"][0] == "ready"
    assert chains["T1"][-1] == "done"
    assert chains["B"] == ["blocked", "ready"]
    assert (chains["T1.1"], chains["N"]) == (["needs_manual"], ["ready"])
    assert chains.keys() == {"S", "T1", "T1.1", "B", "N"}


# --- asking for less than all of it --------------------------------------------------------------


def test_single_tasks_are_asked_for_by_id(backend: Backend) -> None:
    """As they are now, with their leases; what is not there is left out, and no id is an error."""
    backend.fill(ready("T1"), ready("T2", subtasks=[ready("T2.1")]), ready("T3", status="done"))
    queue = backend.open()
    lease = claimed(queue).lease
    found = queue.snapshot(["T1", "T2.1", "T3", "T9", "T\0", ""])
    assert {"T1", "T2.1", "T3"} <= found.tasks.by_id.keys()
    assert not {"T9", "T\0", ""} & found.tasks.by_id.keys()
    assert found.tasks.by_id["T1"].task["status"] == "in_progress"
    assert found.tasks.by_id["T3"].task["status"] == "done"
    assert found.leases["T1"].token == lease.token
    assert queue.snapshot(["T3"]).leases.get("T3") is None


def test_statuses_are_counted_at_any_depth(backend: Backend) -> None:
    """Tasks that are skipped do not count."""
    parked = ready("T1", status="needs_manual", subtasks=[ready("T1.1", status="needs_manual")])
    backend.fill(parked, ready("T2"), ready("T1", status="needs_manual"))
    queue = backend.open()
    assert queue.count(["needs_manual"]) == 2
    assert queue.count(["needs_manual", "ready"]) == 3
    assert queue.count(["odd"]) == 0


@pytest.mark.parametrize(
    ("child", "has"),
    [
        ({"id": "C", "parent": "S"}, True),
        ({"id": "C", "parent_task": "S"}, True),
        ({"id": "C", "parent": "other"}, False),
        ({"id": "S2", "subtasks": []}, False),
    ],
)
def test_a_story_knows_whether_it_has_children(
    backend: Backend, child: dict[str, Any], *, has: bool
) -> None:
    """By what they name, or by standing in it; it is no child of its own."""
    backend.fill({"id": "S", "status": "planning", "parent": "S"}, {**child, "status": "ready"})
    assert backend.open().has_children("S") is has
    backend.fill({"id": "S", "status": "planning", "subtasks": [{"id": "C", "status": "ready"}]})
    assert backend.open().has_children("S")
