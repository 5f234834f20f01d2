"""What a deploy finds on a host and may have to put back: kept in a file while it is at work."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from daemon.config import Config, from_json
from daemon.fleet import effective, units
from daemon.fleet.connection import Local
from daemon.fleet.supervisor import supervisor
from daemon.model import format_time

CURRENT, PREVIOUS = "current", "previous"
RELEASES = "releases"
MODE = 0o600  # it holds the effective config
RUNNING = ("running", "starting")


class Links(NamedTuple):
    """The releases that a host's links name; None where there is no such link."""

    current: str | None = None
    previous: str | None = None


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
    """The config that an effective config's text holds; None where this code does not know it."""
    if text is None:
        return None
    try:
        return from_json("\n".join(each for each in text.splitlines() if not each.startswith("#")))
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
    _settle(os.path.dirname(file(connection, config)))


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
    if not copied(connection):
        return Links()
    folder = os.path.dirname(connection.checkout)
    return Links(*(_named(os.path.join(folder, name)) for name in (CURRENT, PREVIOUS)))


def point(connection: Local, wanted: Links) -> None:
    """Have the links name these releases; each is switched at once, whoever looks."""
    if not copied(connection):
        return
    folder = os.path.dirname(connection.checkout)
    for name, release in zip((PREVIOUS, CURRENT), (wanted.previous, wanted.current), strict=True):
        link = os.path.join(folder, name)
        if release is None:
            connection.remove(link)
        elif _named(link) != release:
            aside = f"{link}.{os.getpid()}.tmp"
            os.symlink(os.path.join(RELEASES, release), aside)
            os.rename(aside, link)
    if os.path.isdir(folder):
        _settle(folder)


def copied(connection: Local) -> bool:
    """Whether the host runs releases that were copied to it, and not a checkout."""
    ours = os.path.join(connection.home, ".local", "share", "rolecall")
    return os.path.dirname(os.path.dirname(connection.checkout)) == ours


def release_of(pid: int | None) -> str | None:
    """The release that a process was started in; None where that is not to be known."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def _named(link: str) -> str | None:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return None


def _settle(folder: str) -> None:
    """Let a rename in the folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
