"""The circuit breaker: when a role's claims pause, how long, and what closes it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.config import Breaker
from daemon.model import Outcome, Result
from daemon.queue import breaker
from daemon.queue.breaker import State, after, is_open
from tests.queues import FileBackend

NOW = 1_800_000_000.0
RULE = Breaker(failures=3, seconds=10, base=60, cap=200)
QUICK = (Outcome.ERROR, 1.0)


def failed(times: int, now: float = NOW, rule: Breaker = RULE) -> State:
    """What is known after so many quick failures at once."""
    state = State()
    for _ in range(times):
        state = after(state, rule, *QUICK, now)
    return state


def test_it_opens_at_the_failures_that_the_config_names() -> None:
    """Two are nothing, the third pauses the role for the base."""
    assert not is_open(failed(2), RULE, NOW, 0)
    assert is_open(failed(3), RULE, NOW + 59, 0)
    assert failed(3).until == NOW + 60


def test_the_pause_doubles_up_to_the_cap() -> None:
    """60, 120, 200, 200 seconds; what was under way when a pause began makes it no longer.

    Broken once by counting those: four at once made a pause of four minutes.
    """
    state, pauses = failed(3), list[float]()
    for _ in range(4):
        pauses.append(state.until - state.last)
        assert after(state, RULE, *QUICK, state.until - 1) == state
        state = after(state, RULE, *QUICK, state.until)
    assert pauses == [60, 120, 200, 200]


def test_one_attempt_at_a_time_follows_a_pause() -> None:
    """With a live one the role stays closed to others; its quick failure is the next pause."""
    state = failed(3)
    assert not is_open(state, RULE, NOW + 60, 0)
    assert is_open(state, RULE, NOW + 60, 1)
    again = after(state, RULE, *QUICK, NOW + 61)
    assert again.until == NOW + 61 + 120


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [(Outcome.SUCCESS, 1.0), (Outcome.REJECTED, 1.0), (Outcome.ERROR, 11.0)],
)
def test_work_that_was_done_closes_it(outcome: Outcome, seconds: float) -> None:
    """A success, a rejection, or a failure that took its time: the agent itself works."""
    assert after(failed(3), RULE, outcome, seconds, NOW + 60) == State()


@pytest.mark.parametrize("outcome", [Outcome.RELEASED, Outcome.THROTTLED, Outcome.LOST])
def test_what_says_nothing_of_the_agent_changes_nothing(outcome: Outcome) -> None:
    """A shutdown, a provider's limit, a lost lease: neither a failure nor a cure."""
    assert after(failed(2), RULE, outcome, 1.0, NOW) == failed(2)


def test_a_missing_agent_counts() -> None:
    """Blocked at once, task after task, is what would send the whole queue to a person."""
    state = State()
    for _ in range(3):
        state = after(state, RULE, Outcome.BLOCKED, 0.1, NOW)
    assert is_open(state, RULE, NOW, 0)


def test_quiet_is_forgotten() -> None:
    """When nothing failed for the cap behind the last failure and its pause, all is as new."""
    assert is_open(failed(3), RULE, NOW + 60 + 199, 1)
    assert not is_open(failed(3), RULE, NOW + 60 + 200, 1)
    assert after(failed(2), RULE, *QUICK, NOW + 200).failures == 1


def test_a_clock_that_was_set_back_pauses_nothing() -> None:
    """A failure to come has not happened."""
    assert not is_open(failed(3), RULE, NOW - 3600, 0)


def test_it_can_be_switched_off() -> None:
    """failures: 0."""
    assert failed(50, rule=Breaker(failures=0)) == State()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"failures": "x"}',
        '{"more": 1}',
        '{"failures": 1e999}',
        "[" * 3000,
        '"x"',
        "\xff",
    ],
)
def test_a_file_that_says_nothing_is_nothing_known(tmp_path: Path, text: str) -> None:
    """Whatever stands there, the role claims."""
    Path(breaker.path(str(tmp_path), "builder")).write_text(text, encoding="latin-1")
    assert breaker.read(str(tmp_path), "builder") == State()


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    """Neither read nor waited for; a write replaces them."""
    path = Path(breaker.path(str(tmp_path), "builder"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps(failed(3)._asdict()))
    path.symlink_to(elsewhere)
    assert breaker.read(str(tmp_path), "builder") == State()
    path.unlink()
    os.mkfifo(path)
    assert breaker.read(str(tmp_path), "builder") == State()
    breaker.write(str(tmp_path), "builder", failed(3))
    assert breaker.read(str(tmp_path), "builder") == failed(3)


# --- in the queue --------------------------------------------------------------------------------


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """Ten ready tasks, and a breaker that opens at the third failure."""
    made = FileBackend(tmp_path, breaker=RULE, max_attempts=100, wip_limit=10)
    made.fill(*({"id": f"T{i}", "status": "ready"} for i in range(10)))
    return made


def attempt(backend: FileBackend, outcome: Outcome, seconds: float = 1.0) -> str | None:
    """One attempt of the builder that comes to this; the id of its task."""
    queue = backend.open()
    claim = queue.claim("builder", "me")
    if claim is None:
        return None
    backend.clock.step(seconds)
    queue.settle(claim.lease, Result(outcome, "no login"))
    return claim.lease.task_id


def test_the_queue_is_not_burnt(backend: FileBackend) -> None:
    """Three tasks lose an attempt, the others none, and the worker knows when to look again.

    Broken once by not asking the breaker in Ledger.ready: all ten tasks were attempted.
    """
    tried = [attempt(backend, Outcome.ERROR) for _ in range(10)]
    assert tried == ["T0", "T1", "T2", *[None] * 7]
    queue, now = backend.open(), backend.clock.wall
    state = queue.memory.breaker("builder")
    assert (state.failures, state.why) == (3, "no login")
    assert queue.next_time("builder", now) == pytest.approx(now + 28, abs=0.1)  # the wait of T0
    assert queue.claim("tester", "me") is None  # it has a breaker of its own
    assert queue.memory.breaker("tester") == State()


def test_one_is_let_through_and_closes_it(backend: FileBackend) -> None:
    """Behind the pause there is one claim, not two; its success opens the way to all."""
    for _ in range(3):
        attempt(backend, Outcome.BLOCKED)
    backend.clock.step(60)
    queue = backend.open()
    first = queue.claim("builder", "me")
    assert first is not None
    assert queue.claim("builder", "me") is None
    queue.settle(first.lease, Result(Outcome.SUCCESS))
    assert queue.memory.breaker("builder") == State()
    assert [attempt(backend, Outcome.SUCCESS) for _ in range(2)] == ["T4", "T5"]


def test_a_person_closes_it(backend: FileBackend) -> None:
    """As starting a worker does."""
    for _ in range(3):
        attempt(backend, Outcome.BLOCKED)
    assert attempt(backend, Outcome.SUCCESS) is None
    backend.open().memory.resume("builder")
    assert attempt(backend, Outcome.SUCCESS) == "T3"


def test_a_breaker_that_cannot_be_written_costs_no_result(backend: FileBackend) -> None:
    """The task is settled all the same."""
    Path(breaker.path(str(backend.folder / "runs"), "builder")).mkdir(parents=True)
    assert attempt(backend, Outcome.ERROR) == "T0"
    task: dict[str, Any] = backend.task("T0")
    assert (task["status"], task["attempts"]) == ("ready", 1)
