"""Many machines over ssh: what ``invoke`` takes beside bare ssh calls to the same hosts."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.pick_up import STAMP
from tests.bench.rows import Row, Skipped
from tests.bench.timing import ENVIRON, ROOT, seconds
from tests.bench.workspaces import five_roles

INVOKE = str(Path(sys.executable).parent / "invoke")
TESTBED = str(ROOT / "tests" / "testbed" / "machine")
MACHINES, HOSTS = 3, 30
FORKS = (5, 30)
ROUNDS, COMMANDS = 3, 5  # of installs, and of each other command
KIB = 1024  # a unit of ru_maxrss
# Thirty hosts are three machines here: each gets ten calls at once.
READY = (
    "printf 'MaxStartups 100\\nMaxSessions 100\\n' >>/etc/ssh/sshd_config; systemctl restart ssh"
)
PYTHON = "import sys; sys.exit(sys.version_info < (3, 11))"


class Took(NamedTuple):
    """A command's time, and the most memory that it (and no child of it) had."""

    seconds: float
    mib: float


class Fleet:
    """An inventory of many names for a few machines, each with its prefix and its workspace."""

    def __init__(
        self, folder: Path, machines: list[str], count: int, roles: dict[str, Any]
    ) -> None:
        self.ssh_config = folder / "ssh_config"
        self.hosts = {f"h{n:02}": machines[n % len(machines)] for n in range(count)}
        inventory = folder / f"inventory{count}"
        (inventory / "group_vars").mkdir(parents=True)
        hosts = {
            name: {
                "ansible_host": machine,
                "unit_prefix": f"of{count}-{name}",
                "workspace": f"~/{count}/{name}",
            }
            for name, machine in self.hosts.items()
        }
        (inventory / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
        values = {
            "ansible_ssh_common_args": f"-F {self.ssh_config}",
            "run": list(roles),
            "roles": roles,
        }
        (inventory / "group_vars" / "all.yml").write_text(json.dumps(values))
        self.env = ENVIRON | {"ROLECALL_INVENTORY": str(inventory), "NO_COLOR": "1"}
        paths = [f"~/{count}/{name}/.oodatcaa/work" for name in self.hosts]
        for machine in machines:
            script = f"for each in {' '.join(paths)}; do mkdir -p $each && "
            script += "git init --quiet $each/../.. && "
            script += "echo '{\"tasks\": []}' >$each/SPRINT_QUEUE.json; done"
            seconds(self.ssh(machine, script))

    def ssh(self, machine: str, command: str) -> list[str]:
        return ["ssh", "-F", str(self.ssh_config), machine, command]

    def bare(self, forks: int) -> float:
        """How long ``ssh HOST true`` takes for every host, so many at once."""
        begun = time.perf_counter()
        waiting = list(self.hosts.values())
        running: list[subprocess.Popen[bytes]] = []
        while waiting or running:
            while waiting and len(running) < forks:
                command = self.ssh(waiting.pop(), "true")
                running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            ended = [each for each in running if each.poll() is not None]
            if any(each.returncode for each in ended):
                raise RuntimeError("a bare ssh call failed")
            running = [each for each in running if each not in ended]
        return time.perf_counter() - begun

    def invoke(self, *command: str) -> Took:
        """Run it; raises RuntimeError where it fails."""
        begun = time.perf_counter()
        with subprocess.Popen(
            [INVOKE, *command],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stderr
            said = running.stderr.read()
            _, status, usage = os.wait4(running.pid, 0)
            taken = time.perf_counter() - begun
            running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            raise RuntimeError(f"invoke {' '.join(command)}: {said.strip()[-500:]}")
        return Took(taken, usage.ru_maxrss / KIB)


def fleet_rows(folder: Path) -> list[Row]:
    """``install`` first and again, and ``agents.status``, over three machines."""
    with machines(folder) as names:
        return measure(Fleet(folder, names, MACHINES, five_roles(STAMP)), MACHINES, ROUNDS)


def growth_rows(folder: Path) -> list[Row]:
    """The same over thirty hosts, the three machines by ten names each: one install takes long."""
    with machines(folder) as names:
        builder = {"builder": five_roles(STAMP)["builder"]}
        fleet = Fleet(folder, names, HOSTS, builder)
        return [row for forks in FORKS for row in measure(fleet, forks, rounds=1)]


def measure(fleet: Fleet, forks: int, rounds: int) -> list[Row]:
    """The rows of one fleet at so many hosts at once, after so many rounds of installing it."""
    figures = {
        "invoke install, first time": ["install"],
        "invoke install, second time": ["install"],
        "invoke agents.status": ["agents.status"],
    }
    took: dict[str, list[Took]] = {name: [] for name in figures}
    bare: dict[str, list[float]] = {name: [] for name in figures}
    # All of the hosts' work is done by this machine's cores: a silence is no lost connection.
    at_once = ["--forks", str(forks), "--timeout", "60"]

    def run(name: str) -> None:
        took[name].append(fleet.invoke(*figures[name], *at_once))
        bare[name].append(fleet.bare(forks))

    first, again, status = figures
    for last in range(rounds - 1, -1, -1):
        try:
            run(first)
            run(again)
            if not last:
                fleet.invoke("agents.start", *at_once)
                for _ in range(COMMANDS):
                    run(status)
        finally:
            fleet.invoke("uninstall", *at_once)
    where = f"{len(fleet.hosts)} hosts, {forks} at once"
    rows = [
        Row(
            f"{name} ({where})",
            statistics.median(each.seconds for each in took[name]) * 1000,
            "ms",
            statistics.median(bare[name]) * 1000,
        )
        for name in figures
    ]
    most = max(each.mib for every in took.values() for each in every)
    return [*rows, Row(f"most memory of these ({where})", most, "MiB")]


@contextmanager
def machines(folder: Path) -> Iterator[list[str]]:
    """Machines of the test bed with sshd, and an ssh_config for them in the folder."""
    if os.geteuid():
        raise Skipped("the test bed needs root")
    names = [f"bench{number}-{os.getpid()}" for number in range(MACHINES)]
    env = {**os.environ, "MACHINE_STATE": str(folder / "testbed"), "MACHINE_NET": "198.18.77"}

    def testbed(*command: str) -> str:
        done = subprocess.run(
            [TESTBED, *command], env=env, capture_output=True, text=True, check=False
        )
        if "missing on this host" in done.stderr:
            raise Skipped(done.stderr.strip())
        if done.returncode:
            raise RuntimeError(f"{TESTBED} {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    try:
        for name in names:
            testbed("up", name, "--ssh")
            testbed("exec", "--root", name, "--", "sh", "-c", READY)
            python = [TESTBED, "exec", name, "--", "python3", "-c", PYTHON]
            if subprocess.run(python, env=env, check=False).returncode:
                raise Skipped("missing on this host: a /usr/bin/python3 of 3.11 or later")
        (folder / "ssh_config").write_text(testbed("ssh-config"))
        yield names
    finally:
        subprocess.run([TESTBED, "down", "--all"], env=env, check=True, capture_output=True)
