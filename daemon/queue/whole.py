"""A queue's file as a whole, out and in: every byte of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from daemon.errors import RolecallError
from daemon.model import Move
from daemon.queue import durable
from daemon.queue.text import Text
from daemon.queue.transfer import Imported, Incoming

if TYPE_CHECKING:
    from daemon.queue.file import FileQueue
    from daemon.queue.update import Update


def export(queue: FileQueue) -> bytes:
    """The queue as it is, every byte. Raises QueueUnreadable where it is none, RolecallError."""
    text = Text.read(queue.config.queue_file)
    if text is None:
        raise RolecallError("there is no queue", where=queue.config.queue_file)
    return text.data


def load(queue: FileQueue, data: bytes, name: str, *, replace: bool = False) -> Imported:
    """Take the tasks of another queue's text in; see ``Queue.load``.

    A queue that is missing counts as one without tasks. All that is not added stays as it is.
    """
    incoming = Incoming.of(data, name)
    path = os.path.realpath(queue.config.queue_file)
    with queue.lock():
        text = None if replace else Text.read(path)
        if text is None or not text.document.entries:
            _replace(queue, path, data, text, incoming.moves)
            return incoming.as_whole
    done: list[Imported] = []

    def change(update: Update) -> None:
        done[:] = [incoming.join(update)]

    queue.update(change)
    return done[0]


def _replace(queue: FileQueue, path: str, data: bytes, old: Text | None, moves: list[Move]) -> None:
    """Put the text in the queue's place; the lock is held."""
    live = sorted(lease.task_id for lease in queue.live())
    if live:
        raise RolecallError(
            f"attempts are on {', '.join(live)}", where=path, hint="invoke agents.stop"
        )
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise durable.failure(error, path) from None
    like = old.found if old else _found(path)
    aside = durable.write_aside(path, data, like=like, sync=True)
    if old is not None and not old.is_current():
        durable.drop(aside.path)
        raise RolecallError("the queue was changed meanwhile: nothing was imported", where=path)
    queue.outbox.note(aside, moves)
    try:
        durable.put(aside.path, path)
    except BaseException:
        queue.outbox.forget()
        raise
    queue.outbox.tell(moves)
    durable.sync_folder(os.path.dirname(path))


def _found(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
