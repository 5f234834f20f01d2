"""A day on which there is nothing to do costs nothing: no agent, no money, no log line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from daemon.config import Amounts, Budget, Config
from daemon.launch import Child
from daemon.log import Log
from daemon.model import Claim, Outcome, Result, format_time
from daemon.queue import spending, throttle
from daemon.queue.file import FileQueue
from daemon.service import Notifier
from daemon.wake import Signals, Watch
from daemon.worker import Mode, Worker
from tests.queues import FileBackend

DAY = 86400.0
MORNING = 20_800 * DAY + 1  # a second past midnight, UTC
READY = [{"id": f"T{i}", "status": "ready"} for i in range(3)]


class Nobody(Signals):
    """No signal comes."""

    def __init__(self) -> None:
        self.fd = -1

    def taken(self) -> list[Any]:
        return []


class Sleeper(Worker):
    """A worker whose nights are short: a sleep steps the clock to the next look, for one day."""

    clock: Any
    until = 0.0
    looks = 0
    at_first: Callable[[], None] = staticmethod(lambda: None)

    def look(self) -> None:
        self.looks += 1
        super().look()

    def sleep(self) -> None:
        if self.looks == 1:
            self.at_first()
        self.clock.step(max(0.001, self.next_look() - time.monotonic()))
        if self.clock.wall >= self.until and self.stop_at is None:
            self.stop()


def nobody_starts(config: Config, claim: Claim, environ: Mapping[str, str], unit_log: str) -> Child:
    raise AssertionError(f"an agent was started on {claim.lease.task_id}")


def live_a_day(backend: FileBackend, mocker: MockerFixture, first: Callable[[], None]) -> Sleeper:
    """Serve from the backend's time on until the next day is about to begin."""
    config, clock, logs = backend.config, backend.clock, backend.folder / "logs"
    mocker.patch("time.monotonic", side_effect=lambda: clock.boot)
    mocker.patch("time.time", side_effect=lambda: clock.wall)
    log = Log(str(logs), "builder", "me", form="none")
    queue = FileQueue(
        config, clock=lambda: clock.wall, boottime=lambda: clock.boot, teller=log, random=lambda: 1
    )
    worker = Sleeper(
        config,
        ["builder"],
        queue,
        log,
        mode=Mode(),
        owner=lambda _: "me",
        notifier=Notifier(),
        signals=Nobody(),
        watch=Watch(config.queue_file, config.paths.leases),
        environ={},
        reload=lambda: (config, queue),
        start=nobody_starts,
    )
    worker.clock, worker.until, worker.at_first = clock, clock.wall + DAY - 10, first
    assert worker.serve() == 0
    worker.watch.close()
    mocker.stopall()
    return worker


def events(backend: FileBackend) -> list[str]:
    """What was logged, but for the beginning and the end."""
    lines = (backend.folder / "logs" / "builder.log").read_text().splitlines()
    assert lines[0].endswith("started")
    assert lines[-2].split(" ", 2)[2].startswith("stopping")
    return lines[1:-2]


def spend(backend: FileBackend, queue: FileQueue) -> None:
    """One attempt that costs a dollar."""
    claim = queue.claim("builder", "me")
    assert claim is not None
    used = {"input_tokens": 10, "output_tokens": 5, "cost_usd": 1.0}
    queue.settle(claim.lease, Result(Outcome.SUCCESS, usage=used))


@pytest.mark.parametrize(
    ("tasks", "budget"),
    [([], Budget()), ([{"id": "T", "status": "done"}], Budget(day=Amounts(cost_usd=1.0)))],
    ids=["empty", "done"],
)
def test_a_worker_idle_for_a_day_starts_no_agent_and_spends_nothing(
    tmp_path: Path, mocker: MockerFixture, tasks: list[Any], budget: Budget
) -> None:
    """1,440 looks, a minute apart: nothing is started, written or said.

    Broken once by a log line in Worker.look, and once by a queue with a ready task.
    """
    backend = FileBackend(tmp_path, budget=budget, interval=60.0, credential="anthropic")
    backend.clock.wall = MORNING
    backend.fill(*tasks)
    before = backend.text()
    worker = live_a_day(backend, mocker, lambda: None)
    assert worker.looks >= 1440
    assert events(backend) == []
    assert backend.text() == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("why", ["throttled", "day", "total", "overspent"])
def test_a_role_that_waits_for_a_day_starts_no_agent_and_says_so_once(
    tmp_path: Path, mocker: MockerFixture, why: str
) -> None:
    """Tasks are ready all day long; the wait is told once, the ledger stays as it is."""
    backend = FileBackend(
        tmp_path,
        wip_limit=9,
        interval=60.0,
        credential="anthropic",
        budget={
            "throttled": Budget(),
            "day": Budget(day=Amounts(cost_usd=1.0)),
            "total": Budget(total=Amounts(tokens=15)),
            "overspent": Budget(attempt=Amounts(cost_usd=0.4)),
        }[why],
    )
    backend.clock.wall = MORNING
    backend.fill(*READY)
    queue, runs = backend.open(), str(tmp_path / "runs")
    if why == "throttled":
        (tmp_path / "runs").mkdir()
        now = backend.clock.wall
        throttle.write(runs, "anthropic", throttle.State(now + 2 * DAY, 1, now, "usage limit"))
    elif why != "overspent":
        spend(backend, queue)
    else:
        backend.fill()  # the worker's own start ends such a wait: it overspends behind that
    ledger = tmp_path / "runs" / spending.NAME

    def first() -> None:
        if why == "overspent":
            backend.fill(*READY)
            spend(backend, queue)
        seen.append(ledger.read_bytes() if ledger.exists() else b"")

    seen: list[bytes] = []
    worker = live_a_day(backend, mocker, first)
    assert worker.looks >= 1440
    (line,) = events(backend)
    told = {
        "throttled": f"waits for credential anthropic until {format_time(MORNING + 2 * DAY)}",
        "day": "the day's budget of builder (1 USD) is spent",
        "total": "the total budget of builder (15 tokens) is spent",
        "overspent": "claims wait until the worker is started again",
    }
    assert told[why] in line
    assert seen == [ledger.read_bytes() if ledger.exists() else b""]
