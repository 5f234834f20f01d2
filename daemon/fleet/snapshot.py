"""What a deploy finds on a host and may have to put back: kept in a file while it is at work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from daemon.config import Config, from_json
from daemon.fleet import effective, releases, units
from daemon.fleet.connection import Local
from daemon.fleet.releases import Links
from daemon.fleet.supervisor import supervisor
from daemon.model import format_time

NONE = Links(None, None)
MODE = 0o600  # it holds the effective config
RUNNING = ("running", "starting")


class Snapshot(NamedTuple):
    """A host as it was. ``files``: path to text; ``ran``: roles whose workers ran.

    ``pids`` are of those workers, and of this moment: they are not kept in the file.
    ``disabled``: its units that were not to start at boot. ``began`` is RFC 3339 in UTC.
    """

    began: str
    links: Links
    files: dict[str, str]
    ran: tuple[str, ...]
    disabled: tuple[str, ...]
    pids: Mapping[str, int | None]


def take(connection: Local, config: Config, files: dict[str, str]) -> Snapshot:
    """Look at the host, which has these files and is to have that config."""
    old = parsed(files.get(effective.path(connection, config)))
    found = supervisor(connection, old or config)
    states = found.states((old or config).run) if files else {}
    pids = {role: state.pid for role, state in states.items() if state.state in RUNNING}
    disabled = [
        name for name in found.disabled() if any(os.path.basename(each) == name for each in files)
    ]
    now = format_time(time.time())
    return Snapshot(now, links(connection), files, tuple(pids), tuple(disabled), pids)


def parsed(text: str | None) -> Config | None:
    """The config that an effective config's text holds, as far as this code knows it.

    None where it is none: newer code may have written it, with settings of which we know nothing.
    """
    return _read(text, newer=True)


def is_newer(text: str | None) -> bool:
    """Whether the text has settings that this code does not know: its workers would not start."""
    return parsed(text) is not None and _read(text, newer=False) is None


def _read(text: str | None, *, newer: bool) -> Config | None:
    if text is None:
        return None
    document = "\n".join(each for each in text.splitlines() if not each.startswith("#"))
    try:
        return from_json(document, newer=newer)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


# --- the file while a deploy is at work -----------------------------------------------------


def file(connection: Local, config: Config) -> str:
    """Where a snapshot is kept while a deploy is at work, and after one that was cut short."""
    return units.config_file(connection.home, config.unit_prefix).removesuffix("yml") + "deploying"


def keep(connection: Local, config: Config, snapshot: Snapshot) -> None:
    """Write it there, to stay through a power cut."""
    connection.write(
        file(connection, config),
        json.dumps({**snapshot._asdict(), "links": snapshot.links._asdict(), "pids": {}}),
        MODE,
    )


def kept(connection: Local, config: Config) -> Snapshot | None:
    """The snapshot of a deploy that was cut short; None where there was none."""
    text = connection.read(file(connection, config))
    if text is None:
        return None
    try:
        found = json.loads(text)
        return Snapshot(
            found["began"],
            Links(**found["links"]),
            dict(found["files"]),
            tuple(found["ran"]),
            tuple(found["disabled"]),
            {},
        )
    except (ValueError, TypeError, KeyError):
        return None  # nobody's that we know


def forget(connection: Local, config: Config) -> None:
    """The deploy is over."""
    connection.remove(file(connection, config))


# --- releases -------------------------------------------------------------------------------


def links(connection: Local) -> Links:
    """Which releases the host's links name."""
    return releases.links(connection.releases) if connection.releases else NONE


def release_of(pid: int | None) -> str | None:
    """The release that a process was started in; None where that is not to be known."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None
