"""What the queue's tables say, and what of it is a lease: questions alone, nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from daemon import process
from daemon.index import Tasks, uncollected
from daemon.lifecycle import ENDED
from daemon.model import Lease, format_time
from daemon.process import Identity
from daemon.queue import rows
from daemon.queue.lease import is_here
from daemon.queue.session import Call, Row, Session

PART = 5000  # tasks that one statement reads

LEASE = """task.id, task.role, task.owner, task.started_at, task.ttl,
    extract(epoch FROM task.heartbeat_at)::double precision, task.token, task.attempts, task.host,
    task.lease, task.wish, task.wished_by,
    task.heartbeat_at + make_interval(secs => task.ttl) <= rolecall.now()"""
TASK = "task.place, task.parent, task.document, task.ours"
#: Of single tasks: each as if it stood in no other.
SINGLE: str = f"""SELECT place, NULL, document, ours, version, problem, {LEASE}
    FROM rolecall.task WHERE id = ANY ($1) ORDER BY place"""
ALL_LEASES: str = f"SELECT {LEASE} FROM rolecall.task WHERE owner IS NOT NULL"
#: In parts: no answer of the server may take as long as all of it would over a slow line.
EVERYTHING: str = f"""SELECT {TASK}, task.version, task.problem, {LEASE} FROM rolecall.task
    WHERE place > $1 ORDER BY place LIMIT {PART}"""
#: These, and all that they wait for, one behind another, up to what has ended; each with the
#: document of the one that it stands in. From one to the next by an index: a plan that joins whole
#: tables would do so at each step of the way.
NEAR: str = f"""WITH RECURSIVE near (id) AS (
        SELECT unnest($2::text[])
        UNION SELECT needed.id FROM near,
            LATERAL (SELECT place FROM rolecall.task
                WHERE task.id = near.id AND status <> ALL ($3) OFFSET 0) AS open,
            LATERAL (SELECT id FROM rolecall.needs WHERE place = open.place OFFSET 0) AS needed
    )
    SELECT task.* FROM near, LATERAL (
        SELECT place, (SELECT document FROM rolecall.task above WHERE above.place = task.parent),
            document, ours, version, problem, {LEASE}
        FROM rolecall.task WHERE task.id = near.id OFFSET 0) AS task
    WHERE place > $1 ORDER BY place LIMIT {PART}"""
DOCUMENT: str = "SELECT document FROM rolecall.queue"
HELD: str = (
    f"SELECT {TASK} FROM rolecall.task"
    " WHERE status = ANY ($1) AND owner IS NULL AND id IS NOT NULL ORDER BY place"
)
STRANGE: str = "SELECT problem FROM rolecall.task WHERE id IS NULL ORDER BY place LIMIT 20"
SOONEST: str = """
    SELECT extract(epoch FROM min(at) - rolecall.now())::double precision FROM (
        SELECT min(free_at) FROM rolecall.task
        WHERE status = ANY ($1) AND free_at > rolecall.now()
        UNION ALL
        SELECT heartbeat_at + make_interval(secs => ttl) FROM rolecall.task WHERE owner IS NOT NULL
    ) AS times (at) WHERE at > rolecall.now()"""
#: What of a lease says who holds it: a value of its own for each process.
HOLDER = (
    *("machine_id", "boot_id", "pid_namespace", "pid", "pid_started", "unit", "sessions"),
    "heartbeat_boottime",  # of the holder's own host: what was seen of its tree by then
)


class Seen(NamedTuple):
    """The queue at one moment; ``places`` are each task's place and the version of its row."""

    document: str
    tasks: Tasks
    leases: dict[str, Lease]
    places: list[tuple[int, int]]


class Tables:
    """Asks for what is there, as one process of this host sees it (``me``)."""

    def __init__(self, session: Session, me: Callable[[], Identity]) -> None:
        self.session, self.me = session, me
        self._expired: set[tuple[str, int]] = set()
        self._answers: dict[Call, list[Row]] | None = None  # of this look

    @contextmanager
    def look(self, *asked: Call) -> Iterator[None]:
        """What is asked within, these to begin with, is asked once, until ``forget``."""
        self._answers = {}
        try:
            self.ask(*asked)
            yield
        finally:
            self._answers = None

    def forget(self) -> None:
        """Something is written: for the rest of the look all is asked when it is needed."""
        self._answers = None

    def ask(self, *asked: Call) -> list[list[Row]]:
        """The rows of each, as they are now or were at the beginning of the look."""
        answers = {} if self._answers is None else self._answers
        new = [each for each in asked if each not in answers]
        if new:
            answers.update(zip(new, self.session.calls(*new), strict=True))
        return [answers[each] for each in asked]

    @uncollected()
    def seen(self, only: Collection[str] | None = None) -> Seen:
        """Everything, or single tasks, as they are now. Raises QueueUnreachable."""
        if only is None:
            document, found = self.everything()
        else:
            names = [rows.plain(each) for each in only]
            ((document,),), found = self.session.calls(Call(DOCUMENT), Call(SINGLE, [names]))
        entries, _ = rows.together(rows.Row(*row[:4]) for row in found)
        tasks = Tasks(entries)
        return Seen(document, tasks, self._held(found), _places(found))

    def _held(self, found: list[list[Any]]) -> dict[str, Lease]:
        return {row[6]: self.lease(row[6:]) for row in found if row[8] is not None}

    def near(self, names: Collection[str]) -> Seen:
        """These tasks, and all that they wait for, one behind another, up to what has ended.

        It is what new tasks have to fit, where these are those that they name (``intake.named``).
        """
        document, found = self._parts(NEAR, [sorted(names), sorted(ENDED)])
        entries, _ = rows.together(rows.Row(row[0], None, *row[2:4]) for row in found)
        own = [_own_id(row[1]) for row in found]
        tasks = Tasks(each._replace(parent=own[each.index]) for each in entries)
        return Seen(document, tasks, self._held(found), _places(found))

    def everything(self) -> tuple[str, list[list[Any]]]:
        """The document and the rows of all tasks, of one moment."""
        return self._parts(EVERYTHING)

    def _parts(self, query: str, values: Sequence[object] = ()) -> tuple[str, list[list[Any]]]:
        """The document and the rows that a query gives in parts, behind a place; of one moment."""
        found: list[list[Any]] = []
        with self.session.transaction():
            self.session.call("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            ((document,),) = self.session.call(DOCUMENT)
            while more := self.session.call(query, [found[-1][0] if found else 0, *values]):
                found += more
        return document, found

    def count(self, statuses: Collection[str]) -> int:
        """How many tasks are in any of these statuses. Raises QueueUnreachable."""
        query = "SELECT count(*) FROM rolecall.task WHERE status = ANY ($1) AND id IS NOT NULL"
        ((many,),) = self.session.call(query, [list(statuses)])
        return int(many)

    def has_children(self, task_id: str) -> bool:
        """Whether any task names this one as its parent, or stands in it."""
        query = "SELECT FROM rolecall.family WHERE parent = $1 LIMIT 1"
        return bool(self.session.call(query, [rows.plain(task_id)]))

    def last_number(self) -> int:
        """The largest number in an id of ours (T001, T002, ...); 0 where there is none."""
        query = "SELECT max(substring(id FROM '^T([0-9]{1,9})$')::bigint) FROM rolecall.task"
        ((largest,),) = self.session.call(query)
        return largest or 0

    def lease(self, row: Sequence[Any]) -> Lease:
        """The lease that a row of the columns ``LEASE`` is."""
        name, role, owner, started, ttl, beat, token, attempts, host, holder, wish, by, late = row
        who = (name, token)
        (self._expired.add if late else self._expired.discard)(who)
        return Lease(
            task_id=name,
            role=role,
            owner=owner,
            started_at=started,
            ttl_seconds=ttl,
            heartbeat_at=format_time(beat),
            token=token,
            attempt=attempts + 1,
            host=host,
            wish=wish or "",
            wished_by=by or "",
            **{**holder, "sessions": tuple(holder.get("sessions", ()))},
        )

    def leases(self) -> dict[str, Lease]:
        """All there are, live or not, by task id."""
        return self.read(self.session.call(ALL_LEASES))

    def known(self) -> dict[str, Lease]:
        """The same, as they were at the beginning of the look."""
        return self.read(self.ask(Call(ALL_LEASES))[0])

    def read(self, found: Sequence[Sequence[Any]]) -> dict[str, Lease]:
        """The leases of all such rows that there are, by task id."""
        self._expired.clear()
        return {row[0]: self.lease(row) for row in found}

    def read_lease(self, task_id: str) -> Lease | None:
        """The task's lease; None where there is none."""
        found = self.session.call(f"{ALL_LEASES} AND id = $1", [task_id])
        return self.lease(found[0]) if found else None

    def gone(self, lease: Lease) -> str:
        """Whether the lease's attempt is gone, and why; "" while it is live.

        By this host's processes where it is one of them, else as the server's clock had it when the
        lease was read.
        """
        me = self.me()
        if is_here(lease, me) and (
            lease.boot_id != me.boot_id or not process.is_alive(lease.pid, lease.pid_started)
        ):
            return "died"
        return "expired" if (lease.task_id, lease.token) in self._expired else ""

    def is_live(self, lease: Lease) -> bool:
        """Whether its attempt is not gone."""
        return not self.gone(lease)

    def live(self, role: str | None = None, host: str | None = None) -> list[Lease]:
        """The live leases (of a role, of a host)."""
        return [
            lease
            for lease in self.known().values()
            if role in (None, lease.role) and host in (None, lease.host) and not self.gone(lease)
        ]

    def family(self, place: int, document: str, ours: dict[str, Any]) -> list[rows.Row]:
        """The row and, where it may have subtasks, theirs."""
        first = rows.Row(place, None, document, ours)
        if '"subtasks"' not in document:
            return [first]
        query: str = f"""WITH RECURSIVE family AS (
            SELECT {TASK} FROM rolecall.task WHERE parent = $1
            UNION ALL SELECT {TASK} FROM rolecall.task JOIN family ON task.parent = family.place
            ) SELECT * FROM family ORDER BY place"""
        return [first, *(rows.Row(*row) for row in self.session.call(query, [place]))]


def _places(found: list[list[Any]]) -> list[tuple[int, int]]:
    return [(row[0], row[4]) for row in found]


def _own_id(document: str | None) -> str | None:
    """What the task of the document says that its id is; None where it says none."""
    own = json.loads(document).get("id") if document else None
    return own if isinstance(own, str) else None


def boottime() -> float:
    """Seconds since this host's boot, by which alone processes can be told apart."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def holder(me: Identity, seen_at: float, unit: str = "", sessions: Sequence[int] = ()) -> str:
    """The holder of a lease, as its column has it; ``seen_at``: of ``boottime``."""
    return _holder(me, unit, tuple(sessions)) + f"{seen_at!r}}}"


@lru_cache(maxsize=16)
def _holder(me: Identity, unit: str, sessions: tuple[int, ...]) -> str:
    values = {**me._asdict(), "unit": unit, "sessions": sessions, "heartbeat_boottime": ""}
    return json.dumps({key: values[key] for key in HOLDER}).removesuffix('""}')
