"""What a server loses by a crash or a failover, or refuses: nobody works twice on what was lost."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from daemon import process
from daemon.errors import LeaseLost, QueueUnreachable
from daemon.model import Outcome, Result
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
from tests.postgres import ADMIN, Server, environment, unprivileged
from tests.queues import FAR
from tests.workspace import wait_for

SUCCESS = Result(Outcome.SUCCESS, "")

# --- a crash -------------------------------------------------------------------------------------


def test_a_claim_that_a_crash_forgot_is_won_anew(servers: Servers, make: Make) -> None:
    """Its attempt finds at its take-over that it has nothing; its token and its folder are spent.

    On another host, which has no folder of that number, the token comes again: the moment of the
    claim tells the two apart. Broken once by comparing tokens alone.
    """
    server = servers(durable=True)
    ws = make(server)
    ws.add(TASK)
    with ws.opened() as queue, ws.opened(me=FAR) as far:
        flush_nothing(server)
        first = queue.claim("builder", "me")
        assert first is not None
        server.kill()
        server.start()
        assert ws.status() == "ready"
        with pytest.raises(LeaseLost):
            queue.take_over(first.lease, process.identity())
        far.config = far.config._replace(paths=far.config.paths._replace(runs=f"{ws.path}/far"))
        second = wait_for(lambda: claimed(far), "a claim")
        assert second.lease.token == first.lease.token
        for late in (
            lambda: queue.take_over(first.lease, process.identity()),
            lambda: queue.renew(first.lease),
            lambda: queue.settle(first.lease, SUCCESS),
        ):
            with pytest.raises(LeaseLost):
                late()
        far.settle(second.lease, Result(Outcome.RELEASED, ""))
        server.kill()  # the token is written by now
        server.start()
        third = wait_for(lambda: claimed(queue), "a claim")
        assert third.lease.token == 2


def test_what_was_taken_over_or_settled_is_on_the_disk(servers: Servers, make: Make) -> None:
    """The claim itself is not waited for, all that comes after it is.

    Broken once by settlings that committed as claims do: the task was held again after the crash.
    """
    server = servers(durable=True)
    ws = make(server)
    ws.add(TASK)
    with ws.opened() as queue:
        flush_nothing(server)
        claim = queue.claim("builder", "me")
        assert claim is not None
        lease = queue.take_over(claim.lease, process.identity())
        server.kill()
        server.start()
        held = wait_for(lambda: leased(queue), "the server")
        assert (held.task_id, held.token) == (lease.task_id, lease.token)
        flush_nothing(server)
        queue.settle(lease, SUCCESS)
        server.kill()
        server.start()
        assert ws.status() == "awaiting_test"


def leased(queue: Any) -> Any:
    """The task's lease, which may have run out meanwhile; None while the server is not back."""
    try:
        return queue.read_lease("T1")
    except QueueUnreachable:
        return None


def flush_nothing(server: Server) -> None:
    """Freeze who writes what was committed and not flushed."""
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
    ((pid,),) = answer(server.uri, query)
    os.kill(pid, signal.SIGSTOP)


def claimed(queue: Any) -> Any:
    """A claim; None while the server is not back for the queue."""
    try:
        return queue.claim("builder", "me")
    except QueueUnreachable:
        return None


def test_no_agent_runs_on_a_claim_that_a_crash_forgot(servers: Servers, make: Make) -> None:
    """The server dies between the claim and its attempt's take-over; the task is claimed anew.

    Broken once by starting the agent before the take-over.
    """
    server = servers(durable=True)
    with Way(server.uri) as way:
        ws = make(server, way)
        met = way.at("take_over", server.kill)
        ws.add(TASK)
        flush_nothing(server)
        ws.start(*BUILDER)
        wait_for(lambda: met.is_set() and server.process is None, ws.log())
        assert ws.runs() == []
        server.start()
        wait_for(lambda: ws.settled() == ["success"], ws.log())
        assert (ws.runs(), ws.status(), ws.attempts()) == (["T1"], DONE, 0), ws.log()
        assert ws.count("claimed") == 2
        assert (ws.path / ".agent-runs" / "T1" / "2").is_dir()


# --- a failover ----------------------------------------------------------------------------------


class Standby(Server):
    """A server that follows another, and can be put in its place."""

    def __init__(self, primary: Server) -> None:
        self.primary = primary
        super().__init__()

    def _initialise(self) -> None:
        self.passfile.touch(0o600)
        command = [str(self.binaries / "pg_basebackup"), f"--pgdata={self.data}"]
        command += [f"--host={self.primary.folder}", f"--port={self.primary.port}"]
        command += [f"--username={ADMIN}", "--write-recovery-conf", "--checkpoint=fast"]
        subprocess.run(
            [*unprivileged(), *command], env=environment(), check=True, capture_output=True
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"port = '{self.port}'\nunix_socket_directories = '{self.folder}'\n")

    def promote(self) -> None:
        with closing(psycopg.connect(self.uri, autocommit=True)) as line:
            line.execute("SELECT pg_promote()")


def both(primary: Server, standby: Server) -> str:
    """The URL that goes to whichever of them takes writes."""
    return (
        f"postgresql://{ADMIN}@/sprint?host={primary.folder},{standby.folder}"
        f"&port={primary.port},{standby.port}&target_session_attrs=read-write"
    )


def test_a_failover_that_loses_the_last_writes_leaves_nothing_stuck(
    servers: Servers, make: Make
) -> None:
    """Workers go over by themselves; what was written and never sent is as if it had not been.

    Broken once by a URL without ``target_session_attrs``; by comparing tokens alone.
    """
    primary = servers()
    ws = make(primary, None, COUNTED)
    ws.add({**TASK, "id": "before"}, {**TASK, "id": "lost", "status": "in_review"})
    with ExitStack() as stack:
        standby = stack.enter_context(Standby(primary))
        ws.url = ws.way = both(primary, standby)
        ws.write_config(builder={"script": COUNTED})
        worker = ws.start(*BUILDER)
        wait_for(lambda: ws.settled() == ["success"], ws.log())
        there = standby.url("sprint")
        seen = "SELECT 1 FROM rolecall.task WHERE id = 'before' AND status = 'awaiting_test'"
        wait_for(lambda: answer(there, seen), "the standby has followed")
        os.kill(receiver(standby), signal.SIGSTOP)
        ws.add({**TASK, "id": "after"})
        change = "UPDATE rolecall.task SET status = 'ready' WHERE id = 'lost'"
        ws.ask(change)
        with ws.opened() as queue:
            queue.add([{**TASK, "id": "more", "status": "in_review"}])
        wait_for(lambda: ws.status("after") == DONE, ws.log())
        primary.kill()
        standby.kill()  # what its receiver had not taken in is gone
        standby.start()
        standby.promote()
        wait_for(lambda: ws.count(BACK) == 1, ws.log())
        assert ws.status("after") == ""  # it was added after the last that was sent
        ws.add({**TASK, "id": "later"})
        wait_for(lambda: ws.status("later") == DONE, ws.log())
        assert worker.poll() is None
        assert ws.leases() == []
        ws.end()


def answer(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(psycopg.connect(url, autocommit=True)) as line:
        return line.execute(query.encode()).fetchall()


def receiver(standby: Server) -> int:
    ((pid,),) = answer(standby.uri, "SELECT pid FROM pg_stat_wal_receiver")
    return int(pid)


def test_an_attempt_whose_claim_a_failover_lost_writes_nothing(
    servers: Servers, make: Make
) -> None:
    """It ends its agent at the renewal that is refused; the task is another's by then.

    Broken once by renewing whatever lease the task has.
    """
    primary = servers()
    ws = make(primary, None, HELD)
    with ExitStack() as stack:
        standby = stack.enter_context(Standby(primary))
        ws.url = ws.way = both(primary, standby)
        ws.write_config(builder={"script": HELD, "lease_ttl": 20, "timeout": 60})
        ws.add(TASK)
        there = standby.url("sprint")
        wait_for(lambda: answer(there, "SELECT 1 FROM rolecall.task"), "the standby has followed")
        os.kill(receiver(standby), signal.SIGSTOP)
        ws.start(*BUILDER)
        ws.up()
        primary.kill()
        standby.kill()
        standby.start()
        (ws.path / "go").touch()  # for the one that comes
        standby.promote()
        wait_for(lambda: ws.status() == DONE and not ws.tree(), ws.log())
        assert ws.attempts() == 0
        tokens = {each.name for each in (ws.path / ".agent-runs" / "T1").iterdir()}
        assert tokens == {"1", "2"}
        ws.end()


# --- a server that refuses -----------------------------------------------------------------------

LOGIN = "builder_of_this_test"
REFUSALS = {
    "no login": (f"ALTER ROLE {LOGIN} NOLOGIN", f"ALTER ROLE {LOGIN} LOGIN"),
    "too many connections": (
        f"ALTER ROLE {LOGIN} CONNECTION LIMIT 0",
        f"ALTER ROLE {LOGIN} CONNECTION LIMIT -1",
    ),
    "read only": (
        f"ALTER ROLE {LOGIN} SET default_transaction_read_only = on",
        f"ALTER ROLE {LOGIN} RESET default_transaction_read_only",
    ),
}
LEAVE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"


@contextmanager
def guest(ws: Shared, way: Way) -> Iterator[None]:
    """A login of its own for the workers: what is refused to it is not refused to the test."""
    ws.ask(f"CREATE ROLE {LOGIN} LOGIN")
    ws.ask(f"GRANT rolecall_worker TO {LOGIN}")
    ws.way = way.url(ws.url).replace(f"//{ADMIN}@", f"//{LOGIN}@")
    ws.write_config(builder={"script": COUNTED, "interval": 600})
    ws.fill({**TASK, "id": "T0"})
    yield


@pytest.mark.parametrize("refusal", REFUSALS)
def test_workers_go_on_when_they_are_let_in_again(
    server: Server, way: Way, make: Make, refusal: str
) -> None:
    """They say why, once, and ask later and later.

    Broken once by forgetting the tries at each answer: a queue that can only be read was asked
    several times a second.
    """
    ws = make(server)
    refuse, allow = REFUSALS[refusal]
    with guest(ws, way):
        ws.start(*BUILDER)
        wait_for(lambda: ws.status("T0") == DONE, ws.log())
        ws.ask(refuse)
        ws.ask(LEAVE, LOGIN)
        ws.add(TASK)
        wait_for(lambda: ws.count(LOST) == 1, ws.log())
        before = len(way.connects)
        wait_for(lambda: len(way.connects) >= before + 6, "several tries")
        assert way.connects[before + 5] - way.connects[before] > 3  # 0.4, 0.8, 1.6 s, ...
        ws.ask(allow)
        wait_for(lambda: ws.status() == DONE, ws.log())
        assert (ws.count(LOST), ws.count(BACK)) == (1, 1), ws.log()


def test_workers_find_the_queue_that_was_made_anew(server: Server, make: Make) -> None:
    """Its database was dropped under them, and ``queue.init`` has made another."""
    ws = make(server, None, interval=600)
    ws.add({**TASK, "id": "T0"})
    worker = ws.start(*BUILDER)
    wait_for(lambda: ws.status("T0") == DONE, ws.log())
    server.drop("sprint")
    wait_for(lambda: ws.count(LOST) == 1, ws.log())
    server.create("sprint")
    wait_for(lambda: ws.count("there is no queue in the database sprint") == 1, ws.log())
    ws.init()
    ws.fill(TASK)
    wait_for(lambda: ws.status() == DONE, ws.log())
    assert worker.poll() is None


def test_a_worker_says_that_its_schema_is_an_old_one(server: Server, make: Make) -> None:
    """It says so, once, when what it calls is not there any more, and goes on if it is undone.

    Broken once by keeping the connection: "function does not exist" was all that it said.
    """
    ws = make(server, None, interval=600)
    ws.add({**TASK, "id": "T0"})
    worker = ws.start(*BUILDER)
    wait_for(lambda: ws.status("T0") == DONE, ws.log())
    ws.add(TASK | {"status": "in_review"})
    ws.ask("INSERT INTO rolecall.migration (version) VALUES (99)")
    ws.ask("ALTER FUNCTION rolecall.claim RENAME TO claim_of_99")
    ws.ask('NOTIFY "rolecall.ready"')
    told = "the queue's schema is version 99, this Rolecall knows"
    wait_for(lambda: ws.count(told) == 1, ws.log())
    ws.ask("ALTER FUNCTION rolecall.claim_of_99 RENAME TO claim")
    ws.ask("DELETE FROM rolecall.migration WHERE version = 99")
    ws.ask("UPDATE rolecall.task SET status = 'ready' WHERE id = 'T1'")
    wait_for(lambda: ws.status() == DONE, ws.log())
    assert worker.poll() is None


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a server and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = "size=160m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("root, who may mount a tmpfs, is needed for a disk that is full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_of_the_server_is_said_and_waited_for(
    small_disk: Path, servers: Servers, make: Make
) -> None:
    """Nothing is torn; claims and settlings are made when there is room.

    Broken once by an error that is no passing one: the attempt gave its result up.
    """
    os.chmod(small_disk, 0o777)  # noqa: S103  # the server is another account
    server = servers(data=small_disk / "data", settings={"wal_recycle": "off"})
    ws = make(server, None, HELD, slots=1)
    ws.add(*({**TASK, "id": f"T{number}", "notes": "x" * 1000} for number in range(8)))
    worker = ws.start(*BUILDER)
    ws.up()
    ballast = small_disk / "ballast"
    fill(ballast)
    with closing(psycopg.connect(ws.url, autocommit=True)) as line, pytest.raises(psycopg.Error):
        line.execute(
            "CREATE TABLE filler AS SELECT repeat('x', 2000) FROM generate_series(1, 9999)"
        )
    line.close()
    fill(ballast)
    (ws.path / "go").touch()
    wait_for(lambda: ws.count("No space left") or len(ws.settled()) == 8, ws.log())
    ballast.unlink()
    wait_for(lambda: ws.settled() == ["success"] * 8, ws.log(), 60)
    assert sorted(ws.runs()) == sorted(f"T{number}" for number in range(8))
    assert worker.poll() is None


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break
