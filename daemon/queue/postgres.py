"""The queue in a PostgreSQL database, for the workers of many hosts.

What decides who has a task happens in the server's own functions (``sql/``), by the server's clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from daemon import lifecycle, process
from daemon.config import Config
from daemon.errors import LeaseLost, QueueUnreadable, RolecallError
from daemon.index import Entry, Tasks
from daemon.model import Claim, Lease, Move, Outcome, Result, format_time
from daemon.process import Identity
from daemon.queue import (
    Pause,
    Snapshot,
    Stale,
    durable,
    folder,
    intake,
    lock,
    migrating,
    rows,
    settling,
    staleness,
    throttle,
)
from daemon.queue import breaker as breakers
from daemon.queue.lease import is_here
from daemon.queue.memory import Memory
from daemon.queue.outbox import Teller
from daemon.queue.session import ANSWER, Between, Call, Session
from daemon.queue.transfer import SHOWN, Imported, Incoming
from daemon.queue.update import Update

RESTARTS = 100  # times that somebody else's write may come between our look and our write
CHUNK = 1000  # tasks that one statement imports
SHARE = 0.125  # of the ttl: how long a call of an attempt may take; less than attempt.MARGIN
RETURN = 10.0  # seconds for attempts to renew what they could not while the server was away
PART = 5000  # tasks that one statement reads
KNOWN = 100  # tasks whose documents are kept for their settling
OWN = 1000  # claims that are remembered as known to their process


def _places(many: int) -> str:
    return ", ".join(f"${number}" for number in range(1, many + 1))


LEASE = """task.id, task.role, task.owner, task.started_at, task.ttl,
    extract(epoch FROM task.heartbeat_at)::double precision, task.token, task.attempts, task.host,
    task.lease, task.wish, task.wished_by,
    task.heartbeat_at + make_interval(secs => task.ttl) <= rolecall.now()"""
TASK = "task.place, task.parent, task.document, task.ours"
#: Of single tasks: each as if it stood in no other.
SINGLE: str = f"""SELECT place, NULL, document, ours, version, problem, {LEASE}
    FROM rolecall.task WHERE id = ANY ($1) ORDER BY place"""
ALL_LEASES: str = f"SELECT {LEASE} FROM rolecall.task WHERE owner IS NOT NULL"
#: In parts: no answer of the server may take as long as all of it would over a slow line.
EVERYTHING: str = f"""SELECT {TASK}, task.version, task.problem, {LEASE} FROM rolecall.task
    WHERE place > $1 ORDER BY place LIMIT {PART}"""
DOCUMENT: str = "SELECT document FROM rolecall.queue"
HELD: str = (
    f"SELECT {TASK} FROM rolecall.task"
    " WHERE status = ANY ($1) AND owner IS NULL AND id IS NOT NULL ORDER BY place"
)
SOONEST: str = """
    SELECT extract(epoch FROM min(at) - rolecall.now())::double precision FROM (
        SELECT min(free_at) FROM rolecall.task
        WHERE status = ANY ($1) AND free_at > rolecall.now()
        UNION ALL
        SELECT heartbeat_at + make_interval(secs => ttl) FROM rolecall.task WHERE owner IS NOT NULL
    ) AS times (at) WHERE at > rolecall.now()"""
CLAIM: str = f"SELECT * FROM rolecall.claim({_places(13)})"
SETTLE: str = f"SELECT * FROM rolecall.settle({_places(13)})"
CHANGE: str = "SELECT * FROM rolecall.change($1, $2, $3, $4, $5)"
WAKE: str = "SELECT rolecall.wake()"
#: What of a lease says who holds it: a value of its own for each process.
HOLDER = ("machine_id", "boot_id", "pid_namespace", "pid", "pid_started", "unit", "sessions")


class Known(NamedTuple):
    """A task as it was last seen, and the version of its row."""

    task: dict[str, Any]
    version: int


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
        own = {
            key: value
            for key, value in rows.columns(self.tasks.every[index].task).items()
            if key in {"status", "attempts", "free_at"}
        }
        ours = rows.plainly(self.changes.get(index, {}))
        return {**own, "place": place, "version": version, "ours": ours}


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
        waits = Waits(self.session)
        self.memory = Memory(config, self.clock, self._leases, self._is_live, waits)
        self._problems: tuple[str, ...] = ()
        self._passed: tuple[str, ...] = ()  # what stood in the way of the last claim
        self._known: dict[tuple[str, int], Known] = {}
        #: The settling writes that were sent and not answered.
        self._sent: dict[tuple[str, int, str], Sent] = {}
        #: Claims of this process that came back to it, the last ones.
        self._mine: dict[tuple[str, int], None] = {}
        self._in_doubt = False  # a claim's answer was lost: it may have been won
        self._expired: set[tuple[str, int]] = set()

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

    def rest(self) -> None:
        """Nothing is kept that only the next look would need."""

    def rehearse(self) -> None:
        """Nothing: whether the server takes writes is told by the next one."""

    # --- looking ---------------------------------------------------------------------------------

    def watch(self, roles: Collection[str]) -> Watch:
        """What wakes a worker of these roles: the socket of the one connection."""
        rules = [self.machine.roles[name] for name in roles if name in self.machine.roles]
        statuses = {status for each in rules for status in (*each.claims, each.holds)}
        return Watch(self.session, ["rolecall", *(f"rolecall.{each}" for each in statuses)])

    def signature(self) -> tuple[int, ...] | None:
        """Always the same: what changes is told on the connection, or seen at the next look."""
        return ()

    def snapshot(self, only: Collection[str] | None = None) -> Snapshot:
        """Everything, or single tasks, as they are now. Raises QueueUnreachable."""
        document, tasks, leases, _ = self._seen_now(only)
        limits = json.loads(document).get("wip_limits")
        live = {name: lease for name, lease in leases.items() if not self.gone(lease)}
        barred = {name: self._barred(lease) for name, lease in leases.items() if name not in live}
        return Snapshot(tasks, limits, live, barred)

    def _seen_now(
        self, only: Collection[str] | None = None
    ) -> tuple[str, Tasks, dict[str, Lease], list[tuple[int, int]]]:
        """The document, the tasks, the leases by id, and each task's place and version."""
        if only is None:
            document, found = self._everything()
        else:
            names = [rows.plain(each) for each in only]
            ((document,),), found = self.session.calls(Call(DOCUMENT), Call(SINGLE, [names]))
        entries, _ = rows.together(rows.Row(*row[:4]) for row in found)
        tasks = Tasks(entries)
        leases = {row[6]: self._lease(row[6:]) for row in found if row[8] is not None}
        self._problems = tuple(tasks.problems)
        return document, tasks, leases, [(row[0], row[4]) for row in found]

    def _everything(self) -> tuple[str, list[list[Any]]]:
        """The document and the rows of all tasks, of one moment."""
        found: list[list[Any]] = []
        with self.session.transaction():
            self.session.call("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            ((document,),) = self.session.call(DOCUMENT)
            while more := self.session.call(EVERYTHING, [found[-1][0] if found else 0]):
                found += more
        return document, found

    def count(self, statuses: Collection[str]) -> int:
        """How many tasks are in any of these statuses. Raises QueueUnreachable."""
        query = "SELECT count(*) FROM rolecall.task WHERE status = ANY ($1) AND id IS NOT NULL"
        ((many,),) = self.session.call(query, [list(statuses)])
        return int(many)

    def has_children(self, task_id: str) -> bool:
        """Whether any task names this one as its parent, or stands in it."""
        query = "SELECT FROM rolecall.family WHERE parent = $1 LIMIT 1"
        return bool(self.session.call(query, [rows.plain(task_id)]))

    def _barred(self, lease: Lease) -> str:
        who = "a worker" if lease.role in self.machine.roles else f"a worker of {lease.role}"
        told = "its attempt died" if self.gone(lease) == "died" else "its lease ran out"
        return f"{told}: the next look of {who} recovers it"

    def problems(self) -> tuple[str, ...]:
        """What was found wrong with single tasks at the last look, for a person."""
        return (*self._problems, *self._passed)

    def _lease(self, row: Sequence[Any]) -> Lease:
        name, role, owner, started, ttl, beat, token, attempts, host, holder, wish, by, late = row
        who = (name, token)
        (self._expired.add if late else self._expired.discard)(who)
        return Lease(
            task_id=name,
            role=role,
            owner=owner,
            started_at=started,
            ttl_seconds=ttl,
            heartbeat_at=format_time(beat),
            token=token,
            attempt=attempts + 1,
            host=host,
            wish=wish or "",
            wished_by=by or "",
            **{**holder, "sessions": tuple(holder.get("sessions", ()))},
        )

    def _leases(self) -> dict[str, Lease]:
        """All there are, live or not, by task id."""
        return self._read(self.session.call(ALL_LEASES))

    def _read(self, found: Sequence[Sequence[Any]]) -> dict[str, Lease]:
        self._expired.clear()
        return {row[0]: self._lease(row) for row in found}

    def read_lease(self, task_id: str) -> Lease | None:
        """The task's lease; None where there is none."""
        found = self.session.call(f"{ALL_LEASES} AND id = $1", [task_id])
        return self._lease(found[0]) if found else None

    def gone(self, lease: Lease) -> str:
        """Whether the lease's attempt is gone, and why; "" while it is live.

        By this host's processes where it is one of them, else as the server's clock had it when the
        lease was read.
        """
        me = self.me
        if is_here(lease, me) and (
            lease.boot_id != me.boot_id or not process.is_alive(lease.pid, lease.pid_started)
        ):
            return "died"
        return "expired" if (lease.task_id, lease.token) in self._expired else ""

    def _is_live(self, lease: Lease) -> bool:
        return not self.gone(lease)

    def live(self, role: str | None = None, host: str | None = None) -> list[Lease]:
        """The live leases (of a role, of a host)."""
        return [
            lease
            for lease in self._leases().values()
            if role in (None, lease.role) and host in (None, lease.host) and not self.gone(lease)
        ]

    def next_time(self, role: str, now: float) -> float | None:
        """When to look again though nothing changes: the end of a wait, or of a lease."""
        rules = self.machine.roles[role]
        ahead = self.clock() - now
        times = [pause.until - ahead for pause in self.memory.pauses(role) if pause.until]
        ((soonest,),) = self.session.call(SOONEST, [list(rules.claims)])
        if soonest is not None:
            times.append(now + soonest)
        returned = now + self.session.since + RETURN - time.monotonic()
        times.append(returned)
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
        self._passed = ()
        if dry_run:
            if not self._may(role):
                return None
            with self.session.transaction(undone=True):
                (found,) = self.session.call(CLAIM, self._asked(role, owner, ignore_wip, ()))
                claim = self._won(role, owner, found)
            return claim and claim._replace(moves=())
        self._end_doubt()
        with self._budget(role):
            if not self._may(role):
                return None
            return self._claim(role, owner, ignore_wip=ignore_wip)

    def _claim(self, role: str, owner: str, *, ignore_wip: bool) -> Claim | None:
        passed: list[str] = []  # those whose files are in the way, or whose own budget is spent
        while True:
            self._in_doubt = True
            (found,) = self.session.call(CLAIM, self._asked(role, owner, ignore_wip, passed))
            claim = self._won(role, owner, found)
            if claim is None:
                self._in_doubt = False
                self._tell(_moved(found[8]))
                if found[8]:
                    self.session.call(WAKE)
                return None
            self._own(claim.lease)
            self._in_doubt = False
            try:
                if found[8]:
                    self.session.call(WAKE)
                prepared = self._prepared(claim)
            except BaseException as error:
                self._tell(claim.moves[:-1])
                self._put_back(claim.lease)
                passing = isinstance(error, QueueUnreadable | durable.DiskError)
                if passing or not isinstance(error, RolecallError):
                    raise
                self._passed = (*self._passed, str(error))
                passed.append(claim.lease.task_id)
                continue
            self._tell(prepared.moves)
            return prepared

    def _asked(self, role: str, owner: str, ignore_wip: bool, passed: Sequence[str]) -> list[Any]:  # noqa: FBT001  # passed on
        rules, own = self.machine.roles[role], self.config.roles[role]
        return [
            role,
            list(rules.claims),
            rules.holds,
            rules.wip_limit,
            own.slots,
            owner,
            self.me.host,
            own.lease_ttl,
            self._holder(self.me),
            list(passed),
            ignore_wip,
            self.machine.unblock,
            self.machine.close_stories,
        ]

    @staticmethod
    def _holder(me: Identity, unit: str = "", sessions: Sequence[int] = ()) -> str:
        values = {**me._asdict(), "unit": unit, "sessions": list(sessions)}
        return json.dumps({key: values[key] for key in HOLDER})

    def _won(self, role: str, owner: str, found: Sequence[Any] | None) -> Claim | None:
        """What the server's answer to a claim says; its folder is not made yet."""
        if found is None or found[1] is None:
            return None
        place, document, ours, token, version, attempt, started, source, moves, moment = found
        (entry, *_), _ = rows.together(self._family(place, document, ours))
        task = entry.task
        me, own = self.me, self.config.roles[role]
        lease = Lease(
            task_id=task["id"],
            role=role,
            owner=owner,
            started_at=started,
            ttl_seconds=own.lease_ttl,
            heartbeat_at=format_time(moment),
            token=token,
            attempt=attempt,
            **me._asdict(),
        )
        self._keep(lease, Known(task, version))
        move = Move(
            lease.task_id,
            role,
            source,
            self.machine.roles[role].holds,
            "claimed",
            attempt=attempt,
            token=token,
        )
        return Claim(lease, task, "", (*_moved(moves), move))

    def _family(self, place: int, document: str, ours: dict[str, Any]) -> list[rows.Row]:
        """The row and, where it may have subtasks, theirs."""
        first = rows.Row(place, None, document, ours)
        if '"subtasks"' not in document:
            return [first]
        query: str = f"""WITH RECURSIVE family AS (
            SELECT {TASK} FROM rolecall.task WHERE parent = $1
            UNION ALL SELECT {TASK} FROM rolecall.task JOIN family ON task.parent = family.place
            ) SELECT * FROM family ORDER BY place"""
        return [first, *(rows.Row(*row) for row in self.session.call(query, [place]))]

    def _keep(self, lease: Lease, known: Known) -> None:
        if len(self._known) >= KNOWN:
            self._known.pop(next(iter(self._known)))
        self._known[lease.task_id, lease.token] = known

    def _prepared(self, claim: Claim) -> Claim:
        """The claim with its run folder, under a token that no earlier attempt here has had."""
        lease, runs = claim.lease, self.config.paths.runs
        largest = folder.largest(runs, lease.task_id)
        if largest >= lease.token:
            raised = self.session.call(
                "SELECT * FROM rolecall.raise_token($1, $2, $3, $4)",
                [lease.task_id, lease.token, lease.started_at, largest + 1],
            )
            if not raised:
                raise self._lost(lease)
            _, ours, version = raised[0]
            lease = lease._replace(token=largest + 1)
            task = {**claim.task, **ours}
            self._keep(lease, Known(task, version))
            self._own(lease)
            moves = (*claim.moves[:-1], claim.moves[-1]._replace(token=lease.token))
            claim = claim._replace(lease=lease, task=task, moves=moves)
        role = self.config.roles[lease.role]
        if self.memory.budgets.apply(role):
            books = self.memory.budgets.books(self._leases())
            if bar := self.memory.budgets.bar_task(role, lease.task_id, books):
                raise RolecallError(bar.why)
            self.memory.budgets.reserve(lease)
        run_dir, _ = folder.make(runs, lease.task_id, lease.token)
        return claim._replace(run_dir=run_dir)

    def _own(self, lease: Lease) -> None:
        if len(self._mine) >= OWN:
            del self._mine[next(iter(self._mine))]
        self._mine[lease.task_id, lease.token] = None

    def _put_back(self, lease: Lease) -> None:
        """As if it had not been claimed; where that cannot be told, the next claim sees to it."""
        self._in_doubt = True
        for who in [who for who in self._mine if who[0] == lease.task_id]:
            del self._mine[who]
        with contextlib.suppress(RolecallError):
            self._end_doubt()

    def _end_doubt(self) -> None:
        """Give back what this process has won and does not know of: the answer never came."""
        if not self._in_doubt:
            return
        me = self.me
        for lease in self._leases().values():
            mine = is_here(lease, me) and (lease.pid, lease.pid_started) == (me.pid, me.pid_started)
            if mine and (lease.task_id, lease.token) not in self._mine:
                with contextlib.suppress(LeaseLost):
                    _, *moves = self._settle(lease, Result(Outcome.RELEASED), "own")
                    self._tell(moves)  # nobody was told of the claim
        self._in_doubt = False

    @contextlib.contextmanager
    def _budget(self, role: str) -> Iterator[None]:
        """One claim at a time on this host, where a budget is counted."""
        if self.memory.budgets.apply(self.config.roles[role]):
            with self._local_lock():
                yield
        else:
            yield

    def _local_lock(self) -> contextlib.AbstractContextManager[int]:
        return lock.hold(os.path.join(self.config.paths.locks, "queue.lock"))

    def _may(self, name: str) -> bool:
        """Whether nothing that is remembered of the role keeps it from claiming."""
        role = self.config.roles[name]
        broken = self.memory.breaker(name)
        if broken.until:
            here = len(self.live(name, self.me.host))
            if breakers.is_open(broken, role.breaker, self.clock(), here):
                return False
        if role.credential is not None and self.memory.throttle(role).until > self.clock():
            return False
        if not self.memory.budgets.apply(role):
            return True
        return self.memory.budgets.bar(role, self.memory.budgets.books(self._leases())) is None

    # --- the lease of an attempt -----------------------------------------------------------------

    def take_over(self, lease: Lease, me: Identity, unit: str = "") -> Lease:
        """Make the lease the attempt's own. Raises LeaseLost.

        From now on no call keeps the attempt from watching its agent for long.
        """
        self.session.answer = min(ANSWER, lease.ttl_seconds * SHARE)
        found = self.session.call(
            "SELECT * FROM rolecall.take_over($1, $2, $3, $4, $5, $6)",
            [
                lease.task_id,
                lease.token,
                lease.started_at,
                self._holder(me, unit, lease.sessions),
                lease.pid,
                lease.pid_started,
            ],
        )
        if not found:
            raise self._lost(lease)
        document, ours, version, wish, wished_by, moment = found[0]
        self._keep(lease, Known({**json.loads(document), **ours}, version))
        self._ahead = moment - time.time()
        return lease._replace(
            **me._asdict(),
            unit=unit,
            heartbeat_at=format_time(moment),
            wish=wish or "",
            wished_by=wished_by or "",
        )

    def renew(self, lease: Lease, sessions: Sequence[int] = ()) -> Lease:
        """Prolong the lease by its time to live. Raises LeaseLost."""
        found = self.session.call(
            "SELECT * FROM rolecall.renew($1, $2, $3, $4)",
            [lease.task_id, lease.token, lease.started_at, json.dumps(list(sessions))],
        )
        if not found:
            if self._is_written((lease.task_id, lease.token, lease.started_at)):
                return lease  # settle() will find it so
            raise self._lost(lease)
        holder, wish, wished_by, moment = found[0]
        self._ahead = moment - time.time()
        return lease._replace(
            heartbeat_at=format_time(moment),
            sessions=tuple(holder["sessions"]),
            wish=wish or "",
            wished_by=wished_by or "",
        )

    def _lost(self, lease: Lease) -> LeaseLost:
        now = self.read_lease(lease.task_id)
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
        over = self._charge(lease, result)
        if over:
            result = result._replace(note="; ".join(filter(None, [result.note, over])))
        if self._latest(lease.task_id) > lease.token:
            raise LeaseLost(f"{lease.task_id} had a later attempt than that of {lease.token}")
        moves = self._settle(lease, result, "own")
        self._tell(moves)
        return moves

    def _charge(self, lease: Lease, result: Result) -> str:
        """Write down what the attempt has spent, where anybody counts it or it tells."""
        if not (result.usage or self.memory.budgets.apply(self.config.roles[lease.role])):
            return ""
        with self._local_lock():
            return self.memory.budgets.charge(lease, result)

    def _latest(self, task_id: str) -> int:
        """The token of the task's last attempt here: a run folder knows what a row has lost."""
        try:
            return folder.largest(self.config.paths.runs, task_id)
        except RolecallError:  # an agent has put something in its place: the task's token decides
            return 0

    def _settle(self, lease: Lease, result: Result, how: str) -> tuple[Move, ...]:
        """Send it under one name until an answer comes: what has that name is written once."""
        who = (lease.task_id, lease.token, lease.started_at)
        name = self._sent.setdefault(who, Sent(os.urandom(8).hex())).name
        for _ in range(RESTARTS):
            try:
                draft, entry, lease = self._drafted(lease, result)
            except LeaseLost:
                if not self._is_written(who):
                    self._forget(who)
                    raise
                return self._forget(who).moves
            move = settling.conclude(
                draft,
                entry,
                lease,
                result,
                machine=self.machine,
                now=self.clock(),
                random=self.random,
                spent=lambda role: self.memory.spent(role, who[:1]).get(who[0], ""),
            )
            self._sent[who] = Sent(name, tuple(draft.moves))
            became, moves = self._send(lease, name, how, draft, entry)
            if became == "changed":
                self._known.pop(who[:2], None)
                continue
            sent = self._forget(who)
            if became.startswith("lost"):
                raise LeaseLost(f"{lease.task_id} {became.partition(': ')[2]}")
            if self.memory.minds(move):
                with self._local_lock():
                    self.memory.count(move, result)
            return (*sent.moves, *_moved(moves))
        raise RolecallError(f"{lease.task_id} was changed {RESTARTS} times while it was settled")

    def _is_written(self, who: tuple[str, int, str]) -> bool:
        """Whether a settling write of ours is there whose answer never came."""
        name = self._sent[who].name if who in self._sent else None
        query = "SELECT FROM rolecall.task WHERE id = $1 AND settled = $2"
        return bool(name and self.session.call(query, [who[0], name]))

    def _forget(self, who: tuple[str, int, str]) -> Sent:
        self._known.pop(who[:2], None)
        self._mine.pop(who[:2], None)
        return self._sent.pop(who)

    def _drafted(self, lease: Lease, result: Result) -> tuple[Draft, Entry, Lease]:
        """What to change, the task in it, and the lease with what a person wishes by now."""
        known = self._known.get((lease.task_id, lease.token))
        if result.add_tasks:  # they have to fit into the whole queue
            _, tasks, leases, rows_ = self._seen_now()
            draft = Draft(tasks, leases, rows_)
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
        self._keep(lease, known)
        return known, lease._replace(wish=wish or "", wished_by=by or "")

    def _send(
        self, lease: Lease, name: str, how: str, draft: Draft, entry: Entry
    ) -> tuple[str, Any]:
        new = rows.apart(draft.new)
        values = [
            lease.task_id,
            lease.token,
            lease.started_at,
            name,
            draft.rows[entry.index][1],
            how,
            lease.pid,
            json.dumps(draft.row(entry.index)),
            json.dumps(new.facts),
            new.documents,
            self.machine.roles[lease.role].wip_limit,
            self.machine.unblock,
            self.machine.close_stories,
        ]
        try:
            ((became, moves),), _ = self.session.calls(Call(SETTLE, values), Call(WAKE))
        except Between:  # an id that is added here has come from elsewhere meanwhile
            return "changed", []
        return became, moves

    def abandoned(self) -> list[Lease]:
        """None: whoever moves a held task ends its lease in the same write."""
        return []

    # --- recovering ------------------------------------------------------------------------------

    def stale(self) -> list[Stale]:
        """The leases whose attempts are gone, and held tasks of ours without a lease."""
        holds = sorted({rules.holds for rules in self.machine.roles.values()})
        leased, held, strange = self.session.calls(
            Call(ALL_LEASES),
            Call(HELD, [holds]),
            Call("SELECT problem FROM rolecall.task WHERE id IS NULL ORDER BY place LIMIT 20"),
        )
        self._problems = tuple(row[0] for row in strange)
        # Whoever was away like us has a result in hand, perhaps, and is to write it first.
        returned = self.session.since + RETURN
        found = [
            Stale(lease, name, why)
            for name, lease in sorted(self._read(leased).items())
            if lease.role in self.machine.roles
            and (why := self.gone(lease))
            and not (why == "expired" and time.monotonic() < returned)
        ]
        for row in held:
            task = {**json.loads(row[2]), **row[3]}
            if rebuilt := staleness.rebuilt(task, self.machine):
                found.append(Stale(rebuilt, rebuilt.task_id, "vanished"))
        return found

    def recover(self, stale: Stale) -> tuple[Move, ...]:
        """Settle for an attempt that is gone; its process tree has been killed before.

        What came back to life since, or was settled by somebody else, is left alone.
        """
        lease, why = stale.lease, stale.why
        notes = {"died": "its process died", "expired": "its lease ran out"}
        if why == "vanished":
            result = Result(Outcome.RELEASED, "its lease is gone")
        else:
            now = self.read_lease(stale.task_id)
            if now is None or (now.token, now.started_at) != (lease.token, lease.started_at):
                return ()
            lease, why = now, self.gone(now)
            if not why:
                return ()
            result = Result(Outcome.ERROR, notes[why])
        self._charge(lease, result)
        try:
            moves = self._settle(lease, result, why)
        except LeaseLost:
            return ()
        self._tell(moves)
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

        return self.update(change)

    def update(
        self, change: Callable[[Update], None], only: Collection[str] | None = None
    ) -> tuple[Move, ...]:
        """Make a person's change of the queue, on what it holds then.

        ``change`` may be called again, on newer tasks. What it raises leaves all as it was.
        """
        for _ in range(RESTARTS):
            _, tasks, leases, places = self._seen_now(only)
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
                ((became, moves),), _ = self.session.calls(Call(CHANGE, values), Call(WAKE))
            except Between:
                continue
            if became != "changed":
                told = (*draft.moves, *_moved(moves))
                self._tell(told)
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
        document, found = self._everything()
        _, tops = rows.together(rows.Row(*row[:4]) for row in found)
        made = rows.whole(document, tops)
        return (rows.text(made, indent=2) + "\n").encode()

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
        self._tell(incoming.moves)
        self.session.call(WAKE)
        return True

    # --- telling ---------------------------------------------------------------------------------

    def _tell(self, moves: Sequence[Move]) -> None:
        for move in moves:
            if self.teller:
                self.teller.move(move)

    # --- what a role waits for -------------------------------------------------------------------

    def breaker(self, role: str) -> breakers.State:
        """What is known of the role's quick failures on this host."""
        return self.memory.breaker(role)

    def pauses(self, role: str) -> tuple[Pause, ...]:
        """Everything for which the role claims nothing now."""
        return self.memory.pauses(role)

    def spent(self, role: str, task_ids: Collection[str]) -> dict[str, str]:
        """Those of the tasks that their own budget lets the role not claim, and why."""
        return self.memory.spent(role, task_ids)

    def resume(self, role: str) -> None:
        """A person has done something about it: what a person is waited for is forgotten."""
        self.memory.resume(role)

    def end_wait(self, credential: str) -> None:
        """Forget that a credential met its limit: a person wants it tried."""
        self.memory.end_wait(credential)


class Waits(NamedTuple):
    """The waits of credentials, kept for all hosts of the queue."""

    session: Session

    def read(self, credential: str) -> throttle.State:
        """What is known of the credential."""
        query = "SELECT value FROM rolecall.note WHERE name = $1"
        found = self.session.call(query, [rows.plain(credential)])
        return throttle.of_note(found[0][0]) if found else throttle.State()

    def write(self, credential: str, state: throttle.State) -> None:
        """Remember it."""
        note = throttle.note_of(state)
        values = [rows.plain(credential), note and json.dumps(rows.plainly(note))]
        self.session.call("SELECT rolecall.remember($1, $2)", values)


class Watch:
    """What wakes a worker: the socket of its queue's own connection."""

    def __init__(self, session: Session, channels: Sequence[str]) -> None:
        self.session = session
        session.listen(channels)

    @property
    def fd(self) -> int:
        """Readable when something was told; -1 while there is no connection."""
        return self.session.fd

    def renew(self) -> None:
        """Nothing: the session listens on each connection that it makes."""

    def changed(self) -> bool:
        """Whether something was told since the last call. Never blocks."""
        return self.session.told()

    def close(self) -> None:
        """Watch no more."""
        self.session.drop()


def _moved(moves: Sequence[dict[str, str]]) -> tuple[Move, ...]:
    return tuple(
        Move(each["id"], "", each["status"], each["target"], each["why"]) for each in moves
    )
