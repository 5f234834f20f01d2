"""What the server decides by itself is what ``lifecycle`` decides: claims, moves and counts."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from daemon import lifecycle
from daemon.errors import LeaseLost, RolecallError
from daemon.index import Entry, Tasks, status_of
from daemon.model import Claim, Lease, Outcome, Result, format_time, is_task_id
from daemon.queue import Queue, asking, rows
from daemon.queue.jsontext import flat
from tests.model import ENDED, TABLE
from tests.queues import PostgresBackend
from tests.workspace import wait_for

EXAMPLES = os.environ.get("ROLECALL_EXAMPLES", "")
NOW = 1_800_000_000.0
NAMES = [f"T{number}" for number in range(8)]
ODD: list[Any] = [None, 7, "", "../x", ["T1"], "gone"]
names = st.sampled_from(NAMES)
statuses = st.sampled_from(
    [row.claims for row in TABLE.values()]
    + [*ENDED, "done", "done", "odd", "in_progress"]
    + [*["blocked"] * 3, *["planning_complete"] * 2]
)
priorities: st.SearchStrategy[Any] = st.sampled_from(
    [None, 1, 1, 2, 2.5, -1, 0, "high", True, 10**400, [], 1e308]
)
waits = st.sampled_from(
    [format_time(NOW - 1), format_time(NOW), format_time(NOW + 100), "soon", 5, None]
)
hand_made = st.fixed_dictionaries(
    {"owner": st.just("ann")},
    optional={
        "heartbeat_at": waits,
        "ttl_seconds": st.sampled_from([0, 60, 60.5, 1e300, -5, "60", True]),
        "token": st.sampled_from([0, 1, 5, "x"]),
    },
)
needs = st.lists(st.one_of(names, names, names, st.sampled_from(ODD)), max_size=3)
keys = {
    "status": statuses,
    "type": st.sampled_from(["Story", "Test", "Testing", "Build", 3]),
    "priority": priorities,
    "dependencies": st.one_of(needs, needs, names, st.sampled_from([*ODD, {"a": 1}])),
    "parent": names | st.sampled_from(ODD),
    "parent_task": names | st.sampled_from(ODD),
    "blocked_reason": st.sampled_from(["", None, "a person"]),
    "blocker": st.sampled_from([0, [], "x"]),
    "not_before": waits,
    "lease": st.none() | st.just("") | hand_made,
    "token": st.sampled_from([0, 1, 5, "x", 10**14]),
    "attempts": st.sampled_from([0, 2, 10**12, "many"]),
}


def tasks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    ids = st.one_of(names, names, names, names, st.sampled_from(ODD))
    return st.lists(
        st.fixed_dictionaries({"id": ids}, optional={**keys, "subtasks": inner}), max_size=7
    )


documents = st.fixed_dictionaries(
    {"tasks": tasks(tasks(st.just([])) | st.just("none"))},
    optional={
        "wip_limits": st.dictionaries(
            st.sampled_from(sorted(TABLE)), st.sampled_from([0, 1, 2, 2.5, 10**12, -1, "x", None])
        )
    },
)
#: What is done, by whom of two, and to which of the tasks: of those claimed, or of all.
deeds = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "claim", "settle", "settle", "cancel", "retry", "add"]),
        st.integers(0, 1),
        st.integers(0, 100),
        st.sampled_from(
            [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.REJECTED, Outcome.ERROR, Outcome.BLOCKED]
        ),
    ),
    max_size=12,
)
READY = {"id": "T0", "status": "ready"}
BUILDER = sorted(TABLE).index("builder")
ONCE = [("claim", 0, BUILDER, Outcome.SUCCESS), ("settle", 0, 0, Outcome.ERROR)]


@pytest.fixture
def backend(on_postgres: Callable[..., PostgresBackend], tmp_path: Path) -> PostgresBackend:
    """An empty queue at a time that the tests know."""
    made = on_postgres(tmp_path, wip_limit=2, slots=10**6)
    made.clock.wall = NOW
    return made


# --- what the columns should hold ----------------------------------------------------------------


def plain(needed: list[Any]) -> list[Any]:
    return [each for each in needed if isinstance(each, str)]


def counted(found: Tasks) -> Iterator[tuple[Any, ...]]:
    """Of each task: its status, what it waits for, its open children and its satisfied ones."""
    usable = {name: status_of(entry.task) for name, entry in found.by_id.items()}
    for entry in found.every:
        needed = lifecycle.dependencies(entry.task)
        ids = [each for each in needed if is_task_id(each)]
        waiting = len(needed) - len(ids)
        waiting += sum(usable.get(each) not in lifecycle.SATISFIED for each in {*ids})
        name = entry.task["id"] if found.is_usable(entry) else None
        family = lifecycle.children(found, {name})[name] if name else []
        children = [status_of(child.task) for child in family]
        yield (
            name,
            status_of(entry.task),
            waiting,
            sum(each not in lifecycle.ENDED for each in children) if name else 0,
            sum(each in lifecycle.SATISFIED for each in children) if name else 0,
        )


def check(backend: PostgresBackend) -> Tasks:
    """Each row says what its task says, and what the others make of it; the tasks."""
    found = Tasks(flat(backend.document()["tasks"])[0])
    query = "SELECT id, status, waiting, open_children, good_children FROM rolecall.task"
    assert backend.sql(f"{query} ORDER BY place") == list(counted(found))
    return found


# --- what is expected of each deed ---------------------------------------------------------------


class Expected:
    """What ``lifecycle`` makes of the tasks as they are before a deed."""

    def __init__(self, backend: PostgresBackend) -> None:
        document = backend.document()
        self.machine = backend.config.machine
        self.limits = document.get("wip_limits")
        self.tasks = Tasks(flat(document["tasks"])[0])
        self.live = {lease.task_id for lease in backend.reader.live()}

    def put(self, task_id: str, status: str) -> None:
        entry = self.tasks.by_id[task_id]
        task = {**entry.task, "status": status}
        self.tasks = self.tasks.changed([entry._replace(task=task)])

    def append(self, new: list[dict[str, Any]]) -> None:
        first = len(self.tasks.every)
        fresh = [Entry(first + entry.index, *entry[1:]) for entry in flat(new)[0]]
        self.tasks = Tasks([*self.tasks.every, *fresh])

    def move_on(self) -> set[tuple[str, str, str]]:
        found = set()
        for entry, _, source, target, _ in lifecycle.moves(
            self.tasks, self.machine, NOW, self.live
        ):
            found.add((entry.task["id"], source, target))
            self.put(entry.task["id"], target)
        return found

    def claimed(self, role: str, *, ignore_wip: bool) -> str | None:
        rules = self.machine.roles[role]
        full = lifecycle.wip(self.tasks, rules) >= lifecycle.wip_limit(self.limits, rules)
        if full and not ignore_wip:
            return None
        line = lifecycle.claimable(self.tasks, rules, NOW, self.live)
        return next((entry.task["id"] for entry in line), None)

    def statuses(self) -> list[str]:
        return [status_of(entry.task) for entry in self.tasks.every]


class Work:
    """Deeds, one after another, each by one of two connections."""

    def __init__(self, backend: PostgresBackend) -> None:
        self.backend = backend
        self.queues = [backend.open(), backend.open()]
        self.held = list[Lease]()
        self.added = 0

    def do(self, deed: str, queue: Queue, place: int, outcome: Outcome) -> None:
        expected = Expected(self.backend)
        self.backend.told.moves.clear()
        if deed == "claim":
            self.claim(expected, queue, place)
        elif deed == "settle" and self.held:
            self.settle(expected, queue, self.held.pop(place % len(self.held)), outcome)
        elif deed in {"cancel", "retry"} and expected.tasks.by_id:
            name = sorted(expected.tasks.by_id)[place % len(expected.tasks.by_id)]
            self.ask(expected, queue, deed, name)
        elif deed == "add":
            self.add(expected, queue, place)
        assert [status_of(entry.task) for entry in check(self.backend).every] == expected.statuses()

    def told(self) -> set[tuple[str, str, str]]:
        """What moved by itself."""
        moves = self.backend.told.moves
        own = ("its dependencies are satisfied", "its children have ended")
        return {(move.task_id, move.source, move.target) for move in moves if move.why in own}

    def claim(self, expected: Expected, queue: Queue, place: int) -> None:
        role, ignore_wip = sorted(TABLE)[place % len(TABLE)], place > 60
        by_itself = expected.move_on()
        wanted = expected.claimed(role, ignore_wip=ignore_wip)
        claim = queue.claim(role, "me", ignore_wip=ignore_wip)
        assert (claim and claim.lease.task_id) == wanted
        assert self.told() == by_itself
        if claim is not None:
            assert claim.task == next(
                entry.task for entry in check(self.backend).entries if entry.task["id"] == wanted
            )
            self.held.append(claim.lease)
            expected.put(claim.lease.task_id, TABLE[role].holds)

    def settle(self, expected: Expected, queue: Queue, lease: Lease, outcome: Outcome) -> None:
        new = [{"id": f"N{self.added}", "dependencies": [lease.task_id]}] if outcome else []
        self.added += 1
        moves = queue.settle(lease, Result(outcome, add_tasks=tuple(new)))
        expected.live.discard(lease.task_id)
        expected.put(lease.task_id, moves[0].target)
        added = [move for move in moves if not move.source]
        expected.append([{**each, "status": "ready"} for each in new[: len(added)]])
        assert expected.move_on() == self.told()

    def ask(self, expected: Expected, queue: Queue, deed: str, name: str) -> None:
        before = self.backend.written()
        try:
            if deed == "cancel":
                asking.cancel(queue, name, "ann")
            else:
                asking.retry(queue, name, "ann")
        except RolecallError:
            assert self.backend.written() == before
            return
        for move in self.backend.told.moves[:1]:
            if move.task_id == name and "ann" in move.why:
                expected.put(name, move.target)
                expected.move_on()

    def add(self, expected: Expected, queue: Queue, place: int) -> None:
        new = {"id": f"N{self.added}", "dependencies": [NAMES[place % len(NAMES)]], "parent": "T1"}
        new["status"] = ["blocked", "done", "ready"][place % 3]
        self.added += 1
        queue.add([new])
        expected.append([new])
        expected.move_on()


@settings(
    max_examples=int(EXAMPLES or 50),
    deadline=None,
    database=None,
    derandomize=not EXAMPLES,
    suppress_health_check=list(HealthCheck),
)
@given(document=documents, todo=deeds)
@example(
    document={
        "tasks": [
            {"id": "T0", "status": "ready"},
            {"id": "T1", "status": "blocked", "dependencies": ["T0", "T0", "T2"]},
            {"id": "T2", "status": "done"},
            {"id": "T3", "status": "planning_complete", "subtasks": [{"id": "T2"}, {"id": "T3"}]},
        ]
    },
    todo=[("claim", 0, 0, Outcome.SUCCESS), ("settle", 1, 0, Outcome.SUCCESS)],
)
@example(document={"tasks": [READY], "wip_limits": {"builder": 10**12}}, todo=ONCE)
@example(document={"tasks": [{**READY, "not_before": format_time(NOW)}]}, todo=ONCE)
@example(
    document={"tasks": [{**READY, "attempts": 10**12}]},
    todo=[*ONCE[:1], ("settle", 0, 0, Outcome.RELEASED)],
)
@example(
    document={
        "tasks": [{**READY, "lease": {"heartbeat_at": format_time(NOW), "ttl_seconds": 1e300}}]
    },
    todo=ONCE,
)
def test_the_server_decides_as_lifecycle_does(
    backend: PostgresBackend, document: Any, todo: list[tuple[str, int, int, Outcome]]
) -> None:
    """The same claims in the same order, the same moves, the same statuses, and exact counts.

    Over dependencies that are unknown, double, no text, the task's own; parents of every kind;
    odd priorities and waits; leases by hand; ids that nobody can use.
    """
    work = Work(backend)
    backend.fill()
    work.queues[0].load(json.dumps(document).encode(), "a file", replace=True)
    check(backend)
    backend.put(document)
    check(backend)
    for deed, by, place, outcome in todo:
        work.do(deed, work.queues[by], place, outcome)
    for role in TABLE:
        for _ in range(20):
            work.do("claim", work.queues[0], 95 + sorted(TABLE).index(role), Outcome.SUCCESS)
            if not work.backend.told.moves:
                break


def test_a_role_takes_the_first_task_of_all_the_statuses_that_it_claims(
    backend: PostgresBackend,
) -> None:
    """By priority, then by place, from now on; and what it releases goes back to where it was."""
    backend.fill(
        {"id": "A", "status": "ready", "priority": 2},
        {"id": "B", "status": "reopened", "priority": 1, "not_before": format_time(NOW)},
        {"id": "C", "status": "reopened", "priority": 0, "not_before": format_time(NOW + 1)},
        {"id": "D", "status": "reopened", "priority": 2},
        {"id": "E", "status": "ready", "priority": 1},
    )
    queue: Any = backend.open()
    rules = queue.machine.roles["builder"]._replace(claims=("ready", "reopened"))
    queue.machine.roles["builder"] = rules
    found = Expected(backend)
    line = [entry.task["id"] for entry in lifecycle.claimable(found.tasks, rules, NOW, set())]
    claims = [queue.claim("builder", "me", ignore_wip=True) for _ in range(5)]
    assert [claim and claim.lease.task_id for claim in claims] == ["B", "E", "A", "D", None]
    assert line == ["B", "E", "A", "D"]
    for claim in claims[:-1]:
        before = next(each for each in found.tasks.every if each.task["id"] == claim.task["id"])
        (move,) = queue.settle(claim.lease, Result(Outcome.RELEASED))
        assert move.target == before.task["status"]


def test_who_claims_what_has_ended_begins_it_anew(backend: PostgresBackend) -> None:
    """What depends on it waits again, and its parent counts it as open, until it is settled.

    Broken once: claims told nobody, settlings did.
    """
    backend.fill(
        {"id": "S", "status": "planned"},
        {"id": "T0", "status": "done", "parent": "S"},
        {"id": "T1", "status": "ready", "dependencies": ["T0"]},
    )
    queue: Any = backend.open()
    rules = queue.machine.roles["builder"]._replace(claims=("done",), on_success="completed")
    queue.machine.roles["builder"] = rules
    claim = queue.claim("builder", "me")
    check(backend)
    queue.settle(claim.lease, Result(Outcome.SUCCESS))
    check(backend)
    assert backend.sql("SELECT waiting FROM rolecall.task WHERE id = 'T1'") == [(0,)]


def test_a_settling_moves_what_a_person_has_made_movable(backend: PostgresBackend) -> None:
    """Whatever the attempt's own task means to it.

    Broken once by looking only where that meant something to others.
    """
    backend.fill(
        {"id": "T0", "status": "ready"},
        {"id": "S", "status": "planning_complete"},
        {"id": "T1", "status": "testing", "parent": "S"},
    )
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    backend.sql("UPDATE rolecall.task SET status = 'done' WHERE id = 'T1'")
    _, move = queue.settle(claim.lease, Result(Outcome.SUCCESS))
    assert (move.task_id, move.target) == ("S", "done")


# --- at once -------------------------------------------------------------------------------------

USERS, TASKS, DEEDS = 6, 40, 40


@pytest.mark.parametrize("is_first", [True, False], ids=["it", "the new one"])
@pytest.mark.parametrize("how", ["move", "settling"])
@pytest.mark.parametrize(
    "new",
    [
        {"id": "N", "status": "blocked", "dependencies": ["T0"]},
        {"id": "S", "status": "planning_complete"},
    ],
    ids=["who waits", "parent"],
)
def test_a_task_that_comes_while_another_ends_counts_it(
    backend: PostgresBackend,
    forked: Callable[[Callable[[], object]], int],
    new: dict[str, Any],
    how: str,
    *,
    is_first: bool,
) -> None:
    """Whoever comes second waits for the first one's commit, and sees what it did.

    Broken once by a settling that asked who waits for it as it began.
    """
    parent = {"parent": "S"} if new["id"] == "S" else {}
    backend.fill({"id": "T0", "status": "testing", **parent})
    ends = {
        "move": "SELECT rolecall.move(place, id, status, 'done') FROM rolecall.task"
        " WHERE id = 'T0'",
        "settling": "SELECT became FROM rolecall.task, rolecall.settle(id, token, '', 'x', version,"
        " 'own', 0, status, 'done', 0, NULL, '{\"status\": \"done\"}', '[]', '{}', false, false)"
        " WHERE id = 'T0'",
    }

    def end() -> None:
        backend.sql(ends[how])

    def append() -> None:
        made = rows.apart([new])
        backend.sql("SELECT rolecall.append(%s, %s)", json.dumps(made.facts), made.documents)

    one, other = (end, append) if is_first else (append, end)
    with backend.hand.transaction():
        one()
        pid = forked(other)
        wait_for(lambda: backend.is_met(pid), "the other one")
    assert os.waitpid(pid, 0)[1] == 0
    check(backend)
    backend.open().claim("integrator", "me")  # it wins nothing
    assert backend.task(new["id"])["status"] in {"ready", "done"}


def busy(backend: PostgresBackend, seed: int) -> None:
    """Deeds at random, on tasks that wait for each other and have each other for parents."""
    chance, queue = random.Random(seed), backend.open(random=0.0)  # noqa: S311  # no secret
    held = list[Claim]()
    for number in range(DEEDS):
        deed = chance.choice(["claim", "claim", "settle", "settle", "cancel", "retry", "add"])
        name = f"T{chance.randrange(TASKS)}"
        try:
            if deed == "claim":
                claim = queue.claim(chance.choice(sorted(TABLE)), "me", ignore_wip=True)
                held += [claim] if claim else []
            elif deed == "settle" and held:
                new = {"id": f"N{seed}-{number}", "dependencies": [name], "type": "Test"}
                outcome = chance.choice([Outcome.SUCCESS, Outcome.SUCCESS, Outcome.REJECTED])
                added = (new,) if chance.random() < 0.3 else ()
                queue.settle(held.pop().lease, Result(outcome, add_tasks=added))
            elif deed == "cancel":
                asking.cancel(queue, name, "ann")
            elif deed == "retry":
                asking.retry(queue, name, "ann", "done" if chance.random() < 0.5 else "blocked")
            elif deed == "add":
                status = chance.choice(["done", "blocked", "ready", "cancelled"])
                other = f"T{chance.randrange(TASKS + 20)}"
                fresh = {"id": f"T{chance.randrange(TASKS, TASKS + 20)}", "status": status}
                queue.add([{**fresh, "dependencies": [other], "parent": name}])
        except LeaseLost:
            raise
        except RolecallError:
            continue  # what cannot be asked of the task as it is


def test_counts_stay_exact_whoever_writes_at_once(
    backend: PostgresBackend, forked: Callable[[Callable[[], object]], int]
) -> None:
    """Six writers claim, settle, add, cancel and retry tasks that depend on each other."""
    chance = random.Random(7)  # noqa: S311  # no secret
    backend.fill(
        *(
            {
                "id": f"T{number}",
                "status": chance.choice(["ready", "blocked", "planning_complete", "awaiting_test"]),
                "dependencies": [f"T{chance.randrange(TASKS + 20)}" for _ in range(2)],
                "parent": f"T{chance.randrange(TASKS)}",
            }
            for number in range(TASKS)
        )
    )
    pids = [forked(partial(busy, backend, seed)) for seed in range(USERS)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * USERS
    check(backend)
    backend.open().claim(
        "integrator", "me"
    )  # it wins nothing  # what was passed over, because it was being written
    found = check(backend)
    live = {lease.task_id for lease in backend.open().live()}
    assert lifecycle.moves(found, backend.config.machine, NOW, live) == []
