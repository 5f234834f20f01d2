"""A workspace of a test's own: a queue, a config, and real workers on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
PATIENCE = 30.0  # seconds; only ever waited for when something is wrong
Found = TypeVar("Found")

#: Short times everywhere, so that a test waits for an event and not for a default.
QUICK = {
    "interval": 5,
    "heartbeat": 1,
    "lease_ttl": 6,
    "timeout": 20,
    "stop_budget": 10,
    "kill_grace": 1,
    "backoff": {"base": 0.01, "cap": 0.01},
    "breaker": {"failures": 0},
}


def wait_for(condition: Callable[[], Found], what: str = "", seconds: float = PATIENCE) -> Found:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(0.02)


class Workspace:
    """``run`` and ``start`` are ``python -m daemon`` on it.

    ``inside``: its path as the workers see it, ``prefix``: what starts them, where either differs.
    """

    def __init__(
        self, path: Path, inside: Path | None = None, prefix: tuple[str, ...] = ()
    ) -> None:
        self.path, self.inside, self.prefix = path, inside or path, prefix
        self.stderr = path / "workers.log"
        self.queue = path / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"
        self.config = path / "rolecall.yml"
        self.started: list[subprocess.Popen[str]] = []

    def write_queue(self, *tasks: dict[str, Any], **top: Any) -> None:
        self.queue.parent.mkdir(parents=True, exist_ok=True)
        aside = self.queue.with_suffix(".new")
        aside.write_text(json.dumps({"tasks": list(tasks), **top}, indent=2) + "\n")
        aside.rename(self.queue)

    def write_config(self, **roles: dict[str, Any]) -> None:
        """JSON is YAML. A role given as ``{"script": TEXT}`` runs it in sh."""
        made = {}
        for name, given in roles.items():
            role = {**QUICK, **given}
            if "script" in role:
                role |= {"agent": "command", "command": ["sh", "-c", role.pop("script")]}
            made[name] = role
        self.config.write_text(json.dumps({"workspace": str(self.inside), "roles": made}))

    def command(self, *arguments: str) -> list[str]:
        config = str(self.inside / self.config.name)
        return [*self.prefix, sys.executable, "-m", "daemon", "--config", config, *arguments]

    def run(self, *arguments: str, **keys: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
            **keys,
        )

    def start(self, *arguments: str, **keys: Any) -> subprocess.Popen[str]:
        with self.stderr.open("a") as log:
            worker = subprocess.Popen(
                self.command(*arguments),
                cwd=ROOT,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **keys,
            )
        self.started.append(worker)
        return worker

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.queue.read_text())
        return found

    def task(self, identifier: str = "T1") -> dict[str, Any]:
        found: dict[str, Any]
        found = next(each for each in self.document()["tasks"] if each["id"] == identifier)
        return found

    def status(self, identifier: str = "T1") -> str:
        return str(self.task(identifier)["status"])

    def wait_status(self, status: str, identifier: str = "T1") -> None:
        wait_for(lambda: self.status(identifier) == status, f"{identifier} {status}: {self.log()}")

    def lease(self, identifier: str = "T1") -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(
                (self.path / ".leases" / f"{identifier}.json").read_text()
            )
        except FileNotFoundError:
            return None
        return found

    def attempt_pid(self, identifier: str = "T1") -> int:
        """The attempt that took the lease over; waits for it."""

        def taken() -> int:
            lease = self.lease(identifier)
            return lease["pid"] if lease and lease["pid"] not in self.pids() else 0

        return wait_for(taken, f"{identifier} taken over")

    def pids(self) -> set[int]:
        return {worker.pid for worker in self.started}

    def file(self, name: str) -> str:
        """What an agent wrote; waits for it."""
        path = self.path / name
        return wait_for(lambda: path.read_text() if path.exists() else "", name)

    def events(self) -> list[dict[str, Any]]:
        path = self.path / ".agent-daemon-logs" / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def log(self) -> str:
        return self.stderr.read_text() if self.stderr.exists() else ""

    def tree(self, task_id: str = "") -> list[int]:
        """Every process that carries the marker of an attempt here (on that task)."""
        place = f"{self.inside}/.agent-runs/{task_id}/" if task_id else f"{self.inside}/"
        mark, found = f"ROLECALL_RESULT_FILE={place}".encode(), []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    environ = Path(f"/proc/{entry}/environ").read_bytes()
                except OSError:
                    continue
                if mark in environ:
                    found.append(int(entry))
        return found

    def leases(self) -> list[str]:
        folder = self.path / ".leases"
        return [each.name for each in folder.iterdir()] if folder.exists() else []

    def end(self) -> None:
        """End what is left; a test that leaves attempts behind has failed before."""
        for worker in self.started:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
                worker.send_signal(signal.SIGTERM)
        for worker in self.started:
            try:
                worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for pid in self.tree():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
