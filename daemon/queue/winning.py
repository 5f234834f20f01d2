"""A claim on the queue in a database: won there, prepared here, given back where that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.errors import LeaseLost, QueueUnreadable, RolecallError
from daemon.model import Claim, Lease, Move, Outcome, Result, format_time
from daemon.queue import breaker, durable, folder, rows
from daemon.queue.lease import is_here
from daemon.queue.tables import boottime, holder
from daemon.queue.writes import Known, moved

if TYPE_CHECKING:
    from daemon.queue.postgres import PostgresQueue

SCHEMA = 2  # the version whose ``claim`` is called here
OWN = 1000  # claims that are remembered as known to their process
CLAIM: str = """SELECT * FROM rolecall.claim(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"""


class Found(NamedTuple):
    """The server's answer to a claim; without a document, nothing was won."""

    place: int
    document: str | None
    ours: dict[str, Any]
    token: int
    version: int
    attempt: int
    started_at: str
    source: str
    moves: list[dict[str, str]]
    moment: float


class Winning:
    """The claims of one process. ``passed``: what stood in the way of the last one."""

    def __init__(self, queue: PostgresQueue) -> None:
        self.queue, self.session, self.tables = queue, queue.session, queue.tables
        self.machine, self.memory = queue.machine, queue.memory
        self.writes = queue.writes
        self.passed: tuple[str, ...] = ()
        #: Claims of this process that came back to it, the last ones.
        self._mine: dict[tuple[str, int], None] = {}
        self._claimed_at = 0.0  # of ``boottime``
        self._in_doubt = False  # a claim's answer was lost: it may have been won

    def claim(self, role: str, owner: str, *, ignore_wip: bool, dry_run: bool) -> Claim | None:
        """Win the role's next task, or None. A dry run writes nothing."""
        self.passed = ()
        if dry_run:
            if not self._may(role):
                return None
            with self.session.transaction(undone=True):
                claim = self._won(role, owner, self._ask(role, owner, ignore_wip, ()))
            return claim and claim._replace(moves=())
        self._end_doubt()
        with self._budget(role):
            return self._claim(role, owner, ignore_wip=ignore_wip) if self._may(role) else None

    def _claim(self, role: str, owner: str, *, ignore_wip: bool) -> Claim | None:
        passed: list[str] = []  # those whose files are in the way, or whose own budget is spent
        while True:
            self._in_doubt = True
            found = self._ask(role, owner, ignore_wip, passed)
            claim = self._won(role, owner, found)
            if claim is None:
                self._in_doubt = False
                self.queue.tell(moved(found.moves))
                return None
            self._own(claim.lease)
            self._in_doubt = False
            try:
                prepared = self._prepared(claim)
            except BaseException as error:
                self.queue.tell(claim.moves[:-1])
                self._put_back(claim.lease)
                passing = isinstance(error, QueueUnreadable | durable.DiskError)
                if passing or not isinstance(error, RolecallError):
                    raise
                self.passed = (*self.passed, str(error))
                passed.append(claim.lease.task_id)
                continue
            self.queue.tell(prepared.moves)
            return prepared

    def _ask(self, role: str, owner: str, ignore_wip: bool, passed: Sequence[str]) -> Found:  # noqa: FBT001  # passed on
        rules, own, me = self.machine.roles[role], self.queue.config.roles[role], self.queue.me
        self._claimed_at = boottime()
        values = [
            SCHEMA,
            role,
            rules.claims,
            rules.holds,
            rules.wip_limit,
            own.slots,
            owner,
            me.host,
            own.lease_ttl,
            holder(me, self._claimed_at),
            passed,
            ignore_wip,
            self.machine.unblock,
            self.machine.close_stories,
        ]
        return Found(*self.session.call(CLAIM, values)[0])

    def _won(self, role: str, owner: str, found: Found) -> Claim | None:
        """What the server's answer to a claim says; its folder is not made yet."""
        place, document, ours, token, version, attempt, started, source, moves, moment = found
        if document is None:
            return None
        (entry, *_), _ = rows.together(self.tables.family(place, document, ours))
        task = entry.task
        own = self.queue.config.roles[role]
        lease = Lease(
            task_id=task["id"],
            role=role,
            owner=owner,
            started_at=started,
            ttl_seconds=own.lease_ttl,
            heartbeat_at=format_time(moment),
            token=token,
            attempt=attempt,
            heartbeat_boottime=self._claimed_at,
            **self.queue.me._asdict(),
        )
        self.writes.keep(lease, Known(task, version))
        move = Move(
            lease.task_id,
            role,
            source,
            self.machine.roles[role].holds,
            "claimed",
            attempt=attempt,
            token=token,
        )
        return Claim(lease, task, "", (*moved(moves), move))

    def _prepared(self, claim: Claim) -> Claim:
        """The claim with its run folder, under a token that no earlier attempt here has had."""
        lease, runs = claim.lease, self.queue.config.paths.runs
        role, budgets = self.queue.config.roles[lease.role], self.memory.budgets
        counts = budgets.apply(role)
        if counts:
            books = budgets.books(self.tables.leases())
            if bar := budgets.bar_task(role, lease.task_id, books):
                raise RolecallError(bar.why)
        run_dir = folder.make_largest(runs, lease.task_id, lease.token)
        if run_dir is None:
            claim = self._raised(claim, 1 + folder.largest(runs, lease.task_id))
            run_dir, _ = folder.make(runs, lease.task_id, claim.lease.token)
        try:
            if counts:
                budgets.reserve(claim.lease)
        except BaseException:
            folder.remove(run_dir)
            raise
        return claim._replace(run_dir=run_dir)

    def _raised(self, claim: Claim, token: int) -> Claim:
        """The same claim under another token: an earlier attempt here has had that one."""
        lease = claim.lease
        raised = self.session.call(
            "SELECT * FROM rolecall.raise_token($1, $2, $3, $4)",
            [lease.task_id, lease.token, lease.started_at, token],
        )
        if not raised:
            raise self.queue.lost(lease)
        _, ours, version = raised[0]
        lease, task = lease._replace(token=token), {**claim.task, **ours}
        self.writes.keep(lease, Known(task, version))
        self._own(lease)
        moves = (*claim.moves[:-1], claim.moves[-1]._replace(token=token))
        return claim._replace(lease=lease, task=task, moves=moves)

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
        me = self.queue.me
        for lease in self.tables.leases().values():
            mine = is_here(lease, me) and (lease.pid, lease.pid_started) == (me.pid, me.pid_started)
            if mine and (lease.task_id, lease.token) not in self._mine:
                with contextlib.suppress(LeaseLost):
                    _, *moves = self.writes.settle(lease, Result(Outcome.RELEASED), "own")
                    self.queue.tell(moves)  # nobody was told of the claim
        self._in_doubt = False

    @contextlib.contextmanager
    def _budget(self, role: str) -> Iterator[None]:
        """One claim at a time on this host, where a budget is counted."""
        if self.memory.budgets.apply(self.queue.config.roles[role]):
            with self.writes.lock():
                yield
        else:
            yield

    def _may(self, name: str) -> bool:
        """Whether nothing that is remembered of the role keeps it from claiming."""
        role = self.queue.config.roles[name]
        broken = self.memory.breaker(name)
        if broken.until:
            here = len(self.tables.live(name, self.queue.me.host))
            if breaker.is_open(broken, role.breaker, self.queue.clock(), here):
                return False
        if role.credential is not None and self.memory.throttle(role).until > self.queue.clock():
            return False
        if not self.memory.budgets.apply(role):
            return True
        return (
            self.memory.budgets.bar(role, self.memory.budgets.books(self.tables.leases())) is None
        )
