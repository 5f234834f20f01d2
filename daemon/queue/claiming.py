"""A claim on the file queue: what is won, what is prepared for it, and how that is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from daemon import lifecycle
from daemon.errors import RolecallError
from daemon.index import Entry
from daemon.lifecycle import Rules
from daemon.model import Claim, Lease, Move, format_time
from daemon.queue import durable, folder
from daemon.queue.ledger import Ledger, value
from daemon.queue.text import FileUpdate


class Won(NamedTuple):
    """What a claim prepared before the queue is written."""

    lease: Lease
    run_dir: str
    folders: list[str]  # that have to last before


class Claims:
    """The claims of one role in the name of one owner."""

    def __init__(self, ledger: Ledger, rules: Rules, owner: str, *, ignore_wip: bool) -> None:
        self.ledger, self.leases = ledger, ledger.leases
        self.rules, self.owner, self.ignore_wip = rules, owner, ignore_wip

    def begin(self) -> FileUpdate | None:
        """An update of the queue as it is now; None where there is no queue."""
        text = self.ledger.read()
        return None if text is None else self.ledger.begin(text)

    def _ready(self, update: FileUpdate) -> Iterator[tuple[Entry, Lease | None]]:
        return self.ledger.ready(update, self.rules, ignore_wip=self.ignore_wip)

    def can_win(self, update: FileUpdate) -> bool:
        """Whether there is a task to be claimed."""
        return next(self._ready(update), None) is not None

    def would_win(self, update: FileUpdate) -> Claim | None:
        """The claim that there would be; nothing is made for it."""
        for entry, _ in self._ready(update):
            return Claim(self._lease(entry, 0), dict(entry.task), "", ())
        return None

    def win(self, update: FileUpdate) -> Won | None:
        """Put a claim into the update. A task whose files are in the way is passed over."""
        for entry, old in self._ready(update):
            try:
                won = self._prepare(entry, old)
            except durable.DiskError:
                raise
            except RolecallError as error:
                self.ledger.problems = (*self.ledger.problems, str(error))
                continue
            lease, rules = won.lease, self.rules
            with self._or_taken_back(won):
                self.ledger.budgets.reserve(lease)
            source, now = str(entry.task["status"]), self.ledger.clock()
            update.change(entry, lifecycle.claim(entry, rules, value(lease), lease.token, now))
            move = Move(lease.task_id, rules.name, source, rules.holds, "claimed")
            update.moves.append(move._replace(attempt=lease.attempt, token=lease.token))
            return won
        return None

    def written(self, update: FileUpdate, won: Won | None) -> bool:
        """Write the update, behind what the claim prepared; take that back where it fails."""
        if not update.changes:
            return True
        with self._or_taken_back(won):
            written = update.write(won.folders if won else (), sync=False)
        if not written:
            self._take_back(won)
        return written

    def lasting(self, update: FileUpdate, won: Won | None) -> Claim | None:
        """Make the write last, which needs no lock; the claim, where one was won."""
        if update.changes:
            with self._or_taken_back(won):
                update.sync()
        if won is None:
            return None
        task = dict(update.text.tasks.by_id[won.lease.task_id].task)
        return Claim(won.lease, task, won.run_dir, tuple(update.moves))

    def _lease(self, entry: Entry, token: int) -> Lease:
        ledger, role = self.ledger, self.rules.name
        now = format_time(ledger.clock())
        return Lease(
            task_id=entry.task["id"],
            role=role,
            owner=self.owner,
            started_at=now,
            ttl_seconds=ledger.config.roles[role].lease_ttl,
            heartbeat_at=now,
            token=token,
            attempt=lifecycle.attempts_of(entry.task) + 1,
            **ledger.me()._asdict(),
            heartbeat_boottime=ledger.boottime(),
        )

    def _prepare(self, entry: Entry, old: Lease | None) -> Won:
        """The lease and the run folder of a claim."""
        task_id, runs = entry.task["id"], self.ledger.config.paths.runs
        known = (lifecycle.token_of(entry.task), old.token if old else 0)
        token = 1 + max(*known, folder.largest(runs, task_id))
        lease = self._lease(entry, token)
        with self.leases.lock(task_id):
            self.leases.write(lease, sync=True)
        try:
            run_dir, changed = folder.make(runs, task_id, token)
            return Won(lease, run_dir, [self.leases.folder, *changed])
        except BaseException:
            self.leases.remove(lease)
            raise

    @contextmanager
    def _or_taken_back(self, won: Won | None) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._take_back(won)
            raise

    def _take_back(self, won: Won | None) -> None:
        if won is not None:
            folder.remove(won.run_dir)
            self.leases.remove(won.lease)
