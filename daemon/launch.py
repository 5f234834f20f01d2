"""How an attempt becomes a process of its own: a new session, or a transient unit."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import NamedTuple

from daemon import transient
from daemon.config import Config, to_json
from daemon.errors import RolecallError
from daemon.model import Claim, Lease

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULT_FILE = "ROLECALL_RESULT_FILE"
# Its start is in every pick-up: no collection of what is not garbage, no walk through site-packages
# (a prompt that needs jinja2 makes up for that), no runpy.
ATTEMPT = "import gc, sys; gc.disable(); from daemon.attempt import main; sys.exit(main())"
# Blocked across the exec: the attempt unblocks them once its handlers stand.
DEFERRED = (signal.SIGTERM, signal.SIGINT)


class Child(NamedTuple):
    """What the worker holds of an attempt that it started."""

    pid: int
    pidfd: int
    lease: Lease
    unit: str


def marker(run_dir: str) -> str:
    """The environment entry that every process of the attempt's tree carries."""
    return f"{RESULT_FILE}={os.path.join(run_dir, 'result.json')}"


def unit_of(lease: Lease, config: Config) -> str:
    """The unit that the attempt runs in; "" where attempts of this process are no units."""
    if lease.unit or not transient.available():
        return lease.unit
    return transient.unit_name(lease.task_id, lease.token, config.unit_prefix)


def start(config: Config, claim: Claim, environ: Mapping[str, str], unit_log: str) -> Child:
    """Start the attempt of a claim; what it needs to know goes in on its standard input.

    ``unit_log`` is the unit whose journal its events belong to ("" for none). Raises
    RolecallError where no process can be had.
    """
    role = config.roles[claim.lease.role]
    unit = unit_of(claim.lease, config)
    brief = {
        "config": to_json(config),
        "lease": claim.lease._asdict(),
        "task": claim.task,
        "run_dir": claim.run_dir,
        "env": dict(environ),
        "unit": unit,
        "unit_log": unit_log,
    }
    command = [sys.executable, "-P", "-S", "-c", ATTEMPT]
    ours = {RESULT_FILE: os.path.join(claim.run_dir, "result.json"), "PYTHONPATH": ROOT}
    if unit:
        inside = ["/usr/bin/env", *(f"{key}={value}" for key, value in ours.items()), *command]
        command = transient.start_argv(unit, role, config, inside, config.workspace)
    stdin = os.memfd_create("brief", os.MFD_CLOEXEC)
    try:
        data = json.dumps(brief).encode()
        while data:
            data = data[os.write(stdin, data) :]
        os.lseek(stdin, 0, os.SEEK_SET)
        pid = os.posix_spawnp(
            command[0],
            command,
            {**environ, **ours},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
            setsigmask=() if unit else DEFERRED,
            setsigdef=(signal.SIGPIPE, signal.SIGHUP, signal.SIGUSR1),
        )
    except OSError as error:
        raise RolecallError(f"the attempt cannot be started: {error.strerror}") from error
    finally:
        os.close(stdin)
    return Child(pid, os.pidfd_open(pid), claim.lease, unit)
