"""A host without a checkout: the release that was copied to it, as install and uninstall see it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet import arrival, place, releases
from daemon.fleet.answers import Change
from daemon.fleet.connection import Local
from daemon.fleet.finding import FAIL, OK, WARN, Finding
from daemon.transient import ROOT

COMPILED = 3  # times its size a release takes at most, once it is compiled and until it is in place
MIB = 1 << 20


class Sent(NamedTuple):
    """The release that the host is to run. ``new``: it was sent along, for the host lacked it."""

    id: str
    new: bool


def sent(options: Mapping[str, Any]) -> Sent | None:
    """The release that a verb's options name; None where a checkout runs."""
    release = options.get("release")
    return Sent(release, bool(options.get("sent"))) if release else None


def check_room(connection: Local, sent: Sent | None) -> None:
    """Raise RolecallError where the disk could not take the release that we run from aside."""
    if not (sent and sent.new and connection.releases):
        return
    sizes = (
        os.stat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(ROOT)
        for name in names
    )
    needed, disk = COMPILED * sum(sizes), os.statvfs(connection.home)
    if disk.f_bavail * disk.f_frsize < needed:
        raise RolecallError(
            f"the release takes {needed // MIB + 1} MiB, and the disk has"
            f" {disk.f_bavail * disk.f_frsize // MIB} MiB left",
            where=connection.home,
            hint=f"make room there: {connection.typed('df -h .')}",
        )


def actions(connection: Local, sent: Sent) -> list[str]:
    """What it takes that the host runs the release from now on."""
    now = releases.links(connection.releases or "").current
    found = [f"copy release {sent.id}"] if sent.new else []
    if now != sent.id:
        found.append(f"switch to release {sent.id}" + f" (before: {now})" * bool(now))
    return found


def switch(connection: Local, sent: Sent | None) -> None:
    """Have the host run the release from now on."""
    if connection.releases and sent:
        releases.switch(connection.releases, sent.id)


def give_up(connection: Local, sent: Sent | None) -> None:
    """Take away what was sent for nothing: the host does not run it."""
    folder = connection.releases
    if folder and sent and sent.new and releases.links(folder).current != sent.id:
        os.chdir("/")  # else we ourselves were one who still uses it
        if releases.links(folder).current:
            releases.prune(folder)
        else:
            releases.remove(folder)


def remove(connection: Local) -> None:
    """Remove every release of the host. Nothing can be imported any more after that."""
    if connection.releases and os.path.isdir(connection.releases):
        releases.remove(connection.releases)


def excluded(connection: Local, config: Config, *, check: bool) -> list[Change]:
    """Have the workspace's git leave our paths alone: there is no ``invoke init`` to do it there.

    An uninstall leaves that be, as it leaves what lies under those paths.
    """
    from daemon.fleet import init  # noqa: PLC0415  # elsewhere it has been done

    try:
        path, missing = init.not_excluded(config)
    except (RolecallError, OSError):
        return []  # no repository yet: that is told beside it
    if not missing:
        return []
    kind = "change" if connection.exists(path) else "create"
    if not check:
        init.exclude(config)
    return [Change(connection.name, path, kind, f"added {' '.join(missing)}")]


def examine(connection: Local, sent: Sent | None) -> list[Finding]:
    """Whether the release that the host runs is whole, and the operator's; none is no finding."""
    folder = connection.releases or ""
    current = releases.links(folder).current if folder else None
    if current is None:
        return []
    try:
        arrival.compare(os.path.join(folder, place.RELEASES, current))
    except RolecallError as error:
        return [Finding("release", FAIL, error.problems[0].what, "invoke deploy copies it anew")]
    if sent and sent.id != current:
        what = f"{current}: whole, and not the one that is here: {sent.id}"
        return [Finding("release", WARN, what, "invoke deploy")]
    return [Finding("release", OK, f"{current}: whole" + ", and the one that is here" * bool(sent))]


def lacks(connection: Local, config: Config) -> list[str]:
    """What the host's workspace lacks for work, and what to type."""
    from daemon.fleet import clone  # noqa: PLC0415  # as above

    found = [each for each in clone.workspace(config, connection) if each.state == FAIL]
    # A database is made once, for all hosts; until it is there, or answers, the workers wait.
    if not found and not config.on_postgres and not os.path.exists(config.queue_file):
        what = f"there is no {config.queue_file}"
        found = [Finding("queue", FAIL, what, clone.init_hint(config, connection))]
    return [f"{each.what}: {each.hint}" for each in found]
