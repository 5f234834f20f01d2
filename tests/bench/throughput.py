"""How many tasks a second the file queue takes, beside the simplest loop that does the same."""

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from daemon.config import load
from daemon.model import Outcome, Result
from daemon.queue.file import FileQueue
from tests.bench import loop
from tests.bench.rows import Row
from tests.bench.workspaces import a_task, make_workspace, write_queue

SIZES = {100: 40, 1000: 40, 10_000: 12}  # tasks in the queue: how many are claimed and settled
PROCESSES = (1, 4)
ROUNDS = 9
GOAL = 0.8

#: Claims and settles one task; made in each process, it looks at the queue once before the start.
Step = Callable[[], None]


def ours(folder: Path) -> Step:
    """The queue as a worker keeps it between two looks."""
    queue = FileQueue(load(str(folder / "rolecall.yml")))
    return lambda: claim_and_settle(queue)


def afresh(folder: Path) -> Step:
    """The settling by a process of its own, as an attempt's: it has not seen the queue before."""
    config = load(str(folder / "rolecall.yml"))
    queue = FileQueue(config)
    return lambda: claim_and_settle(queue, FileQueue(config))


def claim_and_settle(queue: FileQueue, other: FileQueue | None = None) -> None:
    claim = queue.claim("builder", "bench")
    if claim is None:
        raise RuntimeError("nothing was claimed")
    (other or queue).settle(claim.lease, Result(Outcome.SUCCESS))


def two_rewrites(folder: Path) -> Step:
    return lambda: loop.claim_and_settle(queue_file(folder))


def one_rewrite(folder: Path) -> Step:
    return lambda: loop.move(queue_file(folder))


def queue_file(folder: Path) -> Path:
    return folder / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"


WAYS = {"ours": ours, "two": two_rewrites, "one": one_rewrite}


def throughput_rows(folder: Path) -> list[Row]:
    """Ours and the loops in turn, round for round, so that all meet the same noise."""
    rows: list[Row] = []
    alone: dict[int, float] = {}
    for size, tasks in SIZES.items():
        for processes in PROCESSES:
            ways = WAYS if processes > 1 else WAYS | {"afresh": afresh}
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(ROUNDS):
                for name, way in ways.items():
                    place = folder / f"{size}-{processes}-{number}-{name}"
                    rates[name].append(rate(filled(place, size), way, processes, tasks))
            rate_of = {name: statistics.median(found) for name, found in rates.items()}
            if processes == 1:
                alone[size] = rate_of["ours"]
            rows += compared(size, processes, rate_of)
    (small, fast), *_, (large, slow) = alone.items()
    text = f"claim and settle one of {large} tasks, beside one of {small}"
    return [*rows, Row(text, 1000 / slow, "ms", 1000 / fast)]


def compared(size: int, processes: int, rate_of: dict[str, float]) -> list[Row]:
    who = f"{size} tasks, {processes} process{'es' if processes > 1 else ''}"
    lines = (
        (f"{who}: beside one rewrite a task", "ours", "one"),
        (f"{who}: beside two", "ours", "two"),
        (f"{who}, settled afresh: beside two", "afresh", "two"),
    )
    return [
        Row(text, rate_of[our], "/s", rate_of[loops], GOAL, at_least=True)
        for text, our, loops in lines
        if our in rate_of
    ]


def filled(folder: Path, size: int) -> Path:
    """A workspace whose queue holds so many ready tasks, and a role that may take them all."""
    config = make_workspace(folder, ["true"])
    document = json.loads(config.read_text())
    document["roles"]["builder"] |= {"wip_limit": size, "slots": size}
    config.write_text(json.dumps(document))
    write_queue(folder, [a_task(f"T{number}") for number in range(size)])
    return folder


def rate(folder: Path, way: Callable[[Path], Step], processes: int, tasks: int) -> float:
    """Tasks a second of all processes together, from the word "go" until the last has ended.

    Each has claimed and settled one task before.
    """
    ready, go = os.pipe(), os.pipe()
    pids = [child(folder, way, tasks // processes, ready, go) for _ in range(processes)]
    os.close(ready[1])
    os.close(go[0])
    for _ in pids:
        os.read(ready[0], 1)
    begun = time.perf_counter()
    os.close(go[1])
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
    taken = time.perf_counter() - begun
    os.close(ready[0])
    if failed:
        raise RuntimeError(f"{way.__name__}: {failed} of {processes} processes failed")
    return tasks / taken


def child(
    folder: Path,
    way: Callable[[Path], Step],
    tasks: int,
    ready: tuple[int, int],
    go: tuple[int, int],
) -> int:
    """A process that waits until the other end of ``go`` is closed, then takes its share."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.close(go[1])
        step = way(folder)
        step()
        os.write(ready[1], b".")
        os.read(go[0], 1)
        for _ in range(tasks):
            step()
        status = 0
    except Exception:  # noqa: BLE001  # whatever it is, it is said; the parent sees the status
        traceback.print_exc()
    finally:
        os._exit(status)
