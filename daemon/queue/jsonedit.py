"""Changes of single values in the text of a JSON queue, every other byte kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from daemon.errors import RolecallError
from daemon.lifecycle import Changes
from daemon.queue import rereading
from daemon.queue.jsontext import Document, elements, members, parse, value


class Style(NamedTuple):
    """How a neighbourhood is written: what stands behind a key, between members, and escapes."""

    colon: str = ": "
    comma: str = ", "
    ascii: bool = False

    def write(self, new: object) -> str:
        """The value on one line."""
        text = _encoder(self).encode(new)
        if not self.ascii and any("\ud800" <= char <= "\udfff" for char in text):
            return self._replace(ascii=True).write(new)  # half a character has no bytes
        return text


@lru_cache(maxsize=8)  # a queue is mostly of one style
def _encoder(style: Style) -> json.JSONEncoder:
    separators = (style.comma if "\n" not in style.comma else ", ", style.colon)
    return json.JSONEncoder(ensure_ascii=style.ascii, separators=separators, allow_nan=False)


def _escapes(part: str, whole: str) -> bool:
    """Whether non-ASCII characters are escaped here: as the neighbours do, else as the file."""
    if not part.isascii():
        return False
    return whole.isascii() or re.search(r"\\u(?!00[0-7])", part) is not None


def _separator(text: str, opening: int, spans: Sequence[tuple[int, int]]) -> str:
    """What stands between two elements here: a comma, and the way to the next one."""
    if len(spans) > 1:
        found = text[spans[-2][1] : spans[-1][0]]
    else:
        found = "," + text[opening + 1 : spans[-1][0]]
        if found == ",":
            found = ", "
    if "\n" in found and found.lstrip().startswith(","):
        # Of several line ends one is enough.
        before, comma, after = found.partition(",")
        if "\n" in after:
            end = "\r\n" if "\r\n" in after else "\n"
            found = before.rstrip() + comma + end + after.rpartition("\n")[2]
    return found


def _splices(text: str, changes: Changes, *, escape: bool) -> list[tuple[int, int, str]]:
    """What to put where, so that the object that is this text has these values."""
    found, end = members(text, 0)
    if not found:
        return [(1, end - 1, Style(ascii=escape).write(changes)[1:-1])]
    last = found[-1]
    comma = _separator(text, 0, [(member.start, member.end) for member in found])
    style = Style(text[last.key_end : last.value], "," if comma == "," else ", ", escape)
    known = {member.key: member for member in found}
    splices = []
    for key, new in changes.items():
        member = known.get(key)
        if member is None:
            text_of_it = comma + style.write(key) + style.colon + style.write(new)
            splices.append((last.end, last.end, text_of_it))
        elif _differs(value(text, member.value)[0], new):
            splices.append((member.value, member.end, style.write(new)))
    return splices


def _differs(old: object, new: object) -> bool:
    return type(old) is not type(new) or old != new


def edit(
    document: Document,
    changes: Mapping[int, Changes],
    new_tasks: Sequence[dict[str, Any]] = (),
) -> bytes:
    """The document's bytes with the changes of these entries (by index) and the new tasks."""
    return edited(document, changes, new_tasks).encode()


def edited(
    document: Document,
    changes: Mapping[int, Changes],
    new_tasks: Sequence[dict[str, Any]] = (),
) -> Document:
    """The document with the changes of these entries (by index) and the new tasks."""
    text = document.text
    splices: list[tuple[int, int, str]] = []
    by_element: dict[int, dict[tuple[int, ...], Changes]] = {}
    for index, values in changes.items():
        place = document.places[index]
        by_element.setdefault(place[0], {})[place[1:]] = values
    for number, inside in by_element.items():
        splices.append(_changed(text, (document.starts[number], document.ends[number]), inside))
    if new_tasks:
        splices.append(_appended(document, new_tasks))
    if not splices:
        return document
    splices.sort()
    new = _spliced(text, splices)
    begin, end = splices[0][0], len(text) - splices[-1][1]
    again = rereading.reread(document, new, begin, end)
    return again or parse(document._replace(text=new).encode(), "")


def _spliced(text: str, splices: list[tuple[int, int, str]]) -> str:
    parts, at = [], 0
    for start, end, new in sorted(splices, key=lambda splice: splice[:2]):
        parts += [text[at:start], new]
        at = end
    return "".join((*parts, text[at:]))


def _changed(
    text: str, span: tuple[int, int], inside: dict[tuple[int, ...], Changes]
) -> tuple[int, int, str]:
    """One element of ``tasks`` with changes of it and of its subtasks, checked."""
    part = text[span[0] : span[1]]
    wanted = value(part, 0)[0]
    splices: list[tuple[int, int, str]] = []
    for way, values in inside.items():
        at, task = 0, wanted
        for index in way:
            own, _ = members(part[at:], 0)
            subtasks = next(member for member in own if member.key == "subtasks")
            at = elements(part, at + subtasks.value)[1][index][0]
            task = task["subtasks"][index]
        own_text = part[at : value(part, at)[1]] if way else part
        found = _splices(own_text, values, escape=_escapes(own_text, text))
        splices += [(at + start, at + end, new) for start, end, new in found]
        task.update(values)
    new = _spliced(part, splices)
    if value(new, 0) != (wanted, len(new)):
        raise RolecallError("a change of the queue's text came out wrong: nothing was written")
    return (*span, new)


class Layout(NamedTuple):
    """How tasks are laid out: "" as ``end`` is all on one line."""

    end: str
    unit: str
    style: Style

    def write(self, task: dict[str, Any], indent: str) -> str:
        """A task with one member a line, its subtasks likewise, other values inline."""
        if not self.end or not task or not isinstance(task, dict):
            return self.style.write(task)
        inner = self.end + indent + self.unit
        lines = []
        for key, own in task.items():
            text = self.style.write(own)
            if key == "subtasks" and isinstance(own, list) and own:
                deeper = indent + self.unit * 2
                parts = [self.end + deeper + self.write(each, deeper) for each in own]
                text = "[" + ",".join(parts) + inner + "]"
            lines.append(inner + self.style.write(key) + self.style.colon + text)
        return "{" + ",".join(lines) + self.end + indent + "}"


def _indent(text: str, at: int) -> str | None:
    """The white space that the line of this place begins with; None if more stands before it."""
    before = text[text.rfind("\n", 0, at) + 1 : at]
    return None if before.strip() else before


def _appended(document: Document, tasks: Sequence[dict[str, Any]]) -> tuple[int, int, str]:
    """New elements of ``tasks``, behind its last one and as that is written."""
    text, (opening, closing) = document.text, document.tasks_span
    escape = _escapes("", text)
    spans = document.last_two()
    if not spans:
        outer = _indent(text, document.tasks_key)
        if not outer or "\n" not in text[: document.tasks_key]:
            inline = Layout("", "", Style(ascii=escape))
            return opening + 1, closing - 1, ", ".join(inline.write(each, "") for each in tasks)
        layout = Layout(_line_end(text), outer, Style(ascii=escape))
        lines = ",".join(layout.end + outer * 2 + layout.write(each, outer * 2) for each in tasks)
        return opening + 1, closing - 1, lines + layout.end + outer
    last_start, last_end = spans[-1]
    own = text[last_start:last_end]
    comma = _separator(text, opening, spans)
    found = members(own, 0)[0] if own.startswith("{") else []
    colon = own[found[-1].key_end : found[-1].value] if found else ": "
    indent = _indent(text, last_start) or ""
    inner = _indent(own, found[-1].start) if found and "\n" in own[: found[-1].start] else None
    style = Style(colon, "," if comma == "," else ", ", escape)
    if inner is None:
        layout = Layout("", "", style)
    else:
        unit = inner[len(indent) :] if inner.startswith(indent) else "  "
        layout = Layout(_line_end(text), unit, style)
    return last_end, last_end, "".join(comma + layout.write(each, indent) for each in tasks)


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
