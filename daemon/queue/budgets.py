"""The budgets of one queue: what bars a claim, what a claim reserves, what an attempt is charged.

Nothing is read or written here for a claim of a role that no budget limits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from daemon.config import Amounts, Budget, Config, Role
from daemon.errors import RolecallError
from daemon.model import Lease, Outcome, Result, format_time
from daemon.queue import durable, notes, spending
from daemon.queue.account import Account, Amount, Attempt, Entry

DAY = 86400  # seconds
CUT_SHORT = frozenset({Outcome.ERROR, Outcome.RELEASED})
WORKED = CUT_SHORT | {Outcome.SUCCESS, Outcome.REJECTED}  # never for nothing, says who has a record
LONGEST = 500  # characters of a reason
FAR = 2  # times its limit: an attempt that spent more has run away, and parks its role at once
IN_A_ROW = 3  # attempts beyond their limit that park it, however little each overran
CLOSE = 1e-9  # what sums of floats may be off by, of the whole


class Bar(NamedTuple):
    """Why nothing may be claimed, and until when (None: until a person acts).

    ``passing``: it ends with the attempts that run.
    """

    why: str
    until: float | None = None
    passing: bool = False


class Scope(NamedTuple):
    """One limit, and what counts against it. ``until`` is when it begins anew; None: never.

    ``kind`` is one of task, day and total; ``role`` None stands for all roles together.
    ``untried`` is what live attempts of roles without a history have reserved, each by itself.
    """

    kind: str
    role: str | None
    limit: Amounts
    spent: Amount
    reserved: Amount
    until: float | None = None
    untried: tuple[Amount, ...] = ()

    @property
    def words(self) -> str:
        """Whose budget it is, for a person."""
        name = {"task": "the task's", "day": "the day's", "total": "the total"}[self.kind]
        limits = [in_words(key, getattr(self.limit, key)) for key in _limited(self.limit)]
        return f"{name} budget of {self.role or 'all roles'} ({', '.join(limits)})"

    @property
    def ends(self) -> str:
        """What ends it, for a person."""
        if self.until is not None:
            return f"claims wait until {format_time(self.until)}"
        return "claims wait until it is raised"

    def bar(self, needed: Amount, *, untried: bool = False) -> Bar | None:
        """Why there is no room for an attempt that needs so much; None where there is.

        What nothing is spent of has room for any one attempt: else some could never be made. Of
        those whose need nobody knows (``untried``) there is one at a time.
        """
        found = None
        for key in _limited(self.limit):
            limit, spent = getattr(self.limit, key), getattr(self.spent, key)
            more, used = getattr(needed, key), spent + getattr(self.reserved, key)
            if spent >= limit * (1 - CLOSE):
                return Bar(f"{self.words} is spent: {self.ends}", self.until)
            if spent and spent + more > limit * (1 + CLOSE):
                why = f"what is left of {self.words} is not enough for another attempt"
                return Bar(f"{why}: {self.ends}", self.until)
            if untried and not more and any(not getattr(each, key) for each in self.untried):
                why = f"what one more attempt takes of {self.words} is not known yet"
                found = Bar(f"{why}: the first one is to end before", self.until, passing=True)
            if used and (used + more > limit * (1 + CLOSE) or used >= limit * (1 - CLOSE)):
                found = Bar(
                    f"{self.words} is reserved by attempts that run", self.until, passing=True
                )
        return found


class Books(NamedTuple):
    """What is spent and reserved at one moment."""

    account: Account
    live: list[Entry]
    lost: list[Entry]
    now: float
    untried: frozenset[str] = frozenset()  # roles of whose agent nobody knows yet what it takes

    def scopes(self, role: Role, common: Budget, task: str = "") -> list[Scope]:
        """The limits of a role as a whole; those of one task where it is named."""
        today, until = format_time(self.now)[:10], (self.now // DAY + 1) * DAY
        found = []
        for whose, budget in ((role.name, role.budget), (None, common)):
            if task:
                found.append(self._scope("task", whose, budget.task, task=task))
            else:
                of_day = self._scope("day", whose, budget.day, day=today)
                found.append(of_day._replace(until=until))
                found.append(self._scope("total", whose, budget.total))
        return [scope for scope in found if _limited(scope.limit)]

    def _scope(
        self, kind: str, role: str | None, limit: Amounts, *, task: str = "", day: str = ""
    ) -> Scope:
        spent, reserved = self.account.charged.of(role, task=task, day=day), Amount()
        for entry in self.lost:
            if role in (None, entry.role) and task in ("", entry.task) and day in ("", entry.day):
                spent = spent.plus(entry.amount)
        untried: tuple[Amount, ...] = ()
        for entry in self.live:  # of whatever day: it will be charged on this one
            if role in (None, entry.role) and task in ("", entry.task):
                reserved = reserved.plus(entry.amount)
                untried += (entry.amount,) * (entry.role in self.untried)
        return Scope(kind, role, limit, spent, reserved, untried=untried)


class Budgets:
    """Keeps the ledger, and judges by it."""

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self.config, self.clock, self.runs = config, clock, config.paths.runs
        self.path = os.path.join(self.runs, spending.NAME)
        self.account = Account(self.path)
        common = any(map(_limited, config.budget))
        self._limits = {
            name for name, r in config.roles.items() if common or any(map(_limited, r.budget))
        }
        self._charged: set[Attempt] = set()  # by us: a settling that is tried again adds no line

    def apply(self, role: Role) -> bool:
        """Whether any budget limits the role."""
        return role.name in self._limits

    def books(self, leases: Mapping[str, Lease]) -> Books:
        """What is spent and reserved now; ``leases``: all there are. Raises RolecallError."""
        self.account.look()

        def is_live(who: Attempt) -> bool:
            lease = leases.get(who[0])
            return lease is not None and (lease.token, lease.started_at) == who[1:]

        live, lost = self.account.reserved(is_live, self._has_begun)
        untried = frozenset(
            role.name
            for role in self.config.roles.values()
            if role.name not in self.account.tried and (role.agent or not role.merge)
        )
        return Books(self.account, live, lost, self.clock(), untried)

    def _has_begun(self, who: Attempt) -> bool:
        """Whether the attempt's agent has been started, as its run folder tells."""
        return os.path.lexists(os.path.join(self.runs, who[0], str(who[1]), "stdout.log"))

    # --- claiming --------------------------------------------------------------------------------

    def needed(self, role: Role) -> Amount:
        """What a claim reserves: the attempt's limit, else the costliest of the latest charges."""
        latest, limit = self.account.costliest(role.name), role.budget.attempt
        return Amount(
            latest.tokens if limit.tokens is None else limit.tokens,
            latest.cost_usd if limit.cost_usd is None else limit.cost_usd,
        )

    def bar(self, role: Role, books: Books) -> Bar | None:
        """Why the role may claim nothing: of several reasons the one that lasts longest."""
        if _limited(role.budget.attempt) and (why := self.parked(role.name)):
            return Bar(why)
        return self._longest(role, books)

    def bar_task(self, role: Role, task_id: str, books: Books) -> Bar | None:
        """Why the role may not claim this task, whatever else it may."""
        return self._longest(role, books, task_id)

    def _longest(self, role: Role, books: Books, task_id: str = "") -> Bar | None:
        needed, untried = self.needed(role), role.name in books.untried
        scopes = books.scopes(role, self.config.budget, task_id)
        bars = (scope.bar(needed, untried=untried) for scope in scopes)
        return min(filter(None, bars), key=lasts, default=None)

    def reserve(self, lease: Lease) -> None:
        """Write down what the attempt may spend. Raises RolecallError: then it may not begin."""
        role = self.config.roles[lease.role]
        if self.apply(role):
            line = self._line(spending.RESERVED, lease)
            spending.append(self.path, line | self.needed(role)._asdict(), sync=True)

    # --- settling --------------------------------------------------------------------------------

    def charge(self, lease: Lease, result: Result) -> str:
        """Write down what the attempt has spent, once. The queue's lock is held.

        Returns what to tell of one that spent more than it may; "" else. Where nobody knows, what
        was reserved counts. Raises DiskError where a budget needs the line and the disk has no
        room for it; a ledger that is unusable otherwise costs no result.
        """
        role, who = self.config.roles[lease.role], (lease.task_id, lease.token, lease.started_at)
        limited = self.apply(role)
        told = result.usage
        unsure = CUT_SHORT if role.agent in {None, "command"} else WORKED
        if told and not any(told.values()) and result.outcome in unsure:
            told = None  # its record was cut off, or has no numbers: it may have worked for an hour
        if told is None and limited and not self._has_begun(who):
            told = {}
        used = spending.usage(told, role.price)
        if not (limited or (used and any(used.values()))) or who in self._charged:
            return ""
        line = {**self._line(spending.CHARGED, lease), "outcome": result.outcome.value}
        line |= {"usage": used} if used else {"usage": {}, "estimated": True}
        try:
            spending.append(self.path, line, sync=limited)
        except durable.DiskError:
            if limited:
                raise
            return ""
        except RolecallError:
            return ""
        self._charged.add(who)
        return self._judge(role, lease, used) if used else ""

    def _judge(self, role: Role, lease: Lease, used: Mapping[str, float]) -> str:
        """Count an attempt that has spent more than it may; one far beyond parks the role.

        A CLI that keeps to a limit itself looks after each turn: it overruns by one.
        """
        spent = {"tokens": spending.tokens_of(used), "cost_usd": used.get("cost_usd")}
        over, most = "", 1 + CLOSE
        for key in _limited(role.budget.attempt):
            limit, amount = getattr(role.budget.attempt, key), spent[key]
            if amount is not None and amount > limit * most:
                over = f"spent {in_words(key, amount)}, its budget is {in_words(key, limit)}"
                most = amount / limit if limit else math.inf
        path = self.note(role.name)
        known = notes.read(path)
        if known.get("why"):
            return over
        if not over:
            if known and _limited(role.budget.attempt):
                notes.write(path, None)
            return ""
        times = int(known["times"]) + 1 if isinstance(known.get("times"), int) else 1
        note: dict[str, object] = {"times": times, "at": format_time(self.clock())}
        if most > FAR + CLOSE or times >= IN_A_ROW:
            row = f", as {times} in a row did" if times > 1 else ""
            note["why"] = (
                f"an attempt on {lease.task_id} (token {lease.token}) {over}{row}: claims wait "
                "until the worker is started again, or invoke queue.retry ID of a task that "
                f"waits for {role.name}"
            )
        notes.write(path, note)
        return over

    def spent(
        self, role: Role, task_ids: Collection[str], leases: Callable[[], Mapping[str, Lease]]
    ) -> dict[str, str]:
        """Those of the tasks that their own budget lets the role not claim, and why.

        ``leases`` gives all there are; asked only where there is such a budget.
        """
        if not (task_ids and (_limited(role.budget.task) or _limited(self.config.budget.task))):
            return {}
        try:
            books = self.books(leases())
        except RolecallError:  # a result counts all the same; a claim will say it
            return {}
        bars = ((task_id, self.bar_task(role, task_id, books)) for task_id in task_ids)
        return {task_id: bar.why for task_id, bar in bars if bar}

    # --- a role that waits for a person ----------------------------------------------------------

    def parked(self, role: str) -> str:
        """Why the role waits for a person, since an attempt overspent; "" where it does not."""
        return str(notes.read(self.note(role)).get("why", ""))[:LONGEST]

    def resume(self, role: str) -> None:
        """A person has looked."""
        notes.write(self.note(role), None)

    def note(self, role: str) -> str:
        """The file that says that the role waits for a person."""
        return notes.path(self.runs, f"overspent-{role}")

    def _line(self, what: str, lease: Lease) -> dict[str, object]:
        return {
            "what": what,
            "at": format_time(self.clock()),
            "task": lease.task_id,
            "role": lease.role,
            "token": lease.token,
            "claimed": lease.started_at,
        }


def in_words(key: str, value: float) -> str:
    """An amount of tokens or dollars with its unit, for a person."""
    return f"{value:,.0f} tokens" if key == "tokens" else f"{value:,.6g} USD"


def lasts(bar: Bar) -> tuple[bool, bool]:
    """Orders bars by how long they last, the longest first."""
    return bar.passing, bar.until is not None


def _limited(limit: Amounts) -> list[str]:
    """Which of tokens and dollars are limited."""
    return [key for key, value in limit._asdict().items() if value is not None]
