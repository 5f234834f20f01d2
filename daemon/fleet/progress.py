"""Which hosts are still waited for: one line on a terminal, nothing anywhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import IO

from daemon.fleet.output import escape, fit

CLEAR = "\r\x1b[K"


class Progress:
    """A line that is drawn on a terminal, and cleared before anything else is printed there."""

    def __init__(
        self, stream: IO[str] | None, hosts: Sequence[str], environ: Mapping[str, str] = os.environ
    ) -> None:
        self._stream = stream
        self._shows = (
            stream is not None and stream.isatty() and environ.get("TERM") not in {None, "", "dumb"}
        )
        self._waiting, self._all = list(hosts), len(hosts)
        self._drawn = False
        self.late = False  # it has been drawn once: what comes now is no quick command

    def done(self, host: str) -> None:
        """That host is not waited for any more."""
        if host in self._waiting:
            self._waiting.remove(host)

    @property
    def text(self) -> str:
        """As in: 3 of 10 hosts; waiting for web4, web7."""
        names = ", ".join(map(escape, self._waiting))
        return f"{self._all - len(self._waiting)} of {self._all} hosts; waiting for {names}"

    def draw(self) -> None:
        """Show it."""
        self.late = True
        if self._shows and self._stream and self._waiting:
            columns = shutil.get_terminal_size().columns
            self._stream.write(CLEAR + fit(self.text, columns - 1))
            self._stream.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take it away, where it is."""
        if self._drawn and self._stream:
            self._stream.write(CLEAR)
            self._stream.flush()
            self._drawn = False
