"""What the doctor found: ok, warn or fail, and what to type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from daemon.fleet.output import Style, escape

OK, WARN, FAIL = "ok", "warn", "fail"
COLOUR_OF = {OK: "green", WARN: "yellow", FAIL: "red"}


class Finding(NamedTuple):
    """One thing that was looked at: ok, warn or fail; what was found; what to type.

    ``role`` names the roles that it is about, where it is about some.
    """

    check: str
    state: str
    what: str
    hint: str = ""
    role: str = ""


def together(findings: Iterable[Finding]) -> list[Finding]:
    """What was found of several roles in the same words, said once."""
    names: dict[Finding, list[str]] = {}
    for finding in findings:
        names.setdefault(finding._replace(role=""), []).append(finding.role)
    return [
        finding._replace(role=", ".join(dict.fromkeys(roles))) for finding, roles in names.items()
    ]


def failed(findings: list[Finding]) -> bool:
    """Whether something keeps this host from working."""
    return any(finding.state == FAIL for finding in findings)


def report(findings: list[Finding], style: Style) -> str:
    """A line for each finding."""
    size = max((len(escape(finding.check)) for finding in findings), default=0)
    lines = []
    for each in findings:
        state = style.paint(each.state, COLOUR_OF[each.state]) + " " * (4 - len(each.state))
        what = f"{each.role}: {each.what}" if each.role else each.what
        hint = f" -> {each.hint}" if each.hint else ""
        lines.append(f"{state}  {escape(each.check):<{size}}  {escape(what + hint)}")
    return "\n".join(lines)
