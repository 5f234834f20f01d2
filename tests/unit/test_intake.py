"""What an attempt may add to the queue: each rule, and whose child a new task is."""

from __future__ import annotations

import re
from typing import Any

import pytest

from daemon.index import Entry, Tasks
from daemon.lifecycle import DEFAULT_ROLES, Machine, Rules
from daemon.queue import intake

MACHINE = Machine(
    {n: Rules(n, **{**row, "claims": tuple(row["claims"])}) for n, row in DEFAULT_ROLES.items()}
)
QUEUE: list[dict[str, Any]] = [
    {"id": "S", "type": "Story", "status": "planning"},
    {"id": "P", "type": "Story", "status": "planning_complete"},
    {"id": "B", "status": "in_progress", "parent": "P"},
    {"id": "WAITS", "status": "ready", "dependencies": ["N1"]},
    {"id": "DONE", "status": "done", "dependencies": ["N1"]},
    {"id": "GONE", "status": "cancelled"},
    {"id": "X1", "status": "ready", "dependencies": ["X2"]},
    {"id": "X2", "status": "ready", "dependencies": ["X1"]},
]
TASKS = Tasks(Entry(index, each, None) for index, each in enumerate(QUEUE))


def add(*new: Any, task: str = "S", role: str = "planner") -> list[dict[str, Any]]:
    return intake.of_agent(new, TASKS, MACHINE, TASKS.by_id[task], role)


def test_a_plain_plan_is_taken_as_it_is() -> None:
    """Keys of its own stay; a status comes from the type, a parent from the story."""
    found = add(
        {"id": "N1", "title": "é", "own": {"deep": [1]}, "priority": 2.5},
        {"id": "N2", "type": "Test", "dependencies": ["N1", "DONE"], "parent_task": "P"},
        {"id": "N3", "status": "needs_manual", "subtasks": [{"id": "N4"}]},
    )
    one = {"id": "N1", "title": "é", "own": {"deep": [1]}, "priority": 2.5, "parent": "S"}
    assert found[0] == {**one, "status": "ready"}
    assert (found[1]["status"], found[1].get("parent")) == ("awaiting_test", None)
    assert found[2]["subtasks"] == [{"id": "N4", "status": "ready"}]


@pytest.mark.parametrize("key", intake.OURS)
@pytest.mark.parametrize("value", [1, "x", True, ["x"], {"a": 1}], ids=str)
def test_our_own_keys_are_refused(key: str, value: Any) -> None:
    """An agent that could write them could pass its budget of attempts, or hold what it likes."""
    with pytest.raises(ValueError, match=f"N1 has {key}, which only Rolecall writes"):
        add({"id": "N1", key: value})
    with pytest.raises(ValueError, match="only Rolecall writes"):
        add({"id": "N2", "subtasks": [{"id": "N1", key: value}]})


def test_what_says_nothing_is_left_out() -> None:
    """A model that copies the form of the queue's tasks writes null and 0 into keys of ours."""
    nothing = dict.fromkeys((*intake.OURS, "title", "dependencies", "status", "parent"))
    assert add({"id": "N1", **nothing, "attempts": 0, "lease": "", "agent": ""}) == [
        {"id": "N1", "parent": "S", "status": "ready"}
    ]


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ([{"id": "../x"}], "no valid id"),
        ([{"id": "S"}], "an id that is taken: S"),
        ([{"id": "N1"}, {"id": "N1"}], "an id that is taken: N1"),
        (["N1"], "no valid id"),
        ([{"id": "N1", "status": "done"}], "the status 'done', which is none of"),
        ([{"id": "N1", "status": "in_progress"}], "the status 'in_progress'"),
        ([{"id": "N1", "status": "planning_complete"}], "the status 'planning_complete'"),
        ([{"id": "N1", "status": 7}], "no valid status"),
        ([{"id": "N1", "title": 7}], "a title that is no text"),
        ([{"id": "N1", "priority": "high"}], "a priority that is no number"),
        ([{"id": "N1", "parent": "gone"}], "a parent that is not in the queue: gone"),
        ([{"id": "N1", "dependencies": ["gone"]}], "a dependency that is not in the queue: gone"),
        ([{"id": "N1", "dependencies": "DONE"}], "dependencies that are no list"),
        ([{"id": "N1", "dependencies": [["DONE"]]}], "dependencies that are no list of ids"),
        ([{"id": "N1", "dependencies": ["GONE"]}], "cancelled, and so never satisfied: GONE"),
        (
            [{"id": "N1", "depends_on": ["DONE"]}],
            "N1 has depends_on, which is unknown: did you mean 'dependencies'?",
        ),
        ([{"id": "N1", "subtasks": [{"id": "N2", "deps": []}]}], "N2 has deps"),
        ([{"id": "N1", "subtasks": "x"}], "subtasks that are no list"),
        ([{"id": "N1", "n": float("nan")}], "Out of range"),
        ([{"id": f"N{n}"} for n in range(201)], "201 new tasks are more than 200"),
        ([{"id": "N", "subtasks": [{"id": f"N{n}"} for n in range(200)]}], "201 new tasks"),
        ([{"id": "N1", "dependencies": ["N1"]}], "each other: N1 -> N1"),
        (
            [{"id": f"N{n}", "dependencies": [f"N{(n + 1) % 3}"]} for n in range(3)],
            "each other: N0 -> N1 -> N2 -> N0",
        ),
        ([{"id": "N1", "dependencies": ["WAITS"]}], "each other: N1 -> WAITS -> N1"),
        ([{"id": "N1", "dependencies": ["S"]}], "each other: N1 -> S -> N1"),
        ([{"id": "N1", "parent": "P", "dependencies": ["P"]}], "each other: N1 -> P -> N1"),
        (
            [{"id": "N1", "subtasks": [{"id": "N2", "dependencies": ["N2"]}]}],
            "each other: N2 -> N2",
        ),
    ],
    ids=range(27),
)
def test_a_wrong_task_refuses_all(new: list[Any], why: str) -> None:
    """With what is wrong, in words that the next prompt shows to an agent."""
    with pytest.raises(ValueError, match=re.escape(why)):
        add(*new)
    if len(new) < intake.MOST:
        with pytest.raises(ValueError):  # noqa: PT011  # whichever is found first
            add({"id": "GOOD"}, *new)


def test_tasks_that_are_nested_without_end_are_refused() -> None:
    """By their number, before anything walks into them.

    Broken once by cleaning them first: a RecursionError, and an attempt that never settled.
    """
    deep: dict[str, Any] = {"id": "N0"}
    for n in range(1, 5000):
        deep = {"id": f"N{n}", "subtasks": [deep]}
    with pytest.raises(ValueError, match="5000 new tasks are more than 200"):
        add(deep)


def test_the_largest_plan_is_taken() -> None:
    """The bound itself is no error, and a chain as long is walked without recursion."""
    chain = [{"id": f"N{n}", "dependencies": [f"N{n + 1}"]} for n in range(199)]
    assert len(add(*chain, {"id": "N199"})) == intake.MOST


def test_what_has_ended_waits_for_nothing() -> None:
    """A way over a task that is done is no ring; one that was there before is not refused here."""
    assert add({"id": "N1", "dependencies": ["DONE", "X1"]})


@pytest.mark.parametrize(
    ("task", "role", "parent"),
    [("S", "planner", "S"), ("B", "builder", "P"), ("WAITS", "builder", None)],
)
def test_a_new_task_without_a_parent_gets_one(task: str, role: str, parent: str | None) -> None:
    """A planner's children are its story's; what others add stands beside their own task.

    Broken once by leaving it out: the story closed, or stayed open, whatever became of the child.
    """
    new = {"id": "N2", "dependencies": [task] if role == "builder" else []}
    (found,) = add(new, task=task, role=role)
    assert found.get("parent") == parent


def test_a_person_may_name_what_is_to_come() -> None:
    """An unknown dependency is a warning there (queue.check tells it); a ring is refused."""
    assert intake.checked([{"id": "N1", "dependencies": ["later"]}], TASKS, MACHINE)
    with pytest.raises(ValueError, match="each other"):
        intake.checked([{"id": "N1", "dependencies": ["N1"]}], TASKS, MACHINE)
