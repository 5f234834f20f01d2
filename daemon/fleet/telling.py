"""Events of what people's commands change in a queue: told where its workers tell theirs."""

from __future__ import annotations

import os
import pwd

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


class Events:
    """Tells moves in the name of who types. ``lines``: the same for the terminal."""

    def __init__(self, config: Config) -> None:
        self.owner = who()
        self.lines: list[str] = []
        self._config = config
        self._journal = supervisor_name(Local(), config) == SYSTEMD

    def move(self, move: Move, owner: str = "") -> None:
        """Tell one move; one of another owner is not for our terminal."""
        config, role = self._config, self._role(move)
        unit = service(config.unit_prefix, role) if self._journal else ""
        Log(config.paths.logs, role, self.owner, form="none", unit=unit).move(move, owner)
        if not owner:
            source = f"{move.source} -> " if move.source else ""
            why = f": {move.why}" if move.why else ""
            self.lines.append(escape(f"{move.task_id}: {source}{move.target}{why}"))

    def _role(self, move: Move) -> str:
        """Whose story it belongs to: who held the task, or claims it; else it goes to the first."""
        roles = self._config.roles
        for status in (move.source, move.target):
            for name, role in roles.items():
                if status == role.holds or status in role.claims:
                    return name
        return next(iter((*self._config.run, *roles)))
