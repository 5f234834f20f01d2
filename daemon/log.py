"""State changes, each told once: a line for a person, a JSON object for a program.

Under a journal the line goes to it (its own fields carry the rest); elsewhere to
``<role>.log`` and ``events.jsonl`` in the logs' folder. A full disk stops no worker.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from typing import Any

from daemon.model import Move, format_time

ROTATE_BYTES = 5 * 1024 * 1024  # one older file is kept beside the present one
JOURNAL = "/run/systemd/journal/socket"
PRIORITIES = {"error": 3, "warning": 4, "info": 6}


def escape(text: str) -> str:
    """Control characters made visible: titles and remote output must not drive a terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _append(path: str, line: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        # A pipe that somebody laid there must not block us.
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return
            # One write a line: several processes append to one file.
            os.write(descriptor, line.encode(errors="backslashreplace"))
            if os.fstat(descriptor).st_size > ROTATE_BYTES:
                os.rename(path, path + ".1")
                if os.path.samestat(os.fstat(descriptor), os.fstat(2)):
                    fresh = os.open(path, flags, 0o600)
                    os.dup2(fresh, 2)
                    os.close(fresh)
        finally:
            os.close(descriptor)
    except OSError:
        return


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
        self._said: dict[str, str] = {}
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

    def move(self, move: Move, owner: str = "") -> None:
        """Tell one state change of one task, in the name of another owner where one is given."""
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
        self.say(text, **facts, **({"owner": owner} if owner else {}))

    def say(self, text: str, level: str = "info", **facts: Any) -> None:
        """Tell something else that changed: started, stopping, a queue that cannot be read."""
        now = format_time(time.time())
        role = str(facts.get("role") or self._role)
        event = {"time": now, "level": level, "owner": self.owner, "role": role, **facts}
        as_json = json.dumps({**event, "message": text}, ensure_ascii=False) + "\n"
        plain = f"{now} {role} {escape(text)}\n"
        native = self._unit or (self._journal and self._form == "text")
        if native and self._to_journal(text, level, event):
            return
        line = as_json if self._form == "json" else plain
        if self._journal:
            line = f"<{PRIORITIES[level]}>" + (
                as_json if self._form == "json" else escape(text) + "\n"
            )
        if self._form != "none":
            self._to_stderr(line)
        if not self._journal:
            if not (self._stderr_is_file and role == self._role):
                _append(self._file(role), plain)
            _append(self._events, as_json)

    def _to_stderr(self, line: str) -> None:
        try:
            sys.stderr.write(line)
            sys.stderr.flush()
        except OSError:
            return

    def once(self, topic: str, text: str, level: str = "warning") -> None:
        """Tell it unless it was the last thing told of that topic; "" ends the topic."""
        if self._said.get(topic, "") != text:
            self._said[topic] = text
            if text:
                self.say(text, level)

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
                channel.sendto(payload, JOURNAL)
        except OSError:
            return False
        return True
