"""``invoke deploy`` of the host that the command is typed on: it runs its checkout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet import LONG_AGENT, Fleet, build, local

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
