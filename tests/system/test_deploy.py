"""Three machines with real sshd and systemd, to which releases are deployed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import build
from tests.machines import Many, Member, reachable, switched_on
from tests.releases import READY
from tests.system.conftest import Machine
from tests.workspace import ROOT, wait_for

NAMES = ("one", "two", "three")
#: Works until it is told to end, and says once that it did.
PATIENT = "cat >/dev/null; echo $$ >agent.pid; until [ -e go ]; do sleep 0.1; done; echo >>ends"
ROLES: dict[str, dict[str, Any]] = {
    "builder": {"script": PATIENT, "timeout": 300},
    "tester": {"script": "cat >/dev/null"},
}
DIES_ON_TWO = f"{READY}; __import__('os').uname().nodename.startswith('two') and signal.alarm(1)"

#: Prints what a host keeps while a deploy is at work on it.
UNDER_WAY = "ls .config/rolecall | grep deploying || :"


class Rollout:
    """The machines, and checkouts of an operator that deploys to them."""

    def __init__(self, many: Many, folder: Path) -> None:
        self.many, self.folder = many, folder

    def checkout(self, name: str, ready: str = READY) -> Path:
        """A checkout of its own version, whose workers say that they are ready like this."""
        made = self.folder / name
        for each in ("daemon", "templates"):
            shutil.copytree(ROOT / each, made / each, ignore=shutil.ignore_patterns("__pycache__"))
        for each in ("tasks.py", "LICENSE"):
            shutil.copy(ROOT / each, made)
        worker = made / "daemon" / "worker.py"
        worker.write_text(worker.read_text().replace(READY, ready) + f"# {name}\n")
        template = made / "templates" / "agents.slice.j2"
        template.write_text(template.read_text() + f"# {name}\n")
        return made

    def begin(self, checkout: Path, *arguments: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "ROLECALL_INVENTORY": str(self.many.inventory)}
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", "deploy", "--timeout=5", *arguments],
            cwd=checkout,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def deploy(self, checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.begin(checkout, "--settle=3", *arguments) as running:
            out, err = running.communicate(timeout=300)
        return subprocess.CompletedProcess([], running.returncode, out, err)

    def pids(self) -> dict[str, int]:
        return {who: row["pid"] for who, row in self.many.rows().items()}

    def agent(self, name: str) -> int:
        member = self.many.members[name]
        return int(wait_for(lambda: member.sh("cat work/agent.pid 2>/dev/null || :"), "an agent"))

    def alive(self, name: str, pid: int) -> bool:
        state = self.many.members[name].sh(f"cat /proc/{pid}/status 2>/dev/null || :")
        return "\nState:\t" in state and "\nState:\tZ" not in state

    def units(self, name: str) -> str:
        return self.many.members[name].sh("cd .config/systemd/user; grep . *.service *.slice")

    def left(self, name: str) -> str:
        """The releases that a host has, and what is in its /tmp."""
        member = self.many.members[name]
        return f"{' '.join(sorted(member.releases()))}: {member.sh('ls -A /tmp')}"

    def releases(self, name: str) -> set[str]:
        """The releases that the workers of a host run, and the one that its link names."""
        return set(
            self.many.members[name]
            .sh(
                "for pid in $(systemctl --user show -P MainPID agent-builder agent-tester); do"
                " readlink /proc/$pid/cwd; done; readlink -f .local/share/rolecall/agent/current"
            )
            .split()
        )


@pytest.fixture(scope="module")
def members(testbed: Callable[[str], Machine]) -> Iterator[dict[str, Member]]:
    with switched_on({name: testbed(name) for name in NAMES}, "--ssh") as made:
        yield made


@pytest.fixture
def rollout(members: dict[str, Member], tmp_path: Path) -> Iterator[Rollout]:
    """Every host works on a task, by a first release."""
    many = Many(tmp_path, members)
    for member in members.values():
        member.sh("git init --quiet work")
        member.queue(build())
    many.configure(ROLES)
    made = Rollout(many, tmp_path)
    done = made.deploy(made.checkout("first"), "--serial=3")
    assert done.returncode == 0, done.stderr
    yield made
    many.do("uninstall")
    many.clean()


def end_of_tasks(rollout: Rollout, names: tuple[str, ...] = NAMES) -> None:
    """Each attempt ends, once, and its task moves on."""
    for name in names:
        member = rollout.many.members[name]
        member.sh("touch work/go")
        queue = "cat work/.oodatcaa/work/SPRINT_QUEUE.json"
        wait_for(
            lambda member=member, queue=queue: (  # type: ignore[misc]
                json.loads(member.sh(queue))["tasks"][0]["status"] == "ready_for_integrator"
            ),
            f"{name}: the task has moved on",
        )
        assert member.sh("cat work/ends") == "\n"


def test_a_deploy_that_fails_on_the_second_host_stops_there(rollout: Rollout) -> None:
    """The first runs the new release, the second the old one, the third was not touched.

    No attempt has died; the third has not even got the new release.
    """
    third = rollout.left("three")
    before, agents = rollout.pids(), {name: rollout.agent(name) for name in NAMES}
    (old,) = {each for name in NAMES for each in rollout.releases(name)}
    units = {name: rollout.units(name) for name in NAMES}
    done = rollout.deploy(rollout.checkout("second", DIES_ON_TWO))
    assert done.returncode == 1, done.stderr
    (new,) = rollout.releases("one")
    assert new != old
    assert [rollout.releases(name) for name in ("two", "three")] == [{old}, {old}]
    after = rollout.pids()
    assert {who for who in after if after[who] == before[who]} == {"three:builder", "three:tester"}
    assert [rollout.units(name) == units[name] for name in NAMES] == [False, True, True]
    assert all(rollout.alive(name, agent) for name, agent in agents.items())
    lines = done.stderr.splitlines()
    assert "done: one; put back: two; not touched: three" in lines
    assert rollout.left("three") == third
    assert len(rollout.many.members["one"].releases()) == len(third.split(":")[0].split()) + 1
    assert "two: error: builder: died after it was ready" in done.stderr
    end_of_tasks(rollout)


def test_a_deploy_of_many_hosts_goes_through_them_in_order(rollout: Rollout) -> None:
    """Attempts live through it; typed again, there is nothing to do, and nothing is restarted."""
    agents = {name: rollout.agent(name) for name in NAMES}
    second = rollout.checkout("second")
    left = rollout.left("one")
    done = rollout.deploy(second, "--check", "--limit", "one")
    assert rollout.left("one") == left
    said = re.sub("[0-9a-f]{16}", "*" * 16, done.stdout).splitlines()
    assert [line.partition(" (")[0] for line in said] == [
        f"one: would {each}"
        for each in (
            f"copy release {'*' * 16}",
            f"switch to release {'*' * 16}",
            "change ~/.config/systemd/user/agents.slice",
            "reload the user manager",
            "restart builder",
            "restart tester",
        )
    ]
    done = rollout.deploy(second, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [each["host"] for each in facts] == list(NAMES)
    assert {each["state"] for each in facts} == {"deployed"}
    said = [line.partition(":")[0] for line in done.stderr.splitlines() if "hands over" in line]
    assert said == list(NAMES)
    ((new,),) = {tuple(rollout.releases(name)) for name in NAMES}
    assert new.endswith(facts[0]["release"])
    pids = rollout.pids()
    done = rollout.deploy(second)
    assert sorted(done.stdout.splitlines()) == sorted(f"{name}: nothing to do" for name in NAMES)
    assert rollout.pids() == pids
    assert all(rollout.alive(name, agent) for name, agent in agents.items())
    end_of_tasks(rollout)


def test_nothing_is_changed_where_a_host_is_not_ready(rollout: Rollout) -> None:
    """One is unplugged: exit status 4, with what leaves it out, and every pid is what it was."""
    before, left = rollout.pids(), {name: rollout.left(name) for name in NAMES}
    second = rollout.checkout("second")
    rollout.many.members["three"].machine.cut()
    try:
        done = rollout.deploy(second)
    finally:
        rollout.many.members["three"].machine.heal()
    assert done.returncode == 4
    assert done.stderr.splitlines()[-2:] == [
        "no host was changed",
        "hint:  mend that, or leave it out: invoke deploy --limit '!three'",
    ]
    reachable(rollout.many, "three")
    assert rollout.pids() == before
    assert {name: rollout.left(name) for name in NAMES} == left


def test_a_deploy_whose_operator_is_gone_ends_all_the_same(rollout: Rollout) -> None:
    """Killed with its ssh in the middle of a host: that one switches; the next is not touched."""
    agent, before = rollout.agent("one"), rollout.pids()
    second = rollout.checkout("second")
    with rollout.begin(second, "--settle=3") as running:
        told = running.stderr
        assert told
        wait_for(lambda: "one: watches" in told.readline(), "the first is under way")
        os.killpg(running.pid, signal.SIGKILL)
    wait_for(lambda: not rollout.many.members["one"].sh(UNDER_WAY), "the host has ended it")
    (new,) = rollout.releases("one")
    after = rollout.pids()
    assert {who for who in after if after[who] != before[who]} == {"one:builder", "one:tester"}
    assert rollout.alive("one", agent)
    done = rollout.deploy(second)
    assert done.returncode == 0, done.stderr
    assert "one: nothing to do" in done.stdout
    assert all(rollout.releases(name) == {new} for name in NAMES)


def test_a_power_cut_in_the_middle_is_mended_by_the_next_deploy(rollout: Rollout) -> None:
    """What boots runs; then the next deploy knows of it, and takes the host to the new release."""
    one = rollout.many.members["one"]
    second = rollout.checkout("second")
    with rollout.begin(second, "--settle=60") as running:
        err = running.stderr
        assert err
        wait_for(lambda: "one: watches" in err.readline(), "the first is under way")
        one.machine.kill()
        assert running.wait() == 4
        assert "one: ends it, or puts it back, by itself" in err.read()
    one.machine.up("--ssh", shown=())
    reachable(rollout.many, "one")
    wait_for(lambda: set(rollout.many.states(exit_status=None).values()) == {"running"}, "all run")
    told = " was cut short: invoke deploy goes on with it"
    (line,) = (each for each in rollout.many.do("agents.status").splitlines() if told in each)
    assert line.startswith("one: the deploy of ")
    done = rollout.deploy(second)
    assert done.returncode == 0, done.stderr
    assert told not in rollout.many.do("agents.status")
    assert len({tuple(rollout.releases(name)) for name in NAMES}) == 1
    assert rollout.deploy(second).stdout.count("nothing to do") == len(NAMES)
