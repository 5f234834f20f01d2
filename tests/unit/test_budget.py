"""``invoke budget``, and where else a person meets budgets and waits: lists, checks, the doctor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from daemon import agents
from daemon.config import Amounts, Budget, Price
from daemon.errors import RolecallError
from daemon.fleet import board, budget, doctor
from daemon.fleet.board import Board
from daemon.fleet.output import Style
from daemon.model import Outcome, Result, format_time
from tests.queues import FileBackend
from tests.unit.test_budgets import Limited, attempt, dollars

PLAIN = Style()


@pytest.fixture
def backend(tmp_path: Path) -> Limited:
    """Twenty ready tasks, at noon."""
    return Limited(tmp_path)


def told(backend: Limited, **how: Any) -> tuple[dict[str, Any], str]:
    report = budget.look(backend.config, clock=lambda: backend.clock.wall, **how)
    return json.loads(json.dumps(budget.facts(report))), budget.text(report, PLAIN)


def test_an_empty_ledger_tells_nothing(tmp_path: Path) -> None:
    """Nor a missing queue: there is no error."""
    backend = FileBackend(tmp_path)
    report = budget.look(backend.config)
    assert budget.text(report, PLAIN) == "nothing spent"
    assert budget.facts(report)["days"] == []
    with pytest.raises(RolecallError, match="did you mean"):
        budget.look(backend.config, "buildr")


def test_what_was_spent_is_shown_by_role_day_and_task(backend: Limited) -> None:
    """With what of it is estimated, and what is reserved by attempts that run."""
    backend.builder = Budget(attempt=Amounts(cost_usd=2.0), day=Amounts(cost_usd=5.0))
    attempt(backend, dollars(0.5))
    attempt(backend, None, Outcome.ERROR)
    attempt(backend, {"input_tokens": 1234, "output_tokens": 0}, role="tester")
    backend.open().claim("builder", "me")
    facts, text = told(backend)
    today = format_time(backend.clock.wall)[:10]
    roles = {each["role"]: each for each in facts["roles"]}
    assert roles["builder"] == {
        "role": "builder",
        "tokens": 30,
        "cost_usd": 2.5,
        "estimated": {"tokens": 15, "cost_usd": 2.0},
        "reserved": {"tokens": 15, "cost_usd": 2.0},
    }
    assert roles["tester"]["tokens"] == 1234
    assert [(each["day"], each["tokens"], each["cost_usd"]) for each in facts["days"]] == [
        (today, 1264, 2.5)
    ]
    assert [each["task"] for each in facts["tasks"]] == ["T1", "T0"]
    limits = {(each["kind"], each["role"]): each for each in facts["limits"]}
    assert limits["day", "builder"] == {
        "kind": "day",
        "role": "builder",
        "unit": "cost_usd",
        "limit": 5.0,
        "spent": 2.5,
        "reserved": 2.0,
        "left": 0.5,
    }
    assert limits["attempt", "builder"]["left"] is None
    assert "day of builder      USD  5.00   2.50   2.00      0.50" in text
    assert "1,264" in text
    only, _ = told(backend, role="tester")
    assert [each["role"] for each in only["roles"]] == ["tester"]
    assert [each["task"] for each in only["tasks"]] == ["T0"]


def test_days_are_the_latest_ones(backend: Limited) -> None:
    """As many as are asked for; the sums by task are of all time."""
    backend.clock.step(-86400 * 3)
    attempt(backend, dollars(1))
    backend.clock.step(86400 * 3)
    attempt(backend, dollars(2))
    assert [each["cost_usd"] for each in told(backend, days=1)[0]["days"]] == [2]
    assert [each["cost_usd"] for each in told(backend, days=7)[0]["days"]] == [2, 1]
    assert len(told(backend, days=1)[0]["tasks"]) == 2


def test_what_a_dead_attempt_left_counts_once(backend: Limited) -> None:
    """Its reservation, as an estimate, in every sum and in no pause twice."""
    backend.builder = Budget(attempt=Amounts(cost_usd=2.0), total=Amounts(cost_usd=5.0))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    backend.begin(claim.lease)
    backend.lease_file("T0").unlink()
    backend.change("T0", status="cancelled", lease=None)
    facts, _ = told(backend)
    assert [each["cost_usd"] for each in facts["tasks"]] == [2.0]
    total = next(each for each in facts["limits"] if each["kind"] == "total")
    assert (total["spent"], total["left"]) == (2.0, 3.0)
    assert facts["parked"] == []


def test_a_parked_role_is_named(backend: Limited) -> None:
    """With why, and until when; lines of nobody are counted."""
    backend.builder = Budget(day=Amounts(cost_usd=1.0))
    attempt(backend, dollars(1.5))
    with backend.ledger.open("a") as file:
        file.write("what is this\n")
    facts, text = told(backend)
    (parked,) = facts["parked"]
    assert (parked["role"], parked["until"][10:]) == ("builder", "T00:00:00.000Z")
    assert "builder: the day's budget of builder (1 USD) is spent" in text
    assert f"1 lines of {backend.ledger} say nothing" in text


def test_a_ledger_that_cannot_be_used_is_an_error(backend: Limited) -> None:
    """With what to look at."""
    backend.ledger.mkdir(parents=True)
    with pytest.raises(RolecallError, match="spending ledger"):
        budget.look(backend.config)


# --- where else ----------------------------------------------------------------------------------


def standing(backend: FileBackend, task_id: str) -> tuple[str, str]:
    wait = Board(backend.config).find(task_id)
    return wait.kind, wait.why


def test_a_task_tells_that_it_waits_for_a_budget(backend: Limited) -> None:
    """Its role's, or its own."""
    backend.builder = Budget(task=Amounts(cost_usd=1.0))
    attempt(backend, dollars(1.0), Outcome.ERROR)
    backend.change("T0", status="ready", not_before=None)
    kind, why = standing(backend, "T0")
    assert kind == "budget"
    assert why == "the task's budget of builder (1 USD) is spent: claims wait until it is raised"
    assert standing(backend, "T1")[0] == "claimable"
    backend.builder = Budget(total=Amounts(cost_usd=1.0))
    kind, why = standing(backend, "T1")
    assert (kind, why) == (
        "budget",
        (
            "builder is paused: the total budget of builder (1 USD) is spent: "
            "claims wait until it is raised"
        ),
    )
    assert "T1" in board.listing(
        Board(backend.config), Board(backend.config).pick(kind="budget"), PLAIN
    )


def test_a_task_tells_that_it_waits_for_a_credential(tmp_path: Path) -> None:
    """The throttled one, and every other of that credential."""
    backend = FileBackend(tmp_path, credential="anthropic", wip_limit=5)
    backend.fill(*({"id": f"T{i}", "status": "ready"} for i in range(2)))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    queue.settle(claim.lease, Result(Outcome.THROTTLED, "usage limit", retry_after=600))
    for task_id in ("T0", "T1"):
        kind, why = standing(backend, task_id)
        assert kind == "credential"
        assert why.startswith("waits for credential anthropic until 2")
        assert why.endswith(": usage limit")
    now = Board(backend.config, now=backend.clock.wall)
    told = board.check(now, PLAIN)
    assert "usage limit (in 10m 0s) -> at once: invoke queue.retry T1" in told
    assert {wip.role: wip.claimable for wip in now.standing.wips}["builder"] == 0
    assert "usage limit (in 10m 0s)\n" in board.listing(now, now.standing.waits, PLAIN) + "\n"


def test_of_several_waits_the_longest_is_told(tmp_path: Path) -> None:
    """A credential's ten minutes end before a total budget does; so does a task's own backoff."""
    backend = Limited(tmp_path, credential="anthropic")
    backend.clock.wall = time.time()  # the board's own
    backend.builder = Budget(total=Amounts(cost_usd=1.0))
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    limited = Result(Outcome.THROTTLED, "usage limit", retry_after=600, usage=dollars(2.0))
    queue.settle(claim.lease, limited)
    for task_id in ("T0", "T1"):
        kind, why = standing(backend, task_id)
        assert (kind, why.startswith("builder is paused: the total budget")) == ("budget", True)
    assert "raise it in the inventory" in board.check(Board(backend.config), PLAIN)


def test_the_budget_says_where_a_limit_does_not_hold(backend: Limited) -> None:
    """An agent that tells no cost, and has no price: a limit in dollars counts nothing of it."""
    backend.builder = Budget(day=Amounts(cost_usd=5.0))
    config = backend.config
    builder = config.roles["builder"]._replace(agent="codex")
    config = config._replace(roles={**config.roles, "builder": builder})
    report = budget.look(config, clock=lambda: backend.clock.wall)
    assert "builder: Codex tells no cost: each attempt counts" in budget.text(report, PLAIN)
    assert [each["role"] for each in budget.facts(report)["uncounted"]] == ["builder"]
    assert told(backend)[0]["uncounted"] == []


def test_the_doctor_knows_what_agents_tell(backend: Limited) -> None:
    """A budget in dollars needs a price of one that tells tokens alone.

    One that tells nothing needs a limit for each attempt, which is then what each counts for.
    """

    def found(agent: str, **role: Any) -> list[str]:
        builder = backend.config.roles["builder"]._replace(**role)
        return [each.what for each in doctor.budget(backend.config, builder, agents.find(agent))]

    dollars, tokens = Budget(day=Amounts(cost_usd=1.0)), Budget(day=Amounts(tokens=1))
    assert found("claude", budget=dollars) == found("codex", budget=tokens) == []
    assert found("codex", budget=dollars) == [
        "Codex tells no cost: each attempt counts as what it has reserved"
    ]
    assert found("codex", budget=dollars, price=Price(1, 2)) == []
    assert len(found("crush", budget=dollars)) == len(found("crush", budget=tokens)) == 1
    assert len(found("crush", budget=dollars, price=Price(1, 2))) == 1
    assert found("crush", budget=dollars._replace(attempt=Amounts(cost_usd=0.2))) == []
    assert found("command", budget=dollars) == []
    backend.common = dollars
    assert len(found("codex")) == 1
    assert found("claude") == []
