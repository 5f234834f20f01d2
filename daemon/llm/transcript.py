"""What was said in a run, a JSON object in a line each, as it goes: a killed run has one too."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from daemon.capture import masked
from daemon.model import format_time

NAME = "transcript.jsonl"
LIMIT = 64 << 20  # bytes of the file
TEXT = 64 << 10  # characters of one string in it


class Transcript:
    """The file in that folder; secrets are masked, and it is its owner's alone (0600)."""

    def __init__(self, folder: str, secrets: Sequence[str]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(os.path.join(folder, NAME), flags, 0o600)
        self._secrets = secrets
        self._room = LIMIT - os.fstat(self._fd).st_size

    def add(self, kind: str, value: Any) -> None:
        """Write one entry. A full disk loses entries, never the run."""
        entry = {"time": format_time(time.time()), kind: _bounded(value)}
        text = json.dumps(entry, ensure_ascii=False, default=str)
        data = masked(text.encode(errors="backslashreplace"), self._secrets) + b"\n"
        if len(data) > self._room:
            return
        self._room -= len(data)
        try:
            os.write(self._fd, data)
        except OSError:
            return

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        cut = len(value) - TEXT
        return value if cut <= 0 else f"{value[:TEXT]}[{cut} characters are left out]"
    if isinstance(value, dict):
        return {key: _bounded(each) for key, each in value.items() if each not in (None, {}, [])}
    if isinstance(value, list):
        return [_bounded(each) for each in value]
    return value
