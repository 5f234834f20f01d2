"""What attempts have spent: a file of lines that are only ever added, ``.spending.jsonl``.

A claim adds what it reserves, a settling what was spent; both before the queue is written, under
its lock. An attempt is known by its task, its token and the time of its claim (a task that is
removed and added again has its tokens again), so that no line counts twice.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

from daemon.config import Price
from daemon.errors import RolecallError
from daemon.index import number
from daemon.model import format_time, parse_time
from daemon.queue import durable

NAME = ".spending.jsonl"  # beside the run folders: no task's id begins with a dot
LONGEST = 16 * 1024  # bytes of a line; a longer one is none of ours
TAIL = 64  # bytes before the offset that tell whether the file is still the one that was read
MOST = 1e15  # tokens or dollars; a larger number is none
MILLION = 1_000_000
RESERVED, CHARGED = "reserved", "charged"


class Line(NamedTuple):
    """One line: what was reserved for an attempt, or what it was charged.

    ``tokens`` and ``cost_usd`` are None where nobody told them: then what was reserved counts.
    ``day`` is the UTC date, ``claimed`` the time of the claim as the lease has it. ``outcome`` is
    that of the attempt, of a charge only.
    """

    what: str
    task: str
    token: int
    role: str
    day: str
    tokens: float | None
    cost_usd: float | None
    claimed: str = ""
    outcome: str = ""


def usage(told: Mapping[str, float] | None, price: Price | None) -> dict[str, float] | None:
    """What an agent told of its spending, its cost reckoned where it told none; None for nothing.

    An empty mapping says that nothing was spent.
    """
    if told is None:
        return None
    if not told:
        return {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
    keys = ("input_tokens", "output_tokens", "cost_usd")
    found = {key: told[key] for key in keys if key in told and _amount(told[key]) is not None}
    tokens = [found.get(key) for key in keys[:2]]
    if "cost_usd" not in found and price and any(each is not None for each in tokens):
        inputs, outputs = (each or 0.0 for each in tokens)
        found["cost_usd"] = (inputs * price.input + outputs * price.output) / MILLION
    return found or None


def tokens_of(used: Mapping[str, Any]) -> float | None:
    """Input and output together; None where neither is told."""
    found = [_amount(used.get(key)) for key in ("input_tokens", "output_tokens")]
    told = [each for each in found if each is not None]
    return sum(told) if told else None


def _amount(value: object) -> float | None:
    found = number(value)
    return found if found is not None and 0 <= found <= MOST else None


def parse(data: bytes) -> Line | None:
    """One line of the file; None for what is none of ours."""
    try:
        value = json.loads(data)
        what, task, role, token = (value[key] for key in ("what", "task", "role", "token"))
        at, used = value["at"], value.get("usage", value)
        known = what in {RESERVED, CHARGED} and all(isinstance(x, str) for x in (task, role, at))
        if not known or type(token) is not int or not isinstance(used, dict):
            return None
        if not (at[10:11] == "T" and at.endswith("Z") and at[:10].isascii()):
            at = format_time(parse_time(at))  # type: ignore[arg-type]  # a TypeError is caught
        tokens = _amount(used.get("tokens")) if what == RESERVED else tokens_of(used)
        told = (str(value.get(key, ""))[:40] for key in ("claimed", "outcome"))
        task, role, day = sys.intern(task), sys.intern(role), sys.intern(at[:10])
        return Line(what, task, token, role, day, tokens, _amount(used.get("cost_usd")), *told)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def append(path: str, line: Mapping[str, Any], *, sync: bool) -> None:
    """Add a line, whole or not at all. The queue's lock is held. Raises RolecallError.

    ``sync``: it lasts when this returns.
    """
    # A pipe that somebody laid there must not block us; reading is for the last line's end.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    data = json.dumps(line).encode() + b"\n"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(path, flags, 0o600)
        try:
            found = os.fstat(fd)
            _checked(found, path)
            size = found.st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data  # half a line of a dead writer stays one by itself
            written = os.write(fd, data)
            if written < len(data):
                os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if sync and not size:
            durable.sync_folder(os.path.dirname(path))
    except OSError as error:
        raise _unusable(error, path) from None


def _checked(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise RolecallError(
            "the spending ledger is no regular file", where=path, hint=f"look at it: ls -ld {path}"
        )


def _unusable(error: OSError, path: str) -> RolecallError:
    failed = durable.failure(error, path)
    if isinstance(failed, durable.DiskError) and error.errno in durable.FULL:
        return failed
    hint = f"look at it: ls -ld {path}"
    return RolecallError(
        f"the spending ledger cannot be used: {error.strerror}", where=path, hint=hint
    )


class Reader:
    """The lines of the file, each once: a look reads what was added since the last one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.skipped = 0  # lines that are none of ours
        self._file, self._offset, self._tail = (0, 0), 0, b""

    def look(self, forget: Callable[[], None], take: Callable[[Line], None]) -> None:
        """Take each line that is new; forget all first where the file is another one by now.

        Half a line at the end is not there yet. Raises RolecallError for what is no regular file.
        """
        fd = self._open()
        if fd < 0:
            if self._offset:
                self._rewind(forget)
            return
        try:
            with open(fd, "rb") as file:
                found = os.fstat(fd)
                _checked(found, self.path)
                if self._offset and not self._goes_on(fd, found):
                    self._rewind(forget)
                self._file = found.st_dev, found.st_ino
                if found.st_size > self._offset:
                    file.seek(self._offset)
                    self._read(file, take)
        except OSError as error:
            raise _unusable(error, self.path) from None

    def _goes_on(self, fd: int, found: os.stat_result) -> bool:
        same = (found.st_dev, found.st_ino) == self._file and found.st_size >= self._offset
        at = self._offset - len(self._tail)
        return same and os.pread(fd, len(self._tail), at) == self._tail

    def _rewind(self, forget: Callable[[], None]) -> None:
        self.skipped, self._offset, self._tail = 0, 0, b""
        forget()

    def _read(self, file: IO[bytes], take: Callable[[Line], None]) -> None:
        while data := file.readline(LONGEST):
            if not data.endswith(b"\n") and len(data) < LONGEST:
                return
            self._offset += len(data)
            self._tail = (self._tail + data)[-TAIL:]
            line = parse(data)
            if line is not None:
                take(line)
            else:
                self.skipped += bool(data.strip())

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise _unusable(error, self.path) from None
