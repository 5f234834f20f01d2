"""State changes, each told once: a line for a person, a JSON object for a program.

Under a journal the line goes to it (its own fields carry the rest); elsewhere, and where the
journal is not kept on disk, to ``<role>.log`` and ``events.jsonl`` in the logs' folder. A full disk
stops no worker.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Any

from daemon.model import Move, format_time

ROTATE_BYTES = 5 * 1024 * 1024  # one older file is kept beside the present one
PART = 16 * 1024  # characters that are written at once, where there are as many to be told
LOCK_WAIT = 0.2  # seconds; an append takes some microseconds
HEARD = 0.2  # seconds that a reader, or the journal, may take for a line: a lock may be held
DEAF = 5.0  # seconds for which one that took longer is not waited for again
PIPE_BUF = 4096  # bytes that a pipe takes at once where poll says that it takes any
JOURNAL = "/run/systemd/journal/socket"
KEPT = "/var/log/journal"  # without it the journal ends with the machine, and is root's alone
PRIORITIES = {"error": 3, "warning": 4, "info": 6}


def escape(text: str) -> str:
    """Control characters made visible: titles and remote output must not drive a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def append(lines: Iterable[tuple[str, str]]) -> None:
    """Add lines to the files that they are for, in order; many of them in few writes."""
    waiting: dict[str, str] = {}
    for path, line in lines:
        waiting[path] = waiting.get(path, "") + line
        if len(waiting[path]) >= PART:
            _append(path, waiting.pop(path))
    for path, text in waiting.items():
        _append(path, text)


def _append(path: str, line: str) -> None:
    """Add whole lines to a file that several processes append to and rotate, or nothing."""
    # A pipe that somebody laid there must not block us; reading is for the last line's end.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    data = line.encode(errors="backslashreplace")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        while True:
            descriptor = os.open(path, flags, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return
                alone = _alone(descriptor, path)
                if alone and not _is(path, descriptor):
                    continue  # another process rotated it while we waited
                size = _add(descriptor, data, alone=alone)
                if alone and size > ROTATE_BYTES:
                    os.rename(path, path + ".1")
                return
            finally:
                os.close(descriptor)
    except OSError:
        return


_frozen: dict[str, float] = {}  # until when the lock of a file is not waited for


def _alone(descriptor: int, path: str) -> bool:
    """Whether the file's lock is ours. One that is frozen with it in hand must not stop us."""
    now = time.monotonic()
    until = now if now < _frozen.get(path, 0.0) else now + LOCK_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                _frozen[path] = time.monotonic() + DEAF
                return False
            time.sleep(0.001)
        else:
            return True


def _is(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _add(descriptor: int, data: bytes, *, alone: bool) -> int:
    """Write lines behind the last one; the file's size then."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data  # half a line of somebody else's stays one by itself
    written = os.write(descriptor, data)
    if written < len(data) and alone and os.fstat(descriptor).st_size == size + written:
        os.ftruncate(descriptor, size)  # the disk is full: no half of a line is left
        return size
    return size + written


def _as_json(event: dict[str, Any]) -> str:
    """A line of JSON, escaped as a whole where something in it could drive a terminal."""
    text = json.dumps(event, ensure_ascii=False)
    return (text if text.isprintable() else json.dumps(event)) + "\n"


class Log:
    """Where a worker, an attempt or a person's command tells what happens.

    ``form`` is what stderr gets: text, json or none. ``unit`` is the unit whose journal gets it
    from elsewhere; what runs inside a unit finds its journal by itself.
    """

    def __init__(
        self, folder: str, role: str, owner: str, *, form: str = "text", unit: str = ""
    ) -> None:
        self._folder, self._role = folder, role
        self._events = os.path.join(folder, "events.jsonl")
        self.owner, self._form, self._unit = owner, form, unit
        self._said: dict[str, set[str]] = {}
        self._kept = os.path.isdir(KEPT)
        self._torn = False  # standard error took half a line, for its disk was full
        self._deaf_until = 0.0
        stream = os.environ.get("JOURNAL_STREAM", "").partition(":")
        try:
            found = os.fstat(2)
            self._journal = (str(found.st_dev), str(found.st_ino)) == (stream[0], stream[2])
            file = self._file(role)
            self._stderr_is_file = os.path.exists(file) and os.path.samestat(found, os.stat(file))
        except OSError:
            self._journal = self._stderr_is_file = False

    def _file(self, role: str) -> str:
        return os.path.join(self._folder, f"{role}.log")

    def tell(self, moves: Iterable[Move], owner: str = "") -> None:
        """Tell state changes of tasks, in the name of another owner where one is given."""
        append(line for move in moves for line in self.lines(move, owner))
        self._follow()

    def lines(self, move: Move, owner: str = "") -> Iterator[tuple[str, str]]:
        """Tell one, but for its lines in files: those, each with the file's path."""
        ours = ("role", "outcome", "attempt", "token", "seconds")
        facts = {key: found for key in ours if (found := getattr(move, key)) not in ("", None, 0)}
        facts |= {"task": move.task_id, "from": move.source or None, "to": move.target}
        facts |= {"why": move.why}
        text = f"{move.task_id}: " + f"{move.source} -> " * bool(move.source) + move.target
        details = [
            move.outcome and f"{move.outcome}",
            f"attempt {move.attempt}" * bool(move.attempt),
        ]
        details += [f"token {move.token}" * bool(move.token)]
        if move.seconds is not None:
            details.append(f"{move.seconds:.1f} s")
        told = ", ".join(detail for detail in details if detail)
        text += f" ({told})" * bool(told) + f": {move.why}" * bool(move.why)
        return self._told(text, **facts, **({"owner": owner} if owner else {}))

    def say(self, text: str, level: str = "info", **facts: Any) -> None:
        """Tell something else that changed: started, stopping, a queue that cannot be read."""
        append(self._told(text, level, **facts))
        self._follow()

    def _told(self, text: str, level: str = "info", **facts: Any) -> Iterator[tuple[str, str]]:
        now = format_time(time.time())
        role = str(facts.get("role") or self._role)
        event = {"time": now, "level": level, "owner": self.owner, "role": role, **facts}
        as_json = _as_json({**event, "message": text})
        plain = f"{now} {role} {escape(text)}\n"
        native = self._unit or (self._journal and self._form == "text")
        told = native and self._to_journal(text, level, event)
        to_files = not ((told or self._journal) and self._kept)
        if self._stderr_is_file and role == self._role:
            yield self._file(role), as_json if self._form == "json" else plain
        else:
            if not told and self._form != "none":
                self._to_stderr(self._line(text, level, plain, as_json))
            if to_files:
                yield self._file(role), plain
        if to_files:
            yield self._events, as_json

    def _line(self, text: str, level: str, plain: str, as_json: str) -> str:
        """What standard error gets: the journal has its own times, and reads a priority."""
        line = as_json if self._form == "json" else plain
        if self._journal:
            shown = as_json if self._form == "json" else escape(text) + "\n"
            line = f"<{PRIORITIES[level]}>{shown}"
        return line

    def _to_stderr(self, line: str) -> None:
        """Past sys.stderr, which would keep what a full disk did not take and fail at exit."""
        data = ("\n" * self._torn + line).encode(errors="backslashreplace")
        poll, written = select.poll(), 0
        poll.register(2, select.POLLOUT)
        try:
            while written < len(data) and poll.poll(self._patience() * 1000):
                taken = os.write(2, data[written : written + PIPE_BUF])
                written += taken
                if not taken:
                    break
        except OSError:
            pass
        if written < len(data):
            self._deaf_until = time.monotonic() + DEAF
        self._torn = 0 < written < len(data)

    def _patience(self) -> float:
        """The seconds that a line may take: none, where the last one took too long."""
        return 0.0 if time.monotonic() < self._deaf_until else HEARD

    def _follow(self) -> None:
        """Have standard error be the role's log also after that was rotated."""
        try:
            if self._stderr_is_file and not _is(self._file(self._role), 2):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
                fresh = os.open(self._file(self._role), flags, 0o600)
                os.dup2(fresh, 2)
                os.close(fresh)
        except OSError:
            return

    def once(self, topic: str, text: str, level: str = "warning") -> None:
        """Tell it unless it was told of that topic before; "" ends the topic."""
        if not text:
            self._said.pop(topic, None)
        elif text not in (said := self._said.setdefault(topic, set())):
            said.add(text)
            self.say(text.replace("\n", "; "), level)  # an error's hint has its own line

    def _to_journal(self, text: str, level: str, event: dict[str, Any]) -> bool:
        """Send to the journal as the worker's unit, so that its journal tells the whole story."""
        import socket  # noqa: PLC0415  # only where there is a journal

        fields = {
            "MESSAGE": escape(text),
            "PRIORITY": str(PRIORITIES[level]),
            "SYSLOG_IDENTIFIER": "rolecall",
            **({"USER_UNIT": self._unit} if self._unit else {}),
            **{
                f"ROLECALL_{key.upper()}": escape(str(value))
                for key, value in event.items()
                if value not in (None, "")
            },
        }
        payload = "".join(f"{key}={value}\n" for key, value in fields.items()).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(self._patience())
                channel.sendto(payload, JOURNAL)
        except OSError as error:
            if isinstance(error, BlockingIOError | TimeoutError):
                self._deaf_until = time.monotonic() + DEAF
            return False
        return True
