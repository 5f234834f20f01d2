"""The simplest correct queue by hand: one JSON file, one lock, the fastest JSON library.

It knows nothing of leases, priorities, dependencies or of the file's layout. Its writes last: lock,
read, decode, change, encode, write aside, fsync, rename, fsync the folder.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], str]) -> str:
    with locked(path):
        queue = orjson.loads(path.read_bytes())
        changed = change(queue["tasks"])
        aside = f"{path}.new"
        with open(aside, "wb") as file:
            file.write(orjson.dumps(queue))
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return changed


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def claim(tasks: list[dict[str, Any]]) -> str:
    task = next(task for task in tasks if task["status"] == "ready")
    lease = {"owner": "bench", "token": 1, "started_at": now()}
    task |= {"status": "in_progress", "agent": "builder", "lease": lease, "token": 1}
    task["updated_at"] = now()
    return str(task["id"])


def settle(tasks: list[dict[str, Any]], name: str) -> str:
    task = next(task for task in tasks if task["id"] == name)
    task |= {"status": "awaiting_test", "agent": None, "lease": None, "updated_at": now()}
    return name


def claim_and_settle(path: Path) -> None:
    """A rewrite for the claim, and one for the settling."""
    name = rewrite(path, claim)
    rewrite(path, lambda tasks: settle(tasks, name))


def move(path: Path) -> None:
    """One rewrite alone: nobody sees who works on what."""
    rewrite(path, lambda tasks: settle(tasks, claim(tasks)))
