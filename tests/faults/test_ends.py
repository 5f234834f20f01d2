"""Agents that do not want to die, each way that an attempt can end, without systemd and under it.

One worker has an attempt of every kind; when the tasks have moved on, nothing of any may be left.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, Inside
from tests.system.conftest import Machine, testbed
from tests.workspace import Workspace, wait_for

__all__ = ["testbed"]  # pytest finds a fixture by its name here

#: All hold the output pipes open. MARK is what their processes are found by, whatever they do.
AGENTS = {
    "forks-twice": "(setsid sleep MARK &)",
    "deaf": "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep MARK; done' &",
    "nameless": "env -i setsid sh -c 'sleep MARK; :' &",
    "forks-on": 'setsid sh -c \'trap "" TERM; i=0; while [ $i -lt 300 ]; do (sleep MARK &);'
    " i=$((i+1)); sleep 0.03; done; sleep MARK' &",
}
FIRST_ONLY = "[ $ROLECALL_TOKEN -gt 1 ] && exit 0; exec sh ./$ROLECALL_TASK_ID"


class Ground:
    """Where the agents run. ``sh`` runs a script in the workspace; MARK is this ground's own."""

    def __init__(self, sh: Callable[[str], str]) -> None:
        self.run = sh
        self.mark = f"86400.{os.getpid()}"

    def sh(self, script: str) -> str:
        return self.run(script.replace("MARK", self.mark))

    def begin(self, **role: Any) -> None:
        """Start a worker, and wait until every agent is up and its attempt holds its lease."""
        tasks = []
        for name, script in AGENTS.items():
            body = f"{script}\ntouch up.{name}\nsleep MARK; sleep MARK\n".replace("MARK", self.mark)
            self.write(name, body)
            tasks.append({"id": name, "title": name, "status": "ready"})
        self.write(".oodatcaa/work/SPRINT_QUEUE.json", json.dumps({"tasks": tasks}))
        self.configure({"script": FIRST_ONLY, "wip_limit": 9, "max_attempts": 1, **role})
        self.start()
        worker = self.worker()
        wait_for(lambda: self.sh("ls").count("up.") == len(AGENTS), "all agents are up")
        if "timeout" not in role:
            self.attempts = wait_for(lambda: self.taken(worker), "all leases are taken over")
            assert len(self.left().split()) >= 2 * len(AGENTS)

    def taken(self, worker: int) -> dict[str, int]:
        """The attempts' pids by task, once all are there."""
        found = {name: json.loads(self.sh(f"cat .leases/{name}.json"))["pid"] for name in AGENTS}
        return {} if worker in found.values() else found

    def left(self) -> str:
        """What of the agents still runs."""
        pattern = self.mark.replace("8", "[8]", 1)  # not the words of this very search
        return self.sh(f"grep -ls '{pattern}' /proc/[0-9]*/cmdline || :")

    def statuses(self) -> set[str]:
        tasks = json.loads(self.sh("cat .oodatcaa/work/SPRINT_QUEUE.json"))["tasks"]
        return {task["status"] for task in tasks}

    def wait_statuses(self, status: str) -> None:
        wait_for(lambda: self.statuses() == {status}, f"all are {status}: {self.statuses()}")

    def kill(self, *pids: int) -> None:
        self.sh(f"kill -KILL {' '.join(map(str, pids))}")

    def write(self, name: str, text: str) -> None:
        raise NotImplementedError

    def configure(self, role: dict[str, Any]) -> None:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def worker(self) -> int:
        """The worker's pid."""
        raise NotImplementedError


class Plain(Ground):
    """A worker that a shell started: there is no cgroup to end."""

    def __init__(self, ws: Workspace) -> None:
        def sh(script: str) -> str:
            return subprocess.check_output(["sh", "-c", script], text=True, cwd=ws.path)

        super().__init__(sh)
        self.ws = ws

    def write(self, name: str, text: str) -> None:
        path = self.ws.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def configure(self, role: dict[str, Any]) -> None:
        self.ws.write_config(builder=role)

    def start(self) -> None:
        self.ws.start("--role", "builder")

    def worker(self) -> int:
        return self.ws.started[-1].pid


class Units(Ground):
    """A worker that the user manager of a machine started: attempts are units."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(lambda script: fleet.sh(f"cd work; {script}"))
        self.fleet = fleet

    def write(self, name: str, text: str) -> None:
        self.fleet.write(f"work/{name}", text)

    def configure(self, role: dict[str, Any]) -> None:
        self.fleet.configure({"builder": role})
        self.fleet.do("install")

    def start(self) -> None:
        self.fleet.sh("systemctl --user start agent-builder")

    def worker(self) -> int:
        return int(self.fleet.sh("systemctl --user show -P MainPID agent-builder"))


@pytest.fixture(scope="module", params=["plain", "systemd"])
def inside(request: pytest.FixtureRequest) -> Iterator[Inside | None]:
    """A machine of this module's own, where there is to be systemd."""
    if request.param == "plain":
        yield None
        return
    make: Callable[[str], Machine] = request.getfixturevalue("testbed")
    machine = make("ends")
    machine.up()
    made = Inside(machine)
    yield made
    made.close()
    machine._testbed("down", machine.name)


@pytest.fixture
def ground(inside: Inside | None, tmp_path: Path) -> Iterator[Ground]:
    """Both grounds; nothing of the agents may be left when a test is over."""
    if inside is None:
        ws = Workspace(tmp_path)
        made: Ground = Plain(ws)
        yield made
        ws.end()
    else:
        fleet = Fleet(inside, "systemd")
        made = Units(fleet)
        yield made
        fleet.do("uninstall")
        fleet.sh(f"rm -rf {fleet.workspace} {fleet.inventory}")
    assert made.left() == ""


def test_a_timeout_ends_all_of_them(ground: Ground) -> None:
    """When the tasks have moved on, no process is left.

    Broken once by finding processes by their marker alone: this failed, as did cancel and stop.
    """
    ground.begin(timeout=5)
    ground.wait_statuses("needs_manual")
    assert ground.left() == ""


def test_a_removed_lease_ends_all_of_them(ground: Ground) -> None:
    """``rm .leases/ID.json`` cancels; a second attempt, which has no rival, does each task.

    The attempts themselves would see it at their next renewal only. Broken once, under systemd, by
    looking for their processes without naming their unit: this failed.
    """
    ground.begin(heartbeat=60, lease_ttl=180)
    ground.sh("rm .leases/*.json")
    ground.wait_statuses("awaiting_test")
    assert ground.left() == ""


def test_a_lost_lease_ends_all_of_them(ground: Ground) -> None:
    """Another token in the file: what was ours dies, and writes nothing."""
    ground.begin()
    ground.sh('sed -i \'s/"token": 1,/"token": 7,/\' .leases/*.json')
    ground.wait_statuses("awaiting_test")
    assert ground.left() == ""


def test_a_second_term_ends_all_of_them(ground: Ground) -> None:
    """TERM again while the worker waits for its attempts: they are released, and it ends."""
    ground.begin(stop_budget=600)
    worker = ground.worker()
    wait_for(lambda: ended(ground, worker), "the worker has ended")
    assert ground.statuses() == {"ready"}
    assert ground.left() == ""


def ended(ground: Ground, worker: int) -> bool:
    """Whether the worker has ended; it is told so again, if not."""
    return "gone" in ground.sh(
        f"kill -TERM {worker} && grep -q '^State:.[^ZX]' /proc/{worker}/status || echo gone"
    )


def test_killed_attempts_leave_none_of_them(ground: Ground) -> None:
    """KILL of all that watch over an agent: the worker ends what they leave, then settles."""
    ground.begin()
    ground.kill(*ground.attempts.values())
    ground.wait_statuses("needs_manual")
    assert ground.left() == ""


def test_a_worker_killed_with_its_attempts_leaves_none_of_them(ground: Ground) -> None:
    """The next worker ends what all of them left.

    Broken once by sending TERM alone: it and all others here failed without systemd. Under systemd
    it failed without our own search together with KillMode=process.
    """
    ground.begin()
    ground.kill(ground.worker(), *ground.attempts.values())
    ground.start()
    ground.wait_statuses("needs_manual")
    assert ground.left() == ""
