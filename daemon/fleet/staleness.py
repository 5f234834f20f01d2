"""Which workers were started before what they are to run was there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from daemon import process, transient
from daemon.fleet.supervisor import State

START = 0.05  # seconds that a process takes at least before it reads its config


def newest(files: Iterable[str], *, code: bool) -> float:
    """When what the workers read was last changed; with the code of a checkout, if asked for.

    Seconds since the epoch; 0 where there is nothing.
    """
    found = [*files]
    if code:
        for folder, _, names in os.walk(os.path.join(transient.ROOT, "daemon")):
            found += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    return max((os.stat(each).st_mtime for each in found if os.path.exists(each)), default=0.0)


def is_stale(state: State, newest: float, release: str | None) -> bool:
    """Whether a worker that runs was started before what it is to run was there."""
    found = process.stat(state.pid or 0)
    if found is None:
        return True
    if release is not None and release_of(found.pid) not in {None, release}:
        return True
    ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") - found.started
    began = time.time() - ticks / os.sysconf("SC_CLK_TCK")
    return newest > began + START


def release_of(pid: int | None) -> str | None:
    """The release that a process was started in; None where that is not to be known."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None
