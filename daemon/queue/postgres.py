"""The queue in a PostgreSQL database, for the workers of many hosts.

What decides who has a task happens in the server's own functions (``sql/``), by the server's clock.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

from daemon import process
from daemon.config import Config
from daemon.errors import LeaseLost, RolecallError
from daemon.index import uncollected
from daemon.model import Claim, Lease, Move, Outcome, Result, format_time
from daemon.process import Identity
from daemon.queue import Snapshot, Stale, intake, migrating, rows, staleness
from daemon.queue.listening import Waits, Watch
from daemon.queue.memory import Memory
from daemon.queue.outbox import Teller
from daemon.queue.session import ANSWER, Between, Call, Session
from daemon.queue.tables import ALL_LEASES, HELD, SOONEST, STRANGE, Seen, Tables, boottime, holder
from daemon.queue.transfer import SHOWN, Imported, Incoming
from daemon.queue.update import Update
from daemon.queue.winning import Winning
from daemon.queue.writes import RESTARTS, Draft, Known, Writes, moved

CHUNK = 1000  # tasks that one statement imports
SHARE = 0.125  # of the ttl: how long a call of an attempt may take; less than attempt.MARGIN
CHANGE: str = "SELECT * FROM rolecall.change($1, $2, $3, $4, $5)"


class PostgresQueue:
    """The queue in a database. ``teller`` tells each state change, once it is written."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], float] | None = None,
        random: Callable[[], float] = lambda: int.from_bytes(os.urandom(6)) / 2**48,
        me: Identity | None = None,
        teller: Teller | None = None,
    ) -> None:
        self.config, self.machine, self.teller = config, config.machine, teller
        self.clock, self.random = clock or self._server_time, random
        self._me, self._ahead = me, 0.0
        self.session = Session(config.queue, "rolecall", self._greet)
        self.tables = Tables(self.session, lambda: self.me)
        waits = Waits(self.tables)
        self.memory = Memory(config, self.clock, self.tables.known, self.tables.is_live, waits)
        self._problems: tuple[str, ...] = ()
        self._awaited: set[str] = set()  # statuses that a watch is of
        self._roles: list[str] = []  # those of the worker
        self.writes = Writes(self)
        self.winning = Winning(self)

    @property
    def me(self) -> Identity:
        """Who claims: this process, also after a fork."""
        return self._me or process.identity()

    @property
    def name(self) -> str:
        """Where it is, for a person."""
        return self.config.queue

    def exists(self) -> bool:
        """Whether there is one: ``queue.init`` has made it. Raises QueueUnreachable."""
        self.session.call("SELECT")
        return True

    def _greet(self, session: Session) -> None:
        """Refuse a schema that is not ours to use, and set our clock by the server's."""
        ((there, database),) = session.call(
            "SELECT to_regclass('rolecall.migration') IS NOT NULL, current_database()"
        )
        version = "SELECT coalesce(max(version), 0) FROM rolecall.migration"
        migrating.judge(session.call(version)[0][0] if there else 0, database)
        ((moment,),) = session.call("SELECT extract(epoch FROM rolecall.now())::double precision")
        self._ahead = moment - time.time()

    def _server_time(self) -> float:
        """Seconds since the epoch by the database's clock, as it was told last."""
        return time.time() + self._ahead

    def close(self) -> None:
        """Let go of the connection."""
        self.session.drop()

    def rehearse(self) -> None:
        """Nothing: whether the server takes writes is told by the next one."""

    # --- looking ---------------------------------------------------------------------------------

    def watch(self, roles: Collection[str]) -> Watch:
        """What wakes a worker of these roles: the socket of the one connection."""
        self._roles = [name for name in roles if name in self.machine.roles]
        rules = [self.machine.roles[name] for name in self._roles]
        self._awaited |= (statuses := {s for each in rules for s in (*each.claims, each.holds)})
        return Watch(self.session, statuses)

    def look(self) -> AbstractContextManager[None]:
        """One look of a worker: what is read for it is asked for at once, before the claim."""
        roles = [self.config.roles[name] for name in self._roles]
        waits = {role.credential for role in roles if role.credential is not None}
        return self.tables.look(
            *self._of_leases(),
            *(Call(SOONEST, (role.rules.claims,)) for role in roles),
            *map(Waits.asked, sorted(waits)),
        )

    def signature(self) -> tuple[int, ...] | None:
        """Always the same: what changes is told on the connection, or seen at the next look."""
        return ()

    def snapshot(self, only: Collection[str] | None = None) -> Snapshot:
        """Everything, or single tasks, as they are now. Raises QueueUnreachable."""
        document, tasks, leases, _ = self.tables.seen(only)
        self._problems = tuple(tasks.problems)
        limits = json.loads(document).get("wip_limits")
        live = {name: lease for name, lease in leases.items() if not self.tables.gone(lease)}
        barred = {name: self._barred(lease) for name, lease in leases.items() if name not in live}
        return Snapshot(tasks, limits, live, barred)

    def _barred(self, lease: Lease) -> str:
        who = "a worker" if lease.role in self.machine.roles else f"a worker of {lease.role}"
        if self.tables.gone(lease) == "died":
            return f"its attempt died: the next look of {who} recovers it"
        return f"its lease ran out: {who} that has seen it so for a while recovers it"

    def problems(self) -> tuple[str, ...]:
        """What was found wrong with single tasks at the last look, for a person."""
        return (*self._problems, *self.winning.passed)

    def count(self, statuses: Collection[str]) -> int:
        """How many tasks are in any of these statuses. Raises QueueUnreachable."""
        return self.tables.count(statuses)

    def has_children(self, task_id: str) -> bool:
        """Whether any task names this one as its parent, or stands in it."""
        return self.tables.has_children(task_id)

    def last_number(self) -> int:
        """The largest number in an id of ours (T001, T002, ...); 0 where there is none."""
        return self.tables.last_number()

    def read_lease(self, task_id: str) -> Lease | None:
        """The task's lease; None where there is none."""
        return self.tables.read_lease(task_id)

    def gone(self, lease: Lease) -> str:
        """Whether the lease's attempt is gone, and why; "" while it is live."""
        return self.tables.gone(lease)

    def live(self, role: str | None = None, host: str | None = None) -> list[Lease]:
        """The live leases (of a role, of a host)."""
        return self.tables.live(role, host)

    def next_time(self, role: str, now: float) -> float | None:
        """When to look again though nothing changes: the end of a wait, or of a lease."""
        rules = self.machine.roles[role]
        ahead = self.clock() - now
        times = [pause.until - ahead for pause in self.memory.pauses(role) if pause.until]
        [[[soonest]]] = self.tables.ask(Call(SOONEST, (rules.claims,)))
        if soonest is not None:
            times.append(now + soonest)
        if self.session.unsure < math.inf:
            times.append(now + self.session.unsure - time.monotonic())
        # A lease that is given out later may run out before our interval does.
        shortest = min(each.lease_ttl for each in self.config.roles.values())
        if shortest < self.config.roles[role].interval:
            times.append(now + shortest)
        return min((each for each in times if each > now), default=None)

    # --- claiming --------------------------------------------------------------------------------

    def claim(
        self, role: str, owner: str, *, ignore_wip: bool = False, dry_run: bool = False
    ) -> Claim | None:
        """Win the role's next task, or None. A dry run writes nothing."""
        if role not in self.machine.roles:
            raise RolecallError(f"there is no role {role!r} in this config")
        return self.winning.claim(role, owner, ignore_wip=ignore_wip, dry_run=dry_run)

    # --- the lease of an attempt -----------------------------------------------------------------

    def take_over(self, lease: Lease, me: Identity, unit: str = "") -> Lease:
        """Make the lease the attempt's own. Raises LeaseLost.

        From now on no call keeps the attempt from watching its agent for long.
        """
        self.session.answer = min(ANSWER, lease.ttl_seconds * SHARE)
        now = boottime()
        found = self.session.call(
            "SELECT * FROM rolecall.take_over($1, $2, $3, $4, $5, $6)",
            [
                lease.task_id,
                lease.token,
                lease.started_at,
                holder(me, now, unit, lease.sessions),
                lease.pid,
                lease.pid_started,
            ],
        )
        if not found:
            raise self.lost(lease)
        document, ours, version, wish, wished_by, moment = found[0]
        self.writes.keep(lease, Known({**json.loads(document), **ours}, version))
        self._ahead = moment - time.time()
        return lease._replace(
            **me._asdict(),
            unit=unit,
            heartbeat_at=format_time(moment),
            heartbeat_boottime=now,
            wish=wish or "",
            wished_by=wished_by or "",
        )

    def renew(self, lease: Lease, sessions: Sequence[int] = ()) -> Lease:
        """Prolong the lease by its time to live. Raises LeaseLost."""
        seen: dict[str, object] = {"heartbeat_boottime": boottime()}
        if sessions:
            seen["sessions"] = list(sessions)
        found = self.session.call(
            "SELECT * FROM rolecall.renew($1, $2, $3, $4)",
            [lease.task_id, lease.token, lease.started_at, json.dumps(seen)],
        )
        if not found:
            if self.writes.is_written(lease):
                return lease  # settle() will find it so
            raise self.lost(lease)
        held, wish, wished_by, moment = found[0]
        self._ahead = moment - time.time()
        return lease._replace(
            heartbeat_at=format_time(moment),
            heartbeat_boottime=held["heartbeat_boottime"],
            sessions=tuple(held["sessions"]),
            wish=wish or "",
            wished_by=wished_by or "",
        )

    def lost(self, lease: Lease) -> LeaseLost:
        """Why the lease is ours no more."""
        now = self.tables.read_lease(lease.task_id)
        if now is None:
            return LeaseLost(f"the lease of {lease.task_id} is gone")
        if (now.token, now.started_at) == (lease.token, lease.started_at):
            return LeaseLost(f"the lease of {lease.task_id} is held by process {now.pid}")
        return LeaseLost(f"the lease of {lease.task_id} is another's: token {now.token}")

    # --- settling --------------------------------------------------------------------------------

    def settle(self, lease: Lease, result: Result) -> tuple[Move, ...]:
        """Write what the attempt came to and end the lease. Raises LeaseLost."""
        if lease.role not in self.machine.roles:
            raise RolecallError(f"there is no role {lease.role!r} in this config")
        self.tables.forget()
        over = self.writes.charge(lease, result)
        if over:
            result = result._replace(note="; ".join(filter(None, [result.note, over])))
        if self.writes.is_late(lease) and not self.writes.is_written(lease):
            raise LeaseLost(f"{lease.task_id} had a later attempt than that of {lease.token}")
        moves = self.writes.settle(lease, result, "own")
        self.tell(moves)
        return moves

    def abandoned(self) -> list[Lease]:
        """None: whoever moves a held task ends its lease in the same write."""
        return []

    # --- recovering ------------------------------------------------------------------------------

    def stale(self) -> list[Stale]:
        """The leases whose attempts are gone, and held tasks of ours without a lease."""
        leased, held, strange = self.tables.ask(*self._of_leases())
        self._problems = tuple(row[0] for row in strange)
        found = [
            Stale(lease, name, why)
            for name, lease in sorted(self.tables.read(leased).items())
            if lease.role in self.machine.roles and (why := self.tables.gone(lease))
        ]
        for row in held:
            task = {**json.loads(row[2]), **row[3]}
            if rebuilt := staleness.rebuilt(task, self.machine):
                found.append(Stale(rebuilt, rebuilt.task_id, "vanished"))
        return found

    def _of_leases(self) -> tuple[Call, Call, Call]:
        holds = tuple(sorted({rules.holds for rules in self.machine.roles.values()}))
        return Call(ALL_LEASES), Call(HELD, (holds,)), Call(STRANGE)

    def recover(self, stale: Stale) -> tuple[Move, ...]:
        """Settle for an attempt that is gone; its process tree has been killed before.

        What came back to life since, or was settled by somebody else, is left alone.
        """
        self.tables.forget()
        lease, why = stale.lease, stale.why
        notes = {"died": "its process died", "expired": "its lease ran out"}
        if why == "vanished":
            result = Result(Outcome.RELEASED, "its lease is gone")
        else:
            now = self.tables.read_lease(stale.task_id)
            if now is None or (now.token, now.started_at) != (lease.token, lease.started_at):
                return ()
            lease, why = now, self.tables.gone(now)
            if not why:
                return ()
            result = Result(Outcome.ERROR, notes[why])
        self.writes.charge(lease, result)
        try:
            moves = self.writes.settle(lease, result, why)
        except LeaseLost:
            return ()
        self.tell(moves)
        return moves

    # --- what people change ----------------------------------------------------------------------

    def add(self, tasks: list[dict[str, Any]]) -> tuple[Move, ...]:
        """Append new tasks. Raises RolecallError with what is wrong with them."""

        def change(update: Update) -> None:
            try:
                update.append(intake.checked(tasks, update.tasks, self.machine))
            except ValueError as error:
                raise RolecallError(str(error), hint="nothing was added") from None
            update.moves += intake.told(update.new, "added")

        return self._update(change, lambda: self.tables.near(intake.named(tasks)))

    def update(
        self, change: Callable[[Update], None], only: Collection[str] | None = None
    ) -> tuple[Move, ...]:
        """Make a person's change of the queue, on what it holds then.

        ``change`` may be called again, on newer tasks. What it raises leaves all as it was.
        """
        return self._update(change, lambda: self.tables.seen(only))

    def _update(
        self, change: Callable[[Update], None], look: Callable[[], Seen]
    ) -> tuple[Move, ...]:
        for _ in range(RESTARTS):
            _, tasks, leases, places = look()
            draft = Draft(tasks, leases, places)
            change(draft)
            new = rows.apart(draft.new)
            values = [
                json.dumps([draft.row(index) for index in draft.changes]),
                json.dumps(new.facts),
                new.documents,
                self.machine.unblock,
                self.machine.close_stories,
            ]
            try:
                ((became, moves),) = self.session.call(CHANGE, values)
            except Between:
                continue
            if became != "changed":
                told = (*draft.moves, *moved(moves))
                self.tell(told)
                return told
        raise RolecallError(f"the queue was changed {RESTARTS} times while it was to be written")

    def ask(self, lease: Lease, wish: str, who: str) -> Lease:
        """The lease with a person's wish, which its attempt finds when it renews or settles."""
        values = [lease.task_id, lease.token, wish, rows.plain(who)]
        self.session.call("SELECT rolecall.ask($1, $2, $3, $4)", values)
        return lease._replace(wish=wish, wished_by=who)

    # --- all of it -------------------------------------------------------------------------------

    def export(self) -> bytes:
        """The queue as JSON, as ``load`` takes it."""
        document, found = self.tables.everything()
        _, tops = rows.together(rows.Row(*row[:4]) for row in found)
        made = rows.whole(document, tops)
        return (rows.text(made, indent=2) + "\n").encode()

    @uncollected()
    def load(self, data: bytes, name: str, *, replace: bool = False) -> Imported:
        """Take the tasks of another queue's text in; see ``Queue.load``."""
        incoming = Incoming.of(data, name)
        if self._replace(incoming, only_empty=not replace):
            return incoming.as_whole
        done: list[Imported] = []

        def change(update: Update) -> None:
            done[:] = [incoming.join(update)]

        self.update(change)
        return done[0]

    def _replace(self, incoming: Incoming, *, only_empty: bool) -> bool:
        """Put the text in the queue's place; False, where that is to be empty, and is not."""
        if only_empty and self.session.call("SELECT FROM rolecall.task LIMIT 1"):
            return False
        try:
            root, limits = rows.root(incoming.document)
            apart = rows.apart(incoming.tops).counted()
        except ValueError as error:
            what = f"nothing was imported: {error}"
            raise RolecallError(what, where=incoming.name) from None
        with self.session.transaction():
            ((taken, live),) = self.session.call(
                "SELECT taken, to_json(live) FROM rolecall.begin_anew($1, $2, $3)",
                [root, json.dumps(limits), only_empty],
            )
            if taken:
                return False
            if live:
                more = f" and {len(live) - SHOWN} more" if len(live) > SHOWN else ""
                raise RolecallError(
                    f"attempts are on {', '.join(live[:SHOWN])}{more}",
                    where=self.name,
                    hint="invoke agents.stop",
                )
            for facts, documents in apart.parts(CHUNK):
                self.session.call("SELECT rolecall.import($1, $2)", [json.dumps(facts), documents])
            self.session.call("SELECT rolecall.imported()")
        self.tell(incoming.moves)
        return True

    # --- telling ---------------------------------------------------------------------------------

    def tell(self, moves: Sequence[Move]) -> None:
        """Tell what was written."""
        if moves:
            self.tables.forget()
        # The server tells everybody who waits for tasks of a status, but not who wrote it.
        if self._awaited and any({move.source, move.target} & self._awaited for move in moves):
            self.session.remind()
        if self.teller:
            self.teller.tell(moves)
