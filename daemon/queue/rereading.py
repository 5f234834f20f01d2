"""Understanding a queue's text again, where it differs little from the one before.

What stands in both texts at their beginning and at their end is compared, not parsed; of the tasks
in between only those that read differently are parsed. A claim changes one task of thousands.
"""

from __future__ import annotations

from typing import Any

from daemon.index import Entry, place_of
from daemon.queue import jsontext
from daemon.queue.jsontext import Document, Place


def parse(data: bytes, path: str, last: Document) -> Document:
    """As ``jsontext.parse``, quicker where the text is much the same as the last one."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return jsontext.parse(data, path)  # which says where
    if text.startswith(jsontext.BOM) == last.bom:
        text = text.removeprefix(jsontext.BOM)
        begin = common(last.text, text)
        document = reread(last, text, begin, common_end(last.text, text, begin))
        if document is not None:
            return document
    return jsontext.parse(data, path)


def common(one: str, other: str) -> int:
    """How many characters both begin with. Slices are compared, at the speed of memory."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def common_end(one: str, other: str, begin: int) -> int:
    """How many characters both end with, not counting the ``begin`` that both begin with."""
    low, high = 0, min(len(one), len(other)) - begin
    if one[len(one) - high :] == other[len(other) - high :]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        part = one[len(one) - middle : len(one) - low]
        if part == other[len(other) - middle : len(other) - low]:
            low = middle
        else:
            high = middle
    return low


def reread(old: Document, text: str, begin: int, end: int) -> Document | None:
    """The document that this text is, if it is the old one but for some elements of ``tasks``.

    Both texts begin with the same ``begin`` characters and end with the same ``end``. None where
    more than elements is different, or the text may be no queue.
    """
    shift, kept = len(text) - len(old.text), len(old.text) - end
    opening, closing = old.tasks_span
    if begin <= opening or kept >= closing:
        return None
    # An element stays if the character behind it stays, too: of a number more might follow.
    first, last = place_of(begin, old.ends), place_of(kept, old.starts)
    stop = (old.starts[last] if last < len(old.starts) else closing) + shift
    try:
        found = _between(old, text, first, last, stop)
    except (ValueError, RecursionError):
        return None
    if found is None:
        return None
    values, starts, ends = found
    entries, places = _entries(old, values, first, last)
    return old._replace(
        text=text,
        entries=entries,
        places=places,
        starts=[*old.starts[:first], *starts, *[at + shift for at in old.starts[last:]]],
        ends=[*old.ends[:first], *ends, *[at + shift for at in old.ends[last:]]],
        tasks_span=(opening, closing + shift),
    )


def _between(
    old: Document, text: str, first: int, last: int, stop: int
) -> tuple[list[Any], list[int], list[int]] | None:
    """The elements behind the old ones before ``first``, up to ``stop``: values, starts, ends.

    ``stop`` is where the old element ``last`` starts, or where the list ends; None if none does.
    """
    values: list[Any] = []
    starts: list[int] = []
    ends: list[int] = []
    if first:
        at, more = jsontext.separated(text, old.ends[first - 1], "]")
    else:
        at = jsontext.skip(text, old.tasks_span[0] + 1)
        more = text[at : at + 1] != "]"
    while more and at < stop:
        number = first + len(values)
        each, end = _same(old, number, text, at) if number < last else (None, -1)
        if end < 0:
            each, end = jsontext.value(text, at)
        values.append(each)
        starts.append(at)
        ends.append(end)
        at, more = jsontext.separated(text, end, "]")
    ended = last == len(old.starts)
    return (values, starts, ends) if at == stop and more is not ended else None


def _same(old: Document, number: int, text: str, at: int) -> tuple[Any, int]:
    """The old element of that number, if it stands there as it did, and its end; else -1."""
    start, end = old.starts[number], old.ends[number]
    entry = place_of((number,), old.places)
    if old.text[start] != "{" or text[at : at + end - start] != old.text[start:end]:
        return None, -1
    return old.entries[entry].task, at + end - start


def _entries(
    old: Document, values: list[Any], first: int, last: int
) -> tuple[list[Entry], list[Place]]:
    """The old entries, with those of these values in place of the elements' from first to last."""
    begin, end = place_of((first,), old.places), place_of((last,), old.places)
    entries, places = jsontext.flat(values)
    fresh = [Entry(begin + index, task, parent) for index, task, parent in entries]
    if len(fresh) == end - begin:  # who is unchanged stays the very same
        pairs = zip(old.entries[begin:end], fresh, strict=True)
        fresh = [was if was.task is now.task else now for was, now in pairs]
    ways = [(first + place[0], *place[1:]) for place in places]
    behind, ways_behind = old.entries[end:], old.places[end:]
    if more := len(fresh) - (end - begin):
        behind = [entry._replace(index=entry.index + more) for entry in behind]
    if more := len(values) - (last - first):
        ways_behind = [(place[0] + more, *place[1:]) for place in ways_behind]
    return [*old.entries[:begin], *fresh, *behind], [*old.places[:begin], *ways, *ways_behind]
