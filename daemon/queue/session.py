"""One connection to the server that keeps the queue: asked within a time limit, and made anew.

It tells of what changes, too: what it listens for makes its socket readable, and nothing else does.
Of psycopg only its libpq is used: a queue is asked a handful of questions, each thousands of times,
and every wait of ours has to end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from daemon.errors import QueueUnreachable, RolecallError
from daemon.queue.database import hint_of

ANSWER = 10.0  # seconds in which the server has to answer; without one it counts as gone
CONNECT = 5  # seconds for one address of the server
FIRST, CAP = 0.2, 5.0  # seconds between tries of what failed, which double
SURE = 1.0  # seconds until the server is told once more that something is listened for
AGAIN = 5  # times that a call is made anew which met others' (a deadlock)
#: Of the session: nobody's defaults may change what a claim sees, or let a lock wait for ever.
#: Plans are made once, and go by indexes however many tasks there were then; compiling them (jit)
#: would cost each of our small questions tens of milliseconds.
SETTINGS = {
    "search_path": "pg_catalog",
    "synchronous_commit": "on",
    "extra_float_digits": "1",
    "idle_session_timeout": "0",  # since version 14
    "lock_timeout": "0",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",  # so that the server, too, lets go of a host that is gone
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

Values = Sequence[object]
Row = list[Any]

#: What a column's text says, by the type's oid (pg_type.dat); any other is a text.
READ: dict[int, Callable[[bytes], Any]] = {
    16: lambda text: text == b"t",
    **dict.fromkeys((20, 21, 23), int),
    **dict.fromkeys((700, 701), float),
    **dict.fromkeys((114, 3802), lambda text: json.loads(text.decode())),
}


class Call(NamedTuple):
    """One statement, with ``$1`` for its first value."""

    query: str
    values: Values = ()


class Between(RolecallError):
    """Somebody else's write came between: nothing was changed, and it is to be decided anew."""


class Unwritable(RolecallError):
    """The server can never write what it was sent: a text is too long, a number too large."""


class Refused(Exception):  # it becomes one of ours
    """What the server said of one statement; ``state``: its SQLSTATE, "" where the line is dead."""

    def __init__(self, what: str, state: str = "") -> None:
        super().__init__(what)
        self.what, self.state = what, state


class _Making:
    """A connection in the making, in a thread: a name server's silence cannot be cut short.

    Whoever has not waited long enough for it takes it later.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self._made: psycopg.Connection | None = None
        self._error: psycopg.Error | None = None
        self._wanted, self._waited_for = True, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._made = psycopg.Connection.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT,
                application_name=self._name,
                client_encoding="UTF8",
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
                tcp_user_timeout=int(ANSWER * 1000),
            )
        except psycopg.Error as error:
            self._error = error
        if not self._wanted:
            self.leave()

    def leave(self) -> None:
        """Nobody waits for it any more."""
        self._wanted = False
        if self._made is not None:
            self._made.close()

    def within(self, seconds: float) -> psycopg.Connection | None:
        """The connection; None where it is not there yet. Waits once. Raises Refused."""
        self._thread.join(0 if self._waited_for else seconds)
        self._waited_for = self._waited_for or seconds > 0
        if self._error is not None:
            raise Refused(_in_a_line(str(self._error)))
        return self._made


class Session:
    """The one connection of a worker, of an attempt, or of a person's command.

    ``answer``: seconds that the server has. ``greet`` is called with each new connection's session,
    and refuses what cannot be used.
    """

    def __init__(
        self, url: str, name: str, greet: Callable[[Session], None], answer: float = ANSWER
    ) -> None:
        self.url, self.name, self.greet, self.answer = url, name, greet, answer
        self.channels: set[str] = set()
        self._announced: list[Call] = []
        self.unsure = math.inf  # when the server is to be told once more, of time.monotonic()
        self.number = 0  # of the connection: how many there were
        self._making: _Making | None = None
        self._owner: psycopg.Connection | None = None  # of the line, which it would close
        self._line: pq.abc.PGconn | None = None
        self._heard_of: set[str] = set()  # the channels that the connection listens on
        self._known: dict[str, Statement] = {}  # what this connection has prepared
        self._poll, self._events = select.poll(), select.POLLIN
        self._told = False  # something came that was listened for, or could not be heard
        self._inside = False  # a transaction
        self._greeting = False  # the new connection is not in use yet
        self._is_away, self._why, self._hint = False, "", ""
        self._tries, self._failed_at, self._try_at = 0, 0.0, 0.0
        self._until = 0.0  # of time.monotonic(): when the server has to have answered
        self._pid = os.getpid()

    # --- asking ------------------------------------------------------------------------------

    def call(self, query: str, values: Values = ()) -> list[Row]:
        """Its rows; one statement is one transaction. Raises QueueUnreachable, RolecallError."""
        return self.calls(Call(query, values))[0]

    def calls(self, *asked: Call) -> list[list[Row]]:
        """The rows of several statements, sent together, each a transaction of its own."""
        for _ in range(AGAIN):
            line = self._connected()
            try:
                found = self._asked(line, asked)
                if self._tries and not self._greeting:
                    self._answered()
                return found
            except Refused as refused:
                if refused.state in COLLISIONS and not self._inside:
                    continue
                if refused.state == STALE_PLAN and not self._inside:  # the schema is a newer one
                    self.drop()
                    continue
                raise self._error(refused) from None
        raise QueueUnreachable("the queue is too busy: its writers met again and again")

    def _answered(self) -> None:
        """It is back. What it answers to some and refuses to others is asked no more often."""
        now = time.monotonic()
        if self._is_away:
            self._is_away, self._try_at = False, 0.0
        if now > self._failed_at + CAP:
            self._tries = 0

    @contextlib.contextmanager
    def transaction(self, *, undone: bool = False) -> Iterator[None]:
        """The calls within are one transaction; undone, or kept."""
        self.call("BEGIN")
        self._inside = True
        try:
            yield
            self.call("ROLLBACK" if undone else "COMMIT")
        except BaseException:
            if self._line is not None:
                with contextlib.suppress(RolecallError):
                    self.call("ROLLBACK")
            raise
        finally:
            self._inside = False

    def _asked(self, line: pq.abc.PGconn, asked: Sequence[Call]) -> list[list[Row]]:
        self._until = time.monotonic() + self.answer
        try:
            calls = [(self._prepared(line, each.query), each.values) for each in asked]
            if len(calls) == 1:
                ((statement, values),) = calls
                line.send_query_prepared(statement.name, list(map(_written, values)))
                return [statement.read(self._result(line))]
            return self._together(line, calls)
        except psycopg.Error as error:  # libpq's own: the line is dead
            raise Refused(_in_a_line(str(error))) from None

    def _plainly(self, line: pq.abc.PGconn, query: str) -> list[Row]:
        """The rows of a statement without a name: through a pooler, others have given it."""
        self._until = time.monotonic() + self.answer
        try:
            line.send_query(query.encode())
            return _read(self._result(line))
        except psycopg.Error as error:  # as above
            raise Refused(_in_a_line(str(error))) from None

    def _prepared(self, line: pq.abc.PGconn, query: str) -> Statement:
        if query not in self._known:
            statement = Statement(b"q%d" % len(self._known))
            line.send_prepare(statement.name, query.encode())
            _read(self._result(line))
            self._known[query] = statement
        return self._known[query]

    def _together(
        self, line: pq.abc.PGconn, calls: Sequence[tuple[Statement, Values]]
    ) -> list[list[Row]]:
        line.enter_pipeline_mode()
        for statement, values in calls:
            line.send_query_prepared(statement.name, list(map(_written, values)))
            line.pipeline_sync()
        found = []
        for _ in calls:
            found.append(self._result(line))
            self._result(line)  # the end of its transaction
        line.exit_pipeline_mode()
        return [statement.read(each) for (statement, _), each in zip(calls, found, strict=True)]

    def _result(self, line: pq.abc.PGconn) -> pq.abc.PGresult:
        """The next result; what follows it up to its end is of no interest."""
        last = None
        while True:
            self._flush(line)
            while line.is_busy():
                self._wait(line, select.POLLIN)
                line.consume_input()
            found = line.get_result()
            if found is None:
                if last is not None:
                    self._heard(line)
                    return last
                continue
            if found.status == pq.ExecStatus.PIPELINE_SYNC:
                return found
            last = found

    def _flush(self, line: pq.abc.PGconn) -> None:
        while line.flush():
            self._wait(line, select.POLLIN | select.POLLOUT)
            line.consume_input()

    def _wait(self, line: pq.abc.PGconn, events: int) -> None:
        if events != self._events:
            self._poll.modify(line.socket, events)
            self._events = events
        left = self._until - time.monotonic()
        if left <= 0 or not self._poll.poll(math.ceil(left * 1000)):
            self.drop()
            raise Refused(f"no answer within {self.answer:g} s")

    def _error(self, refused: Refused) -> RolecallError:
        """What a person is told; a connection that is of no more use is dropped."""
        what, state = refused.what, refused.state
        line = self._line
        dead = line is None or line.status != pq.ConnStatus.OK
        # A standby, since a failover perhaps; or another schema, of which the next greeting tells.
        if useless := dead or state == READ_ONLY or state in ANOTHER_SCHEMA:
            self.drop()
        if state == UNIQUE:
            return Between(what)
        if state == RIGHTS:
            hint = f"GRANT {_group(what)} TO its login role"
            return RolecallError(f"the queue may not be used: {what}", where=self.url, hint=hint)
        if state[:2] in UNFIT:
            return Unwritable(f"the queue's server cannot write it: {what}", where=self.url)
        if useless or state[:2] in PASSING:
            return self._away(f"the queue's server cannot be used: {what}")
        return RolecallError(f"the queue's server refused: {what}", where=self.url)

    def _away(self, why: str, hint: str = "") -> QueueUnreachable:
        """The error, and when to ask again: later and later, and not all at the same moment."""
        longest = min(CAP, FIRST * 2 ** min(self._tries, 16))
        self._failed_at = time.monotonic()
        self._try_at = self._failed_at + longest * (0.5 + os.urandom(1)[0] / 512)
        self._tries, self._is_away = self._tries + 1, True
        self._why, self._hint = why, hint
        return self._not_yet()

    def _not_yet(self) -> QueueUnreachable:
        error = QueueUnreachable(self._why, where=self.url, hint=self._hint)
        error.again = max(0.0, self._try_at - time.monotonic())
        return error

    # --- connecting --------------------------------------------------------------------------

    def _connected(self) -> pq.abc.PGconn:
        if self._pid != os.getpid():  # a fork: the connection is the parent's
            self._line, self._making, self._known, self._pid = None, None, {}, os.getpid()
        self._hear()
        if self._line is None and self._inside:
            raise QueueUnreachable("the connection was lost", where=self.url)
        line = self._line or self._connect()
        is_due = self.channels != self._heard_of or time.monotonic() >= self.unsure
        if is_due and not (self._greeting or self._inside):
            self._listen(line)
        return line

    def _connect(self) -> pq.abc.PGconn:
        """A new connection. Raises QueueUnreachable, and what ``greet`` raises."""
        is_early = time.monotonic() < self._try_at
        if self._making is None:
            if is_early:
                raise self._not_yet()
            self._making = _Making(self.url, self.name)
        try:
            made = self._making.within(0 if is_early else self.answer)
        except Refused as refused:
            self._making = None
            why = f"the queue's server cannot be reached: {refused.what}"
            raise self._away(why, hint_of(refused.what)) from None
        if made is None and is_early:
            raise self._not_yet()
        if made is None:
            why = f"the queue's server cannot be reached: no answer within {self.answer:g} s"
            raise self._away(why)
        self._making, self._owner, line = None, made, made.pgconn
        self.number += 1
        self._line, self._known, self._heard_of = line, {}, set()
        self._poll, self._events = select.poll(), select.POLLIN
        self._poll.register(line.socket, select.POLLIN)
        self._greeting = True
        try:
            self._settle_in(line)
        except Refused as refused:
            raise self._error(refused) from None
        except BaseException:
            self.drop()
            raise
        finally:
            self._greeting = False
        return line

    def _settle_in(self, line: pq.abc.PGconn) -> None:
        chosen = {**SETTINGS, "statement_timeout": str(math.ceil(self.answer * 1000))}
        values = ", ".join(f"('{key}', '{value}')" for key, value in chosen.items())
        query = (
            "SELECT pg_backend_pid(), count(set_config(s.name, chosen.value, false))"  # noqa: S608  # our own
            f" FROM (VALUES {values}) AS chosen (name, value)"
            " JOIN pg_settings s ON s.name = chosen.name"  # an older server has not all of them
        )
        ((pid, *_),) = self._plainly(line, query)
        if pid != line.backend_pid:
            raise RolecallError(
                "the queue is reached through a pooler, which passes no notifications on",
                where=self.url,
                hint="name PostgreSQL's own host and port: a worker takes one connection",
            )
        self.greet(self)

    def is_still(self, number: int) -> bool:
        """Whether it is the connection of that number, as far as can be seen without a question."""
        self._hear()
        return self._line is not None and self.number == number

    def _listen(self, line: pq.abc.PGconn) -> None:
        try:
            for channel in sorted(self.channels - self._heard_of):
                name = channel.replace('"', '""')
                self._asked(line, [Call(f'LISTEN "{name}"')])
            told = self._asked(line, self._announced)
            self._heard_of = {*self.channels}
            self.unsure = math.inf if told == [[[True]]] * len(told) else time.monotonic() + SURE
        except Refused as refused:
            raise self._error(refused) from None

    def drop(self) -> None:
        """Let go of the connection; the next call makes a new one."""
        making, self._making = self._making, None
        if making is not None:
            making.leave()
        owner, self._owner, self._line = self._owner, None, None
        if owner is not None:
            self._told = True  # what came meanwhile is not known
            if self._pid == os.getpid():
                owner.close()

    # --- listening ---------------------------------------------------------------------------

    def listen(self, channels: Iterable[str], announced: Call) -> None:
        """Be told of these from the next call on, whatever connection it makes.

        ``announced`` is asked behind it, so that the server knows: once more, until it says true.
        """
        self.channels |= {*channels}
        self._announced.append(announced)

    @property
    def fd(self) -> int:
        """The socket, which becomes readable when something is told; -1 where there is none."""
        return -1 if self._line is None else self._line.socket

    @property
    def has_told(self) -> bool:
        """Whether ``told`` has something to say already."""
        return self._told

    def told(self) -> bool:
        """Whether anything was told, or may have been missed, since the last call. No wait."""
        if self._pid == os.getpid():
            self._hear()
        told, self._told = self._told, False
        return told

    def remind(self) -> None:
        """As if something had been told."""
        self._told = True

    def _hear(self) -> None:
        """Take in what the socket has, and notice where it is closed."""
        line = self._line
        if line is None:
            return
        try:
            if self._events != select.POLLIN:
                self._events = select.POLLIN
                self._poll.modify(line.socket, select.POLLIN)
            # More than once: behind a server's last words stands the end of the stream.
            while self._poll.poll(0):
                line.consume_input()
                self._heard(line)
        except (psycopg.Error, OSError):
            self.drop()

    def _heard(self, line: pq.abc.PGconn) -> None:
        while line.notifies():
            self._told = True


COLLISIONS = {"40P01", "40001"}  # deadlock, serialization: nothing was changed
UNIQUE, RIGHTS, READ_ONLY, STALE_PLAN = "23505", "42501", "25006", "0A000"
UNFIT = {"22", "54"}  # data exceptions; limits of the program
ANOTHER_SCHEMA = {"42883", "42P01", "42703", "3F000"}  # no such function, table, column, schema
#: Classes of errors that another try may not meet: the line, resources, an operator, the system.
PASSING = {"", "08", "53", "55", "57", "58", "XX"}

#: Functions of people's commands: workers have no right to them, and need none.
PEOPLE = re.compile(r"\b(change|ask|begin_anew|import|imported)\b")


def _group(said: str) -> str:
    """The group of logins that may do what was refused."""
    if PEOPLE.search(said):
        return "rolecall_operator"
    return "rolecall_worker (or rolecall_operator, for people)"


class Statement:
    """A statement that the server has prepared, and how its columns are read."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self._readers: list[Callable[[bytes], Any]] | None = None

    def read(self, found: pq.abc.PGresult) -> list[Row]:
        """The rows of a result. Raises Refused."""
        if found.status == pq.ExecStatus.FATAL_ERROR:
            return _read(found)
        if self._readers is None:
            self._readers = _readers(found)
        return _rows(found, self._readers)


def _read(found: pq.abc.PGresult) -> list[Row]:
    """The rows of a result. Raises Refused."""
    if found.status == pq.ExecStatus.FATAL_ERROR:
        state = found.error_field(pq.DiagnosticField.SQLSTATE)
        said = found.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
        text = (said or found.error_message or b"").decode(errors="replace")
        raise Refused(_in_a_line(text), (state or b"").decode())
    return _rows(found, _readers(found))


def _readers(found: pq.abc.PGresult) -> list[Callable[[bytes], Any]]:
    return [READ.get(found.ftype(column), bytes.decode) for column in range(found.nfields)]


def _rows(found: pq.abc.PGresult, readers: Sequence[Callable[[bytes], Any]]) -> list[Row]:
    get, columns = found.get_value, tuple(enumerate(readers))
    return [
        [
            None if (value := get(row, column)) is None else reader(value)
            for column, reader in columns
        ]
        for row in range(found.ntuples)
    ]


def _written(value: object) -> bytes | None:
    """A value as the server reads it; a list is one of texts."""
    return WRITE.get(type(value), _as_text)(value)


def _as_text(value: object) -> bytes:
    return str(value).encode()


def _as_array(values: Any) -> bytes:
    quoted = (str(each).replace("\\", "\\\\").replace('"', '\\"') for each in values)
    return ("{" + ",".join([f'"{each}"' for each in quoted]) + "}").encode()


WRITE: dict[type, Callable[[Any], bytes | None]] = {
    str: str.encode,
    bool: lambda value: b"t" if value else b"f",
    type(None): lambda _: None,
    list: _as_array,
    tuple: _as_array,
}


def _in_a_line(said: str) -> str:
    return "; ".join(line.strip() for line in said.splitlines() if line.strip()) or "no reason told"
