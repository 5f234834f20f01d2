"""What is remembered of roles and credentials on one host, the same for every kind of queue."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping

from daemon.config import Config, Role
from daemon.errors import RolecallError
from daemon.model import Lease, Move, Outcome, Result, parse_time
from daemon.queue import Pause, breaker, throttle
from daemon.queue.budgets import Bar, Budgets


class Memory:
    """The small files beside the run folders, and the judgement by them.

    ``waits`` are those of credentials, which a queue of several hosts keeps for all of them.
    ``leases`` gives all that there are now, by task id; ``is_live`` whether the attempt of one is.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float],
        leases: Callable[[], Mapping[str, Lease]],
        is_live: Callable[[Lease], bool],
        waits: throttle.Waits | None = None,
    ) -> None:
        self.config, self.clock = config, clock
        self.leases, self.is_live = leases, is_live
        self.waits = waits or throttle.Files(config.paths.runs)
        self.budgets = Budgets(config, clock)

    def breaker(self, role: str) -> breaker.State:
        """What is known of the role's quick failures on this host."""
        found = breaker.read(self.config.paths.runs, role)
        return breaker.remembered(found, self.config.roles[role].breaker, self.clock())

    def throttle(self, role: Role, live: Iterable[Lease] | None = None) -> throttle.State:
        """What is known of the role's credential on this host; ``live``: all that are."""
        if role.credential is None:
            return throttle.State()
        found = self.waits.read(role.credential)
        found = throttle.remembered(found, role.backoff, self.clock())
        if not found.denied:
            return found
        if live is None:
            live = filter(self.is_live, self.leases().values())
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
                books = self.budgets.books(self.leases())
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

    def minds(self, move: Move) -> bool:
        """Whether ``count`` would remember or forget anything: else nobody need be kept out."""
        role = self.config.roles[move.role]
        known = os.path.lexists(breaker.path(self.config.paths.runs, role.name))
        return known or role.credential is not None or move.outcome in breaker.FAILURES

    def count(self, move: Move, result: Result) -> None:
        """Remember what an attempt came to. The caller keeps others of this host out meanwhile."""
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
            known = self.waits.read(role.credential)
            began = now - (0.0 if move.seconds is None else move.seconds)
            told, denied = result.retry_after, result.denied
            wait = throttle.after(known, role.backoff, outcome, told, began, now, denied=denied)
            if wait != known:
                wait = wait._replace(why=move.why) if throttle.met(outcome, denied=denied) else wait
                self.waits.write(role.credential, wait)

    def resume(self, role: str) -> None:
        """A person has done something about it: what a person is waited for is forgotten."""
        breaker.write(self.config.paths.runs, role, breaker.State())
        self.budgets.resume(role)

    def end_wait(self, credential: str) -> None:
        """Forget that a credential met its limit: a person wants it tried."""
        self.waits.write(credential, throttle.State())
