"""The text of a JSON queue: what it says, and where in the text it says it.

Reading uses json's C scanner, one task at a time, so that each task's place in the text is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from json.decoder import WHITESPACE, JSONDecodeError, JSONDecoder, scanstring  # type: ignore[attr-defined]
from typing import Any, NamedTuple, NoReturn

from daemon.errors import QueueUnreadable
from daemon.index import Entry

LONGEST = 64 * 1024 * 1024  # bytes; a queue of people and agents is some hundred kilobytes
BOM = "\ufeff"
HINT = "mend the file; nothing of it was changed"
MARKER = re.compile(r"^(<{7}|>{7}|={7}|\|{7})(?:[ \r\n]|$)", re.MULTILINE)
BEHIND = re.compile(r"[ \t\n\r]*([],}])[ \t\n\r]*")  # an element
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][{},:]|-?(?:NaN|Infinity)', re.DOTALL)


class _Refused(ValueError):
    """Text that json takes and we don't; where it stands is found out afterwards."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused
    return found


def _no_constant(_name: str) -> NoReturn:
    raise _Refused


_scan: Callable[[str, int], tuple[Any, int]] = JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant
).scan_once  # type: ignore[attr-defined]


class Member(NamedTuple):
    """One key and value of an object, by their places in the text."""

    key: str
    start: int  # of the key
    key_end: int
    value: int  # where the value starts
    end: int


Span = tuple[int, int]  # from the first character to the one behind the last
Place = tuple[int, ...]


class Document(NamedTuple):
    """A queue's text and what it says. A value: nobody changes anything in it.

    ``entries`` are all tasks, depth first; ``places`` their ways through the text: the index in
    ``tasks``, then one index per level of ``subtasks``. ``starts`` and ``ends`` are those of the
    elements of ``tasks``: numbers, for a list of thousands of pairs wakes Python's collector.
    """

    text: str
    bom: bool
    root: dict[str, Any]  # without ``tasks``
    entries: list[Entry]
    places: list[Place]
    starts: list[int]
    ends: list[int]
    tasks_key: int
    tasks_span: Span

    def encode(self) -> bytes:
        """The file's bytes."""
        return (BOM + self.text if self.bom else self.text).encode()

    def last_two(self) -> list[Span]:
        """The places of the last two elements of ``tasks``, or of as many as there are."""
        return list(zip(self.starts[-2:], self.ends[-2:], strict=True))


def skip(text: str, at: int) -> int:
    """The next place that holds no white space."""
    return int(WHITESPACE.match(text, at).end())


def value(text: str, at: int) -> tuple[Any, int]:
    """The value that starts there, and where it ends."""
    try:
        return _scan(text, at)
    except StopIteration as stop:
        raise JSONDecodeError("a value is missing", text, stop.value) from None


def separated(text: str, at: int, closing: str) -> tuple[int, bool]:
    """Behind an element: where the next one starts, and whether there is one."""
    found = BEHIND.match(text, at)
    if found is not None and found[1] == ",":
        return found.end(), True
    if found is not None and found[1] == closing:
        return found.end(1), False
    raise JSONDecodeError(f'"," or "{closing}" is missing', text, skip(text, at))


def _keys(text: str, at: int) -> Generator[tuple[str, int, int, int], int, None]:
    """The object's keys: key, start, end, start of the value, whose end is to be sent back.

    Last comes the object's own end, as a start, with -1 in place of a value.
    """
    at = skip(text, at + 1)
    more = text[at : at + 1] != "}"
    end = at + 1
    while more:
        if text[at : at + 1] != '"':
            raise JSONDecodeError("a key in double quotes is missing", text, at)
        key, key_end = scanstring(text, at + 1, True)  # noqa: FBT003  # json's own signature
        colon = skip(text, key_end)
        if text[colon : colon + 1] != ":":
            raise JSONDecodeError('":" is missing', text, colon)
        value_end = yield key, at, key_end, skip(text, colon + 1)
        end, more = separated(text, value_end, "}")
        at = end
    yield "", end, end, -1


def members(text: str, at: int) -> tuple[list[Member], int]:
    """The members of the object that starts there, and where it ends."""
    found: list[Member] = []
    keys = _keys(text, at)
    key, start, key_end, at = next(keys)
    while at >= 0:
        end = value(text, at)[1]
        found.append(Member(key, start, key_end, at, end))
        key, start, key_end, at = keys.send(end)
    return found, start


def elements(text: str, at: int) -> tuple[list[Any], list[Span], int]:
    """The elements of the array that starts there, their places, and where the array ends."""
    values: list[Any] = []
    spans: list[Span] = []
    at = skip(text, at + 1)
    if text[at : at + 1] == "]":
        return values, spans, at + 1
    more = True
    while more:
        each, end = value(text, at)
        values.append(each)
        spans.append((at, end))
        at, more = separated(text, end, "]")
    return values, spans, at


def too_large(path: str) -> QueueUnreadable:
    """A queue that is not even read."""
    return QueueUnreadable(
        f"the queue is larger than {LONGEST // 2**20} MiB", where=path, hint=HINT
    )


def parse(data: bytes, path: str) -> Document:
    """Understand a queue. Raises QueueUnreadable, which names the line, for what is none."""
    if len(data) > LONGEST:
        raise too_large(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise QueueUnreadable("not UTF-8", where=f"{path}:{line}", hint=HINT) from None
    bom = text.startswith(BOM)
    text = text.removeprefix(BOM)
    try:
        return _parse(text, bom=bom)
    except RecursionError:
        what, at = "nested too deeply", _deepest(text)
    except _Refused:
        what, at = _refused(text)
    except JSONDecodeError as error:
        what, at = error.msg, error.pos
    except ValueError as error:  # an integer of thousands of digits
        what, at = str(error).partition(";")[0], 0
    marker = next((m for m in MARKER.finditer(text) if m[1][0] == "<"), MARKER.search(text))
    if marker:
        what, at = f"a git conflict marker ({marker[1]})", marker.start()
    line = text.count("\n", 0, at) + 1
    raise QueueUnreadable(f"not a queue: {what}", where=f"{path}:{line}", hint=HINT)


def _parse(text: str, *, bom: bool) -> Document:
    start = skip(text, 0)
    if start == len(text):
        raise JSONDecodeError("the file is empty", text, 0)
    if text[start] != "{":
        raise JSONDecodeError("it is no JSON object", text, start)
    root: dict[str, Any] = {}
    values: list[Any] | None = None
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    tasks_key, tasks_span = 0, (0, 0)
    keys = _keys(text, start)
    key, key_start, _, at = next(keys)
    while at >= 0:
        if key in root or (key == "tasks" and values is not None):
            raise JSONDecodeError(f"the key {json.dumps(key)} stands twice", text, key_start)
        if key == "tasks":
            if text[at : at + 1] != "[":
                raise JSONDecodeError('"tasks" is no list', text, at)
            values, spans, end = elements(text, at)
            starts, ends = zip(*spans, strict=True) if spans else ((), ())
            tasks_key, tasks_span = key_start, (at, end)
        else:
            root[key], end = value(text, at)
        key, key_start, _, at = keys.send(end)
    if values is None:
        raise JSONDecodeError('it has no "tasks"', text, start)
    end = skip(text, key_start)
    if end != len(text):
        raise JSONDecodeError("more text behind its end", text, end)
    entries, places = flat(values)
    return Document(
        text, bom, root, entries, places, list(starts), list(ends), tasks_key, tasks_span
    )


def flat(values: list[Any]) -> tuple[list[Entry], list[Place]]:
    """Tasks and their subtasks, depth first, with each one's way through the text."""
    entries: list[Entry] = []
    places: list[Place] = []
    for number, element in enumerate(values):
        if isinstance(element, dict) and "subtasks" not in element:
            entries.append(Entry(len(entries), element, None))
            places.append((number,))
            continue
        waiting: list[tuple[Any, str | None, Place]] = [(element, None, (number,))]
        while waiting:
            task, parent, place = waiting.pop()
            if not isinstance(task, dict):
                continue
            entries.append(Entry(len(entries), task, parent))
            places.append(place)
            children = task.get("subtasks")
            if isinstance(children, list):
                own = task.get("id")
                name = own if isinstance(own, str) else None
                waiting += [(each, name, (*place, i)) for i, each in enumerate(children)][::-1]
    return entries, places


def _deepest(text: str) -> int:
    depth, most, place = 0, 0, 0
    for token in TOKEN.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth > most:
            most, place = depth, token.start()
    return place


def _refused(text: str) -> tuple[str, int]:
    """What the hooks refused, and where: a key that stands twice, or NaN or Infinity."""
    seen: list[set[str] | None] = []
    last = None
    for token in TOKEN.finditer(text):
        word = token[0]
        if word in "[{":
            seen.append(set() if word == "{" else None)
        elif word in "]}":
            seen.pop()
        elif word == ":" and last and seen[-1] is not None:
            key = str(json.loads(last[0], strict=False))
            if key in seen[-1]:
                return f"the key {json.dumps(key)} stands twice", last.start()
            seen[-1].add(key)
        elif word[-1] in "Ny":
            return f"{word} is no JSON", token.start()
        last = token
    return "no JSON", 0
