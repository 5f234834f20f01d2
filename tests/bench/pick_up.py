"""How long a ready task waits for its agent."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

from daemon import process
from tests.bench.idle import worker
from tests.bench.rows import Row
from tests.bench.timing import bare_start, milliseconds, wait_for
from tests.bench.workspaces import a_task, make_workspace, write_queue

PICK_UPS = 20
STAMP = ["date", "+%s%N"]  # an agent whose first act is to say when it began


def pick_up_rows(folder: Path) -> list[Row]:
    """A worker that this script started: its attempts are sessions of their own."""
    with worker(make_workspace(folder, STAMP)) as pid:
        return [pick_up(folder, pid, "ready to the agent's first instruction")]


def pick_up(folder: Path, pid: int, figure: str) -> Row:
    """Tasks one after another, each put there while the worker sleeps."""
    picked, bare = [], []
    for number in range(PICK_UPS):
        name = f"T{number}"
        bare.append(bare_start())  # meanwhile the worker goes to sleep
        ready = time.time_ns()
        write_queue(folder, [a_task(name)])
        wait_for(partial(settled, folder, name, pid), f"{name} settled")
        said = folder / ".agent-runs" / name / "1" / "stdout.log"
        picked.append((int(said.read_text()) - ready) / 1e9)
    return Row(figure, milliseconds(picked), "ms", milliseconds(bare), 5)


def settled(folder: Path, name: str, pid: int) -> bool:
    """Whether the task has moved on, and its attempt is gone."""
    queue = json.loads((folder / ".oodatcaa" / "work" / "SPRINT_QUEUE.json").read_text())
    status = queue["tasks"][0]["status"]
    if status == "needs_manual":
        raise RuntimeError(f"{name}: {queue['tasks'][0]['last_error']}")
    if status != "awaiting_test" or (folder / ".leases" / f"{name}.json").exists():
        return False
    return not any(each.parent == pid for each in process.every())
