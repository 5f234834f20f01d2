"""Every fleet command over hosts that ssh reaches, with the real far side of each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.farhosts import FarHosts
from tests.fleet import LONG_AGENT
from tests.workspace import PATIENCE, wait_for


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[FarHosts]:
    """Three hosts with a workspace each, and nothing installed."""
    made = FarHosts(tmp_path, "web1", "web2", "web3")
    yield made
    done = made.invoke("uninstall")
    assert done.returncode == 0, done.stderr


def test_the_life_of_a_fleet(hosts: FarHosts) -> None:
    """Installed, started, seen, stopped and removed by one command each: nothing is left."""
    before = [hosts.files(name) for name in hosts.names]
    release = next(word for word in hosts.do("install") if "copy" in word).split()[-1]
    assert [hosts.do("install")] == [[f"{name}: nothing to do" for name in hosts.names]]
    assert hosts.do("agents.start") == [f"{name}: builder: started" for name in hosts.names]
    rows = hosts.rows()
    assert list(rows) == [(name, "builder") for name in hosts.names]
    for (name, _), row in rows.items():
        assert row["state"] == "running"
        place = hosts.homes / name / ".local/share/rolecall/agent/releases" / release
        assert os.readlink(f"/proc/{row['pid']}/cwd") == str(place)
    assert hosts.do("install") == [f"{name}: nothing to do" for name in hosts.names]
    assert hosts.rows() == rows
    assert {(row["release"], row["outdated"]) for row in rows.values()} == {(release, False)}
    assert hosts.do("agents.restart") == [f"{name}: builder: restarted" for name in hosts.names]
    assert all(hosts.rows()[key]["pid"] != row["pid"] for key, row in rows.items())
    logs = hosts.do("agents.logs")
    assert all(
        any(f"{name}: " in line and "started" in line for line in logs) for name in hosts.names
    )
    assert hosts.do("agents.stop") == [f"{name}: builder: stopped" for name in hosts.names]
    assert hosts.do("uninstall") == sorted(
        f"{name}: removed ~/{path}"
        for name in hosts.names
        for path in (".config/rolecall/agent.yml", ".local/share/rolecall/agent")
    )
    assert [hosts.files(name) for name in hosts.names] == before
    assert {row["state"] for row in hosts.rows().values()} == {"not installed"}
    assert hosts.invoke("agents.status").returncode == 3
    assert hosts.invoke("agents.start").returncode == 1
    assert "web2: error: Rolecall is not installed there" in hosts.invoke("agents.logs").stderr
    assert hosts.do("agents.stop") == [f"{name}: builder: not running" for name in hosts.names]


def test_a_check_shows_the_files_and_leaves_nothing(hosts: FarHosts) -> None:
    """On hosts that have nothing of Rolecall, as they would be there."""
    before = [hosts.files(name) for name in hosts.names]
    said = hosts.do("install", "--check", "--diff", "--limit", "web2")
    assert "web2: would create ~/.config/rolecall/agent.yml" in said
    assert f'+  "workspace": "{hosts.homes}/web2/shop",' in said
    assert any(line.startswith("web2: would copy release ") for line in said)
    assert [hosts.files(name) for name in hosts.names] == before


def test_an_install_that_fails_leaves_nothing(hosts: FarHosts) -> None:
    """The release that was sent is taken away again, with all that was made for it."""
    path = ".config/rolecall/agent.yml"
    foreign = hosts.homes / "web1" / path
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine\n")
    before = hosts.files("web1")
    done = hosts.invoke("install", "--limit", "web1")
    assert done.returncode == 78
    assert "a file of that name that invoke install has not made" in done.stderr
    assert hosts.files("web1") == before
    foreign.unlink()
    (hosts.homes / "web1/.config/rolecall").rmdir()
    (hosts.homes / "web1/.config").rmdir()


def test_uninstall_needs_no_release_on_the_host(hosts: FarHosts) -> None:
    """What is left of an install goes, though its release was removed by hand."""
    before = hosts.files("web1")
    hosts.do("install", "--limit", "web1")
    shutil.rmtree(hosts.homes / "web1/.local")
    assert hosts.do("uninstall", "--limit", "web1") == [
        "web1: removed ~/.config/rolecall/agent.yml"
    ]
    assert hosts.files("web1") == before
    assert hosts.do("uninstall", "--limit", "web1") == ["web1: nothing to do"]


def test_a_clone_without_a_queue_is_told(hosts: FarHosts) -> None:
    """And one that is missing, each with what to type."""
    home = hosts.homes / "web1"
    (home / "shop").rename(home / "away")
    said = hosts.do("install", "--limit", "web1")
    assert f"web1: note: there is no {home}/shop: ssh web1 'git clone URL {home}/shop'" in said
    (home / "away").rename(home / "shop")
    (home / "shop/.oodatcaa/work/SPRINT_QUEUE.json").unlink()
    said = hosts.do("install", "--limit", "web1")
    assert any(line.endswith(f"then: ssh web1 'git -C {home}/shop pull'") for line in said)


def test_git_leaves_our_paths_alone(hosts: FarHosts) -> None:
    """As ``invoke init`` has it on this machine: a worker that ran makes no untracked file."""
    said = hosts.do("install", "--limit", "web1")
    assert any(line.startswith("web1: changed ~/shop/.git/info/exclude") for line in said)
    hosts.do("agents.start", "--limit", "web1")
    shop = str(hosts.homes / "web1" / "shop")
    listed = ["git", "-C", shop, "status", "--porcelain"]
    told = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert told == "?? .oodatcaa/\n"


def test_an_unreachable_host_stops_no_other(hosts: FarHosts) -> None:
    """Exit status 4, its line and what to type; the others' lines are true, and so again later."""
    hosts.do("install")
    hosts.do("agents.start")
    hosts.cut("web2")
    try:
        done = hosts.invoke("agents.status")
        assert done.returncode == 4
        assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [
            ["web1", "builder", "running"],
            ["web2", "unreachable", "web2"],
            ["web3", "builder", "running"],
        ]
        assert "web2: error: " in done.stderr
        end = "1 of 3 hosts failed; look closer: invoke doctor --limit web2\n"
        assert done.stderr.endswith(end)
        for command in ("install", "agents.restart", "doctor", "agents.logs"):
            done = hosts.invoke(command)
            assert done.returncode == 4, command
            assert "web2: error: " in done.stderr
            assert "web1" in done.stdout
            assert "web3" in done.stdout
        found = json.loads(hosts.invoke("install", "--json").stdout)
        assert [each["host"] for each in found] == ["web1", "web2", "web3"]
        assert [bool(each["error"]) for each in found] == [False, True, False]
    finally:
        hosts.heal("web2")
    assert hosts.invoke("agents.status").returncode == 0


def test_every_config_is_checked_before_any_host_is_asked(hosts: FarHosts) -> None:
    """A mistake in one host's variables: all problems, and not one call."""
    hosts.write_hosts({"web1": {}, "web2": {"workspace": "shop"}, "web3": {"workspace": "src"}})
    done = hosts.invoke("install")
    hosts.write_hosts({name: {} for name in hosts.names})
    assert done.returncode == 78
    assert (done.stderr.count("error: "), done.stdout) == (2, "")
    assert not (hosts.homes / "calls").exists()


def test_doctor_needs_no_install(hosts: FarHosts) -> None:
    """It looks at each host by this checkout's own code, and leaves nothing there."""
    before = hosts.files("web1")
    done = hosts.invoke("doctor", "--limit", "web1,web3")
    assert "web1\nok    python" in done.stdout
    assert "\n\nweb3\nok    python" in done.stdout or "\n\nweb1\nok    python" in done.stdout
    found = json.loads(hosts.invoke("doctor", "--json", "--role", "builder").stdout)
    assert list(dict.fromkeys(each["host"] for each in found)) == ["web1", "web2", "web3"]
    assert hosts.files("web1") == before
    wrong = hosts.invoke("doctor", "--role", "bilder")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_an_unknown_role_is_told_before_any_host_is_asked(hosts: FarHosts) -> None:
    """One error, not one of each host; a role that some hosts run is theirs alone."""
    done = hosts.invoke("agents.start", "--role", "bilder")
    assert (done.returncode, 'did you mean "builder"?' in done.stderr) == (2, True)
    assert not (hosts.homes / "calls").exists()
    hosts.write_hosts({"web1": {}, "web2": {"run": ["tester"]}, "web3": {"run": ["tester"]}})
    hosts.do("install")
    told = ["web2: tester: started", "web3: tester: started"]
    assert hosts.do("agents.start", "--role", "tester") == told
    wrong = hosts.invoke("agents.start", "--role", "tester", "--limit", "web1")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: tester does not run on web1\nhint:  it runs on web2, web3\n",
    )
    assert hosts.do("agents.start", "--limit", "web1") == ["web1: builder: started"]


def test_what_looks_at_this_machine_says_where_else_to_look(hosts: FarHosts) -> None:
    """The queue of a host of ssh is read there."""
    done = hosts.invoke("queue.list", "--limit", "web1")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {hosts.inventory}: web1 is not this machine\n"
        "hint:  this command looks at the machine it runs on: what is there is a file, which may "
        "be edited at any time: ssh -t web1 'vi ~/shop/.oodatcaa/work/SPRINT_QUEUE.json'\n"
    )


def test_this_machine_and_others_are_one_fleet(hosts: FarHosts, tmp_path: Path) -> None:
    """A local host is worked on beside those of ssh; its own checkout runs there."""
    hosts.write_hosts({"here": {"ansible_connection": "local"}, "web1": {}})
    try:
        assert "here: created ~/.config/rolecall/agent.yml" in hosts.do("install")
        assert hosts.do("agents.start") == ["here: builder: started", "web1: builder: started"]
        assert not (tmp_path / ".local").exists()
        assert [row["state"] for row in hosts.rows().values()] == ["running", "running"]
    finally:
        hosts.do("uninstall")


def test_logs_follow_several_hosts(hosts: FarHosts) -> None:
    """Each line as it is said, under its host's name; an interruption ends the calls, too."""
    hosts.do("install")
    hosts.do("agents.start")
    with hosts.start("agents.logs", "--follow", "--forks", "1") as typed:
        assert typed.stdout
        seen: set[str] = set()
        while len(seen) < len(hosts.names):
            seen.add(typed.stdout.readline().partition(":")[0])
        typed.send_signal(signal.SIGINT)
        typed.communicate(timeout=PATIENCE)
    assert seen == set(hosts.names)
    calls = [int(pid) for pid in (hosts.homes / "calls").read_text().split()[-3:]]
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in calls), "no call is left")


def test_a_host_that_is_lost_is_told_while_the_others_are_followed(hosts: FarHosts) -> None:
    """At once, not when the person has had enough."""
    hosts.do("install")
    hosts.do("agents.start")
    (hosts.homes / "web2").rename(hosts.homes / "away")
    try:
        with hosts.start("agents.logs", "--follow") as typed:
            assert typed.stderr
            assert typed.stderr.readline().startswith("web2: ")
            typed.send_signal(signal.SIGINT)
            typed.communicate(timeout=PATIENCE)
    finally:
        (hosts.homes / "away").rename(hosts.homes / "web2")


def test_a_stop_that_is_interrupted_is_done_all_the_same(tmp_path: Path) -> None:
    """Ctrl-C ends the waiting, at once; what the host has begun it does to its end."""
    hosts = FarHosts(tmp_path, "web1", script=LONG_AGENT)
    hosts.configure(
        roles={
            "builder": {"agent": "command", "command": ["sh", "-c", LONG_AGENT], "stop_budget": 3}
        }
    )
    shop = hosts.homes / "web1" / "shop"
    queue = shop / ".oodatcaa/work/SPRINT_QUEUE.json"
    task = {"id": "T1", "title": "a task", "type": "Build", "status": "ready"}
    queue.write_text(json.dumps({"tasks": [task]}))
    hosts.do("install")
    hosts.do("agents.start")
    agent = int(
        wait_for(
            lambda: (shop / "agent.pid").exists() and (shop / "agent.pid").read_text(), "agent"
        )
    )
    with hosts.start("agents.stop") as typed:
        assert typed.stderr
        assert typed.stderr.readline() == "web1: builder: waits up to 3 s for T1\n"
        began = time.monotonic()
        typed.send_signal(signal.SIGINT)
        typed.communicate(timeout=PATIENCE)
    assert typed.returncode == 130
    assert time.monotonic() - began < 3
    wait_for(lambda: not os.path.exists(f"/proc/{agent}"), "the agent has ended")
    wait_for(lambda: hosts.rows()["web1", "builder"]["state"] == "stopped", "the stop is done")
    assert json.loads(queue.read_text())["tasks"][0]["status"] == "ready"
    hosts.do("uninstall")
