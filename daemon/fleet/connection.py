"""A host, for what runs on it: run a command, read and write its files."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

from daemon import process, transient
from daemon.errors import RolecallError
from daemon.fleet import place

READY = b"READY=1"
UNREACHABLE = 4


class Unreachable(RolecallError):
    """A host that cannot be worked with now."""

    exit_code = UNREACHABLE


class NoAnswer(Unreachable):
    """A host that could not be asked at all: ssh, or the way to it, failed."""


class Lost(NoAnswer):
    """A host that was doing something when it was last heard of: what came of it is not known."""


class Ran(NamedTuple):
    """What a command came to. ``status`` is negative where a signal ended it."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What it has to say of a failure, in one line."""
        return "; ".join((self.err.strip() or self.out.strip()).splitlines())


class Started(NamedTuple):
    """A process that was started to stay. ``problem``: why it does not ("" where it does)."""

    pid: int
    problem: str


class Local:
    """This machine, as the user who runs the command.

    ``name`` is the inventory's. ``checkout``: the folder that workers are to run, where that is
    not the one that this process runs: the link to the current release of a host that has no
    checkout. ``reached``: what an operator types to run a command here ("" on this machine).
    """

    def __init__(
        self, name: str = "localhost", checkout: str | None = None, reached: str = ""
    ) -> None:
        self.name = name
        self.home = os.path.expanduser("~")
        self.environ = transient.environment()
        #: The Python that has our dependencies, and the checkout it runs.
        self.python = sys.executable
        self.checkout = checkout or transient.ROOT
        #: Where the host's releases are; None where workers run a checkout.
        self.releases = os.path.dirname(checkout) if checkout else None
        self._reached = reached

    @property
    def user(self) -> str:
        """The account's name."""
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return str(os.getuid())

    def typed(self, command: str) -> str:
        """A command for this host's shell, as the operator types it."""
        if not self._reached:
            return command
        legible = "'" in command and not set(command) & set('"\\$`!')
        return f"{self._reached} " + (f'"{command}"' if legible else shlex.quote(command))

    def run(self, argv: Sequence[str], *, stdin: str = "", seconds: float = 60) -> Ran:
        """Run a command to its end. One that cannot be run, or takes too long, is an error."""
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=self.environ,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            command = " ".join(argv[:4])
            raise Unreachable(f"no answer within {seconds:g} s", where=command) from error
        except OSError as error:
            raise Unreachable(f"{argv[0]} cannot be run: {error.strerror}") from error
        return Ran(done.returncode, done.stdout, done.stderr)

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """The lines that a command prints, as it prints them. Ends it when closed."""
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=self.environ,
        ) as running:
            try:
                for line in running.stdout or ():
                    yield line.rstrip("\n")
            finally:
                running.terminate()

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return os.path.lexists(path)

    def read(self, path: str) -> str | None:
        """A file's text, or None where there is no such file. Raises RolecallError for a pipe."""
        try:
            with open(path, encoding="utf-8", errors="surrogateescape", opener=_at_once) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def tail(self, path: str, lines: int) -> list[str]:
        """The last lines of a file; none where there is no such file."""
        with contextlib.suppress(OSError), open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 400 * lines))
            return file.read().decode(errors="replace").splitlines()[-lines:]
        return []

    def write(self, path: str, text: str, mode: int) -> None:
        """Put a whole file there, to stay through a power cut, or leave the old one as it is."""
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        for each in self.leftovers(path):
            os.unlink(each)
        aside = f"{path}.{os.getpid()}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(aside, flags, mode)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                os.fchmod(descriptor, mode)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.rename(aside, path)
        except BaseException as error:
            os.unlink(aside)
            if isinstance(error, OSError):
                error.filename = path  # a full disk names none
            raise
        place.sync_one(folder)

    def leftovers(self, path: str) -> list[str]:
        """What writes of that file have left whose process was killed in the middle."""
        folder, name = os.path.split(path)
        found = []
        for each in self.names(folder):
            pid = each.removeprefix(f"{name}.").removesuffix(".tmp")
            is_ours = each == f"{name}.{pid}.tmp" and pid.isdecimal()
            if is_ours and (int(pid) == os.getpid() or process.stat(int(pid)) is None):
                found.append(os.path.join(folder, each))
        return found

    def mode(self, path: str) -> int | None:
        """A file's permission bits, or None where there is no such file."""
        try:
            return os.stat(path).st_mode & 0o7777
        except FileNotFoundError:
            return None

    def remove(self, path: str) -> None:
        """Remove a file, and the folders around it that are empty then."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        folder = os.path.dirname(path)
        with contextlib.suppress(OSError):
            while folder not in {self.home, "/"}:
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, in order; none where there is no such folder."""
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def signal(self, pid: int, started: int, number: int) -> bool:
        """Send a signal to exactly that process; whether it was still there."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not process.is_alive(pid, started):
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def spawn(self, argv: list[str], cwd: str, log: str, seconds: float) -> Started:
        """Start a process that outlives us, and wait until it says READY=1 as sd_notify does.

        Its stderr is appended to ``log``. One that is not ready in time is killed, and so is one
        that nobody waits for any more (KeyboardInterrupt).
        """
        os.makedirs(os.path.dirname(log), exist_ok=True)
        folder = os.path.join(self._runtime(), f"rolecall-{os.getpid()}-{time.monotonic_ns()}")
        os.mkdir(folder, 0o700)
        address = os.path.join(folder, "notify")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.bind(address)
                pid = os.fork()
                if pid == 0:
                    self._become(argv, cwd, log, address)
                problem = _wait_ready(pid, channel, seconds)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(address)
            os.rmdir(folder)
        return Started(pid, problem)

    def _runtime(self) -> str:
        # A socket's path may have 107 bytes, and TMPDIR may be long.
        folder = self.environ["XDG_RUNTIME_DIR"]
        return folder if os.access(folder, os.W_OK) else "/tmp"  # noqa: S108  # mkdir is exclusive

    def _become(self, argv: list[str], cwd: str, log: str, address: str) -> NoReturn:
        try:
            os.setsid()
            os.chdir(cwd)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.dup2(os.open(log, flags, 0o600), 2)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.execve(argv[0], argv, {**os.environ, "NOTIFY_SOCKET": address})  # noqa: S606  # no shell
        except OSError as error:
            os.write(2, f"error: {argv[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)


def _at_once(path: str, flags: int) -> int:
    """Open a file to read; nothing that one would wait for ever to read from."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    masked = os.path.realpath(path) == os.devnull  # as systemctl mask leaves it
    if not (masked or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder is open's to refuse
        os.close(descriptor)
        raise RolecallError("it is no file", where=path, hint=f"rm {shlex.quote(path)}")
    return descriptor


def _wait_ready(pid: int, channel: socket.socket, seconds: float) -> str:
    """Wait for the process's word; why there is none, or "" when it is ready."""
    until = time.monotonic() + seconds
    watch = os.pidfd_open(pid)
    try:
        while (left := until - time.monotonic()) > 0:
            readable = select.select([channel.fileno(), watch], [], [], left)[0]
            if channel.fileno() in readable and READY in channel.recv(4096).split(b"\n"):
                return ""
            if readable == [watch]:
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if status < 0:
                    return f"ended by signal {-status} before it was ready"
                return f"ended with exit status {status} before it was ready"
        _kill(watch, pid)
        return f"not ready within {seconds:g} s: killed"
    except KeyboardInterrupt:  # nobody would know of it, and it would start all the same
        _kill(watch, pid)
        raise
    finally:
        os.close(watch)


def _kill(watch: int, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        signal.pidfd_send_signal(watch, signal.SIGKILL)
        os.waitpid(pid, 0)
