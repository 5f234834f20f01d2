"""A git repository as we ask about it: its folders, its worktrees, whose name commits carry."""

from __future__ import annotations

import os
import shlex

from daemon.errors import ConfigError
from daemon.git import Git

git = Git()  # of those who may wait for as long as it takes: doctor, init
PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames")  # of a diff of ours
LONGEST_TITLE = 200


def common_folder(git: Git, folder: str) -> str:
    """The git folder that all worktrees of a repository share, absolute."""
    told = git(folder, "rev-parse", "--git-common-dir").rstrip("\n")
    return os.path.realpath(os.path.join(folder, told))


def own_folder(path: str) -> str:
    """The git folder that a worktree has for itself, by its own account; "" for what is none."""
    try:
        descriptor = os.open(os.path.join(path, ".git"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(4096)
    except OSError:
        return ""
    kind, _, told = text.partition(": ")
    return os.path.join(path, told.rstrip("\n")) if kind == "gitdir" else ""


def is_worktree(path: str, common: str) -> bool:
    """Whether it is a worktree of the repository with that shared git folder."""
    folder = own_folder(path)
    return os.path.isdir(folder) and os.path.dirname(os.path.realpath(folder)) == os.path.join(
        common, "worktrees"
    )


def check_top(git: Git, workspace: str) -> None:
    """Raise ConfigError where the workspace is not the top of its repository's files."""
    top = git(workspace, "rev-parse", "--show-toplevel").rstrip("\n")
    if os.path.realpath(top) == os.path.realpath(workspace):
        return
    if git.run(workspace, "config", "core.worktree").status == 0:
        raise ConfigError(
            f"core.worktree of {workspace} leads git to {top}: look at who set it, and unset it"
            f" (git -C {shlex.quote(workspace)} config --unset core.worktree)"
        )
    raise ConfigError(
        f"{workspace} is a folder inside the repository {top}, and worktrees are of a whole one:"
        " make that the workspace, or set worktree: false for the role"
    )


def registered(git: Git, workspace: str) -> list[str]:
    """The paths of the repository's worktrees, as git knows them."""
    told = git(workspace, "worktree", "list", "--porcelain").splitlines()
    return [line.removeprefix("worktree ") for line in told if line.startswith("worktree ")]


def has_submodules(git: Git, workspace: str) -> bool:
    """Whether the commit that worktrees are made of has submodules."""
    words = ("config", "--blob", "HEAD:.gitmodules", "--get-regexp", r"^submodule\..*\.path$")
    return git.run(workspace, *words).status == 0


def identity(git: Git, folder: str) -> dict[str, str]:
    """A git identity for the environment of agents and of ours; nothing where the user has one."""
    found: dict[str, str] = {}
    for key, value in (("NAME", "Rolecall agent"), ("EMAIL", "agent@localhost")):
        if not git.run(folder, "config", f"user.{key.lower()}").out.strip():
            found |= {f"GIT_{whom}_{key}": value for whom in ("AUTHOR", "COMMITTER")}
    return found


def scope(ours: tuple[str, ...]) -> tuple[str, ...]:
    """The pathspecs of everything but our own paths (``ours``, relative to the top)."""
    return ("--", ":/", *(f":(top,exclude,literal){path}" for path in ours))


def own(ours: tuple[str, ...]) -> tuple[str, ...]:
    """The pathspecs of our own paths."""
    return ("--", *(f":(top,literal){path}" for path in ours))


def names(text: str) -> list[str]:
    """The names of a list that git ends with NULs."""
    return list(filter(None, text.split("\0")))


def listed(found: list[str], most: int = 5) -> str:
    """Some of the names, for a person."""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def title_of(task: object) -> str:
    """A task's title as one line of a commit's message."""
    title = task.get("title") if isinstance(task, dict) else None
    if not isinstance(title, str):
        return ""
    words = "".join(c if c.isprintable() else " " for c in title).split()
    return " ".join(words)[:LONGEST_TITLE]
