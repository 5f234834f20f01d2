"""What a queue in a file meets beside all that: its clocks, its writers, hands without a lock.

On PostgreSQL none of it can be. One clock, the server's, judges all leases. A task and its lease
are one row, which nobody can bring back from an old buffer. Agents do not reach the database, so
that none can write what it only claims. A change is told by its writer alone.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from daemon.errors import LeaseLost
from daemon.model import Move, Outcome, Result
from daemon.queue import lock
from daemon.queue.file import FileQueue
from tests.contract.test_queue import claimed, ready
from tests.queues import FileBackend, Told


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """An empty queue."""
    made = FileBackend(tmp_path)
    made.fill()
    return made


def test_a_stepped_wall_clock_ends_no_lease(backend: FileBackend) -> None:
    """On its own boot a lease is measured by a clock that nobody sets."""
    backend.fill(ready("T1"))
    queue = backend.open()
    claimed(queue)
    backend.clock.wall += 86400
    assert queue.stale() == []
    backend.clock.wall -= 10 * 86400
    assert queue.stale() == []
    backend.clock.boot += 61
    assert [stale.why for stale in queue.stale()] == ["expired"]


def test_an_old_buffer_does_not_free_a_held_task(backend: FileBackend) -> None:
    """The hold is written again, whoever looks next; nobody claims the task twice."""
    backend.fill(ready("T1"), ready("T2"), wip_limits={"builder": 1})
    old = backend.document()
    queue = backend.open()
    lease = claimed(queue).lease
    old["tasks"][1]["title"] = "changed by hand"
    backend.put(old)
    assert backend.open().claim("builder", "me") is None
    task = backend.task("T1")
    assert (task["status"], task["token"]) == ("in_progress", 1)
    assert backend.task("T2")["title"] == "changed by hand"
    backend.put(old)
    assert queue.settle(lease, Result(Outcome.SUCCESS))[-1].target == "awaiting_test"


def test_a_token_that_an_old_buffer_brings_back_settles_nothing(backend: FileBackend) -> None:
    """The first attempt lives on somewhere, the second has settled; somebody saves what was before.

    Broken once by not asking the run folders: the first attempt's success was written.
    """
    backend.fill(ready("T1"))
    queue = backend.open()
    first = claimed(queue).lease
    old = backend.document()
    backend.clock.step(61)
    queue.recover(queue.stale()[0])
    backend.clock.step(3600)
    queue.settle(claimed(queue).lease, Result(Outcome.SUCCESS))
    backend.put(old)
    before = backend.path.read_bytes()
    with pytest.raises(LeaseLost):
        queue.settle(first, Result(Outcome.SUCCESS))
    assert backend.path.read_bytes() == before
    queue.recover(queue.stale()[0])
    assert claimed(queue).lease.token == 3


def test_an_unsettled_claim_satisfies_nobody(backend: FileBackend) -> None:
    """An agent writes its task's next status while it works: gates may still reject it.

    Broken once by taking such a done for one: B was claimed, and the story closed.
    """
    story = {"id": "S", "status": "planning_complete"}
    backend.fill(
        story,
        ready("A", status="ready_for_integrator", parent="S"),
        ready("B", dependencies=["A"]),
        ready("C", status="blocked", dependencies=["A"]),
    )
    queue = backend.open()
    lease = claimed(queue, "integrator").lease
    backend.change("A", status="done")
    assert queue.claim("builder", "me") is None
    assert [backend.task(each)["status"] for each in "SC"] == ["planning_complete", "blocked"]
    queue.settle(lease, Result(Outcome.REJECTED, "a gate failed"))
    assert backend.task("A")["status"] == "needs_adapt"
    assert queue.claim("builder", "me") is None
    backend.change("A", status="done")
    assert claimed(queue).lease.task_id == "B"
    assert [backend.task(each)["status"] for each in "SC"] == ["done", "ready"]


def test_a_planner_s_own_claim_closes_no_story(backend: FileBackend) -> None:
    """Its settling would be lost, and with it the tasks that it adds."""
    child = ready("A", status="done", parent="S")
    backend.fill({"id": "S", "status": "needs_plan"}, child)
    queue = backend.open()
    lease = claimed(queue, "planner").lease
    backend.change("S", status="planning_complete")
    assert queue.claim("builder", "me") is None
    assert backend.task("S")["status"] == "planning_complete"
    queue.settle(lease, Result(Outcome.SUCCESS, add_tasks=({"id": "N", "parent": "S"},)))
    assert claimed(queue).lease.task_id == "N"


class Dying(Told):
    """A teller whose process dies before it has told anything."""

    def tell(self, moves: Sequence[Move], owner: str = "") -> None:  # noqa: ARG002  # as it is called
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_change_whose_writer_died_is_told_by_the_next_one(
    backend: FileBackend, forked: Callable[[Callable[[], object]], int]
) -> None:
    """In the dead one's name, before anything else, and once.

    Broken once by not noting the moves before the rename: the claim was never told.
    """
    backend.fill(ready("T1"), ready("T2"))
    dying = FileQueue(backend.config, teller=Dying("the dead"))
    os.waitpid(forked(lambda: dying.claim("builder", "x")), 0)
    assert backend.task("T1")["status"] == "in_progress"
    assert backend.told.moves == []
    queue = backend.open()
    queue.add([{"id": "N"}])
    told = zip(backend.told.moves, backend.told.owners, strict=True)
    assert [(move.task_id, move.target, owner) for move, owner in told] == [
        ("T1", "in_progress", "the dead"),
        ("N", "ready", "me"),
    ]
    assert backend.told.moves[0].token == 1
    queue.add([{"id": "M"}])
    assert [move.task_id for move in backend.told.moves] == ["T1", "N", "M"]


def test_a_change_that_did_not_happen_is_not_told(backend: FileBackend) -> None:
    """Its writer died with the new text still beside the queue, or left what nobody can read."""
    backend.fill(ready("T1"))
    backend.open().add([{"id": "N"}])
    backend.told.moves.clear()
    aside = backend.path.with_name(f".{backend.path.name}.new")
    aside.write_text("{}")
    for note in (
        [str(aside), aside.stat().st_ino, "x", [["T1", "", "a", "b", "c"]]],
        ["x"],
        {"a": 1},
        [str(aside), 1, "x", [["too", "short"]]],
    ):
        text = json.dumps(note).encode()
        with (backend.folder / "locks" / "queue.lock").open("r+b") as file:
            file.seek(lock.NAME)
            file.write(b"%08d" % len(text) + text)
        backend.open().add([{"id": f"N{len(backend.document()['tasks'])}"}])
        aside.write_text("{}")
    assert {move.task_id for move in backend.told.moves} == {"N2", "N3", "N4", "N5"}
