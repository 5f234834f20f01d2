"""Budgets: what bars a claim, what it reserves, what an attempt is charged, who waits for whom."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from daemon.config import Amounts, Budget, Config, Price
from daemon.errors import RolecallError
from daemon.model import Lease, Outcome, Result, format_time
from daemon.queue import asking, durable, spending
from daemon.queue.account import Account, Amount
from daemon.queue.file import FileQueue
from tests.queues import FileBackend

DAY = 86400.0
NOON = 20_800 * DAY + DAY / 2


class Limited(FileBackend):
    """Twenty ready tasks; ``builder`` and ``common`` are the budgets, ``price`` the builder's."""

    def __init__(self, folder: Path, **role: Any) -> None:
        super().__init__(folder, wip_limit=20, max_attempts=100, **role)
        self.builder, self.common = Budget(), Budget()
        self.price: Price | None = None
        self.agent: str | None = "command"
        self.clock.wall = NOON
        self.fill(*({"id": f"T{i}", "status": "ready"} for i in range(20)))

    @property
    def config(self) -> Config:
        config = super().config
        builder = config.roles["builder"]._replace(
            agent=self.agent, budget=self.builder, price=self.price
        )
        return config._replace(roles={**config.roles, "builder": builder}, budget=self.common)

    @property
    def ledger(self) -> Path:
        return self.folder / "runs" / spending.NAME

    def lines(self) -> list[Any]:
        text = self.ledger.read_text() if self.ledger.exists() else ""
        return [json.loads(each) for each in text.splitlines()]

    def spent(self, **of: Any) -> Amount:
        account = Account(str(self.ledger))
        account.look()
        return account.charged.of(None, **of)

    def begin(self, lease: Lease) -> None:
        """The agent was started, as its run folder tells."""
        (self.folder / "runs" / lease.task_id / str(lease.token) / "stdout.log").touch()


@pytest.fixture
def backend(tmp_path: Path) -> Limited:
    return Limited(tmp_path)


def dollars(amount: float) -> dict[str, float]:
    return {"input_tokens": 10, "output_tokens": 5, "cost_usd": amount}


def attempt(
    backend: Limited,
    usage: dict[str, float] | None,
    outcome: Outcome = Outcome.SUCCESS,
    role: str = "builder",
) -> str | None:
    """One attempt that comes to this; the id of its task."""
    queue = backend.open()
    claim = queue.claim(role, "me")
    if claim is None:
        return None
    backend.begin(claim.lease)
    backend.clock.step(1)
    queue.settle(claim.lease, Result(outcome, "note", usage=usage))
    return claim.lease.task_id


def why(backend: Limited, role: str = "builder") -> str:
    return "; ".join(pause.why for pause in backend.open().memory.pauses(role))


# --- nothing is set ------------------------------------------------------------------------------


def test_without_a_budget_a_claim_touches_no_ledger(
    backend: Limited, mocker: MockerFixture
) -> None:
    """It is neither read nor written; a settling adds what was spent, and no line for nothing."""
    looked, added = mocker.spy(Account, "look"), mocker.spy(spending, "append")
    attempt(backend, None)
    attempt(backend, {"input_tokens": 0, "output_tokens": 0})
    assert (looked.call_count, added.call_count, backend.ledger.exists()) == (0, 0, False)
    attempt(backend, dollars(0.5), Outcome.ERROR)
    assert looked.call_count == 0
    (line,) = backend.lines()
    assert line == {
        "what": "charged",
        "at": format_time(backend.clock.wall),
        "task": "T2",
        "role": "builder",
        "token": 1,
        "claimed": format_time(backend.clock.wall - 1),
        "outcome": "error",
        "usage": dollars(0.5),
    }


def test_a_ledger_that_is_unusable_costs_no_result(backend: Limited) -> None:
    """Nor a claim, where no budget is set."""
    backend.ledger.mkdir(parents=True)
    assert attempt(backend, dollars(1)) == "T0"
    assert backend.task("T0")["status"] == "awaiting_test"


# --- claiming ------------------------------------------------------------------------------------


def test_a_claim_reserves_the_attempts_limit(backend: Limited) -> None:
    """Five fit into a day's budget of five; each settled one leaves what it did not spend.

    Broken once by not adding the reservations of live attempts: all twenty were claimed.
    """
    backend.builder = Budget(attempt=Amounts(cost_usd=1.0), day=Amounts(cost_usd=5.0))
    queue = backend.open()
    claims = [queue.claim("builder", "me") for _ in range(7)]
    assert [bool(claim) for claim in claims] == [True] * 5 + [False] * 2
    (pause,) = queue.memory.pauses("builder")
    assert pause.why.endswith("is reserved by attempts that run")
    assert pause.passing
    first, second = claims[0], claims[1]
    assert first
    assert second
    queue.settle(first.lease, Result(Outcome.SUCCESS, usage=dollars(0.4)))
    assert queue.claim("builder", "me") is None
    queue.settle(second.lease, Result(Outcome.SUCCESS, usage=dollars(0.6)))
    assert queue.claim("builder", "me") is not None
    assert queue.claim("builder", "me") is None
    assert queue.claim("tester", "me") is not None  # the budget is the builder's own


def test_ignore_wip_ignores_no_budget(backend: Limited) -> None:
    """The one limit is of how many, the other of money."""
    backend.builder = Budget(day=Amounts(cost_usd=1.0))
    attempt(backend, dollars(1.0))
    assert backend.open().claim("builder", "me", ignore_wip=True) is None
    assert backend.open().claim("builder", "me", ignore_wip=True, dry_run=True) is None


def test_without_a_limit_of_its_own_it_reserves_the_costliest_of_late(backend: Limited) -> None:
    """Nothing for the first one: what it costs is not known before."""
    backend.builder = Budget(day=Amounts(cost_usd=10.0))
    attempt(backend, dollars(3.0))
    attempt(backend, dollars(1.0))
    queue = backend.open()
    assert queue.claim("builder", "me")
    assert queue.claim("builder", "me")
    assert queue.claim("builder", "me") is None  # 4 spent, 6 reserved
    assert [each["cost_usd"] for each in backend.lines() if each["what"] == "reserved"] == [
        *(0.0, 3.0, 3.0, 3.0)
    ]


def test_what_nothing_is_spent_of_has_room_for_any_one(backend: Limited) -> None:
    """Else an attempt that is reckoned dearer than the day's budget could never be made."""
    backend.builder = Budget(attempt=Amounts(tokens=9000), day=Amounts(tokens=5000))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    assert queue.claim("builder", "me") is None
    queue.settle(claim.lease, Result(Outcome.SUCCESS, usage={"input_tokens": 10}))
    assert queue.claim("builder", "me") is None
    backend.clock.step(DAY)
    assert queue.claim("builder", "me") is not None


def test_a_day_ends_at_midnight_utc(backend: Limited) -> None:
    """The role waits until then, is looked at again then, and says so."""
    backend.builder = Budget(day=Amounts(cost_usd=1.0))
    attempt(backend, dollars(1.5))
    queue, midnight = backend.open(), NOON + DAY / 2
    assert queue.claim("builder", "me") is None
    (pause,) = queue.memory.pauses("builder")
    assert (pause.kind, pause.until) == ("budget", midnight)
    assert pause.why == (
        "the day's budget of builder (1 USD) is spent: claims wait until 2026-12-14T00:00:00.000Z"
    )
    assert queue.next_time("builder", backend.clock.wall) == midnight
    backend.clock.step(midnight - 1 - backend.clock.wall)
    assert queue.claim("builder", "me") is None
    backend.clock.step(1)
    assert queue.memory.pauses("builder") == ()
    assert queue.claim("builder", "me") is not None


def test_a_total_waits_until_it_is_raised(backend: Limited) -> None:
    """No day ends it, no person's start does; a reading of the new config does."""
    backend.builder = Budget(total=Amounts(tokens=15))
    attempt(backend, dollars(1))
    queue = backend.open()
    backend.clock.step(40 * DAY)
    queue.memory.resume("builder")
    assert queue.claim("builder", "me") is None
    assert queue.memory.pauses("builder")[0].until is None
    assert queue.next_time("builder", backend.clock.wall) is None
    backend.builder = Budget(total=Amounts(tokens=100))
    assert attempt(backend, dollars(1)) is not None


def test_the_budget_of_all_roles_holds_for_each(backend: Limited) -> None:
    """What the builder has spent, the tester has not."""
    backend.common = Budget(day=Amounts(cost_usd=2.0))
    attempt(backend, dollars(1.9))
    assert attempt(backend, dollars(0.1), role="tester") == "T0"
    assert [attempt(backend, None, role=role) for role in ("builder", "tester")] == [None, None]
    assert "all roles" in why(backend, "integrator")


def test_what_several_roles_wait_for_is_one_topic(backend: Limited) -> None:
    """A process that serves them all tells it once. Broken once by a topic for each role."""
    backend.common = Budget(day=Amounts(cost_usd=2.0))
    attempt(backend, dollars(2.0))
    queue = backend.open()
    assert len({queue.memory.pauses(role)[0].topic for role in ("builder", "tester")}) == 1


def test_the_ledger_outlives_whoever_wrote_it(backend: Limited) -> None:
    """Another worker, another day, a hand-edited end: what was spent stays spent."""
    backend.builder = Budget(total=Amounts(cost_usd=3.0))
    attempt(backend, dollars(1.0))
    with backend.ledger.open("a") as file:
        file.write('nonsense\n{"what": "charged", "ta')
    attempt(backend, dollars(1.0))
    backend.clock.step(3 * DAY)
    attempt(backend, dollars(1.0))
    assert attempt(backend, dollars(1.0)) is None


@pytest.mark.parametrize("how", ["folder", "link", "full"])
def test_a_ledger_that_takes_no_line_lets_nobody_claim(
    backend: Limited, mocker: MockerFixture, how: str
) -> None:
    """The error says so; the task, its lease and its run folder are as before."""
    backend.builder = Budget(day=Amounts(cost_usd=1.0))
    before = backend.text()
    backend.ledger.parent.mkdir()
    if how == "folder":
        backend.ledger.mkdir()
    elif how == "link":
        backend.ledger.symlink_to("elsewhere")
    else:
        mocker.patch(
            "daemon.queue.spending.append",
            side_effect=durable.DiskError("cannot write", where=str(backend.ledger)),
        )
    with pytest.raises(RolecallError):
        backend.open().claim("builder", "me")
    assert backend.text() == before
    assert list((backend.folder / "leases").glob("*")) == []
    assert list((backend.folder / "runs").glob("T*")) == []
    if how in {"folder", "link"}:
        assert "spending ledger" in why(backend)
    assert backend.open().claim("integrator", "me") is None


# --- settling ------------------------------------------------------------------------------------


def test_a_price_makes_dollars_of_tokens(backend: Limited) -> None:
    """For a CLI that tells tokens and no cost."""
    backend.price, backend.builder = Price(10, 100), Budget(day=Amounts(cost_usd=1.0))
    attempt(backend, {"input_tokens": 50_000, "output_tokens": 5_000})
    assert backend.spent() == Amount(55_000, 1.0)
    assert attempt(backend, None) is None


def test_what_nobody_knows_is_charged_as_reserved(backend: Limited) -> None:
    """Where the agent ran; nothing where it did not, or could not be started."""
    backend.builder = Budget(attempt=Amounts(cost_usd=2.0))
    queue = backend.open()
    claims = [queue.claim("builder", "me") for _ in range(3)]
    ran, never, refused = (claim.lease for claim in claims if claim)
    backend.begin(ran)
    backend.begin(refused)
    queue.settle(ran, Result(Outcome.ERROR, "timed out"))
    queue.settle(never, Result(Outcome.RELEASED, "stopped"))
    queue.settle(refused, Result(Outcome.BLOCKED, "cannot be started", usage={}))
    assert backend.spent() == Amount(0, 2.0)
    assert backend.spent(task="T0") == Amount(0, 2.0)
    assert [each.get("estimated", False) for each in backend.lines()[3:]] == [True, False, False]
    assert backend.open().memory.pauses("builder") == ()  # an estimate breaks no limit


def test_zeros_of_a_run_that_was_cut_short_are_not_believed(backend: Limited) -> None:
    """A CLI that was killed tells no usage, and some records make a sum of nothing then."""
    backend.builder = Budget(attempt=Amounts(tokens=100))
    zeros = {"input_tokens": 0, "output_tokens": 0.0}
    attempt(backend, zeros, Outcome.THROTTLED)  # refused at once: that is believed
    assert backend.spent() == Amount()
    attempt(backend, zeros, Outcome.ERROR)
    assert backend.spent() == Amount(100, 0)


@pytest.mark.parametrize("agent", ["codex", "llm", "command"])
def test_zeros_of_work_that_was_done_are_a_server_that_tells_nothing(
    backend: Limited, agent: str
) -> None:
    """No model answers for no tokens; a command may do its work without one."""
    backend.builder, backend.agent = Budget(attempt=Amounts(tokens=100)), agent
    attempt(backend, {"input_tokens": 0, "output_tokens": 0})
    assert backend.spent() == Amount(0 if agent == "command" else 100, 0)
    attempt(backend, {"input_tokens": 0}, Outcome.BLOCKED)  # not logged in
    assert backend.spent() == Amount(0 if agent == "command" else 100, 0)


def test_a_lost_attempt_has_spent_all_the_same(backend: Limited) -> None:
    """A person moved its task: nothing is settled, and the money is gone."""
    backend.builder = Budget(total=Amounts(cost_usd=1.0))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    backend.change("T0", status="needs_manual", lease=None)
    with pytest.raises(RolecallError):
        queue.settle(claim.lease, Result(Outcome.SUCCESS, usage=dollars(1.0)))
    assert backend.spent() == Amount(15, 1.0)
    assert attempt(backend, None) is None


def test_an_attempt_that_died_is_charged_by_who_recovers_it(backend: Limited) -> None:
    """What it had reserved; and once, when it comes back to life and tells what it was."""
    backend.builder = Budget(attempt=Amounts(cost_usd=2.0))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    backend.begin(claim.lease)
    backend.clock.step(61)
    (stale,) = backend.open().stale()
    backend.open().recover(stale)
    assert backend.spent() == Amount(0, 2.0)
    with pytest.raises(RolecallError):
        queue.settle(claim.lease, Result(Outcome.SUCCESS, usage=dollars(0.5)))
    assert backend.spent() == Amount(15, 0.5)


def test_a_reservation_that_nobody_charged_stays_spent(backend: Limited) -> None:
    """Its lease is gone without a settling, its agent had begun: on the day that it was made.

    Broken once by dropping reservations without a lease.
    """
    backend.builder = Budget(attempt=Amounts(cost_usd=1.0), total=Amounts(cost_usd=2.0))
    queue = backend.open()
    begun, never = queue.claim("builder", "me"), queue.claim("builder", "me")
    assert begun
    assert never
    backend.begin(begun.lease)
    assert queue.claim("builder", "me") is None
    for claim in (begun, never):
        backend.lease_file(claim.lease.task_id).unlink()
        backend.change(claim.lease.task_id, status="needs_manual", lease=None)
    assert queue.claim("builder", "me") is not None
    assert queue.claim("builder", "me") is None


def test_a_settling_that_is_tried_again_adds_no_line(
    backend: Limited, mocker: MockerFixture
) -> None:
    """The queue's disk was full; the charge stood before that, and stands once."""
    backend.builder = Budget(total=Amounts(cost_usd=9.0))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    full = mocker.patch("daemon.queue.durable.put", side_effect=durable.DiskError("full"))
    for _ in range(3):
        with pytest.raises(durable.DiskError):
            queue.settle(claim.lease, Result(Outcome.SUCCESS, usage=dollars(1.0)))
    mocker.stop(full)
    queue.settle(claim.lease, Result(Outcome.SUCCESS, usage=dollars(1.0)))
    assert [each["what"] for each in backend.lines()] == ["reserved", "charged"]
    assert backend.task("T0")["status"] == "awaiting_test"


def test_a_charge_waits_for_the_disk_where_a_budget_needs_it(
    backend: Limited, mocker: MockerFixture
) -> None:
    """The result does as well: it is not settled before."""
    backend.builder = Budget(total=Amounts(cost_usd=9.0))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    full = mocker.patch("daemon.queue.spending.append", side_effect=durable.DiskError("full"))
    with pytest.raises(durable.DiskError):
        queue.settle(claim.lease, Result(Outcome.SUCCESS, usage=dollars(1.0)))
    assert backend.task("T0")["status"] == "in_progress"
    mocker.stop(full)
    queue.settle(claim.lease, Result(Outcome.SUCCESS, usage=dollars(1.0)))
    assert backend.spent() == Amount(15, 1.0)


def test_an_attempt_that_spends_more_than_twice_its_limit_parks_its_role(backend: Limited) -> None:
    """Its work stands. The role waits until a person starts its worker again, and says so."""
    backend.builder = Budget(attempt=Amounts(tokens=7, cost_usd=5.0))
    assert attempt(backend, dollars(1.0)) == "T0"
    assert backend.task("T0")["status"] == "awaiting_test"
    assert attempt(backend, None) is None
    backend.clock.step(9 * DAY)
    assert attempt(backend, None) is None
    told = why(backend)
    assert "on T0 (token 1) spent 15 tokens, its budget is 7 tokens: claims wait until" in told
    assert backend.open().next_time("builder", backend.clock.wall) is None
    backend.open().memory.resume("builder")
    assert attempt(backend, dollars(0.1)) == "T1"


def test_an_overrun_is_told_and_the_third_in_a_row_parks_the_role(backend: Limited) -> None:
    """A CLI that is told the limit overshoots it by a turn; one that kept to it begins anew.

    Broken once by parking at the first one: a hard task ended the night.
    """
    backend.builder = Budget(attempt=Amounts(cost_usd=1.0))
    attempt(backend, dollars(1.9))
    assert backend.told.moves[-1].why == "note; spent 1.9 USD, its budget is 1 USD"
    attempt(backend, dollars(1.9))
    attempt(backend, dollars(0.9))
    assert backend.told.moves[-1].why == "note"
    assert [attempt(backend, dollars(2.0)) for _ in range(4)] == ["T3", "T4", "T5", None]
    assert "(token 1) spent 2 USD, its budget is 1 USD, as 3 in a row did: claims" in why(backend)
    assert attempt(backend, None, role="tester") is not None


def test_a_retry_frees_a_role_that_an_attempt_parked(backend: Limited) -> None:
    """Of a task that waits for that role; the wait says so. No worker need be there."""
    backend.builder = Budget(attempt=Amounts(cost_usd=1.0))
    attempt(backend, dollars(9.0))
    assert "or invoke queue.retry ID of a task that waits for builder" in why(backend)
    assert asking.retry(backend.open(), "T0", "ann").roles == ()
    assert attempt(backend, None) is None
    assert asking.retry(backend.open(), "T1", "ann").roles == ("builder",)
    assert attempt(backend, None) == "T1"


def test_first_attempts_of_unknown_cost_run_one_at_a_time(backend: Limited) -> None:
    """They cannot overrun a budget together: the second waits for what the first one tells.

    Broken once by reserving nothing for each of them: all were claimed.
    """
    backend.builder = Budget(day=Amounts(cost_usd=5.0))
    queue = backend.open()
    first = queue.claim("builder", "me")
    assert first is not None
    assert queue.claim("builder", "me") is None
    (pause,) = queue.memory.pauses("builder")
    assert (pause.passing, "is not known yet" in pause.why) == (True, True)
    queue.settle(first.lease, Result(Outcome.SUCCESS, usage=dollars(2.0)))
    assert queue.claim("builder", "me") is not None
    assert queue.claim("builder", "me") is None  # 2 spent, 2 reserved


def test_an_agent_that_tells_nothing_waits_for_its_first_attempt_only(
    backend: Limited, tmp_path: Path
) -> None:
    """Then it is known that nothing can be known; a merge without an agent waits for nobody."""
    backend.common = Budget(day=Amounts(cost_usd=5.0))
    attempt(backend, None)
    queue = backend.open()
    assert queue.ledger.budgets.books({}).untried >= {"tester"}
    merging = Limited(tmp_path / "merging", merge=True)
    merging.agent = None
    assert merging.open().ledger.budgets.books({}).untried == frozenset()
    claims = [queue.claim("builder", "me") for _ in range(3)]
    assert all(claims)


# --- a task's own budget -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "back"),
    [(Outcome.ERROR, "ready"), (Outcome.SUCCESS, "awaiting_test")],
)
def test_a_task_that_has_spent_its_budget_waits_for_a_person(
    backend: Limited, outcome: Outcome, back: str
) -> None:
    """What was done is kept: a retry goes on from there, when the budget was raised.

    Broken once by asking before the charge was written.
    """
    backend.common = Budget(task=Amounts(cost_usd=1.0))
    attempt(backend, dollars(1.0), outcome)
    task = backend.task("T0")
    assert (task["status"], task["parked_from"]) == ("needs_manual", back)
    assert (
        task["last_error"]
        == "budget: the task's budget of all roles (1 USD) is spent: claims wait until it is raised"
    )
    assert (task.get("not_before"), task["lease"], task.get("attempts", 0)) == (None, None, 0)
    assert attempt(backend, dollars(0.1)) == "T1"
    assert backend.told.moves[-1].target == "awaiting_test"


def test_work_that_ends_the_task_ends_it(backend: Limited) -> None:
    """There is nothing left to be claimed: it is done."""
    backend.common = Budget(task=Amounts(cost_usd=1.0))
    backend.change("T0", status="ready_for_integrator")
    attempt(backend, dollars(5.0), role="integrator")
    assert backend.task("T0")["status"] == "done"


def test_a_task_without_room_is_passed_over(backend: Limited) -> None:
    """By those whose budget of it is spent; a released one goes back all the same."""
    backend.builder = Budget(task=Amounts(tokens=15))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    queue.settle(claim.lease, Result(Outcome.RELEASED, "stopped", usage=dollars(0.1)))
    assert backend.task("T0")["status"] == "ready"
    assert queue.memory.spent("builder", ["T0", "T1"]).keys() == {"T0"}
    assert attempt(backend, None) == "T1"


# --- who acts on it ------------------------------------------------------------------------------


def test_a_worker_reads_only_what_was_added(backend: Limited, mocker: MockerFixture) -> None:
    """Each claim of the same worker, however long the ledger."""
    backend.builder = Budget(total=Amounts(cost_usd=1e6))
    for token in range(1, 500):
        line = {"what": "charged", "at": format_time(NOON), "task": "T19", "role": "builder"}
        line |= {"token": token, "usage": dollars(1)}  # type: ignore[dict-item]
        spending.append(str(backend.ledger), line, sync=False)
    queue = backend.open()
    assert queue.claim("builder", "me")
    parsed = mocker.spy(spending, "parse")
    assert queue.claim("builder", "me")
    assert parsed.call_count == 1  # its own reservation before


def test_an_attempt_settles_without_reading_the_ledger(
    backend: Limited, mocker: MockerFixture
) -> None:
    """Unless a task's own budget has to be judged by it."""
    backend.builder = Budget(day=Amounts(cost_usd=1e6))
    claim = backend.open().claim("builder", "me")
    assert claim is not None
    looked = mocker.spy(Account, "look")
    attempts_own: FileQueue = backend.open()
    attempts_own.settle(claim.lease, Result(Outcome.SUCCESS, usage=dollars(1)))
    assert looked.call_count == 0
    assert os.stat(backend.ledger).st_mode & 0o777 == 0o600
