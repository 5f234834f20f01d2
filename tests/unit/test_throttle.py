"""The wait of a credential: who waits, for how long, and what ends it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.config import Backoff, Role
from daemon.model import Outcome, Result, parse_time
from daemon.queue import asking, throttle
from daemon.queue.throttle import LONGEST, PROBE, State, after, remembered
from tests.queues import FileBackend

NOW = 1_800_000_000.0
RULE = Backoff(30, 200)


def throttled(state: State, told: float | None, now: float = NOW, began: float = NOW) -> State:
    return after(state, RULE, Outcome.THROTTLED, told, began, now)


def test_a_reset_that_was_told_is_waited_for() -> None:
    """To the second; also one that is hours away, beyond the cap of what is guessed."""
    assert throttled(State(), 5 * 3600).until == NOW + 5 * 3600


def test_without_one_the_wait_doubles_up_to_the_cap() -> None:
    """30, 60, 120, 200, 200 seconds, each begun when the one before was over."""
    state, waits = State(), []
    for _ in range(5):
        now = max(NOW, state.until)
        state = throttled(state, None, now)
        waits.append(state.until - now)
    assert waits == [30, 60, 120, 200, 200]


def test_a_told_reset_that_does_not_help_is_not_obeyed_for_ever() -> None:
    """An agent that is told "at once", over and over, would be started without end."""
    first = throttled(State(), 0)
    assert first.until == NOW
    second = throttled(first, 0)
    assert second.until == NOW + 60


def test_those_under_way_together_met_one_limit() -> None:
    """They neither double the wait nor shorten it; a longer reset that one of them knows counts."""
    state = throttled(State(), 3600)
    for told in (None, 10, 0):
        state = throttled(state, told, NOW + 1)
        assert (state.until, state.times) == (NOW + 3600, 1)
    assert throttled(state, 7200, NOW + 2).until == NOW + 2 + 7200


def test_a_limit_that_was_met_meanwhile_does_not_hide_a_login_that_is_not_accepted() -> None:
    """It takes a person, and a retry of theirs, until an attempt has shown something else."""
    state = after(State(), RULE, Outcome.BLOCKED, None, NOW, NOW, denied=True)
    state = throttled(state, 10, NOW + 1)
    assert state.denied
    assert not throttled(state, 10, state.until).denied


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.REJECTED])
def test_work_that_was_done_forgets_it(outcome: Outcome) -> None:
    """The account answers again; the next wait is a first one."""
    state = throttled(throttled(State(), None), None, NOW + 30)
    assert after(state, RULE, outcome, None, NOW + 90, NOW + 95) == State()


def test_work_that_was_under_way_forgets_nothing() -> None:
    """It was begun before the limit was met.

    Broken once by any success ending the wait: a known reset in an hour was tried at once.
    """
    state = throttled(State(), 3600)
    assert after(state, RULE, Outcome.SUCCESS, None, NOW - 60, NOW + 5) == state


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.BLOCKED, Outcome.RELEASED])
def test_what_says_nothing_of_the_limit_changes_nothing(outcome: Outcome) -> None:
    """A crash, a missing login, a shutdown."""
    state = throttled(State(), None)
    assert after(state, RULE, outcome, None, NOW + 40, NOW + 41) == state


def test_it_is_forgotten_when_it_is_long_over_or_cannot_be() -> None:
    """The cap behind its end; a clock set back; a wait beyond a week; no numbers."""
    state = throttled(State(), 60)
    assert remembered(state, RULE, NOW + 259) == state
    assert remembered(state, RULE, NOW + 260) == State()
    assert remembered(state, RULE, NOW - 1) == State()
    assert remembered(State(NOW + 2 * LONGEST, 1, NOW), RULE, NOW) == State()
    for odd in (float("nan"), float("inf"), -float("inf")):
        assert remembered(State(odd, 1, NOW), RULE, NOW) == State()
        assert remembered(State(NOW + 9, 1, odd), RULE, NOW) == State()
    for told in (31_000_000, 1e300):  # an agent's word holds up nobody for a year
        assert throttled(State(), told).until == NOW + LONGEST


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"until": "x"}', '{"more": 1}', '{"times": 1e999}', "[" * 3000, "7", "\xff"],
)
def test_a_file_that_says_nothing_is_nothing_known(tmp_path: Path, text: str) -> None:
    """Whatever stands there, the roles claim; the next wait replaces it."""
    path = Path(throttle.path(str(tmp_path), "anthropic"))
    path.write_text(text, encoding="latin-1")
    assert throttle.read(str(tmp_path), "anthropic") == State()
    throttle.write(str(tmp_path), "anthropic", State(NOW, 1, NOW, "x"))
    assert throttle.read(str(tmp_path), "anthropic") == State(NOW, 1, NOW, "x")


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    """Neither read nor waited for; a write replaces them."""
    path = Path(throttle.path(str(tmp_path), "anthropic"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps(State(NOW, 1, NOW)._asdict()))
    path.symlink_to(elsewhere)
    assert throttle.read(str(tmp_path), "anthropic") == State()
    path.unlink()
    os.mkfifo(path)
    assert throttle.read(str(tmp_path), "anthropic") == State()
    throttle.write(str(tmp_path), "anthropic", State(NOW, 1, NOW))
    assert throttle.read(str(tmp_path), "anthropic").times == 1


# --- in the queue --------------------------------------------------------------------------------


class Shared(FileBackend):
    """Builder, tester and refiner spend from one account, the integrator from its own."""

    @property
    def config(self) -> Any:
        config = super().config
        own = {"integrator": "other", "planner": None}
        roles: dict[str, Role] = {
            name: role._replace(credential=own.get(name, "anthropic"))
            for name, role in config.roles.items()
        }
        return config._replace(roles=roles)


@pytest.fixture
def backend(tmp_path: Path) -> Shared:
    """Tasks for every role."""
    made = Shared(tmp_path, wip_limit=10)
    statuses = {"B": "ready", "T": "awaiting_test", "I": "ready_for_integrator", "P": "needs_plan"}
    made.fill(
        *({"id": f"{name}{i}", "status": s} for name, s in statuses.items() for i in range(3))
    )
    return made


def claims(backend: FileBackend, *roles: str, **how: Any) -> list[str]:
    """What each role would claim now, changing nothing."""
    queue = backend.open()
    found = [queue.claim(role, "me", dry_run=True, **how) for role in roles]
    return [claim.lease.task_id if claim else "" for claim in found]


def throttle_one(backend: FileBackend, told: float | None = 600) -> None:
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    backend.clock.step(1)
    queue.settle(claim.lease, Result(Outcome.THROTTLED, "usage limit", retry_after=told))


def test_every_role_of_the_credential_waits(backend: Shared) -> None:
    """And no other; whatever the WIP limit; until the reset. An attempt that runs goes on.

    Broken once by not asking in Ledger.ready: the tester claimed.
    """
    queue = backend.open()
    runs = queue.claim("tester", "me")
    assert runs is not None
    throttle_one(backend)
    roles = ("builder", "tester", "refiner", "integrator", "planner")
    assert claims(backend, *roles) == ["", "", "", "I0", "P0"]
    assert claims(backend, "builder", ignore_wip=True) == [""]
    for role in ("builder", "tester"):
        (pause,) = queue.memory.pauses(role)
        assert (pause.kind, pause.topic) == ("credential", "credential anthropic")
        assert pause.why.startswith("waits for credential anthropic until 20")
        assert pause.why.endswith("usage limit")
        now = backend.clock.wall
        # The other lease's end comes sooner.
        assert queue.next_time(role, now) == pytest.approx(now + 59, abs=0.1)
    queue.settle(queue.renew(runs.lease), Result(Outcome.SUCCESS))
    assert queue.next_time("tester", backend.clock.wall) == pytest.approx(now + 600, abs=0.1)
    backend.clock.step(601)
    assert claims(backend, "builder", "tester") == ["B0", "T1"]
    assert queue.memory.pauses("builder") == ()


def test_the_task_itself_waits_as_before(backend: Shared) -> None:
    """``not_before`` is its own, and nothing is counted."""
    throttle_one(backend, 100)
    task = backend.task("B0")
    assert (task["status"], task.get("attempts", 0)) == ("ready", 0)
    later = parse_time(task["not_before"])
    assert later == pytest.approx(backend.clock.wall + 100, abs=0.1)


def test_a_role_without_a_credential_waits_alone(tmp_path: Path) -> None:
    """Of `agent: command`, only the throttled task does: nothing is remembered."""
    backend = FileBackend(tmp_path, wip_limit=10)
    backend.fill(*({"id": f"B{i}", "status": "ready"} for i in range(3)))
    throttle_one(backend)
    assert claims(backend, "builder") == ["B1"]
    assert list((tmp_path / "runs").glob(".*")) == []


def test_a_retry_of_the_waiting_task_ends_the_wait(backend: Shared) -> None:
    """A person wants it tried; that of a parked task ends nothing, nor does starting a worker."""
    document = backend.document()
    document["tasks"].append({"id": "M", "status": "needs_manual", "parked_from": "ready"})
    backend.put(document)
    throttle_one(backend)
    queue = backend.open()
    queue.memory.resume("builder")
    assert asking.retry(queue, "M", "ann").credential == ""
    assert claims(backend, "builder", "tester") == ["", ""]
    assert asking.retry(queue, "B0", "ann").credential == "anthropic"
    assert claims(backend, "builder", "tester") == ["B0", "T0"]
    assert asking.retry(queue, "B0", "ann").credential == ""


def test_a_wait_that_cannot_be_written_costs_no_result(backend: Shared) -> None:
    """The task is settled all the same."""
    Path(throttle.path(str(backend.folder / "runs"), "anthropic")).mkdir(parents=True)
    throttle_one(backend)
    assert backend.task("B0")["status"] == "ready"
    assert claims(backend, "tester") == ["T0"]


# --- a login that is not accepted ----------------------------------------------------------------

DENIED = Result(Outcome.BLOCKED, "401", denied=True)


def deny_one(backend: FileBackend, role: str = "builder") -> str:
    """An attempt whose login is not accepted; its task."""
    queue = backend.open()
    claim = queue.claim(role, "me")
    assert claim is not None
    backend.clock.step(1)
    queue.settle(claim.lease, DENIED)
    return claim.lease.task_id


def test_a_login_that_is_not_accepted_blocks_one_task(backend: Shared) -> None:
    """Its own; every role of the credential waits, each time twice as long, with the reason.

    Broken once by counting throttled attempts only: each task went to a person, one a second.
    """
    assert deny_one(backend) == "B0"
    assert backend.task("B0")["status"] == "needs_manual"
    roles = ("builder", "tester", "integrator")
    assert claims(backend, *roles) == ["", "", "I0"]
    (pause,) = backend.open().memory.pauses("tester")
    assert pause.why.startswith("waits for credential anthropic until 20")
    assert pause.why.endswith(": 401")
    base = backend.config.roles["builder"].backoff.base
    backend.clock.step(base)
    assert deny_one(backend, "tester") == "T0"
    backend.clock.step(base)
    assert claims(backend, *roles) == ["", "", "I0"]
    backend.clock.step(base)
    assert claims(backend, *roles) == ["B1", "T1", "I0"]
    assert list((backend.folder / "runs").glob(".breaker-*")) == [], "that would be a second wait"


def test_blocked_by_the_model_holds_up_nobody(backend: Shared) -> None:
    """A person is needed for that task, which says nothing of the login."""
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    queue.settle(claim.lease, DENIED._replace(denied=False))
    assert claims(backend, "builder", "tester") == ["B1", "T0"]


def test_one_attempt_at_a_time_tries_the_login(backend: Shared) -> None:
    """The others wait until it ends, or has run so long that it works; then they go on."""
    deny_one(backend)
    backend.clock.step(backend.config.roles["builder"].backoff.base)
    queue = backend.open()
    probe = queue.claim("tester", "me")
    assert probe is not None
    assert claims(backend, "builder", "tester") == ["", ""]
    assert queue.next_time("builder", backend.clock.wall) == pytest.approx(
        backend.clock.wall + PROBE, abs=0.1
    )
    backend.clock.step(PROBE / 2)
    lease = queue.renew(probe.lease)
    backend.clock.step(PROBE / 2)
    assert claims(backend, "builder") == ["B1"]
    queue.settle(lease, Result(Outcome.SUCCESS))
    assert queue.memory.pauses("builder") == ()
    assert claims(backend, "builder", "tester") == ["B1", "T1"]


def test_a_retry_of_the_blocked_task_ends_the_wait(backend: Shared) -> None:
    """A person has logged in. A task that is parked for another role's reason ends nothing."""
    document = backend.document()
    document["tasks"].append({"id": "M", "status": "needs_manual", "parked_from": "needs_plan"})
    backend.put(document)
    deny_one(backend)
    queue = backend.open()
    assert asking.retry(queue, "M", "ann").credential == ""
    assert claims(backend, "builder", "tester") == ["", ""]
    assert asking.retry(queue, "B0", "ann").credential == "anthropic"
    assert claims(backend, "builder", "tester") == ["B0", "T0"]
