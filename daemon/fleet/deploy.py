"""A new release and config for many hosts, some at a time: it stops where one of them fails."""
# ruff: noqa: T201  # printing is what an operator asks for

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.errors import EXIT_ERROR, ConfigError, RolecallError
from daemon.fleet import fanout, report
from daemon.fleet.answers import BROKEN, DEPLOYED, PUT_BACK, UNCHANGED, WOULD, Installed, Switched
from daemon.fleet.connection import UNREACHABLE, Lost
from daemon.fleet.fanout import HOW, How
from daemon.fleet.here import UsageError
from daemon.fleet.output import Style, as_json, error_text, escape

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.inventory import Host, Inventory

#: What a host comes to, beside what it says itself.
UNTOUCHED, UNKNOWN, FAILED = "not touched", "unknown", "failed"
LONGEST_SETTLE = 3600  # seconds
WENT_WELL = {UNCHANGED, WOULD, DEPLOYED}


class Wish(NamedTuple):
    """How hosts are to be deployed to: so many at a time; seconds that workers are watched."""

    serial: str = "1"
    settle: float = 5.0
    check: bool = False
    diff: bool = False
    json: bool = False


class Result(NamedTuple):
    """What became of a host, and why nothing more is known where that is so."""

    switched: Switched
    error: RolecallError | None = None

    @property
    def state(self) -> str:
        """The host's own word, or ours."""
        return self.switched.state

    @property
    def well(self) -> bool:
        """Whether it is as it should be."""
        return self.state in WENT_WELL

    @property
    def exit_code(self) -> int:
        """The exit status that it deserves."""
        if self.error:
            return self.error.exit_code
        return 0 if self.well or self.state == UNTOUCHED else EXIT_ERROR


def deploy(
    inventory: Inventory, hosts: Sequence[Host], how: How = HOW, wish: Wish | None = None
) -> int:
    """Deploy to the hosts, in the inventory's order, and print what came of it.

    Returns the exit status. Nothing is changed anywhere unless every host is ready for it.
    """
    wish = wish or Wish()
    size = batch_size(wish.serial, len(hosts))
    check_settle(wish.settle)
    configs = inventory.configs(hosts)
    rollout = _Rollout(inventory, list(hosts), how, wish, configs)
    rollout.look()
    if not wish.check and rollout.ready:
        for batch in batches(rollout.waiting, size):
            if not rollout.go_on(batch):
                break
    return rollout.end()


def batch_size(serial: str, hosts: int) -> int:
    """How many hosts at a time: a number, or a percentage of them, as Ansible has it."""
    number = serial.removesuffix("%")
    if not number.isdecimal() or not int(number):
        raise UsageError(
            f'no number of hosts: "{serial}"', where="--serial", hint="such as 1, 3 or 25%"
        )
    return int(number) if number == serial else max(1, hosts * int(number) // 100)


def check_settle(seconds: float) -> None:
    """Raise UsageError for what is no time to watch workers."""
    if not 0 <= seconds <= LONGEST_SETTLE:  # NaN neither
        what, hint = f"no time to watch: {seconds:g}", "seconds, such as 5, and 3600 at most"
        raise UsageError(what, where="--settle", hint=hint)


def batches(hosts: Sequence[Host], size: int) -> Iterator[list[Host]]:
    """Such numbers of hosts; this machine is always alone.

    What is done here is done in the thread that a person's Ctrl-C interrupts, and is put back then.
    """
    batch: list[Host] = []
    for host in hosts:
        if batch and (len(batch) == size or "local" in {host.connection, batch[0].connection}):
            yield batch
            batch = []
        batch.append(host)
    if batch:
        yield batch


class _Rollout:
    """The hosts, and what has become of each so far."""

    def __init__(
        self,
        inventory: Inventory,
        hosts: list[Host],
        how: How,
        wish: Wish,
        configs: dict[str, Config],
    ) -> None:
        self.inventory, self.hosts, self.how, self.wish = inventory, hosts, how, wish
        self.configs, self.style = configs, Style.of(sys.stdout)
        self.results: dict[str, Result] = {}
        self.began = False

    def look(self) -> None:
        """Ask every host what there is to do; that leaves nothing there."""
        for host, facts, error in self._ask(self.hosts, {"check": True}):
            result = _result(host, facts, error)
            self.results[host.name] = result
            if self.wish.check or not (self.wish.json or result.state == WOULD):
                self._print(host, result)

    @property
    def ready(self) -> bool:
        """Whether every host could be deployed to."""
        return all(result.well for result in self.results.values())

    @property
    def waiting(self) -> list[Host]:
        """The hosts with something to do."""
        return [host for host in self.hosts if self.results[host.name].state == WOULD]

    def go_on(self, batch: list[Host]) -> bool:
        """Deploy to these; whether all of them are well."""
        how = self.how._replace(forks=len(batch))
        options = {"settle": self.wish.settle}
        left = {host.name for host in batch}
        self.began = True
        try:
            for host, facts, error in self._ask(batch, options, how):
                left.discard(host.name)
                self.results[host.name] = _result(host, facts, error)
                self._print(host, self.results[host.name])
        except KeyboardInterrupt:
            names = ", ".join(sorted(left))
            print(
                f"interrupted: {escape(names)} may have changed, and ends it or puts it back by "
                "itself; see invoke agents.status",
                file=sys.stderr,
            )
            raise
        return all(self.results[host.name].well for host in batch)

    def end(self) -> int:
        """Say how it stands, where it does not stand well; returns the exit status."""
        if not self.wish.check:
            for name, result in self.results.items():
                if result.state == WOULD:
                    self.results[name] = result._replace(switched=_untouched(result.switched))
        if self.wish.json:
            print(as_json([_facts(self.results[host.name]) for host in self.hosts]))
        sys.stdout.flush()
        bad = [host for host in self.hosts if self.results[host.name].exit_code]
        for host in bad:
            said = error_text(_why(self.results[host.name]))
            print(f"{escape(host.name)}: {said}", file=sys.stderr)
        if bad:
            for line in self._standing():
                print(escape(line), file=sys.stderr)
        statuses = {self.results[host.name].exit_code for host in bad}
        return UNREACHABLE if UNREACHABLE in statuses else max(statuses, default=0)

    def _ask(
        self, hosts: Sequence[Host], options: dict[str, Any], how: How | None = None
    ) -> Iterator[fanout.Answer[Any]]:
        return fanout.ask(
            self.inventory, hosts, "deploy", options, how or self.how, configs=self.configs
        )

    def _print(self, host: Host, result: Result) -> None:
        if self.wish.json:
            return
        if result.error:
            print(report.gave_up(host, result.error, self.style), flush=True)
        else:
            print(text(result.switched, self.style, self.wish), flush=True)

    def _standing(self) -> Iterator[str]:
        """How the hosts stand after a failure, and what to type."""
        states: dict[str, list[str]] = {}
        for host in self.hosts:
            states.setdefault(self.results[host.name].state, []).append(host.name)
        if self.wish.check or not self.began:
            if not self.wish.check:
                bad = [host.name for host in self.hosts if self.results[host.name].exit_code]
                yield "no host was changed"
                if len(bad) < len(self.hosts):
                    without = ",".join(f"!{name}" for name in bad)
                    yield f"hint:  mend that, or leave it out: invoke deploy --limit '{without}'"
            return
        told = {
            DEPLOYED: "done",
            UNCHANGED: "nothing to do",
            PUT_BACK: "put back",
            BROKEN: "broken",
            FAILED: "unchanged",
            UNKNOWN: "not known",
            UNTOUCHED: "not touched",
        }
        yield "; ".join(
            f"{word}: {', '.join(states[state])}" for state, word in told.items() if state in states
        )
        if unknown := states.get(UNKNOWN):
            yield f"{', '.join(unknown)}: ends it, or puts it back, by itself"
        yield "hint:  mend that, and type invoke deploy again: what is done has nothing to do then"


def text(result: Switched, style: Style, wish: Wish) -> str:
    """What became of a host, for a person."""
    host, lines = escape(result.host), list[str]()
    if result.changes or result.state == UNCHANGED:
        changes = Installed(result.host, result.supervisor, result.changes, (), result.home)
        lines.append(report.installed(changes, style, check=wish.check, diff=wish.diff))
    if result.workers:
        lines.append(report.done(result.workers, style))
    if result.state == PUT_BACK:
        was = f"release {result.release}" if result.release else "what was there"
        again = f"{was} runs again" if result.workers else "all is as it was"
        lines.append(f"{host}: {style.paint(PUT_BACK, 'red')}: {again}")
    if result.state == BROKEN:
        lines.append(f"{host}: {style.paint(BROKEN, 'red')}")
    lines += [f"{host}: {style.paint('note', 'yellow')}: {escape(n)}" for n in result.notes]
    return "\n".join(lines)


def _result(host: Host, facts: Any, error: RolecallError | None) -> Result:
    if error is None:
        try:
            return Result(Switched.of(facts)._replace(host=host.name))
        except RolecallError as nonsense:
            return Result(Switched(host.name, "", UNKNOWN), nonsense)
    # Only where the line was lost in between; what a host itself says is what it began with.
    state = UNKNOWN if isinstance(error, Lost) else FAILED
    return Result(Switched(host.name, "", state), error)


def _untouched(switched: Switched) -> Switched:
    return switched._replace(
        state=UNTOUCHED, release=switched.before, changes=(), workers=(), notes=()
    )


def _facts(result: Result) -> dict[str, Any]:
    error = None if result.well or result.state == UNTOUCHED else str(_why(result))
    return {**result.switched.facts(), "error": error}


def _why(result: Result) -> RolecallError:
    """What went wrong on a host."""
    return result.error or ConfigError.of(list(result.switched.problems))
