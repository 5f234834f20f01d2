"""Attempts as transient units of the user manager: their sandbox, their limits, their end.

A transient unit inherits nothing of the worker's own sandbox, so all that confines an attempt is
declared here. Only options that a user manager really applies are used: without PrivateUsers most
of them are ignored in silence.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

from daemon import agents
from daemon.config import Config, Role
from daemon.errors import RolecallError
from daemon.model import Lease

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEFAULT_PREFIX = "agent"
POLL = 0.02  # seconds between looks at a unit that is being killed
STOP_MARGIN = 15  # seconds beyond two kill graces, for an attempt to settle
# What a unit's own /tmp hides from it.
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108  # places to be hidden, nothing is made there
HARDENING = (
    "PrivateUsers=yes",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "CapabilityBoundingSet=",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
)
# Agents build, test and debug: they may open sockets, trace their own processes, map code they
# just wrote (node) and make namespaces (browsers); what only an administrator needs is closed.
ATTEMPT = (
    "PrivateIPC=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap",
    "SystemCallErrorNumber=EPERM",
    # One process of the agent's that is out of memory is the agent's error, not the attempt's.
    "OOMPolicy=continue",
)


def available() -> bool:
    """Whether a user manager started this very process, and so can be asked for more units."""
    return "MANAGERPID" in os.environ and os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def unit_name(task_id: str, token: int, prefix: str = DEFAULT_PREFIX) -> str:
    """The attempt's unit. Never ``<prefix>-*``: stopping the workers must not stop it."""
    ours = "rolecall" if prefix == DEFAULT_PREFIX else f"rolecall-{prefix}"
    return f"{ours}-attempt-{task_id}-{token}.service"


def is_unit_of(lease: Lease) -> bool:
    """Whether the unit that the lease names is the one of its attempt, whatever the prefix."""
    own = f"-attempt-{lease.task_id}-{lease.token}.service"
    return lease.unit.startswith("rolecall-") and lease.unit.endswith(own)


def quote(text: str) -> str:
    """One word of a list of words, as systemd reads it in unit files and in properties.

    The two differ about backslashes, so quotes are quoted by the other kind.
    """
    return '"' + text.replace('"', '"\'"\'"') + '"'


def writable(config: Config, role: Role | None = None) -> list[str]:
    """The folders that the workspace's programs, or one role's attempts, have to write."""
    wanted = [config.workspace, *_git_dirs(config.workspace), *config.paths]
    if not config.on_postgres:
        wanted.append(os.path.dirname(os.path.realpath(config.queue_file)))
    wanted += role.write_paths if role else ()
    found: list[str] = []
    for path in sorted(set(wanted)):
        if not any(_within(path, other) for other in found):
            found.append(path)
    return found


def sandbox(config: Config, role: Role | None = None, *, code: str = ROOT) -> list[str]:
    """The properties that open what ``writable`` names, and the code, in a unit with HARDENING."""
    open_paths = writable(config, role)
    made = ["ReadWritePaths=" + " ".join(quote("-" + path) for path in open_paths)]
    hidden = [path for path in open_paths if _temporary(path)]
    if hidden:
        made.append("BindPaths=" + " ".join(quote("-" + path) for path in hidden))
    programs = {code, sys.prefix, sys.base_prefix}
    hidden = sorted(path for path in programs if _temporary(path) and path not in hidden)
    if hidden:
        made.append("BindReadOnlyPaths=" + " ".join(quote("-" + path) for path in hidden))
    return made


def missing_state(role: Role) -> list[str]:
    """The folders of state of the role's agent CLI that are not there yet.

    In a HOME that is read-only no CLI can make its own. Claude Code 2.1 then edits nothing and says
    that all went well; Codex 0.169 and opencode 1.18 end with status 1.
    """
    preset = agents.find(role.agent)
    paths = map(os.path.expanduser, preset.write_paths if preset else ())
    return [path for path in paths if not os.path.isdir(path)]


def properties(role: Role, config: Config) -> list[str]:
    """What confines an attempt of the role: hardening and limits. Nothing secret, no task text."""
    limits = role.limits
    made = [
        *HARDENING,
        *ATTEMPT,
        *sandbox(config, role),
        "KillMode=mixed",
        f"TimeoutStopSec={2 * role.kill_grace + STOP_MARGIN:g}",
    ]
    missing = missing_state(role)
    if missing:  # made outside of the sandbox (+), and nothing in a path is a variable (:)
        paths = " ".join(map(quote, missing))
        made.append(f"ExecStartPre=+:mkdir -p -m 700 -- {paths}")
    if limits.memory_max is not None:
        made.append(f"MemoryMax={limits.memory_max}")
    if limits.cpu_quota is not None:
        made.append(f"CPUQuota={limits.cpu_quota}")
    if limits.tasks_max is not None:
        made.append(f"TasksMax={limits.tasks_max}")
    return made


def start_argv(  # noqa: PLR0913  # what a unit is made of
    unit: str, role: Role, config: Config, argv: list[str], cwd: str, *, what: str = "attempt"
) -> list[str]:
    """The command that runs ``argv`` in the unit and waits for it.

    It hands its own stdin, stdout and stderr over, exits as ``argv`` does, and may be killed: the
    unit lives on. ``what`` it is, is said in the unit's description.
    """
    return [
        "systemd-run",
        "--user",
        "--quiet",
        "--collect",
        "--pipe",
        "--wait",
        "--service-type=exec",
        f"--unit={unit}",
        f"--slice={config.unit_prefix}s.slice",
        f"--description=Rolecall {what}, role {role.name}",
        f"--working-directory={cwd}",
        *(f"--property={each}" for each in properties(role, config)),
        "--",
        # The manager expands ${NAME} in an argument, and nothing else.
        *(each.replace("$", "$$") for each in argv),
    ]


def kill(unit: str, seconds: float) -> None:
    """End every process of the unit at once, and wait until they are gone.

    Raises RolecallError where some live on after that many seconds.
    """
    until = time.monotonic() + seconds
    _systemctl("kill", "--kill-who=all", f"--signal={signal.SIGKILL:d}", unit)
    while _alive(unit):
        if time.monotonic() >= until:
            raise RolecallError(f"{unit} cannot be killed", hint=f"systemctl --user status {unit}")
        time.sleep(POLL)


def stop(unit: str) -> None:
    """Ask the unit to end as the manager would: TERM, then KILL. Does not wait."""
    _systemctl("stop", "--no-block", unit)


def _alive(unit: str) -> bool:
    said = _systemctl("show", "--property=ActiveState", "--value", unit).strip()
    return said not in ("", "inactive", "failed")


def environment() -> dict[str, str]:
    """Our environment, with the way to this account's own user manager.

    cron and some ssh servers name none; su, sudo and runuser leave another account's in it.
    """
    environ = {**os.environ}
    environ["XDG_RUNTIME_DIR"] = runtime_dir(environ.get("XDG_RUNTIME_DIR", ""))
    bus = environ.get("DBUS_SESSION_BUS_ADDRESS", "").removeprefix("unix:path=").partition(",")[0]
    if bus.startswith("/") and not _is_own(bus):
        del environ["DBUS_SESSION_BUS_ADDRESS"]
    return environ


def runtime_dir(given: str) -> str:
    """The folder where this account's user manager listens; ``given``: what XDG_RUNTIME_DIR says.

    That is believed where the folder is this account's own, unless the usual one alone has a
    manager.
    """
    usual = f"/run/user/{os.getuid()}"
    if not _is_own(given):
        return usual
    elsewhere = os.path.exists(f"{usual}/systemd") and not os.path.exists(f"{given}/systemd")
    return usual if elsewhere else given


def _is_own(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.getuid()
    except OSError:
        return False


def _systemctl(*arguments: str) -> str:
    """What ``systemctl --user`` prints; a unit it does not know is no error."""
    ours, theirs = os.pipe()
    try:
        pid = os.posix_spawnp(
            "systemctl",
            ["systemctl", "--user", *arguments],
            environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs, 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsigmask=(),
        )
    except OSError as error:
        os.close(ours)
        raise RolecallError(f"systemctl cannot be started: {error.strerror}") from error
    finally:
        os.close(theirs)
    with os.fdopen(ours, encoding="utf-8", errors="replace") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _temporary(path: str) -> bool:
    return any(_within(path, folder) for folder in TEMPORARY)


def _git_dirs(workspace: str) -> Iterable[str]:
    """Where the workspace's repository is, when it is a worktree of one elsewhere."""
    try:
        with open(os.path.join(workspace, ".git"), encoding="utf-8") as file:
            line = file.readline(4096)
    except (OSError, UnicodeDecodeError):
        return []
    if not line.startswith("gitdir:"):
        return []
    folder = os.path.join(workspace, line.removeprefix("gitdir:").strip())
    common = os.path.realpath(folder)
    if os.path.basename(os.path.dirname(common)) == "worktrees":
        common = os.path.dirname(os.path.dirname(common))
    return [common]
