"""The tasks of another queue's text: which of them are new here, the same, or refused."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from daemon import lifecycle
from daemon.errors import RolecallError
from daemon.index import Tasks
from daemon.model import Move
from daemon.queue import intake, jsontext
from daemon.queue.update import Update

BOM = b"\xef\xbb\xbf"
SHOWN = 5  # problems that one error names
WHY = "imported"


class Imported(NamedTuple):
    """What an import did: the tasks that it added, by id, and those that were there already.

    ``held``: those added on which an attempt was as the text was written, which no attempt of this
    queue is on.
    """

    added: tuple[str, ...]
    kept: tuple[str, ...]
    whole: bool = False
    held: tuple[str, ...] = ()


class Incoming(NamedTuple):
    """A whole queue's text, understood. ``name`` is the text's own; ``document`` what it says."""

    name: str
    tasks: Tasks
    document: dict[str, Any]

    @classmethod
    def of(cls, data: bytes, name: str) -> Incoming:
        """Understand the text. Raises QueueUnreadable where it is none of a queue."""
        tasks = Tasks(jsontext.parse(data, name).entries)
        return cls(name, tasks, json.loads(data.removeprefix(BOM)))

    @property
    def tops(self) -> list[Any]:
        """Its ``tasks``, those that stand in no other."""
        found: list[Any] = self.document["tasks"]
        return found

    @property
    def as_whole(self) -> Imported:
        """What its import did where it became the queue."""
        return Imported(tuple(self.tasks.by_id), (), whole=True, held=self._held)

    @property
    def _held(self) -> tuple[str, ...]:
        return tuple(
            name for name, each in self.tasks.by_id.items() if lifecycle.held_by_us(each.task)
        )

    @property
    def moves(self) -> list[Move]:
        """That its tasks are there now."""
        return intake.told(filter(_is_task, self.tops), WHY)

    def join(self, update: Update) -> Imported:
        """Put the tasks of new ids into the update; those whose ids are known have to be equal.

        Raises RolecallError with all that is refused.
        """
        added, kept = list[str](), list[str]()
        problems, fresh = list(self.tasks.problems), list[dict[str, Any]]()
        for task in self.tops:
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
            raise _refused(problems, self.name)
        update.append(fresh)
        update.moves += intake.told(fresh, WHY)
        held = tuple(name for name in self._held if name not in kept)
        return Imported(tuple(added), tuple(kept), held=held)


def _unwritable(tasks: list[dict[str, Any]]) -> list[str]:
    try:
        json.dumps(tasks, allow_nan=False)
    except ValueError:
        return ["a number in it is larger than any that can be written"]
    return []


def _is_task(value: object) -> bool:
    return isinstance(value, dict)


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
