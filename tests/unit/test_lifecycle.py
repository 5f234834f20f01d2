"""The state machine of a task, as a table of facts."""

from __future__ import annotations

from typing import Any

import pytest

from daemon import lifecycle
from daemon.index import Entry, Tasks
from daemon.lifecycle import Machine, Rules
from daemon.model import Outcome, Result, format_time, parse_time

NOW = 1_800_000_000.0
MACHINE = Machine(
    {
        name: Rules(
            name,
            tuple(row["claims"]),
            row["holds"],
            row["on_success"],
            row["on_rejected"],
            row["on_exhausted"],
        )
        for name, row in lifecycle.DEFAULT_ROLES.items()
    }
)
BUILDER = MACHINE.roles["builder"]


def flat(tasks: list[dict[str, Any]], parent: str | None = None) -> list[Entry]:
    found: list[Entry] = []
    for task in tasks:
        found.append(Entry(0, task, parent))
        found += flat(task.get("subtasks", []), task.get("id"))
    return [entry._replace(index=index) for index, entry in enumerate(found)]


def queue(*tasks: dict[str, Any]) -> Tasks:
    return Tasks(flat(list(tasks)))


def task(identifier: str = "T1", status: str = "ready", **keys: Any) -> dict[str, Any]:
    return {"id": identifier, "status": status, **keys}


def claimable(*tasks: dict[str, Any], live: tuple[str, ...] = ()) -> list[str]:
    found = lifecycle.claimable(queue(*tasks), BUILDER, NOW, live)
    return [entry.task["id"] for entry in found]


def settle(
    held: dict[str, Any], result: Result, role: str = "builder", machine: Machine = MACHINE
) -> dict[str, Any]:
    entry = Entry(0, held, None)
    return dict(lifecycle.settle(entry, machine, role, result, NOW, lambda: 0.5).changes)


@pytest.mark.parametrize(
    ("role", "row"),
    [
        ("planner", ("planning_complete", "needs_manual", "needs_manual")),
        ("builder", ("awaiting_test", "needs_adapt", "needs_manual")),
        ("tester", ("ready_for_integrator", "needs_adapt", "needs_manual")),
        ("refiner", ("awaiting_test", "needs_manual", "needs_manual")),
        ("integrator", ("done", "needs_adapt", "needs_manual")),
    ],
)
def test_each_outcome_moves_as_the_table_says(role: str, row: tuple[str, str, str]) -> None:
    """Success, rejected and blocked go where the design's table sends them, for every role."""
    held = task(status=MACHINE.roles[role].holds)
    outcomes = (Outcome.SUCCESS, Outcome.REJECTED, Outcome.BLOCKED)
    assert tuple(settle(held, Result(each), role)["status"] for each in outcomes) == row


def test_priority_then_place_decides() -> None:
    """1 first; a missing or non-numeric priority comes last; equal ones keep the queue's order."""
    tasks = [task("A"), task("B", priority=2), task("C", priority="1"), task("D", priority=1)]
    assert claimable(*tasks, task("E", priority=2)) == ["D", "B", "E", "A", "C"]


def test_true_is_no_priority() -> None:
    """JSON's true must not count as 1."""
    assert claimable(task("A", priority=True), task("B", priority=9)) == ["B", "A"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"dependencies": ["GONE"]}, "waits for GONE (unknown)"),
        ({"dependencies": ["D", "W"]}, "waits for W (testing)"),
        ({"dependencies": ["X"]}, "waits for X (cancelled)"),
        ({"dependencies": [7]}, "waits for 7 (unknown)"),
        ({"dependencies": "W"}, "waits for W (testing)"),
        ({"not_before": format_time(NOW + 5)}, f"not before {format_time(NOW + 5)}"),
        ({"status": "done"}, "status is done, builder claims ready"),
        (
            {"lease": {"heartbeat_at": format_time(NOW - 5), "ttl_seconds": 10}},
            "a live lease is on it",
        ),
    ],
)
def test_why_a_task_waits(keys: dict[str, Any], why: str) -> None:
    """Whatever keeps a task from being claimed is named."""
    held = task(**keys)
    tasks = queue(held, task("D", "done"), task("W", "testing"), task("X", "cancelled"))
    assert lifecycle.why_not(tasks.entries[0], tasks, BUILDER, NOW, ()) == why


@pytest.mark.parametrize(
    "keys",
    [
        {"dependencies": []},
        {"dependencies": None},
        {"dependencies": ["D", "C"]},
        {"not_before": format_time(NOW)},
        {"not_before": "soon"},
        {"lease": ""},
        {"lease": {"heartbeat_at": format_time(NOW - 50), "ttl_seconds": 10}},
        {"lease": {"agent": "builder", "acquired": "2025-10-03T11:30:00+00:00", "ttl": 5400}},
    ],
)
def test_what_does_not_hold_a_task_back(keys: dict[str, Any]) -> None:
    """Satisfied dependencies, times past, and leases that are over are no hindrance."""
    done = (task("D", "done"), task("C", "completed"))
    assert claimable(task(**keys), *done) == ["T1"]


def test_a_live_lease_keeps_a_task() -> None:
    """A task that somebody holds is not claimed, whatever its status says."""
    assert claimable(task("A"), task("B"), live=("A",)) == ["B"]


@pytest.mark.parametrize(
    "identifier", ["", "a/b", "..", "-x", "a..b", "x.lock", "x.", None, 7, "é"]
)
def test_a_bad_id_stops_no_other_task(identifier: Any) -> None:
    """A task without a valid id is skipped with one problem; so is a second one of the same id."""
    tasks = queue({"id": identifier, "status": "ready"}, task("A"), task("A"))
    assert len(tasks.problems) == 2
    assert [e.index for e in lifecycle.claimable(tasks, BUILDER, NOW, ())] == [1]


def test_wip_counts_every_depth_and_every_holder() -> None:
    """The limit counts tasks in the held status, subtasks and invalid ids too."""
    inner = task("S", "in_progress")
    tasks = queue(task("A", "in_progress", subtasks=[inner]), {"status": "in_progress"}, task("B"))
    assert lifecycle.wip(tasks, BUILDER) == 3


@pytest.mark.parametrize(
    ("limits", "limit"),
    [({"builder": 3}, 3), ({"builder": 0}, 0), ({"builder": "3"}, 1), ({}, 1), (None, 1), ([], 1)],
)
def test_the_queue_s_limit_wins(limits: object, limit: int) -> None:
    """wip_limits of the queue, else the role's wip_limit, whatever stands there."""
    assert lifecycle.wip_limit(limits, BUILDER) == limit


def test_an_error_backs_off_with_full_jitter_until_attempts_are_spent() -> None:
    """Base * 2**n, capped, times a random share; the last attempt goes to a person."""
    first = settle(task(status="in_progress"), Result(Outcome.ERROR, "exit 1"))
    assert (first["status"], first["attempts"], first["last_error"]) == ("ready", 1, "exit 1")
    assert parse_time(first["not_before"]) == NOW + 15
    second = settle(task(status="in_progress", attempts=1), Result(Outcome.ERROR))
    assert parse_time(second["not_before"]) == NOW + 30
    last = settle(task(status="in_progress", attempts=2), Result(Outcome.ERROR))
    assert (last["status"], last["attempts"]) == ("needs_manual", 0)


def test_backoff_is_capped() -> None:
    """However many attempts, the wait stays under the cap."""
    rules = BUILDER._replace(max_attempts=10_000)
    machine = MACHINE._replace(roles={**MACHINE.roles, "builder": rules})
    changes = settle(
        task(status="in_progress", attempts=5000), Result(Outcome.ERROR), machine=machine
    )
    assert parse_time(changes["not_before"]) == NOW + 1800


@pytest.mark.parametrize("outcome", [Outcome.RELEASED, Outcome.THROTTLED])
def test_released_and_throttled_count_nothing(outcome: Outcome) -> None:
    """They go back to the claimed status with the attempts as they were."""
    changes = settle(task(status="in_progress", attempts=1), Result(outcome, retry_after=60))
    assert changes["status"] == "ready"
    assert "attempts" not in changes
    waits = parse_time(changes.get("not_before"))
    assert waits == (NOW + 60 if outcome is Outcome.THROTTLED else None)


@pytest.mark.parametrize("told", [1e12, 1e300, float("inf")])
def test_a_wait_without_end_is_a_year(told: float) -> None:
    """So that it can be read again; of a year with five digits nothing can.

    Broken once by believing any number: the settling raised, or the time said nothing.
    """
    result = Result(Outcome.THROTTLED, retry_after=told)
    changes = settle(task(status="in_progress"), result)
    assert parse_time(changes["not_before"]) == NOW + 366 * 86400


def test_attempts_start_again_on_every_move() -> None:
    """A success writes 0 over earlier attempts, and clears what the error left."""
    held = task(status="in_progress", attempts=2, not_before="x", last_error="y", agent="builder")
    changes = settle(held, Result(Outcome.SUCCESS))
    assert changes["attempts"] == 0
    assert (changes["not_before"], changes["last_error"], changes["agent"]) == (None, None, None)


def test_keys_are_added_only_when_they_say_something() -> None:
    """A plain success of a plain task adds no key but the time."""
    changes = settle(task(status="in_progress"), Result(Outcome.SUCCESS))
    assert set(changes) == {"status", "updated_at"}


@pytest.mark.parametrize("fraction", [0.0, 0.0004, 0.0009, 0.25, 0.9996])
def test_a_time_is_never_written_later_than_it_is(fraction: float) -> None:
    """A wait of no time at all is over when it is read again."""
    read = parse_time(format_time(NOW + fraction))
    assert read is not None
    assert NOW + fraction - 0.001 < read <= NOW + fraction


def test_adapt_loops_end() -> None:
    """After max_adaptations rejections that lead to a refiner, a person has to look."""
    held = task(status="testing", adaptations=2)
    third = settle(held, Result(Outcome.REJECTED, "red"), "tester")
    assert (third["status"], third["adaptations"]) == ("needs_adapt", 3)
    fourth = settle({**held, "adaptations": 3}, Result(Outcome.REJECTED), "tester")
    assert fourth["status"] == "needs_manual"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("awaiting_test", "awaiting_test"),
        ("needs_adapt", "needs_adapt"),
        ("needs_manual", "needs_manual"),
        ("done", "ready"),
        ("anything", "ready"),
    ],
)
def test_an_agent_names_its_own_role_s_statuses_only(asked: str, status: str) -> None:
    """A status from elsewhere is an error of the attempt, never a move."""
    changes = settle(task(status="in_progress"), Result(Outcome.SUCCESS, status=asked))
    assert changes["status"] == status


def test_a_failure_cannot_ask_for_success() -> None:
    """The status of a result counts only when everything else says success."""
    result = Result(Outcome.ERROR, status="awaiting_test")
    assert settle(task(status="in_progress"), result)["status"] == "ready"


def test_a_role_of_several_claims_goes_back_to_the_one_it_claimed_from() -> None:
    """The lease remembers the status, for an error or a release to return to."""
    rules = BUILDER._replace(claims=("ready", "reopened"))
    machine = MACHINE._replace(roles={**MACHINE.roles, "builder": rules})
    entry = Entry(0, task(status="reopened"), None)
    held = {**entry.task, **lifecycle.claim(entry, rules, {"token": 1}, 1, NOW)}
    assert settle(held, Result(Outcome.RELEASED), machine=machine)["status"] == "reopened"


def moved(*tasks: dict[str, Any], machine: Machine = MACHINE) -> dict[str, str]:
    found = lifecycle.moves(queue(*tasks), machine, NOW)
    return {move.entry.task["id"]: move.target for move in found}


@pytest.mark.parametrize(
    ("keys", "target"),
    [
        ({}, "ready"),
        ({"type": "Story"}, "needs_plan"),
        ({"type": "Test"}, "awaiting_test"),
        ({"type": "Testing"}, "awaiting_test"),
        ({"blocked_reason": ""}, "ready"),
        ({"blocked_reason": "legal"}, None),
        ({"blocker": "X"}, None),
        ({"dependencies": []}, None),
        ({"dependencies": ["D", "GONE"]}, None),
        ({"dependencies": ["C"]}, None),
    ],
)
def test_blocked_tasks_unblock(keys: dict[str, Any], target: str | None) -> None:
    """Only with dependencies, all satisfied, and with nobody's reason against it."""
    waiting = task("B", "blocked", **{"dependencies": ["D"], **keys})
    expected = {"B": target} if target else {}
    assert moved(waiting, task("D", "done"), task("C", "cancelled")) == expected


@pytest.mark.parametrize(
    ("children", "closes"),
    [
        (["done"], True),
        (["done", "cancelled"], True),
        (["completed"], True),
        (["cancelled"], False),
        (["done", "ready"], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("kind", ["parent", "parent_task", "subtasks"])
def test_stories_close(kind: str, children: list[str], *, closes: bool) -> None:
    """When all children have ended and one at least is satisfied, however they are declared."""
    inner = [task(f"C{i}", status) for i, status in enumerate(children)]
    if kind == "subtasks":
        tasks = [task("S", "planning_complete", subtasks=inner)]
    else:
        tasks = [task("S", "planning_complete"), *({**each, kind: "S"} for each in inner)]
    assert moved(*tasks) == ({"S": "done"} if closes else {})


def test_moves_reach_a_fixed_point() -> None:
    """A story that closes unblocks what depends on it, in the same write."""
    story = task("S", "planning_complete", subtasks=[task("C", "done")])
    last = task("L", "blocked", dependencies=["S"])
    assert moved(last, story) == {"S": "done", "L": "ready"}


def test_moves_can_be_turned_off() -> None:
    """Neither happens where the config says no."""
    story = task("S", "planning_complete", subtasks=[task("C", "done")])
    last = task("L", "blocked", dependencies=["C"])
    off = MACHINE._replace(unblock=False, close_stories=False)
    assert moved(last, story, machine=off) == {}


@pytest.mark.parametrize(
    ("status", "lease", "held"),
    [
        ("in_progress", {"token": 4}, True),
        ("awaiting_test", {"token": 4}, True),
        ("needs_adapt", {"token": 4}, True),
        ("needs_manual", {"token": 4}, False),
        ("cancelled", {"token": 4}, False),
        ("awaiting_test", None, False),
        ("in_progress", {"token": 3}, False),
        ("in_progress", {"owner": "ann"}, False),
    ],
)
def test_what_an_agent_claims_and_what_a_person_moved(
    status: str, lease: dict[str, Any] | None, *, held: bool
) -> None:
    """A next status with the hold as it was is a claim; settled tasks and others' are not held."""
    found = task(status=status, token=4, lease=lease)
    assert lifecycle.is_held(found, BUILDER, 4) is held
