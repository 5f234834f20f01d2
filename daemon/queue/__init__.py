"""Where tasks live: what every kind of queue does, whatever it is kept in."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from daemon.index import Tasks
from daemon.model import Claim, Lease, Move, Result
from daemon.process import Identity
from daemon.queue.breaker import State


class Stale(NamedTuple):
    """A lease whose attempt is gone, and why.

    ``died``: its process ended. ``expired``: nobody renewed it. ``vanished``: the task is held,
    its lease file is gone (``lease`` is then rebuilt from the task). ``orphan``: the lease of no
    held task; only the lease itself is to be removed.
    """

    lease: Lease
    task_id: str
    why: str


class Pause(NamedTuple):
    """Why a role claims nothing for a while. ``until`` None: until a person acts.

    ``kind`` is paused (the circuit breaker), credential or budget; ``topic`` says whose, so that
    what several roles wait for is told once. ``passing``: it ends with the attempts that run, and
    nobody need be told.
    """

    kind: str
    topic: str
    why: str
    until: float | None
    passing: bool = False

    @property
    def lasts(self) -> float:
        """Orders pauses by how long they last; of several the longest is the one to tell."""
        if self.passing:
            return 0.0
        return math.inf if self.until is None else self.until


class Snapshot(NamedTuple):
    """The queue at one moment: its tasks, its own WIP limits, and the live leases by task id.

    ``barred``: why nobody may claim a task that has no live lease, by task id.
    """

    tasks: Tasks
    wip_limits: object
    leases: dict[str, Lease]
    barred: dict[str, str]


class Queue(Protocol):
    """What workers, attempts and people's commands ask of a queue."""

    def snapshot(self) -> Snapshot:
        """Everything as it is now, without a lock. Raises QueueUnreadable."""

    def claim(
        self, role: str, owner: str, *, ignore_wip: bool = False, dry_run: bool = False
    ) -> Claim | None:
        """Win the role's next task, or None. A dry run writes nothing."""

    def problems(self) -> tuple[str, ...]:
        """What was found wrong with single tasks and leases at the last look, for a person."""

    def take_over(self, lease: Lease, me: Identity, unit: str = "") -> Lease:
        """Make the lease the attempt's own. Raises LeaseLost."""

    def renew(self, lease: Lease, sessions: Sequence[int] = ()) -> Lease:
        """Prolong the lease by its time to live. Raises LeaseLost."""

    def settle(self, lease: Lease, result: Result) -> tuple[Move, ...]:
        """Write what the attempt came to and end the lease. Raises LeaseLost."""

    def stale(self) -> list[Stale]:
        """The leases whose attempts are gone."""

    def recover(self, stale: Stale) -> tuple[Move, ...]:
        """Settle for an attempt that is gone; its process tree has been killed before."""

    def abandoned(self) -> list[Lease]:
        """The live leases of this host whose tasks a person has moved or removed."""

    def live(self, role: str | None = None, host: str | None = None) -> list[Lease]:
        """The live leases (of a role, of a host)."""

    def add(self, tasks: list[dict[str, Any]]) -> tuple[Move, ...]:
        """Append new tasks. Raises RolecallError with what is wrong with them."""

    def breaker(self, role: str) -> State:
        """What is known of the role's quick failures on this host."""

    def pauses(self, role: str) -> tuple[Pause, ...]:
        """Everything for which the role claims nothing now."""

    def spent(self, role: str, task_ids: Collection[str]) -> dict[str, str]:
        """Those of the tasks that their own budget lets the role not claim, and why."""

    def resume(self, role: str) -> None:
        """A person has done something about it: what a person is waited for is forgotten."""

    def end_wait(self, credential: str) -> None:
        """Forget that a credential met its limit: a person wants it tried."""

    def signature(self) -> tuple[int, ...] | None:
        """Differs from an earlier one when the queue has changed; None where there is none."""

    def next_time(self, role: str, now: float) -> float | None:
        """When to look again though nothing changes."""

    def rest(self) -> None:
        """Give back the memory that only the next look would need."""
