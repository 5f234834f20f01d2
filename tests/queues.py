"""Queues of a test's own, of every backend, behind one face."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from daemon import lifecycle
from daemon.config import Backoff, Breaker, Config, Paths, Role
from daemon.lifecycle import DEFAULT_ROLES
from daemon.model import Move
from daemon.process import Identity
from daemon.queue import Queue
from daemon.queue.file import FileQueue
from tests.postgres import Databases

MOST = 40  # connections that one test holds open
FAR = Identity("far", "machine-of-far", "boot-of-far", "pid:[1]", 4711, 1)


class Clock:
    """Wall time and boot time that a test can step."""

    def __init__(self) -> None:
        self.wall, self.boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.boot += seconds


class Told:
    """The moves that queues have told, in order, with their owners."""

    def __init__(self, owner: str = "me") -> None:
        self.owner = owner
        self.moves: list[Move] = []
        self.owners: list[str] = []

    def tell(self, moves: Sequence[Move], owner: str = "") -> None:
        self.moves += moves
        self.owners += [owner or self.owner] * len(moves)


class Backend(ABC):
    """A queue of a test's own: how a test fills it, changes it by hand, and opens it."""

    kind: str
    url: str

    def __init__(self, folder: Path, **role: Any) -> None:
        self.folder = folder
        never = Breaker(failures=0)
        self.role = {
            "lease_ttl": 60.0,
            "backoff": Backoff(30.0, 3600.0),
            "breaker": never,
            **role,
        }
        folder.mkdir(exist_ok=True)
        self.clock, self.told = Clock(), Told()

    @property
    def config(self) -> Config:
        roles = {
            name: Role(name, **{**row, "claims": tuple(row["claims"]), **self.role})
            for name, row in DEFAULT_ROLES.items()
        }
        paths = Paths(*(str(self.folder / name) for name in Paths._fields))
        return Config(str(self.folder), self.url, "auto", "agent", tuple(roles), roles, paths)

    @abstractmethod
    def open(self, me: Identity | None = None, random: float = 1.0) -> Queue:
        """A worker's own view of the queue. What it does is told to ``self.told``."""

    @abstractmethod
    def put(self, document: Any) -> None:
        """Make the queue hold this document, whatever it held, by hand."""

    @abstractmethod
    def text(self) -> str:
        """The queue as a person gets to read it."""

    @abstractmethod
    def written(self) -> object:
        """All that a write of the queue changes; a lease alone does not count."""

    @abstractmethod
    def has_lease(self, task_id: str) -> bool:
        """Whether there is one, live or not."""

    @abstractmethod
    def drop_lease(self, task_id: str) -> None:
        """Take the lease away by hand; the task says what it said."""

    @abstractmethod
    def change_lease(self, task_id: str, **values: Any) -> None:
        """Change what the lease says, by hand."""

    def close(self) -> None:  # noqa: B027  # a file has nothing to let go of
        """Nobody asks for it any more."""

    def fill(self, *tasks: dict[str, Any], **top: Any) -> None:
        """Make the queue hold these tasks."""
        self.put({"tasks": list(tasks), **top})

    def save(self, text: str) -> None:
        """Make the queue hold what the text says, by hand."""
        self.put(json.loads(text))

    def document(self) -> Any:
        """The queue as any other program reads it."""
        return json.loads(self.text())

    def task(self, task_id: str) -> dict[str, Any]:
        """One top-level task, as it stands there now."""
        found: dict[str, Any]
        found = next(task for task in self.document()["tasks"] if task["id"] == task_id)
        return found

    def change(self, task_id: str, **values: Any) -> None:
        """Change a task by hand."""
        document = self.document()
        next(task for task in document["tasks"] if task["id"] == task_id).update(values)
        self.put(document)


class FileBackend(Backend):
    """A queue in a JSON file; by hand is with an editor."""

    kind = "file"

    def __init__(self, folder: Path, **role: Any) -> None:
        super().__init__(folder, **role)
        self.path = folder / "SPRINT_QUEUE.json"
        self.url = f"file:{self.path}"
        self.layout: dict[str, Any] = {"indent": 2}  # how a person's editor lays the queue out

    def open(self, me: Identity | None = None, random: float = 1.0) -> FileQueue:
        return FileQueue(
            self.config,
            clock=lambda: self.clock.wall,
            boottime=lambda: self.clock.boot,
            random=lambda: random,
            me=me,
            teller=self.told,
        )

    def text(self) -> str:
        return self.path.read_text()

    def written(self) -> bytes:
        return self.path.read_bytes()

    def put(self, document: Any) -> None:
        self.save(json.dumps(document, **self.layout) + "\n")

    def save(self, text: str) -> None:
        """As a person's editor does: aside, and renamed."""
        aside = self.path.with_suffix(".mine")
        aside.write_text(text)
        aside.rename(self.path)

    def lease_file(self, task_id: str) -> Path:
        """Where the task's lease is."""
        return self.folder / "leases" / f"{task_id}.json"

    def has_lease(self, task_id: str) -> bool:
        return self.lease_file(task_id).exists()

    def drop_lease(self, task_id: str) -> None:
        self.lease_file(task_id).unlink()

    def change_lease(self, task_id: str, **values: Any) -> None:
        path = self.lease_file(task_id)
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class ServerClock(Clock):
    """The clock of a database, which a test can step; the one of the test's process with it."""

    def __init__(self, execute: Callable[..., list[tuple[Any, ...]]]) -> None:
        self._execute = execute
        super().__init__()

    @property
    def wall(self) -> float:
        return self._wall

    @wall.setter
    def wall(self, seconds: float) -> None:
        self._wall = round(seconds, 3)
        self._execute("UPDATE rolecall.test_clock SET at = to_timestamp(%s)", self._wall)


#: In place of the server's own, so that a test can step it.
CLOCK = """
CREATE TABLE rolecall.test_clock (at timestamptz);
INSERT INTO rolecall.test_clock VALUES (clock_timestamp());
CREATE OR REPLACE FUNCTION rolecall.now() RETURNS timestamptz
LANGUAGE sql VOLATILE SECURITY DEFINER AS 'SELECT at FROM rolecall.test_clock';
"""
LEASE = "owner, role, host, started_at, ttl, heartbeat_at, lease, wish, wished_by"
LEASES = f"SELECT id, status, token, {LEASE} FROM rolecall.task"  # noqa: S608  # our own words
#: What a write of the queue changes.
WRITTEN = """SELECT place, id, problem, parent, document, ours::text, status, priority, stuck,
    waiting, open_children, good_children, free_at, attempts, token
    FROM rolecall.task ORDER BY place"""


class PostgresBackend(Backend):
    """A queue in a database of its own; by hand is with SQL, as the owner of the schema."""

    kind = "postgres"

    def __init__(
        self, folder: Path, *, url: str, give_back: Callable[[str], None], **role: Any
    ) -> None:
        super().__init__(folder, **role)
        self.url, self._give_back = url, give_back
        self._hands: dict[int, Any] = {}  # a connection for each process: tests fork
        self._readers: dict[int, Any] = {}
        self._opened: list[Queue] = []
        self.clock = ServerClock(self.sql)

    def open(self, me: Identity | None = None, random: float = 1.0) -> Queue:
        from daemon.queue.postgres import PostgresQueue  # noqa: PLC0415  # psycopg is an extra

        queue = PostgresQueue(
            self.config,
            clock=lambda: self.clock.wall,
            random=lambda: random,
            me=me,
            teller=self.told,
        )
        self._opened.append(queue)
        for each in self._opened[:-MOST]:
            each.close()  # it connects anew, should it still be asked, and is closed in the end
        return queue

    @property
    def hand(self) -> Any:
        """The owner's own connection, in autocommit."""
        import psycopg  # noqa: PLC0415  # as above

        if os.getpid() not in self._hands:
            self._hands[os.getpid()] = psycopg.connect(self.url, autocommit=True)
        return self._hands[os.getpid()]

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the owner of the schema types."""
        cursor = self.hand.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []

    @property
    def reader(self) -> Any:
        """A view of the queue for those who only look."""
        if os.getpid() not in self._readers:
            self._readers[os.getpid()] = self.open()
        return self._readers[os.getpid()]

    def is_met(self, pid: int) -> bool:
        """Whether somebody waits for a lock in the database, or else this child has ended."""
        blocked = """SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return bool(ended or self.reader.session.call(blocked))

    def text(self) -> str:
        text: str = self.reader.export().decode()
        return text

    def written(self) -> object:
        return self.sql("SELECT * FROM rolecall.queue"), self.sql(WRITTEN)

    def put(self, document: Any) -> None:
        """Tasks that are held as they were keep their leases."""
        from daemon.queue import rows  # noqa: PLC0415  # with the rest of it

        tops, (root, limits) = rows.apart(document["tasks"]), rows.root(document)
        with self.hand.transaction():
            self.sql("LOCK TABLE rolecall.task, rolecall.queue IN ACCESS EXCLUSIVE MODE")
            leases = self.sql(LEASES)
            ((version,),) = self.sql("SELECT coalesce(max(version), 0) + 1 FROM rolecall.task")
            self.sql("TRUNCATE rolecall.task, rolecall.needs, rolecall.family, rolecall.queue")
            self.sql(
                "INSERT INTO rolecall.queue (document, wip_limits) VALUES (%s, %s)",
                root,
                json.dumps(limits),
            )
            self.sql("SELECT rolecall.append(%s, %s)", json.dumps(tops.facts), tops.documents)
            self.sql("UPDATE rolecall.task SET version = %s", version)
            for name, status, token, owner, *lease in leases:
                held = self._held(document, name, status, token) if owner is not None else False
                if held:
                    self._lease(name, [owner, *lease])

    @staticmethod
    def _held(document: Any, name: str, status: str, token: int) -> bool:
        from tests import model  # noqa: PLC0415  # it knows what a task is

        task = dict(model.in_order(document["tasks"])).get(name, {})
        return task.get("status") == status and lifecycle.held_by_us(task) == token

    def _lease(self, name: str, values: list[Any]) -> None:
        from psycopg.types.json import Jsonb  # noqa: PLC0415  # as above

        values = [Jsonb(each) if isinstance(each, dict) else each for each in values]
        places = ", ".join(["%s"] * len(values))
        query = f"UPDATE rolecall.task SET ({LEASE}) = ROW ({places}) WHERE id = %s"  # noqa: S608  # as above
        self.sql(query, *values, name)

    def change(self, task_id: str, **values: Any) -> None:
        if values.keys() == {"status"}:
            query = "UPDATE rolecall.task SET status = %s WHERE id = %s"
            self.sql(query, values["status"], task_id)
        else:
            super().change(task_id, **values)

    def has_lease(self, task_id: str) -> bool:
        return bool(
            self.sql("SELECT FROM rolecall.task WHERE id = %s AND owner IS NOT NULL", task_id)
        )

    def drop_lease(self, task_id: str) -> None:
        self._lease(task_id, [None] * len(LEASE.split(", ")))

    def change_lease(self, task_id: str, **values: Any) -> None:
        for column, value in values.items():
            query = f"UPDATE rolecall.task SET {column} = %s WHERE id = %s"  # noqa: S608  # as above
            self.sql(query, value, task_id)

    def close(self) -> None:
        for queue in self._opened:
            queue.close()
        if (mine := self._hands.pop(os.getpid(), None)) is not None:
            mine.close()
        if self.url:
            self._give_back(self.url)
            self.url = ""


BACKENDS = {"file": FileBackend, "postgres": PostgresBackend}


EMPTY = """
TRUNCATE rolecall.task, rolecall.needs, rolecall.family, rolecall.queue, rolecall.note;
INSERT INTO rolecall.queue (document) VALUES ('{"tasks": []}');
"""
OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


class Copies:
    """Databases with an empty queue each, whose clock a test can step; they are used again."""

    def __init__(self, databases: Databases) -> None:
        self.databases, self._stack, self._free = databases, ExitStack(), list[str]()
        self.template = ""

    def __enter__(self) -> Self:
        import psycopg  # noqa: PLC0415  # as above

        from daemon.queue import migrating  # noqa: PLC0415  # as above

        url = self._stack.enter_context(self.databases.fresh())
        with psycopg.connect(url, autocommit=True) as connection:
            migrating.migrate(connection)
            connection.execute(CLOCK)
            self.template = connection.info.dbname
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def taken(self) -> Iterator[Callable[..., PostgresBackend]]:
        """Makes queues, each in a database that nobody else has meanwhile."""
        made = list[PostgresBackend]()

        def make(folder: Path, **role: Any) -> PostgresBackend:
            url = self._free.pop() if self._free else self._new()
            made.append(PostgresBackend(folder, url=url, give_back=self._clear, **role))
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    def _new(self) -> str:
        return self._stack.enter_context(self.databases.fresh(self.template))

    def _clear(self, url: str) -> None:
        import psycopg  # noqa: PLC0415  # as above

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(OTHERS)
            connection.execute(EMPTY)
        self._free.append(url)
