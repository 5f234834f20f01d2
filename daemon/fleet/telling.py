"""Events of what people's commands changed in a queue: told where its workers tell theirs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable

from daemon.config import Config
from daemon.fleet.connection import Local
from daemon.fleet.output import escape
from daemon.fleet.supervisor import SYSTEMD, supervisor_name
from daemon.fleet.units import service
from daemon.log import Log
from daemon.model import Move


def who() -> str:
    """The person who types, for leases and events: account@host."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"


def tell(config: Config, moves: Iterable[Move]) -> list[str]:
    """Log the moves in the name of who typed; returns a line for each, for the terminal."""
    lines = []
    for move in moves:
        role = _role(config, move)
        journal = supervisor_name(Local(), config) == SYSTEMD
        unit = service(config.unit_prefix, role) if journal else ""
        Log(config.paths.logs, role, who(), form="none", unit=unit).move(move)
        source = f"{move.source} -> " if move.source else ""
        why = f": {move.why}" if move.why else ""
        lines.append(escape(f"{move.task_id}: {source}{move.target}{why}"))
    return lines


def _role(config: Config, move: Move) -> str:
    """Whose story it belongs to: who held the task, or claims it; else it is put into the first."""
    for status in (move.source, move.target):
        for name, role in config.roles.items():
            if status == role.holds or status in role.claims:
                return name
    return next(iter((*config.run, *config.roles)))
