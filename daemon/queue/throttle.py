"""The wait of a credential: whoever spends from an account that met its limit waits for the reset.

A provider's limit is one of the account, not of the task or the role that meets it; and so is a
login that is not accepted: it would send one task after the other to a person. What is remembered
stands in one small file a credential, beside the run folders; or in the queue's database, for all
of its hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from daemon.config import Backoff
from daemon.model import Outcome, format_time
from daemon.queue import notes

RESETS = frozenset({Outcome.SUCCESS, Outcome.REJECTED})
LONGEST = 8 * 86400.0  # seconds; a weekly limit's reset is not further away: then it is tried
PROBE = 60.0  # seconds in which a login that is still not accepted has said so


class State(NamedTuple):
    """What is known of a credential: the end of its wait, and how often in a row it was throttled.

    Times are seconds since the epoch; ``since`` is when it was throttled last. ``why`` is what the
    provider said, for a person. ``denied``: it was not accepted at all, which blocked a task.
    """

    until: float = 0.0
    times: int = 0
    since: float = 0.0
    why: str = ""
    denied: bool = False

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
    *,
    denied: bool = False,
) -> State:
    """What is known after an attempt, begun at that time, that came to this.

    ``retry_after``: the seconds that the provider asks for, where it said. Work that was done
    forgets all, unless it was under way when the wait began: that says nothing of the limit.
    """
    state = remembered(state, rule, now)
    if outcome in RESETS:
        return State() if began >= state.since else state
    if not met(outcome, denied=denied):
        return state
    # Those that were under way together met one limit, not several.
    again = state.times and now >= state.until
    times = state.times + 1 if again else max(1, state.times)
    longest = min(rule.cap, rule.base * 2 ** min(times - 1, 60))
    # A reset that was told is believed once; when it did not help, the wait grows all the same.
    guess = longest if retry_after is None or times > 1 else 0.0
    wait = max(guess, min(LONGEST, retry_after or 0.0))
    denied = denied or (state.denied and not again)
    return State(max(state.until, now + wait), times, now, denied=denied)


def met(outcome: Outcome, *, denied: bool) -> bool:
    """Whether the attempt met a limit of the credential, or that it is not accepted."""
    return outcome is Outcome.THROTTLED or (denied and outcome is Outcome.BLOCKED)


def probed(state: State, began: Iterable[float], now: float) -> State:
    """The state in the light of the attempts that run with the credential, by their begin.

    One that is not accepted is tried by one attempt at a time: for each costs a task. One that has
    run for ``PROBE`` seconds works.
    """
    if not state.denied or now < state.until:
        return state
    probes = [each + PROBE for each in began if each > state.since]
    return state._replace(until=max([state.until, *probes]))


def remembered(state: State, rule: Backoff, now: float) -> State:
    """The state, or none: long over, or of a clock that was set back, or no time of anybody's."""
    sane = state.times > 0 and 0 <= state.since <= now
    sane = sane and state.since <= state.until <= state.since + max(LONGEST, rule.cap)
    return state if sane and now < state.until + rule.cap else State()


def path(runs: str, credential: str) -> str:
    """The credential's file."""
    return notes.path(runs, f"throttle-{credential}")


def of_note(note: Mapping[str, Any]) -> State:
    """What a note says; nothing is known where it cannot be understood."""
    try:
        state = State(**note)
        return State(
            float(state.until),
            int(state.times),
            float(state.since),
            str(state.why)[: notes.WORDS],
            bool(state.denied),
        )
    except (ValueError, TypeError, OverflowError):
        return State()


def note_of(state: State) -> dict[str, object] | None:
    """The note of a state; nothing is known is none."""
    return state._replace(why=state.why[: notes.WORDS])._asdict() if state.times else None


def read(runs: str, credential: str) -> State:
    """What the credential's file says."""
    return of_note(notes.read(path(runs, credential)))


def write(runs: str, credential: str, state: State) -> None:
    """Remember it in the credential's file."""
    notes.write(path(runs, credential), note_of(state))


class Waits(Protocol):
    """Where the waits of credentials are remembered."""

    def read(self, credential: str) -> State:
        """What is known of the credential."""

    def write(self, credential: str, state: State) -> None:
        """Remember it."""


class Files(NamedTuple):
    """In small files of this host."""

    runs: str

    def read(self, credential: str) -> State:
        """What its file says."""
        return read(self.runs, credential)

    def write(self, credential: str, state: State) -> None:
        """Put it into its file."""
        write(self.runs, credential, state)
