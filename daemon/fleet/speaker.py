"""How a host's process speaks to who has asked from afar: messages, one line each, on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from typing import Any

MARK = b"\x1erolecall "  # before each message: whatever else comes out of a login is noise
ALIVE = 2.0  # seconds between two signs of life, of the 10 that an operator waits

Message = dict[str, Any]


class Speaker:
    """Messages to the operator's side, from several threads; nobody may be there to hear them."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), threading.Event()
        # Whatever is started here must not hold the line open, nor be taken for us.
        self._in, self._out = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        threading.Thread(target=self._live, daemon=True).start()

    def tell(self, text: str) -> None:
        """A line for a person."""
        self._say({"tell": text})

    def line(self, text: str) -> None:
        """A line of a log."""
        self._say({"line": text})

    def end(self, message: Message) -> None:
        """The last message."""
        self._ended.set()
        self._say(message)

    def end_with_stdin(self) -> None:
        """Be interrupted, as by Ctrl-C, when the operator's side has gone: nothing is changed."""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while os.read(self._in, 4096):
            pass
        if not self._ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _live(self) -> None:
        while not self._ended.wait(ALIVE):
            self._say({"alive": 1})

    def _say(self, message: Message) -> None:
        data = MARK + json.dumps(message).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            if self._ended.is_set() and "alive" in message:
                return
            while data:
                data = data[os.write(self._out, data) :]
