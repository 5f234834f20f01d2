"""The releases on this host: which one runs, which one ran before, and which may go.

What changes them is called under ``place.Lock``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from typing import NamedTuple

from daemon.fleet.arrival import ASIDE, clear, sweep, verify
from daemon.fleet.place import (
    CURRENT,
    PREVIOUS,
    RELEASES,
    aside_of,
    linked,
    present,
    sync_one,
)

BETWEEN = 0.05  # seconds between two looks at the processes: longer than any exec takes
SEEN = ("cwd", "environ", "cmdline", "maps")  # of a process: where a release's path may stand


class Links(NamedTuple):
    """The ids of the release that runs and of the one before; None where there is none."""

    current: str | None
    previous: str | None


def links(place: str) -> Links:
    """What the links name now."""
    return Links(linked(place, CURRENT), linked(place, PREVIOUS))


def switch(place: str, identifier: str) -> bool:
    """Let ``current`` name that release, and ``previous`` the one before; whether that changed it.

    Each link is of the old or of the new release at every instant. Raises Damaged where the
    release is not what its manifest says.
    """
    verify(os.path.join(place, RELEASES, identifier))
    before = links(place)
    if before.current == identifier:
        return False
    point(place, Links(identifier, before.current))
    return True


def point(place: str, to: Links) -> None:
    """Let the links be these: how a switch is taken back, with what ``links`` said before it."""
    # `previous` first: what is broken off between the two still runs what it ran.
    for name, identifier in ((PREVIOUS, to.previous), (CURRENT, to.current)):
        path, aside = os.path.join(place, name), os.path.join(place, aside_of(name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside if identifier else path)
        if identifier:
            os.symlink(os.path.join(RELEASES, identifier), aside)
            os.rename(aside, path)
    sync_one(place)


def prune(place: str) -> list[str]:
    """Remove the releases that nobody needs any more; their ids.

    Kept are the current one, the previous one, and what a live process of this user still has: an
    attempt of an old release lives on, and imports of it what it needs late.
    """
    sweep(place)
    kept = {*links(place)}
    old = [each for each in present(place) if each not in kept]
    if old:
        busy = used(place)
        old = [each for each in old if each not in busy]
    for each in old:
        # Away under a name that no one looks for, so that no half of it is ever taken for whole.
        path = os.path.join(place, RELEASES, each)
        aside = os.path.join(place, RELEASES, ASIDE + each)
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
    return old


def used(place: str) -> set[str]:
    """The ids of the releases that live processes of this user name.

    In their working directory (a worker's), their environment (an attempt's PYTHONPATH), their
    arguments, or the files that they have mapped. Other accounts do not reach this folder.
    """
    folder = os.path.join(place, RELEASES)
    names = {os.fsencode(each) for each in (folder, os.path.realpath(folder))}
    pattern = re.compile(b"(?:%s)/([0-9a-f]{16})(?![0-9a-f])" % b"|".join(map(re.escape, names)))
    found: set[str] = set()
    # A process in the middle of an exec has an empty environment: look twice.
    for look in range(2):
        time.sleep(BETWEEN * look)
        for process in os.listdir("/proc"):
            if process.isdigit() and _is_ours(f"/proc/{process}"):
                text = b"\n".join(_read(f"/proc/{process}/{name}") for name in SEEN)
                found |= {each.decode() for each in pattern.findall(text)}
    return found


def _is_ours(process: str) -> bool:
    try:
        return os.stat(process).st_uid == os.geteuid()
    except OSError:
        return False


def _read(path: str) -> bytes:
    with contextlib.suppress(OSError):
        if path.endswith("cwd"):
            return os.fsencode(os.readlink(path))
        with open(path, "rb") as file:
            return file.read()
    return b""


def remove(place: str) -> None:
    """Remove all of it, as ``arrival.clear`` does; nothing can be imported any more after that."""
    clear(place)
