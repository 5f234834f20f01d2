"""Queues of a test's own, of every backend, behind one face."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from daemon.config import Backoff, Breaker, Config, Paths, Role
from daemon.lifecycle import DEFAULT_ROLES
from daemon.model import Move
from daemon.process import Identity
from daemon.queue.file import FileQueue

FAR = Identity("far", "machine-of-far", "boot-of-far", "pid:[1]", 4711, 1)


class Clock:
    """Wall time and boot time that a test can step."""

    def __init__(self) -> None:
        self.wall, self.boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.boot += seconds


class Told:
    """The moves that queues have told, in order, with their owners."""

    def __init__(self, owner: str = "me") -> None:
        self.owner = owner
        self.moves: list[Move] = []
        self.owners: list[str] = []

    def move(self, move: Move, owner: str = "") -> None:
        self.moves.append(move)
        self.owners.append(owner or self.owner)


class FileBackend:
    """A queue in a JSON file: how a test fills it, changes it by hand, and opens it."""

    def __init__(self, folder: Path, **role: Any) -> None:
        self.folder, self.path = folder, folder / "SPRINT_QUEUE.json"
        never = Breaker(failures=0)
        self.role = {
            "lease_ttl": 60.0,
            "backoff": Backoff(30.0, 3600.0),
            "breaker": never,
            **role,
        }
        folder.mkdir(exist_ok=True)
        self.clock, self.told = Clock(), Told()
        self.layout: dict[str, Any] = {"indent": 2}  # how a person's editor lays the queue out

    @property
    def config(self) -> Config:
        roles = {
            name: Role(name, **{**row, "claims": tuple(row["claims"]), **self.role})
            for name, row in DEFAULT_ROLES.items()
        }
        paths = Paths(*(str(self.folder / name) for name in Paths._fields))
        where = str(self.folder)
        return Config(where, f"file:{self.path}", "auto", "agent", tuple(roles), roles, paths)

    def open(self, me: Identity | None = None, random: float = 1.0) -> FileQueue:
        """A worker's own view of the queue. What it does is told to ``self.told``."""
        return FileQueue(
            self.config,
            clock=lambda: self.clock.wall,
            boottime=lambda: self.clock.boot,
            random=lambda: random,
            me=me,
            teller=self.told,
        )

    def fill(self, *tasks: dict[str, Any], **top: Any) -> None:
        """Make the queue hold these tasks."""
        self.put({"tasks": list(tasks), **top})

    def document(self) -> Any:
        """The queue as any other program reads it."""
        return json.loads(self.path.read_text())

    def text(self) -> str:
        """The queue as its bytes stand; "" where a kind of queue has no such thing."""
        return self.path.read_text()

    def put(self, document: Any) -> None:
        """Save the document as a person's editor does."""
        self.save(json.dumps(document, **self.layout) + "\n")

    def save(self, text: str) -> None:
        """Save the text as a person's editor does: aside, and renamed."""
        aside = self.path.with_suffix(".mine")
        aside.write_text(text)
        aside.rename(self.path)

    def task(self, task_id: str) -> dict[str, Any]:
        """One top-level task, as it stands there now."""
        found: dict[str, Any]
        found = next(task for task in self.document()["tasks"] if task["id"] == task_id)
        return found

    def change(self, task_id: str, **values: Any) -> None:
        """Change a task by hand."""
        document = self.document()
        next(task for task in document["tasks"] if task["id"] == task_id).update(values)
        self.put(document)

    def lease_file(self, task_id: str) -> Path:
        """Where the task's lease is."""
        return self.folder / "leases" / f"{task_id}.json"


BACKENDS = {"file": FileBackend}
