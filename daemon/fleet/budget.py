"""What was spent, by role, day and task, and what may be: ``invoke budget``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from daemon import agents
from daemon.config import Amounts, Config
from daemon.fleet import doctor
from daemon.fleet.finding import Finding, together
from daemon.fleet.here import one_of
from daemon.fleet.output import Style, escape, table
from daemon.model import format_time
from daemon.queue import Pause
from daemon.queue.account import NOTHING, Amount, Sums
from daemon.queue.budgets import Books, Scope
from daemon.queue.opening import open_queue

DAY = 86400.0  # seconds
TASKS = 15  # of the dearest, for a person; a program gets all
CENT = 0.01
UNIT = {"tokens": "tokens", "cost_usd": "USD"}


class Spent(NamedTuple):
    """What was spent under one name; ``estimated`` is the part of it that nobody told."""

    name: str
    amount: Amount
    estimated: Amount


class Limit(NamedTuple):
    """One limit of tokens or dollars. ``role`` None: of all roles together.

    ``spent`` and ``reserved`` are None for an attempt's: it has no sum. A task's is not here: each
    task has its own.
    """

    kind: str
    role: str | None
    unit: str
    limit: float
    spent: float | None = None
    reserved: float | None = None


class Report(NamedTuple):
    """All there is to say. ``reserved`` is by role; ``pauses`` are the roles that claim nothing."""

    ledger: str
    limits: list[Limit]
    roles: list[Spent]
    days: list[Spent]
    tasks: list[Spent]
    reserved: dict[str, Amount]
    pauses: dict[str, Pause]
    skipped: int
    gaps: tuple[Finding, ...] = ()  # limits that do not hold: the agent does not tell


def look(
    config: Config,
    role: str | None = None,
    days: int = 7,
    *,
    clock: Callable[[], float] = time.time,
) -> Report:
    """Sum up the ledger, of one role where it is named; ``days`` are the latest UTC days."""
    if role is not None:
        one_of("role", role, config.roles)
    queue = open_queue(config, clock=clock)
    budgets = queue.memory.budgets
    books = budgets.books(queue.memory.leases())
    roles = [name for name in config.roles if role in (None, name)]
    pauses: dict[str, Pause] = {}
    for name in roles:
        found = [pause for pause in queue.memory.pauses(name) if not pause.passing]
        if found:
            pauses[name] = max(found, key=lambda each: each.lasts)
    spent, guessed = budgets.account.charged, budgets.account.estimated
    for entry in books.lost:
        spent.add(entry, entry.amount)
        guessed.add(entry, entry.amount)
    books = books._replace(lost=[])
    past = [name for name in spent.roles if name not in config.roles and role is None]
    reserved: dict[str, Amount] = {}
    for entry in books.live:
        if role in (None, entry.role):
            reserved[entry.role] = reserved.get(entry.role, NOTHING).plus(entry.amount)
    latest = [format_time(clock() - number * DAY)[:10] for number in range(max(1, days))]
    tasks = _of(spent, guessed, "task", spent.tasks, role)
    return Report(
        budgets.path,
        list(_limits(config, books, roles, role)),
        [Spent(name, spent.of(name), guessed.of(name)) for name in (*roles, *past)],
        _of(spent, guessed, "day", latest, role),
        sorted(tasks, key=lambda each: (-each.amount.cost_usd, -each.amount.tokens, each.name)),
        reserved,
        pauses,
        budgets.account.reader.skipped,
        tuple(together(_gaps(config, roles))),
    )


def _gaps(config: Config, roles: Iterable[str]) -> Iterator[Finding]:
    for role in (config.roles[name] for name in roles):
        yield from doctor.budget(config, role, agents.find(role.agent))


def _of(
    spent: Sums, guessed: Sums, kind: str, names: Iterable[str], role: str | None
) -> list[Spent]:
    found = [
        Spent(name, spent.of(role, **{kind: name}), guessed.of(role, **{kind: name}))
        for name in names
    ]
    return [each for each in found if each.amount != NOTHING]


def _limits(config: Config, books: Books, roles: list[str], role: str | None) -> Iterator[Limit]:
    scopes: dict[tuple[str, str | None], Scope] = {}
    for name in roles:
        budget = config.roles[name].budget
        yield from (Limit("attempt", name, *each) for each in _set(budget.attempt))
        yield from (Limit("task", name, *each) for each in _set(budget.task))
        found = books.scopes(config.roles[name], config.budget)
        scopes |= {(scope.kind, scope.role): scope for scope in found}
    yield from (Limit("task", None, *each) for each in _set(config.budget.task) if role is None)
    for scope in sorted(scopes.values(), key=lambda each: (each.kind, each.role is None)):
        for key, limit in _set(scope.limit):
            spent, held = getattr(scope.spent, key), getattr(scope.reserved, key)
            yield Limit(scope.kind, scope.role, key, limit, spent, held)


def _set(limit: Amounts) -> list[tuple[str, float]]:
    return [(key, value) for key, value in limit._asdict().items() if value is not None]


def facts(report: Report) -> dict[str, Any]:
    """The report for a program."""
    return {
        "ledger": report.ledger,
        "limits": [_limit_facts(limit) for limit in report.limits],
        "roles": [
            {
                "role": each.name,
                **_facts(each),
                "reserved": report.reserved.get(each.name, NOTHING)._asdict(),
            }
            for each in report.roles
        ],
        "days": [{"day": each.name, **_facts(each)} for each in report.days],
        "tasks": [{"task": each.name, **_facts(each)} for each in report.tasks],
        "parked": [
            {
                "role": role,
                "why": pause.why,
                "until": None if pause.until is None else format_time(pause.until),
            }
            for role, pause in report.pauses.items()
        ],
        "skipped_lines": report.skipped,
        "uncounted": [{"role": gap.role, "why": gap.what} for gap in report.gaps],
    }


def _facts(spent: Spent) -> dict[str, Any]:
    return {**spent.amount._asdict(), "estimated": spent.estimated._asdict()}


def _limit_facts(limit: Limit) -> dict[str, Any]:
    return {**limit._asdict(), "left": _left(limit)}


def _left(limit: Limit) -> float | None:
    if limit.spent is None or limit.reserved is None:
        return None
    return max(0.0, limit.limit - limit.spent - limit.reserved)


def text(report: Report, style: Style) -> str:
    """The report for a person."""
    parts = []
    if report.limits:
        rows = [
            [
                f"{each.kind} of {each.role or 'all roles'}",
                UNIT[each.unit],
                *(
                    "" if value is None else _shown(each.unit, value)
                    for value in (each.limit, each.spent, each.reserved, _left(each))
                ),
            ]
            for each in report.limits
        ]
        parts.append(table(["budget", "in", "limit", "spent", "reserved", "left"], rows, style))
    roles = [each for each in report.roles if _is_told(each, report.reserved)]
    dearest = report.tasks[:TASKS]
    for name, found in (("role", roles), ("day", report.days), ("task", dearest)):
        if found:
            parts.append(_spent(name, found, report.reserved if name == "role" else {}, style))
    if len(report.tasks) > len(dearest):
        parts.append(f"and {len(report.tasks) - len(dearest)} more tasks: --json tells all")
    if not roles:
        parts.append("nothing spent")
    parts += [
        f"{style.paint(role, 'red')}: {escape(pause.why)}" for role, pause in report.pauses.items()
    ]
    parts += [
        f"{style.paint(gap.role, 'yellow')}: {escape(f'{gap.what} -> {gap.hint}')}"
        for gap in report.gaps
    ]
    if report.skipped:
        parts.append(f"{report.skipped} lines of {escape(report.ledger)} say nothing: passed over")
    return "\n\n".join(parts)


def _is_told(spent: Spent, reserved: Mapping[str, Amount]) -> bool:
    return spent.amount != NOTHING or spent.name in reserved


def _spent(name: str, found: Iterable[Spent], reserved: Mapping[str, Amount], style: Style) -> str:
    header = [name, "tokens", "USD", "estimated tokens", "estimated USD"]
    header += ["reserved tokens", "reserved USD"]
    rows = []
    for each in found:
        held = reserved.get(each.name, NOTHING)
        amounts = [*each.amount, *each.estimated, *held]
        units = [*Amount._fields] * 3
        cells = [
            _shown(key, value) if value or number < len(Amount._fields) else ""
            for number, (key, value) in enumerate(zip(units, amounts, strict=True))
        ]
        rows.append([each.name, *cells])
    return table(header, rows, style)


def _shown(key: str, value: float) -> str:
    if key == "tokens":
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0 < value < CENT else f"{value:,.2f}"
