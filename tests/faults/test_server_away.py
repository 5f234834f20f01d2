"""The server that keeps the queue goes away, hangs, comes back; what its workers do meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.away import (
    BACK,
    BUILDER,
    COUNTED,
    DONE,
    HELD,
    LOST,
    TASK,
    Make,
    Servers,
    Shared,
    Way,
)
from tests.postgres import Server
from tests.queues import FAR
from tests.workspace import PATIENCE, wait_for

LEASE = 4  # seconds that one lives under load

# --- connections ---------------------------------------------------------------------------------


def test_idle_workers_come_back_to_a_server_that_was_restarted(
    server: Server, way: Way, make: Make
) -> None:
    """They notice at once, try again later and later, listen anew, and say it once each way."""
    ws = make(server, way, interval=600)
    ws.add({**TASK, "id": "T0"})
    worker = ws.start(*BUILDER)
    wait_for(lambda: ws.settled() and not ws.tree(), ws.log())
    server.stop()
    wait_for(lambda: ws.count(LOST) == 1, f"told: {ws.log()}")
    before = len(way.connects)
    wait_for(lambda: len(way.connects) >= before + 4, "several tries", 60)
    tries = way.connects[before:]
    assert tries[-1] - tries[0] > 0.7, tries  # 0.4, 0.8, 1.6 s, at least half of each
    server.start()
    ws.add(TASK)
    wait_for(lambda: ws.status() == DONE, ws.log())
    assert (ws.count(LOST), ws.count(BACK)) == (1, 1), ws.log()
    quiet = len(way.connects)
    ws.add({**TASK, "id": "T2"})  # by the server's word: the interval is long
    wait_for(lambda: ws.status("T2") == DONE, ws.log())
    assert len(way.connects) == quiet + 1  # that attempt's own
    assert worker.poll() is None


def test_a_worker_waits_for_a_server_that_is_away_at_its_start(
    server: Server, way: Way, make: Make
) -> None:
    """It says so once, and starts when it is there; one in the foreground ends with 78.

    Broken once by letting ``exists`` raise; and by saying it at each look.
    """
    ws = make(server, way)
    ws.add(TASK)
    server.stop()
    once = ws.run(*BUILDER, "--once")
    assert once.returncode == 78
    assert (once.stdout + once.stderr).count(LOST) == 1
    ws.start(*BUILDER)
    wait_for(lambda: ws.count(LOST) == 1, ws.log())
    before = len(way.connects)
    wait_for(lambda: len(way.connects) >= before + 3, "more looks")
    server.start()
    wait_for(lambda: ws.status() == DONE, ws.log())
    assert (ws.count(LOST), ws.count(BACK)) == (1, 1), ws.log()


@pytest.mark.parametrize("when", ["between", "in a renewal"])
def test_an_attempt_that_cannot_renew_ends_its_tree_before_its_lease_does(
    server: Server, way: Way, make: Make, when: str
) -> None:
    """By the server's clock. Its task is released, at once when the server answers again.

    Broken once by waiting ANSWER for each renewal; and once by an error for what was nobody's
    fault.
    """
    ws = make(server, way, HELD, interval=600)
    if when == "in a renewal":  # the first one follows the agent's start
        way.at("renew", lambda: way.swallowed.add("down"))
    ws.add(TASK)
    ws.start(*BUILDER)
    ws.up()
    if when == "between":
        way.hang()
    wait_for(lambda: way.swallowed and not agents(ws), ws.log())
    way.up = lambda *_: None
    ((left,),) = ws.ask(
        "SELECT extract(epoch FROM heartbeat_at + make_interval(secs => ttl) - clock_timestamp())"
        "::double precision FROM rolecall.task"
    )
    assert left > 0
    (ws.path / "go").touch()
    way.mend()
    wait_for(lambda: ws.settled() == ["released", "success"], ws.log())
    assert (ws.status(), ws.attempts()) == (DONE, 0), ws.log()


def test_a_claim_that_cannot_be_taken_over_in_time_is_released(
    server: Server, way: Way, make: Make
) -> None:
    """No agent has run, and it is nobody's fault, though its lease has run out by then.

    Broken once by looking for it among the live ones: it was an error, and counted.
    """
    ws = make(server, way, lease_ttl=LEASE)

    def leave() -> None:
        way.close()
        way.cut()

    way.at("take_over", leave)
    ws.add(TASK)
    ws.start(*BUILDER)
    wait_for(lambda: ws.count("the lease could not be taken over"), ws.log())
    late = (
        "SELECT 1 FROM rolecall.task WHERE heartbeat_at < clock_timestamp() - INTERVAL '1s' * ttl"
    )
    wait_for(lambda: ws.ask(late), "the lease has run out")
    way.reopen()
    wait_for(lambda: ws.settled() == ["released", "success"], ws.log())
    assert (ws.runs(), ws.status(), ws.attempts()) == (["T1"], DONE, 0), ws.log()


def agents(ws: Shared) -> list[int]:
    """The processes of attempts that are no attempts themselves."""
    return [pid for pid in ws.tree() if "daemon.attempt" not in command(pid)]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "daemon.attempt"


def test_signals_are_heeded_while_the_server_hangs(server: Server, way: Way, make: Make) -> None:
    """HUP, and USR1, in the middle of a claim; the attempt settles when there is an answer.

    Broken once by an ANSWER of a minute.
    """
    ws = make(server, way, HELD, lease_ttl=120)
    met = way.at("claim", way.hang, when=(ws.path / "up").exists)
    ws.add(TASK)
    worker = ws.start(*BUILDER)
    ws.up()
    ws.add({**TASK, "id": "T2"})
    wait_for(met.is_set, f"a claim: {ws.log()}")
    worker.send_signal(signal.SIGHUP)
    worker.send_signal(signal.SIGUSR1)
    assert worker.wait(PATIENCE) == 0
    assert ws.count("config read again") == 1, ws.log()
    (ws.path / "go").touch()
    way.mend()
    wait_for(lambda: ws.status() == DONE, ws.log())


def test_a_second_term_is_heeded_while_the_server_hangs(
    server: Server, way: Way, make: Make
) -> None:
    """The stop budget is over at once; nothing is left.

    Broken once by a second TERM that changed nothing.
    """
    ws = make(server, way, HELD, stop_budget=600, timeout=600, lease_ttl=600, heartbeat=300)
    ws.add(TASK)
    worker = ws.start(*BUILDER)
    ws.up()
    way.hang()
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: ws.count("stopping, for at most 600 s") == 1, ws.log())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0
    assert ws.tree() == [], ws.log()


@pytest.mark.parametrize("fault", ["hangs", "is away"])
@pytest.mark.parametrize("handed_over", [False, True])
def test_a_stop_ends_in_time_though_the_server_does_not_answer(
    server: Server, way: Way, make: Make, fault: str, *, handed_over: bool
) -> None:
    """Its own attempts, and those that a worker before it has left, end with it.

    Broken once by forgetting leases that cannot be read: what was left went on.
    """
    ws = make(server, way, HELD, stop_budget=1)
    ws.add(TASK)
    worker = ws.start(*BUILDER)
    ws.up()
    if handed_over:
        worker.send_signal(signal.SIGUSR1)
        worker.wait(PATIENCE)
        worker = ws.start(*BUILDER)
        wait_for(lambda: ws.count(" started\n") == 2, ws.log())
        wait_for(lambda: "pidfd" in open_files(worker.pid), "it follows the attempt")
    if fault == "hangs":
        way.hang()
    else:
        way.close()
        way.cut()
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0
    # The budget, an answer that is waited for, two graces and what goes with them, an answer.
    assert time.monotonic() - began < 1 + 10 + 7 + 10
    assert ws.tree() == [], ws.log()


def open_files(pid: int) -> str:
    folder = Path(f"/proc/{pid}/fd")
    return " ".join(os.readlink(each) for each in folder.iterdir())


# --- settling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "kill"])
@pytest.mark.parametrize("where", ["before it is sent", "before it commits", "before the answer"])
def test_a_result_is_written_once_whatever_becomes_of_its_settling(
    server: Server, way: Way, make: Make, where: str, how: str
) -> None:
    """The task has ended, once, by its first attempt; nothing is counted against it.

    Broken once by a new name for each try (it was lost to itself after the commit), and once by
    leaving at the first error.
    """
    ws = make(server, way)
    fault = way.cut if how == "cut" else server.kill
    locks: list[Any] = []

    def lock() -> None:
        line = psycopg.connect(ws.url)
        line.execute("SELECT FROM rolecall.task FOR UPDATE")
        locks.append(line)

    acts = {
        "before it is sent": fault,
        "before it commits": lock,
        "before the answer": lambda: way.swallowed.add("down"),
    }
    met = way.at("settle", acts[where])
    ws.add(TASK)
    ws.start(*BUILDER)
    wait_for(met.is_set, f"a settling: {ws.log()}")
    if where == "before it commits":
        blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_for(lambda: ws.ask(blocked), "it waits for its row")
        fault()
        for line in locks:
            line.close()
    elif where == "before the answer":
        wait_for(lambda: ws.status() == DONE, "the commit")
        fault()
        way.mend()
    if how == "kill":
        wait_for(lambda: server.process is None, "the server is dead")
        server.start()
    wait_for(lambda: ws.status() == DONE and ws.settled(), ws.log())
    wait_for(lambda: not ws.tree() and not ws.leases(), ws.log())
    assert (ws.runs(), ws.settled(), ws.attempts()) == (["T1"], ["success"], 0), ws.log()


@pytest.mark.parametrize("fault", ["is killed", "hangs"])
def test_a_server_that_is_away_for_longer_than_a_lease_loses_nothing(
    servers: Servers, make: Make, fault: str
) -> None:
    """Workers under load: none exits, each task is done by one agent and none ends in an error.

    A claim of that moment may be given back. Broken once by letting who comes back first end the
    leases of all the others.
    """
    server = servers(durable=True)
    ws = make(server, None, COUNTED + "sleep 0.3", slots=2, wip_limit=8, lease_ttl=LEASE)
    many = 24
    ws.add(*({**TASK, "id": f"T{number}"} for number in range(many)))
    workers = [ws.start(*BUILDER) for _ in range(3)]
    wait_for(lambda: len(ws.runs()) >= 8, "at work")
    down, up = (server.freeze, server.thaw) if fault == "hangs" else (server.kill, server.start)
    down()
    gone = time.monotonic()
    noticed = "builder error: postgresql"  # that, and no attempt's "cannot settle yet"
    wait_for(lambda: ws.count(noticed) >= 3, f"each worker has noticed: {ws.log()}")
    wait_for(lambda: time.monotonic() > gone + LEASE, "every lease has run out")
    assert len(ws.runs()) < many
    up()
    wait_for(lambda: ws.statuses() == {DONE}, ws.log(), 90)
    assert [worker.poll() for worker in workers] == [None] * 3
    wait_for(lambda: not ws.leases(), "nothing at work")
    assert sorted(ws.runs()) == sorted(f"T{number}" for number in range(many)), ws.log()
    assert set(ws.settled()) <= {"success", "released"}
    assert ws.settled().count("success") == many


#: A worker has looked since the lease has run out.
LOOKED = """SELECT 1 FROM pg_stat_activity, rolecall.task WHERE query LIKE '%%rolecall.claim(%%'
    AND query_start > heartbeat_at + make_interval(secs => ttl)"""


def test_a_server_that_hangs_for_longer_than_a_lease_while_workers_sleep_loses_nothing(
    server: Server, make: Make
) -> None:
    """They get their answer in time, and it is of a lease that has run out.

    But its attempt has a result in hand. It is written, and the agent has run once. Broken once by
    recovering at once what had run out.
    """
    ws = make(server, None, HELD, lease_ttl=LEASE, interval=600)
    ws.add(TASK)
    ws.start(*BUILDER)
    ws.up()
    attempt = ws.holder()
    server.freeze()
    frozen = time.monotonic()
    (ws.path / "go").touch()
    wait_for(lambda: ws.count("cannot settle yet"), f"a result in hand: {ws.log()}")
    wait_for(lambda: time.monotonic() > frozen + LEASE, "its lease has run out")
    os.kill(attempt, signal.SIGSTOP)  # so that the worker is the first to come
    server.thaw()
    wait_for(lambda: ws.ask(LOOKED), ws.log())
    os.kill(attempt, signal.SIGCONT)
    wait_for(ws.settled, ws.log())
    wait_for(lambda: not ws.tree() and not ws.leases(), ws.log())
    assert (ws.runs(), ws.settled(), ws.attempts()) == (["T1"], ["success"], 0), ws.log()
    assert ws.status() == DONE


def test_a_worker_in_the_foreground_waits_for_who_may_renew(server: Server, make: Make) -> None:
    """Of two leases that ran out one is renewed meanwhile; the other's task is done at once.

    Broken once by recovering both, and once by leaving both to a worker that looks again.
    """
    ws = make(server, None, lease_ttl=600, wip_limit=9, backoff={"base": 0, "cap": 0})
    ws.add(TASK, {**TASK, "id": "T2"})
    with ws.opened(me=FAR) as far:
        leases = [claim.lease for _ in range(2) if (claim := far.claim("builder", "far"))]
        ws.ask("UPDATE rolecall.task SET heartbeat_at = heartbeat_at - INTERVAL '1h'")
        worker = ws.start(*BUILDER, "--once")
        looked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT problem FROM%%'"
        wait_for(lambda: ws.ask(looked), ws.log())
        far.renew(leases[0])
    assert worker.wait(PATIENCE) == 1  # it was an error, of whoever had it
    assert (ws.runs(), ws.status("T2"), ws.leases()) == (["T2"], DONE, ["T1"]), ws.log()
