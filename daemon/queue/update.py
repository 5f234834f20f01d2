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
        self.tasks, self.leases = tasks, leases
        self.changes: dict[int, Changes] = {}
        self.new: list[dict[str, Any]] = []
        self.moves: list[Move] = []

    def change(self, entry: Entry, changes: Changes) -> Entry:
        """Set keys of one task; the entry as it is then. The queue has them when it is written."""
        now = self.tasks.every[entry.index]
        changed = now._replace(task={**now.task, **changes})
        self.tasks = self.tasks.changed([changed])
        self.changes.setdefault(entry.index, {}).update(changes)
        return changed

    def append(self, new: Sequence[dict[str, Any]]) -> None:
        """Add tasks behind all others."""
        if new:
            self.new += new
            first = len(self.tasks.every)
            flat = jsontext.flat(list(new))[0]
            added = [entry._replace(index=first + entry.index) for entry in flat]
            self.tasks = Tasks([*self.tasks.every, *added])

    def move_on(self, machine: Machine, now: float) -> None:
        """Make the moves that happen by themselves, to a fixed point."""
        for entry, changes, source, target, why in lifecycle.moves(
            self.tasks, machine, now, self.leases
        ):
            self.change(entry, changes)
            self.moves.append(Move(entry.task["id"], "", source, target, why))
