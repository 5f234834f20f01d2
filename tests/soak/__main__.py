"""A random killer for as long as you like: ``make soak SECONDS=600 SEED=7``, ``QUEUE=postgres``.

Several workers of three roles share one queue. At random moments they, their attempts and agents
are killed, frozen, told to stop or to leave. A queue in a file is edited by hand and saved
half-way, and loses leases; one on PostgreSQL loses its server, which is killed or hangs for a
while, or single connections. All the time the promises are looked at: no task is worked on twice at
once, no role has more at work than its WIP limit, the queue can be read without a lock. In the end
all has to be done and nothing left. Prints a table; the exit status is 1 if any promise was broken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.postgres import Missing
from tests.soak.file import FileSoak
from tests.soak.soak import Soak


def on_file(folder: Path, seed: int) -> Soak:
    return FileSoak(folder, seed)


def on_postgres(folder: Path, seed: int) -> Soak:
    from tests.soak.postgres import PostgresSoak  # noqa: PLC0415  # psycopg is an extra

    return PostgresSoak(folder, seed)


QUEUES: dict[str, Callable[[Path, int], Soak]] = {"file": on_file, "postgres": on_postgres}


def main() -> int:
    """Run one soak in a folder of its own."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--queue", choices=QUEUES, default="file")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.seconds:g} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        soak = QUEUES[given.queue](folder, given.seed)
    except Missing as why:
        folder.rmdir()
        parser.exit(2, f"error: {why}\n")
    soak.run(given.seconds)
    print(soak.table())
    for each in soak.violations[:50]:
        print(f"violated: {each}")
    if soak.violations:
        print(f"kept for you to look at: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
