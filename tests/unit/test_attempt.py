"""What an attempt leaves as its verdict, and from when on it counts its lease."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.attempt import Attempt
from daemon.brief import Brief, Stop
from daemon.errors import LeaseLost
from daemon.log import Log
from daemon.model import Lease, Move, Outcome, Result
from daemon.queue import Queue as AnyQueue
from tests.queues import FileBackend


class Silent:
    """A log, and a wish to stop that nobody has."""

    fd = -1

    def say(self, *_: object) -> None: ...

    def once(self, *_: object) -> None: ...

    def asked(self) -> bool:
        return False

    def heed(self, _lease: Lease) -> None: ...


class SlowQueue:
    """It notes when a renewal has reached it, and answers later."""

    reached = 0.0

    def take_over(self, lease: Lease, *_: object) -> Lease:
        return self.renew(lease)

    def renew(self, lease: Lease, _sessions: Sequence[int] = ()) -> Lease:
        self.reached = time.monotonic()
        while time.monotonic() == self.reached:
            pass
        return lease


class Queue:
    """What the queue makes of any result."""

    def __init__(self, outcome: Outcome, why: str = "") -> None:
        self.made, self.why = outcome, why

    def take_over(self, lease: Lease, *_: object) -> Lease:
        return lease

    def settle(self, lease: Lease, _result: Result) -> tuple[Move, ...]:
        if self.made is Outcome.LOST:
            raise LeaseLost("T1 had a later attempt")
        other = Move("T2", "", "blocked", "ready", "", outcome="")
        own = Move(lease.task_id, "builder", "in_progress", "x", self.why, outcome=self.made)
        return (own, other)


def attempt_on(folder: Path, queue: Queue | SlowQueue) -> Attempt:
    """An attempt of the builder with a queue that is not one."""
    lease = Lease("T1", "builder", "me", "", 60.0, "", token=3)
    run = str(folder / "run")
    brief = Brief(FileBackend(folder).config, lease, {"id": "T1"}, run, {}, "", "")
    silent: Any = Silent()
    return Attempt(brief, cast("AnyQueue", queue), cast("Log", silent), cast("Stop", silent))


@pytest.mark.parametrize(
    ("queue", "outcome", "note"),
    [
        (Queue(Outcome.BLOCKED), "blocked", "role builder has no agent"),
        (Queue(Outcome.RELEASED, "cancelled by me"), "released", "cancelled by me"),
        (Queue(Outcome.ERROR, "add_tasks: x"), "error", "add_tasks: x"),
        (Queue(Outcome.LOST), "lost", "T1 had a later attempt"),
    ],
)
def test_the_verdict_is_what_the_queue_made_of_it(
    tmp_path: Path, queue: Queue, outcome: str, note: str
) -> None:
    """It is kept before settling, so that the next attempt finds it, and put right behind it.

    Broken once by leaving it: an attempt that was lost stood there as a success.
    """
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text('{"outcome": "rejected", "note": "mine"}')
    attempt = attempt_on(tmp_path, queue)
    assert attempt.run() is Outcome(outcome)
    found = json.loads((run / "result.json").read_text())
    assert (found["outcome"], found["note"], found["token"]) == (outcome, note, 3)
    assert found["claimed"] == {"outcome": "rejected", "note": "mine"}


@pytest.mark.parametrize("step", [Attempt.take_over, Attempt.tick])
def test_a_lease_counts_from_when_its_renewal_was_sent(
    tmp_path: Path, step: Callable[[Attempt], object]
) -> None:
    """The queue wrote it before it answered: who counts from the answer ends its tree too late.

    Broken once by taking the time behind the call, in each of the two.
    """
    queue = SlowQueue()
    attempt = attempt_on(tmp_path, queue)
    attempt.renewed = 0.0
    step(attempt)
    assert 0.0 < attempt.renewed <= queue.reached
