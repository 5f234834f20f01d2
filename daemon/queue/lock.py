"""Locks of files: bounded waiting that names who holds it. Lock files are never unlinked."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat as modes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from daemon import process
from daemon.errors import LockTimeout, RolecallError
from daemon.queue import durable

LOCK_WAIT = 30.0  # seconds
LONGEST_NAP = 0.05  # seconds between two tries
SHORTEST_NAP = 0.0002
NAME = 256  # bytes of a lock file: who holds it, filled up with blanks


@contextmanager
def hold(
    path: str, wait: float = LOCK_WAIT, pulse: Callable[[], None] | None = None
) -> Iterator[int]:
    """Hold the lock for a while; what stands behind NAME bytes of its file is the holder's to use.

    The file's descriptor is given. Raises LockTimeout when it is not to be had in ``wait`` seconds.
    ``pulse`` is called between two tries; what it raises ends the waiting.

    A holder of this host that was found stopped (SIGSTOP) all that time is killed.
    """
    fd = _locked(path, wait, pulse)
    try:
        me = process.identity()
        try:
            # Always as long: a file that shrinks is written to the disk at once by some systems.
            name = f"{me.pid} {me.pid_started} {me.host}".ljust(NAME - 1)
            os.pwrite(fd, f"{name}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the name is for people, the lock holds without it
        yield fd
    finally:
        os.close(fd)


@contextmanager
def patiently(path: str, pulse: Callable[[], None]) -> Iterator[int]:
    """Hold the lock, however long others hold it; what ``pulse`` raises ends the waiting."""
    while True:
        holding = hold(path, pulse=pulse)
        try:
            fd = holding.__enter__()
        except LockTimeout:
            continue
        break
    try:
        yield fd
    finally:
        holding.__exit__(None, None, None)


def _open(path: str) -> int:
    try:
        try:
            fd = _file(path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            fd = _file(path)
    except OSError as error:
        if error.errno in durable.FULL:
            raise durable.failure(error, path) from None
        what = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise _refused(f"{what}", path) from None
    if not modes.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _refused("not a regular file", path)
    return fd


def _file(path: str) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError as refused:
        try:  # another account made it: a lock needs no right to write
            return os.open(path, flags | os.O_RDONLY)
        except FileNotFoundError:
            raise refused from None


def _refused(what: str, path: str) -> RolecallError:
    return RolecallError(f"cannot lock: {what}", where=path, hint=f"look at it: ls -ld {path}")


def _locked(path: str, wait: float, pulse: Callable[[], None] | None) -> int:
    start = time.monotonic()
    began, nap, stopped_since, looked = start, SHORTEST_NAP, None, start
    killed = False
    fd = _open(path)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now = time.monotonic()
                if now - looked >= min(0.25, wait / 10):
                    looked = now
                    stopped_since = (stopped_since or now) if _stopped(fd) else None
                if now - start >= wait:
                    # The first look came a little after the first try: allow for that.
                    if killed or not stopped_since or now - stopped_since < wait * 0.8:
                        raise _timeout(path, fd, wait) from None
                    _kill_stopped(fd)
                    killed, start = True, now
                time.sleep(nap)
                if pulse is not None:
                    pulse()
                # Never much longer than we have waited: short holds follow closely on each other.
                nap = min((now - began) / 4 + SHORTEST_NAP, LONGEST_NAP)
                continue
            if _is(path, fd):
                return fd
            # Somebody removed the file: another one may be locked by others.
            fresh = _open(path)
            os.close(fd)
            fd = fresh
    except BaseException:
        os.close(fd)
        raise


def _is(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _holder(fd: int) -> tuple[int, int, str]:
    """Pid, start time and host of who wrote itself in last; zeros where that is not to be read."""
    try:
        pid, started, host = os.pread(fd, NAME, 0).decode().split()
        return int(pid), int(started), host
    except (OSError, ValueError):
        return 0, 0, ""


def _stopped(fd: int) -> bool:
    """Whether the lock's holder is a process of ours on this host, and stopped."""
    pid, started, host = _holder(fd)
    if pid <= 0 or host != os.uname().nodename or pid not in _lockers(fd, pid):
        return False
    found = process.stat(pid)
    return found is not None and found.started == started and found.state in "Tt"


def _kill_stopped(fd: int) -> None:
    """KILL the stopped holder, and nobody who took its place or its number since."""
    pid, started, _ = _holder(fd)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        found = process.stat(pid)
        if found is not None and found.started == started and _stopped(fd):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _lockers(fd: int, otherwise: int) -> set[int]:
    """Who holds a lock on the file by the kernel's word."""
    inode = str(os.fstat(fd).st_ino)
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return {otherwise}
    # "1: FLOCK ADVISORY WRITE 4711 00:2a:1234 0 EOF"; who waits stands there as "1: -> FLOCK".
    held = [line for line in lines if line[1] == "FLOCK"]
    return {int(line[4]) for line in held if line[5].rpartition(":")[2] == inode}


def _timeout(path: str, fd: int, wait: float) -> LockTimeout:
    pid, _, host = _holder(fd)
    who = f"process {pid} on {host}" if pid else "another process"
    return LockTimeout(
        f"the lock was not to be had in {wait:g} s: {who} holds it",
        where=path,
        hint=f"look at it with: ps -fp {pid}" if pid else "find it with: lslocks",
    )
