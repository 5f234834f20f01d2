"""``queue.import`` and ``queue.export``: files and standard streams around ``daemon.queue``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet import leftover
from daemon.fleet.here import UsageError
from daemon.fleet.output import escape
from daemon.fleet.telling import Events
from daemon.queue import jsontext
from daemon.queue.opening import open_queue
from daemon.queue.transfer import SHOWN


def some(ids: Sequence[str]) -> str:
    """The first few ids, for a person."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


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
    if on := leftover.attempts(config):
        raise RolecallError(
            f"attempts are on {some(on)}, and will settle into the file that this was a copy of",
            where=config.workspace,
            hint="invoke agents.stop, then export or copy it anew",
        )
    events = Events(config)
    done = open_queue(config, teller=events).load(data, name, replace=replace)
    whole = ", in place of all that was there" if done.whole and replace else ""
    count = f"{len(done.added)} imported{whole}; {len(done.kept)} were here already, as they are"
    lines = [*events.lines, count if done.kept or not done.whole else count.partition(";")[0]]
    if done.held:
        held = f"{some(done.held)}: held as this was written: are those attempts over?"
        lines.append(escape(f"{held} workers here take them as released"))
    return lines


def export(config: Config, to: str | None) -> list[str]:
    """Write the queue to a new file, or to standard output. Returns lines for a person."""
    queue = open_queue(config)
    if on := sorted(lease.task_id for lease in queue.live()):
        what = f"attempts are on {some(on)}: what they come to will not be in it"
        sys.stderr.write(escape(f"{queue.name}: {what}") + "\n")
    data = queue.export()
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
