"""The schema of a queue on PostgreSQL: made, brought up to date, and checked before it is used.

``sql/NNN.sql`` are its migrations, each applied once, in order. Behind the last one, in the same
transaction, ``sql/functions.sql`` makes all functions anew; ``sql/grants.sql`` says what the two
groups of logins may do, and is run anew each time. Imported only where psycopg is there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from psycopg import Connection, Error, errors, sql

from daemon.errors import QueueUnreadable, RolecallError
from daemon.queue.database import reason

SQL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sql")
FUNCTIONS, GRANTS = "functions.sql", "grants.sql"
INIT = "invoke queue.init"
ROLES = ("rolecall_worker", "rolecall_operator")
LOCK = int.from_bytes(b"Rolecall")  # the advisory lock under which alone the schema changes
SHOWN = 3  # sessions that an error names

RIGHTS = """
select array_agg(acl order by acl) from (
    select oid::text || nspacl::text from pg_namespace where nspname = 'rolecall'
    union all select oid::text || relacl::text from pg_class
        where relnamespace = to_regnamespace('rolecall')
    union all select oid::text || proacl::text from pg_proc
        where pronamespace = to_regnamespace('rolecall')
) as every (acl) where acl is not null
"""
OWNER = "select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'rolecall'"
HOLDERS = """
select distinct pid, coalesce(nullif(application_name, ''), usename, ''), coalesce(state, '')
from pg_locks join pg_stat_activity using (pid)
where relation in (select oid from pg_class where relnamespace = to_regnamespace('rolecall'))
    and pid <> pg_backend_pid()
order by pid
"""


class Patience(NamedTuple):
    """How long a migration waits for workers that use what it changes; seconds, and how often.

    While it waits, who comes after it waits behind it: better several short waits than a long one.
    """

    lock: float = 2.0
    pause: float = 1.0
    tries: int = 5
    other: float = 60.0  # for another who changes the schema just now


PATIENCE = Patience()


def newest(folder: str = SQL) -> int:
    """The version of the schema that this Rolecall knows."""
    return len(_migrations(folder))


def version(connection: Connection[Any]) -> int:
    """The version of the schema in the database; 0 where there is none."""
    found = connection.execute(
        "select to_regnamespace('rolecall') is not null"
        " and exists (select from pg_class where relname = 'migration'"
        " and relnamespace = to_regnamespace('rolecall'))"
    ).fetchone()
    if not (found and found[0]):
        return 0
    row = connection.execute("select coalesce(max(version), 0) from rolecall.migration").fetchone()
    return int(row[0]) if row else 0


def check(connection: Connection[Any], folder: str = SQL) -> None:
    """Raise QueueUnreadable where the schema is not the one that this Rolecall works with."""
    try:
        found = version(connection)
    except errors.InsufficientPrivilege:
        user = connection.info.user
        what = f"{user} may not use the queue in the database {connection.info.dbname}"
        hint = f"its owner types: GRANT {ROLES[0]} TO {named(connection, user)}"
        raise QueueUnreadable(what, hint=hint) from None
    judge(found, connection.info.dbname, folder)


def judge(found: int, database: str, folder: str = SQL) -> None:
    """Raise QueueUnreadable where the schema's version is not that of this Rolecall; 0 is none."""
    known = newest(folder)
    if found == 0:
        what = f"there is no queue in the database {database}"
        raise QueueUnreadable(what, hint=INIT)
    if found < known:
        what = f"the queue's schema is version {found}, this Rolecall needs {known}"
        raise QueueUnreadable(what, hint=INIT)
    if found > known:
        raise _newer(found, known)


def migrate(
    connection: Connection[Any], folder: str = SQL, patience: Patience = PATIENCE
) -> list[str]:
    """Make the schema, or bring it up to date; a line for each thing done, none where all was.

    ``connection`` is its owner's, in autocommit. Each file is one transaction; two at once do
    nothing twice. Raises RolecallError, and leaves what was done before.
    """
    lines = list[str]()
    files = _migrations(folder)
    with _told(connection), _alone(connection, patience):
        if (found := version(connection)) > len(files):
            raise _newer(found, len(files))
        if found == 0:
            lines += _make(connection)
    with _told(connection), _alone(connection, patience):
        missing = _roles(connection, lines)
    functions, grants = (
        [path] if os.path.exists(path := os.path.join(folder, name)) else []
        for name in (FUNCTIONS, GRANTS)
    )
    if missing:
        grants = []
    for number, path in enumerate(files, 1):
        behind = [*functions, *grants] if number == len(files) else []
        lines += _apply(connection, number, [path, *behind], patience)
    for path in grants:
        lines += _grant(connection, path, patience)
    for role in missing:
        made = f"an administrator types: CREATE ROLE {role} NOLOGIN; then you: {INIT}"
        lines.append(f"not made, for {connection.info.user} may not: {made}")
    return lines


def _migrations(folder: str) -> list[str]:
    """The paths of the migrations: that of version 1 first."""
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"[0-9]{3}\.sql", name))
    if names != [f"{number:03}.sql" for number in range(1, len(names) + 1)]:
        raise RolecallError("a migration is missing", where=folder, hint=f"found: {names}")
    return [os.path.join(folder, name) for name in names]


def _newer(found: int, known: int) -> QueueUnreadable:
    what = f"the queue's schema is version {found}, this Rolecall knows {known}"
    return QueueUnreadable(what, hint="take a newer Rolecall: git pull there, then invoke deploy")


def _make(connection: Connection[Any]) -> Iterator[str]:
    have = connection.execute("select to_regnamespace('rolecall') is not null").fetchone()
    if not (have and have[0]):
        connection.execute("create schema rolecall")
        yield f"made the schema rolecall in the database {connection.info.dbname}"
    connection.execute(
        "create table if not exists rolecall.migration ("
        " version int primary key, applied_at timestamptz not null default now())"
    )


def _apply(
    connection: Connection[Any], number: int, paths: list[str], patience: Patience
) -> Iterator[str]:
    for again in range(patience.tries):
        time.sleep(patience.pause * bool(again))
        try:
            left = [*paths]
            with _told(connection, left), _alone(connection, patience):
                if version(connection) >= number:
                    return
                while left:
                    _run(connection, left[0])
                    del left[0]
                connection.execute("insert into rolecall.migration (version) values (%s)", [number])
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            continue
        yield f"the queue's schema is version {number} now"
        return
    raise _held(connection, paths[0])


def _grant(connection: Connection[Any], path: str, patience: Patience) -> Iterator[str]:
    with _told(connection, [path]), _alone(connection, patience):
        before = connection.execute(RIGHTS).fetchone()
        _run(connection, path)
        if connection.execute(RIGHTS).fetchone() != before:
            yield f"{' and '.join(ROLES)} may do what workers and people do"


def _roles(connection: Connection[Any], lines: list[str]) -> list[str]:
    """Make the groups of logins that are not there; those that we may not make."""
    missing = []
    for role in ROLES:
        if connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone():
            continue
        try:
            with connection.transaction():  # a savepoint: the roles are those of all databases
                connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(role)))
            lines.append(f"made the role {role}")
        except errors.InsufficientPrivilege:
            missing.append(role)
        except (errors.DuplicateObject, errors.UniqueViolation):
            continue  # by another database's queue.init at this moment
    return missing


def _run(connection: Connection[Any], path: str) -> None:
    with open(path, "rb") as file:
        connection.execute(file.read())


@contextmanager
def _alone(connection: Connection[Any], patience: Patience) -> Iterator[None]:
    """One transaction, in which no one else changes the schema."""
    with connection.transaction():
        _wait_at_most(connection, patience.other)
        connection.execute("select pg_advisory_xact_lock(%s)", [LOCK])
        _wait_at_most(connection, patience.lock)
        yield


def _wait_at_most(connection: Connection[Any], seconds: float) -> None:
    value = f"{round(seconds * 1000)}ms"
    connection.execute("select set_config('lock_timeout', %s, true)", [value])


@contextmanager
def _told(connection: Connection[Any], left: Sequence[str] = ()) -> Iterator[None]:
    """What the server refuses becomes a RolecallError; a lock that is held is the caller's.

    ``left``: the files to be run, the one that it is running first.
    """
    try:
        yield
    except (errors.LockNotAvailable, errors.DeadlockDetected):
        if not left:
            raise _held(connection, "another who changes the schema") from None
        raise
    except errors.InsufficientPrivilege as error:
        user = connection.info.user
        what = f"{user} may not change the queue's schema: {reason(error)}"
        raise RolecallError(what, hint=_who_may(connection)) from None
    except Error as error:
        said = reason(error).partition("; ")[0]
        raise RolecallError(said, where=_where(left[0] if left else "", error)) from None


def _who_may(connection: Connection[Any]) -> str:
    row = connection.execute(OWNER).fetchone()
    if row:
        return f"it is {row[0]}'s: {INIT} --queue postgresql://{row[0]}@..."
    info = connection.info
    database, user = named(connection, info.dbname), named(connection, info.user)
    return f"an administrator types: GRANT CREATE ON DATABASE {database} TO {user}"


def _where(path: str, error: Error) -> str:
    position = error.diag.statement_position
    if not path or position is None:
        return path
    with open(path, encoding="utf-8") as file:
        return f"{path}:{file.read(int(position)).count(chr(10)) + 1}"


def _held(connection: Connection[Any], path: str) -> RolecallError:
    rows = connection.execute(HOLDERS).fetchall()
    told = ", ".join(f"pid {pid} ({who}, {state})" for pid, who, state in rows[:SHOWN])
    what = f"what it changes is in use: {told}" if told else "what it changes was in use"
    hint = f"{INIT} once more"
    if rows:
        hint += f"; or end that session before: SELECT pg_terminate_backend({rows[0][0]})"
    return RolecallError(what, where=path, hint=hint)


def named(connection: Connection[Any], name: str) -> str:
    """The name of a role or a database as SQL reads it, in quotes only where it needs them."""
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return name
    return sql.Identifier(name).as_string(connection)
