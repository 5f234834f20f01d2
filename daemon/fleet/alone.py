"""One command at a time that changes a prefix of a host, or its workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from daemon.config import Config
from daemon.errors import RolecallError
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
    where = connection.releases
    path = os.path.join(where, place.LOCK) if where else _anchor(connection, config)
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


def alone(connection: Local, config: Config) -> contextlib.AbstractContextManager[None]:
    """Nobody else changes it meanwhile: on a host without releases, too.

    Raises RolecallError where another is at work for too long, and Damaged where who was at work
    has removed the release that we run: nothing could be imported of it any more.
    """
    if connection.releases:
        return _with_releases(connection.releases)
    return _holding(_anchor(connection, config))


@contextlib.contextmanager
def _with_releases(folder: str) -> Iterator[None]:
    nothing = not os.path.isdir(folder)
    with contextlib.nullcontext() if nothing else place.Lock(folder):
        gone = not os.path.exists(__file__)
        try:
            if gone:
                raise Damaged(
                    "the release was removed meanwhile", where=ROOT, hint="invoke install"
                )
            yield
        finally:
            if gone and not nothing and not place.present(folder):  # it was made for nothing
                place.tidy(folder)


@contextlib.contextmanager
def _holding(folder: str) -> Iterator[None]:
    """Hold a folder that is there anyway: nothing is made for it, or changed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    until = time.monotonic() + place.PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RolecallError(
                        "another command is at work on this host",
                        hint="type this one again when that has ended",
                    ) from None
                time.sleep(place.NAP)
        yield
    finally:
        os.close(descriptor)


def _anchor(connection: Local, config: Config) -> str:
    """What a prefix has for itself: its workspace."""
    return config.workspace if os.path.isdir(config.workspace) else connection.home
