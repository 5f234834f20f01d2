"""Twelve workers, sixty tasks, three at once, over and over, while some workers are killed."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from tests.workspace import Workspace, wait_for

WORKERS, TASKS, LIMIT = 12, 60, 3
ROUNDS = 20.0  # seconds in which new rounds begin; one does in any case
#: The agents count themselves: a file each, made in one instant, with its pid in it. One that
#: was killed leaves its file: a worker may die just before its attempt takes over, which is ended
#: then. (A file that is made first and written then is left empty by a kill in between. Nobody can
#: tell it from a living agent's, and the task's next agent was taken for a second one.)
AGENT = """
for mark in running.*; do
  pid=$(cat $mark 2>/dev/null)
  [ -z "$pid" ] || grep -qs '^State:.[^ZX]' /proc/$pid/status || rm -f $mark
done
echo $$ > pid.$$
ln pid.$$ running.$ROLECALL_TASK_ID || touch twice
ls running.* | wc -l >> counts
rm running.$ROLECALL_TASK_ID; echo $ROLECALL_TASK_ID >> done
"""


def statuses(ws: Workspace) -> list[str]:
    return [task["status"] for task in ws.document()["tasks"]]


def test_workers_race_and_die_and_nothing_is_lost(ws: Workspace) -> None:
    """Never a fourth at once, by the agents' own count and by the queue's; none twice, none lost.

    Every ten tasks a worker is killed and another one started. Broken once by a WIP limit of one
    more, and by claims without the lock: each time this failed.
    """
    ws.write_config(builder={"script": AGENT, "slots": TASKS, "max_attempts": 1000})
    ws.write_queue(wip_limits={"builder": LIMIT})
    workers = [ws.start("--role", "builder", "--owner", f"w{i}") for i in range(WORKERS)]
    until, rounds, wanted = time.monotonic() + ROUNDS, 0, list[str]()
    while not rounds or time.monotonic() < until:
        names, killed = [f"R{rounds}-{i}" for i in range(TASKS)], 0
        tasks: list[dict[str, Any]] = [{"id": name, "status": "ready"} for name in names]
        ws.write_queue(*tasks, wip_limits={"builder": LIMIT})

        def over() -> bool:
            found = statuses(ws)
            assert found.count("in_progress") <= LIMIT
            return set(found) == {"awaiting_test"}

        while killed < TASKS // 10:
            enough = 10 * killed + 5

            def reached(enough: int = enough) -> bool:
                return over() or statuses(ws).count("awaiting_test") >= enough

            wait_for(reached, ws.log(), 120)
            victim = workers.pop(0)
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            killed += 1
            workers.append(ws.start("--role", "builder", "--owner", f"r{rounds}-{killed}"))
        wait_for(over, ws.log(), 120)
        rounds, wanted = rounds + 1, wanted + names
    wait_for(lambda: ws.leases() == [] and ws.tree() == [], "all over")
    assert set(ws.file("done").split()) == set(wanted)
    assert not (ws.path / "twice").exists()
    assert max(map(int, ws.file("counts").split())) <= LIMIT
    ends = [json.dumps(each) for each in ws.events() if each.get("outcome") == "success"]
    assert len(ends) == len(wanted)
