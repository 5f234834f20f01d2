"""The life of a task: which moves exist, and which one comes next. Pure functions over tasks.

The state machine is data (``DEFAULT_ROLES``, or what the YAML says); docs/lifecycle.md draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from daemon.index import Entry, Tasks, number, status_of
from daemon.model import Outcome, Result, format_time, parse_time

SATISFIED = frozenset({"done", "completed"})
CANCELLED = "cancelled"
ENDED = SATISFIED | {CANCELLED}
PARKED = frozenset({"blocked", "needs_manual"})
PLANNED = "planning_complete"
STARTS = {"Story": "needs_plan", "Test": "awaiting_test", "Testing": "awaiting_test"}
START = "ready"  # of every other type
LONGEST = 366 * 86400.0  # seconds; no wait is longer, and times stay readable
LARGEST = 10**15  # of what we count; a larger number in a task is none of ours

DEFAULT_ROLES: dict[str, dict[str, Any]] = {
    name: dict(
        zip(("claims", "holds", "on_success", "on_rejected", "on_exhausted"), row, strict=True)
    )
    for name, row in {
        "planner": (["needs_plan"], "planning", PLANNED, "needs_manual", "needs_manual"),
        "builder": (["ready"], "in_progress", "awaiting_test", "needs_adapt", "needs_manual"),
        "tester": (
            ["awaiting_test"],
            "testing",
            "ready_for_integrator",
            "needs_adapt",
            "needs_manual",
        ),
        "refiner": (["needs_adapt"], "adapting", "awaiting_test", "needs_manual", "needs_manual"),
        "integrator": (
            ["ready_for_integrator"],
            "integrating",
            "done",
            "needs_adapt",
            "needs_manual",
        ),
    }.items()
}

Changes = dict[str, Any]


class Rules(NamedTuple):
    """What the state machine needs to know of one role. Backoff is in seconds."""

    name: str
    claims: tuple[str, ...]
    holds: str
    on_success: str
    on_rejected: str
    on_exhausted: str
    wip_limit: int = 1
    max_attempts: int = 3
    backoff_base: float = 30.0
    backoff_cap: float = 3600.0


class Machine(NamedTuple):
    """The whole state machine of a workspace."""

    roles: dict[str, Rules]
    max_adaptations: int = 3
    unblock: bool = True
    close_stories: bool = True

    @property
    def claimed(self) -> set[str]:
        """The statuses that some role claims."""
        return {status for rules in self.roles.values() for status in rules.claims}


class Transition(NamedTuple):
    """A task's move: the keys to write, where it goes, and why, for a person."""

    entry: Entry
    changes: Changes
    source: str
    target: str
    why: str


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value if 0 < value < LARGEST else 0


def token_of(task: dict[str, Any]) -> int:
    """The task's fencing number; 0 before its first claim."""
    return _count(task.get("token"))


def attempts_of(task: dict[str, Any]) -> int:
    """How many attempts in its present status came to an error."""
    return _count(task.get("attempts"))


def held_by_us(task: dict[str, Any]) -> int:
    """The token that the task's own ``lease`` object carries; 0 where it is not one of ours."""
    lease = task.get("lease")
    token = _count(lease.get("token")) if isinstance(lease, dict) else 0
    return token if token == token_of(task) else 0


def is_held(task: dict[str, Any], rules: Rules, token: int) -> bool:
    """Whether the role holds the task under this token.

    A next status of the role's own that an agent wrote into the queue, the hold left as it was, is
    what the agent claims: the attempt still has to settle. Any other status is a person's move.
    """
    held = {rules.holds, rules.on_success, rules.on_rejected} - {rules.on_exhausted}
    return status_of(task) in held and held_by_us(task) == token > 0


def _held_by_hand(task: dict[str, Any], now: float) -> bool:
    """Whether ``lease`` is another tool's or a person's, and still alive by its own account."""
    lease = task.get("lease")
    if not isinstance(lease, dict) or held_by_us(task):
        return False
    beat, ttl = parse_time(lease.get("heartbeat_at")), number(lease.get("ttl_seconds"))
    return beat is not None and ttl is not None and beat + ttl > now


def wip(tasks: Tasks, rules: Rules) -> int:
    """How many tasks are in the role's held status, at any depth and whoever holds them."""
    return len(tasks.by_status.get(rules.holds, ()))


def wip_limit(limits: object, rules: Rules) -> int:
    """The queue's own limit of the role where it names a sane one, else the role's."""
    value = limits.get(rules.name) if isinstance(limits, dict) else None
    limit = number(value)
    return int(limit) if limit is not None and limit >= 0 else rules.wip_limit


def dependencies(task: dict[str, Any]) -> list[Any]:
    """The ids it depends on; what is no list counts as one dependency, which is then unknown."""
    value = task.get("dependencies")
    return value if isinstance(value, list) else [value] if value else []


def is_settled(task: dict[str, Any], live: Collection[str]) -> bool:
    """Whether its status is more than what an agent claims that still works on it.

    ``live``: the ids with a lease.
    """
    return not (held_by_us(task) and str(task.get("id")) in live)


def waits_for(
    task: dict[str, Any], tasks: Tasks, live: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """Each unsatisfied dependency with its status, or "unknown"."""
    for needed in dependencies(task):
        found = tasks.by_id.get(needed) if isinstance(needed, str) else None
        status = status_of(found.task) if found else "unknown"
        if status not in SATISFIED:
            yield str(needed), status or "no status"
        elif found and not is_settled(found.task, live):
            yield str(needed), f"{status}, but its attempt still runs"


def why_not(entry: Entry, tasks: Tasks, rules: Rules, now: float, live: Collection[str]) -> str:
    """Why the role cannot claim the task now, WIP aside; "" where it can."""
    task = entry.task
    if task.get("status") not in rules.claims:
        return f"status is {task.get('status')}, {rules.name} claims {', '.join(rules.claims)}"
    if not tasks.is_usable(entry):
        return "its id is not valid, or taken"
    waiting = [f"{needed} ({status})" for needed, status in waits_for(task, tasks, live)]
    if waiting:
        return f"waits for {', '.join(waiting)}"
    if task["id"] in live or _held_by_hand(task, now):
        return "a live lease is on it"
    later = parse_time(task.get("not_before"))
    return f"not before {task['not_before']}" if later is not None and later > now else ""


def claimable(tasks: Tasks, rules: Rules, now: float, live: Collection[str]) -> Iterator[Entry]:
    """What the role could claim, in the order of claiming; WIP limits are not looked at."""
    for _, entry in tasks.in_line(*rules.claims):
        if not why_not(entry, tasks, rules, now, live):
            yield entry


def next_time(tasks: Tasks, rules: Rules, now: float) -> float | None:
    """When the next ``not_before`` of a task that the role could claim is over."""
    times = (parse_time(entry.task.get("not_before")) for entry in tasks.in_status(*rules.claims))
    return min((time for time in times if time is not None and time > now), default=None)


def claim(
    entry: Entry, rules: Rules, lease_value: dict[str, Any], token: int, now: float
) -> Changes:
    """What a claim writes into the task."""
    lease = dict(lease_value)
    if len(rules.claims) > 1:
        lease["from"] = entry.task["status"]  # where an error or a release goes back to
    return {
        "status": rules.holds,
        "agent": rules.name,
        "lease": lease,
        "token": token,
        "updated_at": format_time(now),
    }


def claimed_from(task: dict[str, Any], rules: Rules) -> str:
    """The status that the role claimed the task in."""
    lease = task.get("lease")
    source = lease.get("from") if isinstance(lease, dict) else None
    return source if source in rules.claims else rules.claims[0]


def weigh(rules: Rules, result: Result) -> Result:
    """The result with the status that the agent asked for turned into an outcome.

    An agent may name its role's own next statuses only; it cannot turn a failure into a success.
    """
    asked = result.status
    if asked is None or result.outcome is not Outcome.SUCCESS:
        return result._replace(status=None)
    own = {
        rules.on_exhausted: Outcome.BLOCKED,
        rules.on_rejected: Outcome.REJECTED,
        rules.on_success: Outcome.SUCCESS,
    }
    if asked not in own:
        note = f"the agent asks for status {asked!r:.60}, which is not one of {rules.name}'s"
        return result._replace(status=None, outcome=Outcome.ERROR, note=note)
    return result._replace(status=None, outcome=own[asked])


def settle(  # noqa: PLR0913, PLR0917  # the six facts that decide, passed in order
    entry: Entry,
    machine: Machine,
    role: str,
    result: Result,
    now: float,
    random: Callable[[], float],
) -> Transition:
    """What an attempt's result writes into its task. ``random`` gives floats in [0, 1)."""
    rules, task = machine.roles[role], entry.task
    result = weigh(rules, result)
    back = claimed_from(task, rules)
    attempts, adaptations = attempts_of(task), _count(task.get("adaptations"))
    target, why, not_before = back, result.note, None
    match result.outcome:
        case Outcome.SUCCESS:
            target = rules.on_success
        case Outcome.REJECTED:
            target = rules.on_rejected
            if any(target in other.claims for other in machine.roles.values()):
                adaptations += 1
                if adaptations > machine.max_adaptations:
                    target = rules.on_exhausted
                    why = f"{why} (after {machine.max_adaptations} adaptations)".strip()
        case Outcome.BLOCKED:
            target = rules.on_exhausted
        case Outcome.ERROR:
            attempts += 1
            if attempts >= rules.max_attempts:
                target = rules.on_exhausted
                why = f"{why} (attempt {attempts} of {rules.max_attempts})".strip()
            else:
                longest = min(rules.backoff_cap, rules.backoff_base * 2 ** min(attempts - 1, 60))
                not_before = now + random() * longest
        case Outcome.THROTTLED:
            wait = rules.backoff_base if result.retry_after is None else result.retry_after
            not_before = now + min(max(0.0, wait), LONGEST)
    failed = result.outcome in {Outcome.ERROR, Outcome.BLOCKED, Outcome.REJECTED}
    wanted: Changes = {
        **(result.changes or {}),
        "status": target,
        "agent": None,
        "lease": None,
        "attempts": attempts if target == back else 0,
        "adaptations": adaptations,
        "not_before": None if not_before is None else format_time(not_before),
        # So that a person's retry knows where the task came from.
        "parked_from": back if target == rules.on_exhausted not in machine.claimed else None,
    }
    if failed or result.outcome is Outcome.SUCCESS:
        wanted["last_error"] = (why or result.outcome.value)[:2000] if failed else None
    changes = differing(task, wanted)
    changes["updated_at"] = format_time(now)
    return Transition(entry, changes, str(task.get("status")), target, why)


def park(transition: Transition, parked: str, why: str) -> Transition:
    """The same move, but to where a person has to look; a retry goes on to where it would have."""
    wanted: Changes = {
        **transition.changes,
        "status": parked,
        "attempts": 0,
        "not_before": None,
        "parked_from": transition.target,
        "last_error": why[:2000],
    }
    stamp = wanted.pop("updated_at")
    changes = {**differing(transition.entry.task, wanted), "updated_at": stamp}
    return transition._replace(changes=changes, target=parked, why=why)


def differing(task: dict[str, Any], wanted: Changes) -> Changes:
    """What has to be written: keys are added only when they carry a value."""
    return {
        key: value
        for key, value in wanted.items()
        if (task[key] != value if key in task else value not in (None, 0))
    }


def children(tasks: Tasks, parents: Collection[str]) -> dict[str, list[Entry]]:
    """The tasks that name one of these ids as their parent, or stand in it."""
    found: dict[str, list[Entry]] = {parent: [] for parent in parents}
    for entry in tasks.every if found else ():
        named = (entry.task.get("parent"), entry.task.get("parent_task"), entry.parent)
        for parent in {name for name in named if isinstance(name, str)}:
            if parent in found and parent != entry.task.get("id"):
                found[parent].append(entry)
    return found


def moves(
    tasks: Tasks, machine: Machine, now: float, live: Collection[str] = ()
) -> list[Transition]:
    """The moves that happen by themselves, to a fixed point. ``tasks`` itself is not changed.

    ``live``: the ids with a lease; what is not settled moves nothing.
    """
    done: dict[str, Transition] = {}

    def status(entry: Entry) -> str:
        moved = done.get(str(entry.task.get("id")))
        if moved and moved.entry is entry:
            return moved.target
        return status_of(entry.task) if is_settled(entry.task, live) else ""

    waiting = tasks.in_status("blocked", PLANNED)
    families = children(tasks, {entry.task["id"] for entry in tasks.in_status(PLANNED)})

    def unblocked(entry: Entry) -> bool:
        task = entry.task
        needed = [
            tasks.by_id.get(each) if isinstance(each, str) else None for each in dependencies(task)
        ]
        return (
            status(entry) == "blocked"
            and bool(needed)
            and not task.get("blocked_reason")
            and not task.get("blocker")
            and all(each is not None and status(each) in SATISFIED for each in needed)
        )

    def closed(entry: Entry) -> bool:
        if status(entry) != PLANNED:
            return False
        statuses = [status(child) for child in families[entry.task["id"]]]
        return all(each in ENDED for each in statuses) and any(
            each in SATISFIED for each in statuses
        )

    changed = True
    while changed:
        changed = False
        for entry in waiting:
            if machine.unblock and unblocked(entry):
                target = STARTS.get(str(entry.task.get("type")), START)
                why = "its dependencies are satisfied"
            elif machine.close_stories and closed(entry):
                target, why = "done", "its children have ended"
            else:
                continue
            source = status(entry)
            changes = {"status": target, "updated_at": format_time(now)}
            done[entry.task["id"]] = Transition(entry, changes, source, target, why)
            changed = True
    return list(done.values())
