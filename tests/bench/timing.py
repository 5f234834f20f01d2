"""How long things take, and waiting for them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 60.0  # seconds; only ever waited for when something is wrong
# As a person's shell or a user manager has it: with PYTHONDONTWRITEBYTECODE set, say, each start
# would compile all modules again.
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.01)


def seconds(command: list[str], env: dict[str, str] = ENVIRON, cwd: Path = ROOT) -> float:
    """How long the command takes, from start to end. Raises where it fails."""
    begun = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    taken = time.perf_counter() - begun
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {said[-500:]}")
    return taken


def bare_start() -> float:
    """How long an interpreter takes that does nothing."""
    return seconds([sys.executable, "-c", "pass"])


def milliseconds(times: list[float]) -> float:
    return statistics.median(times) * 1000
