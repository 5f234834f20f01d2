"""A whole queue in and out: what import and export do."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from daemon.errors import RolecallError
from daemon.index import Tasks
from daemon.model import Move
from daemon.queue import durable, intake, jsontext
from daemon.queue.file import FileQueue
from daemon.queue.text import Text
from daemon.queue.update import Update

BOM = b"\xef\xbb\xbf"
SHOWN = 5  # problems that one error names
WHY = "imported"


class Imported(NamedTuple):
    """What an import did: the tasks that it added, by id, and those that were there already."""

    added: tuple[str, ...]
    kept: tuple[str, ...]
    whole: bool = False


def export(queue: FileQueue) -> bytes:
    """The queue as it is, every byte. Raises QueueUnreadable where it is none, RolecallError."""
    text = Text.read(queue.config.queue_file)
    if text is None:
        raise RolecallError("there is no queue", where=queue.config.queue_file)
    return text.data


def load(queue: FileQueue, data: bytes, name: str, *, replace: bool = False) -> Imported:
    """Take the tasks of another queue's text in; all of them, or none where one is refused.

    A queue that is missing or without tasks becomes the text as a whole, every byte, and so does
    any with ``replace``, unless an attempt is on one of its tasks. Else tasks of new ids are added
    behind the others, and those whose ids are known have to be equal; all else stays as it is.
    """
    incoming = Tasks(jsontext.parse(data, name).entries)
    tops = json.loads(data.removeprefix(BOM))["tasks"]
    path = os.path.realpath(queue.config.queue_file)
    with queue.lock():
        text = None if replace else Text.read(path)
        if text is None or not text.document.entries:
            _replace(queue, path, data, text, intake.told(filter(_is_task, tops), WHY))
            return Imported(tuple(incoming.by_id), (), whole=True)
    added, kept = list[str](), list[str]()

    def change(update: Update) -> None:
        added.clear()
        kept.clear()
        problems, fresh = list(incoming.problems), list[dict[str, Any]]()
        for task in tops:
            task_id = str(task.get("id")) if isinstance(task, dict) else ""
            known = update.tasks.by_id.get(task_id)
            if known is None and task_id:
                fresh.append(task)
            elif known is not None and _same(known.task, task):
                kept.append(task_id)
            elif known is not None:
                problems.append(f"{task_id} is another task here")
            else:
                problems.append(f"{task!r:.80} is no task")
        for entry in jsontext.flat(fresh)[0]:
            added.append(str(entry.task.get("id")))
            if added[-1] in update.tasks.by_id:
                problems.append(f"{added[-1]} is another task here")
        problems += _unwritable(fresh)
        if problems:
            raise _refused(problems, name)
        update.append(fresh)
        update.moves += intake.told(fresh, WHY)

    queue.update(change)
    return Imported(tuple(added), tuple(kept))


def _unwritable(tasks: list[dict[str, Any]]) -> list[str]:
    try:
        json.dumps(tasks, allow_nan=False)
    except ValueError:
        return ["a number in it is larger than any that can be written"]
    return []


def _is_task(value: object) -> bool:
    return isinstance(value, dict)


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


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether they say the same, in any order of their keys; 1 and true differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _refused(problems: list[str], name: str) -> RolecallError:
    more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return RolecallError(
        f"nothing was imported: {'; '.join(problems[:SHOWN])}{more}",
        where=name,
        hint="--replace takes the file in place of the whole queue",
    )
