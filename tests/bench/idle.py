"""A worker that sleeps: its memory, and how often it wakes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench.rows import Row
from tests.bench.timing import ENVIRON, PATIENCE, ROOT

WATCHDOG = "120000000"  # microseconds, as in our units: the worker wakes at half of it
IDLE = 62.0  # seconds that the idle worker is watched at least: one look at its interval
# What a worker has loaded of the standard library: an empty queue is drained, and it is listed.
MODULES = """
import runpy, sys
sys.argv = ["daemon", *sys.argv[1:]]
try:
    runpy.run_module("daemon", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print(*sorted(name for name in sys.modules if name.split(".")[0] in sys.stdlib_module_names))
"""


@contextmanager
def worker(config: Path) -> Iterator[int]:
    """The pid of a builder that has looked at its queue and sleeps."""
    address = f"@rolecall-bench-{os.getpid()}-{config.parent.name}"
    env = {**ENVIRON, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": WATCHDOG}
    command = [sys.executable, "-m", "daemon", "--role", "builder", "--config", str(config)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, quiet() as null:
        channel.bind("\0" + address[1:])
        channel.settimeout(PATIENCE)
        started = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=null, stdout=null, stderr=null, close_fds=True
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while b"STATUS=waiting" not in (said := channel.recv(4096)):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the worker does not come to rest: {said.decode()}")
            yield started.pid
        finally:
            end(started)


@contextmanager
def quiet() -> Iterator[int]:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        yield null
    finally:
        os.close(null)


def end(started: subprocess.Popen[bytes]) -> None:
    """TERM, and KILL where that does not do; never by a name."""
    started.send_signal(signal.SIGTERM)
    try:
        started.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


class Idle(NamedTuple):
    """What the kernel has counted of a process: nanoseconds on a CPU, voluntary switches."""

    at: float
    cpu: int
    switches: int

    @classmethod
    def of(cls, pid: int) -> Idle:
        cpu = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
        return cls(time.monotonic(), cpu, fact(pid, "status", "voluntary_ctxt_switches"))


def fact(pid: int, file: str, name: str) -> int:
    """The number that a line ``name: number`` of /proc/PID/file holds."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise RuntimeError(f"/proc/{pid}/{file} has no {name}")


@contextmanager
def sleeper(config: Path) -> Iterator[int]:
    """The pid of a Python that sleeps, with the worker's standard library modules loaded."""
    command = [sys.executable, "-c", MODULES, "--role", "builder", "--drain", "--config"]
    listed = subprocess.run(
        [*command, str(config)],
        cwd=ROOT,
        env=ENVIRON,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    names = ", ".join(name for name in listed.stdout.split() if name != "__main__")
    source = f"import {names}\nprint(flush=True)\ntime.sleep(1e6)"
    started = subprocess.Popen([sys.executable, "-c", source], env=ENVIRON, stdout=subprocess.PIPE)
    try:
        if started.stdout is None or not started.stdout.readline():
            raise RuntimeError("the Python to compare with does not start")
        yield started.pid
    finally:
        started.kill()
        started.communicate()


def idle_rows(pid: int, asleep: int, before: Idle) -> list[Row]:
    """Memory now, and what the worker did since; waits until there is enough to go by."""
    time.sleep(max(0.0, before.at + IDLE - time.monotonic()))
    after = Idle.of(pid)
    minutes = (after.at - before.at) / 60
    memory = []
    for name, goal in (("Pss", 1.35), ("Rss", 1.35)):
        ours, theirs = (fact(each, "smaps_rollup", name) / 1024 for each in (pid, asleep))
        memory.append(Row(f"idle worker, {name.upper()}", ours, "MiB", theirs, goal))
    cpu, switches = (after.cpu - before.cpu) / 1e6, after.switches - before.switches
    return [
        *memory,
        Row("idle worker, CPU time a minute", cpu / minutes, "ms", None, 60),
        Row("idle worker, wake-ups a minute", switches / minutes, "", None, 5),
    ]
