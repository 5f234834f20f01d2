"""The text of a queue: what is refused, with its line, and that edits keep every other byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import QueueUnreadable
from daemon.queue import jsonedit, jsontext

REFUSED = {
    "empty": (b"", 1, "empty"),
    "white space": (b" \n\n", 1, "empty"),
    "no object": (b"\n[]", 2, "no JSON object"),
    "no tasks": (b"{}", 1, "tasks"),
    "tasks are no list": (b'{\n"tasks": {}}', 2, "no list"),
    "half written": (b'{\n"tasks": [\n{"id": "T1",\n', 4, ""),
    "cut in a string": (b'{\n"tasks": [\n{"id": "T', 3, ""),
    "trailing comma": (b'{"tasks": [\n{},\n]}', 3, ""),
    "more behind": (b'{"tasks": []}\n{}', 2, "behind"),
    "key twice": (b'{"tasks": [\n{"id": "A",\n "id": "B"}]}', 3, '"id" stands twice'),
    "escaped key twice": (b'{"tasks": [\n{"a": 1,\n "\\u0061": 2}]}', 3, "stands twice"),
    "tasks twice": (b'{"tasks": [],\n"tasks": []}', 2, "stands twice"),
    "top key twice": (b'{"a": 1, "tasks": [],\n"a": []}', 2, "stands twice"),
    "key twice, deep": (b'{"tasks": [], "m": [{\n"x": {"y": 1, "y": 1}}]}', 2, "stands twice"),
    "NaN": (b'{"tasks": [\n{"p": NaN}]}', 2, "NaN"),
    "-Infinity": (b'{"tasks": [],\n"p": -Infinity}', 2, "Infinity"),
    "not UTF-8": (b'{"tasks": [\n"\xff"]}', 2, "UTF-8"),
    "UTF-16": ('{"tasks": []}'.encode("utf-16"), 1, "UTF-8"),
    "too deep": (b'{"tasks": [\n' + b"[" * 100_000, 2, "too deeply"),
    "endless number": (b'{"tasks": [' + b"9" * 10_000 + b"]}", 1, ""),
    "conflict": (b'{\n"tasks": [\n<<<<<<< HEAD\n=======\n>>>>>>> x\n]}', 3, "conflict marker"),
    "half a conflict": (b'{\n"tasks": [\n>>>>>>> x\n]}', 3, "conflict marker"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_queue_is_refused_with_its_line(name: str) -> None:
    """Every kind of unreadable text gets one error that names file and line."""
    data, line, what = REFUSED[name]
    with pytest.raises(QueueUnreadable) as error:
        jsontext.parse(data, "q.json")
    assert error.value.problems[0].where == f"q.json:{line}"
    assert what in str(error.value)


def test_what_is_too_large_is_refused() -> None:
    """A text beyond the limit is not even looked at."""
    with pytest.raises(QueueUnreadable, match="larger"):
        jsontext.parse(b" " * (jsontext.LONGEST + 1), "q.json")


def test_subtasks_are_flat_depth_first_with_their_parents() -> None:
    """Tasks in tasks come behind the one they stand in; what is no object is passed over."""
    tree = [
        "note",
        {"id": "A", "subtasks": [{"id": "B", "subtasks": [{"id": "C"}]}, 7, {"id": "D"}]},
        None,
        {"id": "E", "subtasks": "none"},
    ]
    document = jsontext.parse(json.dumps({"tasks": tree}).encode(), "q")
    found = [(entry.index, entry.task["id"], entry.parent) for entry in document.entries]
    expected = [(0, "A", None), (1, "B", "A"), (2, "C", "B"), (3, "D", "A"), (4, "E", None)]
    assert found == expected


def edited(
    text: str, changes: dict[int, dict[str, Any]], new: tuple[dict[str, Any], ...] = ()
) -> str:
    """The text after an edit."""
    document = jsontext.parse(text.encode(), "q")
    return jsonedit.edit(document, changes, new).decode()


EDITS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "value": ('{"tasks": [{"id": "A", "s":  1 }]}', '{"tasks": [{"id": "A", "s":  2 }]}', {"s": 2}),
    "equal value": ('{"tasks":[{"s":1.50}]}', '{"tasks":[{"s":1.50}]}', {"s": 1.5}),
    "inline": ('{"tasks": [{"id": "A"}]}', '{"tasks": [{"id": "A", "s": 2}]}', {"s": 2}),
    "compact": (
        '{"tasks":[{"id":"A","b":1}]}',
        '{"tasks":[{"id":"A","b":1,"s":[1,2]}]}',
        {"s": [1, 2]},
    ),
    "lines": (
        '{"tasks": [\n  {\n\t"id": "A",\n\t"b": 1\n  }\n]}\n',
        '{"tasks": [\n  {\n\t"id": "A",\n\t"b": 1,\n\t"s": {"a": 1, "b": 2}\n  }\n]}\n',
        {"s": {"a": 1, "b": 2}},
    ),
    "one line": (
        '{"tasks": [{\n  "id": "A"\n}]}',
        '{"tasks": [{\n  "id": "A",\n  "s": null\n}]}',
        {"s": None},
    ),
    "crlf and bom": (
        '\ufeff{"tasks": [\r\n {\r\n  "id": "A",\r\n  "b": 1\r\n }\r\n]}\r\n',
        '\ufeff{"tasks": [\r\n {\r\n  "id": "A",\r\n  "b": 1,\r\n  "s": 1\r\n }\r\n]}\r\n',
        {"s": 1},
    ),
    "comma first": (
        '{"tasks": [{ "id": "A"\n , "b": 1\n }]}',
        '{"tasks": [{ "id": "A"\n , "b": 1\n , "s": 1\n }]}',
        {"s": 1},
    ),
    "blank lines": (
        '{"tasks": [{\n "id": "A",\n\n "b": 1\n}]}',
        '{"tasks": [{\n "id": "A",\n\n "b": 1,\n "s": 1\n}]}',
        {"s": 1},
    ),
    "own keys only": (
        '{"tasks": [{"m": {"s": 1}, "l": [{"s": 2}], "s": 3}]}',
        '{"tasks": [{"m": {"s": 1}, "l": [{"s": 2}], "s": 4}]}',
        {"s": 4},
    ),
    "brackets in strings": (
        '{"tasks": [{"t": "}],\\"{[", "s": 3}]}',
        '{"tasks": [{"t": "}],\\"{[", "s": 4}]}',
        {"s": 4},
    ),
    "raw non-ASCII": ('{"tasks": [{"t": "é"}]}', '{"tasks": [{"t": "é", "s": "→"}]}', {"s": "→"}),
    "escaped": (
        '{"x": "é", "tasks": [{"t": "\\u2192"}]}',
        '{"x": "é", "tasks": [{"t": "\\u2192", "s": "\\u2192"}]}',
        {"s": "→"},
    ),
    "half a character": (
        '{"tasks": [{"t": "é"}]}',
        '{"tasks": [{"t": "é", "s": "\\ud800"}]}',
        {"s": "\ud800"},
    ),
    "escaped key": ('{"tasks": [{"\\u0073": 1}]}', '{"tasks": [{"\\u0073": 2}]}', {"s": 2}),
    "true is not 1": ('{"tasks": [{"s": true}]}', '{"tasks": [{"s": 1}]}', {"s": 1}),
    "no members": ('{"tasks": [{ }]}', '{"tasks": [{"s": 1}]}', {"s": 1}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_writes_as_its_neighbourhood_does(name: str) -> None:
    """Only the value changes, and a new key comes last, in the layout of its object."""
    before, after, changes = EDITS[name]
    assert edited(before, {0: changes}) == after


def test_a_subtask_and_its_parent_are_edited_together() -> None:
    """Changes at several depths of one task, and of others, are put in at their places."""
    text = '{"tasks": [{"id": "A", "subtasks": [{"id": "B"}, 1, {"id": "C", "s": 1}], "s": 1}, {}]}'
    after = text.replace('"C", "s": 1', '"C", "s": 2').replace('"s": 1}, {}', '"s": 3}, {"s": 4}')
    assert edited(text, {0: {"s": 3}, 2: {"s": 2}, 3: {"s": 4}}) == after


APPENDED = {
    "inline": ('{"tasks": [{"id": "A"}]}', '{"tasks": [{"id": "A"}, {"id": "N", "d": ["A"]}]}'),
    "compact": (
        '{"tasks":[{"id":"A","b":1}]}',
        '{"tasks":[{"id":"A","b":1}, {"id":"N", "d":["A"]}]}',
    ),
    "empty": ('{"tasks": []}', '{"tasks": [{"id": "N", "d": ["A"]}]}'),
    "empty, lines": (
        '{\n "a": 1,\n "tasks": []\n}\n',
        '{\n "a": 1,\n "tasks": [\n  {\n   "id": "N",\n   "d": ["A"]\n  }\n ]\n}\n',
    ),
    "lines": (
        '{"tasks": [\n {\n   "id": "A"\n }\n]}',
        '{"tasks": [\n {\n   "id": "A"\n },\n {\n   "id": "N",\n   "d": ["A"]\n }\n]}',
    ),
    "a task a line": (
        '{"tasks": [\n  {"id": "A"},\n  {"id": "B"}\n]}',
        '{"tasks": [\n  {"id": "A"},\n  {"id": "B"},\n  {"id": "N", "d": ["A"]}\n]}',
    ),
    "crlf": (
        '{"tasks": [\r\n {\r\n  "id": "A"\r\n }\r\n]}',
        '{"tasks": [\r\n {\r\n  "id": "A"\r\n },\r\n {\r\n  "id": "N",\r\n  "d": ["A"]\r\n }\r\n]}',
    ),
}


@pytest.mark.parametrize("name", APPENDED)
def test_a_new_task_is_laid_out_as_its_neighbours(name: str) -> None:
    """A task is appended behind the last one, in its layout; lists stay on one line."""
    before, after = APPENDED[name]
    assert json.loads(edited(before, {}, ({"id": "N", "d": ["A"]},))) == json.loads(after)
    if name != "compact":
        assert edited(before, {}, ({"id": "N", "d": ["A"]},)) == after


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TASK = st.dictionaries(st.sampled_from(["id", "status", "a", "é", "lease"]), JSON, max_size=5)


@settings(deadline=None, max_examples=150)
@given(
    tasks=st.lists(TASK, min_size=1, max_size=4),
    changes=st.dictionaries(
        st.sampled_from(["status", "lease", "é", "new", "\ud800"]), JSON, max_size=3
    ),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    ascii_only=st.booleans(),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_edit_of_any_layout_says_what_it_should(  # noqa: PLR0913  # each is a dimension
    *,
    tasks: list[dict[str, Any]],
    changes: dict[str, Any],
    indent: int | str | None,
    ascii_only: bool,
    separators: tuple[str, str],
    line_end: str,
) -> None:
    """The edited text means the edited document, whatever it holds and however it is written."""
    kinds = {"indent": indent, "ensure_ascii": ascii_only, "separators": separators}
    text = json.dumps({"a": 1, "tasks": tasks, "z": []}, **kinds)  # type: ignore[arg-type]
    text = text.replace("\n", line_end)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    document = jsontext.parse(data, "q")
    last = len(tasks) - 1
    new = {"id": "N", "subtasks": [{"x": []}]}
    after = json.loads(jsonedit.edit(document, {last: changes}, [new]))
    wanted = [*tasks[:last], {**tasks[last], **changes}, new]
    assert after == {"a": 1, "tasks": wanted, "z": []}
    assert list(after["tasks"][last]) == list(wanted[last])
