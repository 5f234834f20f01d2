"""A soak of a queue in a database, whose server is killed and hangs while everybody works."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from daemon.errors import RolecallError
from daemon.model import Lease
from daemon.queue import asking
from daemon.queue.postgres import PostgresQueue
from tests.faults.away import Shared
from tests.postgres import Server
from tests.soak.soak import PARKED, STATUSES, Nobody, Soak, Unreadable

AWAY = (0.1, 0.5, 5.0)  # seconds; the last is longer than a lease lives
#: Nobody flushes what no commit waits for, so that a kill loses it.
LAZY = {"wal_writer_delay": "10s"}
#: Of any worker or attempt.
CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'rolecall' ORDER BY random() LIMIT 1"""


class PostgresSoak(Soak):
    """The server dies or hangs, lines are cut, a person asks for releases and types SQL."""

    ws: Shared
    queue: PostgresQueue

    def __init__(self, folder: Path, seed: int) -> None:
        self.server = Server(durable=True, settings=LAZY)
        try:
            self.server.start()
            super().__init__(Shared(folder, self.server.create("sprint")), seed)
        except BaseException:
            self.server.end()
            raise
        self.known: list[Lease] = []
        self.before: dict[str, str] = {}  # what the last look saw
        #: Each thread's own line, and the number of breaks that it has seen.
        self.lines: dict[int, tuple[int, psycopg.Connection[Any]]] = {}

    def made(self, *tasks: dict[str, Any]) -> PostgresQueue:
        self.ws.init()
        self.ws.fill(*tasks)
        return PostgresQueue(self.ws.loaded(), teller=Nobody())

    def acts(self) -> list[Callable[[], None]]:
        often = [self.edit_by_hand] * 4 + [self.ask_for_a_release] * 2 + [self.cut_a_line] * 2
        return [*often, self.kill_the_server, self.hang_the_server]

    def seen(self) -> dict[str, str]:
        return dict(self.sql("SELECT id, status FROM rolecall.task"))

    def leases(self) -> list[Lease]:
        if not self.is_broken():
            self.known = list(self.queue.tables.leases().values())
        return self.known

    def compare(self, tasks: dict[str, str]) -> None:
        super().compare(tasks)
        self.violations += [f"{name} is gone" for name in self.before if name not in tasks]
        self.violations += [
            f"{name} was done, and is {tasks[name]}"
            for name, status in self.before.items()
            if status == "done" and tasks.get(name, "done") != "done"
        ]
        self.before = tasks

    def sql(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """What the owner of the schema types, on a line that saw no break. Raises Unreadable."""
        me, breaks = threading.get_ident(), self.breaks
        try:
            of, line = self.lines.get(me, (-1, None))
            if line is None or of != breaks:
                line = psycopg.connect(self.ws.url, autocommit=True, application_name="soak")
                self.lines[me] = breaks, line
            cursor = line.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise Unreadable(str(error)) from None

    def end(self) -> None:
        super().end()
        shutil.copy(self.server.log, self.ws.path / "server.log")
        self.server.end()

    # --- what is done to the queue ---------------------------------------------------------------

    def edit_by_hand(self) -> None:
        """Change the status of a task that no role works on."""
        if not self.is_broken():
            values = self.random.choice(STATUSES), self.random.choice(PARKED)
            self.sql("UPDATE rolecall.task SET status = %s WHERE id = %s", *values)
            self.figures["edits by hand"] += 1

    def ask_for_a_release(self) -> None:
        """As ``invoke queue.release`` does, which its attempt hears of at its renewal."""
        found = self.leases()
        if found and not self.is_broken():
            with contextlib.suppress(RolecallError):  # it has ended just now
                asking.release(self.queue, self.random.choice(found).task_id, "a person")
                self.figures["releases asked for"] += 1

    def cut_a_line(self) -> None:
        """End the server's side of a random connection."""
        if not self.is_broken():
            self.queue.close()  # it is not to be ours
            if self.sql(CUT):
                self.figures["connections cut"] += 1

    def kill_the_server(self) -> None:
        """KILL to all of its processes; it is started again later."""
        self.take_away(self.server.kill, self.server.start, "SIGKILL of the server")

    def hang_the_server(self) -> None:
        """Let it answer nothing for a while."""
        self.take_away(self.server.freeze, self.server.thaw, "SIGSTOP of the server")

    def take_away(self, act: Callable[[], None], undo: Callable[[], None], figure: str) -> None:
        if self.is_broken():
            return
        self.breaks += 1
        act()
        self.figures[figure] += 1

        def mend() -> None:
            undo()
            self.queue.close()  # it knew of no break
            self.breaks += 1

        self.later.append((time.monotonic() + self.random.choice(AWAY), mend))
