"""What a person's cancel, release and retry write into a task."""

from __future__ import annotations

from typing import Any

import pytest

from daemon import byhand, lifecycle
from daemon.index import Entry
from daemon.model import Outcome, Result
from tests.unit.test_lifecycle import MACHINE, NOW

HOLD = {"agent": "builder", "lease": {"token": 3, "owner": "h"}, "token": 3}


def changed(task: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The task with the changes, less its time."""
    assert changes["updated_at"] == "2027-01-15T08:00:00.000Z"
    return {key: value for key, value in {**task, **changes}.items() if key != "updated_at"}


def test_cancelling_ends_a_task_and_keeps_the_rest() -> None:
    """No hold, no wait; what the owner keeps in it stays."""
    task = {"id": "T", "status": "ready", "not_before": "2999-01-01T00:00:00Z", "note": "x"}
    after = changed(task, byhand.cancel(task, NOW))
    assert after == {"id": "T", "status": "cancelled", "not_before": None, "note": "x"}


def test_releasing_goes_back_to_where_it_was_claimed() -> None:
    """Nothing is counted; a role that claims two statuses knows from which one it came."""
    task = {"id": "T", "status": "in_progress", "attempts": 2, **HOLD}
    after = changed(task, byhand.release(task, MACHINE, NOW))
    assert (after["status"], after["attempts"], after["lease"], after["agent"], after["token"]) == (
        "ready",
        2,
        None,
        None,
        3,
    )


@pytest.mark.parametrize("status", ["ready", "done", "needs_manual", None, "odd"])
def test_what_nobody_holds_is_not_released(status: str | None) -> None:
    """It says what the status is."""
    with pytest.raises(ValueError, match="nobody holds it"):
        byhand.release({"id": "T", "status": status}, MACHINE, NOW)


@pytest.mark.parametrize(
    ("task", "status"),
    [
        ({"status": "needs_manual", "parked_from": "awaiting_test"}, "awaiting_test"),
        ({"status": "needs_manual"}, "ready"),
        ({"status": "blocked", "type": "Story"}, "needs_plan"),
        ({"status": "needs_manual", "parked_from": "no status of ours"}, "ready"),
        ({"status": "needs_manual", "parked_from": ["ready"]}, "ready"),
        ({"status": "needs_adapt", "not_before": "2999-01-01T00:00:00Z"}, "needs_adapt"),
    ],
)
def test_a_retry_begins_anew(task: dict[str, Any], status: str) -> None:
    """Attempts and adaptations are forgotten, the wait is over, the status can be claimed."""
    task = {"id": "T", "attempts": 3, "adaptations": 4, **task}
    after = changed(task, byhand.retry(task, MACHINE, NOW))
    assert (after["status"], after["attempts"], after["adaptations"]) == (status, 0, 0)
    assert (after.get("not_before"), after.get("parked_from")) == (None, None)


@pytest.mark.parametrize("rules", MACHINE.roles.values(), ids=lambda rules: str(rules.name))
@pytest.mark.parametrize("outcome", [Outcome.BLOCKED, Outcome.ERROR])
def test_a_retry_goes_back_to_the_role_that_gave_up(
    rules: lifecycle.Rules, outcome: Outcome
) -> None:
    """Whatever role parked the task is the one that gets it again."""
    task = {"id": "T", "status": rules.holds, "attempts": 2, **HOLD}
    moved = lifecycle.settle(
        Entry(0, task, None), MACHINE, rules.name, Result(outcome), NOW, lambda: 0.5
    )
    parked = {**task, **moved.changes}
    assert parked["status"] == "needs_manual"
    assert byhand.retry(parked, MACHINE, NOW)["status"] == rules.claims[0]


def test_a_retry_of_something_else_wants_a_status() -> None:
    """What is held is not touched; what has ended comes back only where one says to what."""
    with pytest.raises(ValueError, match="being worked on"):
        byhand.retry({"id": "T", "status": "testing"}, MACHINE, NOW, "ready")
    with pytest.raises(ValueError, match="say which one"):
        byhand.retry({"id": "T", "status": "done"}, MACHINE, NOW)
    assert byhand.retry({"id": "T", "status": "done"}, MACHINE, NOW, "ready")["status"] == "ready"
