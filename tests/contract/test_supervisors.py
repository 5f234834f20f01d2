"""What every supervisor does, by effect: one suite for systemd and for pid files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from daemon import process
from tests.fleet import LONG_AGENT, Fleet, Inside, Shell, build, local
from tests.system.conftest import Machine, testbed
from tests.workspace import wait_for

__all__ = ["testbed"]  # pytest finds a fixture by its name here

BUILDER = {"builder": {"script": LONG_AGENT}}
TWO = {"builder": {"script": "cat >/dev/null"}, "tester": {"script": "cat >/dev/null"}}


@pytest.fixture(scope="module", params=["pidfile", "systemd"])
def supervisor(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shell(supervisor: str, request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Pid files need no root and no machine; systemd is a machine of the test bed."""
    if supervisor == "pidfile":
        yield local
        return
    make: Callable[[str], Machine] = request.getfixturevalue("testbed")
    machine = make("supervisors")
    machine.up()

    inside = Inside(machine)
    yield inside
    inside.close()
    machine._testbed("down", machine.name)


@pytest.fixture
def fleet(shell: Shell, supervisor: str) -> Iterator[Fleet]:
    made = Fleet(shell, supervisor)
    yield made
    done = made.invoke("uninstall")
    made.sh(f"rm -rf {made.workspace} {made.inventory}")
    assert done.returncode == 0, done.stderr


def test_installing_twice_changes_nothing_the_second_time(fleet: Fleet) -> None:
    """Neither a byte, nor a time, nor an inode; and it says so."""
    fleet.configure(TWO)
    assert "created" in fleet.do("install")
    before = fleet.files()
    assert fleet.do("install") == "localhost: nothing to do\n"
    assert fleet.files() == before


def test_a_check_says_what_would_change_and_changes_nothing(fleet: Fleet) -> None:
    """``--check --diff`` shows the files; afterwards there is none."""
    fleet.configure(TWO)
    before = fleet.files()
    said = fleet.do("install", "--check", "--diff")
    assert "would create" in said
    assert '+  "workspace"' in said
    assert fleet.files() == before


def test_a_changed_role_is_one_changed_file_and_its_diff(fleet: Fleet) -> None:
    """A longer timeout of the builder is seen in the diff, and only there."""
    fleet.configure(TWO)
    fleet.do("install")
    fleet.configure({**TWO, "builder": {**TWO["builder"], "timeout": 77}})
    said = fleet.do("install", "--diff").splitlines()
    assert [line for line in said if line.startswith(("+ ", "- "))] == [
        '-      "timeout": 20.0,',
        '+      "timeout": 77.0,',
    ]
    assert sum(" changed " in line for line in said) == 1


def test_a_config_that_is_older_than_the_inventory_is_told(fleet: Fleet) -> None:
    """With what to type, for a person and a program; not before, and not after."""
    fleet.configure(TWO)
    fleet.do("install")
    told = "localhost: its config is older than the inventory: invoke deploy"
    assert told not in fleet.invoke("agents.status").stdout
    fleet.configure({**TWO, "builder": {**TWO["builder"], "timeout": 77}})
    assert told in fleet.invoke("agents.status").stdout
    assert {row["config_is_older"] for row in fleet.rows().values()} == {True}
    assert "older than the inventory" in fleet.invoke("doctor").stdout
    fleet.do("install")
    assert told not in fleet.invoke("agents.status").stdout


def test_uninstalling_leaves_nothing(fleet: Fleet) -> None:
    """The home holds what it held before, though the workers ran."""
    fleet.configure(TWO)
    before = fleet.files().split(" ")[0::3]
    fleet.do("install")
    fleet.do("agents.start")
    assert "removed" in fleet.do("uninstall")
    assert fleet.files().split(" ")[0::3] == before
    assert {row["state"] for row in fleet.rows().values()} == {"not installed"}
    assert fleet.do("uninstall") == "localhost: nothing to do\n"


def test_what_is_not_installed_does_not_start(fleet: Fleet) -> None:
    """It says what to type instead."""
    fleet.configure(TWO)
    done = fleet.invoke("agents.start")
    assert done.returncode == 1
    assert "builder: not installed\n  invoke install\n" in done.stdout


def test_started_workers_run_and_work(fleet: Fleet) -> None:
    """Status is 0 and running; a task that is there, and one that comes, are worked on."""
    fleet.configure(TWO)
    fleet.write_queue(build("T1"))
    fleet.do("install")
    assert fleet.invoke("agents.status").returncode == 3
    assert fleet.do("agents.start") == "localhost: builder: started\nlocalhost: tester: started\n"
    assert fleet.invoke("agents.status").returncode == 0
    rows = fleet.rows()
    assert [row["state"] for row in rows.values()] == ["running", "running"]
    assert all(fleet.alive(row["pid"]) for row in rows.values())
    fleet.wait_status("ready_for_integrator", "T1")
    fleet.write_queue(build("T2"))
    fleet.wait_status("ready_for_integrator", "T2")
    assert "already running" in fleet.do("agents.start")
    assert {role: row["pid"] for role, row in fleet.rows().items()} == {
        role: row["pid"] for role, row in rows.items()
    }


def test_one_role_is_started_and_stopped_alone(fleet: Fleet) -> None:
    """The other one is left as it is."""
    fleet.configure(TWO)
    fleet.do("install")
    fleet.do("agents.start", "--role", "tester")
    assert [row["state"] for row in fleet.rows().values()] == ["stopped", "running"]
    fleet.do("agents.start")
    fleet.do("agents.stop", "--role", "tester")
    assert [row["state"] for row in fleet.rows().values()] == ["running", "stopped"]


def test_stopping_releases_what_does_not_end_in_time(fleet: Fleet) -> None:
    """After the stop budget the agent is ended, its task goes back, no process is left."""
    fleet.configure({"builder": {"script": LONG_AGENT, "stop_budget": 0.5}})
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    agent = fleet.agent()
    assert fleet.rows()["builder"]["working_on"][0]["task_id"] == "T1"
    stopped = fleet.invoke("agents.stop")
    assert stopped.stdout == "localhost: builder: stopped\n"
    assert stopped.stderr == "localhost: builder: waits up to 0.5 s for T1\n"
    assert not fleet.alive(agent)
    assert fleet.task()["status"] == "ready"
    assert fleet.lease() is None
    assert "not running" in fleet.do("agents.stop")


def test_a_restart_hands_the_attempt_over(fleet: Fleet) -> None:
    """Another worker, the same agent, and the new worker counts it as its own."""
    fleet.configure({"builder": {"script": LONG_AGENT, "stop_budget": 0.5}})
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    agent, worker = fleet.agent(), fleet.rows()["builder"]["pid"]
    assert fleet.do("agents.restart") == "localhost: builder: restarted\n"
    row = fleet.rows()["builder"]
    assert row["pid"] != worker
    assert row["state"] == "running"
    assert [each["task_id"] for each in row["working_on"]] == ["T1"]
    assert fleet.alive(agent)
    fleet.do("agents.stop")
    assert not fleet.alive(agent)


def test_an_attempt_outlives_the_death_of_its_worker(fleet: Fleet, supervisor: str) -> None:
    """Kill -9 of the worker: its agent works on, and the next worker stops it in its turn."""
    fleet.configure({"builder": {"script": LONG_AGENT, "stop_budget": 0.5}})
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    agent, worker = fleet.agent(), fleet.rows()["builder"]["pid"]
    fleet.sh(f"kill -9 {worker}")
    wait_for(lambda: not fleet.alive(worker), "the worker is dead")
    if supervisor == "pidfile":
        assert fleet.rows()["builder"]["state"] == "failed"
        fleet.do("agents.start")
    wait_for(lambda: fleet.rows()["builder"]["state"] == "running", "another worker")
    assert fleet.alive(agent)
    assert fleet.rows()["builder"]["working_on"][0]["task_id"] == "T1"
    fleet.do("agents.stop")
    assert not fleet.alive(agent)
    assert fleet.task()["status"] == "ready"


def test_a_stop_ends_attempts_whose_worker_is_dead(fleet: Fleet, supervisor: str) -> None:
    """Nobody else would: the worker that drains is gone."""
    fleet.configure(BUILDER)
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    agent = fleet.agent()
    if supervisor == "pidfile":
        fleet.sh(f"kill -9 {fleet.rows()['builder']['pid']}")
    else:
        fleet.sh("systemctl --user kill --signal=KILL agent-builder")
        fleet.sh("systemctl --user stop agent-builder")
    assert fleet.alive(agent)
    assert "T1 had no worker" in fleet.do("agents.stop")
    assert not fleet.alive(agent)
    wait_for(lambda: fleet.task()["status"] == "ready", "the task is released")


@pytest.mark.parametrize("command", ["install", "agents.stop", "uninstall"])
def test_a_role_that_has_left_the_inventory_is_stopped(fleet: Fleet, command: str) -> None:
    """With what it works on, by the config that it was installed with; the others are not lost.

    Broken once by asking the inventory alone: the worker ran on, and nothing knew of it.
    """
    fleet.configure({**TWO, "builder": {"script": LONG_AGENT, "stop_budget": 0.5}})
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    agent = fleet.agent()
    pids = {role: row["pid"] for role, row in fleet.rows().items()}
    fleet.configure({"tester": TWO["tester"]})
    if command == "install":
        assert "localhost: would stop builder\n" in fleet.do("install", "--check")
        assert fleet.alive(pids["builder"])
    said = fleet.do(command)
    told = {"install": "localhost: stop builder\n", "agents.stop": "localhost: builder: stopped\n"}
    assert told.get(command, "") in said
    assert not fleet.alive(pids["builder"])
    assert not fleet.alive(agent)
    assert fleet.task()["status"] == "ready"
    assert fleet.alive(pids["tester"]) == (command == "install")
    if command != "uninstall":
        fleet.do("install")
    assert fleet.do(command).count("builder") == 0
    assert not fleet.shell(f"ls {fleet.workspace}/.agent-daemon-pids/builder.pid").stdout


def test_a_host_that_is_to_run_nothing_any_more_is_stopped(fleet: Fleet) -> None:
    """It is asked though the inventory names no role for it."""
    fleet.configure(TWO)
    fleet.do("install")
    fleet.do("agents.start")
    fleet.configure(TWO, run=[])
    assert fleet.do("agents.stop") == "localhost: builder: stopped\nlocalhost: tester: stopped\n"


def test_cancelling_ends_what_runs(fleet: Fleet) -> None:
    """When the command returns the agent is dead and the task cancelled; the worker works on."""
    fleet.configure(BUILDER)
    fleet.write_queue(build(), build("T2", status="blocked"))
    fleet.do("install")
    fleet.do("agents.start")
    agent = fleet.agent()
    said = fleet.do("queue.cancel", "T1")
    assert said == "T1: cancelled: its attempt has ended, the task is cancelled\n"
    assert not fleet.alive(agent)
    assert (fleet.task()["status"], fleet.lease()) == ("cancelled", None)
    fleet.sh(f"rm {fleet.workspace}/agent.pid")
    assert "T2: blocked -> ready: tried again by " in fleet.do("queue.retry", "T2")
    agent = fleet.agent()
    wait_for(lambda: "tried again by" in fleet.do("agents.logs"), "the person's move")
    assert "cancelled by" in fleet.do("agents.logs")


def test_a_role_that_only_fails_is_seen_to_pause(fleet: Fleet) -> None:
    """Status says until when and why; a restart, the reason mended, ends the pause."""
    breaker = {"failures": 2, "seconds": 10, "base": 600, "cap": 600}
    more = {"breaker": breaker, "max_attempts": 1, "slots": 1}
    fleet.configure({"builder": {"script": "cat >/dev/null; exit 9", **more}})
    fleet.write_queue(*(build(f"T{i}") for i in range(4)))
    fleet.do("install")
    fleet.do("agents.start")
    wait_for(lambda: fleet.rows()["builder"]["paused_until"], "the pause")
    text = fleet.rows()["builder"]["text"]
    assert text.startswith("2 attempts in a row failed within seconds, claims pause until ")
    assert text.endswith("the agent ended with exit status 9 (attempt 1 of 1)")
    statuses = [fleet.task(f"T{i}")["status"] for i in range(4)]
    assert statuses == ["needs_manual", "needs_manual", "ready", "ready"]
    fleet.configure({"builder": {"script": "cat >/dev/null", **more}})
    note = "builder: running with the old config until invoke deploy"
    assert note in fleet.do("install")
    row = fleet.rows()["builder"]
    assert (row["outdated"], row["parked"], row["release"]) == (True, 2, None)
    fleet.do("agents.restart")
    fleet.wait_status("awaiting_test", "T3")
    row = fleet.rows()["builder"]
    assert (row["paused_until"], row["outdated"]) == (None, False)


def test_a_worker_that_cannot_start_is_told_with_its_reason(fleet: Fleet) -> None:
    """A secret that others can read: exit status 78, its words, and no second try."""
    fleet.write("work.env", "TOKEN=123456\n")
    fleet.sh("chmod 644 work.env")
    fleet.configure({"builder": {"script": "true", "env_file": "~/work.env"}})
    fleet.do("install")
    done = fleet.invoke("agents.start")
    assert done.returncode == 1
    assert "builder: not started" in done.stdout
    assert "work.env" in done.stdout
    assert "78" in done.stdout
    assert fleet.invoke("agents.status").returncode == 3
    fleet.sh("rm work.env")


def test_logs_tell_what_happened(fleet: Fleet) -> None:
    """The move of a task is in the logs of its role."""
    fleet.configure(TWO)
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    fleet.wait_status("ready_for_integrator")
    wait_for(lambda: "in_progress -> awaiting_test" in fleet.do("agents.logs"), "the move")
    assert "in_progress" not in fleet.do("agents.logs", "--role", "tester")


def test_a_prefix_of_another_workspace_is_refused(fleet: Fleet, shell: Shell) -> None:
    """Nothing of the other's is overwritten; with a prefix of its own it lives beside it."""
    fleet.configure(TWO)
    fleet.do("install")
    other = Fleet(shell, fleet.supervisor, "other")
    other.configure(TWO)
    before = fleet.files()
    done = other.invoke("install")
    assert done.returncode == 78
    assert 'unit_prefix "agent" is used by another workspace' in done.stderr
    assert other.invoke("uninstall").returncode == 78
    for command in ("agents.start", "agents.restart", "agents.stop"):
        done = other.invoke(command)
        assert done.returncode == 78
        assert 'unit_prefix "agent" is used by another workspace' in done.stdout
    fleet.do("agents.start")
    rows = other.rows().values()
    assert {row["state"] for row in rows} == {"not installed"}
    assert all("is used by another workspace" in row["text"] for row in rows)
    assert {row["state"] for row in fleet.rows().values()} == {"running"}
    fleet.do("agents.stop")
    assert [line for line in fleet.files().splitlines() if "other" not in line] == [
        line for line in before.splitlines() if "other" not in line
    ]
    other.configure(TWO, unit_prefix="second")
    other.do("install")
    other.do("agents.start")
    assert {row["state"] for row in fleet.rows().values()} == {"stopped"}
    fleet.do("agents.start")
    assert {row["state"] for row in other.rows().values()} == {"running"}
    other.do("uninstall")
    assert {row["state"] for row in fleet.rows().values()} == {"running"}
    other.sh("rm -rf other other.inventory")


@pytest.mark.parametrize("started", ["", "{started}", "1"], ids=["no time", "true", "other time"])
def test_a_stale_or_reused_pid_fools_nobody(started: str) -> None:
    """A living process that is no worker of ours is neither counted, nor stopped, nor in the way.

    Not even one with the very start time that the pid file names.
    """
    fleet = Fleet(local, "pidfile")
    fleet.configure(TWO)
    fleet.do("install")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        found = process.stat(stranger.pid)
        assert found is not None
        text = f"{stranger.pid}\n{started.format(started=found.started)}\n"
        fleet.write("work/.agent-daemon-pids/builder.pid", text)
        try:
            row = fleet.rows()["builder"]
            assert (row["state"], row["pid"]) == ("failed", None)
            assert "builder: not running" in fleet.do("agents.stop")
            fleet.write("work/.agent-daemon-pids/builder.pid", text)
            assert "builder: started" in fleet.do("agents.start")
            assert fleet.rows()["builder"]["pid"] != stranger.pid
            assert "builder: restarted" in fleet.do("agents.restart")
            fleet.do("uninstall")
            assert stranger.poll() is None
        finally:
            stranger.kill()
