"""A queue's tasks, looked up by id, by status and in the order of claiming."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from operator import is_not
from typing import Any, NamedTuple

from daemon.model import is_task_id

FEW = 100  # changed tasks; for more, all are looked up anew


class Entry(NamedTuple):
    """One task, at its place in the queue's flat, depth-first order."""

    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs
    task: dict[str, Any]
    parent: str | None  # the id of the task that it stands in as a subtask


def number(value: object) -> float | None:
    """A JSON number that can be reckoned with, or None: no boolean, nothing endless."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def status_of(task: dict[str, Any]) -> str:
    """The task's status; "" for what is no word."""
    status = task.get("status")
    return status if isinstance(status, str) else ""


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's collector of cycles waits: a large queue would call it in vain, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def place_of(key: Any, ordered: Sequence[Any]) -> int:
    """How many of the ordered ones come before the key (``bisect`` is one more import)."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


Rank = tuple[bool, float, int]


def rank(entry: Entry) -> Rank:
    """What is smaller is claimed first: by priority, none last, then in the queue's own order."""
    priority = number(entry.task.get("priority"))
    return priority is None, priority or 0, entry.index


class Tasks:
    """A queue's tasks. Those without a usable id are counted, reported and left alone.

    A value: once made nothing in it changes; what ``changed`` gives shares what stayed the same.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.every = list(entries)
        self.entries: list[Entry] = []
        self.by_id: dict[str, Entry] = {}
        self.by_status: dict[str, list[Entry]] = {}  # every task, in the queue's order
        self.lines: dict[str, list[tuple[Rank, Entry]]] = {}  # those that were asked for
        self.problems: list[str] = []
        for entry in self.every:
            task = entry.task
            identifier, status = task.get("id"), status_of(task)
            if status in self.by_status:
                self.by_status[status].append(entry)
            else:
                self.by_status[status] = [entry]
            if not is_task_id(identifier):
                self.problems.append(f"task {entry.index + 1} has no valid id: {identifier!r:.80}")
            elif identifier in self.by_id:
                self.problems.append(
                    f"task {entry.index + 1} has an id that is taken: {identifier}"
                )
            else:
                self.by_id[identifier] = entry
                self.entries.append(entry)

    def is_usable(self, entry: Entry) -> bool:
        """Whether its id is valid, and its own."""
        identifier = entry.task.get("id")
        return isinstance(identifier, str) and self.by_id.get(identifier) is entry

    def in_status(self, *statuses: str) -> list[Entry]:
        """The usable tasks in any of these statuses, in the queue's order."""
        found = [entry for status in {*statuses} for entry in self.by_status.get(status, ())]
        if self.problems:
            found = [entry for entry in found if self.is_usable(entry)]
        return found if len(statuses) == 1 else sorted(found, key=lambda entry: entry.index)

    def in_line(self, *statuses: str) -> list[tuple[Rank, Entry]]:
        """Every task in any of these statuses, with its rank, in the order of claiming."""
        lines = [self._line(status) for status in {*statuses}]
        return lines[0] if len(lines) == 1 else sorted(each for line in lines for each in line)

    def _line(self, status: str) -> list[tuple[Rank, Entry]]:
        if status not in self.lines:
            found = self.by_status.get(status, ())
            self.lines[status] = sorted((rank(entry), entry) for entry in found)
        return self.lines[status]

    def with_entries(self, entries: list[Entry]) -> Tasks:
        """The queue as it is now: what is not the very entry that it was, has changed."""
        if len(entries) != len(self.every):
            return Tasks(entries)
        return self.changed(list(compress(entries, map(is_not, entries, self.every))))

    def changed(self, entries: list[Entry]) -> Tasks:
        """With these in place of those of the same index."""
        olds = [self.every[entry.index] for entry in entries]
        every = self.every.copy()
        for entry in entries:
            every[entry.index] = entry
        pairs = list(zip(olds, entries, strict=True))
        if len(pairs) > FEW or any(old.task.get("id") != new.task.get("id") for old, new in pairs):
            return Tasks(every)
        made = Tasks(())
        made.every, made.problems = every, self.problems
        made.entries, made.by_id = self.entries.copy(), self.by_id.copy()
        for old, new in pairs:
            if self.is_usable(old):
                made.by_id[new.task["id"]] = new
                made.entries[place_of((new.index,), made.entries)] = new
        gone = [(status_of(old.task), old) for old in olds]
        come = [(status_of(new.task), new) for new in entries]
        made.by_status = _moved(self.by_status, gone, come)
        made.lines = _moved(
            self.lines,
            [(status, (rank(old), old)) for status, old in gone if status in self.lines],
            [(status, (rank(new), new)) for status, new in come if status in self.lines],
        )
        return made


def _moved(
    lists: dict[str, list[Any]],
    gone: list[tuple[str, Any]],
    come: list[tuple[str, Any]],
) -> dict[str, list[Any]]:
    """Ordered lists with some things taken out and others put in; the given ones stay."""
    made = lists | {status: list(lists.get(status, ())) for status, _ in (*gone, *come)}
    for status, each in gone:
        del made[status][place_of(each[:1], made[status])]
    for status, each in come:
        made[status].insert(place_of(each[:1], made[status]), each)
    return made
