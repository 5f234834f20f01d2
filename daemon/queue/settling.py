"""What settling puts into an update of the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daemon import byhand, lifecycle
from daemon.errors import LeaseLost
from daemon.index import Entry
from daemon.lifecycle import Machine
from daemon.model import Lease, Move, Outcome, Result, parse_time
from daemon.queue import intake
from daemon.queue.update import Update


def held(update: Update, lease: Lease, now: Lease | None, machine: Machine) -> Entry:
    """The task that is held under this lease. Raises LeaseLost if none is.

    ``now`` is what stands in the lease's file.
    """
    name, rules = lease.task_id, machine.roles[lease.role]
    entry = update.tasks.by_id.get(name)
    if entry is None:
        raise LeaseLost(f"{name} is no longer in the queue")
    token = lifecycle.token_of(entry.task)
    if token > lease.token or (now is not None and now.token > lease.token):
        raise LeaseLost(f"{name} has a later attempt than this one of token {lease.token}")
    if not lifecycle.is_held(entry.task, rules, lease.token):
        status = entry.task.get("status")
        raise LeaseLost(f"{name} was changed by hand: its status is {status}")
    return entry


def wished(lease: Lease, result: Result) -> Result:
    """The result in the light of what a person asked: what was done is kept, or goes with it."""
    done = result.outcome in {Outcome.SUCCESS, Outcome.REJECTED} and lease.wish == "release"
    if done or not lease.wish_in_words:
        return result
    return Result(Outcome.RELEASED, lease.wish_in_words, changes=result.changes)


def conclude(  # noqa: PLR0913  # all that a result meets
    update: Update,
    entry: Entry,
    lease: Lease,
    result: Result,
    *,
    machine: Machine,
    now: float,
    random: Callable[[], float],
    spent: Callable[[str], str],
) -> Move:
    """Put the result into the update, and what follows by itself; returns the task's move.

    ``lease`` is the one that stands in its file, where it is still there: with a person's wish.
    ``spent``: why the task's budget lets a role not claim it any more; "" where it does.
    """
    rules, status = machine.roles[lease.role], entry.task.get("status")
    result = wished(lease, result)
    if status != rules.holds and result.status is None:
        result = result._replace(status=str(status))  # the agent said it in the queue itself
    result = lifecycle.weigh(rules, result)
    new: list[dict[str, Any]] = []
    if result.add_tasks and result.outcome in (Outcome.SUCCESS, Outcome.REJECTED):
        try:
            new = intake.of_agent(result.add_tasks, update.tasks, machine, entry, lease.role)
        except ValueError as error:
            result = result._replace(outcome=Outcome.ERROR, note=f"add_tasks: {error}")
    transition = lifecycle.settle(entry, machine, lease.role, result, now, random)
    claims = next(
        (each for each in machine.roles.values() if transition.target in each.claims), None
    )
    if claims and result.outcome is not Outcome.RELEASED and (why := spent(claims.name)):
        transition = lifecycle.park(transition, rules.on_exhausted, f"budget: {why}")
    if lease.wish == "cancel":  # it wins over whatever the attempt came to meanwhile
        changes = {**(result.changes or {}), **byhand.cancel(entry.task, now)}
        target, why = lifecycle.CANCELLED, lease.wish_in_words
        transition = transition._replace(changes=changes, target=target, why=why)
    update.change(entry, transition.changes)
    started = parse_time(lease.started_at)
    move = Move(
        lease.task_id,
        lease.role,
        transition.source,
        transition.target,
        transition.why,
        outcome=result.outcome.value,
        attempt=lease.attempt,
        token=lease.token,
        seconds=None if started is None else max(0.0, now - started),
    )
    update.moves.append(move)
    update.append(new)
    update.moves += intake.told(new, f"added by {lease.task_id}")
    update.move_on(machine, now)
    return move
