"""What a provider's error comes to, by its HTTP status and its words; and when a limit resets.

The wordings are those of real CLIs, seen or reported to their makers: Claude Code 1 ("Claude AI
usage limit reached|1753441200") and 2 ("You've hit your session limit · resets 11:48pm (UTC)",
"resets Feb 7, 11am (Asia/Seoul)"), Codex ("try again in 2 days 17 hours 14 minutes", "try again at
11:48 PM", "at Jul 5th, 2026 8:19 PM"), Gemini CLI ("Please retry in 40.6s", "Your quota will reset
after 3h20m11s").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from daemon.agents.preset import Record
from daemon.model import Outcome, parse_time

if TYPE_CHECKING:
    from datetime import tzinfo

TOO_MANY = 429
DENIED = {401, 402, 403}  # unauthorized, payment required, forbidden: each needs a person
LONGEST = 366 * 86400.0  # seconds; no limit resets later
#: A number alone is none: "error: 429 tests failed", "exit code 403" are of other programs.
HTTP = re.compile(
    r"(?:\bhttp(?:/[\d.]+)?|status|status.?code|api.?error|error.code|request rejected"
    r"|[\"']code[\"'])\W{1,4}(?:code\W{1,3})?([45]\d\d)\b",
    re.IGNORECASE,
)
LOGIN = re.compile(
    r"unauthorized|not logged in|/login|authenticat|auth method|credit balance is too low"
    r"|(?:invalid|missing|no) (?:(?:x-)?api.?key|credentials)"
    r"|api.?key (?:is )?(?:missing|not|invalid)"
    r"|token (?:has |is )?(?:expired|revoked|invalid)|forbidden|permission_error",
    re.IGNORECASE,
)
#: Of a provider's account. A disk has quotas, too; contexts, turns and recursions have limits.
PERIOD = r"(?:usage|rate|request|session|hourly|daily|weekly|monthly|\d+.?hour)s?"
LIMIT = re.compile(
    rf"usage limit|rate.?limit|too many requests|resource_exhausted|{PERIOD} limit (?:is )?reached"
    r"|(?:your|current|insufficient|daily|request|token|api)[ _](?:\w+ )?"
    r"(?<!disk )(?<!storage )quota|(?<!disk )quota exceeded for|quotaerror|quota will reset"
    rf"|(?:hit|reached) your (?:limit\b|.{{0,40}}{PERIOD} limit)"
    r"|out of (?:extra )?(?:usage|credits)",
    re.IGNORECASE,
)
EPOCH = re.compile(r"\|(\d{10})\b")
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
AMOUNT = re.compile(
    r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|d|days?|h|hrs?|hours?|m|mins?|minutes?|s|secs?|seconds?)"
    r"(?![a-z])",
    re.IGNORECASE,
)
SPAN = re.compile(
    r"(?:again|retry|resets?|wait)\s+(?:in|after)?\s*(?:about\s+)?"
    rf"((?:{AMOUNT.pattern}[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
SOON = re.compile(r"(?:again|retry) in less than a minute", re.IGNORECASE)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
CLOCK = re.compile(
    r"(?:again|resets?|reset)\s+(?:(?:at|on)\s+)?"
    rf"(?:(?P<month>{'|'.join(MONTHS)})[a-z]*\.?\s+(?P<day>\d\d?)(?:st|nd|rd|th)?"
    r"(?:,?\s+(?P<year>\d{4}))?(?:,|\s+at)?\s*)?"
    r"(?:(?P<hour>\d\d?)(?::(?P<minute>\d\d))?\s*(?P<half>[ap]m)?(?:\s*\((?P<zone>[\w/+-]+)\))?)?",
    re.IGNORECASE,
)
ISO = re.compile(r"(?:again|resets?)\s+(?:(?:at|on)\s+)?(\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-][\d:]+)?)")


def failed(
    words: str, now: float, *, status: object = None, resets_at: object = None, session: str = ""
) -> Record:
    """The record of a run that failed with these words.

    ``status`` is the HTTP status, where the CLI tells it, else it is looked for in the words;
    ``resets_at`` the end of a limit in seconds since the epoch, where the CLI tells that.
    """
    outcome = of_error(words, status if isinstance(status, int) else 0)
    wait = None
    if outcome is Outcome.THROTTLED:
        known = isinstance(resets_at, int | float) and resets_at > 0
        wait = float(resets_at) - now if known and isinstance(resets_at, int | float) else None
        wait = retry_after(words, now) if wait is None else wait
        wait = None if wait is None else min(max(wait, 0.0), LONGEST)
    return Record(outcome, words, wait, session=session)


def of_error(words: str, status: int = 0) -> Outcome:
    """What an error of a provider comes to."""
    found = HTTP.search(words)
    status = status or (int(found[1]) if found else 0)
    if status in DENIED:
        return Outcome.BLOCKED
    if status == TOO_MANY:
        return Outcome.THROTTLED
    if status:
        return Outcome.ERROR
    if LIMIT.search(words):
        return Outcome.THROTTLED
    return Outcome.BLOCKED if LOGIN.search(words) else Outcome.ERROR


def retry_after(words: str, now: float) -> float | None:
    """Seconds until a limit is over, as the words say it; None where they do not.

    A time of day without a date is the next one, one without a zone is local, as CLIs print it.
    """
    if found := EPOCH.search(words):
        return float(found[1]) - now
    if SOON.search(words):
        return UNITS["m"]
    if found := SPAN.search(words):
        return sum(float(number) * _unit(unit) for number, unit in AMOUNT.findall(found[1]))
    if found := ISO.search(words):
        at = parse_time(found[1])
        return None if at is None else at - now
    for found in CLOCK.finditer(words):
        if found["month"] or (found["hour"] and (found["minute"] or found["half"])):
            return _until(found, now)
    return None


def _unit(name: str) -> float:
    name = name.lower()
    return UNITS["ms" if name.startswith(("ms", "milli")) else name[0]]


def _until(found: re.Match[str], now: float) -> float | None:
    from datetime import datetime, timedelta  # noqa: PLC0415  # 2 ms that few attempts need

    today = datetime.fromtimestamp(now, _zone(found["zone"]))
    hour = int(found["hour"] or 0)
    if found["half"]:
        hour = hour % 12 + (12 if found["half"].lower() == "pm" else 0)
    try:
        at = today.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0)
        if not found["month"]:
            return (at if at > today else at + timedelta(days=1)).timestamp() - now
        month = MONTHS.index(found["month"].lower()) + 1
        at = at.replace(int(found["year"] or today.year), month, int(found["day"]))
        if not found["year"] and at < today - timedelta(days=1):
            at = at.replace(today.year + 1)
        return at.timestamp() - now
    except ValueError:  # February 30th, 25:00
        return None


def _zone(name: str | None) -> tzinfo | None:
    """The zone of that name; None, the local one, where there is none or it is not known here."""
    if not name:
        return None
    from zoneinfo import ZoneInfo  # noqa: PLC0415  # as above

    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # not known, a folder, no name at all
        return None
