"""What a folder of a repository holds, seen through git: whether an attempt changed anything."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import NamedTuple

from daemon.git import Git
from daemon.repository import PLAIN, names, scope

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
    """The files there that git neither knows nor ignores, relative to the repository's top."""
    words = ("ls-files", "-z", "--others", "--exclude-standard", "--full-name")
    return names(git(folder, *words, *scope(ours)))


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
