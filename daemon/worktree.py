"""The git worktree of a task, on its branch; and whether an attempt changed anything in it."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from daemon.errors import RolecallError

# Code of the repository's own must not run in our calls: its hooks, its file-system monitor.
SAFE = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")


class GitError(RolecallError):
    """A git call that failed; the message holds what git said."""


def git(folder: str, *arguments: str) -> str:
    """Run git there and return what it prints. Raises GitError."""
    import subprocess  # noqa: PLC0415  # expensive, and only roles with a worktree need it

    command = ["git", "-C", folder, *SAFE, *arguments]
    environment = {**os.environ, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(  # a list, no shell
            command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError:
        raise GitError("git is not installed", hint="invoke doctor") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitError(f"git {arguments[0]}: {said[-1] if said else done.returncode}", where=folder)
    return done.stdout.decode(errors="surrogateescape")


def branch_of(task_id: str) -> str:
    """The branch that a task's roles share."""
    return f"agent/{task_id}"


def _discard_unfinished(path: str) -> None:
    """Remove a worktree that an attempt died over making; ``git worktree prune`` does the rest.

    Git keeps it locked until it is complete. What stands there half checked out looks as if
    everything else had been deleted.
    """
    try:
        with open(os.path.join(path, ".git"), encoding="utf-8", errors="surrogateescape") as file:
            lock = os.path.join(file.read().removeprefix("gitdir:").strip(), "locked")
        with open(lock, encoding="utf-8", errors="surrogateescape") as file:
            reason = file.read().strip()
    except OSError:
        return
    if reason == "initializing":
        import shutil  # noqa: PLC0415  # hardly ever needed

        os.unlink(lock)
        shutil.rmtree(path)


def prepare(workspace: str, path: str, task_id: str) -> str:
    """Make the task's worktree, or find it as an earlier role left it; returns its branch."""
    branch = branch_of(task_id)
    _discard_unfinished(path)
    if os.path.exists(os.path.join(path, ".git")):
        present = git(path, "rev-parse", "--abbrev-ref", "HEAD").strip()
        if present == branch:
            return branch
        raise GitError(f"the worktree is on {present}, not on {branch}", where=path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    git(workspace, "worktree", "prune")
    if git(workspace, "branch", "--list", branch).strip():
        git(workspace, "worktree", "add", "--quiet", path, branch)
    else:
        git(workspace, "worktree", "add", "--quiet", "-b", branch, path, "HEAD")
    return branch


def identity(folder: str) -> dict[str, str]:
    """A git identity for the agent's environment; nothing where the user has one."""
    try:
        if git(folder, "config", "user.email").strip():
            return {}
    except GitError:
        pass
    who = {"NAME": "Rolecall agent", "EMAIL": "agent@localhost"}
    return {f"GIT_{whom}_{key}": who[key] for whom in ("AUTHOR", "COMMITTER") for key in who}


class State(NamedTuple):
    """What a folder held: its commit, and a digest of what is not committed."""

    commit: str
    digest: str


def state(folder: str, ours: tuple[str, ...]) -> State:
    """The folder's state now, less our own paths (``ours``, relative to the repository's top)."""
    scope = ("--", ":/", *(f":(top,exclude){path}" for path in ours))
    commit = git(folder, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    digest = hashlib.sha256(git(folder, "diff", "HEAD", *scope).encode(errors="surrogateescape"))
    top = git(folder, "rev-parse", "--show-toplevel").strip()
    listed = git(folder, "ls-files", "-z", "--others", "--exclude-standard", "--full-name", *scope)
    for name in sorted(filter(None, listed.split("\0"))):
        try:
            found = os.lstat(os.path.join(top, name))
        except OSError:
            continue
        line = f"{name}\0{found.st_size}\0{found.st_mtime_ns}\0"
        digest.update(line.encode(errors="surrogateescape"))
    return State(commit, digest.hexdigest())
