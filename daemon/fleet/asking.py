"""``queue.cancel``, ``queue.release``, ``queue.retry``: asked for, and seen through to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from daemon import executor, process
from daemon.byhand import holder
from daemon.config import Config
from daemon.errors import Problem, RolecallError
from daemon.fleet.board import Board
from daemon.fleet.here import UsageError, one_of
from daemon.fleet.orphans import MARGIN, POLL, kill, marker
from daemon.fleet.telling import Events
from daemon.index import status_of
from daemon.model import Lease
from daemon.queue import Queue, Stale, asking
from daemon.queue.lease import is_here
from daemon.queue.opening import open_queue

ALL = "all"
Ask = Callable[[Queue, str, str], Lease | None]


def cancel(config: Config, task_id: str) -> list[str]:
    """Cancel a task; its attempt's tree dies first. Returns lines for a person."""
    return _ask(config, task_id, asking.cancel, "cancelled")


def release(config: Config, task_id: str) -> list[str]:
    """Take a task from who holds it; it goes back, uncounted. Returns lines for a person."""
    return _ask(config, task_id, asking.release, "released")


def retry(
    config: Config, task_ids: str, status: str | None = None, kind: str | None = None
) -> Iterator[str]:
    """Make tasks claimable at once: these ids, with commas between, or ALL that stand so.

    Yields lines for a person. Those that could not be tried again are one RolecallError at the end.
    """
    ids = [each.strip() for each in task_ids.split(",") if each.strip()] or [task_ids]
    if kind is not None:
        if task_ids != ALL:
            raise UsageError(
                "--standing is for all tasks that stand so",
                hint=f"invoke queue.retry {ALL} --standing {kind}",
            )
        ids = [str(wait.entry.task["id"]) for wait in Board(config).pick(kind=kind)]
    _known(open_queue(config), ids)
    if status is not None:
        one_of("status", status, sorted(config.machine.claimed))
    problems: list[Problem] = []
    for task_id in ids:
        try:
            yield from _retry(config, task_id, status)
        except RolecallError as error:
            problems += error.problems
    if problems:
        failed = RolecallError(problems[0].what)
        failed.problems = tuple(problems)
        raise failed


def _retry(config: Config, task_id: str, status: str | None) -> list[str]:
    events = Events(config)
    ended = asking.retry(open_queue(config, teller=events), task_id, events.owner, status)
    lines = [*events.lines]
    if ended.credential:
        told = f"credential {ended.credential}: its wait is over, each of its roles claims again"
        lines.append(told)
    return lines + [f"{role}: it claims again, after an overspent attempt" for role in ended.roles]


def _ask(config: Config, task_id: str, ask: Ask, did: str) -> list[str]:
    events = Events(config)
    queue = open_queue(config, teller=events)
    _known(queue, [task_id])
    lease = ask(queue, task_id, events.owner)
    if lease is not None:
        _see_through(config, queue, lease)
    if events.lines or lease is None:
        return events.lines
    entry = queue.snapshot([task_id]).tasks.by_id.get(task_id)  # as its attempt has settled it
    now = status_of(entry.task) if entry else "gone"
    again = ", claimed anew" if entry and holder(entry.task, config.machine) else ""
    return [f"{task_id}: {did}: its attempt has ended, the task is {now}{again}"]


def _known(queue: Queue, ids: Sequence[str]) -> None:
    """Raise UsageError for an id that the queue does not have."""
    known = queue.snapshot(ids).tasks.by_id
    for task_id in ids:
        if task_id not in known:
            one_of("task", task_id, queue.snapshot().tasks.by_id)


def _can_answer(lease: Lease) -> bool:
    """Whether its process runs; one that was stopped (SIGSTOP) hears of nothing."""
    found = process.stat(lease.pid)
    return found is not None and found.started == lease.pid_started and found.state not in "ZXTt"


def _see_through(config: Config, queue: Queue, asked: Lease) -> None:
    """Wait until the attempt has settled; settle in its place where it can't.

    TERM wakes it, and it finds the wish when it settles. What has not ended after two kill graces,
    or cannot hear us, is killed. What is not ours to end (it is on another host, or of another
    workspace or account of this machine) finds the wish when it renews; a lease that has run out is
    recovered as a worker would.
    """
    role = config.roles[asked.role]
    mark, me = marker(config, asked), queue.me
    began, woken = time.monotonic(), False
    while True:
        lease = queue.read_lease(asked.task_id)
        if lease is None or lease.token != asked.token:
            if asked.pid:  # else its file was gone before, and nobody will settle
                return
            break
        ours = not lease.pid or (is_here(lease, me) and not executor.is_another_s(lease, mark))
        if ours and not _can_answer(lease):
            break
        if not ours and (why := queue.gone(lease)):
            queue.recover(Stale(lease, asked.task_id, why))  # its wish is in the lease
            return
        if ours and not woken:
            woken = executor.terminate(lease)
        patience = 2 * role.kill_grace + MARGIN + (0 if ours else role.heartbeat)
        if time.monotonic() >= began + patience:
            if ours:
                break
            raise RolecallError(
                f"{asked.task_id}: its attempt on {asked.host} has not answered in {patience:g} s",
                hint="it ends when it renews its lease, or when that runs out",
            )
        time.sleep(POLL)
    kill(config, queue, asked)
