"""A worker, an attempt or an invoke command that names each of its steps, and dies at one of them.

It runs ours unchanged: only what Python itself offers (``os.rename``, ``os.fsync``, ...) and what
asks a queue's server is wrapped, so that what is done to files, locks, processes and the database
is seen just before and just after it is done. A step's name is who does it, our functions on the
stack, the call, its number, before or after:

    attempt: Attempt.settle > FileQueue.settle > FileQueue.lock > hold > unlock #1 before

``python crashing.py worker|attempt|invoke ARGUMENTS``; the environment tells what shall happen:

CRASH_LOG    a file to which the name of each step is added
CRASH_AT     the steps to die at, one a line, * for any text, each once; who dies at the Nth
             writes its pid into CRASH_LOG.died.N
CRASH_HOW    kill (the process), all (with worker, attempt and agent, as in a power cut), stop
CRASH_CLOCK  a file that holds the seconds by which the wall clock is wrong
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

#: Each call that is a step: its module, its name, what a person calls it.
CALLS = (
    (os, "open", "create"),
    (os, "write", "write"),
    (os, "pwrite", "write"),
    (os, "fsync", "fsync"),
    (os, "rename", "rename"),
    (os, "unlink", "unlink"),
    (os, "mkdir", "mkdir"),
    (os, "rmdir", "rmdir"),
    (fcntl, "flock", "lock"),
    (os, "close", "unlock"),
    (os, "posix_spawnp", "spawn"),
    (os, "fork", "fork"),
    (os, "execve", "exec"),
    (os, "waitpid", "wait"),
    (signal, "pidfd_send_signal", "signal"),
)
#: Steps that change nothing that anybody asks about: log lines, the making of a lock's file, the
#: child that reads a worker's config and touches no file, and the greeting of a server.
PASSED_OVER = {"_append", "_open", "load_apart", "Session._connect"}
real = {(module, name): getattr(module, name) for module, name, _ in CALLS}


class Steps:
    """The steps of one process, counted by name."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.log, self.how = os.environ["CRASH_LOG"], os.environ.get("CRASH_HOW", "kill")
        self.at = os.environ.get("CRASH_AT", "").splitlines()
        self.done: Counter[str] = Counter()
        self.counting = threading.Lock()
        self.locked: set[int] = set()

    def wrap(self, module: Any, name: str, label: str) -> None:
        """See each such call before and after it."""
        setattr(module, name, self.around(real[module, name], label))

    def around(self, call: Callable[..., Any], label: str) -> Callable[..., Any]:
        """The call as it is seen."""

        def seen(*args: Any, **keys: Any) -> Any:
            path = ours(sys._getframe(1)) if self.is_step(label, args, keys) else []
            if not path or PASSED_OVER & set(path):
                return call(*args, **keys)
            step = " > ".join([*path, label])
            number = self.count(step, 1)
            self.reached(f"{step} #{number} before")
            try:
                found = call(*args, **keys)
            except BaseException:
                self.count(step, -1)
                raise
            if label == "fork" and found == 0:
                self.who = "agent"
            if label == "wait" and not found[0]:  # a look at a child that runs on is no step
                self.count(step, -1)
            else:
                self.note_lock(label, args)
                self.reached(f"{step} #{number} after")
            return found

        return seen

    def wrap_sessions(self) -> None:
        """See what is asked of a queue's server."""
        from daemon.queue import opening  # noqa: PLC0415  # once its calls are wrapped

        open_queue = opening.open_queue

        def seen(*args: Any, **keys: Any) -> Any:
            queue: Any = open_queue(*args, **keys)
            if hasattr(queue, "session"):
                queue.session.calls = self.around(queue.session.calls, "ask")
            return queue

        opening.open_queue = seen

    def count(self, step: str, more: int) -> int:
        """How often it was taken; folders are synced by threads, at once."""
        with self.counting:
            self.done[step] += more
            return self.done[step]

    def is_step(self, label: str, args: tuple[Any, ...], keys: dict[str, Any]) -> bool:
        """Whether the call does anything that lasts."""
        match label:
            case "create":
                return bool(args[1] & os.O_CREAT)
            case "write":
                return stat.S_ISREG(os.fstat(args[0]).st_mode)
            case "unlink" | "rmdir" | "mkdir" if "dir_fd" not in keys:
                return os.path.lexists(args[0]) == (label != "mkdir")
            case "unlock":
                return args[0] in self.locked
        return True

    def note_lock(self, label: str, args: tuple[Any, ...]) -> None:
        """Remember which descriptors hold a lock: closing them lets go of it."""
        if label == "lock":
            self.locked.add(args[0])
        elif label == "unlock":
            self.locked.discard(args[0])

    def reached(self, step: str) -> None:
        """Tell the step; die, if it is the one."""
        name = f"{self.who}: {step}"
        append(self.log, name)
        met = [number for number, at in enumerate(self.at) if fnmatchcase(name, at)]
        if met and first(f"{self.log}.died.{met[0]}"):
            for victim in everybody() if self.how == "all" else [os.getpid()]:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGSTOP if self.how == "stop" else signal.SIGKILL)


def ours(frame: Any) -> list[str]:
    """Our functions on the stack, outermost first."""
    found: list[str] = []
    while frame is not None:
        name = frame.f_code.co_qualname
        inside = str(frame.f_globals.get("__name__")).startswith("daemon.")
        if inside and "<" not in name and name not in {"main", "run", "Attempt.run"}:
            found.insert(0, name)
        frame = frame.f_back
    return found


def append(path: str, line: str) -> None:
    """Add a line to a file that several processes write."""
    fd = real[os, "open"](path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    real[os, "write"](fd, f"{line}\n".encode())
    real[os, "close"](fd)


def first(path: str) -> bool:
    """Whether nobody has made this file yet; it is there afterwards."""
    try:
        fd = real[os, "open"](path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    real[os, "write"](fd, str(os.getpid()).encode())
    real[os, "close"](fd)
    return True


def everybody() -> Iterator[int]:
    """The worker, what descends from it, and this process last."""
    parents = {}
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                parents[int(entry)] = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found = [int(os.environ["CRASH_WORKER"])]
    for pid in found:  # grows as it goes
        found += [child for child, parent in parents.items() if parent == pid]
    yield from (pid for pid in found if pid != os.getpid())
    yield os.getpid()


def step_the_clock(path: str) -> None:
    """Let the wall clock be wrong by what the file says at each look."""

    def wrong_by() -> float:
        with open(path, encoding="ascii") as file:
            return float(file.read())

    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + wrong_by()
    time.time_ns = lambda: right_ns() + round(wrong_by() * 1e9)


def main(who: str, arguments: list[str]) -> None:
    """Run ours with its steps seen. Attempts that a worker starts are run in the same way."""
    if "CRASH_CLOCK" in os.environ:
        step_the_clock(os.environ["CRASH_CLOCK"])
    steps = Steps(who)
    for call in CALLS:
        steps.wrap(*call)
    steps.wrap_sessions()
    run: dict[str, Callable[[list[str]], None]] = {
        "worker": worker,
        "attempt": attempt,
        "invoke": command,
    }
    run[who](arguments)


def worker(arguments: list[str]) -> None:
    """``python -m daemon``."""
    os.environ["CRASH_WORKER"] = str(os.getpid())
    wrapper = os.environ["CRASH_LOG"] + ".python"
    with open(wrapper, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\nexec '{sys.executable}' -S -P '{__file__}' attempt \"$@\"\n")
    os.chmod(wrapper, 0o700)
    sys.executable = wrapper
    sys.argv = ["daemon", *arguments]
    from daemon.__main__ import main as run  # noqa: PLC0415  # once its calls are wrapped

    run()


def attempt(arguments: list[str]) -> None:
    """What a worker wants to have run by ``python -c``."""
    exec(arguments[-1], {"__name__": "__main__"})  # noqa: S102  # as python -c would


def command(arguments: list[str]) -> None:
    """``invoke``."""
    from invoke.main import program  # noqa: PLC0415  # once its calls are wrapped

    program.run(["invoke", *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
