"""One run of a program, its whole tree of processes included: start, feed, capture, end.

A single poll loop that nothing can block: not a full pipe, not an agent that never reads, not one
that never stops printing. It knows nothing of tasks and touches no queue.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from daemon import process, spawn, tree
from daemon.capture import Capture
from daemon.model import Lease
from daemon.tree import become_subreaper, marked, sessions

__all__ = [
    "Ended",
    "Run",
    "Stop",
    "become_subreaper",
    "execute",
    "is_another_s",
    "kill_tree",
    "marked",
    "sessions",
    "terminate",
]

LEFT_GRACE = 2.0  # seconds between TERM and KILL for what is left when the program ends by itself
REAPING = 1.0  # seconds between looks for orphans that have ended: they count against TasksMax
CHUNK = 1 << 16  # bytes; what a pipe holds
DRAIN = 64  # chunks read at most of a pipe that somebody out of reach still writes into


class Run(NamedTuple):
    """What to run. ``deadline`` is of time.monotonic(); ``marker`` the entry that ``env`` holds.

    ``stall``: the seconds that it may print nothing, None for as long as it likes.
    ``stdout`` and ``stderr`` are appended to; when they are one path, it is one pipe as well and
    the order of the output is kept.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    stdin: bytes
    stdout: str
    stderr: str
    secrets: tuple[str, ...]
    deadline: float
    kill_grace: float
    marker: str
    stall: float | None = None


class Ended(NamedTuple):
    """How it ended. ``status``: exit status, -N for signal N, None for what could not start.

    ``why``: "exited", "timeout", "stalled", "stopped" or "not started"; it is our own knowledge,
    whatever the status says. ``note``: the reason, or what there is to say of its output.
    """

    status: int | None
    why: str
    note: str
    seconds: float


class Stop(Protocol):
    """The wish that a run should end: ``fd`` becomes readable when ``asked`` should be called."""

    fd: int

    def asked(self) -> bool:
        """Whether somebody wishes so; stays true."""
        ...


def execute(run: Run, tick: Callable[[], float], stop: Stop) -> Ended:
    """Run it until it exits, is late, stalls or a stop is asked; its tree is dead then.

    ``tick`` is called at once and then as often as it asks for (it returns seconds); what it
    raises ends the run, the tree first. Raises RolecallError where output cannot be kept or a
    process outlives KILL, and OSError where the system has no room for another process.
    """
    began = time.monotonic()
    become_subreaper()
    known = frozenset(tree.children(os.getpid()))
    paths = dict.fromkeys((run.stdout, run.stderr))
    captures: list[Capture] = []
    try:
        captures += (Capture(path, run.secrets) for path in paths)
        started = spawn.start(
            run.argv, run.env, run.cwd, feed=bool(run.stdin), outputs=len(captures)
        )
    except BaseException:
        for capture in captures:
            capture.close()
        raise
    if isinstance(started, str):
        for capture in captures:
            capture.close()
        return Ended(None, "not started", started, time.monotonic() - began)
    program = _Program(started, run.stdin, captures, tick, known)
    found = process.stat(started.pid)
    ours = tree.Tree(run.marker, since=found.started if found else 0, known=known)
    try:
        why = program.watch(run.deadline, run.stall, stop)
        grace = min(LEFT_GRACE, run.kill_grace) if why == "exited" else run.kill_grace
        tree.end(ours.find, program.wait, grace)
    except BaseException:
        program.tick = lambda: math.inf
        tree.end(ours.find, program.wait, 0)
        raise
    finally:
        notes = program.close()
    return Ended(program.status, why, "; ".join(notes), time.monotonic() - began)


def kill_tree(
    lease: Lease, marker: str, *, grace: float = 0.0, known: Collection[int] | None = None
) -> None:
    """End what is left of an attempt, whoever started it; the calling process is spared.

    ``known``: the pids of the children that the caller started. Where it is given, all its other
    children are orphans of dead attempts, and are ended too. Nothing is done for an attempt of
    another host or another boot. Raises RolecallError where a process outlives KILL.
    """
    if not _is_here(lease):
        return
    if lease.unit:
        from daemon import transient  # noqa: PLC0415  # only where there are units

        if transient.is_unit_of(lease):  # a lease is a file: it may name anything
            transient.kill(lease.unit, tree.PATIENCE)
    roots = {(lease.pid, lease.pid_started)} if _is_attempt(lease, marker) else set()
    seen = int(lease.heartbeat_boottime * os.sysconf("SC_CLK_TCK"))
    is_ours = lease.pid_namespace == process.pid_namespace()
    left = tree.Tree(
        marker, known=known, roots=roots, sessions=lease.sessions if is_ours else (), seen=seen
    )

    def pause(seconds: float) -> None:
        time.sleep(seconds)
        if known is not None:
            tree.reap(known)

    tree.end(left.find, pause, grace)


def terminate(lease: Lease) -> bool:
    """Ask an attempt to end by itself; whether there was such a process."""
    if not _is_here(lease) or lease.pid_namespace != process.pid_namespace():
        return False
    found = process.stat(lease.pid) if lease.pid not in {0, os.getpid()} else None
    if found is None or found.started != lease.pid_started:
        return False
    return tree.send(found, signal.SIGTERM)


def is_another_s(lease: Lease, marker: str) -> bool:
    """Whether its process runs and is no attempt of ours, nor about to become one.

    On one queue it is another workspace's or account's of this machine: that settles for it, and
    nothing here may. What has no process here is nobody's.
    """
    return (
        lease.pid_namespace == process.pid_namespace()
        and process.is_alive(lease.pid, lease.pid_started)
        and not tree.is_marked(lease.pid, marker)
    )


def _is_here(lease: Lease) -> bool:
    """Whether its processes can be on this host and in this boot. A lease may not say."""
    return lease.machine_id in {"", process.machine_id()} and lease.boot_id in {
        "",
        process.boot_id(),
    }


def _is_attempt(lease: Lease, marker: str) -> bool:
    """Whether the lease's process is an attempt: until that takes over, it is the worker."""
    return (
        lease.pid_namespace == process.pid_namespace()
        and process.is_alive(lease.pid, lease.pid_started)
        and tree.is_marked(lease.pid, marker)
    )


class _Program:
    """A running program: its pipes, its exit, and the ticks meanwhile."""

    def __init__(
        self,
        started: spawn.Started,
        stdin: bytes,
        captures: list[Capture],
        tick: Callable[[], float],
        known: Collection[int],
    ) -> None:
        self.pid, self.tick, self.known = started.pid, tick, known
        self.status: int | None = None
        self.tick_at = self.reap_at = self.heard_at = time.monotonic()
        self.pidfd = os.pidfd_open(started.pid)
        self.stdin, self.rest = started.stdin, memoryview(stdin)
        self.captures = captures
        self.outputs = dict(zip(started.outputs, captures, strict=True))
        self.poll = select.poll()
        self.poll.register(self.pidfd, select.POLLIN)
        for fd in self.outputs:
            self.poll.register(fd, select.POLLIN)
        if self.stdin >= 0:
            self.poll.register(self.stdin, select.POLLOUT)

    def watch(self, deadline: float, stall: float | None, stop: Stop) -> str:
        """Until it ends by itself or has to be ended; why."""
        patience = math.inf if stall is None else stall
        if stop.fd >= 0:
            self.poll.register(stop.fd, select.POLLIN)
        try:
            while self.status is None:
                if time.monotonic() >= deadline:
                    return "timeout"
                if stop.asked():
                    return "stopped"
                # Behind the look at the pipes in ``pump``: we may have been frozen ourselves.
                if time.monotonic() >= self.heard_at + patience:
                    return "stalled"
                self.pump(min(deadline, self.heard_at + patience))
        finally:
            if stop.fd >= 0:
                self.poll.unregister(stop.fd)
        return "exited"

    def wait(self, seconds: float) -> None:
        """So long, while all goes on; then collect what has ended."""
        until = time.monotonic() + seconds
        self.pump(until)
        while time.monotonic() < until:
            self.pump(until)
        self.reap()

    def pump(self, until: float) -> None:
        """Sleep until something happens or is due, but no longer than that; see to it."""
        due = min(until, self.tick_at, self.reap_at) - time.monotonic()
        # Rounded up, or the last millisecond would be spent spinning.
        for fd, _ in self.poll.poll(math.ceil(max(0.0, due) * 1000)):
            if fd in self.outputs:
                self.read(fd)
            elif fd == self.stdin:
                self.write()
            elif fd == self.pidfd:
                self.collect()
        if time.monotonic() >= self.tick_at:
            self.tick_at = time.monotonic() + self.tick()
        if time.monotonic() >= self.reap_at:
            self.reap()

    def collect(self) -> None:
        """Take the program's exit status."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = os.waitstatus_to_exitcode(status)
            self.poll.unregister(self.pidfd)

    def reap(self) -> None:
        """Collect orphans of the tree that have ended; they came to us, for we are a subreaper."""
        self.reap_at = time.monotonic() + REAPING
        tree.reap(self.known if self.status is not None else {*self.known, self.pid})

    def read(self, fd: int) -> bool:
        """Take what a pipe holds, a chunk at most; whether there was anything."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self.heard_at = time.monotonic()
            self.outputs[fd].feed(data)
            return True
        self.poll.unregister(fd)
        del self.outputs[fd]
        os.close(fd)
        return False

    def write(self) -> None:
        """Feed standard input as far as it takes it."""
        try:
            self.rest = self.rest[os.write(self.stdin, self.rest[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # it reads no more
            self.rest = self.rest[:0]
        if not self.rest:
            self.poll.unregister(self.stdin)
            os.close(self.stdin)
            self.stdin = -1

    def close(self) -> list[str]:
        """Take what is left in the pipes, whoever may still hold them; what there is to say."""
        for fd in list(self.outputs):
            for _ in range(DRAIN):
                if not self.read(fd):
                    break
        for fd in (self.pidfd, self.stdin, *self.outputs):
            if fd >= 0:
                os.close(fd)
        return [note for capture in self.captures if (note := capture.close())]
