"""What the queue on PostgreSQL takes, beside a loop written by hand on the same server.

The server is one of our own (tests/postgres.py) that waits for its disk. Blocks of the one and the
other take turns; a row's ratio is the median of the ratios of neighbours, and its reference is what
follows from that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from daemon.config import load
from daemon.model import Claim, Outcome, Result
from daemon.queue.opening import open_queue
from tests.bench.idle import Idle, fact, worker
from tests.bench.rows import Row, Skipped
from tests.bench.timing import PATIENCE, wait_for
from tests.bench.workspaces import a_task, make_workspace
from tests.postgres import Missing, Server, facts

GOAL = 0.7
FLAT = 1.3
LIMIT = 100_000  # the WIP limit, which is to be in nobody's way
PICK_UPS = 60
IDLE = 61.0  # seconds that an idle worker is watched at least
MANY = 1000
HOLDERS = 4  # processes that hold the connections of so many
QUIET = 20.0  # seconds for which they are watched while nothing happens
WAKINGS = 5
#: No checkpoint between two blocks: whoever writes first behind one pays for it.
SETTINGS = {"checkpoint_timeout": "1h", "max_wal_size": "8GB"}

TABLE = """
CREATE TABLE task (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status text NOT NULL,
    priority integer NOT NULL, document jsonb NOT NULL, owner text,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 80);
CREATE INDEX task_ready ON task (priority, id) WHERE status = 'ready';
"""
CLAIM = """
UPDATE task SET status = 'in_progress', owner = 'bench', updated_at = now()
WHERE id = (
    SELECT id FROM task WHERE status = 'ready' ORDER BY priority, id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, document
"""
SETTLE = "UPDATE task SET status = 'done', owner = NULL, updated_at = now() WHERE id = %s"
ADD = "INSERT INTO task (status, priority, document) VALUES ('ready', %s, %s)"
#: Make what was claimed and settled claimable again; tokens grow, as each has its run folder.
READY_AGAIN = {
    "hand": "UPDATE task SET status = 'ready' WHERE status <> 'ready'",
    "ours": "UPDATE rolecall.task SET status = 'ready', ours = '{}', settled = NULL"
    " WHERE status <> 'ready'",
}
VACUUM = {"hand": "VACUUM task", "ours": "VACUUM rolecall.task"}


class Sizes(NamedTuple):
    """How much is measured: tasks in a queue, processes, tasks in a block, blocks of each.

    On a busy machine, which takes more than so many seconds, it is fewer blocks.
    """

    tasks: tuple[int, ...] = (1000, 10_000, 100_000)
    processes: tuple[int, ...] = (1, 4, 8)
    block: int = 400
    rounds: int = 7
    least: int = 3
    seconds: float = 120


SMALL = Sizes(tasks=(1000, 10_000), rounds=3, least=2, seconds=40)


class Place(NamedTuple):
    """A database of each kind that hold the same tasks."""

    ours: Path  # a config
    hand: str  # a URL
    urls: dict[str, str]


class Way(Protocol):
    """One connection, and what a worker does with it."""

    @property
    def fd(self) -> int: ...
    def listen(self) -> None: ...
    def heard(self) -> bool: ...
    def claim(self) -> Any: ...
    def settle(self, claim: Any) -> None: ...
    def add(self, name: str) -> None: ...


class Ours:
    """The queue as a worker has it."""

    def __init__(self, place: Place, config: Any = None) -> None:
        self.queue = open_queue(config or load(str(place.ours)))
        self.watch: Any = None

    @property
    def fd(self) -> int:
        return int(self.watch.fd)

    def listen(self) -> None:
        self.watch = self.queue.watch(["builder"])
        self.watch.renew()

    def heard(self) -> bool:
        return bool(self.watch.changed())

    def claim(self) -> Claim | None:
        return self.queue.claim("builder", "bench")

    def settle(self, claim: Claim) -> None:
        self.queue.settle(claim.lease, Result(Outcome.SUCCESS))

    def add(self, name: str) -> None:
        self.queue.add([a_task(name)])


class Hand:
    """Two statements."""

    def __init__(self, place: Place, channel: str = "task") -> None:
        self.connection, self.channel = connect(place.hand), channel
        self._said = 0
        self.connection.add_notify_handler(self._count)

    def _count(self, _: object) -> None:
        self._said += 1

    @property
    def fd(self) -> int:
        return int(self.connection.fileno())

    def listen(self) -> None:
        self.connection.execute(f"LISTEN {self.channel}")

    def heard(self) -> bool:
        self.connection.pgconn.consume_input()
        while self.connection.pgconn.notifies():
            self._said += 1
        said, self._said = self._said, 0
        return bool(said)

    def claim(self) -> Any:
        return self.connection.execute(CLAIM, prepare=True).fetchone()

    def settle(self, claim: Any) -> None:
        self.connection.execute(SETTLE, claim[:1], prepare=True)

    def add(self, name: str) -> None:
        self.connection.execute(ADD, (2, json.dumps(a_task(name))))
        self.tell()

    def tell(self) -> None:
        self.connection.execute(f"NOTIFY {self.channel}")


WAYS: dict[str, Callable[[Place], Way]] = {"ours": Ours, "hand": Hand}


def postgres_rows(folder: Path, sizes: Sizes = Sizes()) -> list[Row]:  # noqa: B008  # a constant
    """All but the many workers."""
    with started() as server:
        idle = prepared(server, folder / "idle", 0)
        with worker(idle.ours) as pid:
            before = Idle.of(pid)
            rows = [*block_rows(server, folder, sizes), *pick_up_rows(server, folder)]
            time.sleep(max(0.0, before.at + IDLE - time.monotonic()))
            after = Idle.of(pid)
    minutes = (after.at - before.at) / 60
    wakings = (after.switches - before.switches) / minutes
    cpu = (after.cpu - before.cpu) / 1e6 / minutes
    return [
        *rows,
        Row("PostgreSQL: idle worker, wake-ups a minute", wakings, "", None, 5),
        Row("PostgreSQL: idle worker, CPU time a minute", cpu, "ms", None, 60),
    ]


def small_rows(folder: Path) -> list[Row]:
    """The same of less, in a third of the time."""
    return postgres_rows(folder, SMALL)


# --- claim and settle ----------------------------------------------------------------------------


class Block(NamedTuple):
    """What so many tasks took: seconds, and seconds of the server's CPUs."""

    seconds: float
    cpu: float


def block_rows(server: Server, folder: Path, sizes: Sizes) -> list[Row]:
    places = {size: prepared(server, folder / str(size), size) for size in sizes.tasks}
    rows, costs, flat = [], [], []
    for processes in sizes.processes:
        found = blocks(server, places, processes, sizes)
        for size in sizes.tasks:
            ours, hand = found[size, "ours"], found[size, "hand"]
            who = f"{size} tasks, {processes} process{'es' if processes > 1 else ''}"
            rate = sizes.block / statistics.median(each.seconds for each in ours)
            ratio = middle([h.seconds / o.seconds for o, h in zip(ours, hand, strict=True)])
            rows.append(Row(f"PostgreSQL, {who}", rate, "/s", rate / ratio, GOAL, at_least=True))
            cpu, theirs = (1000 * sum(each.cpu for each in way) / len(way) / sizes.block
                           for way in (ours, hand))  # fmt: skip
            costs.append(Row(f"PostgreSQL, {who}: server CPU a task", cpu, "ms", theirs))
        small, large = found[sizes.tasks[0], "ours"], found[sizes.tasks[-1], "ours"]
        slow = 1000 * statistics.median(each.seconds for each in large) / sizes.block
        ratio = middle([a.seconds / b.seconds for a, b in zip(large, small, strict=True)])
        text = f"PostgreSQL, one of {sizes.tasks[-1]} tasks beside one of {sizes.tasks[0]}"
        flat.append(Row(f"{text}, processes: {processes}", slow, "ms", slow / ratio, FLAT))
    return [*rows, *flat, *costs]


def blocks(
    server: Server, places: dict[int, Place], processes: int, sizes: Sizes
) -> dict[tuple[int, str], list[Block]]:
    """Each size and way in turn, round for round."""
    keys = [(size, name) for size in places for name in WAYS]
    found: dict[tuple[int, str], list[Block]] = {key: [] for key in keys}
    with ExitStack() as stack:
        for place in places.values():
            stack.enter_context(listening(place))
        crews = {
            (size, name): stack.enter_context(crew(partial(steps, name, places[size]), processes))
            for size, name in keys
        }
        until = time.monotonic() + sizes.seconds / len(sizes.processes)
        for number in range(sizes.rounds):
            if number >= sizes.least and time.monotonic() > until:
                break
            for size, place in places.items():
                # Who comes first may find the disk busy with what was before.
                for name in sorted(WAYS, reverse=bool(number % 2)):
                    ready_again(name, place)
                    block = measured(server, crews[size, name], sizes.block)
                    found[size, name].append(block)
    return found


@contextmanager
def listening(place: Place) -> Iterator[None]:
    """Somebody waits for the tasks, as wherever there are workers: what is settled is told."""
    way = Ours(place)
    way.listen()
    way.queue.live()  # connects
    try:
        yield
    finally:
        way.queue.close()


def steps(name: str, place: Place, channel: socket.socket) -> None:
    """Claims and settles as many as it is told, time and again."""
    way = WAYS[name](place)
    many = 1
    while True:
        for _ in range(many):
            claim = way.claim()
            if claim is None:
                raise RuntimeError(f"{name}: nothing was claimed")
            way.settle(claim)
        tell(channel, Answer(0, many))
        if not (told := channel.recv(64)):
            return
        many = int.from_bytes(told)


def measured(server: Server, channels: Sequence[socket.socket], tasks: int) -> Block:
    before, begun = cpu_of(server), time.perf_counter()
    for channel in channels:
        channel.send((tasks // len(channels)).to_bytes(8))
    for channel in channels:
        answer(channel)
    seconds = time.perf_counter() - begun
    return Block(seconds, cpu_of(server) - before)


def ready_again(name: str, place: Place) -> None:
    with connect(place.urls[name]) as connection:
        connection.execute(READY_AGAIN[name])
        connection.execute(VACUUM[name])


# --- from one connection to another --------------------------------------------------------------


def pick_up_rows(server: Server, folder: Path) -> list[Row]:
    """A task is added while somebody waits for it, until that one has claimed it."""
    place = prepared(server, folder / "pick-up", 0)
    ours, hand, bare = Ours(place), Hand(place), Hand(place, "bare")
    acts: dict[str, Callable[[str], None]] = {
        "ours": ours.add,
        "hand": hand.add,
        "bare": lambda _: bare.tell(),
    }
    makers: dict[str, Callable[[], list[Way]]] = {
        "ours": lambda: [Ours(place)],
        "hand": lambda: [Hand(place)],
        "bare": lambda: [Ear(place, "bare")],
    }
    times: dict[str, list[float]] = {name: [] for name in acts}
    with ExitStack() as stack:
        channels = {
            name: stack.enter_context(crew(partial(waiting, make), 1))[0]
            for name, make in makers.items()
        }
        for number in range(PICK_UPS):
            for name, act in acts.items():
                time.sleep(0.01)  # the one who waits goes to sleep
                begun = time.monotonic_ns()
                act(f"T{number}")
                times[name].append((answer(channels[name]).at - begun) / 1e6)
    middles = {name: statistics.median(each) for name, each in times.items()}
    return [
        Row(f"PostgreSQL, {text}", middles[name], "ms", middles["bare"])
        for name, text in (
            ("ours", "added to claimed, beside a bare notification"),
            ("hand", "the same of the loop by hand"),
        )
    ]


class Ear(Hand):
    """It hears, and has nothing to claim."""

    def claim(self) -> Any:
        return True

    def settle(self, claim: Any) -> None:
        pass


class Answer(NamedTuple):
    """When a task was claimed, in nanoseconds; how often all there looked for one so far."""

    at: int
    looks: int


def waiting(make: Callable[[], Sequence[Way]], channel: socket.socket) -> None:
    """Listens as workers do, and looks when it is told something; one who asks is answered, too."""
    ways = make()
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    by_fd, looks = {}, 0
    for way in ways:
        way.listen()
        if way.claim() not in (None, True):
            raise RuntimeError("there is a task already")
        way.heard()
        by_fd[way.fd] = way
        poll.register(way.fd, select.POLLIN)
    tell(channel, Answer(0, 0))
    while True:
        for fd, _ in poll.poll():
            if fd == channel.fileno():
                if not channel.recv(64):
                    return
                tell(channel, Answer(0, looks))
            elif by_fd[fd].heard():
                claim = by_fd[fd].claim()
                at = time.monotonic_ns()
                looks += 1
                if claim is not None:
                    by_fd[fd].settle(claim)
                    tell(channel, Answer(at, looks))


# --- many workers --------------------------------------------------------------------------------


class Crowd(NamedTuple):
    """What so many who wait cost: MiB, and CPU of the server while nothing happens, in a minute."""

    connected: float
    memory: float
    idle: float
    switches: float
    woken: float
    quiet: float
    cpu: float


def many_rows(folder: Path) -> list[Row]:
    """So many idle workers on one server, and one task for all of them."""
    settings = {"max_connections": str(MANY + 100)}
    with started(settings) as server:
        place = prepared(server, folder / "many", 0)
        config = load(str(place.ours))
        own = crowd(server, lambda: Ours(place, config), Ours(place))
        hand = crowd(server, lambda: Hand(place), Hand(place))
    return [
        Row(f"PostgreSQL, {MANY} idle workers: {text}", value, unit, reference)
        for text, unit, value, reference in (
            ("until all are connected", "s", own.connected, hand.connected),
            ("memory of the server", "MiB", own.memory, hand.memory),
            ("CPU of the server a minute", "ms", own.idle, hand.idle),
            ("wake-ups of all of them a minute", "", own.switches, hand.switches or None),
            ("added to claimed", "ms", own.woken, hand.woken),
            ("added until all sleep again", "ms", own.quiet, hand.quiet),
            ("CPU of the server for that", "ms", own.cpu, hand.cpu),
        )
    ]


def crowd(server: Server, make: Callable[[], Way], adder: Way) -> Crowd:
    each = MANY // HOLDERS
    begun, before = time.monotonic(), memory_of(server)
    holders: list[int] = []
    with crew(
        partial(waiting, lambda: [make() for _ in range(each)]), HOLDERS, holders
    ) as channels:
        connected = time.monotonic() - begun
        memory = memory_of(server) - before
        cpu, switched = cpu_of(server), switches(holders)
        time.sleep(QUIET)
        idle = (cpu_of(server) - cpu) * 60_000 / QUIET
        woken = (switches(holders) - switched) * 60 / QUIET
        found = [waking(server, channels, adder, f"T{number}") for number in range(WAKINGS)]
    return Crowd(connected, memory, idle, woken, *map(statistics.median, zip(*found, strict=True)))


def waking(
    server: Server, channels: Sequence[socket.socket], adder: Way, name: str
) -> tuple[float, float, float]:
    """Milliseconds until one has the task, until all have looked, and of the server's CPU."""
    looks = sum(map(asked, channels))
    cpu, begun = cpu_of(server), time.monotonic_ns()
    adder.add(name)
    ready, _, _ = select.select(channels, [], [], PATIENCE)
    if not ready:
        raise RuntimeError(f"{name} is claimed by nobody")
    at = answer(ready[0]).at
    wait_for(lambda: sum(map(asked, channels)) >= looks + MANY, "all to have looked")
    quiet = time.monotonic_ns()
    return (at - begun) / 1e6, (quiet - begun) / 1e6, 1000 * (cpu_of(server) - cpu)


def asked(channel: socket.socket) -> int:
    channel.send(b"?")
    return answer(channel).looks


def switches(pids: Sequence[int]) -> int:
    return sum(fact(pid, "status", "voluntary_ctxt_switches") for pid in pids)


# --- the server and the databases ----------------------------------------------------------------


@contextmanager
def started(settings: dict[str, str] | None = None) -> Iterator[Server]:
    try:
        server = Server(durable=True, settings=SETTINGS | (settings or {}))
    except Missing as why:
        raise Skipped(str(why)) from None
    with server:
        yield server


def prepared(server: Server, folder: Path, size: int) -> Place:
    """Two databases with so many ready tasks, and a config for ours."""
    from daemon.queue.migrating import migrate  # noqa: PLC0415  # psycopg: an extra

    urls = {name: server.create(f"{folder.name}-{name}") for name in WAYS}
    config = make_workspace(folder, ["true"])
    document = json.loads(config.read_text()) | {"queue": urls["ours"]}
    document["roles"]["builder"] |= {"wip_limit": LIMIT, "slots": LIMIT}
    config.write_text(json.dumps(document))
    tasks = [a_task(f"T{number}") for number in range(size)]
    with connect(urls["ours"]) as connection:
        migrate(connection)
        if tasks:
            queue = open_queue(load(str(config)))
            queue.load(json.dumps({"tasks": tasks}).encode(), "bench")
            queue.close()
        connection.execute("VACUUM ANALYZE")
    with connect(urls["hand"]) as connection:
        connection.execute(TABLE)
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY task (status, priority, document) FROM STDIN") as copy,
        ):
            for task in tasks:
                copy.write_row((task["status"], task["priority"], json.dumps(task)))
        connection.execute("VACUUM ANALYZE")
    return Place(config, urls["hand"], urls)


def connect(url: str) -> Any:
    import psycopg  # noqa: PLC0415  # an extra

    return psycopg.connect(url, autocommit=True)


def cpu_of(server: Server) -> float:
    """Seconds that all of its processes have had, those that have ended included."""
    pids, living = server.pids(), 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            living += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    ended = sum(map(int, facts(pids[0])[13:15])) / os.sysconf("SC_CLK_TCK")
    return living / 1e9 + ended


def memory_of(server: Server) -> float:
    """MiB, what several share counted once."""
    kibibytes = 0
    for pid in server.pids():
        with suppress(FileNotFoundError, ProcessLookupError):
            kibibytes += fact(pid, "smaps_rollup", "Pss")
    return kibibytes / 1024


def middle(ratios: Sequence[float]) -> float:
    return statistics.median(ratios)


# --- processes -----------------------------------------------------------------------------------

#: Our ends of all crews' channels: none but us may hold them, or nobody would see us go.
OURS: set[socket.socket] = set()


@contextmanager
def crew(
    work: Callable[[socket.socket], None], processes: int, pids: list[int] | None = None
) -> Iterator[list[socket.socket]]:
    """Processes that do it until their channel is closed; each says first that it is ready."""
    begun, channels = [] if pids is None else pids, []
    try:
        for _ in range(processes):
            mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            mine.settimeout(PATIENCE)
            OURS.add(mine)
            channels.append(mine)
            begun.append(child(work, its))
            its.close()
        for channel in channels:
            answer(channel)
        yield channels
    finally:
        for channel in channels:
            OURS.discard(channel)
            channel.close()
        for pid in begun:
            ended(pid)


def child(work: Callable[[socket.socket], None], channel: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for each in OURS:
            each.close()
        work(channel)
        status = 0
    except Exception:  # noqa: BLE001  # whatever it is, it is said; the parent sees no answer
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> None:
    """Wait for its end, and make one."""
    deadline = time.monotonic() + PATIENCE
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)


def tell(channel: socket.socket, answer: Answer) -> None:
    channel.send(b"".join(number.to_bytes(8) for number in answer))


def answer(channel: socket.socket) -> Answer:
    data = channel.recv(64)
    if not data:
        raise RuntimeError("a process of the benchmark has ended")
    return Answer(int.from_bytes(data[:8]), int.from_bytes(data[8:]))
