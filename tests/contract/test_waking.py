"""Of each way in which a task becomes claimable, or room for one, those who wait are told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.model import Outcome, Result
from daemon.queue import Queue
from daemon.queue.session import SURE
from tests.queues import FAR, PostgresBackend
from tests.workspace import PATIENCE, wait_for

SUCCESS = Result(Outcome.SUCCESS)
READY = {"id": "T1", "status": "ready"}
WAITS = {"id": "T2", "status": "ready", "dependencies": ["D"]}
HELD = {"id": "T3", "status": "ready_for_integrator"}
Act = Callable[[PostgresBackend, Queue], object]


@pytest.fixture
def backend(on_postgres: Callable[..., PostgresBackend], tmp_path: Path) -> PostgresBackend:
    return on_postgres(tmp_path)


def settled(role: str, result: Result = SUCCESS) -> Act:
    """A task that the role holds comes to that."""

    def act(_: PostgresBackend, queue: Queue) -> None:
        (lease,) = (each for each in queue.memory.leases().values() if each.role == role)
        queue.settle(lease, result)

    return act


def add(*tasks: dict[str, Any]) -> Act:
    return lambda _, queue: queue.add([*map(dict, tasks)])


def load(*tasks: dict[str, Any], replace: bool = False, **top: Any) -> Act:
    data = json.dumps({"tasks": tasks, **top}).encode()
    return lambda _, queue: queue.load(data, "test", replace=replace)


def sql(query: str) -> Act:
    return lambda backend, _: backend.sql(query)


@pytest.mark.parametrize(
    ("there", "held_by", "act"),
    [
        ([], None, add(READY)),
        ([], None, load(READY)),
        ([{"id": "X", "status": "cancelled"}], None, load(READY)),
        ([READY], None, load(READY, replace=True, wip_limits={"builder": 2})),
        ([WAITS, {**HELD, "id": "D"}], "integrator", settled("integrator")),
        ([WAITS], None, add({"id": "D", "status": "done"})),
        ([WAITS], None, load({"id": "D", "status": "done"})),
        ([{**WAITS, "status": "blocked"}], None, add({"id": "D", "status": "done"})),
        ([READY], "builder", settled("builder", Result(Outcome.ERROR))),
        ([READY, {**READY, "id": "T4"}], "builder", settled("builder")),
        ([{**READY, "status": "planned"}], None, sql("UPDATE rolecall.task SET status = 'ready'")),
        ([READY], None, lambda _, queue: queue.memory.end_wait("acme")),
    ],
    ids=[
        *("added", "imported", "joined", "limits", "depends", "depends on what is added"),
        *("depends on what is imported", "blocked", "again", "room", "by hand", "credential"),
    ],
)
def test_who_waits_is_told(
    backend: PostgresBackend, there: list[dict[str, Any]], held_by: str | None, act: Act
) -> None:
    """Within a moment, on the connection that a worker sleeps on; nothing was to be told before."""
    backend.fill(*there)
    waits, other = backend.open(), backend.open(FAR)
    watch = waits.watch(["builder"])
    if held_by:
        assert other.claim(held_by, "me")
    waits.live()
    watch.changed()
    assert not watch.changed()
    act(backend, other)
    wait_for(watch.changed, "it is told", 5)


def test_what_is_told_between_two_questions_is_not_forgotten(backend: PostgresBackend) -> None:
    """An answer takes it in, the socket shows nothing any more: it stays to be told.

    Broken once: a worker that had just looked slept for its whole interval.
    """
    backend.fill()
    waits, other = backend.open(), backend.open(FAR)
    watch = waits.watch(["builder"])
    waits.live()
    watch.changed()
    assert not watch.pending
    other.add([dict(READY)])
    wait_for(lambda: waits.live() == [] and watch.pending, "an answer brings it")
    assert watch.changed()
    assert not watch.pending


def test_a_result_that_no_server_can_write_is_an_error(backend: PostgresBackend) -> None:
    """Not one that is sent for ever: a task's id has an end, and what an agent adds may not."""
    backend.fill({"id": "S", "status": "needs_plan"})
    queue = backend.open()
    claim = queue.claim("planner", "me")
    assert claim
    new = {"id": "N", "priority": 1, "title": "x", "parent": "S", "parent_task": "p" * 9000}
    queue.settle(claim.lease, Result(Outcome.SUCCESS, add_tasks=(new,)))
    assert [task["id"] for task in backend.document()["tasks"]] in (["S"], ["S", "N"])
    assert queue.live() == []


def test_what_moves_by_itself_has_no_end(backend: PostgresBackend) -> None:
    """1,200 tasks wait for one: they move in parts, and who claims is told until all have."""
    many = 1200
    waiting = [{"id": f"B{i}", "status": "blocked", "dependencies": ["D"]} for i in range(many)]
    backend.fill({**HELD, "id": "D"}, *waiting)
    queue = backend.open()
    claim = queue.claim("integrator", "me")
    assert claim
    moves = [*queue.settle(claim.lease, SUCCESS)]
    while len(moved := {move.task_id for move in moves if move.source == "blocked"}) < many:
        claim = queue.claim("builder", "me")
        assert claim
        moves += (*claim.moves, *queue.settle(claim.lease, Result(Outcome.BLOCKED)))
    assert moved == {f"B{i}" for i in range(many)}
    statuses = {task["status"] for task in backend.document()["tasks"]}
    assert statuses == {"done", "ready", "needs_manual"}


def test_nobody_is_told_where_nobody_waits(backend: PostgresBackend) -> None:
    """Who notifies commits one after the other. Broken once by telling whenever anything moves."""
    backend.fill(READY)
    backend.sql('LISTEN "rolecall.ready"')  # nobody of ours
    queue, other = backend.open(), backend.open(FAR)

    def told() -> list[str]:
        backend.sql("NOTIFY \"rolecall.ready\", 'the last one'")
        heard = backend.hand.notifies(timeout=PATIENCE)
        return [*iter(lambda: next(heard).payload, "the last one")]

    claim = queue.claim("builder", "me")
    assert claim is not None
    queue.settle(claim.lease, Result(Outcome.RELEASED))
    other.add([{"id": "T2", "status": "ready"}])
    assert told() == []
    queue.watch(["builder"])
    assert queue.claim("builder", "me") is not None
    other.add([{"id": "T3", "status": "ready"}])
    assert told() == [""]


def test_who_begins_to_wait_sees_what_others_were_writing(backend: PostgresBackend) -> None:
    """They tell nobody, for nobody waited: so until their end it is looked again and again.

    Broken once by one look that could not see it.
    """
    backend.fill({"id": "T1", "status": "testing"})
    ((place, version),) = backend.sql("SELECT place, version FROM rolecall.task")
    change = {"place": place, "version": version, "status": "ready", "attempts": 0, "ours": {}}
    queue: Any = backend.open()
    queue.watch(["builder"])
    with backend.hand.transaction():
        query = "SELECT became FROM rolecall.change(%s, '[]', '{}', true, true)"
        assert backend.sql(query, json.dumps([change])) == [("settled",)]
        assert queue.claim("builder", "me") is None
        soon = queue.next_time("builder", 0.0)
        assert soon is not None
        assert soon <= SURE
    assert wait_for(lambda: queue.claim("builder", "me"))
    wait_for(lambda: queue.claim("builder", "me") is None and queue.session.unsure == math.inf)
