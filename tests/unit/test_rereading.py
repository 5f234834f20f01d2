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
TASKS = st.lists(ELEMENT, max_size=5)
EDITS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), TASKS), max_size=2)


def understood(data: bytes, last: Document | None = None) -> Document | str:
    """The document, or what is wrong with it."""
    try:
        return rereading.parse(data, "q", last) if last else jsontext.parse(data, "q")
    except QueueUnreadable as error:
        return str(error)


def text(tasks: list[Any], top: Any, indent: int | None, *, bom: bool) -> bytes:
    document = json.dumps({"a": top, "tasks": tasks, "z": []}, indent=indent, ensure_ascii=False)
    return ("\ufeff" * bom + document).encode()


@settings(deadline=None, max_examples=400)
@given(
    tasks=TASKS,
    edits=EDITS,
    tops=st.tuples(ELEMENT, ELEMENT) | st.just((1, 1)),
    indent=st.sampled_from([None, 1]),
    boms=st.sampled_from([(False, False), (True, True), (False, True)]),
)
def test_any_text_after_any_other_is_read_as_if_alone(
    tasks: list[Any],
    edits: list[tuple[int, int, list[Any]]],
    tops: tuple[Any, Any],
    indent: int | None,
    boms: tuple[bool, bool],
) -> None:
    """Tasks changed, added and removed, in one place or in two, other keys changed or not.

    Broken once by not moving the places behind a task that is new: this failed.
    """
    old = text(tasks, tops[0], indent, bom=boms[0])
    after = list(tasks)
    for at, gone, come in edits:
        after[at : at + gone] = come
    new = text(after, tops[1], indent, bom=boms[1])
    assert understood(new, jsontext.parse(old, "q")) == understood(new)


@pytest.mark.parametrize("put", ["", "1", ",", '"', "}", "]", " ", "é", "{", "[", "], "])
def test_any_damage_is_found(put: str) -> None:
    """A text that was whole, cut or overwritten at any place: it is refused with the same words.

    Broken once by not looking whether the new tasks end where the old ones go on: this failed.
    """
    whole = '{"a": [1], "tasks": [{"id": "A", "x": [{}]}, 1, {"id": "→"}, {}], "z": {"y": 2}}'
    document = jsontext.parse(whole.encode(), "q")
    for start in range(len(whole) + 1):
        for end in range(start, start + 3):
            data = (whole[:start] + put + whole[end:]).encode()
            assert understood(data, document) == understood(data), data


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
