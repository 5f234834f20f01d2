"""What a person asks of one task: to cancel it, to release it, to try it again.

A task that an attempt is on is not taken from it: the wish is written into its lease, the attempt
ends its tree and settles accordingly. ``daemon.fleet.asking`` sees to it that it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from daemon import byhand, index, lifecycle
from daemon.errors import RolecallError
from daemon.index import Entry
from daemon.lifecycle import Changes
from daemon.model import Lease, Move, wish_in_words
from daemon.queue import Queue, staleness
from daemon.queue.update import Update


def cancel(queue: Queue, task_id: str, who: str) -> Lease | None:
    """The lease of the attempt that was asked; None where there is none, and it is done."""
    return _asked(queue, task_id, who, "cancel", lambda task: byhand.cancel(task, queue.clock()))


def release(queue: Queue, task_id: str, who: str) -> Lease | None:
    """The lease of the attempt that was asked; None where there is none, and it is done."""

    def change(task: dict[str, Any]) -> Changes:
        return byhand.release(task, queue.machine, queue.clock())

    return _asked(queue, task_id, who, "release", change)


class Ended(NamedTuple):
    """Whose waits a retry has ended: of which credential, of roles whose attempt overspent."""

    credential: str = ""
    roles: tuple[str, ...] = ()


def retry(queue: Queue, task_id: str, who: str, status: str | None = None) -> Ended:
    """Make the task claimable at once; returns what waits this has ended.

    Those of a credential, and of a role whose attempt overspent, end where the task was only
    waiting, or was blocked by a credential that is not accepted: a person wants it tried.
    """
    waited: list[str] = []

    def change(update: Update) -> None:
        entry = _task(update, task_id)
        lease = _of_ours(queue, entry)
        if lease is not None and not _is_held(queue, entry, lease):
            raise RolecallError(
                f"{task_id}: an attempt is still on it", hint=f"invoke queue.release {task_id}"
            )
        try:
            changes = byhand.retry(entry.task, queue.machine, queue.clock(), status)
        except ValueError as error:
            release = lifecycle.held_by_us(entry.task) or byhand.holder(entry.task, queue.machine)
            hint = f"invoke queue.release {task_id}" if release else f"--status {lifecycle.START}"
            raise RolecallError(f"{task_id}: {error}", hint=hint) from None
        present = index.status_of(entry.task)
        parked = present not in queue.machine.claimed
        coming = str(changes.get("status", present)) if parked else present
        waited[:] = [
            name
            for name, rules in queue.machine.roles.items()
            if coming in rules.claims
            and (not parked or queue.memory.throttle(queue.config.roles[name]).denied)
        ]
        _move(update, entry, changes, f"tried again by {who}")

    queue.update(change, [task_id])
    budgets = queue.memory.budgets
    parked = tuple(role for role in waited if budgets.parked(role))
    for role in parked:
        budgets.resume(role)
    for role in waited:
        credential = queue.config.roles[role].credential
        if credential and any(pause.kind == "credential" for pause in queue.memory.pauses(role)):
            queue.memory.end_wait(credential)
            return Ended(credential, parked)
    return Ended("", parked)


def _asked(
    queue: Queue, task_id: str, who: str, wish: str, decide: Callable[[dict[str, Any]], Changes]
) -> Lease | None:
    found: list[Lease] = []

    def change(update: Update) -> None:
        found.clear()
        entry = _task(update, task_id)
        lease = _of_ours(queue, entry)
        if lease is not None:
            found.append(queue.ask(lease, wish, who))
            if _is_held(queue, entry, lease):
                return  # the attempt settles; of what was moved by hand it would write nothing
        try:
            changes = decide(entry.task)
        except ValueError as error:
            if lease is not None:
                return
            raise RolecallError(f"{task_id}: {error}") from None
        _move(update, entry, changes, wish_in_words(wish, who))

    queue.update(change, [task_id])
    return found[0] if found else None


def _of_ours(queue: Queue, entry: Entry) -> Lease | None:
    """The lease of an attempt on the task, rebuilt where its file is gone."""
    lease = queue.read_lease(entry.task["id"])
    if lease is not None and lease.token:
        if lease.role not in queue.machine.roles and not queue.gone(lease):
            raise RolecallError(
                f"{lease.task_id}: its attempt is of the role {lease.role}, which is not known here"
            )
        if lease.role in queue.machine.roles:
            return lease
    return staleness.rebuilt(entry.task, queue.machine)


def _is_held(queue: Queue, entry: Entry, lease: Lease) -> bool:
    return lifecycle.is_held(entry.task, queue.machine.roles[lease.role], lease.token)


def _task(update: Update, task_id: str) -> Entry:
    entry = update.tasks.by_id.get(task_id)
    if entry is None:
        raise RolecallError(f"there is no task {task_id}", hint="invoke queue.list")
    return entry


def _move(update: Update, entry: Entry, changes: Changes, why: str) -> None:
    source = index.status_of(entry.task)
    update.change(entry, changes)
    update.moves.append(Move(entry.task["id"], "", source, str(changes.get("status", source)), why))
