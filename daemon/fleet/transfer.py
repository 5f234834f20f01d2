"""``queue.import`` and ``queue.export``: files and standard streams around ``daemon.queue``."""

from __future__ import annotations

import sys

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet.here import UsageError
from daemon.fleet.output import escape
from daemon.fleet.telling import Events
from daemon.queue import jsontext
from daemon.queue.opening import open_queue


def read(path: str) -> tuple[bytes, str]:
    """A file, or standard input ("-"), and what to call it. Raises UsageError."""
    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            return sys.stdin.buffer.read(jsontext.LONGEST + 1), name
        with open(path, "rb") as file:
            return file.read(jsontext.LONGEST + 1), name
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=name) from error


def load(config: Config, path: str, replace: bool = False) -> list[str]:  # noqa: FBT001, FBT002  # as tasks.py passes it
    """Import a file, or standard input ("-"). Returns lines for a person."""
    data, name = read(path)
    events = Events(config)
    done = open_queue(config, teller=events).load(data, name, replace=replace)
    whole = ", in place of all that was there" if done.whole else ""
    count = f"{len(done.added)} imported{whole}; {len(done.kept)} were here already, as they are"
    return [*events.lines, count if done.kept or not done.whole else count.partition(";")[0]]


def export(config: Config, to: str | None) -> list[str]:
    """Write the queue to a new file, or to standard output. Returns lines for a person."""
    data = open_queue(config).export()
    if to is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return []
    try:
        with open(to, "xb") as file:
            file.write(data)
    except FileExistsError:
        raise UsageError("it is there already", where=to, hint="name a new file") from None
    except OSError as error:
        raise RolecallError(f"cannot write: {error.strerror}", where=to) from error
    return [escape(f"{to}: {len(data)} bytes written")]
