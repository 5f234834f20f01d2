"""A random killer for as long as you like: ``make soak SECONDS=600 SEED=7``.

Several workers of three roles share one queue. At random moments they, their attempts and agents
are killed, frozen, told to stop or to leave; leases are removed, the queue is edited by hand and
saved half-way. All the time the promises are looked at: no task is worked on twice at once, no
role has more at work than its WIP limit, the queue can be read without a lock. In the end all has
to be done and nothing left. Prints a table; the exit status is 1 if any promise was broken.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from daemon import process, tree
from daemon.config import load
from daemon.model import Move
from daemon.queue.file import FileQueue
from tests.workspace import Workspace, wait_for

LIMITS = {"builder": 2, "tester": 2, "integrator": 1}
HOLDS = {"builder": "in_progress", "tester": "testing", "integrator": "integrating"}
WORKERS = ("builder", "builder", "tester", "tester", "integrator")
KINDS = ("quick", "failing", "forking", "stubborn", "slow")
UNFINISHED = 8  # tasks that are kept in the queue while the killer is at work
CALM = 120.0  # seconds that all may take to be done once the killing is over
#: The locks are held until the last process of the attempt is dead. A flock(1) that the killer
#: happens to hit is no answer.
AGENT = """
take() { until flock -n -E 42 $1; do test $? != 42 || return 1; done; }
exec 9>>marks/$ROLECALL_TASK_ID
take 9 || echo "$ROLECALL_TASK_ID: two attempts at once, token $ROLECALL_TOKEN" >>overlaps
free=
for slot in $SLOTS; do
  exec 8>>marks/$ROLECALL_ROLE.$slot
  if take 8; then free=$slot; break; fi
done
test $free || echo "$ROLECALL_ROLE: more agents than its WIP limit" >>crowds
echo begin $ROLECALL_TASK_ID $ROLECALL_TOKEN >>runs
case $ROLECALL_TASK_ID in
  *failing) sleep 0.1; test $((ROLECALL_TOKEN % 2)) = 0 || exit 3 ;;
  *forking) setsid sleep 30 & (sleep 30 &); sleep 0.3 ;;
  *stubborn) trap '' TERM; sleep 0.4 ;;
  *slow) sleep 1 ;;
esac
echo end $ROLECALL_TASK_ID $ROLECALL_TOKEN >>runs
"""


def is_ready(worker: Any) -> bool:
    """Whether its handlers stand, so that TERM lets it drain."""
    with open(f"/proc/{worker.pid}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> signal.SIGTERM - 1 & 1)


class Nobody:
    """Tells no move: the workers' events are not looked at."""

    owner = "soak"

    def tell(self, moves: Sequence[Move], owner: str = "") -> None:  # noqa: ARG002  # the Teller's form
        return


class Soak:
    """One workspace, its workers, and who disturbs them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.ws, self.random = Workspace(folder), random.Random(seed)  # noqa: S311  # chance
        self.workers: dict[int, Any] = {}
        self.figures: Counter[str] = Counter()
        self.violations: list[str] = []
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.frozen: dict[process.Stat, float] = {}  # until when
        self.added = 0
        self.half_written = 0  # odd while it is
        self.undone: set[tuple[str, int]] | None = None  # holds that an old buffer may have undone
        self.over = threading.Event()
        (folder / "marks").mkdir()
        self.ws.write_config(
            **{
                role: {
                    "script": AGENT,
                    "env": {"SLOTS": " ".join(map(str, range(limit)))},
                    "wip_limit": limit,
                    "gates": [["true"]],
                    "interval": 1,
                    "heartbeat": 0.5,
                    "lease_ttl": 3,
                    "timeout": 10,
                    "stop_budget": 1,
                    "kill_grace": 0.5,
                    "max_attempts": 10**6,
                    "backoff": {"base": 0.05, "cap": 0.2},
                    "breaker": {"failures": 0},
                }
                for role, limit in LIMITS.items()
            }
        )
        self.ws.write_queue(*({"id": f"P{n}", "status": "needs_manual"} for n in range(3)))
        self.queue = FileQueue(load(str(self.ws.config)), teller=Nobody())

    # --- what is looked at all the time ----------------------------------------------------------

    def watch(self) -> None:
        """Read the queue without a lock, again and again, and compare it with what is promised."""
        while not self.over.wait(0.002):
            self.thaw()
            before = self.half_written
            try:
                tasks = json.loads(self.ws.queue.read_bytes())["tasks"]
            except (OSError, ValueError) as error:
                if before % 2 == 0 and before == self.half_written:
                    self.violations.append(f"the queue could not be read: {error}")
                continue
            self.figures["reads without a lock"] += 1
            at_work = Counter(task["status"] for task in tasks)
            full = [role for role, n in LIMITS.items() if at_work[HOLDS[role]] > n]
            if self.undone is None:
                self.violations += [f"{role}: more tasks than its WIP limit" for role in full]
            elif not full and not self.undone & set(self.leases()):
                self.undone = None

    def thaw(self) -> None:
        """Let go on who was frozen for long enough: the killer itself may wait for its lock."""
        for target, until in list(self.frozen.items()):
            if time.monotonic() >= until:
                tree.send(target, signal.SIGCONT)
                del self.frozen[target]

    def look_at_agents(self) -> None:
        """What agents saw of each other. Crowds are a person's doing where holds were undone."""
        for name in ("overlaps", "crowds"):
            path = self.ws.path / name
            try:
                lines = path.read_text().splitlines()
                path.unlink()
            except FileNotFoundError:
                continue
            if name == "overlaps" or self.undone is None:
                self.violations += lines

    # --- who can be hit --------------------------------------------------------------------------

    def leases(self) -> list[tuple[str, int]]:
        return [(each.task_id, each.token) for each in self.queue.leases.every().leases.values()]

    def worker(self) -> process.Stat | None:
        return self.one_of(list(self.workers))

    def attempt(self) -> process.Stat | None:
        every = self.queue.leases.every().leases.values()
        return self.one_of([lease.pid for lease in every if lease.pid not in self.workers])

    def agent(self) -> process.Stat | None:
        attempts = {lease.pid for lease in self.queue.leases.every().leases.values()}
        return self.one_of([pid for pid in self.ws.tree() if pid not in attempts])

    def one_of(self, pids: list[int]) -> process.Stat | None:
        return process.stat(self.random.choice(pids)) if pids else None

    # --- what is done to them --------------------------------------------------------------------

    def signal(self) -> None:
        """Send a random signal to a random worker, attempt or agent."""
        whom = self.random.choice(["worker", "attempt", "attempt", "agent"])
        name = self.random.choice(["KILL", "KILL", "STOP", "TERM", "USR1"])
        if name == "USR1" and whom != "worker":
            name = "KILL"
        target: process.Stat | None = getattr(self, whom)()
        if target and tree.send(target, getattr(signal, f"SIG{name}")):
            self.figures[f"SIG{name} of a{'n' * (whom[0] == 'a')} {whom}"] += 1
            if name == "STOP":
                self.frozen[target] = time.monotonic() + self.random.choice([0.1, 0.5, 5.0])

    def remove_a_lease(self) -> None:
        """Remove a lease; not while holds are undone, for then nothing bars a second attempt."""
        found = self.leases()
        if found and self.undone is None:
            path = self.ws.path / ".leases" / f"{self.random.choice(found)[0]}.json"
            path.unlink(missing_ok=True)
            self.figures["leases removed"] += 1

    def edit_by_hand(self) -> None:
        """Change the status of a task that no role works on."""
        if self.is_half_written():
            return
        with self.locked():
            document = self.ws.document()
            task = self.random.choice(document["tasks"][:3])
            task["status"] = self.random.choice(["needs_manual", "blocked", "cancelled"])
            task["blocker"] = "a person"
            self.ws.write_queue(*document["tasks"])
        self.figures["edits by hand"] += 1

    def save_an_old_buffer(self) -> None:
        """Save the whole file as it was some moments ago, without a lock."""
        if self.undone is None and not self.is_half_written():
            text = self.ws.queue.read_text()
            self.later.append(
                (time.monotonic() + self.random.uniform(0, 0.3), lambda: self.save(text))
            )

    def save(self, text: str) -> None:
        before = set(self.leases())
        self.undone = before
        if self.is_half_written():
            return
        aside = self.ws.queue.with_suffix(".mine")
        aside.write_text(text)
        aside.rename(self.ws.queue)
        self.undone = before | set(self.leases())
        self.figures["old buffers saved"] += 1

    def save_half(self) -> None:
        """Leave the file half-written for a moment. Nobody of ours writes it meanwhile."""
        if self.is_half_written():
            return
        with self.locked():
            text = self.ws.queue.read_text()
            self.half_written += 1
            self.ws.queue.write_text(text[: len(text) // 2])
        self.later.append(
            (time.monotonic() + self.random.uniform(0.1, 0.5), lambda: self.mend(text))
        )

    def mend(self, text: str) -> None:
        self.ws.queue.write_text(text)
        self.half_written += 1
        self.figures["half-written saves"] += 1

    def is_half_written(self) -> bool:
        return self.half_written % 2 == 1

    def locked(self) -> Any:
        """The queue's lock, as a careful person takes it with flock(1)."""
        path = self.ws.path / ".locks" / "queue.lock"
        path.parent.mkdir(exist_ok=True)
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    # --- what goes on ----------------------------------------------------------------------------

    def keep_workers(self) -> None:
        """Start each worker that is not there."""
        for pid, (role, started) in list(self.workers.items()):
            if started.poll() is not None:
                self.ws.started.remove(started)
                del self.workers[pid]
                if started.returncode not in {0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1}:
                    self.violations.append(f"a {role} ended with status {started.returncode}")
        missing = Counter(WORKERS) - Counter(role for role, _ in self.workers.values())
        for role in missing.elements():
            started = self.ws.start("--role", role)
            self.workers[started.pid] = (role, started)
            self.figures["workers started"] += 1

    def feed(self) -> None:
        """Keep so many unfinished tasks in the queue."""
        if self.is_half_written():
            return
        done = sum(task["status"] == "done" for task in self.ws.document()["tasks"])
        new = UNFINISHED - (self.added - done)
        tasks = [
            {"id": f"T{self.added + n}-{self.random.choice(KINDS)}", "status": "ready"}
            for n in range(new)
        ]
        if tasks:
            self.queue.add(tasks)
            self.added += new

    def do_what_is_due(self, *, all_of_it: bool = False) -> None:
        now = time.monotonic()
        due = [each for each in self.later if all_of_it or each[0] <= now]
        self.later = [each for each in self.later if each not in due]
        for _, action in due:
            action()

    def run(self, seconds: float) -> None:
        """Disturb for so long, then let all come to its end."""
        watcher = threading.Thread(target=self.watch)
        watcher.start()
        try:
            self.disturb(time.monotonic() + seconds)
            self.calm_down()
        finally:
            self.over.set()
            watcher.join()
            self.do_what_is_due(all_of_it=True)
            self.ws.end()

    def disturb(self, until: float) -> None:
        acts = [self.signal] * 20 + [self.edit_by_hand] * 4 + [self.remove_a_lease] * 2
        acts += [self.save_half, self.save_an_old_buffer]
        feed_at = act_at = 0.0
        while (now := time.monotonic()) < until:
            self.keep_workers()
            self.do_what_is_due()
            self.look_at_agents()
            if now >= feed_at:
                self.feed()
                feed_at = now + 0.5
            if now >= act_at:
                self.random.choice(acts)()
                act_at = time.monotonic() + self.random.expovariate(4)
            time.sleep(0.02)

    def calm_down(self) -> None:
        """Disturb no more: every task comes to its end, the workers leave, nothing is left."""
        self.do_what_is_due(all_of_it=True)
        until = time.monotonic() + CALM
        while self.unfinished() and time.monotonic() < until:
            self.keep_workers()
            self.look_at_agents()
            time.sleep(0.05)
        self.violations += [f"never done: {task}" for task in self.unfinished()]
        workers = [started for _, started in self.workers.values()]
        wait_for(lambda: all(map(is_ready, workers)), "the workers are ready")
        for started in workers:
            started.send_signal(signal.SIGTERM)
        statuses = [started.wait(30) for started in workers]
        self.violations += [f"a worker ended with {status}" for status in statuses if status]
        self.violations += [f"left: {each}" for each in self.left()]
        self.look_at_agents()

    def unfinished(self) -> list[Any]:
        every = self.ws.document()["tasks"][3:]
        return [task for task in every if task["status"] != "done"]

    def left(self) -> list[str]:
        """Processes and files that nobody needs any more, and words that nobody should see."""
        found = [f"process {pid}" for pid in self.ws.tree()]
        found += [f".leases/{name}" for name in self.ws.leases()]
        found += [name for name in os.listdir(self.ws.queue.parent) if name != self.ws.queue.name]
        found += [line for line in self.ws.log().splitlines() if line.startswith("Traceback")]
        return found

    def table(self) -> str:
        runs = (self.ws.path / "runs").read_text().split("\n")
        rows = [*sorted(self.figures.items())]
        rows += [
            ("tasks added", self.added),
            ("tasks done", self.added - len(self.unfinished())),
            ("attempts whose agent began", sum(line.startswith("begin") for line in runs)),
            ("agents that came to their own end", sum(line.startswith("end") for line in runs)),
            ("violations", len(self.violations)),
        ]
        return "\n".join(f"| {name:<34} | {number:>7} |" for name, number in rows)


def main() -> int:
    """Run one soak in a folder of its own."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.seconds:g} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(folder, given.seed)
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
