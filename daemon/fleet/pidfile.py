"""Workers without systemd: sessions of their own, known by a pid file.

Nothing starts them again: not after a crash, not at boot.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from daemon import process
from daemon.config import Config
from daemon.fleet import journal, units
from daemon.fleet.connection import Local
from daemon.fleet.supervisor import PIDFILE, State, Told, reason

READY_SECONDS = 30
HAND_OVER_SECONDS = 15
KILL_SECONDS = 5
POLL = 0.05
LOG_LINES = 10


class Found(NamedTuple):
    """A process that a pid file truly speaks of."""

    pid: int
    started: int


class PidFiles:
    """The workers of one workspace on one host, by their pid files."""

    name = PIDFILE

    def __init__(self, connection: Local, config: Config) -> None:
        self.connection, self.config = connection, config

    # --- files: the effective config, which install writes, is all it needs -----------------

    def files(self) -> dict[str, str]:
        """None."""
        return {}

    def installed(self) -> dict[str, str]:
        """None."""
        return {}

    def missing(self, changed: Sequence[str], *, check: bool = False) -> list[str]:  # noqa: ARG002  # the interface's
        """Nothing."""
        return []

    def notes(self, *, fresh: bool) -> list[str]:
        """Once, that nothing starts the workers again."""
        again = (
            "nothing starts pid-file workers again: after a crash or a boot, invoke agents.start"
        )
        return [f"{again}; invoke doctor has a line for cron"] if fresh else []

    def at_boot(self) -> str:
        """The line of a crontab that starts the workers at boot."""
        where, role = self.connection.checkout, "$role"
        logs, pids = map(shlex.quote, (self.config.paths.logs, self.config.paths.pids))
        config = "~/" + os.path.relpath(self._config_file, self.connection.home)
        words = units.worker_command(self.connection.python, role, config)
        command = " ".join(each if each in (role, config) else shlex.quote(each) for each in words)
        line = (
            f"cd {shlex.quote(where)} && mkdir -p {logs} && for role in {' '.join(self.config.run)}"
            f"; do {command} --pid-file {pids}/{role}.pid >/dev/null 2>>{logs}/{role}.log & done"
        )
        return "@reboot " + line.replace("%", "\\%")  # cron's sign for a new line

    def forget(self, removed: Sequence[str]) -> None:
        """Nothing to forget."""

    def refresh(self, changed: Sequence[str], *, enable: bool = True) -> None:
        """Nothing to read, and nothing that starts pid-file workers at boot."""

    def disabled(self) -> list[str]:
        """None: there are no units."""
        return []

    def disable(self, names: Sequence[str]) -> None:
        """Nothing that could be."""

    # --- workers ---------------------------------------------------------------------------

    def states(self, roles: Sequence[str]) -> dict[str, State]:
        """How the workers are."""
        known = self.connection.exists(self._config_file)
        states = {}
        for role in roles:
            worker = self._worker(role)
            if worker:
                states[role] = State("running", worker.pid, _since(worker.started))
            elif self.connection.exists(self._pid_file(role)):
                text = "it died: its pid file is left, its process is gone"
                states[role] = State("failed", text=text)
            else:
                states[role] = State("stopped") if known else State("not installed")
        return states

    def start(self, roles: Sequence[str]) -> dict[str, Told]:
        """Start the workers one after another; each says itself when it is ready."""
        return {role: self._start(role) for role in roles}

    def _start(self, role: str) -> Told:
        if self._worker(role):
            return Told("already running")
        if not self.connection.exists(self._config_file):
            return Told("not installed", ok=False, note="invoke install")
        connection, pid_file = self.connection, self._pid_file(role)
        connection.remove(pid_file)  # of a worker that is gone
        command = units.worker_command(connection.python, role, self._config_file)
        started = connection.spawn(
            [*command, "--pid-file", pid_file],
            connection.checkout,
            self._log_file(role),
            READY_SECONDS,
        )
        if not started.problem:
            return Told("started")
        log = connection.tail(self._log_file(role), LOG_LINES)
        return Told("not started", ok=False, note=reason(started.problem, log))

    def stop(self, roles: Sequence[str]) -> dict[str, Told]:
        """TERM, then wait as long as the role's stop may take, then KILL."""
        workers = {role: worker for role in roles if (worker := self._worker(role))}
        for worker in workers.values():
            self.connection.signal(*worker, signal.SIGTERM)
        began = time.monotonic()
        told = {}
        for role in roles:
            if role not in workers:
                self.connection.remove(self._pid_file(role))
                told[role] = Told("not running")
                continue
            seconds = units.stop_seconds(self.config.roles[role])
            told[role] = Told("stopped")
            if not _wait_gone(workers[role], began + seconds):
                self.connection.signal(*workers[role], signal.SIGKILL)
                told[role] = Told("killed", note=f"it had not stopped in {seconds} s")
                if not _wait_gone(workers[role], time.monotonic() + KILL_SECONDS):
                    told[role] = Told("not stopped", ok=False, note="it cannot be killed")
                    continue
            self.connection.remove(self._pid_file(role))
        return told

    def restart(self, roles: Sequence[str]) -> dict[str, Told]:
        """Tell each worker to hand over, wait until it has gone, start the next one."""
        workers = {role: worker for role in roles if (worker := self._worker(role))}
        for worker in workers.values():
            self.connection.signal(*worker, signal.SIGUSR1)
        until = time.monotonic() + HAND_OVER_SECONDS
        told = {}
        for role in roles:
            if role in workers and not _wait_gone(workers[role], until):
                note = f"its worker has not handed over in {HAND_OVER_SECONDS} s"
                told[role] = Told("not restarted", ok=False, note=note)
                continue
            started = self._start(role)
            told[role] = Told("restarted") if role in workers and started.ok else started
        return told

    def kill(self, roles: Sequence[str]) -> None:
        """KILL, and wait until they are gone: they are not, if the kernel holds them."""
        workers = [worker for role in roles if (worker := self._worker(role))]
        for worker in workers:
            self.connection.signal(*worker, signal.SIGKILL)
        until = time.monotonic() + KILL_SECONDS
        for worker in workers:
            _wait_gone(worker, until)

    def logs(self, roles: Sequence[str], lines: int, *, follow: bool) -> Iterator[str]:
        """The workers' log files, one after another; then what is added to them."""
        files = [self._log_file(role) for role in roles]
        return journal.from_files(self.connection, files, lines, follow=follow)

    # --- pid files -------------------------------------------------------------------------

    @property
    def _config_file(self) -> str:
        return units.config_file(self.connection.home, self.config.unit_prefix)

    def _pid_file(self, role: str) -> str:
        return os.path.join(self.config.paths.pids, f"{role}.pid")

    def _log_file(self, role: str) -> str:
        return os.path.join(self.config.paths.logs, f"{role}.log")

    def _worker(self, role: str) -> Found | None:
        """The worker that the pid file speaks of. A stale file, or a reused pid, is no worker."""
        path = self._pid_file(role)
        try:
            pid, started = (int(line) for line in (self.connection.read(path) or "").split())
        except (OSError, ValueError):
            return None
        # After a reboot another process may have the same pid and, to the tick, the same start.
        if not process.is_alive(pid, started) or path not in _arguments(pid):
            return None
        return Found(pid, started)


def _arguments(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(each) for each in file.read().split(b"\0")]
    except OSError:
        return []


def _wait_gone(worker: Found, until: float) -> bool:
    while process.is_alive(*worker):
        if time.monotonic() >= until:
            return False
        time.sleep(POLL)
    return True


def _since(started: int) -> float | None:
    """When a process started, in seconds since the epoch, from its ticks since boot."""
    seconds = started / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
