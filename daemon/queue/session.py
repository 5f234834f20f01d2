"""One connection to the server that keeps the queue: asked within a time limit, and made anew.

It tells of what changes, too: what it listens for makes its socket readable, and nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql

from daemon.errors import QueueUnreachable, RolecallError

ANSWER = 10.0  # seconds in which the server has to answer; without one it counts as gone
FIRST, CAP = 0.2, 5.0  # seconds between tries to connect, which double
AGAIN = 5  # times that a call is made anew which met others' (a deadlock)
#: Of the session: nobody's defaults may change what a claim sees, or let a lock wait for ever.
SETTINGS = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": f"{ANSWER:g}s",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",  # so that the server, too, lets go of a host that is gone
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": int(ANSWER * 1000),  # milliseconds
}
#: Met by a call that collided with others': it has changed nothing, and can be made anew.
COLLISIONS = (errors.DeadlockDetected, errors.SerializationFailure)


class Between(RolecallError):
    """Somebody else's write came between: nothing was changed, and it is to be decided anew."""


Call = tuple[LiteralString, Sequence[Any]]


class _Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose every wait for the server ends: at ``until``, of time.monotonic()."""

    until = 0.0

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As psycopg's own; a server that does not answer in time is left."""
        left = max(0.0, self.until - time.monotonic())
        try:
            return super().wait(gen, interval, left if timeout is None else min(left, timeout))
        except errors._WaitTimeout:  # noqa: SLF001  # the only name that it has
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {ANSWER:g} s") from None


class Session:
    """The one connection of a worker, of an attempt, or of a person's command.

    ``greet`` is called with each new connection, and refuses what cannot be used.
    """

    def __init__(
        self, url: str, name: str, greet: Callable[[psycopg.Connection[Any]], None]
    ) -> None:
        self.url, self.name, self.greet = url, name, greet
        self.channels: set[str] = set()
        self._connection: _Connection | None = None
        self._told = False  # something came that was listened for, or could not be heard
        self._tries, self._try_at = 0, 0.0
        self._why = ""
        self._pid = os.getpid()

    # --- asking ------------------------------------------------------------------------------

    def call(self, query: LiteralString, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Its rows; one statement is one transaction. Raises QueueUnreachable, RolecallError."""
        return self.calls((query, values))[0]

    def calls(self, *asked: Call) -> list[list[tuple[Any, ...]]]:
        """The rows of several statements, sent together, each a transaction of its own."""
        for _ in range(AGAIN):
            connection = self._connected()
            try:
                if len(asked) == 1:
                    return [_rows(connection, *asked[0])]
                return self._together(connection, asked)
            except COLLISIONS:
                continue
            except errors.UniqueViolation as error:
                raise Between(_in_a_line(error)) from None
            except psycopg.Error as error:
                raise self._failed(error) from None
        raise QueueUnreachable("the queue is too busy: its writers met again and again")

    @staticmethod
    def _together(connection: _Connection, asked: Sequence[Call]) -> list[list[tuple[Any, ...]]]:
        cursors = []
        with connection.pipeline() as pipeline:
            for query, values in asked:
                cursors.append(connection.execute(query, values))
                pipeline.sync()
            return [cursor.fetchall() for cursor in cursors]

    @contextlib.contextmanager
    def transaction(self, *, undone: bool = False) -> Any:
        """Several statements in one transaction (``connection.execute``); undone, or kept."""
        connection = self._connected()
        try:
            with connection.transaction(force_rollback=undone):
                yield connection
        except psycopg.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: psycopg.Error) -> RolecallError:
        """What a person is told; a connection that is of no more use is dropped."""
        what = _in_a_line(error)
        if isinstance(error, errors.InsufficientPrivilege):
            hint = "GRANT rolecall_worker (or rolecall_operator, for people) TO its login role"
            return RolecallError(f"the queue may not be used: {what}", where=self.url, hint=hint)
        if isinstance(error, errors.ReadOnlySqlTransaction):  # a standby, since a failover perhaps
            self.drop()
        if self._connection is not None and self._connection.closed:
            self.drop()
        passing = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        if passing or self._connection is None:
            return QueueUnreachable(f"the queue's server cannot be used: {what}", where=self.url)
        return RolecallError(f"the queue's server refused: {what}", where=self.url)

    # --- connecting --------------------------------------------------------------------------

    def _connected(self) -> _Connection:
        if self._pid != os.getpid():  # a fork: the connection is the parent's
            self._connection, self._pid = None, os.getpid()
        if self._connection is not None:
            self._hear(self._connection)
        if self._connection is None:
            now = time.monotonic()
            if now < self._try_at:
                raise QueueUnreachable(self._why, where=self.url)
            try:
                self._connection = self._connect()
            except psycopg.Error as error:
                self._why = f"the queue's server cannot be reached: {_in_a_line(error)}"
                longest = min(CAP, FIRST * 2 ** min(self._tries, 16))
                self._tries += 1
                self._try_at = time.monotonic() + longest * (0.5 + os.urandom(1)[0] / 512)
                raise QueueUnreachable(self._why, where=self.url) from None
            self._tries, self._try_at = 0, 0.0
        self._connection.until = time.monotonic() + ANSWER
        return self._connection

    def _connect(self) -> _Connection:
        connection = _Connection.connect(
            self.url,
            autocommit=True,
            connect_timeout=int(ANSWER),
            application_name=self.name,
            client_encoding="UTF8",
            **KEEPALIVES,
        )
        try:
            self._settle_in(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _settle_in(self, connection: _Connection) -> None:
        connection.until = time.monotonic() + ANSWER
        chosen = sql.SQL(", ").join(
            sql.SQL("set_config({}, {}, false)").format(key, value)
            for key, value in SETTINGS.items()
        )
        row = connection.execute(sql.SQL("SELECT pg_backend_pid(), {}").format(chosen)).fetchone()
        if row is None or row[0] != connection.info.backend_pid:
            raise _pooled(self.url)
        self.greet(connection)
        connection.add_notify_handler(self._notified)
        for channel in self.channels:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def drop(self) -> None:
        """Let go of the connection; the next call makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._told = True  # what came meanwhile is not known
            connection.close()

    # --- listening ---------------------------------------------------------------------------

    def listen(self, channels: Iterable[str]) -> None:
        """Be told of these from now on, whatever connection there will be."""
        self.channels |= {*channels}
        self.drop()
        self._connected()

    @property
    def fd(self) -> int:
        """The socket, which becomes readable when something is told; -1 where there is none."""
        return -1 if self._connection is None else self._connection.fileno()

    def told(self) -> bool:
        """Whether anything was told, or may have been missed, since the last call. No wait."""
        if self._connection is not None and self._pid == os.getpid():
            self._hear(self._connection)
        told, self._told = self._told, False
        return told

    def _notified(self, _notify: psycopg.Notify) -> None:
        self._told = True

    def _hear(self, connection: _Connection) -> None:
        """Take in what the socket has, and notice where it is closed."""
        try:
            if not connection.closed:
                poll = select.poll()
                poll.register(connection.fileno(), select.POLLIN)
                # More than once: behind a server's last words stands the end of the stream.
                while poll.poll(0):
                    connection.pgconn.consume_input()
                    while connection.pgconn.notifies():
                        self._told = True
        except psycopg.Error:
            pass
        if connection.closed:
            self.drop()


def _rows(
    connection: _Connection, query: LiteralString, values: Sequence[Any]
) -> list[tuple[Any, ...]]:
    cursor = connection.execute(query, values)
    return cursor.fetchall() if cursor.description else []


def _pooled(url: str) -> RolecallError:
    return RolecallError(
        "the queue is reached through a pooler, which passes no notifications on",
        where=url,
        hint="name PostgreSQL's own host and port: one connection a worker is all that it takes",
    )


def _in_a_line(error: psycopg.Error) -> str:
    said = error.diag.message_primary or str(error)
    return "; ".join(line.strip() for line in said.splitlines() if line.strip()) or "no reason told"
