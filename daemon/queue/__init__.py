"""Where tasks live: what every kind of queue does, whatever it is kept in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from daemon.config import Config
from daemon.index import Tasks
from daemon.lifecycle import Machine
from daemon.model import Claim, Lease, Move, Result
from daemon.process import Identity

if TYPE_CHECKING:
    from daemon.queue.memory import Memory
    from daemon.queue.transfer import Imported
    from daemon.queue.update import Update


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


class Waker(Protocol):
    """Tells that the queue may have changed: ``fd`` is readable then; -1 where nothing tells."""

    @property
    def fd(self) -> int:
        """What to poll. It may be another one after each call of ``renew`` or ``changed``."""

    def renew(self) -> None:
        """Listen where nobody listens yet, or no more. Never raises for a queue that is away."""

    @property
    def pending(self) -> bool:
        """Whether ``changed`` has something to tell that ``fd`` does not show any more."""

    def changed(self) -> bool:
        """Whether something that matters came since the last call. Never blocks."""

    def close(self) -> None:
        """Listen no more."""


class Queue(Protocol):
    """What workers, attempts and people's commands ask of a queue.

    ``clock`` is this host's wall time. ``memory`` is what is remembered on this host of roles and
    credentials. Whatever asks a server raises QueueUnreachable while it does not answer.
    """

    config: Config
    machine: Machine
    memory: Memory
    clock: Callable[[], float]

    @property
    def me(self) -> Identity:
        """Who claims: this process, also after a fork."""

    @property
    def name(self) -> str:
        """The queue for a person: the path of a file, else the URL."""

    def exists(self) -> bool:
        """Whether there is a queue, readable or not."""

    def watch(self, roles: Collection[str]) -> Waker:
        """What wakes a worker of these roles; it is the caller's to close."""

    def close(self) -> None:
        """Let go of what is open. The queue is not asked any more."""

    def snapshot(self, only: Collection[str] | None = None) -> Snapshot:
        """Everything as it is now, without a lock. Raises QueueUnreadable.

        ``only``: it is these ids that matter. A database leaves all other tasks out, and what
        stands in these.
        """

    def count(self, statuses: Collection[str]) -> int:
        """How many tasks are in any of these statuses. Raises QueueUnreadable."""

    def has_children(self, task_id: str) -> bool:
        """Whether any task names this one as its parent, or stands in it."""

    def last_number(self) -> int:
        """The largest number in an id of ours (T001, T002, ...); 0 where there is none."""

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

    def rehearse(self) -> None:
        """Try whether a settling could be written. Raises DiskError where our disk takes none."""

    def read_lease(self, task_id: str) -> Lease | None:
        """The task's lease as it is now, live or not. Raises RolecallError for what is none."""

    def gone(self, lease: Lease) -> str:
        """Whether the lease's attempt is gone, and why; "" while it is live."""

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

    def update(
        self, change: Callable[[Update], None], only: Collection[str] | None = None
    ) -> tuple[Move, ...]:
        """Make a person's change on what the queue holds then, and what follows by itself.

        ``only``: what ``change`` looks at, as ``snapshot`` has it.
        ``change`` may be called again, on newer tasks; ``read_lease``, ``gone`` and ``ask`` may be
        called in it. What it raises leaves all as it was.
        """

    def ask(self, lease: Lease, wish: str, who: str) -> Lease:
        """The lease with a person's wish, written into it, where it is still there."""

    def export(self) -> bytes:
        """The queue as JSON, as ``load`` takes it. Raises RolecallError where there is none."""

    def load(self, data: bytes, name: str, *, replace: bool = False) -> Imported:
        """Take the tasks of another queue's text in; all of them, or none where one is refused.

        ``name`` is the text's, for errors. A queue without tasks becomes the text as a whole, and
        so does any with ``replace``, unless an attempt is on one of its tasks. Else tasks of new
        ids are added behind the others, and those whose ids are known have to be equal.
        """

    def signature(self) -> tuple[int, ...] | None:
        """Differs from an earlier one when the queue has changed; None where nothing tells."""

    def next_time(self, role: str, now: float) -> float | None:
        """When to look again though nothing changes."""

    def look(self) -> AbstractContextManager[None]:
        """One look of a worker: what is read for it is read once, and not kept beyond it."""
