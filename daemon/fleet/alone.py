"""One command at a time that changes a prefix of a host, or its workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from daemon.config import Config
from daemon.fleet import place, snapshot
from daemon.fleet.arrival import Damaged
from daemon.fleet.connection import Local
from daemon.transient import ROOT


def cut_short(connection: Local, config: Config) -> str | None:
    """When the deploy began that was cut short; None where there is none, or one is at work now."""
    found = snapshot.kept(connection, config)
    if found is None or _is_held(connection, config):
        return None
    # One that has ended since we looked has removed its file before it let go.
    again = snapshot.kept(connection, config)
    return again.began if again and again.began == found.began else None


def _is_held(connection: Local, config: Config) -> bool:
    path = os.path.join(_folder(connection, config), place.LOCK)
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
def alone(connection: Local, config: Config) -> Iterator[None]:
    """Nobody else changes it meanwhile: on a host without releases, too.

    Raises RolecallError where another is at work for too long, and Damaged where who was at work
    has removed the release that we run: nothing could be imported of it any more.
    """
    folder = _folder(connection, config)
    nothing = connection.releases and not os.path.isdir(folder)
    with contextlib.nullcontext() if nothing else place.Lock(folder):
        gone = not os.path.exists(__file__)
        try:
            if gone:
                raise Damaged(
                    "the release was removed meanwhile", where=ROOT, hint="invoke install"
                )
            yield
        finally:
            # The lock of a host without releases goes again; so does one that was made for nothing.
            if not nothing and not place.present(folder) and (gone or not connection.releases):
                place.tidy(folder)


def _folder(connection: Local, config: Config) -> str:
    return connection.releases or place.place_of(connection.home, config.unit_prefix)
