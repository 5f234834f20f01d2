"""What is spent and reserved, summed up from the ledger's lines and kept between two looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from daemon.queue.spending import CHARGED, Line, Reader

LATEST = 20  # charges of a role that tell what its next attempt may cost

Attempt = tuple[str, int, str]  # a task's id, a token, the time of the claim


class Amount(NamedTuple):
    """Tokens and US dollars."""

    tokens: float = 0.0
    cost_usd: float = 0.0

    def plus(self, other: Amount) -> Amount:
        """The sum."""
        return Amount(self.tokens + other.tokens, self.cost_usd + other.cost_usd)

    def minus(self, other: Amount) -> Amount:
        """The difference."""
        return Amount(self.tokens - other.tokens, self.cost_usd - other.cost_usd)


NOTHING = Amount()


class Entry(NamedTuple):
    """What one attempt has reserved, or was charged."""

    role: str
    task: str
    day: str
    amount: Amount


class Sums:
    """Amounts by role, by day and role, by task and role."""

    def __init__(self) -> None:
        self.roles: dict[str, Amount] = {}
        self.days: dict[str, dict[str, Amount]] = {}
        self.tasks: dict[str, dict[str, Amount]] = {}

    def add(self, entry: Entry, amount: Amount) -> None:
        """Count an amount for the entry's role, day and task."""
        of_day = self.days.setdefault(entry.day, {})
        of_task = self.tasks.setdefault(entry.task, {})
        for sums in (self.roles, of_day, of_task):
            sums[entry.role] = sums.get(entry.role, NOTHING).plus(amount)

    def of(self, role: str | None, *, task: str = "", day: str = "") -> Amount:
        """The sum of a role (of all where None), on one task or one day where either is named."""
        of_day = self.days.get(day, {}) if day else self.roles
        found = self.tasks.get(task, {}) if task else of_day
        total = NOTHING
        for name, amount in found.items():
            if role in (None, name):
                total = total.plus(amount)
        return total


class Account:
    """The ledger's sums. A charge counts once: one that is known takes an estimate's place.

    ``open`` are reservations that nobody was charged for. Of attempts that are charged only who
    they were is kept.
    """

    def __init__(self, path: str) -> None:
        self.reader = Reader(path)
        self._forget()

    def _forget(self) -> None:
        self.charged = Sums()
        self.estimated = Sums()  # what of it nobody told
        self.open: dict[Attempt, Entry] = {}
        self.estimates: dict[Attempt, Entry] = {}
        self.latest: dict[str, deque[Amount]] = {}
        self.tried: set[str] = set()  # roles that spent, or whose agent does not tell
        self._known: set[Attempt] = set()

    def look(self) -> None:
        """Read what was added. Raises RolecallError where the ledger cannot be used."""
        self.reader.look(self._forget, self._take)

    def _take(self, line: Line) -> None:
        who = (line.task, line.token, line.claimed)
        if who in self._known:
            return
        told = Amount(line.tokens or 0.0, line.cost_usd or 0.0)
        entry = Entry(line.role, line.task, line.day, told)
        if line.what != CHARGED:
            if who not in self.estimates:
                self.open[who] = entry
            return
        unknown = line.tokens is None and line.cost_usd is None
        if unknown and who in self.estimates:
            return
        earlier = self.estimates.pop(who, None)
        reserved = self.open.pop(who, earlier)
        if earlier is not None:
            for sums in (self.charged, self.estimated):
                sums.add(earlier, NOTHING.minus(earlier.amount))
        guess = _untold(line, reserved.amount if reserved else NOTHING)
        entry = entry._replace(amount=told.plus(guess))
        self.charged.add(entry, entry.amount)
        self.estimated.add(entry, guess)
        if unknown:
            self.estimates[who] = entry
            self.tried.add(line.role)
            return
        self._known.add(who)
        if told != NOTHING:
            self.tried.add(line.role)
            self.latest.setdefault(line.role, deque(maxlen=LATEST)).append(told)

    def costliest(self, role: str) -> Amount:
        """The most that one of the role's latest charges was, of tokens and of dollars."""
        latest = self.latest.get(role, ())
        return Amount(
            max((each.tokens for each in latest), default=0.0),
            max((each.cost_usd for each in latest), default=0.0),
        )

    def reserved(
        self, is_live: Callable[[Attempt], bool], has_begun: Callable[[Attempt], bool]
    ) -> tuple[list[Entry], list[Entry]]:
        """The open reservations: of live attempts, and of others that began and left no charge.

        The latter count as spent: their charge was lost with who should have written it.
        """
        live = [entry for who, entry in self.open.items() if is_live(who)]
        lost = [e for who, e in self.open.items() if not is_live(who) and has_begun(who)]
        return live, lost


def _untold(line: Line, reserved: Amount) -> Amount:
    """What of the reservation stands for what a charge does not tell."""
    return Amount(
        reserved.tokens if line.tokens is None else 0.0,
        reserved.cost_usd if line.cost_usd is None else 0.0,
    )
