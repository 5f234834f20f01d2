"""A queue's JSON comes out of the database as it went in: values, and the order of their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from daemon.errors import QueueUnreadable, RolecallError
from daemon.model import Outcome, Result
from daemon.queue import Queue
from daemon.queue.transfer import BOM, Incoming
from tests import model
from tests.model import OWN, TABLE
from tests.queues import PostgresBackend

DATA = Path(__file__).parent.parent / "data" / "queues"
#: Any text: NUL, half characters and what is not in the first plane.
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=8) | st.sampled_from(
    ["", "\0", "a\0b", "\ud800", "x\udfff", "\u2028", "💥", "done", "ready", "x" * 300, '"\\']
)
numbers = (
    st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -0.0, 1e308, 5e-324, 10**15, 10**15 - 1, 10**300, 2**53 + 1, 1.0, 1e16])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
WORDS = sorted({word for row in TABLE.values() for word in row} | {*model.ENDED, "blocked"})
ids = st.sampled_from(["A", "B", "C", "D", "E", "F"]) | texts
times = st.sampled_from(
    ["2020-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2999-01-01", "soon"]
)
leases = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "owner": texts,
        "token": numbers,
        "heartbeat_at": times | values,
        "ttl_seconds": numbers,
    },
)
keys = {
    "id": ids | values,
    "status": st.sampled_from(WORDS) | values,
    "type": st.sampled_from(["Story", "Test", "Build"]) | values,
    "priority": numbers | values,
    "dependencies": st.lists(ids, max_size=3) | values,
    "parent": ids | values,
    "parent_task": ids | values,
    "blocker": values,
    "not_before": times | values,
    "attempts": numbers | values,
    "token": numbers | values,
    "lease": leases | values,
}


def shuffled(made: tuple[dict[str, Any], dict[str, Any], Any]) -> dict[str, Any]:
    """Known keys and unknown ones of a task, in any order."""
    known, unknown, random = made
    pairs = list({**unknown, **known}.items())
    random.shuffle(pairs)
    return dict(pairs)


def tasks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Tasks that may hold tasks, and what is none."""
    known = st.fixed_dictionaries({}, optional={**keys, "subtasks": inner})
    unknown = st.dictionaries(texts, values, max_size=2)
    task = st.tuples(known, unknown, st.randoms(use_true_random=False)).map(shuffled)
    return st.lists(task | task | task | values, max_size=5)


documents = st.tuples(
    st.fixed_dictionaries(
        {"tasks": tasks(tasks(tasks(values) | values) | values)},
        optional={
            "wip_limits": st.dictionaries(st.sampled_from(sorted(TABLE)) | texts, values)
            | st.dictionaries(st.sampled_from(sorted(TABLE)), numbers)
            | values,
            "metadata": values,
        },
    ),
    st.dictionaries(texts.filter(lambda key: key != "tasks"), values, max_size=2),
    st.randoms(use_true_random=False),
).map(shuffled)

often = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def backend(on_postgres: Callable[..., PostgresBackend], tmp_path: Path) -> PostgresBackend:
    """An empty queue, whose roles take all there is."""
    return on_postgres(tmp_path, wip_limit=10**6, slots=10**6)


def exactly(value: Any) -> str:
    """The value with the order of its keys, and what kind each number is of."""
    return json.dumps(value)


def understood(data: bytes) -> Any:
    """What a file queue would take the text for; an example that it refuses is none."""
    try:
        Incoming.of(data, "a file")
    except QueueUnreadable:
        reject()
    return json.loads(data.removeprefix(BOM))


def work(queue: Queue) -> None:
    """Claim all that can be, and settle it one way or another."""
    many = 0
    for number, role in enumerate(TABLE):
        while claim := queue.claim(role, "me", ignore_wip=True):
            outcome = list(Outcome)[(number + many) % 3]
            queue.settle(claim.lease, Result(outcome, "\0é\ud800", changes={"branch": "b"}))
            many += 1
            assert many < 1000


def kept(before: Any, after: Any) -> None:
    """Whether each task's keys keep their places, and what is the owner's its value."""
    assert exactly([t for t in before["tasks"] if not isinstance(t, dict)]) == exactly(
        [t for t in after["tasks"] if not isinstance(t, dict)]
    )
    old, new = [[task for task, _ in model.walk(each["tasks"])] for each in (before, after)]
    assert len(old) == len(new)
    for one, other in zip(old, new, strict=True):
        assert list(other)[: len(one)] == list(one)
        theirs = {
            key: value for key, value in one.items() if key not in {*OWN, "subtasks", "branch"}
        }
        assert exactly(theirs) == exactly({key: other[key] for key in theirs})


@often
@given(document=documents, ascii_only=st.booleans(), bom=st.booleans())
@example(
    document={"tasks": [{}, {"id": "A", "subtasks": [{}, 1, {}, []]}, {}, "x"]},
    ascii_only=True,
    bom=True,
)
@example(
    document={"tasks": [[], {"id": "A", "subtasks": [{"id": "B"}, {"id": "B"}]}, {}]},
    ascii_only=False,
    bom=False,
)
@example(
    document={"tasks": [{"id": "A", "parent": "S", "parent_task": []}], "tasks ": 1},
    ascii_only=True,
    bom=False,
)
def test_what_goes_in_comes_out(
    backend: PostgresBackend,
    document: Any,
    *,
    ascii_only: bool,
    bom: bool,
) -> None:
    """Subtasks, what is no task, double ids, limits of any kind, half characters, a BOM.

    And when all that can be claimed has been settled, every key that was there keeps its place,
    every value that is not ours to write its value.
    """
    try:
        data = json.dumps(document, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        data = json.dumps(document).encode()
    data = BOM * bom + data
    wanted = understood(data)
    queue = backend.open()
    queue.load(data, "a file", replace=True)
    assert exactly(backend.document()) == exactly(wanted)
    work(queue)
    after = backend.document()
    kept(wanted, after)
    assert exactly({**after, "tasks": 0}) == exactly({**wanted, "tasks": 0})
    again = queue.export()
    queue.load(again, "its own", replace=True)
    assert queue.export() == again
    queue.close()


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda path: path.stem)
def test_queues_of_real_sprints_come_out_as_they_went_in(
    backend: PostgresBackend, path: Path
) -> None:
    """All of them but the one that is half-written, which is refused with its line."""
    data = path.read_bytes()
    try:
        Incoming.of(data, path.name)
    except QueueUnreadable:
        with pytest.raises(QueueUnreadable, match=f"{path.name}:"):
            backend.open().load(data, path.name)
        assert backend.document() == {"tasks": []}
        return
    queue = backend.open()
    queue.load(data, path.name)
    assert exactly(backend.document()) == exactly(json.loads(data))
    work(queue)
    kept(json.loads(data), backend.document())


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_without_words_is_refused(backend: PostgresBackend, number: str) -> None:
    """In a task or beside them: no other program could read what came out."""
    before = backend.written()
    for text in (f'{{"tasks": [{{"n": {number}}}]}}', f'{{"n": {number}, "tasks": []}}'):
        with pytest.raises(RolecallError, match="a number in it is larger"):
            backend.open().load(text.encode(), "a file", replace=True)
    assert backend.written() == before
