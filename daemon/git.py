"""How we call git: a program that nothing of the repository's may surprise, and that can be ended.

An attempt's calls renew its lease meanwhile, and end when the attempt has to; all others (doctor,
init) simply wait. What runs in them is git, and the filters and merge drivers that a *config*
names: without those (git-lfs) files would not be what they are. ``.gitattributes`` of a branch can
only choose among them, and who changes the config meanwhile is found out (``daemon.fingerprint``).
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from daemon.errors import Interrupted, RolecallError

# Code of the repository's own must not run in our calls: its hooks, its file-system monitor. Nor
# may a call ask somebody, sign, stash, or leave a collection of garbage running behind itself.
SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "commit.gpgSign=false",
    "merge.autoStash=false",
    "merge.verifySignatures=false",
    "rerere.enabled=false",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
)
SAFE = tuple(word for each in SETTINGS for word in ("-c", each))
# What git may know of our environment; GIT_DIR and its like would lead it elsewhere.
PASSED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",  # of a partial clone, which fetches what it lacks
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_GLOBAL",
    "ROLECALL_RESULT_FILE",  # the mark of an attempt's processes
)
OURS = {
    "LC_ALL": "C",  # what it says is read
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_EDITOR": ":",
    "GIT_OPTIONAL_LOCKS": "0",  # a look takes no lock that a person's git would stumble over
    "GIT_NO_REPLACE_OBJECTS": "1",
}
CHUNK = 1 << 16  # bytes; what a pipe holds
GRACE = 2.0  # seconds between TERM, on which git removes its lock files, and KILL
LEAST = 5.0  # seconds that a call has, even when the attempt's time is over: most take some ms


class GitError(RolecallError):
    """A git call that failed; the message holds what git said."""


class Said(NamedTuple):
    """What a call came to: exit status, output, and what it said on stderr."""

    status: int
    out: str
    err: str

    @property
    def first(self) -> str:
        """The first line of what it complained about, which names the file that it is about."""
        lines = self.err.strip().splitlines()
        return lines[0].removeprefix("fatal: ") if lines else f"exit status {self.status}"

    @property
    def last(self) -> str:
        """The last line of what it complained about."""
        lines = self.err.strip().splitlines()
        return lines[-1].removeprefix("fatal: ") if lines else f"exit status {self.status}"


class Stop(Protocol):
    """The wish that we should end: ``fd`` becomes readable when ``asked`` should be called."""

    fd: int

    def asked(self) -> bool:
        """Whether somebody wishes so; stays true."""
        ...


class Git:
    """Runs git, and watches over its caller's duties meanwhile.

    ``tick`` is called as often as it asks for (it returns seconds), ``stop`` and ``deadline`` (of
    time.monotonic()) end a call. ``ceiling``: the folder from which no repository is looked for
    further up, so that a worktree which has lost its ``.git`` is not taken for the workspace around
    it. ``extra``: further variables, such as an identity.
    """

    def __init__(
        self,
        tick: Callable[[], float] | None = None,
        stop: Stop | None = None,
        deadline: float = math.inf,
        ceiling: str = "",
    ) -> None:
        self.tick, self.stop, self.deadline = tick, stop, deadline
        self.ceiling = {"GIT_CEILING_DIRECTORIES": os.path.realpath(ceiling)} if ceiling else {}
        self.tick_at = time.monotonic()
        self.extra: dict[str, str] = {}

    def __call__(
        self,
        folder: str,
        *arguments: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> str:
        """What git prints there. Raises GitError where it fails, and Interrupted."""
        said = self.run(folder, *arguments, stdin=stdin, env=env)
        if said.status:
            raise failure(arguments, said, folder)
        return said.out

    def says(self, folder: str, *arguments: str) -> bool:
        """The answer to a question that git gives by its exit status: 0 yes, 1 no."""
        said = self.run(folder, *arguments)
        if said.status not in {0, 1}:
            raise failure(arguments, said, folder)
        return said.status == 0

    def run(
        self,
        folder: str,
        *arguments: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        unhurried: bool = False,
    ) -> Said:
        """Run it there, whatever it comes to. ``unhurried``: it is let end whatever happens.

        Raises GitError where there is no git, and Interrupted.
        """
        passed = {key: os.environ[key] for key in PASSED if key in os.environ}
        call = _Call(
            ["git", "-C", folder, *SAFE, *arguments],
            {**passed, **OURS, **self.ceiling, **self.extra, **(env or {})},
            stdin.encode(errors="surrogateescape"),
        )
        until = math.inf if unhurried else max(self.deadline, time.monotonic() + LEAST)
        lost: RolecallError | None = None
        try:
            while call.status is None:
                try:
                    self._tick()
                except RolecallError as error:
                    if not unhurried:
                        raise
                    lost, self.tick_at = error, math.inf
                if not unhurried:
                    self._check(until)
                elif self.stop is not None:
                    self.stop.asked()  # it remembers, and the descriptor rests
                call.pump(min(until, self.tick_at), self.stop.fd if self.stop else -1)
        finally:
            call.end()
        if lost is not None:
            raise lost
        return Said(call.status or 0, *(_text(each) for each in call.said))

    def pulse(self) -> None:
        """What a call does while it waits, for what takes time otherwise. Raises Interrupted."""
        self._tick()
        self._check(self.deadline)

    def renew(self) -> None:
        """Tick now, whenever it would be due."""
        self.tick_at = time.monotonic()
        self._tick()

    def _tick(self) -> None:
        if self.tick is None:
            self.tick_at = math.inf
        elif time.monotonic() >= self.tick_at:
            self.tick_at = time.monotonic() + self.tick()

    def _check(self, until: float) -> None:
        if self.stop is not None and self.stop.asked():
            raise Interrupted("stopped")
        if time.monotonic() >= until:
            raise Interrupted("timeout")


class _Call:
    """A git that runs: its pipes and its end."""

    def __init__(self, argv: list[str], env: Mapping[str, str], stdin: bytes) -> None:
        self.status: int | None = None
        self.stdin, self.rest = -1, memoryview(stdin)
        theirs: list[int] = []
        pipes = [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(2)]
        ours = [read for read, _ in pipes]
        theirs += (write for _, write in pipes)
        actions: list[tuple[int, ...]] = []
        if stdin:
            read, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin, False)
            theirs.append(read)
            actions.append((os.POSIX_SPAWN_DUP2, read, 0))
        for number, fd in enumerate(theirs[:2], 1):
            os.set_blocking(fd, True)
            actions.append((os.POSIX_SPAWN_DUP2, fd, number))
        empty = () if stdin else ((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),)
        try:
            self.pid = os.posix_spawnp(
                argv[0],
                argv,
                env,
                file_actions=[*empty, *actions],
                setsid=True,  # what it starts is ended with it
                setsigmask=(),
                setsigdef=(signal.SIGPIPE,),
            )
        except FileNotFoundError:
            for fd in (*ours, *filter(lambda fd: fd >= 0, [self.stdin])):
                os.close(fd)
            raise GitError("git is not installed", hint="invoke doctor") from None
        finally:
            for fd in theirs:
                os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)
        self.outputs = dict(zip(ours, (bytearray(), bytearray()), strict=True))
        self.said = list(self.outputs.values())
        self.poll = select.poll()
        for fd in (self.pidfd, *self.outputs):
            self.poll.register(fd, select.POLLIN)
        if self.stdin >= 0:
            self.poll.register(self.stdin, select.POLLOUT)

    def pump(self, until: float, wakes: int) -> None:
        """Sleep until something happens, but no longer than that; see to it."""
        if wakes >= 0:
            self.poll.register(wakes, select.POLLIN)
        seconds = max(0.0, until - time.monotonic())
        for fd, _ in self.poll.poll(None if math.isinf(seconds) else math.ceil(seconds * 1000)):
            if fd in self.outputs:
                self.read(fd)
            elif fd == self.stdin:
                self.write()
            elif fd == self.pidfd:
                self.collect()
        if wakes >= 0:
            self.poll.unregister(wakes)

    def read(self, fd: int) -> bool:
        """Take what a pipe holds, a chunk at most; whether there was anything."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self.outputs[fd] += data
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

    def collect(self) -> None:
        """Take the exit status, and what is left in the pipes, whoever else may hold them."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = os.waitstatus_to_exitcode(status)
            for fd in list(self.outputs):
                while self.read(fd):
                    pass

    def end(self) -> None:
        """End what still runs, its session's processes with it, and close what is open."""
        if self.status is None:
            os.killpg(self.pid, signal.SIGTERM)
            ended = select.poll()
            ended.register(self.pidfd, select.POLLIN)
            ended.poll(GRACE * 1000)
            # It is not reaped yet, so the number is still its own.
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for fd in (self.pidfd, self.stdin, *self.outputs):
            if fd >= 0:
                os.close(fd)


def failure(arguments: tuple[str, ...], said: Said, folder: str) -> GitError:
    """The one error of a call that failed."""
    name = next((each for each in arguments if not each.startswith("-")), "")
    # What follows a first line that is fatal is advice, as of a lock that somebody holds.
    words = said.first if said.err.startswith("fatal: ") else said.last
    return GitError(f"git {name}: {words}", where=folder)


def _text(data: bytearray) -> str:
    return data.decode(errors="surrogateescape")
