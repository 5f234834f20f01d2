"""Errors of providers in words, and when a limit is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from daemon.agents import wording
from daemon.model import Outcome

NOW = datetime(2026, 11, 25, 21, 43, tzinfo=UTC).timestamp()
MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local time that is not UTC: 22:43 now, an hour ahead."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


OUTCOMES = {
    # of Claude Code
    "Not logged in · Please run /login": Outcome.BLOCKED,
    "Invalid API key · Fix external API key": Outcome.BLOCKED,
    "Credit balance is too low": Outcome.BLOCKED,
    "OAuth token has expired · Please run /login": Outcome.BLOCKED,
    "Claude AI usage limit reached|1795650000": Outcome.THROTTLED,
    "You've hit your session limit · resets 11:48pm (UTC)": Outcome.THROTTLED,
    "API Error: 529 Overloaded": Outcome.ERROR,
    "Prompt is too long": Outcome.ERROR,
    # of Codex
    "unexpected status 401 Unauthorized: Missing bearer authentication": Outcome.BLOCKED,
    "You’ve hit your usage limit. Try again at 11:48 PM.": Outcome.THROTTLED,  # noqa: RUF001  # so
    "exceeded retry limit, last status: 429 Too Many Requests": Outcome.THROTTLED,
    "stream disconnected before completion": Outcome.ERROR,
    # of Gemini CLI, aider and others
    "Invalid auth method selected.": Outcome.BLOCKED,
    "Missing API key for OpenAI-compatible auth.": Outcome.BLOCKED,
    "[API Error: You exceeded your current quota. Please retry in 40.6s.]": Outcome.THROTTLED,
    "litellm.RateLimitError: RateLimitError: OpenAIException - fake 429": Outcome.THROTTLED,
    "litellm.AuthenticationError: OpenAIException - fake": Outcome.BLOCKED,
    "litellm.InternalServerError: OpenAIException - fake 500": Outcome.ERROR,
    "[API Error: 401 fake]": Outcome.BLOCKED,
    "Error code: 429 - {'error': {'message': 'slow'}}": Outcome.THROTTLED,
    '{"error":{"code":403,"message":"no"}}': Outcome.BLOCKED,
    "TerminalQuotaError: You have exhausted your daily quota on this model.": Outcome.THROTTLED,
    "Quota exceeded for quota metric 'Generate Content API requests'": Outcome.THROTTLED,
    "5-hour limit reached ∙ resets 3pm": Outcome.THROTTLED,
    "Weekly limit reached": Outcome.THROTTLED,
    "You've hit your weekly limit": Outcome.THROTTLED,
    # of whatever else goes wrong
    "Error: EDQUOT: disk quota exceeded, write": Outcome.ERROR,
    "OSError: [Errno 122] Disk quota exceeded": Outcome.ERROR,
    "you exceeded your disk quota": Outcome.ERROR,
    "Context limit reached": Outcome.ERROR,
    "turn limit reached": Outcome.ERROR,
    "maximum recursion limit reached": Outcome.ERROR,
    "token limit reached": Outcome.ERROR,
    "cost limit reached": Outcome.ERROR,
    "You have reached your maximum turn limit": Outcome.ERROR,
    "error: 429 tests failed": Outcome.ERROR,
    "the tool ended with exit code 403": Outcome.ERROR,
    "exit code: 429, 1 warning": Outcome.ERROR,
    "connect ECONNREFUSED 127.0.0.1:4290": Outcome.ERROR,
    "": Outcome.ERROR,
}


@pytest.mark.parametrize("words", OUTCOMES)
def test_what_an_error_comes_to(words: str) -> None:
    """What needs a person is blocked, a limit is waited for, all else may be tried again."""
    assert wording.of_error(words) is OUTCOMES[words]


def test_the_http_status_is_believed_before_the_words() -> None:
    """A server that fails while it checks a login, or says that it is busy, has failed."""
    assert wording.of_error("error while authenticating", 500) is Outcome.ERROR
    assert wording.of_error("rate limit service is down", 503) is Outcome.ERROR
    assert wording.of_error("slow down", 429) is Outcome.THROTTLED
    assert [wording.of_error("no", status) for status in (401, 402, 403)] == [Outcome.BLOCKED] * 3


RESETS = {
    "Claude AI usage limit reached|1795650000": 1795650000 - NOW,
    "You've hit your session limit · resets 11:48pm (UTC)": 2 * HOUR + 5 * MINUTE,
    "You've hit your limit · resets 4:50am (Europe/Rome)": 6 * HOUR + 7 * MINUTE,
    "Your limit will reset at 3pm (America/Bogota).": 22 * HOUR + 17 * MINUTE,
    "You've hit your limit - resets Nov 27, 11am (Asia/Seoul)": DAY + 4 * HOUR + 17 * MINUTE,
    "You've hit your limit · resets Feb 7 at 11am (UTC)": 73 * DAY + 13 * HOUR + 17 * MINUTE,
    "resets 11pm (Nowhere/At_All)": 17 * MINUTE,  # taken for local
    "or try again at 11:48 PM.": HOUR + 5 * MINUTE,  # local
    "or try again at 3:28 PM.": 16 * HOUR + 45 * MINUTE,  # tomorrow
    "or try again at Dec 5th, 2026 8:19 PM.": 9 * DAY + 21 * HOUR + 36 * MINUTE,
    "or try again in 2 days 17 hours 14 minutes.": 2 * DAY + 17 * HOUR + 14 * MINUTE,
    "try again in 45 minutes": 45 * MINUTE,
    "try again in less than a minute": MINUTE,
    "Rate limit reached. Please try again in 1.2s.": 1.2,
    "Please try again in 850ms.": 0.85,
    "Please retry in 40.6s": 40.6,
    "Your quota will reset after 3h20m11s.": 3 * HOUR + 20 * MINUTE + 11,
    "resets at 2026-11-25T23:00:00Z": HOUR + 17 * MINUTE,
    "You've hit your limit · resets 99:99pm": None,
    "resets Feb 30, 11am": None,
    "Please try again later": None,
    "try again 3 times": None,
    "": None,
}


@pytest.mark.parametrize("words", RESETS)
def test_when_a_limit_is_over(words: str) -> None:
    """In seconds from now: a span, a time of day in any zone, a date, or an epoch."""
    found, expected = wording.retry_after(words, NOW), RESETS[words]
    assert found == (expected if expected is None else pytest.approx(expected))


def test_a_reset_is_neither_past_nor_for_ever() -> None:
    """A clock that is wrong, here or there, keeps no task waiting for years."""
    past = wording.failed("usage limit reached|1000000000", NOW)
    assert (past.outcome, past.retry_after) == (Outcome.THROTTLED, 0)
    far = wording.failed("usage limit", NOW, resets_at=1e12)
    assert far.retry_after == wording.LONGEST
    assert wording.failed("usage limit", NOW, resets_at="soon").retry_after is None
    assert wording.failed("server error, try again in 5 minutes", NOW).retry_after is None
