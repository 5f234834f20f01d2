"""How a program becomes a process: fork, exec, and the news of whether that worked.

By hand, for nothing ready-made gives a new session, a working directory, default signals and no
descriptor of ours at a millisecond's cost.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

# Of a system that is short of something just now; a program that fails otherwise always will.
PASSING = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.EIO}


class Started(NamedTuple):
    """A program that was started: its pid and our ends of its pipes, all non-blocking."""

    pid: int
    stdin: int
    outputs: list[int]


def start(  # one step after the other
    argv: tuple[str, ...], env: Mapping[str, str], cwd: str, *, feed: bool, outputs: int
) -> Started | str:
    """Fork and exec; the reason in words, where it cannot be started.

    ``feed``: standard input is a pipe, else empty. ``outputs``: 2 pipes, or 1 for stdout and
    stderr together. Raises OSError where the system has no room for another process.
    """
    try:
        args = [os.fsencode(each) for each in argv]
        variables = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    except UnicodeEncodeError:
        return f"{argv[0]}: an argument or variable holds what is no character"
    if any(b"\0" in each for each in (*args, *variables, *variables.values())):
        return f"{argv[0]}: an argument or variable holds a NUL character"
    theirs: list[int] = []
    ours: list[int] = []
    try:
        if feed:
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs.append(read)
            ours.append(write)
        else:
            theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(outputs):
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.append(read)
            theirs.append(write)
        report, said = os.pipe2(os.O_CLOEXEC)
        ours.append(report)
        theirs.append(said)
        for fd in ours[:-1]:
            os.set_blocking(fd, False)
        # No signal may find the child with our handlers, or its mask would be lost on the way.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _become(args, variables, cwd, (*theirs[:-1], theirs[-2])[:3], said)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        while theirs:
            os.close(theirs.pop())
        answer = os.read(report, 64).decode()
        os.close(ours.pop())
        if answer:
            os.waitpid(pid, 0)
            return _reason(answer, argv[0], cwd)
        stdin, ours = (ours[0], ours[1:]) if feed else (-1, ours)
        started, ours = Started(pid, stdin, ours), []
        return started
    finally:
        for fd in (*ours, *theirs):
            os.close(fd)


def _become(
    argv: list[bytes], env: dict[bytes, bytes], cwd: str, stdio: tuple[int, ...], said: int
) -> NoReturn:
    """In the child: turn into the program. A failure is told through ``said``."""
    stage = "start"
    try:
        os.setsid()
        # Away from 0, 1 and 2 first, which we may have been started without.
        said = fcntl.fcntl(said, fcntl.F_DUPFD_CLOEXEC, 3)
        for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 3) for fd in stdio]):
            os.dup2(fd, number)
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd > 2 and fd != said:  # noqa: PLR2004  # stderr
                try:
                    os.close(fd)
                except OSError:  # the one that the listing itself took
                    continue
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        stage = "cwd"
        os.chdir(cwd)
        stage = "program"
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(argv[0], argv, env)  # noqa: S606  # no shell is what we want
    except OSError as error:
        os.write(said, f"{stage} {error.errno}".encode())
    finally:
        os._exit(127)


def _reason(answer: str, name: str, cwd: str) -> str:
    """Why it did not start, in words; what is no fault of the program's is raised."""
    stage, number = answer.split()
    code = int(number)
    if code in PASSING or stage == "start":
        raise OSError(code, os.strerror(code), name)
    if stage == "cwd":
        return f"working directory {cwd}: {os.strerror(code)}"
    if code == errno.ENOENT and os.path.isfile(os.path.join(cwd, name)):
        return f"{name}: the interpreter that its first line names is missing"
    return f"{name}: {os.strerror(code)}"
