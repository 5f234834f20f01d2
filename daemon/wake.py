"""Being told that the queue may have changed, instead of looking again and again."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any


class Signals:
    """Records signals and wakes a poll; what they mean is decided in the loop.

    Read as ``taken()``: the signals since the last call, in order.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._seen: list[signal.Signals] = []
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._record)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self._seen.append(signal.Signals(number))

    def taken(self) -> list[signal.Signals]:
        """What came since the last call; empties the pipe."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            pass
        seen, self._seen = self._seen, []
        return seen


class Watch:
    """inotify on the queue's folder and on the leases' folder; silent where there is no inotify.

    The queue's folder is watched and filtered by name, for a rename replaces the file. The leases'
    folder is watched for removals only, or every heartbeat would wake every worker.
    """

    def __init__(self, queue_file: str, leases: str) -> None:
        self.fd = -1
        folder, name = os.path.split(os.path.realpath(queue_file))
        self._folders = {folder: name, leases: ".json"}
        self._watched: dict[int, str] = {}
        self._inotify: Any = None
        try:
            from inotify_simple import INotify  # noqa: PLC0415  # Linux only
        except ImportError:
            return
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError:  # the user's instances are used up: the interval still wakes us
            return
        self.fd = self._inotify.fileno()
        self.renew()

    def renew(self) -> None:
        """Watch what is not watched yet: a folder may be made, or made anew, while we run."""
        if self._inotify is None or len(self._watched) == len(self._folders):
            return
        from inotify_simple import flags  # noqa: PLC0415  # Linux only

        lost = flags.DELETE | flags.MOVED_FROM | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
        for folder, name in self._folders.items():
            wanted = lost if name == ".json" else lost | flags.CLOSE_WRITE | flags.MOVED_TO
            if folder not in self._watched.values():
                try:
                    self._watched[self._inotify.add_watch(folder, wanted)] = folder
                except OSError:  # not there yet
                    continue

    @property
    def pending(self) -> bool:
        """Nothing is: events stay in the descriptor until they are asked for."""
        return False

    def changed(self) -> bool:
        """Whether something that matters came since the last call. Never blocks."""
        matters = False
        for event in self._inotify.read(timeout=0) if self._inotify else ():
            if not event.name:  # the folder itself is gone, or the kernel's own queue ran over
                self._watched.pop(event.wd, None)
                matters = True
            elif event.name.endswith(self._folders.get(self._watched.get(event.wd, ""), "/")):
                matters = True
        return matters

    def close(self) -> None:
        """Watch no more."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify, self.fd = None, -1


def wait(fds: Iterable[int], seconds: float | None) -> set[int]:
    """Sleep until one of the descriptors is readable, or for so long; which ones are."""
    poll = select.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000)}
