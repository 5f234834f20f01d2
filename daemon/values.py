"""The values that a prompt's template can name: the task, where it is worked on, what went before.

Every attempt makes them. What only some need, earlier run folders and other tasks of the queue, is
read only where a task has them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from typing import Any

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.index import Tasks
from daemon.lifecycle import dependencies
from daemon.model import Lease

Look = Callable[[Collection[str]], Tasks]


def of(  # noqa: PLR0913, PLR0917  # what an attempt, or a preview of one, knows
    config: Config,
    lease: Lease,
    task: dict[str, Any],
    run_dir: str,
    cwd: str,
    branch: str | None,
    tasks: Look,
) -> dict[str, Any]:
    """The values of one attempt: strings, numbers, and lists of mappings. docs/agents.md has them.

    ``branch`` is the one that the attempt's worktree is on (None without a worktree), ``tasks``
    reads these tasks of the queue.
    """
    role, main = config.roles[lease.role], main_branch(config.workspace)
    known = task.get("branch")
    known = known if isinstance(known, str) and known.isprintable() else ""
    return {
        "task": task,
        "task_json": json.dumps(task, indent=2, ensure_ascii=False),
        "role": role.name,
        "attempt": lease.attempt,
        "workspace": config.workspace,
        "worktree": cwd,
        "result_file": os.path.join(run_dir, "result.json"),
        "task_file": os.path.join(run_dir, "task.json"),
        "branch": branch or known or main,
        "main": main,
        "gates": [" ".join(gate) for gate in role.gates],
        **_background(config, lease, task, tasks),
    }


def _background(config: Config, lease: Lease, task: dict[str, Any], tasks: Look) -> dict[str, Any]:
    gates = config.roles[lease.role].gates
    first = lease.token == 1 and not task.get("last_error")
    if first and not task.get("dependencies") and not gates:
        return {"dependencies": [], "history": [], "failure": None, "background": ""}
    from daemon import background, history  # noqa: PLC0415  # most attempts have nothing to read

    runs = config.paths.runs
    past = [] if lease.token == 1 else history.read(runs, lease.task_id, before=lease.token)
    needs = background.needed(task, _known(task, tasks)) if task.get("dependencies") else []
    for place, need in enumerate(needs):
        told = history.verdicts(runs, need.id, history.MOST) if need.status != "unknown" else []
        notes = [each.note for each in told if each.outcome == "success" and each.note]
        needs[place] = need._replace(note=notes[-1] if notes else "")
    failed = background.failures(task, past)
    commands = [" ".join(gate) for gate in gates]
    return {
        "dependencies": [each._asdict() for each in needs],
        "history": [each._asdict() for each in past],
        "failure": failed[0]._asdict() if failed else None,
        "background": background.text(needs, past, failed, commands),
    }


def _known(task: dict[str, Any], tasks: Look) -> Tasks:
    """What it depends on; while somebody is at the queue's file, an attempt goes on without."""
    try:
        return tasks([each for each in dependencies(task) if isinstance(each, str)])
    except (RolecallError, OSError):
        return Tasks(())


def main_branch(workspace: str) -> str:
    """What the workspace has checked out: a branch, or the commit of a detached HEAD; "" for none.

    Read without git, whose start would be felt in each attempt.
    """
    git = os.path.join(workspace, ".git")
    try:
        if os.path.isfile(git):  # a worktree, or a submodule
            with open(git, encoding="utf-8") as file:
                git = os.path.join(workspace, file.read().removeprefix("gitdir:").strip())
        with open(os.path.join(git, "HEAD"), encoding="utf-8") as file:
            name = file.read(4096).strip().removeprefix("ref: ").removeprefix("refs/heads/")
            return name if name.isprintable() else ""
    except (OSError, ValueError):
        return ""
