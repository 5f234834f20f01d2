"""Late attempts, wrong clocks, and folders that are removed under attempts that run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.config import load
from daemon.model import Outcome, Result
from daemon.queue.file import FileQueue
from tests.queues import FAR
from tests.workspace import ROOT, Workspace, wait_for

DRIVER = [sys.executable, str(ROOT / "tests" / "faults" / "crashing.py"), "worker"]
TASK: dict[str, Any] = {"id": "T1", "title": "x", "type": "Build", "status": "ready"}
DAY = 86400
AT_WORK = "attempt: Attempt.work * Attempt.run_agent * Attempt.tick * lock #1 before"
SETTLING = "attempt: Attempt.settle * lock #1 before"
COUNTED = "echo $ROLECALL_TOKEN >>tokens; "


def start(ws: Workspace, *arguments: str, **crash: str) -> subprocess.Popen[str]:
    """A worker whose steps are seen, and its attempts' as well."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CRASH_LOG": str(ws.path / "steps"), **crash}
    with (ws.path / "workers.log").open("a") as log:
        worker = subprocess.Popen(
            [*DRIVER, "--config", str(ws.config), "--role", "builder", *arguments],
            cwd=ROOT,
            env=environ,
            text=True,
            stdout=log,
            stderr=log,
        )
    ws.started.append(worker)
    return worker


def elsewhere(ws: Workspace, later: float) -> FileQueue:
    """The queue as another host sees it, which can kill nobody here, and so much later."""
    return FileQueue(load(str(ws.config)), me=FAR, clock=lambda: time.time() + later)


@pytest.mark.parametrize("where", [AT_WORK, SETTLING], ids=["at work", "settling"])
def test_an_attempt_that_thaws_beside_its_successor_writes_nothing(
    ws: Workspace, where: str
) -> None:
    """Frozen at work, or just before it settles; meanwhile another host claims its task.

    Whoever recovers on the same host kills it; this one could not. Its token is refused.
    Broken once by comparing no tokens, in ``Leases.own`` ("at work" failed), in ``settling.held``
    and ``lifecycle.is_held`` ("settling" failed).
    """
    ws.write_config(builder={"script": "exit 0"})
    ws.write_queue(TASK)
    worker = start(ws, "--once", CRASH_AT=where, CRASH_HOW="stop")
    frozen = int(wait_for(lambda: (ws.path / "steps.died.0").exists() and ws.file("steps.died.0")))
    worker.kill()
    worker.wait()
    far = elsewhere(ws, later=60)
    for stale in far.stale():
        far.recover(stale)
    claim = wait_for(lambda: far.claim("builder", "far"))
    assert claim is not None
    assert claim.lease.token == 2
    before = ws.queue.read_bytes(), ws.lease()
    os.kill(frozen, signal.SIGCONT)
    wait_for(lambda: "lost, nothing was written" in ws.log(), ws.log())
    wait_for(lambda: ws.tree() == [])
    assert (ws.queue.read_bytes(), ws.lease()) == before
    far.settle(claim.lease, Result(Outcome.BLOCKED, "by the successor"))
    assert (ws.status(), ws.leases()) == ("needs_manual", [])


@pytest.mark.parametrize("step", [DAY, -DAY], ids=["forth", "back"])
def test_a_stepped_clock_ends_no_attempt(ws: Workspace, step: int) -> None:
    """Worker and attempt see the clock jump by a day, either way: one attempt, and it settles.

    Broken once by ``seconds_left`` looking at the wall clock alone: "forth" failed.
    """
    script = COUNTED + "echo up >up; while [ ! -e go ]; do sleep 0.05; done"
    ws.write_config(builder={"script": script, "heartbeat": 0.2, "lease_ttl": 2, "interval": 0.2})
    ws.write_queue(TASK)
    clock = ws.path / "clock"
    clock.write_text("0")
    worker = start(ws, CRASH_CLOCK=str(clock))
    ws.file("up")
    attempt = ws.attempt_pid()
    put(clock, str(step))
    # Others look as well, by the right clock: it is a day away from what the lease says.
    other = ws.start("--role", "builder", "--owner", "other")
    begun = beats(ws)
    wait_for(lambda: beats(ws) > begun + 3, "the attempt renews its lease")
    wait_for(lambda: ws.log().count(" started\n") == 2, "both workers are at work")
    assert ws.attempt_pid() == attempt
    (ws.path / "go").touch()
    ws.wait_status("awaiting_test")
    assert ws.file("tokens") == "1\n"
    for each in (worker, other):
        each.send_signal(signal.SIGTERM)
        assert each.wait(20) == 0
    assert (ws.tree(), ws.leases()) == ([], [])


def put(path: Path, text: str) -> None:
    """Write it whole: others read it all the time."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.rename(path)


def beats(ws: Workspace) -> int:
    """How often leases have been renewed so far."""
    return (ws.path / "steps").read_text().count("Attempt.tick > FileQueue.renew > hold > unlock")


def test_attempts_outlive_the_removal_of_all_locks(ws: Workspace) -> None:
    """Rm -r .locks whenever an attempt has begun: each task is worked on once, the limit holds."""
    script = (
        "mkdir running.$ROLECALL_TASK_ID; ls -d running.* | wc -l >>counts; sleep 0.1; "
        "rmdir running.$ROLECALL_TASK_ID; echo $ROLECALL_TASK_ID >>done"
    )
    tasks = [{**TASK, "id": f"T{i}"} for i in range(9)]
    ws.write_config(builder={"script": script, "slots": 9, "heartbeat": 0.05})
    ws.write_queue(*tasks, wip_limits={"builder": 2})
    workers = [ws.start("--role", "builder", "--owner", f"w{i}") for i in range(2)]

    begun = 0

    def ended() -> bool:
        nonlocal begun
        counts = ws.path / "counts"
        if counts.exists() and (lines := counts.read_text().count("\n")) > begun:
            begun = lines
            shutil.rmtree(ws.path / ".locks", ignore_errors=True)
        return {ws.status(each["id"]) for each in tasks} == {"awaiting_test"}

    wait_for(ended, ws.log())
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    assert max(map(int, ws.file("counts").split())) <= 2
    assert sorted(ws.file("done").split()) == sorted(each["id"] for each in tasks)


def test_a_renewal_makes_its_lock_anew(ws: Workspace) -> None:
    """Rm -r .locks while nothing but an attempt's heartbeat needs one: it goes on.

    Broken once by making the locks' folder only where the queue's was made, too: this failed.
    """
    ws.write_config(builder={"script": "sleep 600", "heartbeat": 0.05, "stop_budget": 0})
    ws.write_queue(TASK)
    worker = ws.start("--role", "builder")
    ws.attempt_pid()
    worker.send_signal(signal.SIGSTOP)
    shutil.rmtree(ws.path / ".locks")
    wait_for((ws.path / ".locks").exists, ws.log())
    assert ws.status() == "in_progress"
    worker.send_signal(signal.SIGCONT)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0


def test_the_removal_of_all_leases_releases_what_ran(ws: Workspace) -> None:
    """Rm -r .leases: both attempts are ended before their tasks are tried again, none counts.

    Broken once by ``Worker.recover`` killing no tree: the second attempts met the first ones.
    """
    script = (
        "exec 9>>lock.$ROLECALL_TASK_ID; flock -n 9 || echo $ROLECALL_TASK_ID >>overlap; "
        "[ $ROLECALL_TOKEN -gt 1 ] || { : >up.$ROLECALL_TASK_ID; sleep 600; }"
    )
    ws.write_config(builder={"script": script, "slots": 2, "interval": 3600})
    ws.write_queue(TASK, {**TASK, "id": "T2"}, wip_limits={"builder": 2})
    worker = ws.start("--role", "builder")
    for name in ("T1", "T2"):
        wait_for((ws.path / f"up.{name}").exists)
        ws.attempt_pid(name)
    shutil.rmtree(ws.path / ".leases")
    ws.wait_status("awaiting_test", "T1")
    ws.wait_status("awaiting_test", "T2")
    assert not (ws.path / "overlap").exists()
    assert [each["outcome"] for each in ws.events() if "outcome" in each].count("released") == 2
    assert not any(each.get("outcome") == "error" for each in ws.events())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert (ws.tree(), ws.leases()) == ([], [])
