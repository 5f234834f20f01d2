"""One command at a time that changes a prefix of a host, or its workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from daemon.config import Config
from daemon.fleet import place
from daemon.fleet.arrival import Damaged
from daemon.fleet.connection import Local
from daemon.transient import ROOT


@contextlib.contextmanager
def alone(connection: Local, config: Config) -> Iterator[None]:
    """Nobody else changes it meanwhile: on a host without releases, too.

    Raises RolecallError where another is at work for too long, and Damaged where who was at work
    has removed the release that we run: nothing could be imported of it any more.
    """
    folder = connection.releases or place.place_of(connection.home, config.unit_prefix)
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
