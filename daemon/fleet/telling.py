"""Events of what people's commands change in a queue: told where its workers tell theirs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence

from daemon.config import Config
from daemon.fleet.connection import Local
from daemon.fleet.output import escape
from daemon.fleet.supervisor import SYSTEMD, supervisor_name
from daemon.fleet.units import service
from daemon.log import Log, append
from daemon.model import Move


def who() -> str:
    """The person who types, for leases and events: account@host."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"


class Events:
    """Tells moves in the name of who types. ``lines``: the same for the terminal."""

    def __init__(self, config: Config) -> None:
        self.owner = who()
        self.lines: list[str] = []
        self._config, self._logs = config, dict[str, Log]()
        self._journal = supervisor_name(Local(), config) == SYSTEMD

    def tell(self, moves: Sequence[Move], owner: str = "") -> None:
        """Tell moves; those of another owner are not for our terminal."""
        append(line for move in moves for line in self._log(self._role(move)).lines(move, owner))
        if not owner:
            self.lines += map(_line, moves)

    def _log(self, role: str) -> Log:
        if role not in self._logs:
            unit = service(self._config.unit_prefix, role) if self._journal else ""
            logs = self._config.paths.logs
            self._logs[role] = Log(logs, role, self.owner, form="none", unit=unit)
        return self._logs[role]

    def _role(self, move: Move) -> str:
        """Whose story it belongs to: who held the task, or claims it; else it goes to the first."""
        roles = self._config.roles
        for status in (move.source, move.target):
            for name, role in roles.items():
                if status == role.holds or status in role.claims:
                    return name
        return next(iter((*self._config.run, *roles)))


def _line(move: Move) -> str:
    source = f"{move.source} -> " if move.source else ""
    why = f": {move.why}" if move.why else ""
    return escape(f"{move.task_id}: {source}{move.target}{why}")
