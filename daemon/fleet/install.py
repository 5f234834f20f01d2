"""Put a host's files there and take them away: compare, write only what differs, say what."""

from __future__ import annotations

import compileall
import difflib
import os
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from daemon.config import Config
from daemon.fleet import copied, effective, linger, releases, snapshot, units, workers
from daemon.fleet.alone import alone
from daemon.fleet.answers import Change, Installed
from daemon.fleet.connection import Local
from daemon.fleet.copied import Sent
from daemon.fleet.supervisor import SYSTEMD, Supervisor, supervisor
from daemon.transient import ROOT

UNIT_MODE, CONFIG_MODE = 0o644, 0o600
LINGER_RECORD = "linger"  # beside the configs: install has turned lingering on

Step = Callable[[], None]


class Difference(NamedTuple):
    """Between the files that a host has and those it should have."""

    write: dict[str, str]  # path to text: files to create or change
    remove: tuple[str, ...]
    changes: tuple[Change, ...]


def compare(connection: Local, config: Config, found: Supervisor) -> Difference:
    """What differs. Raises RolecallError where the prefix is another workspace's, or there is none.

    ``workers.homeless`` says when there has to be one.
    """
    path = effective.path(connection, config)
    wanted = {path: effective.text(config), **found.files()}
    present = files_of(connection, found, path)
    _refuse_foreign(config, {each: present[each] for each in wanted if each in present})
    if problem := workers.homeless(connection, config):
        raise problem
    write = {each: text for each, text in wanted.items() if present.get(each) != text}
    if path not in write and connection.mode(path) != CONFIG_MODE:
        write[path] = wanted[path]
    remove = tuple(each for each in present if each not in wanted)
    changes = [_change(connection, each, present.get(each), new) for each, new in write.items()]
    changes += [Change(connection.name, each, "remove") for each in remove]
    return Difference(write, remove, tuple(changes))


def install(
    connection: Local, config: Config, *, check: bool = False, sent: Sent | None = None
) -> Installed:
    """Make the host run the roles that its config names; ``check`` only says what would be.

    ``sent``: the release that a host without a checkout is to run.
    """
    found = supervisor(connection, config)
    if check:
        return _install(connection, config, found, sent, check=True)
    with alone(connection, config):
        try:
            return _install(connection, config, found, sent, check=False)
        except BaseException:
            copied.give_up(connection, sent)
            raise


def _install(
    connection: Local, config: Config, found: Supervisor, sent: Sent | None, *, check: bool
) -> Installed:
    path = effective.path(connection, config)
    differs = compare(connection, config, found)
    release = copied.actions(connection, sent) if sent else []
    if not (sent or check):
        # Neither invoke nor a unit, which may not write the checkout, would ever keep compiled
        # modules; without them every attempt starts tens of milliseconds later.
        compileall.compile_dir(os.path.join(ROOT, "daemon"), quiet=2)
    units_changed = [*differs.remove, *(each for each in differs.write if each != path)]
    actions, notes = prepare(connection, found, check=check)
    actions += found.missing(units_changed, check=check)
    notes += lacks(connection, config, found)
    if not check and (release or (path in differs.write and connection.exists(path))):
        running = [r for r, each in found.states(config.run).items() if each.state == "running"]
        if running:
            names, old = ", ".join(running), "release" if release else "config"
            notes.append(f"{names}: running with the old {old} until invoke deploy")
    dropped = workers.dropped(connection, config)
    actions += [each for at in dropped for each in _stops(at)]
    if cut := snapshot.kept(connection, config):
        notes.append(f"{effective.CUT.format(cut.began)}: {effective.GO_ON}")
    changes = [Change(connection.name, "", "action", each) for each in release]
    changes += differs.changes
    changes += [Change(connection.name, "", "action", each) for each in actions]
    if connection.releases:
        changes += copied.excluded(connection, config, check=check)
    if check or not changes:
        return _installed(connection, found, changes, notes)
    # While the config that knows them is there.
    notes += [each for at in dropped for each in _stop(at, at.roles)]
    found.forget(differs.remove)
    _switch(connection, path, sent, differs)
    for each in differs.remove:
        connection.remove(each)
    found.refresh(units_changed)
    return _installed(connection, found, changes, notes)


def _stops(at: workers.Place) -> list[str]:
    """Which workers are to be stopped, in words."""
    states = at.supervisor.states(at.roles)
    return [f"stop {role}" for role, each in states.items() if each.state in snapshot.RUNNING]


def _stop(at: workers.Place, roles: list[str]) -> list[str]:
    """Stop these workers, and what attempts they leave; what could not be stopped."""
    told = workers.stop_here(at.connection, at.config, at.supervisor, roles)
    return [f"{role}: {each.did}: {each.note}" for role, each in told.items() if not each.ok]


def _switch(connection: Local, path: str, sent: Sent | None, differs: Difference) -> None:
    """Put the files and the release there, or have the host run what it ran."""
    before = snapshot.links(connection)
    try:
        for step in in_order(
            connection.read(path),
            lambda: copied.switch(connection, sent),
            lambda: put(connection, path, differs.write),
        ):
            step()
    except BaseException:
        if connection.releases:
            releases.point(connection.releases, before)
        raise
    if connection.releases:
        releases.prune(connection.releases)


def in_order(present: str | None, point: Step, write: Step) -> tuple[Step, Step]:
    """The two steps of a switch: of the link to the release, and of the config.

    Whatever is cut off between the two, the host has a release that knows its config: newer code
    knows an older config, older code refuses one with settings that it does not know. ``present``
    is the text of the host's config. Going back is the reverse.
    """
    return (write, point) if effective.is_newer(present) else (point, write)


def _installed(
    connection: Local, found: Supervisor, changes: Sequence[Change], notes: Sequence[str]
) -> Installed:
    name, home = connection.name, connection.home
    return Installed(name, found.name, tuple(changes), tuple(notes), home)


def prepare(
    connection: Local, found: Supervisor, *, check: bool = False
) -> tuple[list[str], list[str]]:
    """Have the workers outlive the last logout, where that takes something.

    Returns what was, or would be, done, and what a person has to do.
    """
    if found.name != SYSTEMD or linger.state(connection):
        return [], []
    action = f"enable lingering of {connection.user}"
    if check:
        return [action], [linger.doubt(connection)]
    # First of all, for it also starts a user manager where there is none yet.
    if note := linger.enable(connection):
        return [], [note]
    connection.write(_record(connection), "invoke install did it\n", CONFIG_MODE)
    return [action], []


def lacks(connection: Local, config: Config, found: Supervisor) -> list[str]:
    """What a person has to do before attempts can run."""
    fresh = not connection.exists(effective.path(connection, config))
    there = copied.lacks(connection, config) if connection.releases else []
    return [*found.notes(fresh=fresh), *there, *_own_checkout(config), *_missing_agents(config)]


def put(connection: Local, config_file: str, files: dict[str, str]) -> None:
    """Write these files, each with the mode that its kind has; the config last of all."""
    for path in sorted(files, key=lambda each: each == config_file):
        connection.write(path, files[path], CONFIG_MODE if path == config_file else UNIT_MODE)


def _own_checkout(config: Config) -> list[str]:
    if os.path.realpath(config.workspace) != os.path.realpath(ROOT):
        return []  # almost always; what follows takes the queue's code
    from daemon.fleet import clone  # noqa: PLC0415  # as above

    what = f"{config.workspace} is Rolecall's own checkout: {clone.OTHER}"
    return [what] if clone.is_own(config) else []


def _missing_agents(config: Config) -> list[str]:
    """What would send every task of a role to a person; the doctor looks closer."""
    roles: dict[str, list[str]] = {}
    for name in config.run:
        role = config.roles[name]
        program = role.command[0] if role.command else ""
        if program and "/" not in program and shutil.which(program) is None:
            roles.setdefault(program, []).append(name)
    return [
        f"{program}, the agent of {', '.join(names)}, is not found: invoke doctor"
        for program, names in roles.items()
    ]


def uninstall(connection: Local, config: Config, *, check: bool = False) -> Installed:
    """Remove what install made, and nothing else; workers drain first."""
    found = supervisor(connection, config)
    if check:
        return _uninstall(connection, config, found, check=True)
    with alone(connection, config):
        return _uninstall(connection, config, found, check=False)


def _uninstall(connection: Local, config: Config, found: Supervisor, *, check: bool) -> Installed:
    name = connection.name
    path = effective.path(connection, config)
    present = files_of(connection, found, path)
    _refuse_foreign(config, present)
    others = [
        each
        for each in connection.names(os.path.dirname(path))
        if each.endswith(".yml") and each != os.path.basename(path)
    ]
    record, cut = _record(connection), effective.deploying(connection, config)
    ours = dict.fromkeys([path, cut, record, *found.files(), *present])
    left = [*present, *([cut] if connection.exists(cut) else [])]
    left += [each for name in ours for each in connection.leftovers(name)]
    dark = connection.exists(record) and not others
    changes = [Change(name, each, "remove") for each in left]
    if dark:
        changes.append(Change(name, "", "action", f"disable lingering of {connection.user}"))
    if connection.releases and connection.exists(connection.releases):
        changes.append(Change(name, connection.releases, "remove"))
    here = (*workers.dropped(connection, config), workers.place(connection, config))
    if check or not changes:
        told = [Change(name, "", "action", each) for at in here for each in _stops(at)]
        return _installed(connection, found, [*told, *changes], [])
    notes = [each for at in here for each in _stop(at, [*at.config.roles])]
    unit_files = [each for each in present if each != path]
    found.forget(unit_files)
    for each in left:
        connection.remove(each)
    if unit_files:
        found.refresh(unit_files, enable=False)
    if dark:
        note = linger.disable(connection)
        notes += [note] if note else []
        connection.remove(record)
    copied.remove(connection)  # the last thing of all: this very code is in it
    return _installed(connection, found, changes, notes)


def files_of(connection: Local, found: Supervisor, config_file: str) -> dict[str, str]:
    """The files that the host has of what install writes: path to text."""
    text = connection.read(config_file)
    files = found.installed()
    return files if text is None else {**files, config_file: text}


def _refuse_foreign(config: Config, present: dict[str, str]) -> None:
    if problem := effective.problem(config, present):
        raise problem


def _record(connection: Local) -> str:
    return os.path.join(os.path.dirname(units.config_file(connection.home, "")), LINGER_RECORD)


def _change(connection: Local, path: str, old: str | None, new: str) -> Change:
    name = connection.name
    before, after = (old or "").splitlines(keepends=True), new.splitlines(keepends=True)
    if old is None:
        diff = difflib.unified_diff([], after, "/dev/null", path)
        return Change(name, path, "create", diff="".join(diff))
    if old == new:
        return Change(name, path, "change", text=f"mode {CONFIG_MODE:o}")
    return Change(
        name, path, "change", diff="".join(difflib.unified_diff(before, after, path, path))
    )
