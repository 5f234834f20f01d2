"""Config in, unit files out. Nothing is read but the templates, nothing is written."""

from __future__ import annotations

import functools
import json
import math
import os
from typing import TYPE_CHECKING

from daemon import transient
from daemon.config import Config, Role
from daemon.errors import RolecallError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = os.path.join(transient.ROOT, "templates")
STOP_MARGIN = 30  # seconds beyond the stop budget and two kill graces, for settling and its locks
MARK = "# Made by Rolecall (invoke install) for the workspace "
# What only the worker's sandbox has: it opens no network socket but that of a queue on PostgreSQL,
# and needs no odd system call.
# To close what its user never could do costs 14 ms of a start: attempts go without.
WORKER = (
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectClock=yes",
    "RestrictNamespaces=yes",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
)
OFFLINE = ("PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX")
ONLINE = ("RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",)


def target(prefix: str) -> str:
    """The target that all workers of the prefix are part of."""
    return f"{prefix}s.target"


def slice_(prefix: str) -> str:
    """The slice that the workers and the attempts of the prefix live in."""
    return f"{prefix}s.slice"


def service(prefix: str, role: str) -> str:
    """The unit of the role's worker."""
    return f"{prefix}-{role}.service"


def config_file(home: str, prefix: str) -> str:
    """Where a host's effective config goes."""
    return os.path.join(home, ".config", "rolecall", f"{prefix}.yml")


def is_ours(name: str, prefix: str) -> bool:
    """Whether install could have made a unit file of that name."""
    if name in {target(prefix), slice_(prefix)}:
        return True
    return name.startswith(prefix + "-") and name.endswith(".service")


def header(config: Config, name: str) -> str:
    """The first lines of every file that install writes: whose it is, and where changes go."""
    return (
        f"{MARK}{json.dumps(config.workspace)}\n"
        f"# and written anew by the next one. Changes of yours: systemctl --user edit {name}"
    )


def workspace_of(text: str) -> str | None:
    """The workspace that a unit file was made for; None where install did not make it."""
    first = text.partition("\n")[0]
    if not first.startswith(MARK):
        return None
    try:
        found = json.loads(first.removeprefix(MARK))
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def render(
    config: Config, python: str, checkout: str, config_file: str, code: str = ""
) -> dict[str, str]:
    """The unit files of a host by name, for every role that it runs.

    ``code``: the folder that holds all that workers run, where that is not the checkout: that of
    every release, so that units do not change with one.
    Raises RolecallError for a path that a unit file cannot name.
    """
    prefix, workspace = config.unit_prefix, config.workspace
    every = [workspace, python, checkout, config_file, *transient.writable(config)]
    for path in (path for path in every if not _nameable(path)):
        raise RolecallError(
            "systemd cannot be told of a path with a backslash or a control character",
            where=repr(path),
            hint="move it, or set supervisor: pidfile",
        )
    environment = _environment()
    shared = {"prefix": prefix, "workspace": workspace, "checkout": checkout}
    files = {
        name: environment.get_template(template).render(shared, header=header(config, name))
        for name, template in (
            (slice_(prefix), "agents.slice.j2"),
            (target(prefix), "agents.target.j2"),
        )
    }
    template = environment.get_template("agent-role.service.j2")
    for role_name in config.run:
        name, role = service(prefix, role_name), config.roles[role_name]
        files[name] = template.render(
            shared,
            header=header(config, name),
            role=role,
            command=worker_command(python, role_name, config_file),
            stop_seconds=stop_seconds(role),
            sandbox=sandbox(config, code or checkout),
        )
    return files


def worker_command(python: str, role: str, config_file: str) -> list[str]:
    """What starts the role's worker, in the checkout."""
    return [python, "-m", "daemon", "--role", role, "--config", config_file]


def stop_seconds(role: Role) -> int:
    """How long a stop of the role's worker may take before it is killed."""
    return math.ceil(role.stop_budget + 2 * role.kill_grace + STOP_MARGIN)


def sandbox(config: Config, code: str) -> list[str]:
    """What confines a worker: it writes the workspace, asks the manager for units, no more.

    And it speaks to the server of a queue on PostgreSQL, for which HOME is readable: what libpq
    looks for lies there, in .pgpass, .pg_service.conf and .postgresql.
    """
    network = ONLINE if config.on_postgres else OFFLINE
    opened = [line.replace("%", "%%") for line in transient.sandbox(config, code=code)]
    return [*transient.HARDENING, *WORKER, *network, *opened]


def _nameable(path: str) -> bool:
    return path.isprintable() and "\\" not in path


def _specifier(text: str) -> str:
    """A value in which systemd would expand specifiers."""
    return text.replace("%", "%%")


def _command(argv: list[str]) -> str:
    """A command line of a unit: every argument quoted, nothing in it expanded."""
    escaped = (
        each.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
        for each in argv
    )
    return " ".join(f'"{each}"' for each in escaped)


@functools.cache
def _environment() -> Environment:
    # Only what renders pays for it: the status of a fleet needs no templates.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  # slow

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # unit files, each value escaped by the filters below
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"specifier": _specifier, "command": _command}
    return made
