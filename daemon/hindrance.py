"""What of a person's stands in a merge's way in the workspace: it is waited for, or it is named."""

from __future__ import annotations

import os
import shlex
import time

from daemon.git import Git, GitError
from daemon.repository import listed

PATIENCE = 30.0  # seconds that a person's own git, or a merge that is not concluded, may take
NAP = 0.2  # seconds between looks
# The first words of git's lists of files, and whether it lists changes that a stash can hold.
LISTS = {
    "Your local changes to the following files would be overwritten": True,
    "The following untracked working tree files would be": False,
    "Updating the following directories would lose untracked files": False,
}
# What git says where it has changed nothing yet.
UNTOUCHED = (*LISTS, "index.lock': File exists", "not concluded", "unmerged files")


def await_quiet(git: Git, workspace: str) -> None:
    """Wait for a git that a person runs there. Raises GitError, with the file, if it takes long."""
    until = time.monotonic() + PATIENCE
    told = ("rev-parse", "--git-path", "index.lock", "--git-path", "MERGE_HEAD")
    lock, merge = (os.path.join(workspace, each) for each in git(workspace, *told).splitlines())
    while os.path.lexists(lock) or os.path.lexists(merge):
        if time.monotonic() > until:
            what = (
                f"another git is at work there, or died over it: {lock}"
                if os.path.lexists(lock)
                else f"a merge of yours is not concluded there: {merge}"
            )
            raise GitError(what, where=workspace)
        git.pulse()
        time.sleep(NAP)


def in_the_way(said: str, workspace: str) -> str:
    """The files that git found in the way of a merge, and what to do with them; "" for none.

    A stash names its files: without, it would take the queue away as well.
    """
    found: dict[bool, list[str]] = {True: [], False: []}
    held: bool | None = None
    for line in said.splitlines():
        if line.startswith("\t"):
            if held is not None:
                found[held].append(line[1:])
        else:
            start = line.removeprefix("error: ")
            held = next((LISTS[each] for each in LISTS if start.startswith(each)), None)
    ways = []
    if found[True]:
        names = " ".join(map(shlex.quote, found[True]))
        stash = f"git -C {shlex.quote(workspace)} stash push --include-untracked -- {names}"
        ways.append(f"{listed(found[True])} (commit, or: {stash})")
    if found[False]:
        ways.append(f"{listed(found[False])} (in no commit of yours: move it away)")
    return "; ".join(ways)
