"""A soak of a queue in a file, which people edit and save while everybody works."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.config import load
from daemon.model import Lease
from daemon.queue.file import FileQueue
from tests.soak.soak import STATUSES, Nobody, Soak, Unreadable
from tests.workspace import Workspace


class FileSoak(Soak):
    """Leases are removed, the file is edited by hand, saved half-way, and as it was before."""

    queue: FileQueue

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(Workspace(folder), seed)

    def made(self, *tasks: dict[str, Any]) -> FileQueue:
        self.ws.write_queue(*tasks)
        return FileQueue(load(str(self.ws.config)), teller=Nobody())

    def acts(self) -> list[Callable[[], None]]:
        often = [self.edit_by_hand] * 4 + [self.remove_a_lease] * 2
        return [*often, self.save_half, self.save_an_old_buffer]

    def seen(self) -> dict[str, str]:
        try:
            tasks = json.loads(self.ws.queue.read_bytes())["tasks"]
        except (OSError, ValueError) as error:
            raise Unreadable(str(error)) from None
        return {task["id"]: task["status"] for task in tasks}

    def leases(self) -> list[Lease]:
        return list(self.queue.leases.every().leases.values())

    def remains(self) -> list[str]:
        return [name for name in os.listdir(self.ws.queue.parent) if name != self.ws.queue.name]

    def remove_a_lease(self) -> None:
        """Remove a lease; not while holds are undone, for then nothing bars a second attempt."""
        found = self.leases()
        if found and self.undone is None:
            path = self.ws.path / ".leases" / f"{self.random.choice(found).task_id}.json"
            path.unlink(missing_ok=True)
            self.figures["leases removed"] += 1

    def edit_by_hand(self) -> None:
        """Change the status of a task that no role works on."""
        if self.is_broken():
            return
        with self.locked():
            document = self.ws.document()
            task = self.random.choice(document["tasks"][:3])
            task["status"] = self.random.choice(STATUSES)
            task["blocker"] = "a person"
            self.ws.write_queue(*document["tasks"])
        self.figures["edits by hand"] += 1

    def save_an_old_buffer(self) -> None:
        """Save the whole file as it was some moments ago, without a lock."""
        if self.undone is None and not self.is_broken():
            text = self.ws.queue.read_text()
            self.later.append(
                (time.monotonic() + self.random.uniform(0, 0.3), lambda: self.save(text))
            )

    def save(self, text: str) -> None:
        before = self.holds()
        self.undone = before
        if self.is_broken():
            return
        aside = self.ws.queue.with_suffix(".mine")
        aside.write_text(text)
        aside.rename(self.ws.queue)
        self.undone = before | self.holds()
        self.figures["old buffers saved"] += 1

    def save_half(self) -> None:
        """Leave the file half-written for a moment. Nobody of ours writes it meanwhile."""
        if self.is_broken():
            return
        with self.locked():
            text = self.ws.queue.read_text()
            self.breaks += 1
            self.ws.queue.write_text(text[: len(text) // 2])
        self.later.append(
            (time.monotonic() + self.random.uniform(0.1, 0.5), lambda: self.mend(text))
        )

    def mend(self, text: str) -> None:
        self.ws.queue.write_text(text)
        self.breaks += 1
        self.figures["half-written saves"] += 1

    def locked(self) -> Any:
        """The queue's lock, as a careful person takes it with flock(1)."""
        path = self.ws.path / ".locks" / "queue.lock"
        path.parent.mkdir(exist_ok=True)
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file
