"""The workers of the fleet: start, stop, restart, status, logs. What tasks.py calls."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.config import Config
from daemon.errors import EXIT_ERROR, RolecallError
from daemon.fleet import effective, worktrees
from daemon.fleet.connection import UNREACHABLE, Local, connect
from daemon.fleet.here import one_of
from daemon.fleet.output import Style, escape
from daemon.fleet.output import table as draw
from daemon.fleet.supervisor import State, Supervisor, Told, supervisor
from daemon.model import format_time, parse_time

if TYPE_CHECKING:
    from daemon.inventory import Host, Inventory
    from daemon.queue import Pause

SOME_DO_NOT_RUN = 3
COLOURS = {"running": "green", "failed": "red", "unreachable": "red"}
UNSETTLED = "yellow"
MINUTE, HOUR, DAY = 60, 3600, 86400


class Done(NamedTuple):
    """What came of a command for one worker. ``note``: why not, in several lines.

    ``exit_code`` is the exit status that it deserves where it is not ``ok``.
    """

    host: str
    role: str
    did: str
    ok: bool = True
    note: str = ""
    exit_code: int = EXIT_ERROR


class Attempt(NamedTuple):
    """What a worker is working on. ``seconds``: for how long."""

    task_id: str
    attempt: int
    seconds: float
    pid: int


class Row(NamedTuple):
    """One worker's status. Times are RFC 3339 in UTC.

    ``paused_until``: until when the role claims nothing; null also where a person is waited for.
    ``worktrees``: those of the host's workspace (number, bytes, and whether that is all), None
    without any. ``config_is_older``: install would change what the host's workers read.
    """

    host: str
    role: str
    supervisor: str
    state: str
    pid: int | None = None
    since: str | None = None
    working_on: tuple[Attempt, ...] = ()
    restarts: int = 0
    text: str = ""
    paused_until: str | None = None
    worktrees: dict[str, Any] | None = None
    config_is_older: bool = False


class Place(NamedTuple):
    """A host that can be worked with, and its roles that are meant."""

    connection: Local
    config: Config
    supervisor: Supervisor
    roles: list[str]


def start(inventory: Inventory, hosts: list[Host], role: str | None = None) -> list[Done]:
    """Start the workers that do not run."""
    return _told(inventory, hosts, role, lambda at: at.supervisor.start(at.roles))


def stop(
    inventory: Inventory,
    hosts: list[Host],
    role: str | None = None,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Done]:
    """Stop the workers, each after at most its stop budget; end attempts without a worker.

    ``tell`` gets a line for what has to be waited for, before that.
    """

    def stop(at: Place) -> dict[str, Told]:
        for name, attempts in _working(at.config, at.roles)[0].items():
            tasks = ", ".join(each.task_id for each in attempts)
            seconds = at.config.roles[name].stop_budget
            tell(f"{at.connection.name}: {name}: waits up to {seconds:g} s for {tasks}")
        return stop_here(*at)

    return _told(inventory, hosts, role, stop)


def restart(inventory: Inventory, hosts: list[Host], role: str | None = None) -> list[Done]:
    """Replace the workers; their attempts live on."""
    return _told(inventory, hosts, role, lambda at: at.supervisor.restart(at.roles))


def status(inventory: Inventory, hosts: list[Host], role: str | None = None) -> list[Row]:
    """How the workers are, one row each; one row for a host that cannot be reached."""
    rows = []
    for host, at in _places(inventory, hosts, role):
        try:
            rows += _rows(host, at) if isinstance(at, Place) else [_unreachable(host, at)]
        except RolecallError as error:
            rows.append(_unreachable(host, error))
    return rows


def logs(
    inventory: Inventory,
    hosts: list[Host],
    role: str | None = None,
    *,
    follow: bool = False,
    lines: int = 50,
) -> int:
    """Print what the workers said; control characters are escaped. Returns the exit status."""
    exit_code = 0
    several = len(hosts) > 1
    for host, at in _places(inventory, hosts, role):
        if not isinstance(at, Place):
            sys.stderr.write(f"{escape(host.name)}: {at}\n")
            exit_code = UNREACHABLE
            continue
        prefix = f"{host.name}: " if several else ""
        with contextlib.suppress(KeyboardInterrupt):
            for line in at.supervisor.logs(at.roles, lines, follow=follow):
                sys.stdout.write(escape(prefix + line.replace("\t", "    ")) + "\n")
                if follow:
                    sys.stdout.flush()
    return exit_code


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


def exit_status(rows: Sequence[Row]) -> int:
    """0 where all run, 3 where some don't, 4 where a host can't be reached."""
    states = {row.state for row in rows}
    if "unreachable" in states:
        return UNREACHABLE
    return SOME_DO_NOT_RUN if states - {"running"} else 0


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for a program."""
    return [
        {**row._asdict(), "working_on": [each._asdict() for each in row.working_on]} for row in rows
    ]


def table(rows: Sequence[Row], style: Style) -> str:
    """The rows for a person."""
    header = ["host", "role", "state", "pid", "since", "working on", "restarts", ""]
    colours = [{2: COLOURS.get(row.state, UNSETTLED)} for row in rows]
    cells = [
        [
            row.host,
            row.role,
            row.state,
            row.pid,
            _ago(row.since),
            ", ".join(_work(each) for each in row.working_on),
            row.restarts or None,
            row.text,
        ]
        for row in rows
    ]
    drawn = draw(header, cells, style, colours=colours, shrink=7)
    used = {row.host: row.worktrees for row in rows if row.worktrees}
    lines = [f"{escape(host)}: {worktrees.Usage(**facts)}" for host, facts in used.items()]
    older = dict.fromkeys(row.host for row in rows if row.config_is_older)
    lines += [f"{escape(host)}: {effective.OLDER}: {effective.RENEW}" for host in older]
    return "\n".join([drawn, *([""] if lines else []), *lines])


def _work(attempt: Attempt) -> str:
    again = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
    return f"{attempt.task_id} ({span(attempt.seconds)}{again})"


def _ago(since: str | None) -> str:
    started = parse_time(since)
    return span(time.time() - started) if started is not None else ""


def span(seconds: float) -> str:
    """A length of time in two units at most: 42s, 7m 3s, 5h 12m, 3d 4h."""
    whole = max(0, int(seconds))
    for size, unit, below, unit_below in (
        (DAY, "d", HOUR, "h"),
        (HOUR, "h", MINUTE, "m"),
        (MINUTE, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // below}{unit_below}"
    return f"{whole}s"


def _places(
    inventory: Inventory, hosts: list[Host], role: str | None
) -> Iterator[tuple[Host, Place | RolecallError]]:
    configs = {host.name: inventory.config(host) for host in hosts}
    if role is not None:
        one_of("role", role, dict.fromkeys(each for c in configs.values() for each in c.run))
    for host in hosts:
        config = configs[host.name]
        roles = [each for each in config.run if role in (None, each)]
        if not roles:
            continue
        try:
            connection = connect(host)
            yield host, Place(connection, config, supervisor(connection, config), roles)
        except RolecallError as error:
            yield host, error


def _told(
    inventory: Inventory,
    hosts: list[Host],
    role: str | None,
    tell: Callable[[Place], dict[str, Told]],
) -> list[Done]:
    done = []
    for host, at in _places(inventory, hosts, role):
        try:
            if not isinstance(at, Place):
                raise at
            if foreign := effective.foreign(at.connection, at.config):
                raise foreign
            done += [Done(host.name, each, *said) for each, said in tell(at).items()]
        except RolecallError as error:
            who = role or "all roles"
            failed = Done(host.name, who, "failed", ok=False, note=str(error))
            done.append(failed._replace(exit_code=error.exit_code))
    return done


def _rows(host: Host, at: Place) -> list[Row]:
    working, pauses, trouble = _working(at.config, at.roles)
    used = worktrees.usage(at.config)
    foreign = effective.foreign(at.connection, at.config)
    if foreign:  # what runs under this prefix is not ours
        states = dict.fromkeys(at.roles, State("not installed", text=_short(foreign)))
    else:
        states = at.supervisor.states(at.roles)
    older = not foreign and effective.is_older(at.connection, at.config)
    rows = []
    for role, state in states.items():
        pause = pauses.get(role)
        rows.append(
            Row(
                host.name,
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
            )
        )
    return rows


def _unreachable(host: Host, error: RolecallError) -> Row:
    return Row(host.name, "", "", "unreachable", text=_short(error))


def _short(error: RolecallError) -> str:
    return "; ".join(each.what for each in error.problems)


def _working(
    config: Config, roles: Sequence[str]
) -> tuple[dict[str, list[Attempt]], dict[str, Pause], str]:
    """The live attempts and the pauses of this host, by role, and why no worker can work."""
    from daemon.queue.file import FileQueue  # noqa: PLC0415  # the queue, when needed

    now = time.time()
    queue = FileQueue(config)
    working: dict[str, list[Attempt]] = {}
    trouble = ""
    try:
        queue.snapshot()
        for lease in queue.live(host=os.uname().nodename):
            if lease.role in roles:
                seconds = max(0.0, now - (parse_time(lease.started_at) or now))
                attempt = Attempt(lease.task_id, lease.attempt, seconds, lease.pid)
                working.setdefault(lease.role, []).append(attempt)
    except RolecallError as error:  # it hides no worker
        trouble = f"{error.problems[0].where}: {error.problems[0].what}"
    pauses: dict[str, Pause] = {}
    for role in roles:
        found = [pause for pause in queue.pauses(role) if not pause.passing]
        if found:
            pauses[role] = max(found, key=lambda each: each.lasts)
    return working, pauses, trouble
