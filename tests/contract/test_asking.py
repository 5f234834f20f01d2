"""What people ask of a queue: cancel, release, retry, import, export; on every kind of queue."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import LeaseLost, QueueUnreadable, RolecallError
from daemon.model import Lease, Outcome, Result
from daemon.queue import asking
from tests.contract.test_queue import claimed, dead, ready
from tests.queues import Backend, FileBackend

ANN = "ann@host"


@pytest.fixture
def backend(queues: Callable[..., Backend], tmp_path: Path) -> Backend:
    """An empty queue of each kind."""
    made = queues(tmp_path)
    made.fill()
    return made


@pytest.mark.parametrize("status", ["ready", "needs_manual", "blocked", "done", "odd"])
def test_a_task_without_an_attempt_is_cancelled_at_once(backend: Backend, status: str) -> None:
    """Whatever its status; who did it is in the move, and nobody claims it."""
    backend.fill(ready("T1", status=status, mine=[1]))
    queue = backend.open()
    assert asking.cancel(queue, "T1", ANN) is None
    assert [(m.source, m.target, m.why) for m in backend.told.moves] == [
        (status, "cancelled", f"cancelled by {ANN}")
    ]
    assert (backend.task("T1")["status"], backend.task("T1")["mine"]) == ("cancelled", [1])
    assert queue.claim("builder", "me", ignore_wip=True) is None


def test_a_cancelled_child_lets_its_story_end(backend: Backend) -> None:
    """What follows by itself happens in the same write, and is told."""
    story = {"id": "S", "status": "planning_complete"}
    backend.fill(story, ready("A", status="done", parent="S"), ready("B", parent="S"))
    assert asking.cancel(backend.open(), "B", ANN) is None
    told = [(move.task_id, move.target) for move in backend.told.moves]
    assert told == [("B", "cancelled"), ("S", "done")]


@pytest.mark.parametrize(
    ("wish", "outcome", "status"),
    [
        ("cancel", Outcome.RELEASED, "cancelled"),
        ("cancel", Outcome.SUCCESS, "cancelled"),
        ("cancel", Outcome.ERROR, "cancelled"),
        ("release", Outcome.RELEASED, "ready"),
        ("release", Outcome.ERROR, "ready"),
        ("release", Outcome.SUCCESS, "awaiting_test"),
        ("release", Outcome.REJECTED, "needs_adapt"),
    ],
)
def test_an_attempt_is_asked_and_settles_so(
    backend: Backend, wish: str, outcome: Outcome, status: str
) -> None:
    """The task stays held, for the tree dies first; cancel wins over any result, release over none.

    Broken once by leaving the wish out of settling.conclude: the task went where its result said.
    """
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    before = backend.written()
    asked = {"cancel": asking.cancel, "release": asking.release}[wish](queue, "T1", ANN)
    assert isinstance(asked, Lease)
    assert (asked.wish, asked.wished_by, asked.token) == (wish, ANN, lease.token)
    assert backend.written() == before
    assert queue.renew(lease).wish == wish  # so the attempt hears of it
    (move,) = queue.settle(lease, Result(outcome, "a note", changes={"branch": "b"}))
    task = backend.task("T1")
    assert (task["status"], task["lease"], task.get("attempts", 0)) == (status, None, 0)
    assert task["branch"] == "b"
    assert move.target == status
    if outcome is not Outcome.REJECTED and status != "awaiting_test":
        did = {"cancel": "cancelled", "release": "released"}[wish]
        assert (move.outcome, move.why) == ("released", f"{did} by {ANN}")
    assert queue.live() == []


def test_what_an_attempt_would_add_keeps_no_wish_from_it(backend: Backend) -> None:
    """Asked after its last renewal: it finds the wish as it settles, whatever it brings.

    Broken once by looking at all of a database for the new tasks, and not at the lease among it.
    """
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    asking.cancel(backend.open(), "T1", ANN)
    move = queue.settle(lease, Result(Outcome.SUCCESS, add_tasks=({"id": "N"},)))[0]
    assert (move.target, move.why) == ("cancelled", f"cancelled by {ANN}")
    assert len(backend.document()["tasks"]) == 1


@pytest.mark.parametrize("wish", ["cancel", "release"])
def test_a_dead_attempt_is_recovered_as_was_asked(backend: Backend, wish: str) -> None:
    """Whoever recovers it, the person's wish holds: it is no error, and counts nothing."""
    backend.fill(ready("T1"))
    claimed(backend.open(dead()))
    queue = backend.open()
    asked = {"cancel": asking.cancel, "release": asking.release}[wish](queue, "T1", ANN)
    assert isinstance(asked, Lease)
    (stale,) = queue.stale()
    (move,) = queue.recover(stale)
    assert move.target == {"cancel": "cancelled", "release": "ready"}[wish]
    assert (move.outcome, backend.task("T1").get("attempts", 0)) == ("released", 0)


def test_a_hold_whose_lease_is_gone_is_asked_too(backend: Backend) -> None:
    """The lease is rebuilt from the task, so that whoever asks can end the tree and settle."""
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    backend.drop_lease("T1")
    asked = asking.cancel(queue, "T1", ANN)
    assert isinstance(asked, Lease)
    assert (asked.token, asked.wish) == (lease.token, "cancel")
    queue.settle(asked, Result(Outcome.RELEASED))
    assert backend.task("T1")["status"] == "cancelled"
    with pytest.raises(LeaseLost):
        queue.settle(lease, Result(Outcome.SUCCESS))


def test_a_person_s_hold_is_given_back(backend: Backend) -> None:
    """Release does what nobody does by itself; a lease by hand in the task goes with it."""
    backend.fill(ready("T1", status="in_progress", agent="builder", lease={"owner": "bob"}))
    assert asking.release(backend.open(), "T1", ANN) is None
    assert [(m.source, m.target) for m in backend.told.moves] == [("in_progress", "ready")]
    assert (backend.task("T1")["agent"], backend.task("T1")["lease"]) == (None, None)
    assert claimed(backend.open()).lease.task_id == "T1"


def test_what_nobody_holds_cannot_be_released(backend: Backend) -> None:
    """An error that says where it stands; nothing is written."""
    backend.fill(ready("T1"))
    before = backend.written()
    with pytest.raises(RolecallError, match="T1: nobody holds it: its status is ready"):
        asking.release(backend.open(), "T1", ANN)
    for ask in (asking.cancel, asking.release, asking.retry):
        with pytest.raises(RolecallError, match="there is no task T2"):
            ask(backend.open(), "T2", ANN)
    assert backend.written() == before


def test_a_retry_makes_a_task_claimable(backend: Backend) -> None:
    """From needs_manual, or out of its wait; with a clean account, and no token goes back."""
    backend.fill(ready("T1"))
    queue = backend.open()
    queue.settle(claimed(queue).lease, Result(Outcome.BLOCKED, "no login"))
    asking.retry(queue, "T1", ANN)
    move = backend.told.moves[-1]
    assert (move.source, move.target, move.why) == (
        "needs_manual",
        "ready",
        f"tried again by {ANN}",
    )
    queue.settle(claimed(queue).lease, Result(Outcome.ERROR, "crash"))
    assert queue.claim("builder", "me") is None
    asking.retry(queue, "T1", ANN)
    assert backend.task("T1")["attempts"] == 0
    claim = claimed(queue)
    assert claim.lease.token == 3
    with pytest.raises(RolecallError, match="being worked on"):
        asking.retry(queue, "T1", ANN)
    assert queue.settle(claim.lease, Result(Outcome.SUCCESS))


# --- import and export ---------------------------------------------------------------------------


def text_of(document: Any) -> bytes:
    """A queue as somebody's program writes it."""
    return json.dumps(document, indent=1).encode() + b"\r\n"


def test_an_export_imported_is_the_same_queue(
    backend: Backend, queues: Callable[..., Backend], tmp_path: Path
) -> None:
    """Every byte: keys of the owner's, order, layout."""
    backend.fill(
        ready("T1", x={"b": 1.0, "a": []}), wip_limits={"builder": 2}, metadata={"é": None}
    )
    data = backend.open().export()
    assert data == backend.text().encode()
    other = queues(tmp_path / "other")
    done = other.open().load(data, "a file")
    assert (done.added, done.kept, done.whole) == (("T1",), (), True)
    assert other.open().export() == data
    assert other.open().load(data, "a file").kept == ("T1",)
    assert other.open().export() == data


def test_tasks_of_new_ids_are_added_behind(backend: Backend) -> None:
    """Equal ones are kept as they are; the file's other keys are its own."""
    backend.fill(ready("T1", priority=1), wip_limits={"builder": 2})
    more: dict[str, Any] = {
        "wip_limits": {"builder": 9},
        "tasks": [
            {"priority": 1, "status": "ready", "id": "T1", "title": "é"},
            {"id": "S", "status": "planning_complete", "subtasks": [ready("S.1")]},
        ],
    }
    done = backend.open().load(text_of(more), "a file")
    assert (done.added, done.kept, done.whole) == (("S", "S.1"), ("T1",), False)
    document = backend.document()
    assert document["wip_limits"] == {"builder": 2}
    assert [task["id"] for task in document["tasks"]] == ["T1", "S"]
    assert document["tasks"][1] == more["tasks"][1]


@pytest.mark.parametrize(
    "task",
    [
        {"id": "T1", "title": "another"},
        {"id": "T1", "title": "é", "status": "ready", "priority": True},
        {"id": "N", "subtasks": [{"id": "T1"}]},
        {"id": "../x"},
        "text",
        {"title": "no id"},
    ],
)
def test_what_is_another_task_here_is_refused_with_all(backend: Backend, task: Any) -> None:
    """Not one of the file's tasks is added; the error says which, and what to type."""
    backend.fill(ready("T1", priority=1))
    before = backend.written()
    with pytest.raises(RolecallError, match="nothing was imported") as error:
        backend.open().load(text_of({"tasks": [ready("T9"), task]}), "a file")
    assert "--replace" in error.value.problems[0].hint
    assert backend.written() == before


def test_replacing_takes_the_file_as_a_whole(backend: Backend) -> None:
    """Unless an attempt is on a task."""
    backend.fill(ready("T1"))
    data = text_of({"tasks": [ready("T2")], "more": 1})
    queue = backend.open()
    lease = claimed(queue).lease
    with pytest.raises(RolecallError, match="attempts are on T1"):
        queue.load(data, "a file", replace=True)
    queue.settle(lease, Result(Outcome.SUCCESS))
    assert queue.load(data, "a file", replace=True).whole
    assert backend.document() == json.loads(data)
    assert claimed(queue).lease.task_id == "T2"


def test_a_dead_lease_does_not_keep_a_queue_from_being_replaced(backend: Backend) -> None:
    """Nobody renewed it: nothing is lost by it."""
    backend.fill(ready("T1"))
    queue = backend.open()
    claimed(queue)
    backend.clock.step(61)
    assert queue.load(text_of({"tasks": [ready("T2")]}), "a file", replace=True).whole
    assert claimed(queue).lease.task_id == "T2"


def test_a_file_that_nobody_can_read_can_be_replaced(tmp_path: Path) -> None:
    """Every byte of the new text is in its place; only a file can be broken so."""
    backend = FileBackend(tmp_path)
    backend.path.write_text("{")
    data = text_of({"tasks": [ready("T2")], "more": 1})
    with pytest.raises(QueueUnreadable):
        backend.open().load(data, "a file")
    assert backend.open().load(data, "a file", replace=True).whole
    assert backend.path.read_bytes() == data


def test_what_is_no_queue_is_not_imported(backend: Backend) -> None:
    """The error names the file and its line."""
    with pytest.raises(QueueUnreadable, match="not a queue") as error:
        backend.open().load(b'{\n"tasks": [\n', "a file")
    assert error.value.problems[0].where == "a file:3"


def test_an_import_gives_way_to_a_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody saves the empty queue while a file is imported into it: their text stands.

    Broken once by not looking again before the rename: it was lost.
    """
    backend = FileBackend(tmp_path)
    backend.fill()
    data = text_of({"tasks": [ready("T1")]})
    monkeypatch.setattr(os, "fchmod", lambda *_: backend.fill(ready("H")))
    with pytest.raises(RolecallError, match="changed meanwhile"):
        backend.open().load(data, "a file")
    assert [task["id"] for task in backend.document()["tasks"]] == ["H"]


@pytest.mark.parametrize("replace", [True, False])
def test_strange_subtasks_are_imported_as_they_are(backend: Backend, replace: bool) -> None:  # noqa: FBT001  # pytest's way
    """What is no task in a list of subtasks is somebody's, and is kept."""
    backend.fill(ready("T1"))
    more = {"tasks": [ready("S", subtasks=["see notes", 3, None])]}
    backend.open().load(text_of(more), "a file", replace=replace)
    assert backend.task("S")["subtasks"] == ["see notes", 3, None]


def test_a_number_that_cannot_be_written_is_refused(backend: Backend) -> None:
    """It is infinite to us. A file may still become the whole queue, every byte."""
    backend.fill(ready("T1"))
    data = b'{"tasks": [{"id": "N", "status": "ready", "n": 1e999}]}'
    with pytest.raises(RolecallError, match="larger than any"):
        backend.open().load(data, "a file")
    if isinstance(backend, FileBackend):
        backend.open().load(data, "a file", replace=True)
        assert backend.written() == data
        return
    before = backend.written()
    with pytest.raises(RolecallError, match="larger than any"):
        backend.open().load(data, "a file", replace=True)
    assert backend.written() == before


def test_an_attempt_of_an_unknown_role_is_not_asked(backend: Backend) -> None:
    """An error says so before anything is written."""
    backend.fill(ready("T1"))
    claimed(backend.open())
    backend.change_lease("T1", role="reviewer")
    before = backend.written()
    with pytest.raises(RolecallError, match="role reviewer, which is not known here"):
        asking.cancel(backend.open(), "T1", ANN)
    assert backend.written() == before
