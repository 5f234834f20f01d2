"""Merges of a queue: what goes together by itself, what is left for a person, and how it stands."""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.fleet.mergetext import OURS, THEIRS, Hand
from daemon.fleet.merging import Merged, Unmergeable, _checked, merge, order
from daemon.queue import jsontext

DATA = Path(__file__).parent.parent / "data" / "queues"
REAL = sorted(path for path in DATA.glob("*.json") if path.stem != "sprint-011")
PICKS: tuple[Callable[[], int], ...] = (lambda: 1, lambda: 2)
BLOCK = re.compile(
    r"^<{7} ours\r?\n(.*?)^={7}\r?\n(.*?)^>{7} theirs\r?\n", re.MULTILINE | re.DOTALL
)


def kept(text: str, pick: Callable[[], int]) -> bytes:
    """A text after a person has kept one side of each conflict: 1 is ours, 2 is theirs."""
    return BLOCK.sub(lambda found: found[pick()], text).encode()


def of(base: str, ours: str, theirs: str) -> tuple[str, tuple[str, ...]]:
    """The merged text, and what is left."""
    merged = merge(base.encode(), ours.encode(), theirs.encode())
    return merged.data.decode(), merged.conflicts


def tasks(text: str) -> str:
    """A queue with these tasks, on lines as people lay them out."""
    return f'{{\n  "tasks": [\n{text}\n  ],\n  "metadata": {{"by": "x"}}\n}}\n'


A, B, C = (f'    {{"id": "{name}", "n": 1}}' for name in "ABC")
LONG = """    {
      "id": "T1",
      "title": "x",
      "status": "ready",
      "priority": 1,
      "agent": null,
      "lease": null
    }"""

#: base, ours, theirs, merged: nothing is left to a person.
CLEAN: dict[str, tuple[str, str, str, str]] = {
    "keys of one task": (
        tasks(LONG),
        tasks(LONG.replace('"x"', '"y"')),
        tasks(LONG.replace(": 1,", ": 2,")),
        tasks(LONG.replace('"x"', '"y"').replace(": 1,", ": 2,")),
    ),
    "both did the same": (
        tasks(A),
        tasks(A.replace("1", "2")),
        tasks(A.replace(": 1", ":  2")),
        tasks(A.replace("1", "2")),
    ),
    "only the layout changed": (
        tasks(f"{A},\n{B}"),
        tasks(f"{A.replace('1', '2')},\n{B}"),
        '{"metadata": {"by": "x"}, "tasks": [{"n": 1, "id": "A"}, {"id": "B", "n": 3}]}',
        tasks(f"{A.replace('1', '2')},\n{B.replace('1', '3')}"),
    ),
    "a key of theirs stands behind the one it follows": (
        tasks(LONG),
        tasks(LONG.replace('"x"', '"y"')),
        tasks(LONG.replace('"x",', '"x",\n      "note": "z",')),
        tasks(LONG.replace('"x",', '"y",\n      "note": "z",')),
    ),
    "a last key of theirs": (
        tasks(LONG),
        tasks(LONG.replace('"x"', '"y"')),
        tasks(LONG.replace('"lease": null', '"lease": null,\n      "note": [\n        1\n      ]')),
        tasks(
            LONG.replace('"x"', '"y"').replace(
                '"lease": null', '"lease": null,\n      "note": [\n        1\n      ]'
            )
        ),
    ),
    "a first, a middle and a last key go with their commas": (
        '{"tasks": [{"a": 1, "id": "A", "b": 1, "c": 1, "d": 1}]}',
        '{"tasks": [{"a": 1, "id": "A", "b": 1, "c": 2, "d": 1}]}',
        '{"tasks": [{"id": "A", "c": 1}]}',
        '{"tasks": [{"id": "A", "c": 2}]}',
    ),
    "an object loses all its keys": (
        '{"tasks": [], "m": {"a": {"x": 1}, "b": 1}}',
        '{"tasks": [], "m": {"a": {"x": 1}, "b": 2}}',
        '{"tasks": [], "m": {"a": {}, "b": 1}}',
        '{"tasks": [], "m": {"a": {}, "b": 2}}',
    ),
    "objects of the root go key by key, at any depth": (
        '{"tasks": [], "wip_limits": {"a": 1, "b": 1}, "m": {"x": {"y": 1, "z": [1]}}}',
        '{"tasks": [], "wip_limits": {"a": 2, "b": 1}, "m": {"x": {"y": 2, "z": [1]}}}',
        '{"tasks": [], "wip_limits": {"a": 1, "b": 3}, "m": {"x": {"y": 1, "z": [2]}, "w": 1}}',
        '{"tasks": [], "wip_limits": {"a": 2, "b": 3}, "m": {"x": {"y": 2, "z": [2]}, "w": 1}}',
    ),
    "new tasks of both": (
        tasks(f"{A},\n{B}"),
        tasks(f"{A},\n{B},\n{C}"),
        tasks(f"{A},\n{C.replace('C', 'D')},\n{B},\n{C.replace('C', 'E')}"),
        tasks(f"{A},\n{C.replace('C', 'D')},\n{B},\n{C},\n{C.replace('C', 'E')}"),
    ),
    "first tasks of both": (
        '{"tasks": []}',
        '{"tasks": [{"id": "A"}]}',
        '{"tasks": [{"id": "B"}]}',
        '{"tasks": [{"id": "A"}, {"id": "B"}]}',
    ),
    "tasks for an empty list are laid out as theirs": (
        '{\n  "tasks": [],\n  "m": 1\n}\n',
        '{\r\n\t"tasks": [ ],\r\n\t"m": 2\r\n}\r\n',
        '{\n  "tasks": [\n    {"id": "A"},\n    {\n      "id": "B"\n    }\n  ],\n  "m": 1\n}\n',
        (
            '{\r\n\t"tasks": [\r\n\t  {"id": "A"},\r\n\t  {\r\n\t    "id": "B"\r\n\t  }\r\n\t],'
            '\r\n\t"m": 2\r\n}\r\n'
        ),
    ),
    "a list that was empty stays as ours wrote it": (
        '{"tasks": [{"id": "A"}], "m": 1}',
        '{"tasks": [ ], "m": 1}',
        '{"tasks": [{"id": "A"}], "m": 2}',
        '{"tasks": [ ], "m": 2}',
    ),
    "removed by theirs": (
        tasks(f"{A},\n{B},\n{C}"),
        tasks(f"{A.replace('1', '2')},\n{B},\n{C}"),
        tasks(A),
        tasks(A.replace("1", "2")),
    ),
    "removed by either": (
        tasks(f"{A},\n{B},\n{C}"),
        tasks(f"{B},\n{C}"),
        tasks(f"{A},\n{C}"),
        tasks(C),
    ),
    "all removed": (
        '{"tasks": [{"id": "A"}, {"id": "B"}]}',
        '{"tasks": [{"id": "B"}]}',
        '{"tasks": [{"id": "A"}]}',
        '{"tasks": []}',
    ),
    "subtasks are tasks": (
        '{"tasks": [{"id": "S", "subtasks": [{"id": "A", "n": 1}, {"id": "B", "n": 1}]}]}',
        '{"tasks": [{"id": "S", "subtasks": [{"id": "A", "n": 2}, {"id": "B", "n": 1}]}]}',
        (
            '{"tasks": [{"id": "S", "subtasks": [{"id": "B", "n": 3}, {"id": "A", "n": 1},'
            ' {"id": "C"}]}]}'
        ),
        (
            '{"tasks": [{"id": "S", "subtasks": [{"id": "B", "n": 3}, {"id": "A", "n": 2},'
            ' {"id": "C"}]}]}'
        ),
    ),
    "only theirs moved tasks": (
        tasks(f"{A},\n{B},\n{C}"),
        tasks(f"{A},\n{B.replace('1', '2')},\n{C.replace('C', 'D')},\n{C}"),
        tasks(f"{C},\n{B},\n{A}"),
        tasks(f"{C},\n{B.replace('1', '2')},\n{C.replace('C', 'D')},\n{A}"),
    ),
    "both moved tasks": (
        tasks(f"{A},\n{B},\n{C}"),
        tasks(f"{B},\n{A},\n{C}"),
        tasks(f"{A},\n{C},\n{B.replace('1', '2')}"),
        tasks(f"{B.replace('1', '2')},\n{A},\n{C}"),
    ),
    "a hold goes as one": (
        tasks(LONG),
        tasks(LONG.replace('"x"', '"y"')),
        tasks(
            LONG.replace('"ready"', '"in_progress"')
            .replace('"agent": null', '"agent": "builder"')
            .replace('"lease": null', '"lease": {"token": 1},\n      "token": 1')
        ),
        tasks(
            LONG.replace('"x"', '"y"')
            .replace('"ready"', '"in_progress"')
            .replace('"agent": null', '"agent": "builder"')
            .replace('"lease": null', '"lease": {"token": 1},\n      "token": 1')
        ),
    ),
    "different keys of a state": (
        tasks(LONG),
        tasks(LONG.replace('"ready"', '"cancelled"')),
        tasks(LONG.replace('"agent": null', '"agent": "ann"')),
        tasks(LONG.replace('"ready"', '"cancelled"').replace('"agent": null', '"agent": "ann"')),
    ),
    "the later time and the larger token": (
        '{"tasks": [{"id": "A", "token": 1, "updated_at": "2025-10-03T10:00:00Z"}]}',
        '{"tasks": [{"id": "A", "token": 3, "updated_at": "2025-10-03T12:30:00+02:00"}]}',
        '{"tasks": [{"id": "A", "token": 2, "updated_at": "2025-10-03T11:00:00.000Z"}]}',
        '{"tasks": [{"id": "A", "token": 3, "updated_at": "2025-10-03T11:00:00.000Z"}]}',
    ),
    "both added the task": (
        '{"tasks": [{"id": "B"}]}',
        '{"tasks": [{"id": "B"}, {"id": "A", "title": "x", "p": 1}]}',
        '{"tasks": [{"id": "B"}, {"id": "A", "title": "x", "q": 2}]}',
        '{"tasks": [{"id": "B"}, {"id": "A", "title": "x", "p": 1, "q": 2}]}',
    ),
    "both added the queue": (
        "",
        '{"tasks": [{"id": "A"}]}',
        '{"tasks": [{"id": "B"}], "m": 1}',
        '{"tasks": [{"id": "A"}, {"id": "B"}], "m": 1}',
    ),
    "BOM, CRLF, tabs and escapes of ours": (
        '{"tasks": [\n  {\n    "id": "A",\n    "t": "\\u2192"\n  }\n]}\n',
        '\ufeff{"tasks": [\r\n\t{\r\n\t\t"id": "A",\r\n\t\t"t": "\\u2192!"\r\n\t}\r\n]}',
        '{"tasks": [\n  {\n    "id": "A",\n    "n": [\n      "é𝄞"\n    ],\n    "t": "→"\n  }\n]}\n',
        (
            '\ufeff{"tasks": [\r\n\t{\r\n\t\t"id": "A",\r\n\t\t"n": ['
            '\r\n\t\t  "\\u00e9\\ud834\\udd1e"\r\n\t\t],\r\n\t\t"t": "\\u2192!"\r\n\t}\r\n]}'
        ),
    ),
    "comma first": (
        '{"tasks": [{ "id": "A"\n , "b": 1\n }]}',
        '{"tasks": [{ "id": "A"\n , "b": 2\n }]}',
        '{"tasks": [{ "id": "A"\n , "b": 1\n , "c": 1\n }]}',
        '{"tasks": [{ "id": "A"\n , "b": 2\n , "c": 1\n }]}',
    ),
    "a value becomes an object": (
        '{"tasks": [], "m": 1, "n": 1}',
        '{"tasks": [], "m": {"a": 1}, "n": 1}',
        '{"tasks": [], "m": {"b": 1}, "n": 2}',
        '{"tasks": [], "m": {"a": 1, "b": 1}, "n": 2}',
    ),
    "no list of tasks is one value": (
        '{"tasks": [{"id": "A", "subtasks": ["x"], "n": 1}]}',
        '{"tasks": [{"id": "A", "subtasks": ["x", "x"], "n": 1}]}',
        '{"tasks": [{"id": "A", "subtasks": ["x"], "n": 2}]}',
        '{"tasks": [{"id": "A", "subtasks": ["x", "x"], "n": 2}]}',
    ),
}


@pytest.mark.parametrize("name", CLEAN)
def test_what_goes_together_is_merged_into_the_text_of_ours(name: str) -> None:
    """Only what theirs changed is put in, to the byte; nothing is left."""
    base, ours, theirs, merged = CLEAN[name]
    assert of(base, ours, theirs) == (merged, ())


#: base, ours, theirs, merged, what is left to a person.
LEFT: dict[str, tuple[str, str, str, str, tuple[str, ...]]] = {
    "a value": (
        tasks(LONG),
        tasks(LONG.replace('"x"', '"y"')),
        tasks(LONG.replace('"x"', '"z"').replace(": 1,", ": 2,")),
        tasks(
            LONG.replace(
                '      "title": "x",\n',
                '<<<<<<< ours\n      "title": "y",\n=======\n      "title": "z",\n>>>>>>> theirs\n',
            ).replace(": 1,", ": 2,")
        ),
        ("T1 title",),
    ),
    "1 is not true": (
        '{"tasks": [],\n"m": [0]}',
        '{"tasks": [],\n"m": [1]}',
        '{"tasks": [],\n"m": [true]}',
        '{"tasks": [],\n<<<<<<< ours\n"m": [1]\n=======\n"m": [true]\n>>>>>>> theirs\n}',
        ("m",),
    ),
    "inline, the last key removed": (
        '{"tasks": [{"id": "A", "n": 1}]}',
        '{"tasks": [{"id": "A"}]}',
        '{"tasks": [{"id": "A", "n": 2}]}',
        '{"tasks": [{"id": "A"\n<<<<<<< ours\n=======\n, "n": 2\n>>>>>>> theirs\n}]}',
        ("A n (removed by ours)",),
    ),
    "the only keys": (
        '{"tasks": [], "m": {"a": 1, "b": 1}}',
        '{"tasks": [], "m": {"a": 2}}',
        '{"tasks": [], "m": {"b": 2}}',
        '{"tasks": [], "m": {\n<<<<<<< ours\n"a": 2\n=======\n"b": 2\n>>>>>>> theirs\n}}',
        ("m a (removed by theirs)", "m b (removed by ours)"),
    ),
    "a first task removed": (
        tasks(f"{A},\n{B}"),
        tasks(f"{A.replace('1', '2')},\n{B}"),
        tasks(B),
        tasks(f"<<<<<<< ours\n{A.replace('1', '2')},\n=======\n>>>>>>> theirs\n{B}"),
        ("A (removed by theirs)",),
    ),
    "last tasks removed": (
        tasks(f"{A},\n{B},\n{C}"),
        tasks(f"{A},\n{B.replace('1', '2')}"),
        tasks(f"{A},\n{C.replace('1', '2')}"),
        tasks(
            f"{A}\n<<<<<<< ours\n    , {B.strip().replace('1', '2')}\n=======\n>>>>>>> theirs\n"
            f"<<<<<<< ours\n=======\n    , {C.strip().replace('1', '2')}\n>>>>>>> theirs"
        ),
        ("B (removed by theirs)", "C (removed by ours)"),
    ),
    "all tasks removed": (
        '{"tasks": [{"id": "A", "n": 1}, {"id": "B", "n": 1}]}',
        '{"tasks": [{"id": "B", "n": 2}]}',
        '{"tasks": [{"id": "A", "n": 2}]}',
        (
            '{"tasks": [\n<<<<<<< ours\n{"id": "B", "n": 2}\n=======\n{"id": "A", "n": 2}\n'
            ">>>>>>> theirs\n]}"
        ),
        ("A (removed by ours)", "B (removed by theirs)"),
    ),
    "a subtask of a subtask": (
        '{"tasks": [{"id": "S", "subtasks": [{"id": "T", "subtasks": [{"id": "U", "n": 1}]}]}]}',
        '{"tasks": [{"id": "S", "subtasks": [{"id": "T", "subtasks": [{"id": "U", "n": 2}]}]}]}',
        '{"tasks": [{"id": "S", "subtasks": [{"id": "T", "subtasks": [{"id": "U", "n": 3}]}]}]}',
        (
            '{"tasks": [{"id": "S", "subtasks": [{"id": "T", "subtasks": [{"id": "U",\n'
            '<<<<<<< ours\n"n": 2\n=======\n"n": 3\n>>>>>>> theirs\n}]}]}]}'
        ),
        ("S T U n",),
    ),
    "CRLF": (
        '{"tasks": [],\r\n  "m": 1\r\n}',
        '{"tasks": [],\r\n  "m": 2\r\n}',
        '{"tasks": [],\n"m": 3\n}',
        '{"tasks": [],\r\n<<<<<<< ours\r\n  "m": 2\r\n=======\r\n  "m": 3\r\n>>>>>>> theirs\r\n}',
        ("m",),
    ),
    "a time that is none": (
        '{"tasks": [{"id": "A", "updated_at": "2025-10-03T10:00:00Z", "n": 1}]}',
        '{"tasks": [{"id": "A", "updated_at": "2025-10-03T11:00:00Z", "n": 1}]}',
        '{"tasks": [{"id": "A", "updated_at": "now", "n": 1}]}',
        (
            '{"tasks": [{"id": "A",\n<<<<<<< ours\n"updated_at": "2025-10-03T11:00:00Z",\n=======\n'
            '"updated_at": "now",\n>>>>>>> theirs\n"n": 1}]}'
        ),
        ("A updated_at",),
    ),
    "a lease is one value, and claims of two are a person's": (
        '{"tasks": [{"id": "A", "status": "ready", "lease": null, "token": 1}]}',
        '{"tasks": [{"id": "A", "status": "in_progress", "lease": {"o": "us"}, "token": 2}]}',
        '{"tasks": [{"id": "A", "status": "in_progress", "lease": {"o": "it"}, "token": 2}]}',
        (
            '{"tasks": [{"id": "A", "status": "in_progress",\n<<<<<<< ours\n"lease": {"o": "us"},\n'
            '=======\n"lease": {"o": "it"},\n>>>>>>> theirs\n"token": 2}]}'
        ),
        ("A lease",),
    ),
    "the same id at two places": (
        '{"tasks": [{"id": "S", "subtasks": []}], "m": 1}',
        '{"tasks": [{"id": "S", "subtasks": [{"id": "A"}]}], "m": 1}',
        '{"tasks": [{"id": "S", "subtasks": []}, {"id": "A"}], "m": 1}',
        '{"tasks": [{"id": "S", "subtasks": [{"id": "A"}]}, {"id": "A"}], "m": 1}',
        ("A stands twice",),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_both_changed_stands_between_markers_and_is_named(name: str) -> None:
    """On lines of its own, with commas that are right whichever side is kept.

    Broken once by writing no comma before the parts of a last block: this failed.
    """
    base, ours, theirs, merged, left = LEFT[name]
    assert of(base, ours, theirs) == (merged, left)
    for pick in PICKS:
        jsontext.parse(kept(merged, pick), "kept")


def test_markers_are_as_long_as_git_wants_them() -> None:
    """Where conflict-marker-size says so, all three are."""
    texts = [json.dumps({"tasks": [], "m": number}).encode() for number in range(3)]
    lines = merge(*texts, size=9).data.decode().splitlines()
    assert [line for line in lines if line[0] in "<=>"] == [
        "<" * 9 + " ours",
        "=" * 9,
        ">" * 9 + " theirs",
    ]


def test_a_hold_is_never_made_of_two_sides() -> None:
    """Where both sides moved the task on, all that Rolecall writes with the status is left.

    Ours settled the attempt, theirs has claimed the task again: taken key by key the status would
    be ours (theirs kept it) and the lease a conflict. Broken once by doing that: this failed.
    """
    held = {"id": "A", "status": "in_progress", "agent": "builder", "lease": {"n": 1}, "token": 1}
    settled = {**held, "status": "awaiting_test", "agent": None, "lease": None}
    again = {**held, "lease": {"n": 2}, "token": 2, "attempts": 1, "last_error": "x"}
    texts = [json.dumps({"tasks": [each]}).encode() for each in (held, settled, again)]
    merged = merge(*texts)
    assert merged.conflicts == (
        "A status",
        "A agent",
        "A lease",
        "A attempts (removed by ours)",
        "A last_error (removed by ours)",
    )
    for side, expected in ((OURS, {**settled, "token": 2}), (THEIRS, again)):
        (task,) = json.loads(Hand("\n", escapes=False).chosen(merged.data.decode(), side))["tasks"]
        assert task == expected


UNREADABLE = {
    "conflict markers": '{"tasks": [\n<<<<<<< HEAD\n]}',
    "no object": "[]",
    "a task without an id": '{"tasks": [{"title": "x"}]}',
    "no task": '{"tasks": ["x"]}',
    "an id twice": '{"tasks": [{"id": "A"}, {"id": "A"}]}',
    "an id twice, deeper": '{"tasks": [{"id": "A"}, {"id": "B", "subtasks": [{"id": "A"}]}]}',
    "a key twice": '{"tasks": [], "m": 1, "m": 2}',
    "no text": "\x00",
    "too deep": '{"tasks": [], "m": ' + "[" * 100_000 + "]" * 100_000 + "}",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_queue_is_refused_whichever_side_it_is(name: str) -> None:
    """With the side and the reason; but an unchanged side lets the other one through as it is."""
    wrong = UNREADABLE[name].encode()
    one, other = b'{"tasks": []}', b'{"tasks": [{"id": "A"}]}'
    for texts, side in (
        ((wrong, one, other), "the common ancestor"),
        ((one, wrong, other), OURS),
        ((one, other, wrong), THEIRS),
    ):
        with pytest.raises(Unmergeable, match=f"^{side}"):
            merge(*texts)
    assert merge(one, one, wrong) == merge(one, wrong, one) == Merged(wrong)


@pytest.mark.parametrize("text", ['{"tasks": [], "m": true}', '{"tasks": []}', '{"tasks": [}', ""])
def test_a_text_that_does_not_say_what_was_merged_is_refused(text: str) -> None:
    """The last look before anything is written: a fault of ours costs a merge, never a value."""
    with pytest.raises(Unmergeable, match="came out wrong"):
        _checked(text, {"tasks": [], "m": 1})


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "expected"),
    [
        ("abc", "abc", "abc", "abc"),
        ("abc", "abc", "cab", "cab"),
        ("abc", "bac", "cab", "bac"),
        ("ab", "axb", "ayb", "axyb"),
        ("ab", "abx", "yabz", "yabxz"),
        ("ab", "bx", "axyb", "abxy"),
        ("", "xy", "yz", "xyz"),
        ("ab", "b", "a", "ab"),
        ("abc", "axbc", "cba", "cbax"),
    ],
)
def test_the_order_is_ours_unless_only_theirs_changed_it(
    base: str, ours: str, theirs: str, expected: str
) -> None:
    """What one side alone has stands behind what it follows there."""
    assert "".join(order(base, ours, theirs, moved=True)) == expected


NAMES = [f"T{number}" for number in range(6)]
STATE = (
    *("status", "agent", "lease", "attempts", "adaptations", "not_before", "last_error"),
    "parked_from",
)
KEYS = (*STATE, "title", "note", "priority", "subtasks")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from(["", "x", "→", "=======", '"},{', "2025-10-03T10:00:00Z"]),
    st.lists(st.integers(0, 1), max_size=2),
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 1), max_size=2),
)
SUBTASKS = st.lists(
    st.fixed_dictionaries({"id": st.sampled_from("abcd")}, optional={"n": VALUES, "note": VALUES}),
    unique_by=lambda task: str(task["id"]),
    max_size=4,
)
Values = dict[str, dict[str, Any]]  # of a list of tasks, by id
TASK: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda values, subtasks: values | ({} if subtasks is None else {"subtasks": subtasks}),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
    st.one_of(st.none(), SUBTASKS),
)
TASKS = st.dictionaries(st.sampled_from(NAMES), TASK, max_size=5)
ROOTS = st.dictionaries(st.sampled_from(["m", "w"]), VALUES, max_size=2)
LAYOUTS = st.builds(
    lambda indent, ascii_, end: (indent, ascii_, end),
    st.sampled_from([None, 0, 2, 4, "\t"]),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)


def written(values: Values, root: dict[str, Any], layout: tuple[Any, bool, str]) -> bytes:
    """A queue's text in that layout; ids of subtasks get that of their task before them."""
    indent, ascii_, end = layout
    values = copy.deepcopy(values)
    for name, task in values.items():
        children = task.get("subtasks")
        for child in children if isinstance(children, list) else ():
            if isinstance(child, dict):
                child["id"] = f"{name}.{child['id']}"
    document = {"tasks": [{"id": name, **values[name]} for name in values], **root}
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_) + "\n"
    return text.replace("\n", end).encode()


def read(text: bytes) -> tuple[Values, dict[str, Any]]:
    """What a queue's text says, as ``written`` takes it."""
    jsontext.parse(text, "q")
    root = json.loads(text)
    values = {task.pop("id"): task for task in root.pop("tasks")}
    return values, root


def strict(anything: Any) -> str:
    """A text that tells 1 from true, whatever the order of keys."""
    return json.dumps(anything, sort_keys=True)


@given(TASKS, st.data(), st.tuples(LAYOUTS, LAYOUTS, LAYOUTS))
@settings(max_examples=200, deadline=None)
def test_changes_of_different_keys_go_together(
    base: Values, data: st.DataObject, layouts: tuple[Any, ...]
) -> None:
    """Whatever the layouts: nothing is left, and both sides' changes are there, and no others.

    Each key of a task is changed by one side at most, a task's STATE as one, and each task is added
    or removed by one side at most. Broken once by dropping what theirs removed: this failed.
    """
    sides = copy.deepcopy(base), copy.deepcopy(base)
    expected = copy.deepcopy(base)
    for name in NAMES:
        change = data.draw(st.sampled_from(["keep", "keys", "keys", "remove", "add"]), name)
        who = data.draw(st.integers(0, 1))
        if change == "remove":
            for values in (sides[who], expected):
                values.pop(name, None)
        elif change == "add" and name not in base:
            new = data.draw(TASK)
            for values in (sides[who], expected):
                values[name] = copy.deepcopy(new)
        elif change == "keys" and name in base:
            for key in data.draw(st.sets(st.sampled_from(KEYS), max_size=4)):
                chooser = who if key in STATE else data.draw(st.integers(0, 1))
                some = SUBTASKS if key == "subtasks" else VALUES
                new = data.draw(st.one_of(st.just({}), st.fixed_dictionaries({key: some})))
                for values in (sides[chooser], expected):
                    values[name].pop(key, None)
                    values[name].update(copy.deepcopy(new))
    texts = [
        written(values, {}, layout) for values, layout in zip((base, *sides), layouts, strict=True)
    ]
    merged = merge(*texts)
    assert merged.conflicts == ()
    found, _ = read(merged.data)
    assert strict(found) == strict(read(written(expected, {}, layouts[0]))[0])
    assert [name for name in found if name in sides[0]] == [n for n in sides[0] if n in found]


@given(st.tuples(TASKS, TASKS, TASKS), st.tuples(ROOTS, ROOTS, ROOTS), st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_chosen_in_a_conflict_is_a_queue(
    sides: tuple[Values, ...], roots: tuple[dict[str, Any], ...], data: st.DataObject
) -> None:
    """Three queues that have little in common: each choice reads well, and no value is invented.

    Broken once by writing a comma behind each part of a block: this failed.
    """
    layouts = data.draw(st.tuples(LAYOUTS, LAYOUTS, LAYOUTS))
    texts = [written(*each) for each in zip(sides, roots, layouts, strict=True)]
    merged = merge(*texts)
    text = merged.data.decode()
    assert bool(BLOCK.search(text)) == bool(merged.conflicts)
    for pick in (*PICKS, lambda: data.draw(st.integers(1, 2))):
        found, root = read(kept(text, pick))
        for name, values in found.items():
            own = [side[name] for side in sides[1:] if name in side]
            for key, value in values.items():
                theirs = [strict(side[key]) for side in own if key in side]
                assert strict(value) in theirs or key == "subtasks"
            left = {each.split()[1] for each in merged.conflicts if each.startswith(f"{name} ")}
            if pick in PICKS and left & {*STATE}:
                states = [[strict(side.get(key)) for key in STATE] for side in own]
                assert [strict(values.get(key)) for key in STATE] in states
        assert root.keys() <= roots[1].keys() | roots[2].keys()


@given(st.tuples(TASKS, TASKS), st.tuples(LAYOUTS, LAYOUTS))
@settings(max_examples=50, deadline=None)
def test_a_side_that_changed_no_value_gives_way(
    sides: tuple[Values, ...], layouts: tuple[Any, ...]
) -> None:
    """However ours laid its text out anew, all that theirs changed gets into it, order too."""
    before, after = (written(values, {}, layouts[0]) for values in sides)
    merged = merge(before, written(sides[0], {}, layouts[1]), after)
    assert merged.conflicts == ()
    assert json.loads(merged.data) == json.loads(after)


@pytest.mark.parametrize("at", range(1, len(REAL) - 1))
def test_real_queues_merge_or_conflict_so_that_a_person_can_choose(at: int) -> None:
    """Each state of a sprint as the base of its neighbours, which had days between them.

    What is left is a queue whichever side is kept; what one side alone changed is never lost.
    """
    states = {-1: REAL[at + 1], 0: REAL[at], 1: REAL[at - 1]}  # the numbers count back
    texts = {step: path.read_bytes() for step, path in states.items()}
    for base, ours, theirs in itertools.permutations((-1, 0, 1)):
        merged = merge(texts[base], texts[ours], texts[theirs])
        values = [read(texts[step])[0] for step in (base, ours, theirs)]
        for pick in PICKS:
            found, _ = read(kept(merged.data.decode(), pick))
            for name in {*values[1], *values[2]}:
                old, own, other = (each.get(name) for each in values)
                if strict(own) == strict(old) or strict(other) == strict(old):
                    changed = other if strict(own) == strict(old) else own
                    assert strict(found.get(name)) == strict(changed)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_a_side_without_changes_gives_the_exact_bytes_of_the_other(path: Path) -> None:
    """Real queues, against themselves and against another."""
    base, other = path.read_bytes(), REAL[0].read_bytes()
    assert merge(base, base, other) == merge(base, other, base) == Merged(other)
    assert merge(other, base, base) == Merged(base)


def test_edits_of_two_people_in_a_real_queue_show_only_these() -> None:
    """Each edited one value of every other task: the merged text is what both had typed at once."""
    text = REAL[-2].read_text()
    rng = random.Random(1)  # noqa: S311  # the same edits each time
    lines = text.split("\n")
    titles = [number for number, line in enumerate(lines) if '"title"' in line]
    texts = [list(lines), list(lines), list(lines)]
    for number in titles:
        line = lines[number].replace('": "', f'": "{rng.random()} ')
        for side in (rng.randrange(2), 2):
            texts[side][number] = line
    ours, theirs, both = ("\n".join(each).encode() for each in texts)
    assert merge(text.encode(), ours, theirs) == Merged(both)


def test_what_two_attempts_came_to_is_not_mixed() -> None:
    """Ours ended in error, theirs in success: no key was changed by both but the token.

    Broken once by looking at single keys alone: the task moved on with an error and a wait.
    """
    task = {"id": "A", "status": "ready", "token": 1, "attempts": 0}
    failed = {**task, "token": 2, "attempts": 1, "last_error": "boom"}
    moved = {**task, "token": 2, "status": "awaiting_test"}
    texts = [json.dumps({"tasks": [each]}).encode() for each in (task, failed, moved)]
    merged = merge(*texts)
    assert {each.split()[1] for each in merged.conflicts} == {"status", "attempts", "last_error"}
    for side, expected in ((OURS, failed), (THEIRS, moved)):
        text = Hand("\n", escapes=False).chosen(merged.data.decode(), side)
        assert json.loads(text)["tasks"] == [expected]
