"""``make bench``: what Rolecall costs, each figure beside a reference measured in the same run.

Every figure is a median of several runs; docs/benchmarks.md says how each is taken. Real workers
and commands run in a temporary folder, and all of it is gone afterwards. Exit status 1 means that a
goal was missed or that something could not be measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.commands import command_rows
from tests.bench.idle import Idle, idle_rows, sleeper, worker
from tests.bench.pick_up import pick_up_rows
from tests.bench.rows import Row, table
from tests.bench.throughput import throughput_rows
from tests.bench.workspaces import make_workspace


def measure(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows, and what could not be measured. The idle worker idles while the others run."""
    rows: list[Row] = []
    failed: list[str] = []
    config = make_workspace(folder / "idle", ["true"])
    with sleeper(config) as asleep, worker(config) as pid:
        before = Idle.of(pid)
        parts = {"pick-up": pick_up_rows, "commands": command_rows, "queue": throughput_rows}
        for name, part in parts.items():
            print(f"measuring: {name}", file=sys.stderr)
            (folder / name).mkdir()
            try:
                rows += part(folder / name)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                failed.append(f"{name}: {error}")
        print("measuring: an idle worker", file=sys.stderr)
        rows[:0] = idle_rows(pid, asleep, before)
    return rows, failed


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as folder:
        rows, failed = measure(Path(folder))
    print(table(rows))
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"\nPython {version}, {os.cpu_count()} cores")
    for text in failed:
        print(f"not measured: {text}", file=sys.stderr)
    return int(bool(failed) or not all(row.met() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
