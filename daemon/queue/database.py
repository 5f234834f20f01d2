"""One connection to a queue's database, for what a person typed: ``queue.init`` and ``doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.errors import RolecallError

if TYPE_CHECKING:
    import psycopg

SECONDS = 10  # for connecting, where the URI says nothing else; and for an answer on a dead line
MISSING = "a queue on PostgreSQL needs psycopg"
HINT = "make postgres (or pip install -e '.[postgres]')"
PASSFILE = (
    "a line host:port:database:user:password for just these in ~/.pgpass (chmod 600 ~/.pgpass)"
)
#: What to do about a login that libpq or the server refused, by its words (those of English).
HINTS = {
    "no password supplied": PASSFILE,
    "password authentication failed": PASSFILE,
    "definition of service": "a section [NAME] for it in ~/.pg_service.conf",
    "server does not support SSL": "ssl = on for the server, or another sslmode in the URL",
}


def connect(url: str, what: str) -> psycopg.Connection[Any]:
    """A connection in autocommit; the server shows it as ``rolecall WHAT``.

    Raises RolecallError where psycopg is missing or the server does not take us, with libpq's
    reason in one line.
    """
    try:
        import psycopg  # noqa: PLC0415  # only a queue on PostgreSQL needs it
        from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415
    except ImportError:
        raise RolecallError(MISSING, hint=HINT) from None
    try:
        ours: dict[str, Any] = {
            "connect_timeout": SECONDS,
            "tcp_user_timeout": SECONDS * 1000,
            "fallback_application_name": f"rolecall {what}",
        }
        parameters = make_conninfo("", **{**ours, **conninfo_to_dict(url)})
        return psycopg.connect(parameters, autocommit=True)
    except psycopg.Error as error:
        why = reason(error)
        raise RolecallError(f"the queue's database: {why}", hint=hint_of(why)) from None


def reason(error: Exception) -> str:
    """What libpq or the server said, in one line, without its own guesses behind it."""
    text = str(error).removeprefix("connection failed: ").removeprefix("connection is bad: ")
    lines = [line.strip() for line in text.splitlines() if not line.startswith("\t")]
    return "; ".join(filter(None, lines)) or type(error).__name__


def hint_of(said: str) -> str:
    """What to do where no connection came to be, by what was said of it; "" where none knows."""
    return next((hint for words, hint in HINTS.items() if words in said), "")
