"""The queue's file as it was read, and an update of it that gives way to changes by hand."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from daemon import lifecycle
from daemon.errors import QueueUnreadable, RolecallError
from daemon.lifecycle import Changes, Entry, Machine, Tasks
from daemon.model import Move
from daemon.queue import durable, jsonedit, jsontext

RACY = 50_000_000  # nanoseconds: two writes so close may carry the same mtime


class Text(NamedTuple):
    """What the file said, and what it looked like then."""

    path: str  # with every link resolved
    found: os.stat_result
    data: bytes
    racy: bool
    document: jsontext.Document

    @classmethod
    def read(cls, path: str) -> Text | None:
        """The queue as it is now; None where there is none. Raises QueueUnreadable."""
        path = os.path.realpath(path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(error, path) from None
        try:
            found = os.fstat(fd)
            read_at = time.time_ns()
            if found.st_size > jsontext.LONGEST:
                data = b""
            else:
                with open(fd, "rb", closefd=False) as file:
                    data = file.read(jsontext.LONGEST + 1)
        except OSError as error:
            raise _unreadable(error, path) from None
        finally:
            os.close(fd)
        if found.st_size > jsontext.LONGEST:
            raise jsontext.too_large(path)
        document = jsontext.parse(data, path)
        return cls(path, found, data, read_at - found.st_mtime_ns < RACY, document)

    def is_current(self) -> bool:
        """Whether the file is still this one, as far as its inode, size and mtime tell."""
        try:
            now = os.stat(self.path)
            if _looks(now) != _looks(self.found):
                return False
            if not self.racy:
                return True
            with open(self.path, "rb") as file:
                return file.read(len(self.data) + 1) == self.data
        except OSError:
            return False


def _looks(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(error: OSError, path: str) -> RolecallError:
    if error.errno == errno.EISDIR:
        return QueueUnreadable("the queue is a folder", where=path)
    return QueueUnreadable(f"cannot read the queue: {error.strerror}", where=path)


class Update:
    """Changes of a queue's tasks, to be written at once. The lock is held."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.tasks = Tasks(text.document.entries)
        self.changes: dict[int, Changes] = {}
        self.new: list[dict[str, Any]] = []
        self.moves: list[Move] = []

    def change(self, entry: Entry, changes: Changes) -> None:
        """Set keys of one task, here and, at ``write``, in the file."""
        entry.task.update(changes)
        if entry.index < len(self.text.document.entries):
            self.changes.setdefault(entry.index, {}).update(changes)

    def append(self, new: Sequence[dict[str, Any]]) -> None:
        """Add tasks behind all others."""
        self.new += new
        flat = jsontext.flat(list(self.new))[0]
        first = len(self.text.document.entries)
        added = [entry._replace(index=first + entry.index) for entry in flat]
        self.tasks = Tasks([*self.text.document.entries, *added])

    def move_on(self, machine: Machine, now: float) -> None:
        """Make the moves that happen by themselves, to a fixed point."""
        for entry, changes, source, target, why in lifecycle.moves(self.tasks, machine, now):
            self.change(entry, changes)
            self.moves.append(Move(entry.task["id"], "", source, target, why))

    def write(self) -> bool:
        """Put the changed text in the file's place; False if the file is another one by now."""
        data = jsonedit.edit(self.text.document, self.changes, self.new)
        aside = durable.write_aside(self.text.path, data, like=self.text.found, sync=True)
        if not self.text.is_current():
            durable.drop(aside)
            return False
        durable.put(aside, self.text.path, sync=True)
        return True
