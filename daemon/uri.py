"""A queue's PostgreSQL URI, as far as a config is judged: libpq reads it when it connects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from daemon.checking import close

SCHEMES = ("postgresql", "postgres")
EXAMPLE = "postgresql://db.example.com/rolecall"
SECRETS_GO = "leave it out: libpq finds it in ~/.pgpass, by PGPASSFILE, or in a service file"
#: libpq's parameters that hold a secret themselves.
SECRET = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
#: And those that people write, to tell a misspelt one.
USUAL = (
    *("host", "hostaddr", "port", "dbname", "user", "passfile", "service"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslnegotiation", "gssencmode"),
    *("channel_binding", "require_auth", "connect_timeout", "tcp_user_timeout", "keepalives"),
    *("keepalives_idle", "keepalives_interval", "keepalives_count", "load_balance_hosts"),
    *("target_session_attrs", "application_name", "options", "requirepeer", "krbsrvname"),
)
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(%25\w+)?\]|[^:\[\]]*)(:[0-9]{0,5})?")
ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")


def wrong(url: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a URI of one of SCHEMES: pairs of what and a hint, with no secret."""
    head, _, query = url.partition("?")
    scheme, slashes, rest = head.partition("://")
    if not slashes or scheme not in SCHEMES:
        yield "queue: this is no libpq URI", f"such as {EXAMPLE}"
        return
    authority, _, database = rest.partition("/")
    login, _, hosts = authority.rpartition("@")
    behind = database + query.partition("=")[0]
    if ":" in login or ("@" in behind and re.search(r":(?![0-9]*(,|$))", authority)):
        # A / or a ? in a password ends the authority; it is a password all the same.
        yield "queue holds a password", SECRETS_GO
        return
    parameters = [each.partition("=") for each in query.split("&") if each]
    named = {_decoded(key): value for key, _, value in parameters}
    yield from _wrong_names(named)
    if any(not equals or "=" in value for _, equals, value in parameters):
        yield "queue: a parameter that is not name=value", "a = inside a value is written %3D"
    if "%00" in url or "%" in ESCAPE.sub("", url):
        yield "queue: a % that begins no escape", "a % itself is %25"
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        yield "queue: a blank in the URI", "it is written %20"
    if not all(HOST.fullmatch(each) for each in hosts.split(",")):
        yield "queue: a host and port that libpq does not read", f"such as {EXAMPLE}"
    if not (database or named.get("dbname") or named.get("service")):
        yield "queue: the URI names no database, and no service", f"such as {EXAMPLE}"


def _wrong_names(named: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in named:
        if name in SECRET:
            yield f"queue holds a password ({name})", SECRETS_GO
        elif name not in USUAL and (near := close(name, USUAL, 0.8)):
            yield f'queue: libpq has no parameter "{name[:40]}"', f'did you mean "{near}"?'


def _decoded(text: str) -> str:
    return ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
