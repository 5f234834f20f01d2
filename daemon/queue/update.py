"""Changes of a queue's tasks that are to be written at once, whatever the queue is kept in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from daemon import lifecycle
from daemon.index import Entry, Tasks
from daemon.lifecycle import Changes, Machine
from daemon.model import Move
from daemon.queue import jsontext


class Update:
    """The tasks as they are with the changes made so far; the queue may not change meanwhile.

    ``leases``: the ids of the tasks that have one. ``changes`` are by the entry's index, ``new``
    the tasks to be added, ``moves`` what is to be told of both.
    """

    def __init__(self, tasks: Tasks, leases: Collection[str]) -> None:
        self._tasks, self.leases = tasks, leases
        self._changed: dict[int, Entry] = {}  # not among the tasks yet
        self.changes: dict[int, Changes] = {}
        self.new: list[dict[str, Any]] = []
        self.moves: list[Move] = []

    @property
    def tasks(self) -> Tasks:
        """The tasks as they are with the changes; made when somebody asks."""
        if self._changed:
            self._tasks, self._changed = self._tasks.changed([*self._changed.values()]), {}
        return self._tasks

    def task(self, index: int) -> dict[str, Any]:
        """One of them."""
        return (self._changed.get(index) or self._tasks.every[index]).task

    def change(self, entry: Entry, changes: Changes) -> Entry:
        """Set keys of one task; the entry as it is then. The queue has them when it is written."""
        now = self._tasks.every[entry.index]
        changed = now._replace(task={**self.task(entry.index), **changes})
        self._changed[entry.index] = changed
        self.changes.setdefault(entry.index, {}).update(changes)
        return changed

    def append(self, new: Sequence[dict[str, Any]]) -> None:
        """Add tasks behind all others."""
        if new:
            self.new += new
            first = len(self.tasks.every)
            flat = jsontext.flat(list(new))[0]
            added = [entry._replace(index=first + entry.index) for entry in flat]
            self._tasks, self._changed = Tasks([*self.tasks.every, *added]), {}

    def move_on(self, machine: Machine, now: float) -> None:
        """Make the moves that happen by themselves, to a fixed point."""
        for entry, changes, source, target, why in lifecycle.moves(
            self.tasks, machine, now, self.leases
        ):
            self.change(entry, changes)
            self.moves.append(Move(entry.task["id"], "", source, target, why))
