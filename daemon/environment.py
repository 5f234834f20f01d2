"""What an agent, and a gate, finds in its environment: named things only, never all of ours."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from daemon.errors import ConfigError

PASSED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR")
SHORTEST_SECRET = 6  # a shorter value would mask ordinary words of the output


def base(environ: Mapping[str, str]) -> dict[str, str]:
    """The worker's own variables that every program of an attempt gets."""
    found = {key: value for key, value in environ.items() if key in PASSED or key.startswith("LC_")}
    return {**found, "TERM": "dumb"}


def read_env_file(path: str) -> dict[str, str]:
    """``KEY=value`` lines; blank ones and those that start with ``#`` are passed over.

    Raises ConfigError where others than its owner may read or write it, and for a broken line.
    """
    path = os.path.expanduser(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("env_file is no regular file", where=path)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"env_file is open to others (mode {mode:04o})",
                    where=path,
                    hint=f"chmod 600 {path}",
                )
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"env_file cannot be read: {reason}", where=path) from error
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(
                "env_file wants lines of the form KEY=value", where=f"{path}:{number}"
            )
        found[key.strip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def secrets(*sources: Mapping[str, str]) -> tuple[str, ...]:
    """The values that captured output must not show, longest first."""
    values = {value for source in sources for value in source.values()}
    return tuple(sorted((v for v in values if len(v) >= SHORTEST_SECRET), key=len, reverse=True))
