"""``make bench``: what Rolecall costs, each figure beside a reference measured in the same run.

Every figure is a median of several runs; docs/benchmarks.md says how each is taken. Real workers
and commands run in a temporary folder, and all of it is gone afterwards. Exit status 1 means that a
goal was missed or that something could not be measured.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from daemon import lifecycle, process
from daemon.config import load
from daemon.model import Outcome, Result
from daemon.queue.file import FileQueue

ROOT = Path(__file__).parent.parent
INVOKE = str(Path(sys.executable).parent / "invoke")
PATIENCE = 60.0  # seconds; only ever waited for when something is wrong
PICK_UPS = 20
COMMANDS = 7  # runs of each fleet command
INSTALLS = 3  # rounds of install, install, uninstall
# As a person's shell or a user manager has it: with PYTHONDONTWRITEBYTECODE set, say, each start
# would compile all modules again.
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
WATCHDOG = "120000000"  # microseconds, as in our units: the worker wakes at half of it
STAMP = ["date", "+%s%N"]  # an agent whose first act is to say when it began
NO_CHILDREN = -1  # the parent of no process: attempts under systemd are not the worker's children
CLAIMS = {100: 15, 1000: 9, 10_000: 5}  # tasks in the queue: how often one is claimed and settled
IDLE = 62.0  # seconds that the idle worker is watched at least: one look at its interval
# What a worker has loaded of the standard library: an empty queue is drained, and it is listed.
MODULES = """
import runpy, sys
sys.argv = ["daemon", *sys.argv[1:]]
try:
    runpy.run_module("daemon", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print(*sorted(name for name in sys.modules if name.split(".")[0] in sys.stdlib_module_names))
"""


class Row(NamedTuple):
    """One line of the table. The goal is for the ratio, or for the value where that is None."""

    figure: str
    value: float
    unit: str
    reference: float | None = None
    goal: float | None = None

    def cells(self) -> list[str]:
        against, ratio = "", ""
        if self.reference is not None:
            against, ratio = f"{self.reference:.1f} {self.unit}", f"{self.judged():.2f}"
        goal = "" if self.goal is None else f"<= {self.goal:g}"
        word = "" if self.goal is None else ("met" if self.met() else "MISSED")
        return [self.figure, f"{self.value:.1f} {self.unit}", against, ratio, goal, word]

    def judged(self) -> float:
        return self.value if self.reference is None else self.value / self.reference

    def met(self) -> bool:
        return self.goal is None or self.judged() <= self.goal


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


def make_workspace(folder: Path, command: list[str]) -> Path:
    """A workspace with an empty queue, and its config: five roles that run the command."""
    write_queue(folder, [])
    # JSON is YAML. The prompt is one of ours, as invoke init puts it there.
    prompts = folder / ".oodatcaa" / "prompts"
    prompts.mkdir()
    for role in lifecycle.DEFAULT_ROLES:
        template = (ROOT / "templates" / "prompts" / f"{role}.md.j2").read_text()
        (prompts / f"{role}.md").write_text(template)
    config = folder / "rolecall.yml"
    config.write_text(json.dumps({"workspace": str(folder), "roles": five_roles(command)}))
    return config


def five_roles(command: list[str]) -> dict[str, Any]:
    return {name: {"agent": "command", "command": command} for name in lifecycle.DEFAULT_ROLES}


def a_task(name: str) -> dict[str, Any]:
    """A task of some 500 bytes, as real ones are."""
    return {
        "id": name,
        "title": "Refuse an order whose total is negative",
        "type": "Build",
        "status": "ready",
        "priority": 2,
        "agent": None,
        "lease": None,
        "dependencies": [],
        "description": "The total of an order is the sum of its lines. " * 4,
        "acceptance": ["a negative total is refused", "the refusal names the order"],
    }


def write_queue(folder: Path, tasks: list[dict[str, Any]]) -> None:
    queue = folder / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"
    queue.parent.mkdir(parents=True, exist_ok=True)
    aside = queue.with_suffix(".new")
    aside.write_text(json.dumps({"tasks": tasks, "wip_limits": {}}, indent=2) + "\n")
    aside.rename(queue)


@contextmanager
def worker(config: Path) -> Iterator[int]:
    """The pid of a builder that has looked at its queue and sleeps."""
    address = f"@rolecall-bench-{os.getpid()}-{config.parent.name}"
    env = {**ENVIRON, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": WATCHDOG}
    command = [sys.executable, "-m", "daemon", "--role", "builder", "--config", str(config)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, quiet() as null:
        channel.bind("\0" + address[1:])
        channel.settimeout(PATIENCE)
        started = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=null, stdout=null, stderr=null, close_fds=True
        )
        try:
            while b"STATUS=waiting" not in channel.recv(4096):
                pass
            yield started.pid
        finally:
            end(started)


@contextmanager
def quiet() -> Iterator[int]:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        yield null
    finally:
        os.close(null)


def end(started: subprocess.Popen[bytes]) -> None:
    """TERM, and KILL where that does not do; never by a name."""
    started.send_signal(signal.SIGTERM)
    try:
        started.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


class Idle(NamedTuple):
    """What the kernel has counted of a process: nanoseconds on a CPU, voluntary switches."""

    at: float
    cpu: int
    switches: int

    @classmethod
    def of(cls, pid: int) -> Idle:
        cpu = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
        return cls(time.monotonic(), cpu, fact(pid, "status", "voluntary_ctxt_switches"))


def fact(pid: int, file: str, name: str) -> int:
    """The number that a line ``name: number`` of /proc/PID/file holds."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise RuntimeError(f"/proc/{pid}/{file} has no {name}")


@contextmanager
def sleeper(config: Path) -> Iterator[int]:
    """The pid of a Python that sleeps, with the worker's standard library modules loaded."""
    command = [sys.executable, "-c", MODULES, "--role", "builder", "--drain", "--config"]
    listed = subprocess.run(
        [*command, str(config)],
        cwd=ROOT,
        env=ENVIRON,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    names = ", ".join(name for name in listed.stdout.split() if name != "__main__")
    source = f"import {names}\nprint(flush=True)\ntime.sleep(1e6)"
    started = subprocess.Popen([sys.executable, "-c", source], env=ENVIRON, stdout=subprocess.PIPE)
    try:
        if started.stdout is None or not started.stdout.readline():
            raise RuntimeError("the Python to compare with does not start")
        yield started.pid
    finally:
        started.kill()
        started.communicate()


def idle_rows(pid: int, asleep: int, before: Idle) -> list[Row]:
    """Memory now, and what the worker did since; waits until there is enough to go by."""
    time.sleep(max(0.0, before.at + IDLE - time.monotonic()))
    after = Idle.of(pid)
    minutes = (after.at - before.at) / 60
    memory = []
    for name, goal in (("Pss", 1.35), ("Rss", 1.35)):
        ours, theirs = (fact(each, "smaps_rollup", name) / 1024 for each in (pid, asleep))
        memory.append(Row(f"idle worker, {name.upper()}", ours, "MiB", theirs, goal))
    cpu, switches = (after.cpu - before.cpu) / 1e6, after.switches - before.switches
    return [
        *memory,
        Row("idle worker, CPU time a minute", cpu / minutes, "ms", None, 60),
        Row("idle worker, wake-ups a minute", switches / minutes, "", None, 5),
    ]


def pick_up_rows(folder: Path) -> list[Row]:
    """A worker that this script started: its attempts are sessions of their own."""
    with worker(make_workspace(folder, STAMP)) as pid:
        return [pick_up(folder, pid, "ready to the agent's first instruction")]


def pick_up(folder: Path, pid: int, figure: str) -> Row:
    """Tasks one after another, each put there while the worker sleeps."""
    picked, bare = [], []
    for number in range(PICK_UPS):
        name = f"T{number}"
        bare.append(bare_start())  # meanwhile the worker goes to sleep
        ready = time.time_ns()
        write_queue(folder, [a_task(name)])
        wait_for(partial(settled, folder, name, pid), f"{name} settled")
        said = folder / ".agent-runs" / name / "1" / "stdout.log"
        picked.append((int(said.read_text()) - ready) / 1e9)
    return Row(figure, milliseconds(picked), "ms", milliseconds(bare), 5)


def settled(folder: Path, name: str, pid: int) -> bool:
    """Whether the task has moved on, and its attempt is gone."""
    queue = json.loads((folder / ".oodatcaa" / "work" / "SPRINT_QUEUE.json").read_text())
    status = queue["tasks"][0]["status"]
    if status == "needs_manual":
        raise RuntimeError(f"{name}: {queue['tasks'][0]['last_error']}")
    if status != "awaiting_test" or (folder / ".leases" / f"{name}.json").exists():
        return False
    return not any(each.parent == pid for each in process.every())


def user_manager() -> bool:
    """Whether this user's systemd can be reached."""
    try:
        seconds(["systemctl", "--user", "show-environment"])
    except (OSError, RuntimeError):
        return False
    return True


def command_rows(folder: Path) -> list[Row]:
    """``invoke`` on five workers, beside an invoke whose command does nothing."""
    systemd = user_manager()
    name = "systemd" if systemd else "pidfile"
    env = command_environment(folder, name)
    empty = folder / "empty"
    empty.mkdir()
    (empty / "tasks.py").write_text(
        "from invoke import task\n\n\n@task\ndef nothing(c):\n    pass\n"
    )
    rows: list[Row] = []
    times: dict[str, list[float]] = {"bare": [], "first": [], "second": [], "status": []}

    def run(row: str, *command: str) -> None:
        times[row].append(seconds([INVOKE, *command], env))

    def bare() -> None:
        times["bare"].append(seconds([INVOKE, "nothing"], env, empty))

    bare()
    times["bare"].clear()  # that one compiled tasks.py
    try:
        for _ in range(INSTALLS):
            run("first", "install")
            bare()
            run("second", "install")
            bare()
            seconds([INVOKE, "uninstall"], env)
        for command in ("install", "agents.start"):
            seconds([INVOKE, command], env)
        for _ in range(COMMANDS):
            run("status", "agents.status")
            bare()
        if systemd:
            seconds([INVOKE, "agents.stop"], env)
            seconds([INVOKE, "agents.start", "--role", "builder"], env)
            figure = "ready to the agent's first instruction (systemd)"
            rows.append(pick_up(folder / "workspace", NO_CHILDREN, figure))
    finally:
        for command in ("agents.stop", "uninstall"):
            subprocess.run([INVOKE, command], cwd=ROOT, env=env, capture_output=True, check=False)
    reference = milliseconds(times["bare"])
    texts = (
        (f"invoke agents.status, five workers ({name})", "status", 2),
        (f"invoke install, five units, first time ({name})", "first", 3),
        (f"invoke install, five units, second time ({name})", "second", 3),
    )
    for text, key, goal in texts:
        rows.append(Row(text, milliseconds(times[key]), "ms", reference, goal))
    return rows


def command_environment(folder: Path, supervisor: str) -> dict[str, str]:
    """An inventory of this host alone, and a HOME of its own unless a user manager reads HOME."""
    workspace, inventory = folder / "workspace", folder / "inventory"
    make_workspace(workspace, STAMP)
    (inventory / "group_vars").mkdir(parents=True)
    hosts = {"all": {"hosts": {"localhost": {"ansible_connection": "local"}}}}
    (inventory / "hosts.yml").write_text(json.dumps(hosts))
    values = {
        "workspace": str(workspace),
        "supervisor": supervisor,
        "unit_prefix": f"bench{os.getpid()}",
        "roles": five_roles(STAMP),
    }
    (inventory / "group_vars" / "all.yml").write_text(json.dumps(values))
    home = folder / "home"
    home.mkdir()
    ours = {"ROLECALL_INVENTORY": str(inventory), "NO_COLOR": "1"}
    return ENVIRON | ours | ({} if supervisor == "systemd" else {"HOME": str(home)})


def queue_rows(folder: Path) -> list[Row]:
    """A claim and its settling, beside reading the same file and writing it out again."""
    rows = []
    for size, times in CLAIMS.items():
        workspace = folder / str(size)
        config = make_workspace(workspace, ["true"])
        write_queue(workspace, [a_task(f"T{number}") for number in range(size)])
        queue = FileQueue(load(str(config)))
        taken, plain = [], []
        for _ in range(times):
            begun = time.perf_counter()
            claim = queue.claim("builder", "bench")
            if claim is None:
                raise RuntimeError("nothing was claimed")
            queue.settle(claim.lease, Result(Outcome.SUCCESS))
            taken.append(time.perf_counter() - begun)
            plain.append(read_and_write(Path(queue.config.queue_file)))
        text = f"claim and settle one of {size} tasks"
        rows.append(Row(text, milliseconds(taken), "ms", milliseconds(plain)))
    return rows


def read_and_write(queue: Path) -> float:
    begun = time.perf_counter()
    text = json.dumps(json.loads(queue.read_text()), indent=2)
    aside = queue.with_suffix(".aside")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    taken = time.perf_counter() - begun
    aside.unlink()
    return taken


def measure(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows, and what could not be measured. The idle worker idles while the others run."""
    rows: list[Row] = []
    failed: list[str] = []
    config = make_workspace(folder / "idle", ["true"])
    with sleeper(config) as asleep, worker(config) as pid:
        before = Idle.of(pid)
        parts = {"pick-up": pick_up_rows, "commands": command_rows, "queue": queue_rows}
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


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, its columns aligned."""
    head = ["figure", "measured", "reference", "ratio", "goal", ""]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    made = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    return "\n".join([made[0], rule, *made[1:]])


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
