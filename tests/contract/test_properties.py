"""Whatever workers, crashes, clocks and people do, in any order: the queue is what a model says.

``ROLECALL_EXAMPLES=1000`` runs that many examples, other ones each time; a failure prints the blob
that runs it again.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from daemon import process
from daemon.errors import RolecallError
from daemon.model import Lease, Move, Outcome, Result
from daemon.process import Identity
from daemon.queue import Queue, Stale
from tests import model, model_queue
from tests.layout import kept
from tests.model import TABLE, Task
from tests.model_queue import TTL, Model, Refused, Rows, Who
from tests.queues import FAR, Backend, FileBackend

EXAMPLES = os.environ.get("ROLECALL_EXAMPLES", "")
FILE, SERVER = int(EXAMPLES or 60), int(EXAMPLES or 40)  # a server takes longer for each
SETTINGS = settings(
    stateful_step_count=60,
    derandomize=not EXAMPLES,
    print_blob=True,
    database=None,  # nothing is left behind; the blob runs a failure again
    deadline=None,
    phases=(Phase.generate, Phase.shrink) if EXAMPLES else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)

NAMES = [f"T{i}" for i in range(7)]
CLAIMED = [row.claims for row in TABLE.values()]
WORDS: list[Any] = sorted(
    {word for row in TABLE.values() for word in row} | {*model.ENDED, "blocked"}
)
LAYOUTS: list[dict[str, Any]] = [
    {"indent": 2},
    {"indent": "\t", "ensure_ascii": False},
    {"separators": (",", ":")},
    {"separators": (" ,", " : "), "ensure_ascii": False},
]
BY_HAND: list[Task] = [
    {"lease": None},
    {"lease": ""},
    {"status": "cancelled"},
    {"status": "blocked", "dependencies": ["T0"]},
    {"status": "blocked", "dependencies": ["T1"], "blocker": "a person"},
    {"dependencies": ["T2", "gone"]},
    {"dependencies": []},
    {"priority": 1},
    {"priority": "high"},
    {"parent": "T1"},
    {"attempts": 2},
    {"attempts": "many"},
    {"adaptations": 3},
    {"token": 9},
    {"not_before": model.stamp(1_800_000_500)},
    {"lease": {"owner": "x", "heartbeat_at": model.stamp(1_800_000_000), "ttl_seconds": TTL}},
]
NEW: list[Task] = [
    {"id": "N0", "type": "Test", "title": "→"},
    {"id": "N1", "status": "blocked", "dependencies": ["N0"], "own": [1, {"é": None}]},
    {"id": "N2", "type": "Story", "subtasks": [{"id": "N3", "status": "done"}]},
    {"id": "N4", "status": "planning_complete", "subtasks": [{"id": "N5", "status": "done"}]},
    {"id": "T1", "title": "an id that may be taken"},
    {"id": "N6", "status": "testing"},
    {"id": "N7", "dependencies": ["T0"], "priority": 1},
]

actors = st.integers(0, 4)
places = st.integers(0, 1) | st.integers(0, 30)  # counted from the last one, mostly
lucks = st.sampled_from([0.0, 0.5, 1.0])
roles = st.sampled_from(sorted(TABLE))
statuses = st.sampled_from([*WORDS, "weird", 7])
outcomes = st.sampled_from([each for each in Outcome if each is not Outcome.LOST])
additions = st.lists(st.sampled_from(NEW), min_size=1, max_size=2)


def who(identity: Identity) -> Who:
    return Who(identity.machine_id or identity.host, identity.boot_id, identity.pid)


class Hands(RuleBasedStateMachine):
    """A queue, its model, three processes of this boot, one of an earlier boot, one far away."""

    def __init__(self, queues: Callable[..., Backend]) -> None:
        super().__init__()
        self.backend = queues(Path(tempfile.mkdtemp()))
        self.opened: dict[tuple[Identity | None, float], Queue] = {}
        self.backend.clock.wall, self.backend.clock.boot = 1_800_000_000.0, 5_000.0
        self.started: list[subprocess.Popen[bytes]] = []
        self.me = process.identity()
        earlier = self.me._replace(boot_id="an-earlier-boot")
        self.actors = [*(self.start() for _ in range(3)), earlier, FAR]
        self.given: list[Lease] = []
        self.found: list[tuple[Stale, model_queue.Stale]] = []
        self.buffers: list[Task] = []
        self.sound = False

    def start(self) -> Identity:
        """A process that ends with this one, or when it is killed."""
        self.started.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        return process.identity(self.started[-1].pid)

    @initialize(
        words=st.lists(st.sampled_from(CLAIMED), min_size=7, max_size=7),
        layout=st.sampled_from(LAYOUTS),
        limit=st.integers(1, 3),
    )
    def fill(self, words: list[str], layout: dict[str, Any], limit: int) -> None:
        tasks: list[Any] = [
            {"id": name, "title": "é\u2028", "own": {"a": [1, 2.5, []]}, "status": word, "end": ""}
            for name, word in zip(NAMES, words, strict=True)
        ]
        tasks[1] |= {"type": "Story", "status": "needs_plan", "subtasks": tasks[5:6]}
        tasks[2] |= {"priority": 1, "attempts": 2}
        tasks[3] |= {"status": "blocked", "dependencies": ["T2"], "parent": "T1"}
        tasks[6] |= {"adaptations": 3, "subtasks": ["no task", {"status": "done"}]}
        del tasks[5]
        limits = {role: limit for role in TABLE if role != "tester"}
        document = {"tasks": ["a note", *tasks], "wip_limits": limits, "metadata": {"é": 1.5}}
        self.lay_out(layout)
        self.backend.put(document)
        clock = self.backend.clock
        kind = Model if isinstance(self.backend, FileBackend) else Rows
        self.model = kind(document, clock.wall, clock.boot)
        self.model.dead.add(who(FAR))  # who looks from there finds no such process
        self.buffers.append(copy.deepcopy(document))
        self.sound = True

    # --- both do it, and both must say the same ---

    def call(
        self, act: Callable[[], Sequence[Move]], wanted: Callable[[], list[model.Change] | None]
    ) -> None:
        self.sound = False
        self.backend.told.moves.clear()
        text, before = self.backend.text(), copy.deepcopy(self.model.document)
        try:
            expected = wanted() or []
        except Refused:
            with pytest.raises(RolecallError):
                act()
            assert (self.backend.text(), self.backend.told.moves) == (text, [])
        else:
            moves = changes(act())
            assert self.order(moves) == self.order(expected)
            assert changes(self.backend.told.moves) == moves
            self.compare(text, before, moves)
        self.sound = True

    def order(self, moves: list[model.Change]) -> list[model.Change]:
        """A server makes moves that happen by themselves in an order of its own, task by task."""
        if isinstance(self.backend, FileBackend):
            return moves
        return sorted(moves, key=lambda change: change[0])

    def compare(self, text: str, before: Task, moves: list[model.Change]) -> None:
        """The queue against the model, and against what the moves say of it."""
        document = self.backend.document()
        now = dict(model.in_order(document["tasks"]))
        assert seen(document) == seen(self.model.document)
        assert bare(document) == bare(self.model.document)
        was = dict(model.in_order(before["tasks"]))
        statuses = {name: task.get("status") for name, task in was.items()}
        for name, source, target in moves:
            assert (source, target) in model.declared() or (source, name in was) == ("", False)
            assert statuses.get(name, "") == source
            statuses[name] = target
        assert {name: task.get("status") for name, task in now.items()} == statuses
        written = {n for n, t in now.items() if model.seen(t) != model.seen(was.get(n, {}))}
        assert kept(text, self.backend.text(), written)
        if not written:
            assert self.backend.text() == text
        self.model.document = document

    @precondition(lambda self: self.sound)
    @invariant()
    def leases_are_the_models(self) -> None:
        """One live lease per task at most, for anybody who looks, and the same stale ones."""
        queue, me = self.open(), who(self.me)
        found = {lease.task_id: (lease.role, lease.token) for lease in queue.live()}
        assert len(queue.live()) == len(found)
        assert found == {n: (each.role, each.token) for n, each in self.model.live(me).items()}
        assert [told(each) for each in queue.stale()] == self.model.stale(me)

    # --- workers and attempts ---

    @rule(role=roles, actor=actors, ignore_wip=st.sampled_from([False, False, False, True]))
    def claim(self, role: str, actor: int, *, ignore_wip: bool) -> None:
        queue, won = self.open(self.actors[actor]), list[Lease]()
        largest, before = dict(self.model.largest), self.model.wip(role)
        name: list[str | None] = []

        def act() -> Sequence[Move]:
            claim = queue.claim(role, "me", ignore_wip=ignore_wip)
            if claim is None:
                return self.backend.told.moves
            won.append(claim.lease)
            assert claim.task == self.task(claim.lease.task_id)
            return claim.moves

        def wanted() -> list[model.Change]:
            found, moves = self.model.claim(role, who(self.actors[actor]), ignore_wip=ignore_wip)
            name.append(found)
            return moves

        self.call(act, wanted)
        assert [lease.task_id for lease in won] == [each for each in name if each]
        for lease in won:
            assert lease.token > largest.get(lease.task_id, 0)
            assert ignore_wip or before < self.model.wip(role) <= self.model.limit(role)
        self.given += won

    @rule(place=places, actor=actors)
    def claim_what_is_ready(self, place: int, actor: int) -> None:
        """Most claims of a role picked blindly win nothing."""
        able = [role for role in TABLE if self.model.ready(role)] or ["builder"]
        self.claim(role=able[place % len(able)], actor=actor, ignore_wip=False)

    @precondition(lambda self: self.given)
    @rule(
        place=st.integers(0, 1),
        actor=actors,
        outcome=outcomes,
        luck=lucks,
        new=st.just([]) | additions,
    )
    def settle_soon(
        self, place: int, actor: int, outcome: Outcome, luck: float, new: list[Task]
    ) -> None:
        """As most attempts do: the lease that was given last, and no status asked for."""
        self.settle(
            place=place, actor=actor, outcome=outcome, asked=None, wait=None, luck=luck, new=new
        )

    @precondition(lambda self: self.given)
    @rule(place=places, actor=actors)
    def take_over(self, place: int, actor: int) -> None:
        lease, me = self.one(place), self.actors[actor]
        queue = self.open(me)
        claimer = Who(lease.machine_id or lease.host, lease.boot_id, lease.pid)
        self.call(
            lambda: nothing(queue.take_over(lease, me)),
            lambda: self.model.take_over(*key(lease), claimer, who(me)),
        )

    @precondition(lambda self: self.given)
    @rule(place=places)
    def renew(self, place: int) -> None:
        lease, queue = self.one(place), self.open()
        self.call(lambda: nothing(queue.renew(lease)), lambda: self.model.renew(*key(lease)))

    @precondition(lambda self: self.given)
    @rule(
        place=places,
        actor=actors,
        outcome=outcomes,
        asked=st.none() | st.sampled_from(WORDS),
        wait=st.sampled_from([None, 0.0, 300.0]),
        luck=lucks,
        new=st.just([]) | additions,
    )
    def settle(  # noqa: PLR0913  # each is a dimension
        self,
        *,
        place: int,
        actor: int,
        outcome: Outcome,
        asked: str | None,
        wait: float | None,
        luck: float,
        new: list[Task],
    ) -> None:
        lease, me = self.one(place), self.actors[actor]
        queue = self.open(me, random=luck)
        result = Result(
            outcome, status=asked, retry_after=wait, add_tasks=tuple(copy.deepcopy(new))
        )
        self.call(
            lambda: queue.settle(lease, result),
            lambda: self.model.settle(
                *key(lease), outcome.value, who(me), asked=asked, wait=wait, luck=luck, new=new
            ),
        )

    @rule(actor=st.integers(0, 2))
    def crash(self, actor: int) -> None:
        """Kill -9; whoever starts next is another process."""
        victim = next(each for each in self.started if each.pid == self.actors[actor].pid)
        end(victim)
        self.model.dead.add(who(self.actors[actor]))
        self.actors[actor] = self.start()

    @rule(actor=actors, luck=lucks, at_once=st.booleans())
    def recover(self, actor: int, luck: float, *, at_once: bool) -> None:
        """Whoever looks, recovers what it finds, or comes to it later: much may happen between."""
        queue = self.open(self.actors[actor], random=luck)
        found, wanted = queue.stale(), self.model.stale(who(self.actors[actor]))
        assert [told(each) for each in found] == wanted
        self.found += zip(found, wanted, strict=True)
        for one, other in zip(found, wanted, strict=True) if at_once else ():
            self.recover_one(actor, luck, one, other)

    @precondition(lambda self: self.late())
    @rule(place=places, actor=actors, outcome=outcomes)
    def a_late_attempt_settles(self, place: int, actor: int, outcome: Outcome) -> None:
        """One whose task has been given to another attempt of its role since."""
        late = self.late()
        back = self.given[::-1].index(late[place % len(late)])
        self.settle(
            place=back, actor=actor, outcome=outcome, asked=None, wait=None, luck=1.0, new=[]
        )

    @precondition(lambda self: self.found and self.given)
    @rule(actor=actors)
    def what_was_found_comes_back(self, actor: int) -> None:
        """An attempt that was thought dead renews its lease before it is recovered."""
        one, other = self.found[-1]
        for back, lease in enumerate(reversed(self.given)):
            if key(lease) == (other.task_id, other.role, other.token):
                self.renew(place=back)
        self.recover_one(actor, 1.0, one, other)

    @precondition(lambda self: self.found)
    @rule(place=places, actor=actors, luck=lucks)
    def recover_late(self, place: int, actor: int, luck: float) -> None:
        self.recover_one(actor, luck, *self.found[-1 - place % len(self.found)])

    def recover_one(self, actor: int, luck: float, one: Stale, other: model_queue.Stale) -> None:
        queue = self.open(self.actors[actor], random=luck)
        self.call(
            lambda: queue.recover(one),
            lambda: self.model.recover(other, who(self.actors[actor]), luck),
        )

    @rule(actor=actors, new=additions)
    def add(self, actor: int, new: list[Task]) -> None:
        queue = self.open(self.actors[actor])
        self.call(
            lambda: queue.add(copy.deepcopy(new)),
            lambda: self.model.add(new, who(self.actors[actor])),
        )

    # --- time ---

    @rule(seconds=st.sampled_from([1.0, 31.0, TTL, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.backend.clock.step(seconds)
        self.model.wall += seconds
        self.model.boot += seconds

    @rule(seconds=st.sampled_from([-86400.0, -TTL, TTL, 86400.0]))
    def the_wall_clock_is_stepped(self, seconds: float) -> None:
        self.backend.clock.wall += seconds
        self.model.wall += seconds

    # --- people ---

    @rule(layout=st.sampled_from(LAYOUTS), place=places, status=statuses)
    def a_status_is_changed(self, layout: dict[str, Any], place: int, status: Any) -> None:
        self.edit(layout, lambda tasks: tasks[place % len(tasks)].update(status=status))

    @rule(layout=st.sampled_from(LAYOUTS), place=places, change=st.sampled_from(BY_HAND))
    def a_task_is_changed(self, layout: dict[str, Any], place: int, change: Task) -> None:
        self.edit(layout, lambda tasks: tasks[place % len(tasks)].update(copy.deepcopy(change)))

    def edit(self, layout: dict[str, Any], change: Callable[[list[Task]], object]) -> None:
        document = self.backend.document()
        self.buffers.append(copy.deepcopy(document))
        change([task for task, _ in model.walk(document["tasks"])])
        self.save(document, layout)

    def save(self, document: Task, layout: dict[str, Any] | None = None) -> None:
        if layout:
            self.lay_out(layout)
        self.backend.put(document)
        self.model.document = copy.deepcopy(document)
        self.model.by_hand()

    def lay_out(self, layout: dict[str, Any]) -> None:
        """A text has a layout."""
        if isinstance(self.backend, FileBackend):
            self.backend.layout = layout

    def open(self, me: Identity | None = None, random: float = 1.0) -> Queue:
        """One's own view of the queue: of a file always a new one, else over one's connection."""
        if isinstance(self.backend, FileBackend):
            return self.backend.open(me, random)
        if (me, random) not in self.opened:
            self.opened[me, random] = self.backend.open(me, random)
        return self.opened[me, random]

    @rule(place=places, layout=st.sampled_from(LAYOUTS))
    def an_old_buffer_is_saved(self, place: int, layout: dict[str, Any]) -> None:
        self.save(self.buffers[-1 - place % len(self.buffers)], layout)

    @precondition(lambda self: self.sound and self.model.leases)
    @rule(place=places, to=st.sampled_from(["claims", "holds", "success"]), freed=st.booleans())
    def a_person_moves_what_is_leased(self, place: int, to: str, *, freed: bool) -> None:
        """Back to where it was claimed, say, whether its attempt lives or not."""
        document, names = self.backend.document(), sorted(self.model.leases)
        name = names[place % len(names)]
        task = dict(model.in_order(document["tasks"])).get(name, {})
        task["status"] = getattr(TABLE[self.model.leases[name].role], to)
        task |= {"lease": None} if freed else {}
        self.save(document)

    @rule(place=places)
    def a_task_is_removed(self, place: int) -> None:
        document = self.backend.document()
        if len(document["tasks"]) > 3:
            del document["tasks"][1 + place % (len(document["tasks"]) - 1)]
            self.save(document)

    @rule(new=st.sampled_from(NEW), place=places)
    def a_task_is_written_by_hand(self, new: Task, place: int) -> None:
        document = self.backend.document()
        document["tasks"].insert(place % len(document["tasks"]), copy.deepcopy(new))
        self.save(document)

    @rule(role=roles, limit=st.sampled_from([0, 1, 2, 2.5, "many", None, -1, True]))
    def a_limit_is_changed(self, role: str, limit: Any) -> None:
        document = self.backend.document()
        document["wip_limits"][role] = limit
        self.save(document)

    @precondition(lambda self: self.sound and self.model.leases)
    @rule(place=places)
    def a_lease_is_removed(self, place: int) -> None:
        names = sorted(self.model.leases)
        name = names[place % len(names)]
        self.backend.drop_lease(name)
        del self.model.leases[name]

    # --- when everything is over ---

    def teardown(self) -> None:
        try:
            if self.sound:
                self.drain()
        finally:
            for each in self.started:
                end(each)
            self.backend.close()
            shutil.rmtree(self.backend.folder)

    def drain(self) -> None:
        """Every wait is over, every attempt gone, and all that can be done is: nothing is stuck."""
        tasks = self.model.tasks().values()
        times = [model.seconds(task.get("not_before")) for task in tasks]
        times += [lease.wall for lease in self.model.leases.values()]
        ahead = max(1_800_000_000.0, self.model.wall, *times) - self.model.wall
        self.the_wall_clock_is_stepped(ahead)
        self.time_passes(2 * TTL)
        self.recover(actor=0, luck=0.0, at_once=True)
        self.recover(actor=0, luck=0.0, at_once=True)
        assert (self.open().stale(), self.open().live()) == ([], [])
        assert self.model.leases == {}
        some = True
        while some:
            some = False
            assert len(self.given) < 400, self.model.document
            for role in TABLE:
                before = len(self.given)
                self.claim(role=role, actor=0, ignore_wip=True)
                if len(self.given) > before:
                    some = True
                    self.settle_soon(place=0, actor=0, outcome=Outcome.SUCCESS, luck=0.0, new=[])
        stuck = {n: t for n, t in self.model.tasks().items() if not self.model.over(t)}
        assert stuck == {}

    # --- what the rules ask ---

    def one(self, place: int) -> Lease:
        """A lease that was once given, the last one first."""
        return self.given[-1 - place % len(self.given)]

    def late(self) -> list[Lease]:
        """The leases that were given before the last one of their tasks, to the same role."""
        last = {lease.task_id: lease for lease in self.given}
        return [
            lease
            for lease in self.given
            if lease is not last[lease.task_id] and lease.role == last[lease.task_id].role
        ]

    def task(self, name: str) -> Task:
        return dict(model.in_order(self.backend.document()["tasks"]))[name]


def end(started: subprocess.Popen[bytes]) -> None:
    if started.stdin and not started.stdin.closed:
        started.stdin.close()
    started.kill()
    started.wait()


def nothing(_: object) -> list[Any]:
    """A call that moves no task."""
    return []


def changes(moves: Sequence[Move]) -> list[model.Change]:
    return [(move.task_id, move.source, move.target) for move in moves]


def key(lease: Lease) -> tuple[str, str, int]:
    return lease.task_id, lease.role, lease.token


def told(stale: Stale) -> model_queue.Stale:
    return model_queue.Stale(stale.task_id, stale.why, stale.lease.role, stale.lease.token)


def seen(document: Task) -> list[Task]:
    return [model.seen(task) for task, _ in model.walk(document["tasks"])]


def bare(document: Task) -> Task:
    """What is nobody's task."""
    notes = [each for each in document["tasks"] if not isinstance(each, dict)]
    return {**document, "tasks": notes}


def test_a_queue_is_what_its_model_says(queues: Callable[..., Backend]) -> None:
    """Statuses, tokens, attempts, holds, moves, leases, and every byte that is not ours.

    Broken once by each of: no look at the token, a WIP limit of one more, a hold that an old
    buffer undid and nobody wrote again, a released attempt that counts, a removed lease file taken
    for an error, a token made from the task's own alone, a renewal that does not ask whose the
    lease is, a move told twice, a wall clock that ends leases, a not_before that nobody looks at,
    a lease left behind by its settling, a dead lease that bars no claim, a recovery of what came
    back. Each time this failed.
    """

    class Machine(Hands):
        def __init__(self) -> None:
            super().__init__(queues)

    many = FILE if queues is FileBackend else SERVER
    run_state_machine_as_test(Machine, settings=settings(SETTINGS, max_examples=many))
