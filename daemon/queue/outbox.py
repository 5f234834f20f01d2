"""Moves that are written and not told yet: every state change becomes an event, and just one.

Who writes the queue notes the moves in the lock file first, tells them while the lock is held, and
strikes the note out. A writer that dies in between leaves it to the next one, which can see whether
the write happened: the file that was to take the queue's place is still beside it, or is not. Only
one that dies between telling and striking out is told twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from daemon.errors import RolecallError
from daemon.model import Move
from daemon.queue.durable import Aside
from daemon.queue.lock import NAME

LENGTH = 8  # digits before the note: how many bytes it has
LONGEST = 1 << 20  # bytes
NOTHING = b"0" * LENGTH


class Teller(Protocol):
    """Who tells moves (``log.Log``). ``owner``: in whose name."""

    owner: str

    def tell(self, moves: Sequence[Move], owner: str = "") -> None:
        """Tell moves in order, of another owner where one is named."""


class Note(NamedTuple):
    """What a writer left: the file that was to be renamed, its inode, and what was to be told."""

    aside: str
    inode: int
    owner: str
    moves: list[Move]

    def has_happened(self) -> bool:
        """Whether the file has taken the queue's place."""
        try:
            return os.stat(self.aside, follow_symlinks=False).st_ino != self.inode
        except OSError:
            return True


class Outbox:
    """What is to be told of one queue; without a teller nothing is."""

    def __init__(self, teller: Teller | None) -> None:
        self.teller = teller
        self._fd = -1
        self._told: Note | None = None  # of another holder: it may not be ours to strike out

    @contextmanager
    def over(self, lock: int) -> Iterator[None]:
        """Use the queue's lock file, which is held; tell first what a dead holder has left."""
        self._fd = lock
        try:
            note = _read(lock) if self.teller else None
            if note is not None:
                if note.has_happened() and note != self._told:
                    self._tell(note.moves, note.owner)
                self._told = note
                self.forget()
            yield
        finally:
            self._fd = -1

    def must_hold(self) -> None:
        """Raise RolecallError where the lock file was removed: others may hold a new one by now."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            raise RolecallError("the queue's lock was removed while it was held", hint="try again")

    def note(self, aside: Aside, moves: Sequence[Move]) -> None:
        """Remember what is about to happen. A disk without room for it stops nobody."""
        if self.teller and moves:
            value = Note(aside.path, aside.found.st_ino, self.teller.owner, list(moves))
            text = json.dumps(value).encode()
            if len(text) <= LONGEST:
                self._write(b"%0*d" % (LENGTH, len(text)) + text)

    def tell(self, moves: Sequence[Move]) -> None:
        """Tell what has happened."""
        if self.teller and moves:
            self._tell(moves, "")
            self.forget()

    def forget(self) -> None:
        """Strike the note out."""
        if self.teller:
            self._write(NOTHING)

    def _tell(self, moves: Sequence[Move], owner: str) -> None:
        if self.teller:
            self.teller.tell(moves, owner)

    def _write(self, data: bytes) -> None:
        try:
            os.pwrite(self._fd, data, NAME)
        except OSError:
            return


def _read(fd: int) -> Note | None:
    """The note in a lock file; None for none, or for what nobody can read."""
    try:
        length = int(os.pread(fd, LENGTH, NAME))
        if not 0 < length <= LONGEST:
            return None
        value: Any = json.loads(os.pread(fd, length, NAME + LENGTH))
        aside, inode, owner, moves = value
        return Note(str(aside), int(inode), str(owner), [Move(*each) for each in moves])
    except (OSError, ValueError, TypeError, RecursionError):
        return None
