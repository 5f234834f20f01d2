"""The workers of one host, on that host: start, stop, restart, status, logs."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from daemon.config import Config
from daemon.errors import ConfigError, QueueUnreachable, RolecallError
from daemon.fleet import effective, staleness, worktrees
from daemon.fleet.alone import alone
from daemon.fleet.answers import Attempt, Done, Row
from daemon.fleet.connection import Local
from daemon.fleet.place import CURRENT
from daemon.fleet.supervisor import State, Supervisor, Told, supervisor
from daemon.lifecycle import PARKED
from daemon.model import format_time, parse_time

if TYPE_CHECKING:
    from daemon.queue import Pause


class Place(NamedTuple):
    """A host that can be worked with, and its roles that are meant."""

    connection: Local
    config: Config
    supervisor: Supervisor
    roles: list[str]


def place(connection: Local, config: Config, role: str | None = None) -> Place:
    """The host with the roles that it runs, or the one of them that is meant."""
    roles = [each for each in config.run if role in (None, each)]
    return Place(connection, config, supervisor(connection, config), roles)


def dropped(connection: Local, config: Config) -> list[Place]:
    """The host as it was installed, with the roles that ran and are not to run there any more.

    No inventory need know them: what there is to know is in the config that install has put there,
    and where a deploy was cut short, in the one that was there before. Empty where there are none.
    """
    from daemon.fleet import snapshot  # noqa: PLC0415  # status has no need of it

    places, seen = list[Place](), {*config.run}
    for old in snapshot.configs(connection, config):
        if roles := [each for each in old.run if each not in seen]:
            places.append(Place(connection, old, supervisor(connection, old), roles))
            seen |= {*roles}
    return places


def start(at: Place, tell: Callable[[str], None]) -> list[Done]:
    """Start the workers that do not run; ``tell`` gets a line where they read another queue."""
    _refuse_homeless(at)
    _tell_of_another_queue(at, tell)
    return _told(at, lambda: at.supervisor.start(at.roles))


def stop(at: Place, tell: Callable[[str], None]) -> list[Done]:
    """Stop the workers, each after at most its stop budget; end attempts without a worker.

    ``tell`` gets a line for what has to be waited for, before that.
    """

    def stop() -> dict[str, Told]:
        for name, attempts in _working(at.config, at.roles)[0].items():
            tasks = ", ".join(each.task_id for each in attempts)
            seconds = at.config.roles[name].stop_budget
            tell(f"{name}: waits up to {seconds:g} s for {tasks}")
        return stop_here(*at)

    return _told(at, stop)


def restart(at: Place, tell: Callable[[str], None]) -> list[Done]:
    """Replace the workers; their attempts live on. ``tell`` as above."""
    _refuse_homeless(at)
    _tell_of_another_queue(at, tell)
    return _told(at, lambda: at.supervisor.restart(at.roles))


def logs(at: Place, lines: int, *, follow: bool) -> Iterator[str]:
    """What the workers said, and with ``follow`` what they say."""
    return at.supervisor.logs(at.roles, lines, follow=follow)


def stop_here(
    connection: Local, config: Config, found: Supervisor, roles: list[str]
) -> dict[str, Told]:
    """Stop the workers of one host, then what attempts they have left."""
    from daemon.fleet import orphans  # noqa: PLC0415  # the queue, when needed

    told = found.stop(roles)
    stopped = [role for role in roles if told[role].ok]
    for role, tasks in orphans.end(connection, config, stopped).items():
        note = f"its attempt on {', '.join(tasks)} had no worker, and was ended"
        told[role] = told[role]._replace(note=note)
    return told


def homeless(connection: Local, config: Config) -> ConfigError | None:
    """Why the host may take no tasks of a queue that is several hosts': it has nothing to work on.

    A queue that is a file is in the workspace: where that is missing, there are no tasks either.
    """
    if not (config.on_postgres and config.run) or os.path.isdir(config.workspace):
        return None
    return ConfigError(
        "the workspace is no folder: its workers would take tasks that other hosts can do",
        where=config.workspace,
        hint=connection.typed(f"git clone REPOSITORY {shlex.quote(config.workspace)}"),
    )


def _refuse_homeless(at: Place) -> None:
    if problem := homeless(at.connection, at.config):
        raise problem


def _tell_of_another_queue(at: Place, tell: Callable[[str], None]) -> None:
    """Say that what is installed names another queue than the inventory does by now."""
    text = at.connection.read(effective.path(at.connection, at.config))
    installed = effective.parsed(text)
    if installed and installed.queue != at.config.queue:
        tell(
            f"its workers read {installed.queue}, not the inventory's {at.config.queue}:"
            f" {effective.RENEW} (or invoke install, then invoke agents.restart)"
        )


def _told(at: Place, tell: Callable[[], dict[str, Told]]) -> list[Done]:
    with alone(at.connection, at.config):
        if foreign := effective.foreign(at.connection, at.config):
            raise foreign
        return [Done(at.connection.name, role, *said) for role, said in tell().items()]


def status(at: Place) -> list[Row]:
    """How the workers are, one row each."""
    working, pauses, trouble, parked = _working(at.config, at.roles)
    used = worktrees.usage(at.config)
    foreign = effective.foreign(at.connection, at.config)
    if foreign:  # what runs under this prefix is not ours
        states = dict.fromkeys(at.roles, State("not installed", text=foreign.short))
    else:
        states = at.supervisor.states(at.roles)
    older = not foreign and effective.is_older(at.connection, at.config)
    cut = None if foreign else _cut_short(at)
    release, outdated = None if foreign else _release(at.connection), _outdated(at, states)
    rows = []
    for role, state in states.items():
        pause = pauses.get(role)
        rows.append(
            Row(
                at.connection.name,
                role,
                at.supervisor.name,
                state.state,
                state.pid,
                None if state.since is None else format_time(state.since),
                tuple(working.get(role, ())),
                state.restarts,
                state.text if foreign else pause.why if pause else trouble or state.text,
                format_time(pause.until) if pause and pause.until is not None else None,
                used._asdict() if used else None,
                older,
                cut,
                release,
                role in outdated,
                parked,
            )
        )
    return rows


def _release(connection: Local) -> str | None:
    """The release that was copied to the host."""
    try:
        folder = connection.releases or ""
        return os.path.basename(os.readlink(os.path.join(folder, CURRENT))) if folder else None
    except OSError:
        return None


def _outdated(at: Place, states: Mapping[str, State]) -> set[str]:
    """The roles whose workers have not read what there is for them to read."""
    running = {role: state for role, state in states.items() if state.state == "running"}
    if not running:
        return set()
    release = _release(at.connection)
    read = [effective.path(at.connection, at.config)]
    newest = staleness.newest(read, code=release is None)
    return {r for r, state in running.items() if staleness.is_stale(state, newest, release)}


def _cut_short(at: Place) -> str | None:
    if not at.connection.exists(effective.deploying(at.connection, at.config)):
        return None
    from daemon.fleet import alone  # noqa: PLC0415  # almost never is there such a file

    return alone.cut_short(at.connection, at.config)


def _working(
    config: Config, roles: Sequence[str]
) -> tuple[dict[str, list[Attempt]], dict[str, Pause], str, int]:
    """The live attempts and the pauses of this host, by role; why no worker can work.

    And how many tasks wait for a person.
    """
    from daemon.queue.opening import open_queue  # noqa: PLC0415  # the queue, when needed

    now = time.time()
    working: dict[str, list[Attempt]] = {}
    pauses: dict[str, Pause] = {}
    trouble, parked = "", 0
    queue = open_queue(config)
    try:
        parked = queue.count(PARKED - {"blocked"})
        for lease in queue.live(host=os.uname().nodename):
            if lease.role in roles:
                seconds = max(0.0, now - (parse_time(lease.started_at) or now))
                attempt = Attempt(lease.task_id, lease.attempt, seconds, lease.pid)
                working.setdefault(lease.role, []).append(attempt)
    except RolecallError as error:  # it hides no worker
        trouble = f"{error.problems[0].where or queue.name}: {error.problems[0].what}"
    for role in roles:
        with contextlib.suppress(QueueUnreachable):  # that is told by now
            found = [pause for pause in queue.memory.pauses(role) if not pause.passing]
            if found:
                pauses[role] = max(found, key=lambda each: each.lasts)
    return working, pauses, trouble, parked
