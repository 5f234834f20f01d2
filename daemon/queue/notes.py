"""Small files beside the run folders: what is remembered of a role or a credential.

They outlive workers. One that is absent or cannot be understood says nothing; one that cannot be
written is no error: an attempt's result counts, and was written.
"""

from __future__ import annotations

import json
import os
from typing import Any

from daemon.errors import RolecallError
from daemon.queue import durable

LONGEST = 4096  # bytes of such a file
WORDS = 200  # characters of a reason in it


def path(runs: str, name: str) -> str:
    """The file of that name. No task's folder has it: an id begins with no dot."""
    return os.path.join(runs, f".{name}.json")


def read(path: str) -> dict[str, Any]:
    """What the file says; nothing where it is absent or no JSON object. No link is followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        value = json.loads(os.read(fd, LONGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(fd)
    return value if isinstance(value, dict) else {}


def write(path: str, value: dict[str, Any] | None) -> None:
    """Remember it; None is no file. The queue's lock is held, unless all is forgotten."""
    if value is None:
        durable.drop(path)
        return
    try:
        data = json.dumps(value).encode()
        durable.put(durable.write_aside(path, data, like=None, sync=False).path, path)
    except RolecallError:
        return
