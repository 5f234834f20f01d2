"""Plain values that everything else passes around. No I/O.

NamedTuples rather than dataclasses: ``dataclasses`` imports ``inspect``, which costs every attempt
some milliseconds of its start.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, TypeGuard

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class Outcome(StrEnum):
    """What an attempt came to."""

    SUCCESS = "success"
    REJECTED = "rejected"
    ERROR = "error"
    THROTTLED = "throttled"
    BLOCKED = "blocked"
    RELEASED = "released"
    LOST = "lost"


class Result(NamedTuple):
    """An outcome and what came with it; made by the executor and the attempt, read by settle.

    ``status`` is the status the agent asks for (a claim, checked by lifecycle), ``retry_after``
    seconds, ``add_tasks`` new tasks in the queue's own form, ``changes`` further keys of the task
    to write (``branch``), ``session`` what the agent's CLI calls the conversation, ``gate`` the
    number of the gate that did not pass (0 for none). ``denied``: the agent could not work at all,
    for want of a login, say: no task's fault, so that others need not meet it. ``usage`` is what
    the agent has spent: None where nobody knows, empty where that is nothing.
    """

    outcome: Outcome
    note: str = ""
    status: str | None = None
    retry_after: float | None = None
    add_tasks: tuple[dict[str, Any], ...] = ()
    artifacts: tuple[str, ...] = ()
    usage: Mapping[str, float] | None = None
    changes: Mapping[str, Any] | None = None
    session: str = ""
    gate: int = 0
    denied: bool = False


class Lease(NamedTuple):
    """The exclusive, expiring, fenced right to make an attempt: DESIGN's fields, in file order.

    Times are RFC 3339 in UTC. ``heartbeat_boottime`` is CLOCK_BOOTTIME in seconds, which a stepped
    wall clock does not move; it counts where ``boot_id`` is the reader's own. ``unit`` is the
    transient systemd unit of the attempt ("" where there is none), ``sessions`` the session ids
    that its tree was seen in. ``wish`` is what a person asks of the attempt ("cancel", "release",
    or ""), ``wished_by`` who.
    """

    task_id: str
    role: str
    owner: str
    started_at: str
    ttl_seconds: float
    heartbeat_at: str
    token: int = 0
    attempt: int = 1
    host: str = ""
    machine_id: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    pid_started: int = 0
    heartbeat_boottime: float = 0.0
    unit: str = ""
    sessions: tuple[int, ...] = ()
    wish: str = ""
    wished_by: str = ""

    @property
    def wish_in_words(self) -> str:
        """What a person asked of the attempt, for logs; "" for nothing that can be done."""
        return wish_in_words(self.wish, self.wished_by) if self.wish in WISHES else ""


WISHES = {"cancel": "cancelled", "release": "released"}


def wish_in_words(wish: str, who: str) -> str:
    """What a person asked, as logs tell it."""
    return f"{WISHES[wish]} by {who or 'a person'}"


class Move(NamedTuple):
    """One state change, as events and logs tell it. ``seconds``: how long the attempt took."""

    task_id: str
    role: str
    source: str
    target: str
    why: str
    outcome: str = ""
    attempt: int = 0
    token: int = 0
    seconds: float | None = None


class Claim(NamedTuple):
    """A task that was won: its lease, its document as it stood then, where its files go."""

    lease: Lease
    task: dict[str, Any]
    run_dir: str
    moves: tuple[Move, ...]


def format_time(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC; what is below a millisecond is cut off.

    Never later than it was: a time that has come must not be written as one to come.
    """
    whole, millionths = divmod(round(seconds * 1_000_000), 1_000_000)
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{start}.{millionths // 1000:03}Z"


def parse_time(text: object) -> float | None:
    """Seconds since the epoch, or None for what is no time. A time without a zone is UTC."""
    if not isinstance(text, str):
        return None
    from datetime import UTC, datetime  # noqa: PLC0415  # 2 ms that most attempts never need

    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def is_task_id(value: object) -> TypeGuard[str]:
    """Whether it matches the pattern of ids and forms a valid git ref (git-check-ref-format)."""
    return (
        isinstance(value, str)
        and ID_PATTERN.fullmatch(value) is not None
        and ".." not in value
        and not value.endswith((".", ".lock"))
    )
