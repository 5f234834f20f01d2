"""``invoke prompt``: what an agent would get for a task now. Nothing is made or changed."""

from __future__ import annotations

import os

from daemon import lifecycle, prompt, values
from daemon.config import Config
from daemon.fleet.here import UsageError, one_of
from daemon.index import Entry, status_of
from daemon.model import Lease, format_time
from daemon.queue import Queue, folder
from daemon.queue.ledger import value
from daemon.queue.opening import how_to_make, open_queue
from daemon.worktree import branch_of


def text(config: Config, task_id: str, role: str | None = None) -> str:
    """The prompt of the task's next attempt in the role, made as an attempt makes it.

    Without a role: the one that claims the task's status, or holds it. Raises UsageError, and
    PromptError where the attempt would be blocked by its template.
    """
    queue = open_queue(config)
    tasks = queue.snapshot().tasks
    if not queue.exists():
        raise UsageError("there is no queue here yet", where=queue.name, hint=how_to_make(config))
    one_of("task", task_id, tasks.by_id)
    entry = tasks.by_id[task_id]
    name = role_of(config, entry) if role is None else one_of("role", role, config.roles)
    lease = _lease(queue, name, entry)
    rules = config.machine.roles[name]
    claim = lifecycle.claim(entry, rules, value(lease), lease.token, queue.clock())
    own = config.roles[name].worktree
    given = values.of(
        config,
        lease,
        {**entry.task, **claim},
        os.path.join(config.paths.runs, task_id, str(lease.token)),
        os.path.join(config.paths.worktrees, task_id) if own else config.workspace,
        branch_of(task_id) if own else None,
        lambda _: tasks,
    )
    return prompt.of(config, config.roles[name], given)


def role_of(config: Config, entry: Entry) -> str:
    """The role that claims the task's status, or holds it. Raises UsageError for any other."""
    status = status_of(entry.task)
    for name, role in config.roles.items():
        if status in (*role.claims, role.holds):
            return name
    raise UsageError(
        f"no role claims or holds the status of {entry.task['id']}: {status or 'none'}",
        hint=f"say which: --role {'|'.join(config.roles)}",
    )


def _lease(queue: Queue, role: str, entry: Entry) -> Lease:
    """The lease that the task's next claim in the role would write, as far as a prompt tells it."""
    task_id, now = entry.task["id"], format_time(queue.clock())
    old, runs = queue.read_lease(task_id), queue.config.paths.runs
    known = (lifecycle.token_of(entry.task), old.token if old else 0)
    return Lease(
        task_id=task_id,
        role=role,
        owner=f"{queue.me.host}:{role}",
        started_at=now,
        ttl_seconds=queue.config.roles[role].lease_ttl,
        heartbeat_at=now,
        token=1 + max(*known, folder.largest(runs, task_id)),
        attempt=lifecycle.attempts_of(entry.task) + 1,
    )
