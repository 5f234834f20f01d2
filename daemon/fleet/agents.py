"""The workers of the fleet, as an operator sees them: what tasks.py calls and prints."""
# ruff: noqa: T201  # printing is what an operator asks for

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.errors import ConfigError, RolecallError
from daemon.fleet import effective, fanout, worktrees
from daemon.fleet.answers import Attempt, Done, Row, many
from daemon.fleet.connection import UNREACHABLE
from daemon.fleet.fanout import HOW, How
from daemon.fleet.here import UsageError, one_of
from daemon.fleet.output import Style, escape
from daemon.fleet.output import table as draw
from daemon.fleet.report import Failures, print_done
from daemon.model import parse_time

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.inventory import Host, Inventory

SOME_DO_NOT_RUN = 3
OUTDATED = "started before the last change of config, release or code"
COLOURS = {"running": "green", "failed": "red", "unreachable": "red"}
UNSETTLED = "yellow"
MINUTE, HOUR, DAY = 60, 3600, 86400
NOT_INSTALLED = Done("", "", "not installed", ok=False, note="invoke install")
NOT_THERE = {"start": NOT_INSTALLED, "restart": NOT_INSTALLED, "stop": Done("", "", "not running")}


class Status(NamedTuple):
    """The rows of all workers, and the hosts that gave none."""

    rows: list[Row]
    failures: Failures


def tell(
    inventory: Inventory,
    hosts: Sequence[Host],
    verb: str,
    role: str | None = None,
    how: How = HOW,
) -> int:
    """Have workers start, stop or restart, and print what came of it; returns the exit status."""
    asked, configs = running(inventory, hosts, role)
    if verb == "stop" and not role:
        asked = list(hosts)  # those where nothing is to run any more, too
    answers = fanout.ask(inventory, asked, verb, {"role": role}, how, configs=configs)

    def parse(host: Host, facts: Any) -> list[Done]:
        if facts is None:  # there is no release that could be asked
            done = [
                NOT_THERE[verb]._replace(role=each) for each in roles_of(configs[host.name], role)
            ]
        else:
            done = many(Done.of, facts)
        return [each._replace(host=host.name) for each in done]

    return print_done(asked, fanout.read(answers, parse), role)


def running(
    inventory: Inventory, hosts: Sequence[Host], role: str | None
) -> tuple[list[Host], dict[str, Config]]:
    """Those of the hosts that run the role, or any, and the configs of all.

    Raises ConfigError with the problems of all of them, UsageError where none knows the role.
    """
    configs = inventory.configs(hosts)
    if role is not None:
        known = dict.fromkeys(each for c in configs.values() for each in c.run)
        if role not in known and (elsewhere := _others(inventory, role)):
            what = f"{role} does not run on {', '.join(configs)}"
            raise UsageError(what, hint=f"it runs on {', '.join(elsewhere)}")
        one_of("role", role, known)
    return [host for host in hosts if roles_of(configs[host.name], role)], configs


def _others(inventory: Inventory, role: str) -> list[str]:
    """All hosts that run the role, whether they are meant or not."""
    found = []
    for host in inventory.every:
        with contextlib.suppress(ConfigError):  # nobody has asked about that one
            found += [host.name] if role in inventory.config(host).run else []
    return found


def roles_of(config: Config, role: str | None) -> list[str]:
    """The roles of a host that are meant."""
    return [each for each in config.run if role in (None, each)]


def status(
    inventory: Inventory, hosts: Sequence[Host], role: str | None = None, how: How = HOW
) -> Status:
    """How the workers are, one row each; one row for a host that could not say it."""
    asked, configs = running(inventory, hosts, role)
    rows, failures = dict[str, list[Row]](), Failures(asked)
    answers = fanout.ask(inventory, asked, "status", {"role": role}, how, configs=configs)

    def parse(host: Host, facts: Any) -> list[Row]:
        if facts is None:
            missing = Row(host.name, "", "", "not installed", text="invoke install")
            return [missing._replace(role=each) for each in roles_of(configs[host.name], role)]
        return [row._replace(host=host.name) for row in many(Row.of, facts)]

    for host, found, error in fanout.read(answers, parse):
        rows[host.name] = found or []
        if error:
            failures.add(host, error)
            state = "unreachable" if error.exit_code == UNREACHABLE else "failed"
            rows[host.name] = [Row(host.name, "", "", state, text=error.short)]
    return Status([row for host in asked for row in rows[host.name]], failures)


def logs(  # noqa: PLR0913  # as the command has options
    inventory: Inventory,
    hosts: Sequence[Host],
    role: str | None = None,
    how: How = HOW,
    *,
    follow: bool = False,
    lines: int = 50,
) -> int:
    """Print what the workers said; control characters are escaped. Returns the exit status.

    One host after another, in the order of their answers; with ``follow``, as it is said.
    """
    asked, configs = running(inventory, hosts, role)
    prefixed, kept = len(hosts) > 1, dict[str, list[str]]()

    def hear(host: Host, kind: str, text: str) -> None:
        if kind == "tell":
            print(escape(f"{host.name}: {text}"), file=sys.stderr, flush=True)
            return
        said = escape(f"{host.name}: " * prefixed + text.replace("\t", "    "))
        if follow or len(asked) == 1:
            print(said, flush=follow)
        else:
            kept.setdefault(host.name, []).append(said)

    failures = Failures(asked)
    options = {"role": role, "follow": follow, "lines": lines}
    if follow:  # none of them ends
        how = how._replace(forks=max(how.forks, len(asked)))
    with contextlib.suppress(KeyboardInterrupt):
        for host, done, error in fanout.ask(
            inventory, asked, "logs", options, how, hear=hear, configs=configs
        ):
            for said in kept.pop(host.name, []):
                print(said)
            if error:
                failures.add(host, error)
                if follow and len(asked) > 1:  # the others go on until Ctrl-C: say it at once, too
                    hear(host, "tell", error.short)
            elif done is None:
                missing = RolecallError("Rolecall is not installed there", hint="invoke install")
                failures.add(host, missing)
    return failures.tell()


def exit_status(rows: Sequence[Row]) -> int:
    """0 where all run, 3 where some don't, 4 where a host can't be reached."""
    states = {row.state for row in rows}
    if "unreachable" in states:
        return UNREACHABLE
    return SOME_DO_NOT_RUN if states - {"running"} else 0


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for a program."""
    return [row.facts() for row in rows]


def table(rows: Sequence[Row], style: Style) -> str:
    """The rows for a person."""
    header = ["host", "role", "state", "pid", "since", "working on", "restarts", ""]
    colours = [{2: COLOURS.get(row.state, UNSETTLED)} for row in rows]
    cells = [
        [
            row.host,
            row.role,
            row.state,
            row.pid,
            _ago(row.since),
            ", ".join(_work(each) for each in row.working_on),
            row.restarts or None,
            row.text,
        ]
        for row in rows
    ]
    if not rows:
        return "no host runs a role (run: [])"
    drawn = draw(header, cells, style, colours=colours, shrink=7)
    used = {row.host: row.worktrees for row in rows if row.worktrees}
    lines = [f"{escape(host)}: {worktrees.Usage(**facts)}" for host, facts in used.items()]
    older = dict.fromkeys(row.host for row in rows if row.config_is_older)
    lines += [f"{escape(host)}: {effective.OLDER}: {effective.RENEW}" for host in older]
    cut = {row.host: row.deploy_cut_short for row in rows if row.deploy_cut_short}
    lines += [
        f"{escape(host)}: {escape(effective.CUT.format(began))}: {effective.GO_ON}"
        for host, began in cut.items()
    ]
    for host in dict.fromkeys(row.host for row in rows if row.outdated):
        names = ", ".join(row.role for row in rows if row.host == host and row.outdated)
        lines.append(f"{escape(host)}: {escape(names)}: {OUTDATED}: {effective.RENEW}")
    parked = {row.host: row for row in rows if row.parked}
    for host, row in parked.items():
        count = "1 task waits" if row.parked == 1 else f"{row.parked} tasks wait"
        look = "needs_manual in its queue" if row.release else "invoke queue.check"
        lines.append(f"{escape(host)}: {count} for a person: {look}")
    return "\n".join([drawn, *([""] if lines else []), *lines])


def _work(attempt: Attempt) -> str:
    again = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
    return f"{attempt.task_id} ({span(attempt.seconds)}{again})"


def _ago(since: str | None) -> str:
    started = parse_time(since)
    return span(time.time() - started) if started is not None else ""


def span(seconds: float) -> str:
    """A length of time in two units at most: 42s, 7m 3s, 5h 12m, 3d 4h."""
    whole = max(0, int(seconds))
    for size, unit, below, unit_below in (
        (DAY, "d", HOUR, "h"),
        (HOUR, "h", MINUTE, "m"),
        (MINUTE, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // below}{unit_below}"
    return f"{whole}s"
