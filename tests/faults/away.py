"""A workspace whose queue is in a database, and a way there that can be cut, held up or closed."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

from daemon.config import Config, load
from daemon.queue.migrating import migrate
from daemon.queue.postgres import PostgresQueue
from tests.postgres import Server
from tests.workspace import Workspace, wait_for

TASK: dict[str, Any] = {"id": "T1", "title": "x", "type": "Build", "status": "ready"}
BUILDER = ("--role", "builder")
DONE = "awaiting_test"
#: What a worker says of the server.
LOST, BACK = "the queue's server cannot be", "the queue's server answers again"
#: Agents: one that leaves a trace, and one that is held until there is a file.
COUNTED = "echo $ROLECALL_TASK_ID >>runs; "
HELD = COUNTED + ": >up; while [ ! -e go ]; do sleep 0.05; done; "
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset
CHUNK = 1 << 16


class Way:
    """A TCP port of this host that leads to a server, for as long as it is open.

    ``connects``: when one came, of time.monotonic(). ``up`` is called with a client's line and what
    it sends, before that is passed on. ``swallowed``: the directions ("up", "down") in which
    nothing is passed on any more.
    """

    def __init__(self, url: str) -> None:
        found = conninfo_to_dict(url)
        host, port = str(found.get("host") or "/tmp"), int(found.get("port") or 5432)  # noqa: S108  # libpq's
        self._target = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
        self._lines: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.connects: list[float] = []
        self.swallowed: set[str] = set()
        self.up: Callable[[socket.socket, bytes], object] = lambda *_: None
        self._door = self._open(0)
        self.port = self._door.getsockname()[1]

    def url(self, url: str) -> str:
        """The same database by this way."""
        found = conninfo_to_dict(url)
        return f"postgresql://{found['user']}@127.0.0.1:{self.port}/{found['dbname']}"

    def _open(self, port: int) -> socket.socket:
        door = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(door,), daemon=True).start()
        return door

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                near, _ = door.accept()
            except OSError:
                return
            self.connects.append(time.monotonic())
            far = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
            try:
                far.connect(self._target)
            except OSError:
                near.close()
                far.close()
                continue
            with self._lock:
                self._lines.append((near, far))
            for ends in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                if direction == "up":
                    self.up(source, data)
                if direction not in self.swallowed:
                    target.sendall(data)
        if not self.swallowed:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def at(
        self, function: str, act: Callable[[], object], when: Callable[[], bool] = lambda: True
    ) -> threading.Event:
        """Act once, before the first call of the queue's function at such a time. Set then."""
        knows: set[socket.socket] = set()  # who has prepared it
        done = threading.Event()

        def up(line: socket.socket, data: bytes) -> None:
            if f"rolecall.{function}(".encode() in data:
                knows.add(line)
            elif line in knows and data[:1] == b"B" and not done.is_set() and when():
                done.set()
                act()

        self.up = up
        return done

    def cut(self) -> None:
        """Reset every connection that there is."""
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            for end in line:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RD)  # its thread lets go of it
                end.close()

    def hang(self) -> None:
        """Take what comes, new connections as well, and answer nothing."""
        self.swallowed = {"up", "down"}

    def mend(self) -> None:
        """What was held up is lost; from now on all is passed on."""
        self.swallowed = set()
        self.cut()

    def close(self) -> None:
        """Refuse connections; those that there are stay."""
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def reopen(self) -> None:
        """Take connections again."""
        self._door = self._open(self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.swallowed = set()
        self.cut()


class Shared(Workspace):
    """A workspace whose queue is in a database: the workers' way there, and the test's own."""

    def __init__(self, path: Path, url: str, way: str = "") -> None:
        super().__init__(path)
        self.url, self.way = url, way or url

    def init(self) -> None:
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            migrate(connection)

    def write_config(self, **roles: dict[str, Any]) -> None:
        super().write_config(**roles)
        self.config.write_text(
            json.dumps({**json.loads(self.config.read_text()), "queue": self.way})
        )

    def loaded(self) -> Config:
        return load(str(self.config))._replace(queue=self.url)

    @contextlib.contextmanager
    def opened(self, **keys: Any) -> Iterator[PostgresQueue]:
        """The queue as a process of its own would have it."""
        queue = PostgresQueue(self.loaded(), **keys)
        try:
            yield queue
        finally:
            queue.close()

    def fill(self, *tasks: dict[str, Any]) -> None:
        with self.opened() as queue:
            queue.load(json.dumps({"tasks": list(tasks)}).encode(), "test", replace=True)

    def add(self, *tasks: dict[str, Any]) -> None:
        with self.opened() as queue:
            queue.add(list(tasks))

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Its rows; none while the server is away."""
        try:
            with closing(psycopg.connect(self.url, autocommit=True, connect_timeout=2)) as line:
                cursor = line.execute(query.encode(), values)
                return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            return []

    def status(self, identifier: str = "T1") -> str:
        found = self.ask("SELECT status FROM rolecall.task WHERE id = %s", identifier)
        return str(found[0][0]) if found else ""

    def statuses(self) -> set[str]:
        return {row[0] for row in self.ask("SELECT status FROM rolecall.task")}

    def attempts(self, identifier: str = "T1") -> int:
        ((many,),) = self.ask("SELECT attempts FROM rolecall.task WHERE id = %s", identifier)
        return int(many)

    def holder(self, identifier: str = "T1") -> int:
        """The pid that the task's lease names; 0 where there is none."""
        found = self.ask("SELECT lease ->> 'pid' FROM rolecall.task WHERE id = %s", identifier)
        return int(found[0][0] or 0) if found else 0

    def leases(self) -> list[str]:
        return [row[0] for row in self.ask("SELECT id FROM rolecall.task WHERE owner IS NOT NULL")]

    def up(self) -> None:
        """Wait for the agent that is held."""
        wait_for((self.path / "up").exists, f"the agent is up: {self.log()}")

    def runs(self) -> list[str]:
        """The tasks that agents were started on."""
        path = self.path / "runs"
        return path.read_text().split() if path.exists() else []

    def settled(self) -> list[str]:
        """How attempts ended, as their events have it."""
        return [each["outcome"] for each in self.events() if each.get("outcome")]

    def count(self, text: str) -> int:
        """How often the workers have said it."""
        return self.log().count(text)


Servers = Callable[..., Server]
Make = Callable[..., Shared]
