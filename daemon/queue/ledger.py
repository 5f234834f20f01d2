"""What the queue's file and its leases say now, and the updates that begin from there."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator

from daemon import lifecycle
from daemon.config import Config, Role
from daemon.errors import RolecallError
from daemon.index import Entry, Tasks
from daemon.lifecycle import Changes, Rules
from daemon.model import Lease, Move, Outcome, Result, parse_time
from daemon.process import Identity
from daemon.queue import Pause, breaker, staleness, throttle
from daemon.queue import lease as leases
from daemon.queue.budgets import Bar, Budgets
from daemon.queue.outbox import Outbox
from daemon.queue.text import Text, Update

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
        self.budgets = Budgets(config, clock)
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

    def begin(self, text: Text) -> Update:
        """An update that restores what an old buffer undid and makes the automatic moves."""
        update = Update(text, self.every(text.tasks), self._wrote, self.outbox)
        for lease in self.live(update.leases).values():
            self._restore(update, lease)
        update.move_on(self.machine, self.clock())
        return update

    def _restore(self, update: Update, lease: Lease) -> None:
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
        self, update: Update, rules: Rules, *, ignore_wip: bool
    ) -> Iterator[tuple[Entry, Lease | None]]:
        """What the role could claim now, each with the dead lease that it still has, if any."""
        tasks, found = update.tasks, update.leases
        limit = lifecycle.wip_limit(update.text.document.root.get("wip_limits"), rules)
        if not ignore_wip and lifecycle.wip(tasks, rules) >= limit:
            return
        live, slots = self.live(found), self.config.roles[rules.name].slots
        mine = (rules.name, self.me().host)
        here = [each for each in live.values() if (each.role, each.host) == mine]
        if slots is not None and len(here) >= slots:
            return
        role = self.config.roles[rules.name]
        if breaker.is_open(self.breaker(rules.name), role.breaker, self.clock(), len(here)):
            return
        if self.throttle(role, live.values()).until > self.clock():
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

    def breaker(self, role: str) -> breaker.State:
        """What is known of the role's quick failures on this host."""
        found = breaker.read(self.config.paths.runs, role)
        return breaker.remembered(found, self.config.roles[role].breaker, self.clock())

    def throttle(self, role: Role, live: Iterable[Lease] | None = None) -> throttle.State:
        """What is known of the role's credential on this host; ``live``: all that are."""
        if role.credential is None:
            return throttle.State()
        found = throttle.read(self.config.paths.runs, role.credential)
        found = throttle.remembered(found, role.backoff, self.clock())
        if not found.denied:
            return found
        live = self.live(self.leases.every()).values() if live is None else live
        same = {name for name, r in self.config.roles.items() if r.credential == role.credential}
        began = (parse_time(lease.started_at) or 0.0 for lease in live if lease.role in same)
        return throttle.probed(found, began, self.clock())

    def pauses(self, name: str) -> tuple[Pause, ...]:
        """Everything for which the role claims nothing now."""
        role, now, found = self.config.roles[name], self.clock(), []
        broken, throttled = self.breaker(name), self.throttle(role)
        if broken.until > now:
            topic = f"breaker {name}"
            found.append(Pause("paused", topic, broken.pause_in_words, broken.until))
        if role.credential and throttled.until > now:
            why, topic = throttled.in_words(role.credential), f"credential {role.credential}"
            found.append(Pause("credential", topic, why, throttled.until))
        if self.budgets.apply(role):
            try:
                books = self.budgets.books(self.leases.every().leases)
                bar = self.budgets.bar(role, books)
            except RolecallError as error:
                bar = Bar("; ".join(each.what for each in error.problems))
            if bar:
                found.append(Pause("budget", f"budget: {bar.why}", *bar))
        return tuple(found)

    def spent(self, role: str, task_ids: Collection[str]) -> dict[str, str]:
        """Those of the tasks that their own budget lets the role not claim, and why."""
        return self.budgets.spent(self.config.roles[role], task_ids, self.leases)

    def notes(self) -> list[str]:
        """The small files in which something is remembered of roles and credentials."""
        runs, roles = self.config.paths.runs, self.config.roles.values()
        found = [breaker.path(runs, role.name) for role in roles]
        found += [self.budgets.note(role.name) for role in roles]
        names = {role.credential for role in roles if role.credential is not None}
        return found + [throttle.path(runs, name) for name in sorted(names)]

    def count(self, move: Move, result: Result) -> None:
        """Remember, of role and credential, what an attempt came to. The queue's lock is held."""
        runs, role, now = self.config.paths.runs, self.config.roles[move.role], self.clock()
        seconds = math.inf if move.seconds is None else move.seconds
        outcome = Outcome(move.outcome)
        before = breaker.read(runs, role.name)
        state = breaker.after(before, role.breaker, outcome, seconds, now)
        # What the credential waits for is not the role's as well: a login ends one wait, not two.
        if state != before and not (result.denied and role.credential):
            state = state._replace(why=move.why) if state.failures else state
            breaker.write(runs, role.name, state)
        if role.credential is not None:
            known = throttle.read(runs, role.credential)
            began = now - (0.0 if move.seconds is None else move.seconds)
            told, denied = result.retry_after, result.denied
            wait = throttle.after(known, role.backoff, outcome, told, began, now, denied=denied)
            if wait != known:
                wait = wait._replace(why=move.why) if throttle.met(outcome, denied=denied) else wait
                throttle.write(runs, role.credential, wait)


def value(lease: Lease) -> Changes:
    """What a held task says of its lease."""
    return {"owner": lease.owner, "token": lease.token, "started_at": lease.started_at}
