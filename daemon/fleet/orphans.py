"""Attempts whose worker is gone: what a stop has to end itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from daemon import process
from daemon.config import Config
from daemon.errors import LeaseLost, RolecallError
from daemon.fleet.connection import Local
from daemon.fleet.telling import Events
from daemon.model import Lease, Outcome, Result

if TYPE_CHECKING:
    from daemon.queue import Queue

MARGIN = 15  # seconds beyond two kill graces, for an attempt to end its tree and settle
POLL = 0.1


def end(connection: Local, config: Config, roles: Sequence[str]) -> dict[str, list[str]]:
    """End the roles' attempts on this host that no worker looks after.

    TERM lets an attempt release its task. What has not gone after two kill graces is killed, and
    its task released here. Returns the ids of the tasks, by role.
    """
    from daemon.queue.opening import open_queue  # noqa: PLC0415  # only where there is a queue to ask

    queue = open_queue(config, teller=Events(config))
    with contextlib.closing(queue):
        return _end(connection, config, queue, roles)


def _end(
    connection: Local, config: Config, queue: Queue, roles: Sequence[str]
) -> dict[str, list[str]]:
    left = [lease for lease in _live(config, queue, roles) if _is_orphan(lease)]
    ended: dict[str, list[str]] = {}
    for lease in left:
        ended.setdefault(lease.role, []).append(lease.task_id)
        connection.signal(lease.pid, lease.pid_started, signal.SIGTERM)
    grace = max((config.roles[lease.role].kill_grace for lease in left), default=0.0)
    until = time.monotonic() + 2 * grace + MARGIN
    while left and time.monotonic() < until:
        time.sleep(POLL)
        left = [lease for lease in left if process.is_alive(lease.pid, lease.pid_started)]
    for lease in left:
        kill(config, queue, lease)
    return ended


def _live(config: Config, queue: Queue, roles: Sequence[str]) -> list[Lease]:
    """Those of this host; another workspace's of this machine, on the same queue, are not."""
    from daemon import executor  # noqa: PLC0415  # as in kill

    try:
        leases = queue.live(host=os.uname().nodename)
    except RolecallError:
        return []  # an unreadable queue: its attempts settle when it is mended
    ours = (process.machine_id(), process.pid_namespace())
    return [
        lease
        for lease in leases
        if lease.role in roles
        and (lease.machine_id, lease.pid_namespace) == ours
        and not executor.is_another_s(lease, marker(config, lease))
    ]


def _is_orphan(lease: Lease) -> bool:
    """Whether its worker is gone. A foreground run (``--once``) is the parent of its attempts."""
    attempt = process.stat(lease.pid)
    if attempt is None or attempt.started != lease.pid_started:
        return False  # the next worker settles it
    if lease.unit:
        return True  # its worker was a unit that has been stopped
    try:
        with open(f"/proc/{attempt.parent}/cmdline", "rb") as file:
            return b"daemon" not in file.read().split(b"\0")
    except OSError:
        return True


def kill(config: Config, queue: Queue, lease: Lease) -> None:
    """Kill what is left of an attempt, and settle for it, unless somebody else has."""
    from daemon import executor  # noqa: PLC0415  # the rare case

    executor.kill_tree(lease, marker(config, lease))
    try:
        queue.settle(lease, Result(Outcome.RELEASED, "stopped, killed"))
    except LeaseLost:
        return


def marker(config: Config, lease: Lease) -> str:
    """What tells the processes of its attempt, if that is one of this workspace."""
    from daemon import launch  # noqa: PLC0415  # the rare case

    return launch.marker(os.path.join(config.paths.runs, lease.task_id, str(lease.token)))
