"""A text that is understood again says what it would say to one who never saw the last one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import QueueUnreadable
from daemon.queue import jsontext, rereading
from daemon.queue.jsontext import Document

ELEMENT: st.SearchStrategy[Any] = st.sampled_from(
    [
        {"id": "A", "status": "ready"},
        {"id": "B", "status": "done", "subtasks": [{"id": "B.1"}, 7, {"id": "B.2", "x": ["é"]}]},
        {"id": "C", "subtasks": []},
        {"title": '}, {"id": "D"}]'},
        {},
        1,
        12,
        "note",
        "→",
        None,
        [],
    ]
)
QUEUE = st.fixed_dictionaries(
    {"tasks": st.lists(ELEMENT, max_size=5)}, optional={"a": ELEMENT, "z": ELEMENT}
)


def understood(data: bytes, last: Document | None = None) -> Document | str:
    """The document, or what is wrong with it."""
    try:
        return rereading.parse(data, "q", last) if last else jsontext.parse(data, "q")
    except QueueUnreadable as error:
        return str(error)


@settings(deadline=None, max_examples=400)
@given(
    before=QUEUE,
    after=QUEUE,
    indents=st.tuples(*[st.sampled_from([None, 1])] * 2),
    boms=st.tuples(*[st.booleans()] * 2),
)
def test_any_text_after_any_other_is_read_as_if_alone(
    before: Any, after: Any, indents: tuple[Any, Any], boms: tuple[bool, bool]
) -> None:
    """Tasks changed, added, removed and moved, keys and layout changed: nothing is read wrongly.

    Broken once by keeping elements that end just where the common beginning does (a 1 that became
    a 12), and by not moving the places behind an element that is new: this failed.
    """
    old, new = (
        ("\ufeff" * bom + json.dumps(queue, indent=indent, ensure_ascii=False)).encode()
        for queue, indent, bom in zip((before, after), indents, boms, strict=True)
    )
    assert understood(new, jsontext.parse(old, "q")) == understood(new)


@settings(deadline=None, max_examples=400)
@given(
    queue=QUEUE, start=st.integers(0), length=st.integers(0, 3), put=st.text('1,"}] é{', max_size=2)
)
def test_any_damage_is_found(queue: Any, start: int, length: int, put: str) -> None:
    """A text that was whole and has been cut or overwritten is refused with the same words.

    Broken once by taking the end of the new elements for the end of the list without a look at
    what stands between: this failed.
    """
    whole = json.dumps(queue, ensure_ascii=False)
    start %= len(whole)
    data = (whole[:start] + put + whole[start + length :]).encode()
    assert understood(data, jsontext.parse(whole.encode(), "q")) == understood(data)


def test_what_did_not_change_is_not_made_again() -> None:
    """Of three tasks the middle one is new; the others, and what lies behind them, are the same."""
    tasks = [{"id": name, "status": "ready", "subtasks": [{"id": f"{name}.1"}]} for name in "ABC"]
    old = jsontext.parse(json.dumps({"tasks": tasks}).encode(), "q")
    tasks[1]["status"] = "in_progress"
    new = rereading.parse(json.dumps({"tasks": tasks}).encode(), "q", old)
    pairs = zip(old.entries, new.entries, strict=True)
    assert [was is now for was, now in pairs] == [True, True, False, False, True, True]


def test_of_two_changes_far_apart_what_lies_between_stays() -> None:
    """The first and the last of three tasks change: the second is compared, not parsed."""
    tasks = [{"id": name, "status": "ready"} for name in "ABC"]
    old = jsontext.parse(json.dumps({"tasks": tasks}).encode(), "q")
    tasks[0]["status"] = tasks[2]["status"] = "done"
    new = rereading.parse(json.dumps({"tasks": tasks}).encode(), "q", old)
    assert new.entries[1] is old.entries[1]
    assert [entry.task["status"] for entry in new.entries] == ["done", "ready", "done"]


@pytest.mark.parametrize(
    ("one", "other", "begin", "end"),
    [
        ("", "", 0, 0),
        ("abc", "abc", 3, 0),
        ("abc", "abxc", 2, 1),
        ("aaa", "aaaa", 3, 0),
        ("xbc", "ybc", 0, 2),
        ("abc", "xyz", 0, 0),
    ],
)
def test_common_ends_do_not_overlap(one: str, other: str, begin: int, end: int) -> None:
    """What both begin with is not counted again as what both end with."""
    assert rereading.common(one, other) == begin
    assert rereading.common_end(one, other, begin) == end
