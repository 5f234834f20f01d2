"""What a deploy finds on a host and may have to put back: kept in a file while it is at work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from daemon.config import Config
from daemon.fleet import effective, releases
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
    old = effective.parsed(files.get(effective.path(connection, config)))
    found = supervisor(connection, old or config)
    states = found.states((old or config).run) if files else {}
    pids = {role: state.pid for role, state in states.items() if state.state in RUNNING}
    disabled = [
        name for name in found.disabled() if any(os.path.basename(each) == name for each in files)
    ]
    now = format_time(time.time())
    return Snapshot(now, links(connection), files, tuple(pids), tuple(disabled), pids)


# --- the file while a deploy is at work -----------------------------------------------------


def keep(connection: Local, config: Config, snapshot: Snapshot) -> None:
    """Write it there, to stay through a power cut."""
    connection.write(
        effective.deploying(connection, config),
        json.dumps({**snapshot._asdict(), "links": snapshot.links._asdict(), "pids": {}}),
        MODE,
    )


def kept(connection: Local, config: Config) -> Snapshot | None:
    """The snapshot of a deploy that was cut short; None where there was none."""
    text = connection.read(effective.deploying(connection, config))
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


def configs(connection: Local, config: Config) -> list[Config]:
    """What this workspace has installed on the host; then what was there before a cut deploy."""
    path, cut = effective.path(connection, config), kept(connection, config)
    texts = [connection.read(path), cut.files.get(path) if cut else None]
    found = [old for text in texts if (old := effective.parsed(text))]
    return [old for old in found if old.workspace == config.workspace]


def forget(connection: Local, config: Config) -> None:
    """The deploy is over."""
    connection.remove(effective.deploying(connection, config))


# --- releases -------------------------------------------------------------------------------


def links(connection: Local) -> Links:
    """Which releases the host's links name."""
    return releases.links(connection.releases) if connection.releases else NONE
