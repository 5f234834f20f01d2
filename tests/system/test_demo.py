"""The demo, as a person types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workspace import ROOT, wait_for

MINUTE = 60.0  # seconds: what the demo promises
TASKS = [
    "SHOP-1",
    *(f"SHOP-{n}" for n in "234"),
    *(f"SHOP-1-{n}" for n in ("B1", "B2", "B3", "T1")),
]
Started = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], Started]:
    def started() -> Started:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "docs" / "demo" / "sprint.py")],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return started


def processes(folder: Path) -> list[str]:
    """What still runs with the folder in its command line or environment, less what sits there."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if int(entry) != os.getpid():
            try:
                said = Path("/proc", entry, "cmdline").read_bytes()
                said += Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in said:
                found.append(f"{entry}: {said!r:.200}")
    return found


def test_it_drains_its_sprint(start: Callable[[], Started], tmp_path: Path) -> None:
    """All five roles work, one build is rejected and refined, the code is right in the end."""
    demo = start()
    said, _ = demo.communicate(timeout=2 * MINUTE)
    assert demo.returncode == 0, said

    (folder,) = tmp_path.iterdir()  # it is all that was made, and it is named
    assert str(folder) in said
    shop = folder / "shop"
    tasks = json.loads((shop / ".oodatcaa/work/SPRINT_QUEUE.json").read_text())["tasks"]
    assert {task["id"]: task["status"] for task in tasks} == dict.fromkeys(TASKS, "done")
    moves = [line.split()[2:7] for line in said.splitlines() if " -> " in line]
    assert {move[0] for move in moves} == {
        "planner",
        "builder",
        "tester",
        "refiner",
        "integrator",
    }
    assert ["builder", "SHOP-3", "in_progress", "->", "needs_adapt"] in moves
    assert ["refiner", "SHOP-3", "adapting", "->", "awaiting_test"] in moves
    seconds = re.search(r"^8 tasks in (\d+) s", said, re.MULTILINE)
    assert seconds
    assert int(seconds[1]) < MINUTE

    command = [sys.executable, "-m", "pytest", "-q"]
    passed = subprocess.run(command, cwd=shop, capture_output=True, text=True, check=False)
    assert "passed" in passed.stdout, passed.stdout
    assert passed.returncode == 0, passed.stdout
    status = ["git", "status", "--porcelain", "--", ":/", ":(exclude).oodatcaa"]
    changed = subprocess.run(status, cwd=shop, capture_output=True, text=True, check=True)
    assert changed.stdout == ""
    assert processes(folder) == []


def test_an_interrupt_stops_its_workers(start: Callable[[], Started], tmp_path: Path) -> None:
    """Ctrl-C in the middle of an attempt leaves no process."""
    demo = start()
    lines = demo.stdout
    assert lines
    wait_for(lambda: " -> in_progress" in lines.readline(), "a build")
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=MINUTE)
    assert demo.returncode == 130
    (folder,) = tmp_path.iterdir()
    assert processes(folder) == []
