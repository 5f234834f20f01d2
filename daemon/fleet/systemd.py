"""Workers as user units: systemd starts them, restarts them, and keeps their journal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from daemon.config import Config
from daemon.errors import EXIT_CONFIG
from daemon.fleet import linger, units
from daemon.fleet.connection import Local, Ran, Unreachable
from daemon.fleet.supervisor import SYSTEMD, State, Told
from daemon.fleet.units import service, stop_seconds

SHOWN = (
    "Id,LoadState,ActiveState,SubState,MainPID,ActiveEnterTimestamp,StateChangeTimestamp,"
    "NRestarts,StatusText,Result,ExecMainStatus"
)
STATES = {
    "active": "running",
    "reloading": "running",
    "activating": "starting",
    "deactivating": "stopping",
    "failed": "failed",
}
START_SECONDS = 90  # above TimeoutStartSec
HAND_OVER_SECONDS = 15
REACH_SECONDS = 10
MARGIN = 15
POLL = 0.05
LOG_LINES = 10
NOT_INSTALLED = Told("not installed", ok=False, note="invoke install")
WHY = {
    "start-limit-hit": "started too often in too short a time",
    "watchdog": "gave no sign of life, and was killed",
    "timeout": "did not start or stop in time",
    "oom-kill": "killed: out of memory",
}


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
        rendered = units.render(self.config, connection.python, connection.checkout, path)
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

    def missing(self, changed: Sequence[str]) -> list[str]:
        """Which units are to be enabled, and whether the manager has to read them again."""
        self._reach()
        reload = ["reload the user manager"] if changed or self._outdated() else []
        return reload + [f"enable {name}" for name in self.disabled()]

    def forget(self, removed: Sequence[str]) -> None:
        """Stop the units of these files, and take them out of what starts at boot."""
        names = [os.path.basename(path) for path in removed]
        if names:
            seconds = max(map(stop_seconds, self.config.roles.values())) + MARGIN
            self._systemctl("stop", *names, seconds=seconds)
            self._systemctl("disable", "--quiet", *names, check=True)
            self._systemctl("reset-failed", *names)

    def refresh(self, changed: Sequence[str], *, enable: bool = True) -> None:
        """Let the manager read units that have changed; enable those that are not."""
        if changed or self._outdated():
            self._systemctl("daemon-reload", check=True)
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
        wants = {
            name: os.path.join(self.folder, f"{units.target(self.prefix)}.wants", name)
            for name in (service(self.prefix, role) for role in self.config.run)
        }
        target = units.target(self.prefix)
        wants[target] = os.path.join(self.folder, "default.target.wants", target)
        return [name for name, link in wants.items() if not self.connection.exists(link)]

    def disable(self, names: Sequence[str]) -> None:
        """Take these units out of what starts at boot."""
        if names:
            self._systemctl("disable", "--quiet", *names, check=True)

    # --- workers ---------------------------------------------------------------------------

    def states(self, roles: Sequence[str]) -> dict[str, State]:
        """How the workers are: one call, however many they are."""
        names = [service(self.prefix, role) for role in roles]
        said = self._systemctl(
            "show", "--timestamp=unix", f"--property={SHOWN}", "--", *names, check=True
        )
        facts = [
            dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            for block in said.out.split("\n\n")
            if block.strip()
        ]
        by_name = {fact["Id"]: fact for fact in facts}
        return {role: _state(by_name.get(service(self.prefix, role), {})) for role in roles}

    def start(self, roles: Sequence[str]) -> dict[str, Told]:
        """Start the workers, and the target where they are all of them."""
        before = self.states(roles)
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
            budget = max(stop_seconds(self.config.roles[role]) for role in roles) + MARGIN
            self._systemctl("stop", *names, seconds=budget)
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
        before = self.states(roles)
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
        """The journal of the workers and of their attempts."""
        names = [f"--user-unit={service(self.prefix, role)}" for role in roles]
        more = ["--follow"] if follow else []
        argv = ["journalctl", "--user", "--no-pager", f"--lines={lines}", *more, *names]
        return self.connection.lines(argv)

    # --- the manager -----------------------------------------------------------------------

    def _reach(self) -> None:
        """Wait for a manager that has just been asked for; raises where there is none."""
        until = time.monotonic() + REACH_SECONDS
        while problem := manager_problem(self.connection):
            if time.monotonic() >= until or not linger.state(self.connection):
                raise problem
            time.sleep(POLL)

    def _all(self, roles: Sequence[str]) -> bool:
        return set(roles) >= set(self.config.run)

    def _failed(self, role: str, state: State) -> Told:
        name = service(self.prefix, role)
        said = self.connection.run(
            ["journalctl", "--user", "--output=cat", f"--lines={LOG_LINES}", f"--user-unit={name}"]
        )
        note = "\n".join([state.text or state.state, *said.out.splitlines()])
        return Told(f"not started ({state.state})", ok=False, note=note)

    def _systemctl(self, *words: str, seconds: float = 30, check: bool = False) -> Ran:
        done = self.connection.run(["systemctl", "--user", *words], seconds=seconds)
        if check and done.status:
            problem = manager_problem(self.connection)
            raise problem or Unreachable(f"systemctl --user {words[0]}: {done.said}")
        return done


def manager_problem(connection: Local) -> Unreachable | None:
    """Why the user manager cannot be worked with, and how to mend it; None where it can."""
    done = connection.run(["systemctl", "--user", "show", "--property=Version"])
    if done.status == 0:
        return None
    return Unreachable(
        f"the user manager of {connection.user} can't be reached: {done.said}",
        hint=f"as root: loginctl enable-linger {connection.user}"
        "  (it needs dbus-user-session and libpam-systemd), or set supervisor: pidfile",
    )


def bus_problem(connection: Local) -> str:
    """What a person has to do where attempts cannot be started: they are asked for over D-Bus."""
    if connection.exists(os.path.join(connection.environ["XDG_RUNTIME_DIR"], "bus")):
        return ""
    return (
        f"{connection.user} has no session bus, without which no attempt can be started. "
        "As root: apt-get install dbus-user-session, and log in again"
    )


def _state(facts: dict[str, str]) -> State:
    if facts.get("LoadState", "not-found") == "not-found":
        return State("not installed", text="invoke install")
    active = facts["ActiveState"]
    state = STATES.get(active, "stopped")
    stamp = facts["ActiveEnterTimestamp" if active == "active" else "StateChangeTimestamp"]
    text = facts.get("StatusText", "") if state in {"running", "stopping"} else ""
    if state == "failed" or facts["SubState"] == "auto-restart":
        text = _why(facts)
    return State(
        state,
        int(facts["MainPID"]) or None,
        float(stamp[1:]) if stamp.startswith("@") else None,
        int(facts["NRestarts"]),
        text,
    )


def _why(facts: dict[str, str]) -> str:
    result, status = facts["Result"], facts["ExecMainStatus"]
    if result in WHY:
        return WHY[result]
    if status == str(EXIT_CONFIG):
        return "exit status 78: its configuration, or its queue, cannot be used"
    word = "signal" if result in {"signal", "core-dump"} else "exit status"
    return f"ended with {word} {status}"
