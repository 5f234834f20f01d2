"""What is written of an attempt's end: decided here, on the task as it was seen, and sent once."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon import lifecycle
from daemon.errors import LeaseLost, RolecallError
from daemon.index import Entry, Tasks
from daemon.model import Lease, Move, Outcome, Result
from daemon.queue import folder, intake, lock, rows, settling
from daemon.queue.session import Between, Unwritable
from daemon.queue.update import Update

if TYPE_CHECKING:
    from daemon.queue.postgres import PostgresQueue

RESTARTS = 100  # times that somebody else's write may come between our look and our write
NOTE = 500  # characters of what a server said
KNOWN = 100  # tasks whose documents are kept for their settling
SETTLE: str = """SELECT * FROM rolecall.settle(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"""


class Known(NamedTuple):
    """A task as it was last seen, the version of its row, and the connection that told of it."""

    task: dict[str, Any]
    version: int
    connection: int = 0


class Sent(NamedTuple):
    """A settling write under way: the name that it is written under once, and what it moves."""

    name: str
    moves: tuple[Move, ...] = ()


class Draft(Update):
    """Changes of tasks to be sent; ``rows`` are their places and versions."""

    def __init__(
        self, tasks: Tasks, leases: dict[str, Lease], rows_: list[tuple[int, int]]
    ) -> None:
        super().__init__(tasks, leases)
        self.rows = rows_

    def move_on(self, machine: lifecycle.Machine, now: float) -> None:
        """Nothing: what moves by itself then, the server knows."""

    def row(self, index: int) -> dict[str, Any]:
        """What the changes make of one row."""
        place, version = self.rows[index]
        ours = rows.plainly(self.changes.get(index, {}))
        own = rows.standing(self.task(index))
        return {**own, "place": place, "version": version, "ours": ours}


class Writes:
    """The settling writes of one queue's process; each has a name until its answer comes."""

    def __init__(self, queue: PostgresQueue) -> None:
        self.queue, self.session, self.tables = queue, queue.session, queue.tables
        self.machine, self.memory = queue.machine, queue.memory
        self._known: dict[tuple[str, int], Known] = {}
        #: The settling writes that were sent and not answered.
        self._sent: dict[tuple[str, int, str], Sent] = {}

    def lock(self) -> contextlib.AbstractContextManager[int]:
        """What is counted in this host's own files is counted by one at a time."""
        return lock.hold(os.path.join(self.queue.config.paths.locks, "queue.lock"))

    def keep(self, lease: Lease, known: Known) -> None:
        """Remember the task of a lease of ours, for its settling."""
        if len(self._known) >= KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[lease.task_id, lease.token] = known._replace(connection=self.session.number)

    def charge(self, lease: Lease, result: Result) -> str:
        """Write down what the attempt has spent, where anybody counts it or it tells."""
        if not (result.usage or self.memory.budgets.apply(self.queue.config.roles[lease.role])):
            return ""
        with self.lock():
            return self.memory.budgets.charge(lease, result)

    def is_late(self, lease: Lease) -> bool:
        """Whether the task had a later attempt here: a run folder knows what a row has lost.

        A server that we have been connected to since the lease was given has lost nothing.
        """
        known = self._known.get((lease.task_id, lease.token))
        if known is not None and self.session.is_still(known.connection):
            return False
        try:
            return folder.largest(self.queue.config.paths.runs, lease.task_id) > lease.token
        except RolecallError:  # an agent has put something in its place: the task's token decides
            return False

    def settle(self, lease: Lease, result: Result, how: str) -> tuple[Move, ...]:
        """Send it under one name until an answer comes: what has that name is written once."""
        who = (lease.task_id, lease.token, lease.started_at)
        name = self._sent.setdefault(who, Sent(os.urandom(8).hex())).name
        for _ in range(RESTARTS):
            try:
                draft, entry, lease = self._drafted(lease, result)
            except LeaseLost:
                if not self.is_written(lease):
                    self._forget(who)
                    raise
                return self._forget(who).moves
            move = settling.conclude(
                draft,
                entry,
                lease,
                result,
                machine=self.machine,
                now=self.queue.clock(),
                random=self.queue.random,
                spent=lambda role: self.memory.spent(role, who[:1]).get(who[0], ""),
            )
            self._sent[who] = Sent(name, tuple(draft.moves))
            try:
                became, moves = self._send(lease, name, how, draft, entry)
            except Unwritable as error:  # it never will be, and the attempt would wait for ever
                if result.outcome is Outcome.ERROR:
                    raise
                note = f"its result cannot be written: {error.problems[0].what}"
                result = Result(Outcome.ERROR, note[:NOTE], usage=result.usage)
                continue
            if became == "changed":
                self._known.pop(who[:2], None)
                continue
            sent = self._forget(who)
            if became.startswith("lost"):
                raise LeaseLost(f"{lease.task_id} {became.partition(': ')[2]}")
            if self.memory.minds(move):
                with self.lock():
                    self.memory.count(move, result)
            return (*sent.moves, *moved(moves))
        raise RolecallError(f"{lease.task_id} was changed {RESTARTS} times while it was settled")

    def is_written(self, lease: Lease) -> bool:
        """Whether a settling write of ours is there whose answer never came."""
        who = (lease.task_id, lease.token, lease.started_at)
        name = self._sent[who].name if who in self._sent else None
        query = "SELECT FROM rolecall.task WHERE id = $1 AND $2 = ANY (settled)"
        return bool(name and self.session.call(query, [who[0], name]))

    def _forget(self, who: tuple[str, int, str]) -> Sent:
        self._known.pop(who[:2], None)
        return self._sent.pop(who)

    def _drafted(self, lease: Lease, result: Result) -> tuple[Draft, Entry, Lease]:
        """What to change, the task in it, and the lease with what a person wishes by now."""
        known = self._known.get((lease.task_id, lease.token))
        if result.add_tasks:  # they have to fit into what is there
            near = {lease.task_id, *intake.named(result.add_tasks)}
            _, tasks, leases, rows_ = self.tables.near(near)
            draft = Draft(tasks, leases, rows_)
            now = leases.get(lease.task_id, lease)
            lease = lease._replace(wish=now.wish, wished_by=now.wished_by)
        else:
            if known is None:
                known, lease = self._seen(lease)
            tasks = Tasks([Entry(0, known.task, None)])
            draft = Draft(tasks, {lease.task_id: lease}, [(0, known.version)])
        if lease.task_id not in draft.tasks.by_id:
            raise LeaseLost(f"{lease.task_id} is no longer in the queue")
        entry = settling.held(draft, lease, lease, self.machine)
        # A failover that lost writes may have given the token out once more.
        if str(entry.task["lease"].get("started_at", "")) != lease.started_at:
            raise LeaseLost(f"{lease.task_id} is held by another attempt of the same token")
        return draft, entry, lease

    def _seen(self, lease: Lease) -> tuple[Known, Lease]:
        """The task and the wish as they are now."""
        found = self.session.call(
            "SELECT document, ours, version, wish, wished_by FROM rolecall.task WHERE id = $1",
            [lease.task_id],
        )
        if not found:
            raise LeaseLost(f"{lease.task_id} is no longer in the queue")
        document, ours, version, wish, by = found[0]
        known = Known({**json.loads(document), **ours}, version)
        self.keep(lease, known)
        return known, lease._replace(wish=wish or "", wished_by=by or "")

    def _send(
        self, lease: Lease, name: str, how: str, draft: Draft, entry: Entry
    ) -> tuple[str, Any]:
        new, row = rows.apart(draft.new), draft.row(entry.index)
        values = [
            lease.task_id,
            lease.token,
            lease.started_at,
            name,
            row["version"],
            how,
            lease.pid,
            rows.status(entry.task),
            row["status"],
            row["attempts"],
            row["free_at"],
            json.dumps(row["ours"]),
            json.dumps(new.facts),
            new.documents,
            self.machine.unblock,
            self.machine.close_stories,
        ]
        try:
            ((became, moves),) = self.session.call(SETTLE, values)
        except Between:  # an id that is added here has come from elsewhere meanwhile
            return "changed", []
        return became, moves


def moved(moves: Sequence[dict[str, str]]) -> tuple[Move, ...]:
    """What moved by itself, as the server told it."""
    return tuple(
        Move(each["id"], "", each["status"], each["target"], each["why"]) for each in moves
    )
