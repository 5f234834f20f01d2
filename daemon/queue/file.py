"""The queue as a JSON file, with its leases beside it, for the workers of one host.

Every write of the queue holds one lock; a lease's renewal holds that lease's own lock only. Where
both are needed, the queue's comes first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from daemon import lifecycle, process
from daemon.config import Config
from daemon.errors import LeaseLost, QueueUnreadable, RolecallError
from daemon.index import Tasks
from daemon.model import Claim, Lease, Move, Outcome, Result, format_time
from daemon.process import Identity
from daemon.queue import Snapshot, Stale, durable, folder, intake, lock, settling, staleness
from daemon.queue import lease as leases
from daemon.queue.claiming import Claims
from daemon.queue.ledger import Ledger
from daemon.queue.outbox import Outbox, Teller
from daemon.queue.text import RESTARTS, FileUpdate, Text, restless
from daemon.queue.update import Update
from daemon.wake import Watch

if TYPE_CHECKING:
    from daemon.queue.transfer import Imported


def chance() -> float:
    """A float in [0, 1); importing ``random`` would be felt at the start of every attempt."""
    return int.from_bytes(os.urandom(6)) / 2**48


class FileQueue:
    """The queue in a JSON file. ``teller`` tells each state change, while the lock is held."""

    def __init__(  # noqa: PLR0913  # what it acts on is passed in, so that tests patch nothing
        self,
        config: Config,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[], float] = chance,
        me: Identity | None = None,
        boottime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        teller: Teller | None = None,
    ) -> None:
        self.config, self.machine = config, config.machine
        self.clock, self.random, self.boottime = clock, random, boottime
        self._me = me
        self.outbox = Outbox(teller)
        self.ledger = Ledger(config, lambda: self.me, clock, boottime, self.outbox)
        self.leases, self.memory = self.ledger.leases, self.ledger.memory
        #: What a settling write moved that is in its place, and may not last.
        self._unsynced: dict[tuple[str, int], tuple[Move, ...]] = {}

    @property
    def me(self) -> Identity:
        """Who claims: this process, also after a fork."""
        return self._me or process.identity()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The lock that every write of the queue holds."""
        path = os.path.join(self.config.paths.locks, "queue.lock")
        with lock.hold(path) as fd, self.outbox.over(fd):
            yield

    # --- as a whole ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The file's path."""
        return self.config.queue_file

    def exists(self) -> bool:
        """Whether there is such a file."""
        return os.path.exists(self.config.queue_file)

    def watch(self, roles: Collection[str]) -> Watch:  # noqa: ARG002  # a file tells all of them
        """What tells of changes of the file, and of leases that end."""
        return Watch(self.config.queue_file, self.config.paths.leases)

    def close(self) -> None:
        """Nothing of it is open between two calls."""

    def export(self) -> bytes:
        """The queue as it is, every byte. Raises RolecallError where there is none."""
        from daemon.queue import whole  # noqa: PLC0415  # only people ask for it

        return whole.export(self)

    def load(self, data: bytes, name: str, *, replace: bool = False) -> Imported:
        """Take the tasks of another queue's text in; all of them, or none where one is refused."""
        from daemon.queue import whole  # noqa: PLC0415  # as above

        return whole.load(self, data, name, replace=replace)

    # --- looking ---------------------------------------------------------------------------------

    def snapshot(self, only: Collection[str] | None = None) -> Snapshot:  # noqa: ARG002  # read as a whole
        """Everything as it is now, without a lock. Raises QueueUnreadable."""
        text = self.ledger.read()
        tasks = Tasks(()) if text is None else text.tasks
        limits = None if text is None else text.document.root.get("wip_limits")
        found = self.ledger.every(tasks)
        return Snapshot(tasks, limits, self.ledger.live(found), self.ledger.barred(found))

    def count(self, statuses: Collection[str]) -> int:
        """How many tasks are in any of these statuses. Raises QueueUnreadable."""
        text = self.ledger.read()
        return 0 if text is None else len(text.tasks.in_status(*statuses))

    def last_number(self) -> int:
        """The largest number in an id of ours (T001, T002, ...); 0 where there is none."""
        text = self.ledger.read()
        return max(map(intake.number_of, text.tasks.by_id), default=0) if text else 0

    def has_children(self, task_id: str) -> bool:
        """Whether any task names this one as its parent, or stands in it."""
        text = self.ledger.read()
        return text is not None and bool(lifecycle.children(text.tasks, {task_id})[task_id])

    def problems(self) -> tuple[str, ...]:
        """What was found wrong with single tasks and leases at the last look, for a person."""
        return self.ledger.problems

    def signature(self) -> tuple[int, ...] | None:
        """Inode, size and mtime of the queue; None where there is none."""
        try:
            found = os.stat(self.config.queue_file)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    @contextmanager
    def look(self) -> Iterator[None]:
        """One look of a worker: what only the next one would need is not kept beyond it."""
        yield
        self.ledger.rest()

    def live(self, role: str | None = None, host: str | None = None) -> list[Lease]:
        """The live leases (of a role, of a host)."""
        return [
            lease
            for lease in self.ledger.live(self.leases.every()).values()
            if role in (None, lease.role) and host in (None, lease.host)
        ]

    def next_time(self, role: str, now: float) -> float | None:
        """When to look again though nothing changes: the end of a wait, or of a lease."""
        text = self.ledger.read()
        times: list[float | None] = [pause.until for pause in self.memory.pauses(role)]
        if text is not None:
            rules, tasks = self.ledger.rules(role), text.tasks
            times.append(lifecycle.next_time(tasks, rules, now))
            waiting = tasks.in_status(*rules.claims)
            times += [staleness.hand_expiry(entry.task, rules, now) for entry in waiting]
        times += [
            now + leases.seconds_left(lease, self.me, now, self.boottime())
            for lease in self.ledger.live(self.leases.every()).values()
        ]
        return min((each for each in times if each is not None and each > now), default=None)

    # --- claiming --------------------------------------------------------------------------------

    def claim(
        self, role: str, owner: str, *, ignore_wip: bool = False, dry_run: bool = False
    ) -> Claim | None:
        """Win the role's next task, or None. A dry run writes nothing."""
        claims = Claims(self.ledger, self.ledger.rules(role), owner, ignore_wip=ignore_wip)
        # Most looks find nothing to do: they take no lock.
        update = claims.begin()
        if update is None:
            return None
        if dry_run:
            return claims.would_win(update)
        if not (update.changes or claims.can_win(update)):
            return None
        with self.lock():
            for _ in range(RESTARTS):
                # What another's claim seemed to hold without the lock may be taken back by now.
                update = claims.begin()
                if update is None:
                    return None
                won = claims.win(update)
                if claims.written(update, won):
                    break
            else:
                raise restless(self.config.queue_file)
        return claims.lasting(update, won)

    # --- the lease of an attempt -----------------------------------------------------------------

    def take_over(self, lease: Lease, me: Identity, unit: str = "") -> Lease:
        """Make the lease the attempt's own. Raises LeaseLost."""
        with self.leases.lock(lease.task_id):
            now = self.leases.own(lease)
            known = ((lease.pid, lease.pid_started), (me.pid, me.pid_started))
            if (now.pid, now.pid_started) not in known:
                raise LeaseLost(f"the lease of {lease.task_id} is held by process {now.pid}")
            return self._beat(now._replace(**me._asdict(), unit=unit))

    def renew(self, lease: Lease, sessions: Sequence[int] = ()) -> Lease:
        """Prolong the lease by its time to live. Raises LeaseLost."""
        with self.leases.lock(lease.task_id):
            now = self.leases.own(lease)
            return self._beat(now._replace(sessions=tuple(sessions) or now.sessions))

    def _beat(self, lease: Lease) -> Lease:
        lease = lease._replace(
            heartbeat_at=format_time(self.clock()), heartbeat_boottime=self.boottime()
        )
        self.leases.rewrite(lease)
        return lease

    # --- settling --------------------------------------------------------------------------------

    def settle(self, lease: Lease, result: Result) -> tuple[Move, ...]:
        """Write what the attempt came to and end the lease. Raises LeaseLost."""
        self.ledger.rules(lease.role)
        with self.lock():
            if over := self.memory.budgets.charge(lease, result):
                result = result._replace(note="; ".join(filter(None, [result.note, over])))
            if self._latest(lease.task_id) > lease.token:
                self.leases.remove(lease)
                raise LeaseLost(f"{lease.task_id} had a later attempt than that of {lease.token}")
            update = self._settle(lease, result)
        return self._settled(lease, update)

    def _latest(self, task_id: str) -> int:
        """The token of the task's last attempt: run folders remember what an old buffer forgot."""
        try:
            return folder.largest(self.config.paths.runs, task_id)
        except RolecallError:  # an agent has put something in its place: the task's token decides
            return 0

    def _settle(self, lease: Lease, result: Result) -> FileUpdate:
        """Put the result into the queue, under the lock."""
        who = (lease.task_id, lease.token)
        for _ in range(RESTARTS):
            update = self.ledger.begin(self._there())
            now = update.found.leases.get(lease.task_id)
            try:
                entry = settling.held(update, lease, now, self.machine)
            except LeaseLost:
                if who not in self._unsynced:
                    self.leases.remove(lease)
                    raise
                # It is our own settling write that we find: written anew, it may be synced.
                if update.write(sync=False):
                    update.moves = [*self._unsynced[who], *update.moves]
                    return update
                continue
            move = settling.conclude(
                update,
                entry,
                now if now and now.token == lease.token else lease,
                result,
                machine=self.machine,
                now=self.clock(),
                random=self.random,
                spent=lambda role: self.memory.spent(role, [lease.task_id]).get(lease.task_id, ""),
            )
            if update.write(sync=False):
                self.memory.count(move, result)
                return update
        raise restless(self.config.queue_file)

    def _settled(self, lease: Lease, update: FileUpdate) -> tuple[Move, ...]:
        """The queue first, then the lease. Meanwhile others may write: they build on this."""
        moves, who = tuple(update.moves), (lease.task_id, lease.token)
        try:
            update.sync()
        except RolecallError:
            self._unsynced[who] = moves
            raise
        self._unsynced.pop(who, None)
        self.leases.remove(lease)
        return moves

    def read_lease(self, task_id: str) -> Lease | None:
        """What the task's lease file says. Raises RolecallError where it cannot be used."""
        return self.leases.read(task_id)

    def ask(self, lease: Lease, wish: str, who: str) -> Lease:
        """The lease with a person's wish, written into its file, where that is there."""
        return self.leases.ask(lease, wish, who)

    def gone(self, lease: Lease) -> str:
        """Whether the lease's attempt is gone, and why; "" while it is live."""
        return self.ledger.gone(lease)

    def rehearse(self) -> None:
        """Write the queue aside, and no more. Raises DiskError where the disk takes no writes."""
        with self.lock():
            text = self.ledger.read()
            if text is not None:
                durable.drop(
                    durable.write_aside(text.path, text.data, like=text.found, sync=True).path
                )

    def _there(self) -> Text:
        text = self.ledger.read()
        if text is None:
            raise QueueUnreadable(
                "there is no queue",
                where=self.config.queue_file,
                hint=f"put it back, or make one: invoke init --workspace {self.config.workspace}",
            )
        return text

    def abandoned(self) -> list[Lease]:
        """The live leases of this host whose tasks a person has moved or removed."""
        text = self.ledger.read()
        if text is None:
            return []
        return [
            lease
            for lease in self.live(host=self.me.host)
            if staleness.is_abandoned(text.tasks, lease, self.machine)
        ]

    # --- recovering ------------------------------------------------------------------------------

    def stale(self) -> list[Stale]:
        """The leases whose attempts are gone, and held tasks of ours without a lease.

        Files that killed writers left half-way are removed.
        """
        if not self._stale() and not self._left():
            return []
        # Between the looks at queue and leases either may have changed: only the lock makes sure.
        with self.lock():
            for aside in self._left():
                durable.drop(aside)
            return self._stale()

    def _left(self) -> list[str]:
        """What killed writers left; while the lock is not held, a living one may be at it."""
        paths = [os.path.realpath(self.config.queue_file)]
        paths += self.memory.notes()
        return self.leases.left() + list(filter(os.path.lexists, map(durable.aside_of, paths)))

    def _stale(self) -> list[Stale]:
        text = self.ledger.read()
        if text is None:
            return []
        found = self.ledger.every(text.tasks)
        return staleness.find(text.tasks, found, self.machine, self.ledger.gone)

    def recover(self, stale: Stale) -> tuple[Move, ...]:
        """Settle for an attempt that is gone; its process tree has been killed before.

        What came back to life since, or was settled by somebody else, is left alone.
        """
        lease, notes = stale.lease, {"died": "its process died", "expired": "its lease ran out"}
        with self.lock():
            now = self.leases.read(stale.task_id)
            if stale.why == "vanished":
                if now is not None:
                    return ()
                result = Result(Outcome.RELEASED, "its lease file is gone")
            else:
                if now is None or now.token != lease.token or not self.ledger.gone(now):
                    return ()
                if not staleness.holds(self._there().tasks, now, self.machine):
                    # The run folder stays, an empty one too: the token is not given out again.
                    self.leases.remove(now)
                    return ()
                result = Result(Outcome.ERROR, notes.get(stale.why, "its attempt is gone"))
            self.memory.budgets.charge(lease, result)
            try:
                update = self._settle(lease, result)
            except LeaseLost:
                return ()
        return self._settled(lease, update)

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
        self,
        change: Callable[[Update], None],
        only: Collection[str] | None = None,  # noqa: ARG002  # read as a whole
    ) -> tuple[Move, ...]:
        """Make a person's change of the queue, under its lock, on what it holds then.

        ``change`` may be called again, on a newer text. What it raises leaves all as it was.
        """
        with self.lock():
            for _ in range(RESTARTS):
                update = self.ledger.begin(self._there())
                change(update)
                update.move_on(self.machine, self.clock())
                if not (update.changes or update.new) or update.write():
                    return tuple(update.moves)
        raise restless(self.config.queue_file)
