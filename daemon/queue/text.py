"""The queue's file as it was read, and an update of it that gives way to changes by hand."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from daemon.errors import QueueUnreadable, RolecallError
from daemon.index import Tasks, uncollected
from daemon.queue import durable, jsonedit, jsontext, rereading
from daemon.queue.lease import Found
from daemon.queue.outbox import Outbox
from daemon.queue.update import Update

RESTARTS = 100  # times that a change by hand may come between our look and our write
RACY = 50_000_000  # nanoseconds: two writes so close may carry the same mtime
PART = 1 << 17  # bytes


class Text(NamedTuple):
    """What the file said, and what it looked like then. A value: nobody changes anything in it."""

    path: str  # with every link resolved
    found: os.stat_result
    racy: bool  # it was written just before
    document: jsontext.Document
    data: bytes
    tasks: Tasks

    @classmethod
    def read(cls, path: str, last: Text | None = None) -> Text | None:
        """The queue as it is now; None where there is none. Raises QueueUnreadable.

        What stands there as it did at the last look is not understood again.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(error, path) from None
        try:
            found = os.fstat(fd)
            racy = _is_racy(found)
            path = os.path.realpath(path)
            same = (
                last is not None
                and last.path == path
                and (*_looks(last.found), last.found.st_ctime_ns)
                == (*_looks(found), found.st_ctime_ns)
            )
            if last is not None and same and not last.racy:
                return last._replace(found=found)
            if found.st_size > jsontext.LONGEST:
                raise jsontext.too_large(path)
            data = _bytes(fd, found.st_size)
        except OSError as error:
            raise _unreadable(error, path) from None
        finally:
            os.close(fd)
        if last is not None and data == last.data:
            return last._replace(path=path, found=found, racy=racy)
        with uncollected():
            return cls(path, found, racy, *_understood(data, path, last))

    def moved_in(self) -> Text:
        """The text with what its file looks like since it was renamed."""
        try:
            now = os.stat(self.path)
        except OSError:
            return self
        return self._replace(found=now) if _looks(now) == _looks(self.found) else self

    def is_current(self) -> bool:
        """Whether the file is still this one, as far as its inode, size and mtime tell."""
        try:
            if _looks(os.stat(self.path)) != _looks(self.found):
                return False
            if not self.racy:
                return True
            with open(self.path, "rb") as file:
                at = 0
                while part := file.read(PART):  # small ones find their memory warm
                    if self.data[at : at + PART] != part:
                        return False
                    at += PART
                return at >= len(self.data)
        except OSError:
            return False

    def becomes(self, document: jsontext.Document, data: bytes, aside: durable.Aside) -> Text:
        """What this will be when the file aside, which holds the document, has taken its place."""
        tasks = self.tasks.with_entries(document.entries)
        return Text(self.path, aside.found, not aside.precise, document, data, tasks)


def _understood(
    data: bytes, path: str, last: Text | None
) -> tuple[jsontext.Document, bytes, Tasks]:
    if last is None:
        document = jsontext.parse(data, path)
        return document, data, Tasks(document.entries)
    document = rereading.parse(data, path, last.document)
    return document, data, last.tasks.with_entries(document.entries)


def _bytes(fd: int, size: int) -> bytes:
    """All of the file that should be so large; at most one byte more than the longest queue."""
    with open(fd, "rb", closefd=False) as file:
        data = file.read(size + 1)
        return data if len(data) <= size else data + file.read(jsontext.LONGEST - size)


def restless(path: str) -> RolecallError:
    """The error of an update that somebody's saving came before, again and again."""
    return RolecallError(
        f"the queue was changed {RESTARTS} times while it was to be written",
        where=path,
        hint="find out what keeps writing it: inotifywait -m on its folder",
    )


def _is_racy(found: os.stat_result) -> bool:
    """Whether one more write could leave the same mtime; some file systems count whole seconds."""
    whole = found.st_mtime_ns % 1_000_000_000 == 0
    return time.time_ns() - found.st_mtime_ns < (2_000_000_000 if whole else RACY)


def _looks(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(error: OSError, path: str) -> RolecallError:
    if error.errno == errno.EISDIR:
        return QueueUnreadable("the queue is a folder", where=path)
    return QueueUnreadable(f"cannot read the queue: {error.strerror}", where=path)


class FileUpdate(Update):
    """Changes of the tasks in a queue's file. The lock is held.

    ``found``: the leases, read behind the text; ``wrote`` is told of the text that was written,
    whoever reads the events of the moves.
    """

    def __init__(
        self, text: Text, found: Found, wrote: Callable[[Text], None], outbox: Outbox
    ) -> None:
        super().__init__(text.tasks, found.leases)
        self.text, self.found, self.wrote, self.outbox = text, found, wrote, outbox

    def write(self, folders: Sequence[str] = (), *, sync: bool = True) -> bool:
        """Put the changed text in the file's place; False if the file is another one by now.

        What stands in the folders is made to last before. Without ``sync`` the caller calls it.
        """
        path, document = self.text.path, self._document()
        data = document.encode()
        aside = durable.write_aside(path, data, like=self.text.found, sync=True, folders=folders)
        try:
            written = self.text.becomes(document, data, aside)
            current = self.text.is_current()
        except BaseException as error:
            durable.drop(aside.path)
            if isinstance(error, OSError):
                raise durable.failure(error, path) from None
            raise
        if not current:
            durable.drop(aside.path)
            return False
        self.outbox.note(aside, self.moves)
        try:
            self.outbox.must_hold()  # as late as can be
            durable.put(aside.path, path)
        except BaseException:
            self.outbox.forget()
            if aside.is_there:  # it may be the other writer's by now
                durable.drop(aside.path)
            raise
        self.text = written.moved_in()
        self.wrote(self.text)
        self.outbox.tell(self.moves)
        if sync:
            self.sync()
        return True

    def sync(self) -> None:
        """Make the write last. It needs no lock: who writes later builds on this write."""
        durable.sync_folder(os.path.dirname(self.text.path))

    def _document(self) -> jsontext.Document:
        """The document with the changes. Those of new tasks go into the new tasks themselves."""
        first = len(self.text.document.entries)
        added = jsontext.flat(list(self.new))[0]
        for index, values in self.changes.items():
            if index >= first:
                added[index - first].task.update(values)
        changes = {index: values for index, values in self.changes.items() if index < first}
        return jsonedit.edited(self.text.document, changes, self.new)
