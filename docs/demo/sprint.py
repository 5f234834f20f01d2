"""``make demo``: five workers take a small sprint from its first task to done.

All that it makes is one temporary folder, which it names; no process is left.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

from daemon.fleet.output import Style, escape

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
ROLES = ("planner", "builder", "tester", "refiner", "integrator")
ENDED = {"done", "completed", "cancelled"}
COLOURS = {"done": "green", "needs_adapt": "red", "needs_manual": "red"}
LOOK = 0.05  # seconds between looks at what happened


class Demo:
    """The sprint's folder, and what a person would do with it."""

    #: Seconds for the whole sprint, which takes a third of that on two slow cores; and the least
    #: time that the workers have to end.
    patience, stopping = 55.0, 10.0

    def __init__(self, folder: Path) -> None:
        self.folder, self.shop = folder, folder / "shop"
        self.style = Style.of(sys.stdout)
        self.started = time.monotonic()
        self.environ = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "ROLECALL_INVENTORY": str(folder / "inventory"),
        }

    def type(self, *command: str, folder: Path = CHECKOUT) -> None:
        """Run a command as a person would type it, and show it."""
        print(self.style.paint(f"$ {shlex.join(command)}", "bold"), flush=True)
        subprocess.run(command, cwd=folder, env=self.environ, check=True, stdin=subprocess.DEVNULL)
        print(flush=True)

    def git(self, *arguments: str) -> None:
        """Run git in the shop, without a word."""
        subprocess.run(["git", *arguments], cwd=self.shop, check=True, stdin=subprocess.DEVNULL)

    def lay_out(self) -> None:
        """A repository with a program, an inventory beside it, the agents."""
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("agents", "inventory", "shop"):
            shutil.copytree(HERE / name, self.folder / name, ignore=ignored)
        shutil.copy(HERE / "sprint.json", self.folder)
        self.found()

    def found(self) -> None:
        """Make a repository of the shop."""
        self.git("init", "--quiet", "--initial-branch=main")
        for key, value in (
            ("user.name", "Rolecall demo"),
            ("user.email", "demo@localhost"),
            ("commit.gpgSign", "false"),
            ("core.hooksPath", os.devnull),
        ):
            self.git("config", key, value)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "A shop")

    @contextmanager
    def workers(self) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        """A worker for each role, in the background; none is left afterwards."""
        made: dict[str, subprocess.Popen[bytes]] = {}
        with (self.folder / "workers.log").open("wb") as log:
            try:
                for role in ROLES:
                    made[role] = subprocess.Popen(
                        [sys.executable, "-m", "daemon", "--role", role],
                        cwd=CHECKOUT,
                        env=self.environ,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is for us; they are stopped in order
                    )
                yield made
            finally:
                self.stop(list(made.values()))

    def stop(self, workers: list[subprocess.Popen[bytes]]) -> None:
        """TERM lets attempts run on for a while, a second one ends them; then KILL."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            for worker in workers:
                worker.send_signal(number)
            deadline = time.monotonic() + self.stopping / 2
            for worker in workers:
                try:
                    worker.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue
            workers = [worker for worker in workers if worker.poll() is None]
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)

    def left(self) -> Iterator[int]:
        """What an attempt that could not be ended in order has left."""
        mark = f"ROLECALL_RESULT_FILE={self.folder}/".encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                environ = Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue
            if environ.startswith(mark) or b"\0" + mark in environ:
                yield int(entry)

    def follow(self, workers: dict[str, subprocess.Popen[bytes]]) -> None:
        """Print each state change as it happens, until the sprint is done."""
        events = self.shop / ".agent-daemon-logs" / "events.jsonl"
        deadline = time.monotonic() + self.patience
        while not events.exists():
            self.check(workers, deadline)
        with events.open(encoding="utf-8") as file:
            while True:
                done = self.done()  # asked first, so that what led there is printed
                for event in whole_lines(file):
                    self.tell(event)
                if done:
                    return
                self.check(workers, deadline)

    def check(self, workers: dict[str, subprocess.Popen[bytes]], deadline: float) -> None:
        """Wait for a moment; give up where there is nothing to wait for."""
        for role, worker in workers.items():
            if worker.poll() is not None:
                self.fail(f"the {role}'s worker ended with exit status {worker.returncode}")
        if time.monotonic() > deadline:
            self.fail(f"the sprint was not done in {self.patience:g} s")
        time.sleep(LOOK)

    def fail(self, what: str) -> NoReturn:
        """Say so on stderr, and leave; the workers are stopped on the way."""
        hint = f"hint:  read {self.folder}/workers.log"
        raise SystemExit(f"error: {what}\n{hint}, and {self.shop}/.agent-runs")

    def tasks(self) -> list[dict[str, Any]]:
        """The tasks, as the queue has them now."""
        queue = self.shop / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"
        found: list[dict[str, Any]] = json.loads(queue.read_text(encoding="utf-8"))["tasks"]
        return found

    def done(self) -> bool:
        """Whether every task has ended."""
        return all(task["status"] in ENDED for task in self.tasks())

    def tell(self, event: dict[str, Any]) -> None:
        """One state change in one line, and why, where that is not the usual course of things."""
        if "task" not in event or event["why"] == "added":  # the command has said so
            return
        seconds = time.monotonic() - self.started
        source = event["from"] or "new"
        line = f"{seconds:5.1f} s  {event['role']:<11} {event['task']:<10} {source} -> "
        print(escape(line) + self.style.paint(event["to"], COLOURS.get(event["to"])), end="")
        why = event["why"]
        if why not in {"", "claimed"} and event.get("outcome") != "success":
            print(
                self.style.paint(f"  ({escape(why.replace(f'{self.shop}/', ''))})", "dim"), end=""
            )
        print(flush=True)


def whole_lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    """The events that were written since; a line that is still being written is left for later."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)
            return
        yield json.loads(line)


def main() -> None:
    """Lay out, start, follow, stop, show."""
    demo = Demo(Path(tempfile.mkdtemp(prefix="rolecall-demo-")))
    print(f"A small shop, its sprint, and five agents, in {demo.folder}\n")
    demo.lay_out()
    demo.type("invoke", "init")
    demo.type("invoke", "queue.add", "--json", str(demo.folder / "sprint.json"))
    with demo.workers() as workers:
        demo.follow(workers)
    seconds = time.monotonic() - demo.started
    print()
    demo.type("invoke", "queue.list")
    demo.type("git", "log", "--oneline", "--graph", folder=demo.shop)
    print(f"{len(demo.tasks())} tasks in {seconds:.0f} s; all of it is in {demo.folder}")
    print("Look around:")
    print(f"  . {CHECKOUT}/.venv/bin/activate")
    print(f"  export ROLECALL_INVENTORY={demo.folder}/inventory")
    print("  invoke queue.show SHOP-3     # the one that was rejected and refined")
    print(f"  ls {demo.shop}/.agent-runs/SHOP-3/*")
    print(f"  rm -r {demo.folder}")
    print("Then put it on a repository of yours:")
    print("  unset ROLECALL_INVENTORY")
    print("  invoke init --workspace ~/src/yours")
    print(f'and then as {CHECKOUT}/README.md says under "On your own repository".')


def run(steps: Callable[[], None]) -> None:
    """Do the steps; Ctrl-C, and a command that fails, end them without a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        steps()
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {shlex.join(error.cmd)}: exit status {error.returncode}")


if __name__ == "__main__":
    run(main)
