"""What a deploy has to do on a host: the host as it is, beside what it is to be."""

from __future__ import annotations

import glob
import os
import time
from typing import NamedTuple

from daemon import process, transient
from daemon.config import Config
from daemon.errors import ConfigError
from daemon.fleet import copied, effective, install, place, snapshot
from daemon.fleet.answers import Change
from daemon.fleet.connection import Local
from daemon.fleet.copied import Sent
from daemon.fleet.install import Difference
from daemon.fleet.releases import Links
from daemon.fleet.snapshot import RUNNING, Snapshot
from daemon.fleet.supervisor import State, Supervisor, supervisor_name

START = 0.05  # seconds that a process takes at least before it reads its config


class Plan(NamedTuple):
    """What is to be done on a host. Roles are those of its new config, ``dropped`` aside."""

    before: Snapshot
    links: Links
    differs: Difference
    actions: tuple[str, ...]
    restart: tuple[str, ...]
    start: tuple[str, ...]
    stopped: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    cut: bool  # an earlier deploy was cut short
    sent: Sent | None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        new = self.cut or self.before.links.current != self.links.current
        return not (new or self.differs.changes or self.actions or self.restart or self.start)


def of(
    connection: Local, config: Config, found: Supervisor, sent: Sent | None, *, check: bool
) -> Plan:
    """Compare the host with what it is to be. Raises RolecallError where it must not be.

    ``check`` leaves everything as it is; else lingering is on when this returns, or a note says
    what a person has to do.
    """
    path = effective.path(connection, config)
    differs = install.compare(connection, config, found)
    now = snapshot.take(connection, config, install.files_of(connection, found, path))
    cut = snapshot.kept(connection, config)
    before = cut if cut and _is_there(connection, cut) else now
    old = effective.parsed(before.files.get(path))
    _refuse_other(connection, found, old, path)
    actions, notes = install.prepare(connection, found, check=check)
    units = [each for each in (*differs.write, *differs.remove) if each != path]
    actions += found.missing(units, check=check)
    if cut:
        notes.append(
            f"{effective.CUT.format(cut.began)}: should this one fail, what was there "
            "before that one is put back"
        )
    links = _links(sent, before.links)
    changed = bool(cut or differs.changes or now.links.current != links.current)
    states = found.states(config.run)
    running = [role for role in config.run if states[role].state in RUNNING]
    known = old.run if old else ()
    wanted = {role for role in config.run if role not in known or role in before.ran}
    wanted |= {role for role in config.run if states[role].state == "failed"}
    start = [role for role in config.run if role in wanted and role not in running]
    if not changed:
        newest = _newest([path, *found.files()], code=links.current is None)
        running = [role for role in running if _is_stale(states[role], newest, links.current)]
    if connection.releases:  # nothing that workers read
        excluded = copied.excluded(connection, config, check=True)
        differs = differs._replace(changes=(*differs.changes, *excluded))
    stopped = [role for role in config.run if states[role].state not in RUNNING]
    return Plan(
        before,
        links,
        differs,
        tuple(actions),
        tuple(running),
        tuple(start),
        tuple(role for role in stopped if role not in start),
        tuple(role for role in known if role not in config.run),
        (*notes, *install.lacks(connection, config, found)),
        cut is not None,
        sent,
    )


def _refuse_other(connection: Local, found: Supervisor, old: Config | None, path: str) -> None:
    """A worker cannot hand over to one of another supervisor."""
    was = supervisor_name(connection, old) if old else found.name
    if was != found.name:
        raise ConfigError(
            f"the supervisor is to change from {was} to {found.name}",
            where=path,
            hint=f"with supervisor: {was} in the inventory type invoke uninstall, which lets "
            f"attempts end; then, with {found.name}, invoke deploy",
        )


def _links(sent: Sent | None, before: Links) -> Links:
    """What the host's links are to name."""
    if sent is None:
        return before
    return Links(sent.id, before.previous if sent.id == before.current else before.current)


def _is_there(connection: Local, before: Snapshot) -> bool:
    """Whether its release is still there, to be put back."""
    release = before.links.current
    return not (connection.releases and release) or release in place.present(connection.releases)


def _newest(files: list[str], *, code: bool) -> float:
    """When what the workers read was last changed; with the code of a checkout, if asked for."""
    if code:
        files += glob.glob(os.path.join(transient.ROOT, "daemon", "**", "*.py"), recursive=True)
    return max((os.stat(each).st_mtime for each in files if os.path.exists(each)), default=0.0)


def _is_stale(state: State, newest: float, release: str | None) -> bool:
    """Whether a worker that runs was started before what it is to run was there."""
    found = process.stat(state.pid or 0)
    if found is None:
        return True
    if release is not None and snapshot.release_of(found.pid) not in {None, release}:
        return True
    ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") - found.started
    began = time.time() - ticks / os.sysconf("SC_CLK_TCK")
    return newest > began + START


def changes(connection: Local, plan: Plan) -> list[Change]:
    """What is done, or would be, but for the workers."""
    name, old, new = connection.name, plan.before.links.current, plan.links.current
    release = [f"copy release {new}"] if plan.sent and plan.sent.new else []
    if old != new:
        release.append(f"switch to release {new}" + f" (before: {old})" * bool(old))
    return [
        *(Change(name, "", "action", each) for each in release),
        *plan.differs.changes,
        *(Change(name, "", "action", each) for each in plan.actions),
    ]


def notes(plan: Plan) -> tuple[str, ...]:
    """What a person has to know, or to do."""
    if not plan.stopped:
        return plan.notes
    one = len(plan.stopped) == 1
    which = f" --role {plan.stopped[0]}" if one else ""
    stopped = f"{', '.join(plan.stopped)}: stopped before, and left so: invoke agents.start{which}"
    return (*plan.notes, stopped)
