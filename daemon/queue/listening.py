"""What the hosts of one queue learn of each other: that tasks came, what credentials wait for."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import NamedTuple

from daemon.queue import rows, throttle
from daemon.queue.session import Call, Session
from daemon.queue.tables import Tables


class Waits(NamedTuple):
    """The waits of credentials, kept for all hosts of the queue."""

    tables: Tables

    @staticmethod
    def asked(credential: str) -> Call:
        """The question that ``read`` asks."""
        return Call("SELECT value FROM rolecall.note WHERE name = $1", (rows.plain(credential),))

    def read(self, credential: str) -> throttle.State:
        """What is known of the credential."""
        (found,) = self.tables.ask(self.asked(credential))
        return throttle.of_note(found[0][0]) if found else throttle.State()

    def write(self, credential: str, state: throttle.State) -> None:
        """Remember it."""
        note = throttle.note_of(state)
        values = [rows.plain(credential), note and json.dumps(rows.plainly(note))]
        self.tables.session.call("SELECT rolecall.remember($1, $2)", values)


class Watch:
    """What wakes a worker: the socket of its queue's own connection."""

    def __init__(self, session: Session, statuses: Collection[str]) -> None:
        self.session = session
        channels = ["rolecall", *(f"rolecall.{each}" for each in statuses)]
        session.listen(channels, Call("SELECT rolecall.await($1)", [sorted(statuses)]))

    @property
    def fd(self) -> int:
        """Readable when something was told; -1 while there is no connection."""
        return self.session.fd

    def renew(self) -> None:
        """Nothing: the session listens on each connection that it makes."""

    @property
    def pending(self) -> bool:
        """Whether an answer brought something with it."""
        return self.session.has_told

    def changed(self) -> bool:
        """Whether something was told since the last call. Never blocks."""
        return self.session.told()

    def close(self) -> None:
        """Watch no more."""
        self.session.drop()
