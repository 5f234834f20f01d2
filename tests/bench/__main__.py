"""``make bench``: what Rolecall costs, each figure beside a reference measured in the same run.

``python -m tests.bench fleet`` measures that part alone; the parts are in NAMED.

Every figure is a median of several runs; docs/benchmarks.md says how each is taken. Real workers
and commands run in a temporary folder, and all of it is gone afterwards. Exit status 1 means that a
goal was missed or that something could not be measured.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.commands import command_rows
from tests.bench.fleet import fleet_rows, growth_rows
from tests.bench.idle import Idle, idle_rows, sleeper, worker
from tests.bench.pick_up import pick_up_rows
from tests.bench.postgres import many_rows, postgres_rows, small_rows
from tests.bench.rows import Row, Skipped, table
from tests.bench.throughput import throughput_rows
from tests.bench.workspaces import make_workspace

#: Those that are measured where nothing is named; they need no server.
PARTS = {
    "pick-up": pick_up_rows,
    "commands": command_rows,
    "queue": throughput_rows,
    "fleet": fleet_rows,
    "growth": growth_rows,
}
NAMED = {
    **PARTS,
    "postgres": postgres_rows,
    "postgres-small": small_rows,
    "postgres-many": many_rows,
}


def measure(folder: Path, names: list[str]) -> tuple[list[Row], list[str]]:
    """The rows of these parts, and what could not be measured."""
    rows: list[Row] = []
    failed: list[str] = []
    for name in names:
        print(f"measuring: {name}", file=sys.stderr)
        (folder / name).mkdir()
        try:
            rows += NAMED[name](folder / name)
        except Skipped as reason:
            print(f"skipped: {name}: {reason}", file=sys.stderr)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failed.append(f"{name}: {error}")
    return rows, failed


def measure_all(folder: Path) -> tuple[list[Row], list[str]]:
    """All of it; the idle worker idles while the others run."""
    config = make_workspace(folder / "idle", ["true"])
    with sleeper(config) as asleep, worker(config) as pid:
        before = Idle.of(pid)
        rows, failed = measure(folder, list(PARTS))
        print("measuring: an idle worker", file=sys.stderr)
        return [*idle_rows(pid, asleep, before), *rows], failed


def main(names: list[str]) -> int:
    if unknown := set(names) - set(NAMED):
        print(f"error: no part {unknown.pop()}\nhint:  {', '.join(NAMED)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what runs is ended
    with tempfile.TemporaryDirectory(prefix="rolecall-bench-") as made:
        folder = Path(made)
        rows, failed = measure(folder, names) if names else measure_all(folder)
    print(table(rows))
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"\nPython {version}, {os.cpu_count()} cores")
    for text in failed:
        print(f"not measured: {text}", file=sys.stderr)
    return int(bool(failed) or not all(row.met() for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
