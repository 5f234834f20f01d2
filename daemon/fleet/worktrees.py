"""The worktrees of a workspace, for a person: what they take of the disk, and which ones stay."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from typing import NamedTuple

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet.finding import FAIL, OK, WARN, Finding
from daemon.model import is_task_id

# A status must stay quick: what takes longer to count is "more than".
SECONDS, ENTRIES = 0.05, 20_000
LONG, MANY = 5.0, 2_000_000  # for the doctor
BLOCK = 512  # bytes of st_blocks, whatever the file system's own are
SHOWN = 5


class Usage(NamedTuple):
    """How many worktrees there are, and the bytes they take; not ``whole``: more than that."""

    number: int
    bytes: int
    whole: bool = True

    def __str__(self) -> str:
        noun = "worktree" if self.number == 1 else "worktrees"
        return f"{self.number} {noun}, {'' if self.whole else 'more than '}{size(self.bytes)}"


def size(amount: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:  # noqa: PLR2004  # as the units count
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def usage(config: Config, seconds: float = SECONDS, entries: int = ENTRIES) -> Usage | None:
    """What the worktrees take, as far as that can be counted in the time; None without any."""
    folder = config.paths.worktrees
    ids = list(filter(is_task_id, os.listdir(folder))) if os.path.isdir(folder) else []
    if not ids:
        return None
    until, taken = time.monotonic() + seconds, 0
    todo = [os.path.join(folder, each) for each in ids]
    while todo:
        try:
            with os.scandir(todo.pop()) as inside:
                for entry in inside:
                    entries -= 1
                    taken += entry.stat(follow_symlinks=False).st_blocks * BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
        except OSError:  # it is removed as we look, or no folder
            continue
        if entries <= 0 or time.monotonic() > until:
            return Usage(len(ids), taken, whole=not todo)
    return Usage(len(ids), taken)


def findings(config: Config) -> Iterator[Finding]:
    """What the doctor has to say of them."""
    from daemon.queue.opening import open_queue  # noqa: PLC0415  # a status needs none of it
    from daemon.reclaim import Reclaim  # noqa: PLC0415
    from daemon.repository import git, has_submodules  # noqa: PLC0415

    using = [name for name in config.run if config.roles[name].worktree]
    if using and has_submodules(git, config.workspace):
        what = f"{config.workspace} has submodules: worktrees would not get them"
        yield Finding("worktrees", FAIL, what, "set worktree: false", ", ".join(using))
    found = usage(config, LONG, MANY)
    if found is None:
        return
    yield Finding("worktrees", OK, f"{found} in {config.paths.worktrees}")
    try:
        kept = list(Reclaim(git, config, open_queue(config).snapshot).kept())
    except RolecallError:  # the queue, or git: both are looked at elsewhere
        return
    if kept:
        told = "; ".join(f"{each.task_id} ({each.why})" for each in kept[:SHOWN])
        more = f"; and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
        folder = os.path.join(config.paths.worktrees, kept[0].task_id)
        hint = f"keep what is of use, then: git worktree remove --force {shlex.quote(folder)}"
        what = f"{len(kept)} of tasks that have ended, kept: {told}{more}"
        yield Finding("worktrees", WARN, what, hint)
