"""One deploy of a host at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet import copied, effective, place, snapshot
from daemon.fleet.connection import Local

WAIT = 5.0  # seconds
POLL = 0.25


def alone(connection: Local, config: Config) -> contextlib.AbstractContextManager[object]:
    """No other deploy at the same time; of copied releases, no other command that changes them.

    Raises RolecallError where another is at work.
    """
    if connection.releases:
        return copied.alone(connection)
    return _hold(os.path.dirname(effective.path(connection, config)))


def cut_short(connection: Local, config: Config) -> str | None:
    """When the deploy began that was cut short; None where there is none, or one is at work now."""
    found = snapshot.kept(connection, config)
    if found is None or _is_held(connection, config):
        return None
    # One that has ended since we looked has removed its file before it let go.
    again = snapshot.kept(connection, config)
    return again.began if again and again.began == found.began else None


def _is_held(connection: Local, config: Config) -> bool:
    path = os.path.dirname(effective.path(connection, config))
    if connection.releases:
        path = os.path.join(connection.releases, place.LOCK)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _hold(folder: str) -> Iterator[None]:
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    until = time.monotonic() + WAIT
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RolecallError(
                        "another deploy is at work on this host",
                        hint="it finishes, or puts everything back, by itself; "
                        "then type this again",
                    ) from None
                time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # it is empty where nothing was installed
            os.rmdir(folder)
