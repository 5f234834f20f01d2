"""The circuit breaker of a role: a pause of its claims when every attempt fails within seconds.

An agent that is not logged in, a disk that is full, a broken prompt: each would otherwise spend the
attempts of one task after another, until the whole queue waits for a person. What is remembered
stands in one small file a role, beside the run folders, so that it outlives a worker.
"""

from __future__ import annotations

from typing import NamedTuple

from daemon.config import Breaker
from daemon.model import Outcome, format_time
from daemon.queue import notes

FAILURES = frozenset({Outcome.ERROR, Outcome.BLOCKED})
RESETS = frozenset({Outcome.SUCCESS, Outcome.REJECTED})


class State(NamedTuple):
    """What is known of a role: quick failures in a row, when the last was, the end of the pause.

    Times are seconds since the epoch. ``why`` is the last failure, for a person.
    """

    failures: int = 0
    last: float = 0.0
    until: float = 0.0
    why: str = ""

    @property
    def pause_in_words(self) -> str:
        """Why the role claims nothing, or one task only, for a person."""
        return (
            f"{self.failures} attempts in a row failed within seconds, claims pause until "
            f"{format_time(self.until)}: {self.why}"
        )


def after(state: State, rule: Breaker, outcome: Outcome, seconds: float, now: float) -> State:
    """What is known after an attempt that came to this, so many seconds after its claim."""
    state = remembered(state, rule, now)
    if outcome in RESETS or (outcome in FAILURES and seconds > rule.seconds):
        return State()
    if outcome not in FAILURES or not rule.failures or now < state.until:
        return state  # what was under way when the pause began makes it no longer
    failures = state.failures + 1
    beyond = failures - rule.failures
    pause = min(rule.cap, rule.base * 2 ** min(beyond, 60)) if beyond >= 0 else 0.0
    return State(failures, now, now + pause if pause else 0.0)


def remembered(state: State, rule: Breaker, now: float) -> State:
    """The state, or none: a role that has been quiet, or a clock that was set back, forgets."""
    quiet = max(state.last, state.until) + rule.cap <= now
    odd = state.last > now or state.until > now + rule.cap
    return State() if quiet or odd or not rule.failures else state


def is_open(state: State, rule: Breaker, now: float, live: int) -> bool:
    """Whether the role may claim nothing now. Behind a pause one attempt at a time is let through.

    ``live``: how many attempts the role has on this host.
    """
    state = remembered(state, rule, now)
    return state.until > 0 and (now < state.until or live > 0)


def path(runs: str, role: str) -> str:
    """The role's file."""
    return notes.path(runs, f"breaker-{role}")


def read(runs: str, role: str) -> State:
    """What the file says; nothing is known where it is absent or cannot be understood."""
    try:
        state = State(**notes.read(path(runs, role)))
        return State(
            int(state.failures),
            float(state.last),
            float(state.until),
            str(state.why)[: notes.WORDS],
        )
    except (ValueError, TypeError, OverflowError):
        return State()


def write(runs: str, role: str, state: State) -> None:
    """Remember it; nothing is known is no file."""
    state = state._replace(why=state.why[: notes.WORDS])
    notes.write(path(runs, role), state._asdict() if state != State() else None)
