"""What fleet commands print: one line for each thing done, on each host."""
# ruff: noqa: T201  # printing is what this module is for

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from daemon.errors import EXIT_ERROR
from daemon.fleet import fanout
from daemon.fleet.answers import Done, Installed, known, many
from daemon.fleet.connection import UNREACHABLE, NoAnswer
from daemon.fleet.finding import COLOUR_OF, FAIL, Finding, failed, report
from daemon.fleet.output import Style, as_json, error_text, escape

if TYPE_CHECKING:
    from daemon.errors import RolecallError
    from daemon.fleet.fanout import Answer
    from daemon.inventory import Host

DID = {"create": "created", "change": "changed", "remove": "removed"}


def installed(result: Installed, style: Style, *, check: bool, diff: bool) -> str:
    """A line for each change, its diff below it where it is asked for."""
    lines, host = [], escape(result.host)
    for change in result.changes:
        if change.kind == "action":
            did = f"would {change.text}" if check else change.text
        else:
            verb = f"would {change.kind}" if check else DID[change.kind]
            did = f"{verb} {_short(change.path, result.home)}" + f" ({change.text})" * bool(
                change.text
            )
        lines.append(f"{host}: {escape(did)}")
        if diff and change.diff:
            lines += [_diff_line(line, style) for line in change.diff.splitlines()]
    if not result.changes:
        lines.append(f"{host}: nothing to do")
    lines += [f"{host}: {style.paint('note', 'yellow')}: {escape(n)}" for n in result.notes]
    return "\n".join(lines)


def _short(path: str, home: str) -> str:
    return "~" + path.removeprefix(home) if home and path.startswith(home + "/") else path


def _diff_line(line: str, style: Style) -> str:
    marks = {"+": "green", "-": "red", "@": "cyan"}
    return style.paint(escape(line), marks.get(line[:1]))


def done(results: Sequence[Done], style: Style) -> str:
    """A line for each worker, and below it why it did not do as told."""
    lines = []
    for each in results:
        did = style.paint(escape(each.did), None if each.ok else "red")
        lines.append(f"{escape(each.host)}: {escape(each.role)}: {did}")
        lines += [f"  {escape(line)}" for line in each.note.splitlines()]
    return "\n".join(lines)


class Failures:
    """The hosts that failed: said at the end, beneath what the others did.

    ``asked``: the hosts that were, in the order they are told of.
    """

    def __init__(self, asked: Sequence[Host]) -> None:
        self._asked = asked
        self._errors: dict[str, RolecallError] = {}
        self._statuses: dict[str, int] = {}

    def add(self, host: Host, error: RolecallError) -> None:
        """A host of which nothing else is said."""
        self._errors[host.name] = error
        self.count(host, error.exit_code)

    def count(self, host: Host, status: int) -> None:
        """A host of which all has been said, and the exit status that it deserves."""
        self._statuses[host.name] = status

    @property
    def exit_status(self) -> int:
        """0 where none failed, 4 where one can't be reached, else what the worst deserves."""
        statuses = self._statuses.values()
        return UNREACHABLE if UNREACHABLE in statuses else max(statuses, default=0)

    def tell(self, *, look: bool = True) -> int:
        """Say on stderr what went wrong where; returns the exit status.

        ``look``: say what to type to look closer, too.
        """
        sys.stdout.flush()
        failed = [host for host in self._asked if host.name in self._statuses]
        for host in failed:
            if error := self._errors.get(host.name):
                print(f"{escape(host.name)}: {error_text(error)}", file=sys.stderr)
        if failed and len(self._asked) > 1:
            text = f"{len(failed)} of {len(self._asked)} hosts failed"
            names = ", ".join(host.name for host in failed)
            more = f"; look closer: {self._closer(failed)}" if look else f": {names}"
            print(escape(text + more), file=sys.stderr)
        return self.exit_status

    def _closer(self, failed: Sequence[Host]) -> str:
        """What to type: the doctor cannot reach either whom we could not."""
        from daemon.fleet import ssh  # noqa: PLC0415  # only where a host failed

        unheard = [h for h in failed if isinstance(self._errors.get(h.name), NoAnswer)]
        names = ",".join(host.name for host in failed if host not in unheard)
        doctor = [f"invoke doctor --limit {names}"] if names else []
        return "; ".join(doctor + [ssh.typed(host) for host in unheard])


def gave_up(host: Host, error: RolecallError, style: Style) -> str:
    """A line for a host of which all else is said at the end."""
    did = "unreachable" if error.exit_code == UNREACHABLE else "failed"
    return f"{escape(host.name)}: {style.paint(did, 'red')}"


def print_installed(
    asked: Sequence[Host], answers: Iterable[Answer[Any]], *, check: bool, diff: bool, json: bool
) -> int:
    """Print what install or uninstall did, host by host as they end; returns the exit status."""
    failures, style, found = Failures(asked), Style.of(sys.stdout), dict[str, Any]()
    for host, done, error in fanout.read(answers, _installed):
        result = done or Installed(host.name, "")
        found[host.name] = {**result.facts(), "error": str(error) if error else None}
        if error:
            failures.add(host, error)
        if not json and not error:
            print(installed(result, style, check=check, diff=diff), flush=True)
        elif not json and error and len(asked) > 1:
            print(gave_up(host, error, style), flush=True)
    if json:
        print(as_json([found[host.name] for host in asked]))
    return failures.tell()


def _installed(host: Host, facts: Any) -> Installed:
    if facts is None:  # there was nothing there
        return Installed(host.name, "")
    return Installed.of(facts)._replace(host=host.name)


def print_done(
    asked: Sequence[Host], answers: Iterable[Answer[list[Done]]], role: str | None
) -> int:
    """Print what start, stop or restart did, host by host; returns the exit status."""
    failures, style = Failures(asked), Style.of(sys.stdout)
    for host, told, error in answers:
        if error and len(asked) > 1:
            failures.add(host, error)
            print(gave_up(host, error, style), flush=True)
            continue
        results = told or []
        if error:  # of the only one it is said at once
            one = Done(host.name, role or "all roles", "failed", ok=False, note=str(error))
            results = [one._replace(exit_code=error.exit_code)]
        worst = max((each.exit_code for each in results if not each.ok), default=0)
        if worst:
            failures.count(host, worst)
        print(done(results, style), flush=True)
    return failures.tell()


def print_findings(asked: Sequence[Host], answers: Iterable[Answer[Any]], *, json: bool) -> int:
    """Print what the doctor found, a block for each host; exit status 1 where something fails."""
    failures, style, found = Failures(asked), Style.of(sys.stdout), dict[str, list[Finding]]()
    for host, findings, error in fanout.read(answers, _findings):
        if error:
            failures.add(host, error)
            found[host.name] = [Finding("reach", FAIL, *each[1:]) for each in error.problems]
            continue
        found[host.name] = findings or []
        if failed(found[host.name]):
            failures.count(host, EXIT_ERROR)
        if not json:
            if len(asked) > 1:
                print("\n" * (len(found) > 1) + style.paint(escape(host.name), "bold"))
            print(report(found[host.name], style), flush=True)
    if json:
        every = [(host.name, each) for host in asked for each in found.get(host.name, [])]
        print(as_json([{"host": name, **each._asdict()} for name, each in every]))
    return failures.tell(look=False)


def _findings(_host: Host, facts: Any) -> list[Finding]:
    if facts is None:
        return [Finding("release", FAIL, "Rolecall is not installed there", "invoke install")]
    return many(_finding, facts)


def _finding(facts: Any) -> Finding:
    found = known(Finding, facts)
    # A state of another time is no good news, whatever it is.
    return found if found.state in COLOUR_OF else found._replace(state=FAIL)
