"""What is asked of a few tasks of a database comes to the same as if all of them had been read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from daemon.index import Tasks
from daemon.queue import intake
from tests.model import ENDED, TABLE
from tests.queues import PostgresBackend

EXAMPLES = os.environ.get("ROLECALL_EXAMPLES", "")
OLD, NEW = [f"T{number}" for number in range(8)], [f"N{number}" for number in range(4)]
#: An id may be of a task in the queue, of a new one, of none, or be none that can be used.
old = st.sampled_from([*OLD, *OLD, *OLD, "../x", "", 7])
new = st.sampled_from([*NEW, *NEW, *NEW, *NEW, "T1", "../x"])
either = st.sampled_from([*OLD, *NEW, *NEW, "gone", "../x"])
statuses = st.sampled_from(
    [row.claims for row in TABLE.values()]
    + [*ENDED, "blocked", "in_progress", "planning", "odd"]
    + ["planning_complete"] * 3
)
keys: dict[str, st.SearchStrategy[Any]] = {
    "dependencies": st.lists(either, max_size=3) | either | st.just([7, ["T1"]]),
    "parent": either | st.sampled_from(["", None, 7]),
    "parent_task": either,
}


def tasks(
    ids: st.SearchStrategy[Any], optional: dict[str, Any], inner: st.SearchStrategy[Any]
) -> st.SearchStrategy[list[Any]]:
    task = st.fixed_dictionaries({"id": ids}, optional={**optional, "subtasks": inner})
    return st.lists(task, max_size=6)


known = {**keys, "status": statuses}
queues = tasks(old, known, tasks(old, known, st.just([])) | st.just("none"))
few = tasks(new, keys, st.just([]))
additions = tasks(new, {**keys, "type": st.sampled_from(["Story", "Test"])}, few).filter(bool)
ROLES = ("planner", "builder")


def outcome(check: Callable[..., Any], *values: Any) -> str:
    """The tasks as they would be added, or why they are refused."""
    try:
        return json.dumps(check(*values))
    except ValueError as refused:
        return str(refused)


@pytest.fixture
def backend(on_postgres: Callable[..., PostgresBackend], tmp_path: Path) -> PostgresBackend:
    """An empty queue."""
    return on_postgres(tmp_path)


@settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=not EXAMPLES,
    print_blob=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(queue=queues, added=additions)
@example(  # over two that are there already
    queue=[{"id": "T1", "dependencies": ["T2"]}, {"id": "T2", "dependencies": ["N1"]}],
    added=[{"id": "N1", "dependencies": ["T1"]}],
)
@example(  # over a story, which waits for its children
    queue=[{"id": "T1", "status": "planning_complete", "subtasks": [{"id": "T2"}]}],
    added=[{"id": "N1", "dependencies": ["T1"]}],
)
@example(  # the one that T2 stands in is no task that can be used, but its name is that of one
    queue=[{"id": "T1", "status": "planning_complete"}, {"id": "T1", "subtasks": [{"id": "T2"}]}],
    added=[{"id": "N1", "dependencies": ["T1"]}],
)
@example(queue=[{"id": "T1", "status": "done", "dependencies": ["N1"]}], added=[{"id": "N1"}])
def test_a_few_tasks_decide_as_all_do(
    backend: PostgresBackend, queue: list[Any], added: list[Any]
) -> None:
    """What a person adds, and what an attempt on any task adds: taken, or refused in one voice."""
    backend.fill(*queue)
    tables, machine = backend.reader.tables, backend.config.machine
    every: Tasks = tables.seen().tasks
    near: Tasks = tables.near(intake.named(added)).tasks
    assert outcome(intake.checked, added, near, machine) == outcome(
        intake.checked, added, every, machine
    )
    for name, entry in every.by_id.items():
        near = tables.near({name, *intake.named(added)}).tasks
        for role in ROLES:
            whole = outcome(intake.of_agent, added, every, machine, entry, role)
            assert outcome(intake.of_agent, added, near, machine, near.by_id[name], role) == whole
