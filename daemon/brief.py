"""What the worker hands over to an attempt, and how it may be asked to end."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from daemon.config import Config, Role, from_json
from daemon.model import Lease
from daemon.wake import Signals


class Brief(NamedTuple):
    """What the worker hands over."""

    config: Config
    lease: Lease
    task: dict[str, Any]
    run_dir: str
    env: dict[str, str]
    unit: str
    unit_log: str

    @property
    def role(self) -> Role:
        """The role that the attempt is made in."""
        return self.config.roles[self.lease.role]


def read_brief(text: str) -> Brief:
    """The brief, out of the JSON that launch wrote."""
    facts = json.loads(text)
    lease = facts.pop("lease")
    return Brief(
        config=from_json(facts.pop("config")),
        lease=Lease(**{**lease, "sessions": tuple(lease["sessions"])}),
        **facts,
    )


class Stop:
    """The wish of the worker, the supervisor or a person that the attempt should end.

    The first two send a signal; a person writes it into the lease. ``why``: whose wish it was.
    """

    def __init__(self, signals: Signals) -> None:
        self.fd = signals.fd
        self.why = "stopped"
        self._signals = signals
        self._asked = False

    def asked(self) -> bool:
        """Whether somebody asked; stays true."""
        self._asked = self._asked or bool(self._signals.taken())
        return self._asked

    def heed(self, lease: Lease) -> None:
        """Ask, where the lease says that a person did."""
        if lease.wish_in_words:
            self.why, self._asked = lease.wish_in_words, True
