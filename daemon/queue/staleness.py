"""Which leases are stale: their attempts gone, their tasks still held or not. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daemon import index, lifecycle
from daemon.index import Tasks
from daemon.lifecycle import Machine, Rules
from daemon.model import Lease, parse_time
from daemon.queue import Stale
from daemon.queue.lease import Found


def find(tasks: Tasks, found: Found, machine: Machine, gone: Callable[[Lease], str]) -> list[Stale]:
    """The leases of attempts that are gone, and held tasks of ours without a lease.

    Leases of roles that this machine does not have are somebody else's to recover.
    """
    stale = []
    for name, lease in found.leases.items():
        ours = not lease.token or lease.role in machine.roles
        why = gone(lease) if ours else ""
        if why:
            stale.append(Stale(lease, name, why if holds(tasks, lease, machine) else "orphan"))
    for entry in tasks.in_status(*(rules.holds for rules in machine.roles.values())):
        name = entry.task["id"]
        if name not in found.leases and name not in found.broken:
            held = rebuilt(entry.task, machine)
            if held is not None:
                stale.append(Stale(held, name, "vanished"))
    return stale


def holds(tasks: Tasks, lease: Lease, machine: Machine) -> bool:
    """Whether the lease's task is held under just this lease."""
    entry, rules = tasks.by_id.get(lease.task_id), machine.roles.get(lease.role)
    return (
        entry is not None
        and rules is not None
        and lifecycle.is_held(entry.task, rules, lease.token)
    )


def is_abandoned(tasks: Tasks, lease: Lease, machine: Machine) -> bool:
    """Whether a person has moved or removed the lease's task, so that nothing can be settled.

    An old buffer that brings back what was before the claim is not that: the hold is written again.
    """
    if not lease.token or lease.role not in machine.roles or holds(tasks, lease, machine):
        return False
    entry = tasks.by_id.get(lease.task_id)
    return entry is None or not can_be_restored(entry.task, lease, machine)


def can_be_restored(task: dict[str, Any], lease: Lease, machine: Machine) -> bool:
    """Whether the task stands as it did before it was claimed under this lease."""
    claims = machine.roles[lease.role].claims
    return lifecycle.token_of(task) < lease.token and task.get("status") in claims


def rebuilt(task: dict[str, Any], machine: Machine) -> Lease | None:
    """The lease of a held task of ours, as far as the task itself tells it."""
    token, held = lifecycle.held_by_us(task), task.get("lease")
    status = task.get("status")
    names = [name for name, rules in machine.roles.items() if rules.holds == status]
    if not token or not names or not isinstance(held, dict):
        return None
    agent, started = task.get("agent"), str(held.get("started_at", ""))
    return Lease(
        task_id=task["id"],
        role=agent if isinstance(agent, str) and agent in names else names[0],
        owner=str(held.get("owner", "")),
        started_at=started,
        ttl_seconds=0.0,
        heartbeat_at=started,
        token=token,
        attempt=lifecycle.attempts_of(task) + 1,
    )


def hand_expiry(task: dict[str, Any], rules: Rules, now: float) -> float | None:
    """When a lease that stands in a task alone, put there by hand, runs out."""
    held = task.get("lease")
    if not isinstance(held, dict) or task.get("status") not in rules.claims:
        return None
    beat, seconds = parse_time(held.get("heartbeat_at")), index.number(held.get("ttl_seconds"))
    if beat is None or seconds is None or beat + seconds <= now:
        return None
    return beat + seconds
