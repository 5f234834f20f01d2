"""What a folder of a repository holds, seen through git: whether an attempt changed anything."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple

from daemon.git import Git
from daemon.repository import PLAIN, listed, names, scope

GITLINK = "160000"  # the mode of a submodule's entry
CHUNK = 1 << 20  # bytes of a file that are read at once


class State(NamedTuple):
    """What a folder held: its commit, and a digest of what is not committed."""

    commit: str
    digest: str


def state(git: Git, folder: str, ours: tuple[str, ...]) -> State:
    """The folder's state now, less our own paths (``ours``, relative to the repository's top)."""
    commit = git(folder, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    changed = git(folder, "diff", *PLAIN, "--full-index", "HEAD", *scope(ours))
    digest = hashlib.sha256(changed.encode(errors="surrogateescape"))
    top = git(folder, "rev-parse", "--show-toplevel").rstrip("\n")
    for name in sorted(untracked(git, folder, ours)):
        digest.update(
            f"{name}\0{_content(git, os.path.join(top, name))}\0".encode(errors="replace")
        )
    return State(commit, digest.hexdigest())


def differs(git: Git, folder: str, ours: tuple[str, ...], before: State, after: State) -> bool:
    """Whether an attempt changed anything: contents count, neither times nor empty commits."""
    if before.digest != after.digest:
        return True
    if before.commit == after.commit:
        return False
    words = ("diff", "--quiet", *PLAIN, before.commit, after.commit)
    return not git.says(folder, *words, *scope(ours))


def untracked(git: Git, folder: str, ours: tuple[str, ...]) -> list[str]:
    """The files there that git neither knows nor ignores, relative to the repository's top.

    A repository of its own is none: no commit holds what is in it.
    """
    return [name for name in strangers(git, folder, ours) if not name.endswith("/")]


def strangers(git: Git, folder: str, ours: tuple[str, ...]) -> list[str]:
    """Those files, and the folders (they end with a slash) that are repositories of their own."""
    words = ("ls-files", "-z", "--others", "--exclude-standard", "--full-name")
    return names(git(folder, *words, *scope(ours)))


def links(git: Git, folder: str, base: str, commit: str = "") -> list[str]:
    """The folders that are links to other repositories' commits, and were none in the base.

    ``commit``: where to look; the index else.
    """
    words = ("diff", "--raw", "-z", "--no-abbrev", "--ignore-submodules=none", *PLAIN)
    told = names(git(folder, *words, *((base, commit) if commit else ("--cached", base))))
    return [
        name
        for facts, name in zip(told[::2], told[1::2], strict=True)
        if facts.split()[1] == GITLINK != facts.split()[0].lstrip(":")
    ]


def linked(found: list[str]) -> str:
    """What is to be said of those."""
    return (
        f"{listed(found)}: a repository of its own, of which a commit would only hold a link, not"
        " the files (remove its .git, or do not add it)"
    )


def nested(git: Git, top: str) -> list[str]:
    """The folders below, ignored ones too, that are repositories of their own, relative to it."""
    found: list[str] = []
    for folder, folders, files in os.walk(top):
        git.pulse()
        if folder != top and ".git" in (*folders, *files):
            found.append(os.path.relpath(folder, top))
            folders.clear()
    return found


def hidden(git: Git, folder: str) -> list[str]:
    """The files there that git was told not to look at (skip-worktree, assume-unchanged)."""
    told = names(git(folder, "ls-files", "-v", "-z", "--full-name"))
    return [
        each[2:]
        for each in told
        if (each[0] == "S" or each[0].islower()) and os.path.lexists(os.path.join(folder, each[2:]))
    ]


def dirty(git: Git, folder: str, ours: tuple[str, ...]) -> list[str]:
    """The files there that differ from the commit, or are in none, less our own paths."""
    words = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    return [each[3:] for each in names(git(folder, *words, *scope(ours)))]


def _content(git: Git, path: str) -> str:
    """What tells the content of a file that is in no commit; links are not followed."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return f"link {os.readlink(path)}"
        if not stat.S_ISREG(mode):
            return f"mode {stat.S_IFMT(mode):o}"
        digest = hashlib.sha256(b"x" if mode & stat.S_IXUSR else b"-")
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            while data := file.read(CHUNK):
                digest.update(data)
                git.pulse()
    except OSError as error:
        return str(error.strerror)
    return digest.hexdigest()
