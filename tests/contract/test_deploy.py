"""``invoke deploy`` of the host that the command is typed on: it runs its checkout."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.farhosts import FarHosts
from tests.fleet import LONG_AGENT, Fleet, build, local
from tests.workspace import wait_for

ROLES: dict[str, dict[str, Any]] = {
    "builder": {"script": LONG_AGENT, "timeout": 120},
    "tester": {"script": "cat >/dev/null"},
}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    made = Fleet(local, "pidfile")
    made.configure(ROLES)
    made.write_queue(build())
    yield made
    made.do("agents.stop")
    made.do("uninstall")


def test_a_deploy_installs_starts_and_then_has_nothing_to_do(fleet: Fleet) -> None:
    """As a first command on a host, and typed again."""
    assert "would create" in fleet.do("deploy", "--check")
    said = fleet.do("deploy", "--settle", "0.5").splitlines()
    assert said[0].startswith("localhost: created ")
    assert said[1:3] == ["localhost: builder: started", "localhost: tester: started"]
    rows = fleet.rows()
    assert fleet.do("deploy") == "localhost: nothing to do\n"
    assert {role: row["pid"] for role, row in fleet.rows().items()} == {
        role: row["pid"] for role, row in rows.items()
    }


def test_workers_of_an_older_config_are_replaced(fleet: Fleet) -> None:
    """Though install has written the new one before; their attempts live on."""
    fleet.do("deploy", "--settle", "0.5")
    agent = fleet.agent()
    fleet.configure({**ROLES, "builder": {**ROLES["builder"], "heartbeat": 2}})
    fleet.do("install")
    said = fleet.do("deploy", "--settle", "0.5")
    assert said == "localhost: builder: restarted\nlocalhost: tester: restarted\n"
    assert fleet.alive(agent)
    assert fleet.do("deploy") == "localhost: nothing to do\n"


def test_a_config_that_no_worker_starts_with_is_put_back(fleet: Fleet) -> None:
    """The old one runs again, its attempt has lived through it, and all of it is told."""
    fleet.do("deploy", "--settle", "0.5")
    agent, config = fleet.agent(), fleet.sh("cat .config/rolecall/agent.yml")
    fleet.write("work.env", "TOKEN=123456\n")
    fleet.sh("chmod 644 work.env")
    fleet.configure({**ROLES, "tester": {**ROLES["tester"], "env_file": "~/work.env"}})
    done = fleet.invoke("deploy", "--settle", "0.5")
    assert done.returncode == 1
    assert "localhost: put back: what was there runs again\n" in done.stdout
    assert "localhost: error: tester: not started\n" in done.stderr
    assert "work.env" in done.stderr
    assert done.stderr.splitlines()[-2] == "put back: localhost"
    assert fleet.sh("cat .config/rolecall/agent.yml") == config
    assert {row["state"] for row in fleet.rows().values()} == {"running"}
    assert fleet.alive(agent)
    (facts,) = json.loads(fleet.invoke("deploy", "--settle", "0.5", "--json").stdout)
    assert (facts["state"], facts["release"]) == ("put back", None)
    assert facts["error"].startswith("error: tester: not started")


def test_a_batch_goes_to_its_end_and_the_next_one_is_not_begun(tmp_path: Path) -> None:
    """Two hosts at a time, and one of the first two fails: each host's state, in words and JSON.

    Mended and typed again, the rest is done, and the host that was done has nothing to do.
    """
    hosts = FarHosts(tmp_path, "web1", "web2", "web3")
    role = {"agent": "command", "command": ["cat"], "env_file": "~/work.env"}
    hosts.configure(roles={"builder": role})
    for name in hosts.names:
        (hosts.homes / name / "work.env").write_text("TOKEN=123456\n")
        (hosts.homes / name / "work.env").chmod(0o600)
    closed = hosts.homes / "web2" / "work.env"
    closed.chmod(0o644)
    before = hosts.files("web3")
    options = ("deploy", "--serial=2", "--settle=0.5")
    done = hosts.invoke(*options)
    assert done.returncode == 1
    assert "web1: builder: started" in done.stdout
    assert "web2: put back: all is as it was" in done.stdout
    assert "web3: " not in done.stdout
    assert "web2: error: builder: not started" in done.stderr
    assert "done: web1; put back: web2; not touched: web3" in done.stderr.splitlines()
    assert hosts.files("web3") == before
    again = hosts.invoke(*options, "--json")
    assert again.returncode == 1
    assert {each["host"]: each["state"] for each in json.loads(again.stdout)} == {
        "web1": "nothing to do",
        "web2": "put back",
        "web3": "deployed",
    }
    closed.chmod(0o600)
    assert hosts.do(*options)[0] == "web1: nothing to do"
    assert {row["state"] for row in hosts.rows().values()} == {"running"}
    hosts.do("uninstall")


def test_a_deploy_that_was_cut_short_is_told(fleet: Fleet) -> None:
    """By status, for a person and a program, and by doctor; not while it is at work."""
    fleet.do("deploy", "--settle", "0.5")
    before = fleet.rows()
    fleet.configure({**ROLES, "builder": {**ROLES["builder"], "heartbeat": 2}})
    typed = fleet.typed("deploy", "--settle", "60")
    with subprocess.Popen(
        ["sh", "-c", f"cd; {typed.replace('env', 'exec env', 1)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        wait_for(
            lambda: all(
                each["state"] == "running" and each["pid"] != before[role]["pid"]
                for role, each in fleet.rows().items()
            ),
            "all have handed over",
        )
        assert {row["deploy_cut_short"] for row in fleet.rows().values()} == {None}
        running.kill()
    assert all(row["deploy_cut_short"] for row in fleet.rows().values())
    told = " was cut short: invoke deploy goes on with it"
    (line,) = (each for each in fleet.do("agents.status").splitlines() if told in each)
    assert line.startswith("localhost: the deploy of 20")
    assert "deploy goes on with it" in fleet.invoke("doctor").stdout
    fleet.do("deploy", "--settle", "0.5")
    assert told not in fleet.do("agents.status")
