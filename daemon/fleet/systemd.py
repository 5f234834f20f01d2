"""Workers as user units: systemd starts them, restarts them, and keeps their journal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from daemon.config import Config
from daemon.fleet import journal, linger, unitfacts, units
from daemon.fleet.connection import Local, Ran, Unreachable
from daemon.fleet.manager import Dark, NoManager, bus_problem, manager_problem
from daemon.fleet.supervisor import BOOTED, SYSTEMD, State, Told, reason
from daemon.fleet.units import service, stop_seconds

START_SECONDS = 90  # above TimeoutStartSec
HAND_OVER_SECONDS = 15
REACH_SECONDS = 10
MARGIN = 15
POLL = 0.05
LOG_LINES = 10
DARK = "lingering is off: it ends soon after the last logout"
NOT_INSTALLED = Told("not installed", ok=False, note="invoke install")


class Systemd:
    """The user manager of one host, for the units of one prefix."""

    name = SYSTEMD

    def __init__(self, connection: Local, config: Config) -> None:
        self.connection, self.config = connection, config
        self.prefix = config.unit_prefix
        self.folder = os.path.join(connection.home, ".config", "systemd", "user")

    # --- files -----------------------------------------------------------------------------

    def files(self) -> dict[str, str]:
        """The unit files of the host."""
        connection = self.connection
        path = units.config_file(connection.home, self.prefix)
        code = connection.releases or connection.checkout
        rendered = units.render(self.config, connection.python, connection.checkout, path, code)
        return {os.path.join(self.folder, name): text for name, text in rendered.items()}

    def installed(self) -> dict[str, str]:
        """The unit files of the prefix that install has made, and what else has their names."""
        wanted = {service(self.prefix, role) for role in self.config.run}
        wanted |= {units.target(self.prefix), units.slice_(self.prefix)}
        found = {}
        for name in self.connection.names(self.folder):
            path = os.path.join(self.folder, name)
            if units.is_ours(name, self.prefix):
                text = self.connection.read(path) or ""
                if name in wanted or units.workspace_of(text) == self.config.workspace:
                    found[path] = text
        return found

    def missing(self, changed: Sequence[str], *, check: bool = False) -> list[str]:
        """Which units are to be enabled, and whether the manager has to read them again."""
        try:
            self._reach()
        except Dark:
            if not check:
                raise
            return [f"enable {name}" for name in self.disabled()]  # a new manager reads them all
        reload = ["reload the user manager"] if changed or self._outdated() else []
        return reload + [f"enable {name}" for name in self.disabled()]

    def notes(self, *, fresh: bool) -> list[str]:
        """Without a bus no attempt starts; a journal that cannot be read is said once."""
        runs = self.connection.exists(self.connection.environ["XDG_RUNTIME_DIR"])
        missing = bus_problem(self.connection) if runs else None  # else a manager comes with one
        notes = ["; ".join(missing)] if missing else []
        if fresh and (problem := journal.problem(self.connection)):
            found = problem.problems[0]
            notes.append(f"{found.what}; {found.hint}")
        return notes

    def forget(self, removed: Sequence[str]) -> None:
        """Stop the units of these files, and take them out of what starts at boot."""
        names = [os.path.basename(path) for path in removed]
        if names:
            seconds = max(map(stop_seconds, self.config.roles.values()), default=0) + MARGIN
            self._systemctl("stop", *names, seconds=seconds)
            try:
                self._systemctl("disable", "--quiet", *names, check=True)
            except NoManager:  # nobody is there who would do more than this
                for name in names:
                    self.connection.remove(self._link(name))
            self._systemctl("reset-failed", *names)

    def refresh(self, changed: Sequence[str], *, enable: bool = True) -> None:
        """Let the manager read units that have changed; enable those that are not."""
        if changed or self._outdated():
            try:
                self._systemctl("daemon-reload", check=True)
            except NoManager:  # the next one reads them when it starts
                if enable:
                    raise
        disabled = self.disabled() if enable else []
        if disabled:
            self._systemctl("enable", "--quiet", *disabled, check=True)

    def _outdated(self) -> bool:
        """Whether any unit of the prefix is not what its file says now."""
        names = [service(self.prefix, role) for role in self.config.run]
        names += [units.target(self.prefix), units.slice_(self.prefix)]
        said = self._systemctl("show", "--property=NeedDaemonReload", "--value", "--", *names)
        return "yes" in said.out.split()

    def disabled(self) -> list[str]:
        """Which of the host's units are not to start at boot."""
        # The links that `enable` makes: asking the manager would cost more than looking.
        names = [service(self.prefix, role) for role in self.config.run]
        names.append(units.target(self.prefix))
        return [name for name in names if not self.connection.exists(self._link(name))]

    def _link(self, name: str) -> str:
        target = units.target(self.prefix)
        wanted_by = "default.target" if name == target else target
        return os.path.join(self.folder, f"{wanted_by}.wants", name)

    def disable(self, names: Sequence[str]) -> None:
        """Take these units out of what starts at boot."""
        if names:
            self._systemctl("disable", "--quiet", *names, check=True)

    # --- workers ---------------------------------------------------------------------------

    def states(self, roles: Sequence[str]) -> dict[str, State]:
        """How the workers are: one call, however many they are."""
        try:
            states = self._ask(roles)
        except NoManager as problem:
            return {role: self._without_manager(role, problem) for role in roles}
        if not linger.state(self.connection):
            for role, state in states.items():
                if state.state == "running":
                    text = "; ".join(filter(None, [state.text, DARK]))
                    states[role] = state._replace(text=text)
        return states

    def _ask(self, roles: Sequence[str]) -> dict[str, State]:
        names = [service(self.prefix, role) for role in roles]
        said = self._systemctl(
            "show", "--timestamp=unix", f"--property={unitfacts.SHOWN}", "--", *names, check=True
        )
        found = unitfacts.read(said.out)
        return {role: found.get(service(self.prefix, role), unitfacts.MISSING) for role in roles}

    def _without_manager(self, role: str, problem: NoManager) -> State:
        """Nothing of this account runs then, so that is no guess."""
        if self.connection.exists(os.path.join(self.folder, service(self.prefix, role))):
            found = problem.problems[0]
            return State("stopped", text=f"{found.what}; {found.hint}")
        return unitfacts.MISSING

    def start(self, roles: Sequence[str]) -> dict[str, Told]:
        """Start the workers, and the target where they are all of them."""
        before = self._ask(roles)
        told = {role: NOT_INSTALLED for role in roles if before[role].state == "not installed"}
        told |= {role: Told("already running") for role in roles if before[role].state == "running"}
        rest = [role for role in roles if role not in told]
        names = [service(self.prefix, role) for role in rest]
        if names:
            # The count of starts is forgotten, too: a person's start is no crash.
            self._systemctl("reset-failed", *names)
            self._systemctl("start", *names, seconds=START_SECONDS)
        if self._all(roles) and len(told) + len(rest) > list(told.values()).count(NOT_INSTALLED):
            self._systemctl("start", units.target(self.prefix), seconds=START_SECONDS)
        after = self.states(rest) if rest else {}
        for role in rest:
            running = after[role].state == "running"
            told[role] = Told("started") if running else self._failed(role, after[role])
        return {role: told[role] for role in roles}

    def stop(self, roles: Sequence[str]) -> dict[str, Told]:
        """Stop the workers, and the target where they are all of them."""
        before = self.states(roles)
        running = [role for role in roles if before[role].state not in {"not installed", "stopped"}]
        names = [service(self.prefix, role) for role in running]
        if self._all(roles):
            names.append(units.target(self.prefix))
        if names:
            longest = max((stop_seconds(self.config.roles[role]) for role in roles), default=0)
            self._systemctl("stop", *names, seconds=longest + MARGIN)
        if running:
            self._systemctl("reset-failed", *(service(self.prefix, role) for role in running))
        after = self.states(running) if running else {}
        told = {}
        for role in roles:
            if role not in running:
                told[role] = Told("not running")
            elif after[role].state == "stopped":
                told[role] = Told("stopped")
            else:
                told[role] = Told("not stopped", ok=False, note=after[role].text)
        return told

    def restart(self, roles: Sequence[str]) -> dict[str, Told]:
        """Tell each worker to hand over, wait until it has gone, start the next one."""
        before = self._ask(roles)
        running = [role for role in roles if before[role].state in {"running", "starting"}]
        waiting = [role for role in running if before[role].pid]
        for role in waiting:
            name = service(self.prefix, role)
            self._systemctl("kill", "--kill-who=main", "--signal=SIGUSR1", name)
        until = time.monotonic() + HAND_OVER_SECONDS
        while waiting and time.monotonic() < until:
            time.sleep(POLL)
            now = self.states(waiting)
            waiting = [role for role in waiting if now[role].pid == before[role].pid]
        started = self.start([role for role in roles if role not in waiting])
        told = {}
        for role in roles:
            if role in waiting:
                note = f"its worker has not handed over in {HAND_OVER_SECONDS} s"
                told[role] = Told("not restarted", ok=False, note=note)
            elif role in running and started[role].ok:
                told[role] = Told("restarted")
            else:
                told[role] = started[role]
        return told

    def kill(self, roles: Sequence[str]) -> None:
        """KILL what is left of them; the manager may start them again by itself."""
        for role in roles:
            name = service(self.prefix, role)
            self._systemctl("kill", "--kill-who=main", "--signal=SIGKILL", name)

    def logs(self, roles: Sequence[str], lines: int, *, follow: bool) -> Iterator[str]:
        """The journal of the workers and of their attempts.

        Raises RolecallError where this account may not read it, after what can be shown: the
        workers' own files, which they write where the journal is not kept.
        """
        problem = journal.problem(self.connection)
        if not problem:
            names = [service(self.prefix, role) for role in roles]
            more = ["--follow"] if follow else []
            yield from self.connection.lines(journal.command(names, lines, *more))
            return
        if follow:  # it may be long until the error is seen
            yield f"note: {problem.problems[0].what}; these are the workers' own files"
        files = [os.path.join(self.config.paths.logs, f"{role}.log") for role in roles]
        yield from journal.from_files(self.connection, files, lines, follow=follow)
        raise problem

    # --- the manager -----------------------------------------------------------------------

    def _reach(self) -> None:
        """Wait for a manager that has just been asked for; raises where there is none."""
        until = time.monotonic() + REACH_SECONDS
        while problem := manager_problem(self.connection):
            expected = self.connection.exists(BOOTED) and linger.state(self.connection)
            if not expected or time.monotonic() >= until:
                raise problem
            time.sleep(POLL)

    def _all(self, roles: Sequence[str]) -> bool:
        """Whether these are all of the host. None are never: others that run are not asked about.

        The target takes its workers along, and whoever stops them next would find them gone.
        """
        return bool(roles) and set(roles) >= set(self.config.run)

    def _failed(self, role: str, state: State) -> Told:
        name = service(self.prefix, role)
        problem = journal.problem(self.connection)
        if problem:
            uid = os.getuid()
            read = f"as root: journalctl _UID={uid} _SYSTEMD_USER_UNIT={name}"
            said = [f"{problem.problems[0].what}; {read}"]
        else:
            argv = journal.command([name], LOG_LINES, "--output=cat")
            said = self.connection.run(argv).out.splitlines()
        why = reason(state.text or state.state, said)
        return Told(f"not started ({state.state})", ok=False, note=why)

    def _systemctl(self, *words: str, seconds: float = 30, check: bool = False) -> Ran:
        done = self.connection.run(["systemctl", "--user", *words], seconds=seconds)
        if check and done.status:
            problem = manager_problem(self.connection)
            raise problem or Unreachable(f"systemctl --user {words[0]}: {done.said}")
        return done
