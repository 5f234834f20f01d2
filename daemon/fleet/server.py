"""The server of a queue on PostgreSQL, as a host's workers will meet it."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet import leftover
from daemon.fleet.connection import Local
from daemon.fleet.finding import FAIL, OK, WARN, Finding
from daemon.queue import database

if TYPE_CHECKING:
    from psycopg import Connection

CLOCKS = 5.0  # seconds by which two clocks may differ before it is worth a word
VERIFIED = "?sslmode=verify-full at the end of queue, and the CA in ~/.postgresql/root.crt there"
#: What workers and attempts call, the first letter of each being enough for a person.
CALLS = ("claim", "take_over", "renew", "settle")


def findings(
    config: Config, connection: Local, count: Callable[[Counter[str], str], str]
) -> Iterator[Finding]:
    """Whether workers here can use it; ``count`` words how many tasks are in which statuses."""
    yield from _passed(config)
    try:
        yield from _passfile(config, connection)
        with database.connect(config.queue, "doctor") as made:
            _row(made, "select set_config('statement_timeout', '10s', false)")
            yield from _reached(made)
            yield from _rights(made)
            yield _filled(made, count)
        if left := leftover.problem(config):
            yield Finding("queue", WARN, left, leftover.HINT)
    except RolecallError as error:
        problem = error.problems[0]
        hint = problem.hint or connection.typed(f"psql {shlex.quote(config.queue)}")
        if problem.what == database.MISSING and connection.releases:
            hint = "invoke deploy brings it"
        yield Finding("queue", FAIL, problem.what, hint)


def _filled(made: Connection[Any], count: Callable[[Counter[str], str], str]) -> Finding:
    (statuses,), (many, first) = _row(made, STATUSES), _row(made, SKIPPED)
    counted = count(Counter(statuses), made.info.dbname)
    if many:
        what = f"{counted}, and {many} that are skipped: {first}"
        return Finding("queue", WARN, what, "invoke queue.check")
    return Finding("queue", OK, counted)


def _passed(config: Config) -> Iterator[Finding]:
    """What pass_env hands on of libpq's own variables is the user's word, and worth another."""
    for name in config.run:
        passed = [each for each in config.roles[name].pass_env if each.startswith("PG")]
        if passed:
            what = f"pass_env hands {', '.join(passed)} on: the agent may reach what they open"
            hint = "leave it out, unless the project's own database is meant"
            yield Finding("secrets", WARN, what, hint, name)


def _passfile(config: Config, connection: Local) -> Iterator[Finding]:
    """Libpq takes a password file that others may read for none."""
    try:
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415  # only here
    except ImportError:
        return  # connecting says it
    named = conninfo_to_dict(config.queue).get("passfile") or os.environ.get("PGPASSFILE")
    path = os.path.expanduser(str(named or "~/.pgpass"))
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return
    if mode & 0o077:
        hint = connection.typed(f"chmod 600 {shlex.quote(path)}")
        what = f"{path} is open to others (mode {mode:04o}): libpq does not read it"
        yield Finding("secrets", WARN, what, hint)


def _reached(made: Connection[Any]) -> Iterator[Finding]:
    """Which server it is, and how it is reached. Raises RolecallError where a pooler answers."""
    info = made.info
    version = ".".join(str(part) for part in divmod(info.server_version, 10000))
    where = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
    what = f"PostgreSQL {version} at {where}, as {info.user}"
    mode = info.get_parameters().get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    before, (pid, clock), after = time.time(), _row(made, PID), time.time()
    if pid != info.backend_pid:
        hint = "name PostgreSQL's own host and port: a worker takes one connection"
        raise RolecallError(f"{where} is a pooler, which passes no notifications on", hint=hint)
    if _is_local(info.host):
        yield Finding("server", OK, what)
    elif not (info.pgconn.ssl_in_use or _row(made, GSS)[0]):
        hint = f"have the server speak TLS, then: {VERIFIED}"
        yield Finding("server", WARN, f"{what}, not encrypted", hint)
    elif mode != "verify-full" and info.pgconn.ssl_in_use:
        what = f"{what}, by TLS: but whose server it is, is not checked (sslmode={mode})"
        yield Finding("server", WARN, what, VERIFIED)
    else:
        yield Finding("server", OK, f"{what}, encrypted")
    off = clock - (before + after) / 2
    if abs(off) > CLOCKS + (after - before):
        what = f"this host's clock is {abs(off):.0f} s {'behind' if off > 0 else 'ahead of'}"
        hint = "leases go by the server's clock and logs by this one: timedatectl set-ntp true"
        yield Finding("clock", WARN, f"{what} the server's", hint)


STATUSES = (
    "select coalesce(json_object_agg(status, many order by first), '{}') from ("
    "select status, count(*) as many, min(place) as first from rolecall.task"
    " where id is not null group by status) as counted"
)
SKIPPED = (
    "select count(*), (array_agg(problem order by place))[1] from rolecall.task where id is null"
)
PID = "select pg_backend_pid(), extract(epoch from clock_timestamp())::float8"
GSS = "select coalesce((select encrypted from pg_stat_gssapi where pid = pg_backend_pid()), false)"


def _is_local(host: str) -> bool:
    if host.startswith(("/", "@")) or host in {"", "localhost"}:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _rights(made: Connection[Any]) -> Iterator[Finding]:
    """Raises RolecallError where the schema is not ours, or not to be seen."""
    from daemon.queue import migrating  # noqa: PLC0415  # connect has said what is missing

    migrating.check(made)
    (missing,) = _row(
        made,
        "select array_agg(distinct proname::text) from pg_proc"
        " where pronamespace = 'rolecall'::regnamespace and proname = any(%s)"
        " and not has_function_privilege(oid, 'execute')",
        [list(CALLS)],
    )
    (owns,) = _row(
        made,
        "select pg_has_role(nspowner, 'member') from pg_namespace where nspname = 'rolecall'",
    )
    user, group = migrating.named(made, made.info.user), migrating.ROLES[0]
    if missing:
        what = f"{made.info.user} may not {', '.join(sorted(missing))}"
        yield Finding("queue", FAIL, what, f"its owner types: GRANT {group} TO {user}")
    elif owns:
        what = f"{made.info.user} owns the queue's schema: workers need less"
        hint = f"a login of their own: CREATE ROLE builder LOGIN; GRANT {group} TO builder"
        yield Finding("server", WARN, what, hint)


def _row(made: Connection[Any], query: str, values: Any = None) -> Any:
    from psycopg import Error  # noqa: PLC0415  # as above

    try:
        return made.execute(query.encode(), values).fetchone()
    except Error as error:
        raise RolecallError(f"the queue's database: {database.reason(error)}") from None
