"""One deploy of a host at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet import copied, effective
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
