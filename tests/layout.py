"""What of a queue's text a write must leave as it was, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from tests.model import OWN

DECODER = json.JSONDecoder()
SPACE = re.compile(r"[ \t\r\n]*")


class Layout(NamedTuple):
    """The text before the first task, each task with what stands before it, and the rest."""

    head: str
    tasks: list[str]
    tail: str


def layout(text: str, written: Collection[object] = ()) -> Layout:
    """The text, less what we may write into the tasks with these ids."""
    (start, end) = next((v, e) for key, _, v, e in _members(text, _skip(text, 0)) if key == "tasks")
    tasks = list(_elements(text, start))
    first, last = (tasks[0][1], tasks[-1][2]) if tasks else (end, end)
    made = [text[i:v] * (n > 0) + _bare(text, v, e, written) for n, (i, v, e) in enumerate(tasks)]
    return Layout(text[:first], made, text[last:])


def kept(before: str, after: str, written: Collection[object]) -> bool:
    """Whether only values of ours in these tasks changed, and new tasks stand behind the others."""
    old, new = layout(before, written), layout(after, written)
    return old == new._replace(tasks=new.tasks[: len(old.tasks)])


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _elements(text: str, at: int) -> Iterator[tuple[int, int, int]]:
    """Of a list: where each element's own part of the text starts, its value, and its end."""
    start = at + 1
    while text[at := _skip(text, start)] != "]":
        value = _skip(text, at + (text[at] == ","))
        _, end = DECODER.raw_decode(text, value)
        yield start, value, end
        start = end


def _members(text: str, at: int) -> Iterator[tuple[str, int, int, int]]:
    """Of an object: each key, where its part of the text starts, its value, and its end."""
    start = at + 1
    while text[at := _skip(text, start)] != "}":
        key, at = DECODER.raw_decode(text, _skip(text, at + (text[at] == ",")))
        value = _skip(text, _skip(text, at) + 1)
        _, end = DECODER.raw_decode(text, value)
        yield key, start, value, end
        start = end


def _bare(text: str, value: int, end: int, written: Collection[object]) -> str:
    """A task without what we may have written into it, and into those that stand in it."""
    if text[value] != "{":
        return text[value:end]
    task, pieces, last = json.loads(text[value:end]), [text[value]], value + 1
    for key, start, inner, last in _members(text, value):  # the last one's end counts
        if key == "subtasks" and text[inner] == "[":
            pieces.append(text[start:inner])
            at = inner + 1
            for first, each, stop in _elements(text, inner):
                pieces += [text[first:each], _bare(text, each, stop, written)]
                at = stop
            pieces.append(text[at:last])
        elif not (key in OWN and task.get("id") in written):
            pieces.append(text[start:last])
    return "".join([*pieces, text[last:end]])
