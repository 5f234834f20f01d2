"""The line to a host: bytes to one ssh call, messages from it, both at once; and its end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from daemon.fleet.connection import Lost, Unreachable

MARK = b"\x1erolecall "  # before each message; whatever else the far side prints is noise
LONGEST = 16 << 20  # bytes of one message: a report of a whole host has some hundred KiB
KEPT = 16 << 10  # bytes kept of stderr's ends, and of the noise's
CHUNK = 1 << 16
GRACE = 2.0  # seconds for ssh to end by itself, then again after SIGTERM

Message = dict[str, Any]


class Ended(NamedTuple):
    """How ssh ended. ``status``: None where there was silence, and we ended it."""

    status: int | None
    stderr: str
    noise: str


class HungUp(Exception):
    """The line is dead: no message comes any more."""

    def __init__(self, ended: Ended) -> None:
        self.ended = ended
        super().__init__(ended.stderr)


class Overdue(Exception):
    """The far side lives, and has not come to an end in the ``seconds`` that it was given."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__()


class Wire:
    """One ssh call. Use it as a context manager: at its end ssh has ended, and is reaped.

    ``silence``: for how many seconds the far side may say nothing while we send nothing either.
    """

    def __init__(self, argv: Sequence[str], silence: float) -> None:
        self.silence = silence
        self._given, self._over = 0.0, math.inf
        self._unsent: deque[memoryview] = deque()
        self._messages: deque[Message] = deque()
        self._received, self._stderr, self._noise = bytearray(), bytearray(), bytearray()
        self._seen = 0  # bytes of _received that were looked at for the end of a line
        pipe = subprocess.PIPE
        try:
            self._ssh = subprocess.Popen(
                argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                bufsize=0,
                # A group with the ssh of a jump host, which would outlive it otherwise; and no
                # terminal, where that one would ask a person, and be stopped for it.
                start_new_session=True,
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )
        except FileNotFoundError as error:
            raise Unreachable(
                f"there is no {argv[0]} on this machine",
                hint="install OpenSSH's client (Debian: apt-get install openssh-client)",
            ) from error
        except OSError as error:
            raise Unreachable(f"{argv[0]} cannot be run: {error.strerror}") from error
        pipes = (self._ssh.stdin, self._ssh.stdout, self._ssh.stderr)
        self._open = {each.fileno(): each for each in pipes if each}
        self._in, self._out, self._err = self._open
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
        with _LOCK:
            _WIRES.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, *data: bytes) -> None:
        """Give the far side bytes; they go out while its messages are waited for."""
        self._unsent += (memoryview(each) for each in data if each)

    def end_after(self, seconds: float) -> None:
        """Wait for messages no longer than that from now on, however alive the far side is."""
        self._given, self._over = seconds, time.monotonic() + seconds

    def receive(self) -> Message:
        """The next message. Raises HungUp, and Overdue behind ``end_after``."""
        until = time.monotonic() + self.silence
        while time.monotonic() < self._over:
            if self._messages:
                return self._messages.popleft()
            left = until - time.monotonic()
            if left <= 0:
                raise HungUp(self._end(silent=True))
            if self._pump(max(0.0, min(left, self._over - time.monotonic()))):
                until = time.monotonic() + self.silence
            if self._out not in self._open and not self._messages:
                raise HungUp(self._end(silent=False))
        raise Overdue(self._given)

    def close(self) -> None:
        """End ssh, in whatever state it is, and reap it."""
        self._unsent.clear()
        self._shut(self._in)  # a far side that is alive and done sees that, and goes
        until = time.monotonic() + GRACE
        self._drain(until)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._ssh.wait(max(0.0, until - time.monotonic()))
                break
            self._kill(number)
            until = time.monotonic() + GRACE
        self._ssh.wait()
        for descriptor in list(self._open):
            self._shut(descriptor)
        with _LOCK:
            _WIRES.discard(self)

    def cut(self) -> None:
        """End it from another thread: who waits for a message there gets HungUp."""
        self._kill(signal.SIGTERM)

    def _kill(self, number: int) -> None:
        if self._ssh.returncode is None:  # not reaped, so that its number is nobody else's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._ssh.pid, number)

    def _end(self, *, silent: bool) -> Ended:
        if silent:
            self._kill(signal.SIGTERM)
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._ssh.wait(GRACE)
        while self._read(self._err, self._stderr):  # up to what is there: a master of
            pass  # ControlPersist may have it open for hours
        stderr, noise = (text.decode(errors="replace") for text in (self._stderr, self._noise))
        return Ended(None if silent else status, stderr, noise)

    def _drain(self, until: float) -> None:
        """Throw away what is still said, until ssh ends."""
        while self._out in self._open and (left := until - time.monotonic()) > 0:
            if select.select([self._out], [], [], left)[0]:
                self._read(self._out, bytearray())

    def _pump(self, seconds: float) -> bool:
        """Move what can be moved, waiting at most that long; whether that was a sign of life.

        What ssh says on stderr is none of the host's, and noise could go on for ever.
        """
        poll = select.poll()
        for descriptor in self._open:
            if descriptor != self._in:
                poll.register(descriptor, select.POLLIN)
            elif self._unsent:
                poll.register(descriptor, select.POLLOUT)
        ready = dict(poll.poll(seconds * 1000))
        before = len(self._messages)
        if self._err in ready:
            self._read(self._err, self._stderr)
        if self._out in ready:
            self._read(self._out, self._received)
            self._sort()
        written = self._in in ready and self._write()
        return written or len(self._messages) > before

    def _write(self) -> bool:
        try:
            sent = os.write(self._in, self._unsent[0][:CHUNK])
        except BlockingIOError:
            return False
        except BrokenPipeError:  # what it says, or ssh, tells why
            self._unsent.clear()
            self._shut(self._in)
            return False
        self._unsent[0] = self._unsent[0][sent:]
        if not self._unsent[0]:
            self._unsent.popleft()
        return True

    def _read(self, descriptor: int, into: bytearray) -> bool:
        """Read what is there; False at the end, and where nothing is there now."""
        if descriptor not in self._open:
            return False
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._shut(descriptor)
        into += data
        if into is self._stderr and len(into) > 2 * KEPT:
            del into[KEPT:-KEPT]
        return bool(data)

    def _sort(self) -> None:
        """Tell messages from noise, line by line."""
        seen, self._seen = self._seen, len(self._received)
        if self._out in self._open and self._received.find(b"\n", seen) < 0:
            if self._seen > LONGEST:
                raise Lost(f"it sent a message of more than {LONGEST >> 20} MiB")
            if self._seen <= KEPT or MARK in self._received:
                return
        *lines, rest = self._received.split(b"\n")
        if self._out not in self._open:  # the last line may lack its end
            lines, rest = [*lines, rest], bytearray()
        for line in lines:
            noise, mark, text = line.partition(MARK)  # `echo -n` of an rc file ends no line
            self._hear(noise)
            if mark:
                self._messages.append(_message(text))
        if MARK not in rest and len(rest) > KEPT:
            self._hear(rest[: -len(MARK)])
            del rest[: -len(MARK)]
        self._received, self._seen = rest, len(rest)

    def _hear(self, noise: bytearray) -> None:
        if noise.strip():
            self._noise += noise + b"\n"
            del self._noise[:-KEPT]

    def _shut(self, descriptor: int) -> None:
        if pipe := self._open.pop(descriptor, None):
            pipe.close()


_LOCK = threading.Lock()
_WIRES: set[Wire] = set()


def cut_all() -> None:
    """End every call of this process: for a command that is interrupted."""
    with _LOCK:
        wires = list(_WIRES)
    for wire in wires:
        wire.cut()


def _message(text: bytearray) -> Message:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Lost("it sent a message that makes no sense")
    return message
