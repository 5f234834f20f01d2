"""Three texts of a queue into one: task by task, key by key. Pure: docs/operations.md says what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

from daemon.errors import QueueUnreadable
from daemon.fleet.mergetext import (
    OURS,
    THEIRS,
    Choice,
    Frame,
    Hand,
    Part,
    canonical,
    document,
    joined,
    lay_out,
    members,
    same,
    tasks,
)
from daemon.model import parse_time
from daemon.queue import jsontext

#: What claiming and settling write together. Half of one side and half of the other would be a task
#: that nobody ever had (done, and under a lease; moved on, and with attempts counted): where both
#: sides changed one of these, a person chooses for all that differ.
STATE = (
    *("status", "agent", "lease", "attempts", "adaptations", "not_before", "last_error"),
    "parked_from",
)


class Unmergeable(Exception):
    """These texts cannot be merged task by task; the message says why."""


class Merged(NamedTuple):
    """The merged text, and what is left for a person: "T1 status", "T2 stands twice"."""

    data: bytes
    conflicts: tuple[str, ...] = ()


class Kind(Enum):
    """How a value is merged: by its parts, or (VALUE) as one."""

    QUEUE = auto()
    OBJECT = auto()
    TASKS = auto()
    TASK = auto()
    VALUE = auto()


def merge(base: bytes, ours: bytes, theirs: bytes, *, size: int = 7) -> Merged:
    """Our text with what theirs changed since the base; an empty base is none.

    ``size`` is that of conflict markers. Raises Unmergeable.
    """
    if theirs in (base, ours):
        return Merged(ours)
    if ours == base:
        return Merged(theirs)
    old = _read(base, "the common ancestor") if base.strip() else None
    own, other = _read(ours, OURS), _read(theirs, THEIRS)
    hand = Hand.of(own.text, size)
    queue = _Container(hand, Kind.QUEUE, old, own, other)
    text = own.text[: own.at] + queue.merged() + own.text[own.end :]
    sides = (OURS, THEIRS) if queue.conflicts else (OURS,)
    twice: dict[str, None] = {}
    for side, expected in zip(sides, queue.kept, strict=False):
        found = _checked(hand.chosen(text, side), expected)
        twice.update(dict.fromkeys(_twice(found["tasks"])))
    conflicts = [*queue.conflicts, *(f"{name} stands twice" for name in twice)]
    bom = jsontext.BOM if ours.decode().startswith(jsontext.BOM) else ""
    return Merged((bom + text).encode(), tuple(conflicts))


def _read(data: bytes, side: str) -> Part:
    try:
        jsontext.parse(data, side)
    except QueueUnreadable as error:
        raise Unmergeable(f"{error.problems[0].where}: {error.problems[0].what}") from None
    found = document(data.decode().removeprefix(jsontext.BOM))
    for name in _twice(found.value["tasks"]):
        raise Unmergeable(f"{side}: two tasks have the id {name}")
    if not _are_tasks(found.value["tasks"]):
        raise Unmergeable(f"{side}: a task has no id")
    return found


def _checked(text: str, expected: Any) -> Any:
    """What the text says, if that is what was to be said."""
    try:
        jsontext.parse(text.encode(), "the result")
        found = document(text).value
    except (QueueUnreadable, ValueError):
        found = None
    if found is None or canonical(found) != canonical(expected):
        raise Unmergeable("the merged text came out wrong")
    return found


def _are_tasks(values: Any) -> bool:
    """Whether it is a list of nothing but tasks, which can be told apart."""
    if not isinstance(values, list):
        return False
    names = [each.get("id") if isinstance(each, dict) else None for each in values]
    return all(isinstance(name, str) for name in names) and len({*names}) == len(names)


def _twice(values: list[Any]) -> list[str]:
    """The ids that more than one task has, at any depth."""
    seen: set[str] = set()
    found = []
    for entry in jsontext.flat(values)[0]:
        name = entry.task.get("id")
        if isinstance(name, str):
            if name in seen:
                found.append(name)
            seen.add(name)
    return found


def _parts(kind: Kind, whole: Part | None) -> dict[str, Part]:
    """A side's parts of a container; none where it has no such container."""
    if whole is None:
        return {}
    if kind is Kind.TASKS:
        return tasks(whole) if _are_tasks(whole.value) else {}
    return members(whole) if isinstance(whole.value, dict) else {}


def _kind(inside: Kind, name: str, ours: Part, theirs: Part) -> Kind:
    """How what both sides have there is merged. A task's own values are whole; a lease is one."""
    values = ours.value, theirs.value
    if inside is Kind.TASKS:
        return Kind.TASK
    if inside is Kind.TASK:
        lists = name == "subtasks" and all(_are_tasks(each) for each in values)
        return Kind.TASKS if lists else Kind.VALUE
    if inside is Kind.QUEUE and name == "tasks":
        return Kind.TASKS
    return Kind.OBJECT if all(isinstance(each, dict) for each in values) else Kind.VALUE


def _contested(
    base: Mapping[str, Part], ours: Mapping[str, Part], theirs: Mapping[str, Part]
) -> list[str]:
    """The keys of a task's STATE that differ, where both sides changed one of them.

    Where attempts of both sides were on the task (``token`` tells), any of them will do.
    """

    def differ(key: str, one: Mapping[str, Part], other: Mapping[str, Part]) -> bool:
        return not same(one.get(key), other.get(key))

    def both(keys: Iterable[str]) -> bool:
        return any(differ(key, base, ours) and differ(key, base, theirs) for key in keys)

    found = [key for key in STATE if differ(key, ours, theirs)]
    moved = all(any(differ(key, base, side) for key in STATE) for side in (ours, theirs))
    return found if both(found) or (moved and both(["token"])) else []


def _by_itself(name: str, ours: Part, theirs: Part) -> Part | None:
    """Of what Rolecall writes at each change, the later time and the larger token."""
    values: list[float | None] = [None, None]
    if name == "updated_at":
        values = [parse_time(each.value) for each in (ours, theirs)]
    elif name == "token":
        values = [each.value if type(each.value) is int else None for each in (ours, theirs)]
    if values[0] is None or values[1] is None:
        return None
    return theirs if values[1] > values[0] else ours


def order(
    base: Collection[str], ours: Collection[str], theirs: Collection[str], *, moved: bool
) -> list[str]:
    """All names: as ours has them, what it lacks behind what that follows in the base or theirs.

    ``moved``: the order counts, and is theirs if they alone changed that of what all have.
    """
    lead, other = ours, theirs
    if moved:
        common = {name: None for name in base if name in ours and name in theirs}
        here, there = ([name for name in side if name in common] for side in (ours, theirs))
        if here == list(common) != there:
            lead, other = theirs, ours
    names, known = list(lead), {*lead}
    for side in (base, other):
        before = None
        for name in side:
            if name not in known:
                at = 0 if before is None else names.index(before) + 1
                while at < len(names) and names[at] not in other and names[at] not in base:
                    at += 1  # what both sides put behind the same one: the lead's comes first
                names.insert(at, name)
                known.add(name)
            before = name
    return names


class _Container:
    """A merge of one object or list, and of all in it.

    ``kept`` is its value with our, and with their side of each conflict kept; ``conflicts`` name
    what could not be decided. Both are there after ``merged``.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # three sides of a thing, and where and what it is
        self,
        hand: Hand,
        kind: Kind,
        base: Part | None,
        ours: Part,
        theirs: Part,
        way: tuple[str, ...] = (),
    ) -> None:
        self.hand, self.kind, self.ours, self.theirs, self.way = hand, kind, ours, theirs, way
        self.old, self.own, self.other = (_parts(kind, each) for each in (base, ours, theirs))
        self.contested = _contested(self.old, self.own, self.other) if kind is Kind.TASK else []
        self.conflicts: list[str] = []
        self.values: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    @property
    def kept(self) -> list[Any]:
        """The value, if our side of each conflict is kept, and if theirs is."""
        if self.kind is Kind.TASKS:
            return [list(side.values()) for side in self.values]
        return list(self.values)

    def merged(self) -> str:
        """The text of it all."""
        if self.own:
            frame = Frame.of(self.ours, self.own)
        else:
            frame = Frame.of(self.theirs, self.other).fit(
                self.hand, self.theirs.indent, self.ours.indent
            )
        names = order(self.old, self.own, self.other, moved=self.kind is Kind.TASKS)
        choices = [choice for choice in map(self.choice, names) if choice.ours or choice.theirs]
        if self.kind is not Kind.TASKS or not any(choice.certain for choice in choices):
            choices = joined(choices)
        return lay_out(self.hand, frame, choices, self.ours.indent)

    def choice(self, name: str) -> Choice:
        """What stands there under this name."""
        base, ours, theirs = self.old.get(name), self.own.get(name), self.other.get(name)
        free = name not in self.contested
        if same(ours, theirs) or (free and same(base, theirs)):
            return self.settled(name, ours)
        if ours and theirs:
            inner = _kind(self.kind, name, ours, theirs)
            if inner is not Kind.VALUE:
                return self.inside(inner, name, base, ours, theirs)
        if free and same(base, ours):
            return self.settled(name, theirs)
        if ours and theirs:
            chosen = _by_itself(name, ours, theirs) if self.kind is Kind.TASK else None
            if chosen:
                return self.settled(name, chosen)
        return self.conflict(name, ours, theirs)

    def settled(self, name: str, part: Part | None) -> Choice:
        """The part of one side, or that there is none."""
        if part is None:
            return Choice(name, ())
        for side in self.values:
            side[name] = part.value
        ours = part is self.own.get(name)
        return Choice(name, (part.written if ours else self.taken(name, part),))

    def inside(self, kind: Kind, name: str, base: Part | None, ours: Part, theirs: Part) -> Choice:
        """What both sides have, merged in its turn."""
        # The list of tasks is no place that a person would name.
        way = self.way if kind is Kind.TASKS else (*self.way, name)
        inner = _Container(self.hand, kind, base, ours, theirs, way)
        text = ours.key + inner.merged()
        self.conflicts += inner.conflicts
        for side, value in zip(self.values, inner.kept, strict=True):
            side[name] = value
        return Choice(name, (text,))

    def conflict(self, name: str, ours: Part | None, theirs: Part | None) -> Choice:
        """Both sides, for a person to choose."""
        removed = "" if ours and theirs else f" (removed by {THEIRS if ours else OURS})"
        self.conflicts.append(" ".join((*self.way, name)) + removed)
        for side, part in zip(self.values, (ours, theirs), strict=True):
            if part:
                side[name] = part.value
        return Choice(
            name,
            (ours.written,) if ours else (),
            (self.taken(name, theirs),) if theirs else (),
        )

    def taken(self, name: str, theirs: Part) -> str:
        """The text of a part of theirs, to stand in ours."""
        ours = self.own.get(name)
        if ours:
            value = theirs.text[theirs.at : theirs.end]
            return ours.key + self.hand.fit(value, theirs.indent, ours.indent)
        first = next(iter(self.own.values()), None)
        before, after = (theirs, first) if first else (self.theirs, self.ours)
        return self.hand.fit(theirs.written, before.indent, after.indent)
