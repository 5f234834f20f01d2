"""The wait of a credential: whoever spends from an account that met its limit waits for the reset.

A provider's limit is one of the account, not of the task or the role that meets it. What is
remembered stands in one small file a credential, beside the run folders.
"""

from __future__ import annotations

from typing import NamedTuple

from daemon.config import Backoff
from daemon.model import Outcome, format_time
from daemon.queue import notes

RESETS = frozenset({Outcome.SUCCESS, Outcome.REJECTED})
YEAR = 366 * 86400.0  # seconds; no provider's reset is further away


class State(NamedTuple):
    """What is known of a credential: the end of its wait, and how often in a row it was throttled.

    Times are seconds since the epoch; ``since`` is when it was throttled last. ``why`` is what the
    provider said, for a person.
    """

    until: float = 0.0
    times: int = 0
    since: float = 0.0
    why: str = ""

    def in_words(self, credential: str) -> str:
        """Why nobody claims with it, for a person."""
        why = f": {self.why}" if self.why else ""
        return f"waits for credential {credential} until {format_time(self.until)}{why}"


def after(  # noqa: PLR0913, PLR0917  # the facts that decide, passed in order
    state: State,
    rule: Backoff,
    outcome: Outcome,
    retry_after: float | None,
    began: float,
    now: float,
) -> State:
    """What is known after an attempt, begun at that time, that came to this.

    ``retry_after``: the seconds that the provider asks for, where it said. Work that was done
    forgets all, unless it was under way when the wait began: that says nothing of the limit.
    """
    state = remembered(state, rule, now)
    if outcome in RESETS:
        return State() if began >= state.since else state
    if outcome is not Outcome.THROTTLED:
        return state
    # Those that were under way together met one limit, not several.
    again = state.times and now >= state.until
    times = state.times + 1 if again else max(1, state.times)
    longest = min(rule.cap, rule.base * 2 ** min(times - 1, 60))
    # A reset that was told is believed once; when it did not help, the wait grows all the same.
    guess = longest if retry_after is None or times > 1 else 0.0
    wait = max(guess, min(YEAR, retry_after or 0.0))
    return State(max(state.until, now + wait), times, now)


def remembered(state: State, rule: Backoff, now: float) -> State:
    """The state, or none: long over, or of a clock that was set back, or no time of anybody's."""
    sane = state.times > 0 and 0 <= state.since <= now
    sane = sane and state.since <= state.until <= state.since + YEAR
    return state if sane and now < state.until + rule.cap else State()


def path(runs: str, credential: str) -> str:
    """The credential's file."""
    return notes.path(runs, f"throttle-{credential}")


def read(runs: str, credential: str) -> State:
    """What the file says; nothing is known where it is absent or cannot be understood."""
    try:
        state = State(**notes.read(path(runs, credential)))
        return State(
            float(state.until), int(state.times), float(state.since), str(state.why)[: notes.WORDS]
        )
    except (ValueError, TypeError, OverflowError):
        return State()


def write(runs: str, credential: str, state: State) -> None:
    """Remember it; nothing is known is no file."""
    state = state._replace(why=state.why[: notes.WORDS])
    notes.write(path(runs, credential), state._asdict() if state.times else None)
