"""What the queue's file and its leases say now, and the updates that begin from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from daemon import lifecycle
from daemon.config import Config
from daemon.errors import RolecallError
from daemon.index import Entry, Tasks
from daemon.lifecycle import Changes, Rules
from daemon.model import Lease, Move
from daemon.process import Identity
from daemon.queue import breaker, staleness
from daemon.queue import lease as leases
from daemon.queue.memory import Memory
from daemon.queue.outbox import Outbox
from daemon.queue.text import FileUpdate, Text

LARGE = 1024 * 1024  # bytes of a queue's text, which takes some six times as much in memory


class Ledger:
    """The files of one queue, and how to judge them: by these clocks, from this host."""

    def __init__(
        self,
        config: Config,
        me: Callable[[], Identity],
        clock: Callable[[], float],
        boottime: Callable[[], float],
        outbox: Outbox,
    ) -> None:
        self.config, self.machine, self.me = config, config.machine, me
        self.clock, self.boottime, self.outbox = clock, boottime, outbox
        self.leases = leases.Leases(config.paths.leases, config.paths.locks, clock)
        self.memory = Memory(
            config, clock, lambda: self.leases.every().leases, lambda lease: not self.gone(lease)
        )
        self.budgets = self.memory.budgets
        self.problems: tuple[str, ...] = ()
        self._last: Text | None = None  # what was read or written last

    def read(self) -> Text | None:
        """The queue as it is now; None where there is no file. Raises QueueUnreadable."""
        self._last = Text.read(self.config.queue_file, self._last)
        return self._last

    def _wrote(self, text: Text) -> None:
        self._last = text

    def rest(self) -> None:
        """Keep no large text in memory: nobody will look for a while."""
        if self._last is not None and len(self._last.data) > LARGE:
            self._last = None

    def every(self, tasks: Tasks) -> leases.Found:
        """All lease files; what is wrong with them and with single tasks is remembered."""
        found = self.leases.every()
        self.problems = (*tasks.problems, *found.broken.values(), *found.doubts.values())
        return found

    def barred(self, found: leases.Found) -> dict[str, str]:
        """Why no one may claim what has no live lease, by task id, for a person."""
        why = {
            name: f"barred by {self.leases.path(name)}: it cannot be used" for name in found.broken
        }
        for name, lease in found.leases.items():
            gone = self.gone(lease) if lease.token > 0 else ""
            if gone:
                ours = lease.role in self.machine.roles
                who = "a worker" if ours else f"a worker with the role {lease.role}"
                told = "its attempt died" if gone == "died" else "its lease ran out"
                why[name] = f"{told}: the next look of {who} recovers it"
        return why

    def gone(self, lease: Lease) -> str:
        """Whether the lease's attempt is gone, and why; "" while it is live."""
        return leases.gone(lease, self.me(), self.clock(), self.boottime())

    def live(self, found: leases.Found) -> dict[str, Lease]:
        """Those that are live, by task id."""
        return {name: lease for name, lease in found.leases.items() if not self.gone(lease)}

    def rules(self, role: str) -> Rules:
        """What the state machine needs of the role. Raises RolecallError if there is none."""
        try:
            return self.machine.roles[role]
        except KeyError:
            raise RolecallError(f"there is no role {role!r} in this config") from None

    def begin(self, text: Text) -> FileUpdate:
        """An update that restores what an old buffer undid and makes the automatic moves."""
        update = FileUpdate(text, self.every(text.tasks), self._wrote, self.outbox)
        for lease in self.live(update.found).values():
            self._restore(update, lease)
        update.move_on(self.machine, self.clock())
        return update

    def _restore(self, update: FileUpdate, lease: Lease) -> None:
        """Write a live lease's hold again, where an old buffer brought back what was before it."""
        entry, rules = update.tasks.by_id.get(lease.task_id), self.machine.roles.get(lease.role)
        if entry is None or rules is None:
            return
        if staleness.can_be_restored(entry.task, lease, self.machine):
            changes = lifecycle.claim(entry, rules, value(lease), lease.token, self.clock())
            source, why = str(entry.task["status"]), "its attempt still runs"
            update.change(entry, changes)
            move = Move(lease.task_id, lease.role, source, rules.holds, why, token=lease.token)
            update.moves.append(move)

    def ready(
        self, update: FileUpdate, rules: Rules, *, ignore_wip: bool
    ) -> Iterator[tuple[Entry, Lease | None]]:
        """What the role could claim now, each with the dead lease that it still has, if any."""
        tasks, found = update.tasks, update.found
        limit = lifecycle.wip_limit(update.text.document.root.get("wip_limits"), rules)
        if not ignore_wip and lifecycle.wip(tasks, rules) >= limit:
            return
        live, slots = self.live(found), self.config.roles[rules.name].slots
        mine = (rules.name, self.me().host)
        here = [each for each in live.values() if (each.role, each.host) == mine]
        if slots is not None and len(here) >= slots:
            return
        role = self.config.roles[rules.name]
        if breaker.is_open(self.memory.breaker(rules.name), role.breaker, self.clock(), len(here)):
            return
        if self.memory.throttle(role, live.values()).until > self.clock():
            return
        books = self.budgets.books(found.leases) if self.budgets.apply(role) else None
        if books and self.budgets.bar(role, books):
            return
        # A lease of ours bars the way until it is recovered: what is left of its tree comes first.
        taken = {name for name, lease in found.leases.items() if lease.token > 0}
        taken |= live.keys() | found.broken.keys()
        for entry in lifecycle.claimable(tasks, rules, self.clock(), taken):
            name = entry.task["id"]
            if books is None or not self.budgets.bar_task(role, name, books):
                yield entry, found.leases.get(name)


def value(lease: Lease) -> Changes:
    """What a held task says of its lease."""
    return {"owner": lease.owner, "token": lease.token, "started_at": lease.started_at}
