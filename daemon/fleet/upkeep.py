"""What the doctor finds of that which keeps workers running: systemd, or pid files."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from daemon.config import Config
from daemon.errors import Problem, RolecallError
from daemon.fleet import journal, linger
from daemon.fleet.connection import Local
from daemon.fleet.finding import FAIL, OK, WARN, Finding
from daemon.fleet.manager import bus_problem, manager_problem
from daemon.fleet.pidfile import PidFiles
from daemon.log import KEPT


class Manager(NamedTuple):
    """This account's user manager: the environment that units get, or why it does not answer."""

    environ: Mapping[str, str]
    problem: Problem | None = None


def ask_manager(connection: Local) -> Manager:
    """Whether this account's manager answers, and with what environment it starts units."""
    try:
        problem = manager_problem(connection)
        if problem:
            return Manager({}, problem.problems[0])
        told = connection.run(["systemctl", "--user", "--no-pager", "show-environment"])
    except RolecallError as error:
        return Manager({}, error.problems[0])
    pairs = (line.partition("=") for line in told.out.splitlines())
    return Manager({key: _unquoted(value) for key, _, value in pairs})


def _unquoted(value: str) -> str:
    with contextlib.suppress(ValueError):
        if value.startswith("$'"):
            return shlex.split(value[1:])[0]
    return value


def systemd(
    connection: Local, manager: Manager, environ: Mapping[str, str], kept: str = KEPT
) -> Iterator[Finding]:
    """Whether user manager, session bus, lingering and journal are as workers need them.

    ``environ``: of who asks. ``kept``: the folder that journald keeps its files in.
    """
    user = connection.user
    if manager.problem:
        yield Finding("supervisor", FAIL, manager.problem.what, manager.problem.hint)
    else:
        yield Finding("supervisor", OK, "systemd")
        if missing := bus_problem(connection):
            yield Finding("session bus", FAIL, *missing)
    given, wanted = environ.get("XDG_RUNTIME_DIR"), connection.environ["XDG_RUNTIME_DIR"]
    if given != wanted:
        told = f"is {given}, which is not {user}'s" if given else "is not set"
        what = f"XDG_RUNTIME_DIR {told}: Rolecall finds its way, systemctl --user does not"
        yield Finding("supervisor", WARN, what, f"export XDG_RUNTIME_DIR={wanted}")
    if linger.state(connection):
        yield Finding("linger", OK, f"on: the workers of {user} run on after logout")
    else:
        what = f"off: the workers of {user} end some seconds after the last logout"
        yield Finding("linger", WARN, what, f"as root: loginctl enable-linger {user}")
    if problem := journal.problem(connection, kept):
        found = problem.problems[0]
        yield Finding("journal", WARN, found.what, found.hint)
    elif connection.exists(kept):
        yield Finding("journal", OK, f"kept on disk, and {user} may read it")
    else:
        what = f"not kept on disk (no {kept}): it ends with the machine"
        yield Finding("journal", WARN, what, journal.KEEP)


def pidfile(connection: Local, config: Config) -> Iterator[Finding]:
    """What pid files cannot do, and what to type for it."""
    what = "pidfile: nothing starts workers again, neither after a crash nor at boot"
    if not config.run:
        yield Finding("supervisor", OK, "pidfile: no role is to run here")
        return
    at_boot = PidFiles(connection, config).at_boot()
    hint = f"invoke agents.start; at boot a line of crontab -e: {at_boot}"
    yield Finding("supervisor", OK, what, hint)
    escape = "a process that leaves its session, its parent and its environment behind escapes"
    if sys.platform.startswith("linux"):
        yield Finding(
            "process trees",
            WARN,
            f"without cgroups {escape} the end of its attempt",
            "use agents that start no such process, or systemd",
        )
    else:
        what = f"this system has neither cgroups nor child subreapers: {escape} its attempt"
        yield Finding("process trees", WARN, what, "use a Linux host for agents you do not trust")
