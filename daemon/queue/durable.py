"""Files that are whole at every instant, and stay after a power cut."""

from __future__ import annotations

import _thread  # threading is felt at the start of every attempt
import contextlib
import errno
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from daemon.errors import RolecallError

HINTS = {
    errno.ENOSPC: "make room on that disk; what was there is unchanged",
    errno.EDQUOT: "make room in that quota; what was there is unchanged",
    errno.EROFS: "the file system is read-only; what was there is unchanged",
    errno.EIO: "the disk fails: look at what the kernel says of it (dmesg)",
    errno.EACCES: "look at the folder's owner and permissions",
}
FULL = HINTS.keys() - {errno.EACCES}  # of the whole disk, whichever file it was


class Aside(NamedTuple):
    """A file that was written beside another one, to take its place.

    ``precise``: it has the very mtime that we gave it, which no later write into it can hit.
    """

    path: str
    found: os.stat_result
    precise: bool

    @property
    def is_there(self) -> bool:
        """Whether that file still has its name."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), self.found)
        except OSError:
            return False


class DiskError(RolecallError):
    """The system takes no more writes, of whatever task."""


def failure(error: OSError, path: str) -> RolecallError:
    """What the system refused, in our voice."""
    kind = DiskError if error.errno in HINTS else RolecallError
    return kind(f"cannot write: {error.strerror}", where=path, hint=HINTS.get(error.errno or 0, ""))


def sync_folder(path: str) -> None:
    """Make what was created, renamed or removed in the folder last."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(error, path) from None


def aside_of(path: str) -> str:
    """Where a file is written that is to take the place of ``path``."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.new")


def _sync(fd: int, folders: Sequence[str]) -> None:
    """Make a file and the folders last, all at once: a disk needs as long for four as for one."""
    failed: list[RolecallError] = []

    def sync(folder: str, done: _thread.LockType) -> None:
        try:
            sync_folder(folder)
        except RolecallError as error:
            failed.append(error)
        finally:
            done.release()

    started = []
    for folder in folders:
        done = _thread.allocate_lock()
        done.acquire()
        try:
            _thread.start_new_thread(sync, (folder, done))
        except RuntimeError:  # no more threads are to be had
            sync(folder, done)
        started.append(done)
    try:
        os.fsync(fd)
    finally:
        for done in started:
            done.acquire()
    if failed:
        raise failed[0]


def write_aside(
    path: str,
    data: bytes,
    *,
    like: os.stat_result | None,
    sync: bool,
    folders: Sequence[str] = (),
) -> Aside:
    """Write a file beside ``path``, ready to take its place.

    The name is fixed (its writers hold a lock), so that what a killed writer left is replaced.
    ``like``: whose mode and group it gets. ``folders``: what is to last as well, with ``sync``.
    """
    aside = aside_of(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(aside, flags, 0o644)
    except OSError as error:
        raise failure(error, path) from None
    try:
        try:
            if like is not None:
                if like.st_gid != os.fstat(fd).st_gid:
                    _give(fd, like.st_gid)
                os.fchmod(fd, like.st_mode & 0o7777)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            # The kernel's own time stands still for some milliseconds, and so tells no two writes
            # within them apart.
            now = time.time_ns()
            os.utime(fd, ns=(now, now))
            if sync:
                _sync(fd, folders)
            found = os.fstat(fd)
        finally:
            os.close(fd)
    except BaseException as error:
        drop(aside)
        if isinstance(error, OSError):
            raise failure(error, path) from None
        raise
    return Aside(aside, found, found.st_mtime_ns == now)


def _give(fd: int, group: int) -> None:
    with contextlib.suppress(OSError):  # not a group of ours: the writer's own will do
        os.fchown(fd, -1, group)


def put(aside: str, path: str) -> None:
    """Let the file take the place of ``path``. It lasts once the folder is synced."""
    try:
        os.rename(aside, path)
    except OSError as error:
        drop(aside)
        raise failure(error, path) from None


def drop(path: str) -> None:
    """Remove a file, if it is there and can be."""
    with contextlib.suppress(OSError):
        os.unlink(path)
