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

NAMES = ("web1", "web2", "web3")


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, FarHosts]]:
    """What several tests share, by the name of its fixture."""
    made: dict[str, FarHosts] = {}
    yield made
    if "running" in made:
        made["running"].do("uninstall")


@pytest.fixture
def bare(kept: dict[str, FarHosts], tmp_path_factory: pytest.TempPathFactory) -> FarHosts:
    """Three hosts with a workspace each, and nothing installed: each test leaves them so."""
    if "bare" not in kept:
        kept["bare"] = FarHosts(tmp_path_factory.mktemp("bare"), *NAMES)
    return kept["bare"]


@pytest.fixture
def running(kept: dict[str, FarHosts], tmp_path_factory: pytest.TempPathFactory) -> FarHosts:
    """Three hosts whose workers run, and do so after each test; web3 has two roles."""
    if "running" not in kept:
        kept["running"] = made = FarHosts(tmp_path_factory.mktemp("running"), *NAMES)
        made.write_hosts({"web1": {}, "web2": {}, "web3": {"run": ["builder", "tester"]}})
        made.do("install")
        made.do("agents.start")
    return kept["running"]


@pytest.fixture
def web1(tmp_path: Path) -> Iterator[FarHosts]:
    """One host, and nothing installed."""
    made = FarHosts(tmp_path, "web1")
    yield made
    if made.files("web1"):
        made.do("uninstall")


def test_an_unreachable_host_stops_no_other(running: FarHosts) -> None:
    """Exit status 4, its line and what to type; the others' lines are true, and so again later."""
    running.cut("web2")
    try:
        done = running.invoke("agents.status")
        assert done.returncode == 4
        assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [
            ["web1", "builder", "running"],
            ["web2", "unreachable", "web2"],
            ["web3", "builder", "running"],
            ["web3", "tester", "running"],
        ]
        assert "web2: error: " in done.stderr
        end = "1 of 3 hosts failed; look closer: ssh web2\n"
        assert done.stderr.endswith(end)
        for command in ("agents.restart", "doctor", "agents.logs"):
            done = running.invoke(command)
            assert done.returncode == 4, command
            assert "web2: error: " in done.stderr
            assert "web1" in done.stdout
            assert "web3" in done.stdout
        done = running.invoke("install", "--json")
        found = json.loads(done.stdout)
        assert done.returncode == 4
        assert [each["host"] for each in found] == ["web1", "web2", "web3"]
        assert [bool(each["error"]) for each in found] == [False, True, False]
    finally:
        running.heal("web2")
    assert running.invoke("agents.status").returncode == 0


def test_logs_follow_several_hosts(running: FarHosts) -> None:
    """Each line as it is said, under its host's name; an interruption ends the calls, too."""
    with running.start("agents.logs", "--follow", "--forks", "1") as typed:
        assert typed.stdout
        seen: set[str] = set()
        while len(seen) < len(NAMES):
            name, _, said = typed.stdout.readline().partition(": ")
            seen |= {name} if "started" in said else set()
        typed.send_signal(signal.SIGINT)
        typed.communicate(timeout=PATIENCE)
    assert seen == set(NAMES)
    calls = running.calls()[-len(NAMES) :]
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in calls), "no call is left")


def test_a_host_that_is_lost_is_told_while_the_others_are_followed(running: FarHosts) -> None:
    """At once, not when the person has had enough."""
    running.cut("web2")
    try:
        with running.start("agents.logs", "--follow") as typed:
            assert typed.stderr
            assert typed.stderr.readline().startswith("web2: ")
            assert typed.poll() is None
            typed.send_signal(signal.SIGINT)
            typed.communicate(timeout=PATIENCE)
    finally:
        running.heal("web2")


def test_the_life_of_a_fleet(tmp_path: Path) -> None:
    """Installed, started, seen, stopped and removed by one command each: nothing is left.

    Git leaves our paths alone, as ``invoke init`` has it on this machine: a worker that ran makes
    no untracked file.
    """
    hosts = FarHosts(tmp_path, "web1", "web2")
    before = [hosts.files(name) for name in hosts.names]
    said = hosts.do("install")
    release = next(word for word in said if "copy" in word).split()[-1]
    for name in hosts.names:
        assert any(each.startswith(f"{name}: changed ~/shop/.git/info/exclude") for each in said)
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
    assert hosts.do("agents.stop") == [f"{name}: builder: stopped" for name in hosts.names]
    listed = ["git", "-C", str(hosts.homes / "web1" / "shop"), "status", "--porcelain"]
    told = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert told == "?? .oodatcaa/\n"
    assert hosts.do("uninstall") == sorted(
        f"{name}: removed ~/{path}"
        for name in hosts.names
        for path in (".config/rolecall/agent.yml", ".local/share/rolecall/agent")
    )
    assert [hosts.files(name) for name in hosts.names] == before


def test_what_is_not_installed_is_told(bare: FarHosts) -> None:
    """Each command in its way, with its exit status."""
    limit = ("--limit", "web2")
    told = bare.invoke("agents.status", "--json", *limit)
    assert told.returncode == 3
    assert {row["state"] for row in json.loads(told.stdout)} == {"not installed"}
    assert bare.invoke("agents.start", *limit).returncode == 1
    said = bare.invoke("agents.logs", *limit).stderr
    assert "web2: error: Rolecall is not installed there" in said
    assert bare.do("agents.stop", *limit) == ["web2: builder: not running"]


def test_two_uninstalls_at_once_leave_nothing(web1: FarHosts) -> None:
    """One removes the code that the other runs: that one looks again, and has nothing to do."""
    before = [web1.files(name) for name in web1.names]
    web1.do("install")
    for each in [web1.start("uninstall") for _ in range(2)]:
        _, err = each.communicate(timeout=PATIENCE * 2)
        assert (each.returncode, err) == (0, "")
    assert [web1.files(name) for name in web1.names] == before


@pytest.mark.parametrize("what", ["daemon/fleet/workers.py", "daemon/fleet/onhost.py", ""])
def test_a_damaged_release_can_be_looked_at_and_stopped_and_removed(
    web1: FarHosts, what: str
) -> None:
    """By the operator's own, which leaves nothing there."""
    before = web1.files("web1")
    web1.do("install")
    web1.do("agents.start")
    (release,) = (web1.homes / "web1/.local/share/rolecall/agent/releases").iterdir()
    if what:
        (release / what).unlink()
        (release / what.replace("fleet/", "fleet/__pycache__/")).parent.rename(release / "gone")
    else:
        shutil.rmtree(release)
    assert {row["state"] for row in web1.rows().values()} == {"running"}
    assert web1.do("agents.stop") == ["web1: builder: stopped"]
    web1.do("uninstall")
    assert web1.files("web1") == before


def test_a_check_shows_the_files_and_leaves_nothing(bare: FarHosts) -> None:
    """On hosts that have nothing of Rolecall, as they would be there."""
    before = [bare.files(name) for name in bare.names]
    said = bare.do("install", "--check", "--diff", "--limit", "web2")
    assert "web2: would create ~/.config/rolecall/agent.yml" in said
    assert f'+  "workspace": "{bare.homes}/web2/shop",' in said
    assert any(line.startswith("web2: would copy release ") for line in said)
    assert [bare.files(name) for name in bare.names] == before


def test_a_clone_without_a_queue_is_told(bare: FarHosts) -> None:
    """And one that is missing, each with what to type."""
    home = bare.homes / "web1"
    queue = home / "shop/.oodatcaa/work/SPRINT_QUEUE.json"
    check = ("install", "--check", "--limit", "web1")
    (home / "shop").rename(home / "away")
    said = bare.do(*check)
    (home / "away").rename(home / "shop")
    assert f"web1: note: there is no {home}/shop: ssh web1 'git clone URL {home}/shop'" in said
    queue.rename(home / "away")
    said = bare.do(*check)
    (home / "away").rename(queue)
    assert any(line.endswith(f"then: ssh web1 'git -C {home}/shop pull'") for line in said)


def test_a_host_without_a_clone_joins_no_shared_queue(bare: FarHosts) -> None:
    """Its workers would take the tasks of others: an error, what to type, and nothing is left.

    Broken by the note that a missing clone is where the queue is a file: it was installed.
    """
    home = bare.homes / "web1"
    bare.write_hosts({name: {"queue": "postgresql://h.invalid/shop"} for name in bare.names})
    (home / "shop").rename(home / "away")
    before = bare.files("web1")
    try:
        for command in ("install", "deploy"):
            done = bare.invoke(command, "--limit", "web1")
            said = done.stdout + done.stderr
            assert done.returncode == 78, said
            assert f"ssh web1 'git clone REPOSITORY {home}/shop'" in said
            assert bare.files("web1") == before
            assert not (home / "shop").exists()
    finally:
        (home / "away").rename(home / "shop")
        bare.write_hosts({name: {} for name in bare.names})


def test_an_install_that_fails_leaves_nothing(bare: FarHosts) -> None:
    """The release that was sent is taken away again, with all that was made for it."""
    path = ".config/rolecall/agent.yml"
    foreign = bare.homes / "web1" / path
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine\n")
    before = bare.files("web1")
    done = bare.invoke("install", "--limit", "web1")
    assert done.returncode == 78
    assert "a file of that name that invoke install has not made" in done.stderr
    assert bare.files("web1") == before
    foreign.unlink()
    (bare.homes / "web1/.config/rolecall").rmdir()
    (bare.homes / "web1/.config").rmdir()


def test_uninstall_needs_no_release_on_the_host(web1: FarHosts) -> None:
    """What is left of an install goes, though its release was removed by hand."""
    before = web1.files("web1")
    web1.do("install", "--limit", "web1")
    shutil.rmtree(web1.homes / "web1/.local")
    assert web1.do("uninstall", "--limit", "web1") == ["web1: removed ~/.config/rolecall/agent.yml"]
    assert web1.files("web1") == before
    assert web1.do("uninstall", "--limit", "web1") == ["web1: nothing to do"]


def test_every_config_is_checked_before_any_host_is_asked(bare: FarHosts) -> None:
    """A mistake in one host's variables: all problems, and not one call."""
    asked = bare.calls()
    bare.write_hosts({"web1": {}, "web2": {"workspace": "shop"}, "web3": {"workspace": "src"}})
    done = bare.invoke("install")
    bare.write_hosts({name: {} for name in bare.names})
    assert done.returncode == 78
    assert (done.stderr.count("error: "), done.stdout) == (2, "")
    assert bare.calls() == asked


def test_doctor_needs_no_install(bare: FarHosts) -> None:
    """It looks at each host by this checkout's own code, and leaves nothing there."""
    before = bare.files("web1")
    limit = ("--limit", "web1,web3")
    done = bare.invoke("doctor", *limit)
    assert "web1\nok    python" in done.stdout
    assert "\n\nweb3\nok    python" in done.stdout or "\n\nweb1\nok    python" in done.stdout
    found = json.loads(bare.invoke("doctor", "--json", "--role", "builder", *limit).stdout)
    assert list(dict.fromkeys(each["host"] for each in found)) == ["web1", "web3"]
    assert bare.files("web1") == before
    wrong = bare.invoke("doctor", "--role", "bilder")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_an_unknown_role_is_told_before_any_host_is_asked(bare: FarHosts) -> None:
    """One error, not one of each host; of a role that some hosts run, they alone are asked."""
    asked = bare.calls()
    done = bare.invoke("agents.start", "--role", "bilder")
    assert (done.returncode, 'did you mean "builder"?' in done.stderr) == (2, True)
    assert bare.calls() == asked
    bare.write_hosts({"web1": {}, "web2": {"run": ["tester"]}, "web3": {"run": ["tester"]}})
    told = ["web2: tester: not running", "web3: tester: not running"]
    assert bare.do("agents.stop", "--role", "tester") == told
    assert len(bare.calls()) == len(asked) + 2
    wrong = bare.invoke("agents.stop", "--role", "tester", "--limit", "web1")
    told_of = "error: tester does not run on web1\nhint:  it runs on web2, web3\n"
    assert (wrong.returncode, wrong.stderr) == (2, told_of)
    bare.write_hosts({name: {} for name in NAMES})


def test_what_looks_at_this_machine_says_where_else_to_look(bare: FarHosts) -> None:
    """The queue of a host of ssh is read there."""
    done = bare.invoke("queue.list", "--limit", "web1")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {bare.inventory}: web1 is not this machine\n"
        "hint:  this command looks at the machine it runs on: what is there is a file, which may "
        "be edited at any time: ssh -t web1 'vi ~/shop/.oodatcaa/work/SPRINT_QUEUE.json'\n"
    )


def test_this_machine_and_others_are_one_fleet(web1: FarHosts, tmp_path: Path) -> None:
    """A local host is worked on beside those of ssh; its own checkout runs there."""
    web1.write_hosts({"here": {"ansible_connection": "local"}, "web1": {}})
    try:
        assert "here: created ~/.config/rolecall/agent.yml" in web1.do("install")
        assert web1.do("agents.start") == ["here: builder: started", "web1: builder: started"]
        assert not (tmp_path / ".local").exists()
        assert [row["state"] for row in web1.rows().values()] == ["running", "running"]
    finally:
        web1.do("uninstall")


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
