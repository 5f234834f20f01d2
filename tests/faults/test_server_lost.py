"""What a server loses by a crash or a failover, or refuses: nobody works twice on what was lost."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

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
from tests.postgres import ADMIN, Server, environment, stopped, unprivileged
from tests.queues import FAR
from tests.workspace import PATIENCE, wait_for

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

    A task whose settling was lost is held by an attempt that has ended: it is recovered, and done
    again, once. A task that was added behind the last that was sent is not there.

    Broken once by recovering nobody whose process has ended.
    """
    primary = servers()
    ws = make(primary, None, HELD)
    with ExitStack() as stack:
        standby = stack.enter_context(Standby(primary))
        ws.url = ws.way = both(primary, standby)
        ws.write_config(builder={"script": HELD})
        ws.add(TASK)
        worker = ws.start(*BUILDER)
        ws.up()
        there = standby.url("sprint")
        holder = "SELECT (lease ->> 'pid')::bigint FROM rolecall.task"
        taken = lambda: answer(there, holder)[0][0] not in {None, worker.pid}  # noqa: E731
        wait_for(taken, "the standby knows of the take-over")
        os.kill(receiver(standby), signal.SIGSTOP)
        (ws.path / "go").touch()
        ws.add({**TASK, "id": "after"})
        wait_for(lambda: ws.settled() == ["success"] * 2 and not ws.tree(), ws.log())
        fail_over(primary, standby)
        wait_for(lambda: ws.status() == DONE, ws.log())
        ws.add({**TASK, "id": "later"})
        wait_for(lambda: ws.status("later") == DONE, ws.log())
        assert ws.status("after") == ""
        assert ws.runs() == ["T1", "after", "T1", "later"], ws.log()
        assert ws.settled() == ["success", "success", "error", "success", "success"]
        assert (ws.count(BACK), ws.leases()) == (1, []), ws.log()
        assert worker.poll() is None
        ws.end()


def answer(url: str, query: str) -> list[tuple[Any, ...]]:
    with closing(psycopg.connect(url, autocommit=True)) as line:
        cursor = line.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def receiver(standby: Server) -> int:
    ((pid,),) = answer(standby.uri, "SELECT pid FROM pg_stat_wal_receiver")
    return int(pid)


def test_an_attempt_whose_claim_a_failover_lost_ends_its_agent(
    servers: Servers, make: Make
) -> None:
    """At the renewal that is refused, and it writes nothing.

    Broken once by going on though a renewal was refused.
    """
    primary = servers()
    script = COUNTED + "[ ! -e up ] || exit 0; : >up; while :; do sleep 0.05; done"
    ws = make(primary, None, script)
    with ExitStack() as stack:
        standby = stack.enter_context(Standby(primary))
        ws.url = ws.way = both(primary, standby)
        # So long that it is neither too late nor without a lease.
        ws.write_config(builder={"script": script, "lease_ttl": 600, "timeout": 600})
        ws.add(TASK)
        cut_off(standby)
        ws.start(*BUILDER)
        ws.up()
        fail_over(primary, standby)
        wait_for(lambda: ws.status() == DONE and not ws.tree(), ws.log())
        assert ws.count("T1 (token 1): lost, nothing was written") == 1, ws.log()
        assert (ws.attempts(), ws.settled()) == (0, ["success"]), ws.log()
        tokens = {each.name for each in (ws.path / ".agent-runs" / "T1").iterdir()}
        assert tokens == {"1", "2"}
        ws.end()


@pytest.mark.parametrize("agent", ["has ended", "goes on"])
def test_a_late_writer_is_refused_after_a_failover(
    servers: Servers, make: Make, tmp_path: Path, agent: str
) -> None:
    """Though the token of its lost claim was given out again: to a host that knows of no other.

    Broken once by comparing tokens alone, in settlings; and in renewals.
    """
    primary = servers()
    last_word = COUNTED + ": >up; kill -STOP $PPID; "  # its attempt hears of the rest much later
    if agent == "goes on":
        last_word += "while :; do sleep 0.05; done"
    ws = make(primary, None, last_word)
    with ExitStack() as stack:
        standby = stack.enter_context(Standby(primary))
        ws.url = ws.way = both(primary, standby)
        ws.write_config(builder={"script": last_word, "lease_ttl": 600, "timeout": 600})
        ws.add(TASK)
        cut_off(standby)
        first = ws.start(*BUILDER)
        ws.up()
        first.send_signal(signal.SIGUSR1)
        assert first.wait(PATIENCE) == 0
        late = wait_for(lambda: [pid for pid in ws.tree("T1") if stopped(pid)], "a late one")[0]
        fail_over(primary, standby)
        far = Shared(tmp_path / "far", ws.url)
        far.path.mkdir()
        far.write_config(builder={"script": HELD})
        stack.callback(far.end)
        far.start(*BUILDER)
        far.up()
        os.kill(late, signal.SIGCONT)
        wait_for(lambda: ws.count("T1 (token 1): lost, nothing was written") == 1, ws.log())
        wait_for(lambda: not ws.tree("T1"), "its agent has ended")
        assert ws.status() == "in_progress"
        (far.path / "go").touch()
        wait_for(lambda: far.settled() == ["success"], far.log())
        assert (ws.status(), ws.settled(), ws.attempts()) == (DONE, [], 0), far.log()
        assert [each.name for each in (far.path / ".agent-runs" / "T1").iterdir()] == ["1"]


def cut_off(standby: Server) -> None:
    """From now on it gets nothing; it has the task."""
    there = standby.url("sprint")
    wait_for(lambda: answer(there, "SELECT 1 FROM rolecall.task"), "the standby has followed")
    os.kill(receiver(standby), signal.SIGSTOP)


def fail_over(primary: Server, standby: Standby) -> None:
    """The primary is gone, and with it what its standby had not taken in."""
    primary.kill()
    standby.kill()
    standby.start()
    standby.promote()


# --- a server that refuses -----------------------------------------------------------------------

LOGIN = "builder_of_this_test"
REFUSALS = {
    "another password": (
        f"ALTER ROLE {LOGIN} PASSWORD 'new'",
        f"ALTER ROLE {LOGIN} PASSWORD 'known'",
    ),
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


def guest(ws: Shared, way: Way) -> dict[str, str]:
    """A login of its own for the workers, with their environment, in which its password is.

    What is refused to it is not refused to the test.
    """
    ws.ask(f"CREATE ROLE {LOGIN} LOGIN PASSWORD 'known'")
    ws.ask(f"GRANT rolecall_worker TO {LOGIN}")
    passfile = ws.path / "pgpass"
    passfile.touch(0o600)
    passfile.write_text(f"*:*:*:{LOGIN}:known\n")
    ws.way = way.url(ws.url).replace(f"//{ADMIN}@", f"//{LOGIN}@")
    ws.write_config(builder={"script": COUNTED, "interval": 600})
    ws.fill({**TASK, "id": "T0"})
    return {**os.environ, "PGPASSFILE": str(passfile)}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_workers_go_on_when_they_are_let_in_again(server: Server, make: Make, refusal: str) -> None:
    """They say why, once, and ask later and later.

    Broken once by forgetting the tries at each answer: a queue that can only be read was asked
    several times a second.
    """
    refuse, allow = REFUSALS[refusal]
    with Way(server.url("postgres", tcp=True)) as way:  # where passwords are asked for
        ws = make(server)
        ws.start(*BUILDER, env=guest(ws, way))
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
        ws.end()


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
    """A file system with room for a database and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size=40m,mode=0700,uid={pwd.getpwnam('nobody').pw_uid}"  # who the server is
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("root, who may mount a tmpfs, is needed for a disk that is full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_of_the_server_is_said_and_waited_for(
    small_disk: Path, server: Server, make: Make
) -> None:
    """Nothing is torn; claims and settlings are made when there is room.

    Broken once by leaving at the first error.
    """
    ws = make(server, None, HELD, slots=1)
    answer(server.uri, f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    answer(server.uri, "ALTER DATABASE sprint SET TABLESPACE small")
    ws.add(*({**TASK, "id": f"T{number}", "notes": "x" * 1000} for number in range(8)))
    worker = ws.start(*BUILDER)
    ws.up()
    ballast = small_disk / "ballast"
    fill(ballast)
    with use_up(ws):
        (ws.path / "go").touch()
        wait_for(lambda: ws.count("cannot settle yet"), ws.log())
        assert ws.count("No space left on device"), ws.log()
        assert (ws.status("T0"), ws.settled()) == ("in_progress", [])
    ballast.unlink()
    wait_for(lambda: ws.settled() == ["success"] * 8, ws.log(), 60)
    assert sorted(ws.runs()) == sorted(f"T{number}" for number in range(8))
    assert worker.poll() is None


@contextmanager
def use_up(ws: Shared) -> Iterator[None]:
    """What room there is in the tasks' own pages, and none of it may be used again meanwhile."""
    with closing(psycopg.connect(ws.url)) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT FROM rolecall.task")  # so that none is vacuumed
        with closing(psycopg.connect(ws.url, autocommit=True)) as line:
            for (identifier,) in line.execute("SELECT id FROM rolecall.task").fetchall():
                with pytest.raises(psycopg.errors.DiskFull):
                    rewrite(line, identifier)
        yield


def rewrite(line: psycopg.Connection[Any], identifier: str) -> NoReturn:
    """The task's row, again and again: each leaves one that is dead."""
    while True:
        line.execute("UPDATE rolecall.task SET place = place WHERE id = %s", [identifier])


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break
