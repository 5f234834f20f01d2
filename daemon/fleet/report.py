"""What fleet commands print: one line for each thing done, on each host."""
# ruff: noqa: T201  # printing is what this module is for

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from daemon.fleet.output import Style, as_json, error_text, escape

if TYPE_CHECKING:
    from daemon.fleet.agents import Done
    from daemon.fleet.install import Installed

DID = {"create": "created", "change": "changed", "remove": "removed"}


def installed(results: Sequence[Installed], style: Style, *, check: bool, diff: bool) -> str:
    """A line for each change, its diff below it where it is asked for."""
    lines = []
    for result in results:
        host = escape(result.host)
        for change in result.changes:
            if change.kind == "action":
                did = f"would {change.text}" if check else change.text
            else:
                verb = f"would {change.kind}" if check else DID[change.kind]
                did = f"{verb} {_home(change.path)}" + f" ({change.text})" * bool(change.text)
            lines.append(f"{host}: {escape(did)}")
            if diff and change.diff:
                lines += [_diff_line(line, style) for line in change.diff.splitlines()]
        if not result.changes and not result.error:
            lines.append(f"{host}: nothing to do")
        lines += [f"{host}: {style.paint('note', 'yellow')}: {escape(n)}" for n in result.notes]
    return "\n".join(lines)


def _home(path: str) -> str:
    home = os.path.expanduser("~")
    return "~" + path.removeprefix(home) if path.startswith(home + "/") else path


def _diff_line(line: str, style: Style) -> str:
    marks = {"+": "green", "-": "red", "@": "cyan"}
    return style.paint(escape(line), marks.get(line[:1]))


def installed_facts(results: Sequence[Installed]) -> list[dict[str, Any]]:
    """The same for a program."""
    return [
        {
            "host": result.host,
            "supervisor": result.supervisor,
            "changes": [change._asdict() for change in result.changes],
            "notes": list(result.notes),
            "error": str(result.error) if result.error else None,
        }
        for result in results
    ]


def errors(results: Sequence[Installed]) -> int:
    """Say on stderr what went wrong where; returns the exit status."""
    failed = [result for result in results if result.error]
    for result in failed:
        print(f"{escape(result.host)}: {error_text(result.error)}", file=sys.stderr)
    statuses = [result.error.exit_code for result in failed if result.error]
    return max(statuses, default=0)


def done(results: Sequence[Done], style: Style) -> str:
    """A line for each worker, and below it why it did not do as told."""
    lines = []
    for each in results:
        did = each.did if each.ok else style.paint(each.did, "red")
        lines.append(f"{escape(each.host)}: {escape(each.role)}: {did}")
        lines += [f"  {escape(line)}" for line in each.note.splitlines()]
    return "\n".join(lines)


def exit_status(results: Sequence[Done]) -> int:
    """0 where everything was done, else what the worst deserves."""
    return max((each.exit_code for each in results if not each.ok), default=0)


def print_installed(results: Sequence[Installed], *, check: bool, diff: bool, json: bool) -> int:
    """Print what install or uninstall did; returns the exit status."""
    text = installed(results, Style.of(sys.stdout), check=check, diff=diff)
    print(as_json(installed_facts(results)) if json else text)
    return errors(results)


def print_done(results: Sequence[Done]) -> int:
    """Print what start, stop or restart did; returns the exit status."""
    print(done(results, Style.of(sys.stdout)))
    return exit_status(results)
