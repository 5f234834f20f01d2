"""Conflicts that a merge has left in a worktree, and whether an agent has mended them."""

from __future__ import annotations

import os
import re

from daemon.git import Git
from daemon.repository import PLAIN, names

MARKER = re.compile(rb"^(?:<{7}|>{7}|\|{7})(?: |$)", re.MULTILINE)

LEFT = ": leftover conflict marker"  # as git diff --check ends such a line


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


def committed(git: Git, folder: str, base: str, commit: str) -> list[str]:
    """The files into which a commit brings the markers of a conflict, beside what the base has.

    A line of them may be a heading; a conflict begins and ends. Where a text is to hold them, the
    attribute ``conflict-marker-size`` says how long real ones are.
    """
    said = git.run(folder, "diff", "--check", *PLAIN, base, commit).out.splitlines()
    found = [line.rpartition(":")[0].rpartition(":")[0] for line in said if line.endswith(LEFT)]
    return [each for each in dict.fromkeys(found) if _has_both(git, folder, f"{commit}:{each}")]


def _has_both(git: Git, folder: str, blob: str) -> bool:
    text = "\n" + git.run(folder, "cat-file", "blob", blob).out
    return "\n<<<<<<< " in text and "\n>>>>>>> " in text


def _is_mended(path: str) -> bool:
    """Whether a text holds none of the markers that git writes into a conflict."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            data = file.read()
    except OSError:
        return False
    return b"\0" not in data and not MARKER.search(data)
