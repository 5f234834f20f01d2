"""Conflicts that a merge has left in a worktree, and whether an agent has mended them."""

from __future__ import annotations

import os
import re

from daemon.git import Git
from daemon.repository import names

MARKER = re.compile(rb"^(?:<{7}|>{7}|\|{7})(?: |$)", re.MULTILINE)


def left(git: Git, folder: str) -> list[str]:
    """The files that a merge has left in conflict, and that nobody has mended since.

    Agents edit a file and do not tell git: it is mended when both sides had it and no marker
    is left in it. What one side removed, and what is no text, they must tell (git add, git rm).
    """
    sides: dict[str, str] = {}
    for each in names(git(folder, "ls-files", "--unmerged", "-z", "--full-name")):
        facts, _, name = each.partition("\t")
        sides[name] = sides.get(name, "") + facts[-1]
    return [
        name
        for name, found in sides.items()
        if not {"2", "3"} <= set(found) or not _is_mended(os.path.join(folder, name))
    ]


def _is_mended(path: str) -> bool:
    """Whether a text holds none of the markers that git writes into a conflict."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            data = file.read()
    except OSError:
        return False
    return b"\0" not in data and not MARKER.search(data)
