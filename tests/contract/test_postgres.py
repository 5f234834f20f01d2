"""What only a queue on a server can meet: answers that never come, failovers, rights, writers."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from daemon import process
from daemon.errors import LeaseLost, QueueUnreachable, RolecallError
from daemon.model import Outcome, Result, format_time
from daemon.queue import asking, migrating, rows, throttle
from daemon.queue.winning import SCHEMA
from tests.contract.test_queue import claimed, ready
from tests.queues import FAR, PostgresBackend, Told
from tests.unit.test_queue_away import worker_of
from tests.workspace import wait_for

OTHER = FAR._replace(host="other", machine_id="machine-of-other")
WORKERS = 12


@pytest.fixture
def backend(on_postgres: Callable[..., PostgresBackend], tmp_path: Path) -> PostgresBackend:
    """An empty queue."""
    made = on_postgres(tmp_path)
    made.fill()
    return made


def lose(queue: Any, function: str, *, before: bool = False) -> None:
    """Let the line die around its next call of the function: when it is done, or not begun."""
    session, asked = queue.session, queue.session._asked

    def dying(line: Any, calls: Any) -> Any:
        if not any(f"rolecall.{function}(" in call.query for call in calls):
            return asked(line, calls)
        session._asked = asked
        if not before:
            asked(line, calls)
        session.drop()
        raise QueueUnreachable("the line is dead")

    session._asked = dying


# --- answers that never come ---------------------------------------------------------------------


def test_a_settling_whose_answer_was_lost_is_written_once(backend: PostgresBackend) -> None:
    """It is made again, and finds itself: the attempt is told what it moved, not that it lost.

    New tasks, for whose sake the whole queue is looked at, are there once.
    Broken once by not looking for its name: the second try was lost, and told so.
    """
    backend.fill({"id": "S", "type": "Story", "status": "needs_plan"})
    queue = backend.open()
    lease = claimed(queue, "planner").lease
    result = Result(Outcome.SUCCESS, add_tasks=({"id": "N"},))
    lose(queue, "settle")
    with pytest.raises(QueueUnreachable):
        queue.settle(lease, result)
    backend.told.moves.clear()
    before = backend.written()
    assert queue.renew(lease) == lease  # meanwhile an attempt renews
    moves = queue.settle(lease, result)
    assert [(move.task_id, move.target) for move in moves] == [
        ("S", "planning_complete"),
        ("N", "ready"),
    ]
    assert backend.told.moves == list(moves)
    assert backend.written() == before
    with pytest.raises(LeaseLost):
        queue.settle(lease, result)
    with pytest.raises(LeaseLost):
        queue.renew(lease)


def test_a_settling_whose_answer_was_lost_is_known_after_the_next_attempt_s(
    backend: PostgresBackend,
) -> None:
    """The next role may have claimed the task and be done with it when the first one asks again.

    Broken once by remembering the last write alone, and once by the next one's run folder: the
    first attempt was told that it had lost what it had written.
    """
    backend.fill(ready("T1"))
    queue, other = backend.open(), backend.open(FAR)
    lease = claimed(queue).lease
    lose(queue, "settle")
    with pytest.raises(QueueUnreachable):
        queue.settle(lease, Result(Outcome.SUCCESS))
    for _ in range(3):
        other.settle(claimed(other, "tester").lease, Result(Outcome.RELEASED))
    backend.told.moves.clear()
    before = backend.written()
    assert queue.renew(lease) == lease
    (move,) = queue.settle(lease, Result(Outcome.SUCCESS))
    assert (move.source, move.target) == ("in_progress", "awaiting_test")
    assert backend.told.moves == [move]
    assert backend.written() == before
    with pytest.raises(LeaseLost):
        queue.settle(lease, Result(Outcome.SUCCESS))


def test_a_settling_that_was_never_begun_is_made_by_the_second_try(
    backend: PostgresBackend,
) -> None:
    """And a person's wish that came in between is heard."""
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    lose(queue, "settle", before=True)
    with pytest.raises(QueueUnreachable):
        queue.settle(lease, Result(Outcome.SUCCESS))
    assert backend.task("T1")["status"] == "in_progress"
    asking.cancel(backend.open(), "T1", "ann")
    assert queue.settle(lease, Result(Outcome.SUCCESS))[0].target == "cancelled"


def test_a_session_that_the_server_ends_is_made_anew(backend: PostgresBackend) -> None:
    """An administrator ends it between two calls: the settling is written all the same."""
    backend.fill(ready("T1"))
    queue = backend.open()
    lease = claimed(queue).lease
    backend.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'rolecall'"
    )
    wait_for(lambda: settled(queue, lease))
    assert backend.task("T1")["status"] == "awaiting_test"


def settled(queue: Any, lease: Any) -> bool:
    """As an attempt does it: again, until it is written."""
    try:
        queue.settle(lease, Result(Outcome.SUCCESS))
    except QueueUnreachable:
        return False
    return True


def test_two_settlings_of_one_attempt_at_once_write_once(
    backend: PostgresBackend, forked: Callable[[Callable[[], object]], int]
) -> None:
    """One of twelve is told that it did it, in each of several rounds."""
    for number in range(5):
        backend.fill(ready("T1", token=number * 10))
        lease = claimed(backend.open(FAR)).lease
        folder = backend.folder / f"round-{number}"
        folder.mkdir()

        def compete(lease: Any = lease, folder: Path = folder) -> None:
            queue = backend.open()
            queue.snapshot()  # connected
            (folder / f"ready-{os.getpid()}").touch()
            wait_for((folder / "go").exists)
            try:
                queue.settle(lease, Result(Outcome.ERROR))
            except LeaseLost:
                return
            (folder / f"won-{os.getpid()}").touch()

        pids = [forked(compete) for _ in range(WORKERS)]
        wait_for(lambda: len(list(folder.glob("ready-*"))) == WORKERS)  # noqa: B023  # called here
        (folder / "go").touch()
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * WORKERS
        assert len(list(folder.glob("won-*"))) == 1
        assert backend.task("T1")["attempts"] == 1


def test_a_claim_whose_answer_was_lost_is_given_back(backend: PostgresBackend) -> None:
    """The next claim of the process does it, and wins the task; nothing is counted, nothing stuck.

    Broken once by forgetting the doubt: the task stayed held until its lease ran out.
    """
    backend.fill(ready("T1"), wip_limits={"builder": 1})
    queue = backend.open()
    lose(queue, "claim")
    with pytest.raises(QueueUnreachable):
        queue.claim("builder", "me")
    assert backend.task("T1")["status"] == "in_progress"
    claim = claimed(queue)
    assert (claim.lease.token, backend.task("T1").get("attempts", 0)) == (2, 0)
    assert [(move.source, move.target) for move in backend.told.moves] == [("ready", "in_progress")]
    assert queue.settle(claim.lease, Result(Outcome.SUCCESS))


def test_a_claim_that_is_known_is_not_given_back(backend: PostgresBackend) -> None:
    """Only what the process does not know of; and what another process has is another's."""
    backend.fill(ready("T1"), ready("T2"), ready("T3"), wip_limits={"builder": 9})
    queue, far = backend.open(), backend.open(FAR)
    known, fars = claimed(queue).lease, claimed(far).lease
    lose(queue, "claim")
    with pytest.raises(QueueUnreachable):
        queue.claim("builder", "me")
    assert claimed(queue).lease.task_id == "T3"
    assert queue.settle(known, Result(Outcome.SUCCESS))
    assert far.settle(fars, Result(Outcome.SUCCESS))


def test_a_claim_whose_family_cannot_be_read_is_given_back(backend: PostgresBackend) -> None:
    """The line dies between the claim and what it needs to know."""
    backend.fill(ready("T1", subtasks=[{"id": "T1.1", "status": "done"}]))
    queue: Any = backend.open()
    session = queue.session
    asked = session._asked

    def dying(line: Any, calls: Any) -> Any:
        if "RECURSIVE" not in calls[0].query:
            return asked(line, calls)
        session._asked = asked
        raise QueueUnreachable("the line is dead")

    session._asked = dying
    with pytest.raises(QueueUnreachable):
        queue.claim("builder", "me")
    assert claimed(queue).lease.task_id == "T1"


# --- a failover that lost the last writes --------------------------------------------------------


def test_a_token_that_a_failover_gives_out_twice_settles_once(backend: PostgresBackend) -> None:
    """Both attempts have token 1; the row's own is the later one. The other is refused everywhere.

    Broken once by looking at the token alone: the first one's success was written.
    """
    backend.fill(ready("T1"))
    versions = "SELECT version FROM rolecall.task"
    ((version,),) = backend.sql(versions)
    first = backend.open(FAR)
    lost = claimed(first).lease
    backend.fill(ready("T1"))  # the new primary never heard of the claim
    backend.sql("UPDATE rolecall.task SET version = %s", version)
    backend.clock.step(5)
    elsewhere = backend.folder / "elsewhere"
    elsewhere.mkdir()
    second = backend.open(OTHER)
    second.config = second.config._replace(
        paths=second.config.paths._replace(runs=str(elsewhere / "runs"))
    )
    now = claimed(second).lease
    assert now.token == lost.token == 1
    assert backend.sql(versions) == [(version + 1,)]  # it says no more than the token
    for refused in (
        lambda: first.renew(lost),
        lambda: first.take_over(lost, FAR),
        lambda: first.settle(lost, Result(Outcome.SUCCESS)),
        lambda: backend.open(FAR).settle(lost, Result(Outcome.SUCCESS)),
    ):
        with pytest.raises(LeaseLost):
            refused()
    assert backend.task("T1")["status"] == "in_progress"
    assert second.settle(now, Result(Outcome.SUCCESS))


# --- what one look of a worker asks --------------------------------------------------------------


@pytest.mark.parametrize("role", [{}, {"credential": "acme"}], ids=["", "credential"])
def test_an_idle_worker_s_look_asks_twice(
    on_postgres: Callable[..., PostgresBackend], tmp_path: Path, role: dict[str, str]
) -> None:
    """What is read goes in one pipeline, then the claim: each wait for an answer is a wake-up.

    Broken once by reading the leases for each question anew, and the credential's wait.
    """
    backend = on_postgres(tmp_path, interval=3600.0, lease_ttl=7200.0, wip_limit=9, **role)
    later = format_time(backend.clock.wall + 600)
    backend.fill(ready("T1"), ready("T2", not_before=later), wip_limits={"builder": 9})
    claimed(backend.open(FAR))
    queue: Any = backend.open()
    worker = worker_of(queue)
    worker.look()  # connects, and prepares what it asks
    session, asked, trips = queue.session, queue.session._asked, list[int]()

    def counted(line: Any, calls: Any) -> Any:
        trips.append(len(calls))
        return asked(line, calls)

    session._asked = counted
    worker.look()
    assert len(trips) == 2, trips
    assert worker.look_at - time.monotonic() == pytest.approx(600, abs=60)


@pytest.mark.parametrize("write", ["claim", "settle", "recover"])
def test_what_a_look_has_read_is_known_until_it_writes(
    backend: PostgresBackend, write: str
) -> None:
    """From then on, and behind the look, all is asked anew.

    Broken once by keeping it over a claim, and beyond a look that ended in an error.
    """
    backend.fill(*(ready(f"T{number}") for number in range(5)), wip_limits={"builder": 9})
    queue, far = backend.open(), backend.open(FAR)

    def on() -> set[str]:
        return {lease.task_id for lease in queue.live()}

    claimed(far)
    backend.clock.step(61)
    mine = claimed(queue).lease
    acts: dict[str, Callable[[], object]] = {
        "claim": lambda: claimed(queue),
        "settle": lambda: queue.settle(mine, Result(Outcome.SUCCESS)),
        "recover": lambda: queue.recover(queue.stale()[0]),
    }
    with queue.look():
        known, other = on(), claimed(far).lease
        assert on() == known
        assert acts[write]()
        assert other.task_id in on()
        assert claimed(far).lease.task_id in on()
    with pytest.raises(ZeroDivisionError), queue.look():
        raise ZeroDivisionError
    far.settle(other, Result(Outcome.SUCCESS))
    assert other.task_id not in on()


def test_a_wait_that_came_from_another_host_within_a_look_is_not_shortened(
    on_postgres: Callable[..., PostgresBackend], tmp_path: Path
) -> None:
    """What is counted is added to what is there, not to what was there when the look began.

    Broken once by forgetting the look's answers only when the settling was told.
    """
    backend = on_postgres(tmp_path, credential="acme")
    backend.fill(ready("T1"))
    queue, far, now = backend.open(), backend.open(FAR), backend.clock.wall
    queue.watch(["builder"])
    lease = claimed(queue).lease
    with queue.look():
        far.memory.waits.write("acme", throttle.State(now + 3600, 1, now, "far"))
        queue.settle(lease, Result(Outcome.THROTTLED, retry_after=60.0))
    assert queue.memory.waits.read("acme").until == now + 3600


# --- several who write at once -------------------------------------------------------------------


def test_two_planners_add_one_id_and_one_of_them_does(backend: PostgresBackend) -> None:
    """The other one's tasks are an error that says which id is taken; nothing is there twice."""
    backend.fill({"id": "S1", "status": "needs_plan"}, {"id": "S2", "status": "needs_plan"})
    one: Any = backend.open()
    other: Any = backend.open(FAR)
    first = claimed(one, "planner").lease
    second = other.claim("planner", "me", ignore_wip=True).lease
    send = one.writes._send

    def late(*values: Any) -> Any:
        one.writes._send = send
        other.settle(second, Result(Outcome.SUCCESS, add_tasks=({"id": "N", "title": "2"},)))
        return send(*values)

    one.writes._send = late
    (move,) = one.settle(first, Result(Outcome.SUCCESS, add_tasks=({"id": "N", "title": "1"},)))
    assert move.outcome == "error"
    assert "N" in backend.task("S1")["last_error"]
    assert [task.get("title") for task in backend.document()["tasks"] if task["id"] == "N"] == ["2"]


def test_an_import_into_an_empty_queue_gives_way_to_tasks_that_came(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody adds a task between the look and the lock: it stays, the file's join it.

    Broken once by not looking again under the lock: the task was gone.
    """
    root = rows.root

    def late(document: Any) -> Any:
        monkeypatch.setattr(rows, "root", root)
        backend.open().add([ready("H")])
        return root(document)

    monkeypatch.setattr(rows, "root", late)
    done = backend.open().load(json.dumps({"tasks": [ready("T1")]}).encode(), "a file")
    assert (done.whole, done.added) == (False, ("T1",))
    assert [task["id"] for task in backend.document()["tasks"]] == ["H", "T1"]


def test_a_claim_sees_one_that_is_about_to_be_committed(
    backend: PostgresBackend, forked: Callable[[Callable[[], object]], int]
) -> None:
    """There is room for one: the second waits for the first, and finds its role full.

    Broken once by claims without the lock: both tasks were held.
    """
    backend.fill(ready("T1"), ready("T2"), wip_limits={"builder": 1})
    one: Any = backend.open()
    with one.session.transaction():
        assert claimed(one)
        pid = forked(lambda: backend.open().claim("builder", "me"))
        wait_for(lambda: backend.is_met(pid), "the other claim")
    assert os.waitpid(pid, 0)[1] == 0
    assert [task["status"] for task in backend.document()["tasks"]] == ["in_progress", "ready"]


def test_wip_limits_of_several_roles_hold_at_every_instant(
    backend: PostgresBackend, forked: Callable[[Callable[[], object]], int]
) -> None:
    """Twelve workers of three roles, seen by one who looks at a single moment each time."""
    limits = {"builder": 3, "tester": 2, "integrator": 1}
    backend.fill(*(ready(f"T{number}") for number in range(20)), wip_limits=limits)

    def work() -> None:
        queue, held = backend.open(), {"in_progress", "testing", "integrating"}
        while True:
            for role in limits:
                claim = queue.claim(role, "me")
                if claim is not None:
                    queue.settle(claim.lease, Result(Outcome.SUCCESS))
            statuses = {task.task["status"] for task in queue.snapshot().tasks.every}
            if not statuses & {"ready", "awaiting_test", "ready_for_integrator", *held}:
                return

    pids, most = [forked(work) for _ in range(WORKERS)], Counter[str]()
    while pids:
        for status, count in backend.sql("SELECT status, count(*) FROM rolecall.task GROUP BY 1"):
            most[status] = max(most[status], count)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0
            pids.remove(pid)
    held = [most[each] for each in ("in_progress", "testing", "integrating")]
    assert all(found <= limit for found, limit in zip(held, limits.values(), strict=True)), held
    assert most["done"] == 20


# --- a person's SQL ------------------------------------------------------------------------------


def test_a_status_that_the_owner_types_is_as_if_it_stood_in_a_file(
    backend: PostgresBackend,
) -> None:
    """The document says so, the hold is gone, what waits for it goes on, and workers are woken."""
    backend.fill(ready("T1"), ready("T2", dependencies=["T1"]), wip_limits={"builder": 1})
    queue = backend.open()
    watch = queue.watch(["builder"])
    lease = claimed(queue).lease
    watch.changed()
    backend.sql("UPDATE rolecall.task SET status = 'done' WHERE id = 'T1'")
    wait_for(watch.changed)
    task = backend.task("T1")
    assert (task["status"], task["agent"], task["lease"]) == ("done", None, None)
    with pytest.raises(LeaseLost):
        queue.settle(lease, Result(Outcome.SUCCESS))
    assert claimed(queue).lease.task_id == "T2"


def test_a_status_of_any_length_wakes_nobody_wrongly_and_breaks_nothing(
    backend: PostgresBackend,
) -> None:
    """The server's channels have short names."""
    backend.open().load(
        json.dumps({"tasks": [ready("T1"), {"id": "T2", "status": "é" * 200}]}).encode(), "a file"
    )
    assert claimed(backend.open()).lease.task_id == "T1"


# --- who may do what -----------------------------------------------------------------------------


@pytest.fixture
def login(backend: PostgresBackend) -> Iterator[Callable[[str], PostgresBackend]]:
    """The same queue for a login that has one group's rights and no more."""
    made, opened = list[str](), list[PostgresBackend]()

    def make(group: str) -> PostgresBackend:
        name = f"{group}_{os.getpid()}_{len(made)}"
        backend.sql(f"CREATE ROLE {name} LOGIN IN ROLE {group} PASSWORD 'a test'")
        made.append(name)
        front, _, rest = backend.url.partition("://")
        account, _, where = rest.partition("@")
        assert account
        other = PostgresBackend.__new__(PostgresBackend)
        other.__dict__.update(backend.__dict__, _hands={}, _readers={}, _opened=[])
        other.url = f"{front}://{quote(name)}@{where}"
        other._give_back = lambda _: None
        other.told = Told()
        opened.append(other)
        return other

    yield make
    for other in opened:
        other.close()
    backend.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY (%s)", made
    )
    for name in made:
        backend.sql(f"DROP ROLE {name}")


WRITES = [
    "INSERT INTO rolecall.task SELECT 9, 'X', '', NULL, '{}', '{}', 'ready', 'ready', 1, false",
    "UPDATE rolecall.task SET status = 'done'",
    "DELETE FROM rolecall.task",
    "TRUNCATE rolecall.task CASCADE",
    "UPDATE rolecall.queue SET document = '{}'",
    "DELETE FROM rolecall.needs",
    "DELETE FROM rolecall.family",
    "SELECT rolecall.move(1, 'T1', 'ready', 'done')",
    "SELECT rolecall.put(1, '{}')",
    "SELECT rolecall.append('[]', '{}')",
    "SELECT rolecall.put_behind('[]', '{}')",
    "SELECT rolecall.move_on(true, true)",
    "CREATE TABLE rolecall.mine ()",
]
PEOPLES = [
    "SELECT rolecall.change('[]', '[]', '{}', true, true)",
    "SELECT rolecall.ask('T1', 1, 'cancel', 'me')",
    "SELECT rolecall.begin_anew('{}', '{}', false)",
    "SELECT rolecall.import('[]', '{}')",
    "SELECT rolecall.imported()",
]


def test_a_worker_s_login_does_what_workers_do_and_no_more(
    backend: PostgresBackend, login: Callable[[str], PostgresBackend]
) -> None:
    """All that workers and attempts call; no table is written, no person's command done."""
    import psycopg  # noqa: PLC0415  # an extra

    backend.fill(
        ready("T1"),
        {"id": "S", "status": "needs_plan"},
        ready("B", status="blocked", dependencies=["D"]),
        {"id": "D", "status": "done"},
    )
    worker = login("rolecall_worker")
    queue: Any = worker.open()
    watch = queue.watch(["builder"])
    assert (queue.exists(), queue.stale(), queue.abandoned()) == (True, [], [])
    assert claimed_dry(queue) == "T1"
    lease = queue.take_over(claimed(queue).lease, process.identity())
    assert queue.renew(queue.renew(lease, (5,))).sessions == (5,)
    assert queue.read_lease("T1") is not None
    assert len(queue.live()) == 1
    assert queue.next_time("builder", queue.clock()) is not None
    assert queue.settle(lease, Result(Outcome.SUCCESS))
    plan = Result(Outcome.SUCCESS, add_tasks=({"id": "N"},))
    assert queue.settle(claimed(queue, "planner").lease, plan)
    claimed(queue)
    backend.clock.step(61)
    (stale,) = queue.stale()
    assert queue.recover(stale)
    assert queue.snapshot().tasks.by_id
    assert json.loads(queue.export())
    watch.close()
    for write in (*WRITES, *PEOPLES):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.sql(write)
    for ask in (
        lambda: queue.add([{"id": "X"}]),
        lambda: asking.cancel(queue, "T1", "me"),
        lambda: queue.load(b'{"tasks": []}', "a file", replace=True),
    ):
        with pytest.raises(RolecallError, match="may not be used"):
            ask()


def claimed_dry(queue: Any) -> str:
    """What a dry run names."""
    claim = queue.claim("builder", "me", dry_run=True)
    return str(claim and claim.lease.task_id)


def test_an_operator_s_login_does_what_people_do(
    backend: PostgresBackend, login: Callable[[str], PostgresBackend]
) -> None:
    """Commands, and no SQL; a whole import leaves the server knowing what the tasks are like."""
    import psycopg  # noqa: PLC0415  # an extra

    operator = login("rolecall_operator")
    queue: Any = operator.open()
    many = [ready(f"T{number}") for number in range(300)]
    assert queue.load(json.dumps({"tasks": many}).encode(), "a file").whole
    analysed = "SELECT reltuples FROM pg_class WHERE oid = 'rolecall.task'::regclass"
    assert backend.sql(analysed) == [(300.0,)]
    assert queue.load(json.dumps({"tasks": [ready("N")]}).encode(), "a file").added == ("N",)
    lease = claimed(queue).lease
    assert asking.cancel(queue, "T0", "ann")
    queue.settle(lease, Result(Outcome.RELEASED))
    assert asking.cancel(queue, "T1", "ann") is None
    asking.retry(queue, "T1", "ann", "ready")
    backend.change("T2", status="in_progress")
    assert asking.release(queue, "T2", "ann") is None
    queue.add([{"id": "A"}])
    assert json.loads(queue.export())["tasks"][-1]["id"] == "A"
    for write in WRITES:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            operator.sql(write)


def test_who_knows_another_schema_claims_nothing(backend: PostgresBackend) -> None:
    """A session that was there before a migration is told so at its next claim, and greets anew."""
    assert migrating.newest() == SCHEMA
    backend.fill({"id": "T1", "status": "ready"})
    query = (
        "SELECT place FROM rolecall.claim(%s, 'builder', '{ready}', 'in_progress', 1, 1, 'me',"
        " 'here', 60, '{}', '{}', false, false, false)"
    )
    with pytest.raises(psycopg.errors.UndefinedFunction):
        backend.sql(query, SCHEMA - 1)
    ((place,),) = backend.sql(query, SCHEMA)
    assert place is not None
