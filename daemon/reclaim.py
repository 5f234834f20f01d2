"""Worktrees of tasks that have ended: removed where nothing is lost, else kept, and why."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from daemon.config import Config
from daemon.evidence import own_paths
from daemon.git import Git
from daemon.index import status_of
from daemon.lifecycle import ENDED
from daemon.model import is_task_id
from daemon.queue import Snapshot
from daemon.repository import common_folder, is_worktree, listed, own_folder
from daemon.state import dirty, hidden, nested
from daemon.worktree import MERGING, alone, branch_of, path_of

Look = Callable[[Collection[str]], Snapshot]

GONE = ".gone-"  # what the folder of a worktree is called while it is being removed
HEADS = "refs/heads/"


class Kept(NamedTuple):
    """A worktree, or a branch, that stays though its task has ended or is no more."""

    task_id: str
    why: str


class Reclaim:
    """One workspace's worktrees, seen in the light of its queue."""

    def __init__(self, git: Git, config: Config, look: Look) -> None:
        self.git, self.config = git, config
        self.workspace, self.ours = config.workspace, own_paths(config)
        self.common = common_folder(git, config.workspace)
        self.merged = set(self.branches("--merged=HEAD"))
        self.snapshot = look({*present(config), *self.merged})

    def branches(self, *which: str) -> list[str]:
        """The ids of the tasks that have a branch."""
        words = ("for-each-ref", "--format=%(refname)", *which, f"{HEADS}agent/")
        return [
            name.removeprefix(f"{HEADS}agent/")
            for name in self.git(self.workspace, *words).splitlines()
        ]

    def has_ended(self, task_id: str) -> bool:
        """Whether nothing will work in it any more, of itself."""
        return ended(self.snapshot, task_id)

    def why_kept(self, task_id: str) -> str:
        """What would be lost with the worktree of an ended task; "" for nothing."""
        path = path_of(self.config, task_id)
        if os.path.islink(path) or not is_worktree(path, self.common):
            return "it is no worktree of this repository"
        if task_id not in self.merged:
            return f"{branch_of(task_id)} is not merged"
        folder = own_folder(path)
        if os.path.exists(os.path.join(folder, "locked")):
            return "it is locked (git worktree lock)"
        head = self.git.run(path, "symbolic-ref", "--quiet", "HEAD").out.strip()
        if head != HEADS + branch_of(task_id) or os.path.exists(os.path.join(folder, MERGING)):
            return f"it is not on {branch_of(task_id)}"
        found = [*dirty(self.git, path, self.ours), *hidden(self.git, path)]
        if found:
            return f"it holds what nobody committed: {listed(found)}"
        found = nested(self.git, path)
        return f"it holds a repository of its own: {listed(found)}" if found else ""

    def remove(self, task_id: str) -> None:
        """Remove a worktree; killed at any instant, this leaves nothing that looks like work."""
        path = path_of(self.config, task_id)
        gone = os.path.join(os.path.dirname(path), GONE + task_id)
        if os.path.lexists(gone):
            self.finish(gone)
        os.rename(path, gone)
        self.finish(gone)

    def finish(self, gone: str) -> None:
        """Remove what was a worktree, and what git knows of it."""
        task_id = os.path.basename(gone).removeprefix(GONE)
        if is_worktree(gone, self.common) and not os.path.lexists(path_of(self.config, task_id)):
            _remove_tree(own_folder(gone))
        _remove_tree(gone)

    def kept(self) -> Iterator[Kept]:
        """Each that stays though its task has ended, or that no task of the queue's has; why."""
        for task_id in present(self.config):
            if task_id not in self.snapshot.tasks.by_id:
                yield Kept(task_id, "the queue has no such task")
            elif self.has_ended(task_id):
                why = self.why_kept(task_id)
                if why:  # else the next attempt that ends removes it
                    yield Kept(task_id, why)


def ended(snapshot: Snapshot, task_id: str) -> bool:
    """Whether the queue says that the task has ended, and nobody is on it."""
    entry = snapshot.tasks.by_id.get(task_id)
    return entry is not None and status_of(entry.task) in ENDED and task_id not in snapshot.leases


def present(config: Config) -> list[str]:
    """The ids of the tasks that have something where their worktree would be."""
    try:
        return sorted(filter(is_task_id, os.listdir(config.paths.worktrees)))
    except OSError:
        return []


def reclaim(git: Git, config: Config, look: Look) -> list[str]:
    """Remove the worktrees and the branches of ended tasks that lose nothing; the tasks' ids.

    ``look`` reads these tasks of the queue; it is asked under the lock that makers of worktrees
    hold. Raises RolecallError.
    """
    done: list[str] = []
    standing = present(config)
    if not _left(config):
        seen = look(standing) if standing else None
        if seen is None or not any(ended(seen, each) for each in standing):
            return done  # most often
    with alone(git, config, "worktrees"):
        found = Reclaim(git, config, look)
        for gone in _left(config):
            found.finish(gone)
        for task_id in present(config):
            if found.has_ended(task_id) and task_id in found.merged and not found.why_kept(task_id):
                with _idle(config, task_id) as mine:
                    if mine:
                        found.remove(task_id)
                        done.append(task_id)
        for task_id in found.merged - set(present(config)):
            if found.has_ended(task_id):
                git.run(config.workspace, "branch", "--quiet", "-d", branch_of(task_id))
    return done


def _left(config: Config) -> list[str]:
    """What a killed removal has left."""
    folder = config.paths.worktrees
    return [os.path.join(folder, each) for each in os.listdir(folder) if each.startswith(GONE)]


@contextmanager
def _idle(config: Config, task_id: str) -> Iterator[bool]:
    """Whether no attempt works in the worktree, for as long as this is held."""
    path = os.path.join(config.paths.locks, f"worktree-{task_id}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_tree(path: str) -> None:
    import shutil  # noqa: PLC0415  # hardly ever needed

    shutil.rmtree(path, ignore_errors=True)
