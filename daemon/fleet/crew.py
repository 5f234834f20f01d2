"""Threads that work through hosts, and one queue of all that they have to say."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from daemon.fleet.fanout import Answer, Said, Say

if TYPE_CHECKING:
    from daemon.inventory import Host

MOST = 1000  # things said that nobody has heard yet

T = TypeVar("T")


class Crew(Generic[T]):
    """``do`` for each of the hosts, for so many at once.

    No pool of concurrent.futures: Python would wait for its threads when a person interrupts.
    """

    def __init__(
        self, hosts: Sequence[Host], do: Callable[[Host, Say], Answer[T]], forks: int
    ) -> None:
        self._do = do
        self._hosts: queue.SimpleQueue[Host] = queue.SimpleQueue()
        # With an end: where who reads is slow, hosts that say much have to wait.
        self._came: queue.Queue[Said | Answer[T] | BaseException] = queue.Queue(MOST)
        for host in hosts:
            self._hosts.put(host)
        for _ in range(min(max(1, forks), len(hosts))):
            threading.Thread(target=self._work, daemon=True).start()

    def wait(self, seconds: float | None) -> Said | Answer[T] | None:
        """What comes next; None where nothing does in that time. A thread's bug is raised here."""
        try:
            came = self._came.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(came, BaseException):
            raise came
        return came

    def _work(self) -> None:
        try:
            while True:
                host = self._hosts.get_nowait()
                self._came.put(self._do(host, partial(self._say, host)))
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001  # raised by who waits
            self._came.put(error)

    def _say(self, host: Host, kind: str, text: str) -> None:
        self._came.put(Said(host, kind, text))
