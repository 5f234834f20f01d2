"""One soak, whatever the queue is: who is hit, and what is looked at meanwhile and in the end."""

from __future__ import annotations

import random
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from daemon import process, tree
from daemon.model import Lease, Move
from daemon.queue import Queue
from tests.workspace import Workspace, wait_for

LIMITS = {"builder": 2, "tester": 2, "integrator": 1}
HOLDS = {"builder": "in_progress", "tester": "testing", "integrator": "integrating"}
WORKERS = ("builder", "builder", "tester", "tester", "integrator")
KINDS = ("quick", "failing", "forking", "stubborn", "slow")
UNFINISHED = 8  # tasks that are kept in the queue while the killer is at work
PARKED = ("P0", "P1", "P2")  # tasks that no role works on
STATUSES = ("needs_manual", "blocked", "cancelled")  # that a person gives these
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


class Unreadable(Exception):
    """What an onlooker could not read; the text says why."""


class Soak(ABC):
    """One workspace, its workers, and who disturbs them. How its queue is disturbed, heirs know."""

    def __init__(self, ws: Workspace, seed: int) -> None:
        self.ws, self.random = ws, random.Random(seed)  # noqa: S311  # chance
        self.workers: dict[int, Any] = {}
        self.figures: Counter[str] = Counter()
        self.violations: list[str] = []
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.frozen: dict[process.Stat, float] = {}  # until when
        self.added = self.never_done = 0
        self.breaks = 0  # of the queue; odd while nobody can read it, by a doing of ours
        self.undone: set[tuple[str, int]] | None = None  # holds that an old buffer may have undone
        self.over = threading.Event()
        (ws.path / "marks").mkdir()
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
        self.queue = self.made(*({"id": name, "status": "needs_manual"} for name in PARKED))

    # --- what kind of queue it is ----------------------------------------------------------------

    @abstractmethod
    def made(self, *tasks: dict[str, Any]) -> Queue:
        """The queue, with these tasks."""

    @abstractmethod
    def acts(self) -> list[Callable[[], None]]:
        """What is done to the queue beside the 20 signals; each as often as it is named."""

    @abstractmethod
    def seen(self) -> dict[str, str]:
        """The statuses of its tasks, as an onlooker finds them. Raises Unreadable."""

    @abstractmethod
    def leases(self) -> list[Lease]:
        """Those that there are; while the queue is broken, those of before."""

    def remains(self) -> list[str]:
        """What the queue has left that nobody needs any more."""
        return []

    def is_broken(self) -> bool:
        return self.breaks % 2 == 1

    # --- what is looked at all the time ----------------------------------------------------------

    def watch(self) -> None:
        """Read the queue without a lock, again and again, and compare it with what is promised."""
        while not self.over.wait(0.002):
            self.thaw()
            before = self.breaks
            if self.is_broken():
                continue
            try:
                tasks = self.seen()
            except Unreadable as error:
                if before == self.breaks:
                    self.violations.append(f"the queue could not be read: {error}")
                continue
            self.figures["reads without a lock"] += 1
            self.compare(tasks)

    def compare(self, tasks: dict[str, str]) -> None:
        """Whether what an onlooker saw is as promised."""
        at_work = Counter(tasks.values())
        full = [role for role, n in LIMITS.items() if at_work[HOLDS[role]] > n]
        if self.undone is None:
            self.violations += [f"{role}: more tasks than its WIP limit" for role in full]
        elif not full and not self.undone & self.holds():
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

    def holds(self) -> set[tuple[str, int]]:
        return {(lease.task_id, lease.token) for lease in self.leases()}

    def worker(self) -> process.Stat | None:
        return self.one_of(list(self.workers))

    def attempt(self) -> process.Stat | None:
        every = [lease.pid for lease in self.leases()]
        return self.one_of([pid for pid in every if pid not in self.workers])

    def agent(self) -> process.Stat | None:
        attempts = {lease.pid for lease in self.leases()}
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
        if self.is_broken():
            return
        new = UNFINISHED - len(self.unfinished())
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
            self.end()

    def end(self) -> None:
        """Nothing of it runs any more."""
        self.ws.end()

    def disturb(self, until: float) -> None:
        acts = [self.signal] * 20 + self.acts()
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
        never = self.unfinished()
        self.never_done = len(never)
        self.violations += [f"never done: {task}" for task in never]
        workers = [started for _, started in self.workers.values()]
        wait_for(lambda: all(map(is_ready, workers)), "the workers are ready")
        for started in workers:
            started.send_signal(signal.SIGTERM)
        statuses = [started.wait(30) for started in workers]
        self.violations += [f"a worker ended with {status}" for status in statuses if status]
        self.violations += [f"left: {each}" for each in self.left()]
        self.violations += [f"twice: {each}" for each, n in Counter(self.begun()).items() if n > 1]
        self.look_at_agents()

    def unfinished(self) -> list[str]:
        return [
            f"{name} ({status})"
            for name, status in self.seen().items()
            if status != "done" and name not in PARKED
        ]

    def left(self) -> list[str]:
        """Processes and files that nobody needs any more, and words that nobody should see."""
        found = [f"process {pid}" for pid in self.ws.tree()]
        found += [f"the lease of {lease.task_id}" for lease in self.leases()]
        found += self.remains()
        found += [line for line in self.ws.log().splitlines() if line.startswith("Traceback")]
        return found

    def runs(self) -> list[str]:
        """What agents wrote of themselves."""
        return (self.ws.path / "runs").read_text().splitlines()

    def begun(self) -> list[str]:
        """The attempts whose agents began; none has two."""
        return [line for line in self.runs() if line.startswith("begin")]

    def table(self) -> str:
        rows = [*sorted(self.figures.items())]
        rows += [
            ("tasks added", self.added),
            ("tasks done", self.added - self.never_done),
            ("attempts whose agent began", len(self.begun())),
            ("agents that came to their own end", len(self.runs()) - len(self.begun())),
            ("violations", len(self.violations)),
        ]
        return "\n".join(f"| {name:<34} | {number:>7} |" for name, number in rows)
