"""What a worker tells whoever supervises it: readiness, status, liveness, its pid."""

from __future__ import annotations

import os
import socket

from daemon import process


class Notifier:
    """sd_notify(3) over ``NOTIFY_SOCKET``; silent where nobody listens.

    The variable is taken out of the environment: agents must not speak in the worker's name.
    """

    def __init__(self, environ: dict[str, str] | os._Environ[str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        for_us = environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        period = environ.pop("WATCHDOG_USEC", "")
        #: Seconds between signs of life, half of what the supervisor allows; None: none wanted.
        self.watchdog = int(period) / 2e6 if period.isdigit() and for_us else None
        self._status = ""

    def send(self, *lines: str) -> None:
        """Send assignments (``READY=1``). A supervisor that has gone is no reason to fail."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(0)
            try:
                channel.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return

    def status(self, text: str) -> None:
        """Say what the worker is doing, in words; said once, however often it is called."""
        if text != self._status:
            self._status = text
            self.send("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        """Give a sign of life, where one is wanted."""
        if self.watchdog is not None:
            self.send("WATCHDOG=1")


class PidFile:
    """A pid and, on the second line, the start time in ticks that makes it trustworthy."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self) -> None:
        """Put our own identity there, whole or not at all."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self._tidy()
        me = process.identity()
        aside = f"{self.path}.{me.pid}.tmp"
        with open(aside, "w", encoding="ascii") as file:
            file.write(f"{me.pid}\n{me.pid_started}\n")
        os.rename(aside, self.path)

    def _tidy(self) -> None:
        """Remove what a writer that was killed left here."""
        folder, name = os.path.split(self.path)
        for left in os.listdir(folder):
            pid = left.removeprefix(f"{name}.").removesuffix(".tmp")
            if left == f"{name}.{pid}.tmp" and pid.isdecimal() and not process.stat(int(pid)):
                try:
                    os.unlink(os.path.join(folder, left))
                except FileNotFoundError:  # another worker that starts was quicker
                    continue

    def running(self) -> int:
        """The pid of the worker that wrote it and still runs; 0 where there is none."""
        try:
            with open(self.path, encoding="ascii") as file:
                pid, started = (int(line) for line in file.read(100).split())
        except (OSError, ValueError):
            return 0
        return pid if process.is_alive(pid, started) else 0

    def remove(self) -> None:
        """Take it away, if it is still ours."""
        if self.running() == os.getpid():
            os.unlink(self.path)
