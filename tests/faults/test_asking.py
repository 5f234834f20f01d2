"""queue.cancel and queue.release of what runs, on real workers and attempts."""

from __future__ import annotations

import os
import signal

import pytest

from daemon import launch
from daemon.config import load
from daemon.errors import RolecallError
from daemon.fleet import asking
from daemon.model import Lease
from daemon.queue import asking as asking_of_queue
from daemon.queue.file import FileQueue
from tests.faults.test_worker import TASK, build
from tests.workspace import Workspace, wait_for

# It leaves a child in a session of its own that ignores TERM, then waits for ever.
STUBBORN = "setsid sh -c 'trap \"\" TERM; echo up > up; sleep 600' & trap '' TERM; sleep 600"
ONCE = "[ $ROLECALL_TOKEN -gt 1 ] && exit 0; "


def test_cancel_ends_the_tree_first(ws: Workspace) -> None:
    """When the command returns nothing of the attempt runs, and the worker goes on.

    Broken once by leaving the wish out of settling.conclude: the task came back as ready.
    """
    build(ws, f"[ $ROLECALL_TASK_ID = T2 ] && exit 0; {STUBBORN}", TASK, {**TASK, "id": "T2"})
    worker = ws.start("--role", "builder")
    ws.file("up")
    ws.attempt_pid()
    (line,) = asking.cancel(load(str(ws.config)), "T1")
    assert line == "T1: cancelled: its attempt has ended, the task is cancelled"
    assert (ws.status(), ws.lease(), ws.tree("T1")) == ("cancelled", None, [])
    told = [each for each in ws.events() if each.get("to") == "cancelled"]
    assert [(each["task"], each["from"], each["outcome"]) for each in told] == [
        ("T1", "in_progress", "released")
    ]
    assert told[0]["why"].startswith("cancelled by ")
    ws.wait_status("awaiting_test", "T2")
    assert worker.poll() is None


def test_release_gives_the_task_back(ws: Workspace) -> None:
    """It is claimed anew, and nothing was counted."""
    build(ws, ONCE + STUBBORN, interval=3600)
    ws.start("--role", "builder")
    ws.file("up")
    ws.attempt_pid()
    asking.release(load(str(ws.config)), "T1")
    ws.wait_status("awaiting_test")
    assert (ws.task()["token"], ws.task().get("attempts", 0)) == (2, 0)
    assert [each["why"] for each in ws.events() if each.get("outcome") == "released"] != []
    wait_for(lambda: ws.tree() == [])


@pytest.mark.parametrize("state", ["frozen", "dead", "file gone"])
def test_an_attempt_that_cannot_answer_is_settled_for(ws: Workspace, state: str) -> None:
    """Frozen, dead with its worker, or without its lease: its tree dies, the task is cancelled."""
    build(ws, STUBBORN, kill_grace=0.1, lease_ttl=60, heartbeat=20)
    worker = ws.start("--role", "builder")
    ws.file("up")
    attempt = ws.attempt_pid()
    worker.kill()  # or it would see to the attempt itself
    worker.wait()
    if state == "file gone":
        (ws.path / ".leases" / "T1.json").unlink()
    os.kill(attempt, signal.SIGKILL if state == "dead" else signal.SIGSTOP)
    config = load(str(ws.config))
    (line,) = asking.cancel(config, "T1")
    assert line.startswith("T1: in_progress -> cancelled: cancelled by ")
    assert (ws.status(), ws.lease(), ws.tree()) == ("cancelled", None, [])
    (event,) = [each for each in ws.events() if each.get("to") == "cancelled"]
    assert event["owner"] == event["why"].removeprefix("cancelled by ")


def test_an_attempt_that_was_asked_before_it_began_starts_no_agent(ws: Workspace) -> None:
    """The wish may be in the lease before the attempt takes that over.

    Broken once by not looking at the lease behind take_over: the agent ran.
    """
    build(ws, "touch started")
    config = load(str(ws.config))
    queue = FileQueue(config)
    claim = queue.claim("builder", "me")
    assert claim is not None
    assert isinstance(asking_of_queue.cancel(queue, "T1", "ann"), Lease)
    child = launch.start(config, claim, os.environ, "")
    os.close(child.pidfd)
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 0
    assert (ws.status(), ws.lease()) == ("cancelled", None)
    assert not (ws.path / "started").exists()


@pytest.mark.parametrize("moved", ["ready", "needs_manual", "gone"])
def test_an_attempt_ends_when_its_task_is_no_longer_its(ws: Workspace, moved: str) -> None:
    """A person moves or removes the task: what stands there stands, and the agent is ended.

    Broken once by a worker that looks at no task of a live attempt: the agent ran on.
    """
    script = f"[ $ROLECALL_TASK_ID = T2 ] && exit 0; {STUBBORN}"
    build(ws, script, interval=3600, timeout=600)
    ws.start("--role", "builder")
    ws.file("up")
    ws.attempt_pid()
    document = ws.document()
    if moved == "gone":
        document["tasks"] = [{**TASK, "id": "T2"}]
    else:
        document["tasks"][0] |= {"status": moved, "not_before": "2999-01-01T00:00:00Z"}
    ws.write_queue(*document["tasks"])
    wait_for(lambda: ws.tree() == [] and ws.leases() == [], ws.log())
    assert any("lost" in each["message"] for each in ws.events())
    if moved != "gone":
        assert ws.status() == moved


@pytest.mark.parametrize("status", ["ready", "needs_manual"])
def test_cancel_means_it_also_where_the_task_was_moved_by_hand(ws: Workspace, status: str) -> None:
    """The attempt has nothing to settle; it is ended, and the task cancelled all the same.

    Broken once by leaving the task to the attempt: it came back, claimed anew.
    """
    build(ws, STUBBORN, kill_grace=0.2)
    ws.start("--role", "builder")
    ws.file("up")
    ws.attempt_pid()
    document = ws.document()
    document["tasks"][0]["status"] = status
    ws.write_queue(*document["tasks"])
    (line,) = asking.cancel(load(str(ws.config)), "T1")
    assert line.startswith(f"T1: {status} -> cancelled: cancelled by ")
    assert ws.status() == "cancelled"
    wait_for(lambda: ws.tree() == [], ws.log())  # the attempt itself is the last to go
    with pytest.raises(RolecallError, match="it is cancelled already"):
        asking.cancel(load(str(ws.config)), "T1")
