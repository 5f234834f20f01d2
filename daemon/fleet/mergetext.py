"""The text of a merge: where a side writes each value, and a container laid out with choices in it.

A container is an object or a list of tasks; its parts are members by key, or tasks by id.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from daemon.queue.jsontext import elements, skip, value
from daemon.queue.jsontext import members as places_of

OURS, THEIRS = "ours", "theirs"  # git 2.39 tells a driver no better names


class Part(NamedTuple):
    """A value and its place in the text of its side; a member's key stands before it."""

    text: str  # all of the side's
    start: int  # of the key, or of the value where there is none
    at: int  # of the value
    end: int
    value: Any

    @property
    def written(self) -> str:
        """Key and value, as the side has them."""
        return self.text[self.start : self.end]

    @property
    def key(self) -> str:
        """The key as the side has it, up to the value."""
        return self.text[self.start : self.at]

    @property
    def indent(self) -> str:
        """The white space that its line begins with."""
        line = self.text.rfind("\n", 0, self.start) + 1
        return self.text[line : skip(self.text, line)] if line <= self.start else ""


def same(one: Part | None, other: Part | None) -> bool:
    """Whether both are missing, or hold the same JSON value: 1, 1.0 and true are three of them."""
    if one is None or other is None:
        return one is other
    if one.text[one.at : one.end] == other.text[other.at : other.end]:
        return True
    return bool(one.value == other.value) and canonical(one.value) == canonical(other.value)


def canonical(anything: Any) -> str:
    """One text for one JSON value, whatever the order of its keys."""
    return json.dumps(anything, sort_keys=True)


def document(text: str) -> Part:
    """The one value that is the whole text."""
    start = skip(text, 0)
    found, end = value(text, start)
    return Part(text, start, start, end, found)


def members(whole: Part) -> dict[str, Part]:
    """An object's members, in their order."""
    text = whole.text
    return {
        each.key: Part(text, each.start, each.value, each.end, whole.value[each.key])
        for each in places_of(text, whole.at)[0]
    }


def tasks(whole: Part) -> dict[str, Part]:
    """A list's tasks by their ids, in their order."""
    values, spans, _ = elements(whole.text, whole.at)
    return {
        each["id"]: Part(whole.text, start, start, end, each)
        for each, (start, end) in zip(values, spans, strict=True)
    }


class Hand(NamedTuple):
    """How our side is written: what comes from theirs is fitted to it."""

    line_end: str
    escapes: bool  # every character beyond ASCII is escaped
    size: int = 7  # of git's conflict markers

    @classmethod
    def of(cls, text: str, size: int) -> Hand:
        """As this text is written."""
        escapes = text.isascii() and re.search(r"\\u(?!00[0-7])", text) is not None
        return cls("\r\n" if "\r\n" in text else "\n", escapes, size)

    def fit(self, text: str, before: str, after: str) -> str:
        """A text of the other side with our line ends, escapes, and indent in place of its own.

        A string of JSON holds no line end, so that every one here is layout.
        """
        first, *rest = text.replace("\r\n", "\n").split("\n")
        moved = [after + line.removeprefix(before) for line in rest]
        text = self.line_end.join([first, *moved])
        if self.escapes and not text.isascii():
            text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
        return text

    def marker(self, sign: str, label: str = "") -> str:
        """A line of git's."""
        return f"{sign * self.size} {label}".rstrip() + self.line_end

    def chosen(self, text: str, side: str) -> str:
        """The text with that side of each conflict kept, the other one and the markers deleted."""
        first, middle, last = (
            re.escape(self.marker(*each)) for each in (("<", OURS), ("=",), (">", THEIRS))
        )
        blocks = re.compile(f"^{first}(.*?)^{middle}(.*?)^{last}", re.MULTILINE | re.DOTALL)
        return blocks.sub(lambda found: found[1 if side == OURS else 2], text)


class Choice(NamedTuple):
    """What stands at one place of a container: parts that are settled, or those of either side."""

    name: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...] | None = None  # None: nothing is left to choose

    @property
    def certain(self) -> bool:
        """Whether a part stands here, whichever side is kept."""
        return self.theirs is None or bool(self.ours and self.theirs)


class Frame(NamedTuple):
    """What stands around the parts of a container and between them."""

    opening: str  # the bracket, and the way to the first part
    gaps: Mapping[str, str]  # the comma before a part, and what surrounds it
    closing: str
    indent: str  # of a part on a line of its own

    @classmethod
    def of(cls, whole: Part, parts: Mapping[str, Part]) -> Frame:
        """As the container is written there; it has parts."""
        text, found = whole.text, list(parts.values())
        gaps = {
            name: text[before.end : part.start]
            for before, (name, part) in zip(found, list(parts.items())[1:], strict=False)
        }
        opening, closing = text[whole.at : found[0].start], text[found[-1].end : whole.end]
        lines = [way.rpartition("\n")[2] for way in (opening, *gaps.values()) if "\n" in way]
        indent = lines[0].partition(",")[0] if lines else whole.indent
        return cls(opening, gaps, closing, indent)

    def fit(self, hand: Hand, before: str, after: str) -> Frame:
        """The frame of an empty container of ours, where this is that of theirs."""
        opening, closing, first = (
            hand.fit(each, before, after)
            for each in (self.opening, self.closing, "\n" + self.indent)
        )
        return Frame(opening, {}, closing, first.rpartition("\n")[2])

    @property
    def gap(self) -> str:
        """What usually stands between two parts."""
        if self.gaps:
            return Counter(self.gaps.values()).most_common(1)[0][0]
        return "," + (self.opening[1:] or " ")


def lay_out(hand: Hand, frame: Frame, choices: Sequence[Choice], outer: str) -> str:
    """The container's text. A conflict stands on lines of its own, markers at their beginning.

    Whichever side is kept, the commas are right: a choice before the last certain part brings the
    comma behind its own parts, one after it the comma before them. ``outer`` is the indent of the
    container's line.
    """
    if not choices:
        return frame.opening[0] + frame.closing[-1]
    certain = [number for number, choice in enumerate(choices) if choice.certain]
    last = certain[-1] if certain else 0  # uncertain ones alone have been joined to one
    pieces: list[str] = []
    usual, broken = frame.gap, False
    for number, choice in enumerate(choices):
        if choice.theirs is None:
            way = frame.indent if broken else frame.gaps.get(choice.name, usual)
            pieces += [way if number else frame.opening, *choice.ours]
            broken = False
            continue
        if not broken:
            comma = "," if number <= last else ""
            pieces.append((comma if number else frame.opening[0]) + hand.line_end)
        pieces.append(hand.marker("<", OURS))
        pieces += _lines(hand, frame.indent, choice.ours, number - last)
        pieces.append(hand.marker("="))
        pieces += _lines(hand, frame.indent, choice.theirs, number - last)
        pieces.append(hand.marker(">", THEIRS))
        broken = True
    if broken:
        _, line_end, indent = frame.closing[:-1].rpartition("\n")
        pieces.append((indent if line_end else outer) + frame.closing[-1])
    else:
        pieces.append(frame.closing)
    return "".join(pieces)


def _lines(hand: Hand, indent: str, parts: Sequence[str], behind: int) -> Iterator[str]:
    """The parts of one side of a conflict; ``behind`` is its distance from the last certain one."""
    for number, part in enumerate(parts, 1):
        before = ", " if behind > 0 else ""
        after = "," if behind < 0 or (behind == 0 and number < len(parts)) else ""
        yield indent + before + part + after + hand.line_end


def joined(choices: Sequence[Choice]) -> list[Choice]:
    """Conflicts that follow one another, as one."""
    found: list[Choice] = []
    for choice in choices:
        if found and choice.theirs is not None and found[-1].theirs is not None:
            before = found.pop()
            theirs = (*(before.theirs or ()), *choice.theirs)
            found.append(Choice(before.name, before.ours + choice.ours, theirs))
        else:
            found.append(choice)
    return found
