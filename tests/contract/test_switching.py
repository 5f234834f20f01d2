"""A host switched to another release, and back where that fails: by effect, on real workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import build
from tests.releases import DIES, EXITS, NEVER_READY, Copied, Edit

#: Works until it is told to end, and says once that it did.
PATIENT = "cat >/dev/null; echo $$ >agent.pid; until [ -e go ]; do sleep 0.05; done; echo >>ends"
QUIET = {"builder": {"script": "cat >/dev/null"}, "tester": {"script": "cat >/dev/null"}}
BUSY = {**QUIET, "builder": {"script": PATIENT, "timeout": 120}}


@pytest.fixture
def host(home: Path) -> Iterator[Copied]:
    made = Copied(home)
    made.configure(QUIET)
    yield made
    done = made.invoke("uninstall")
    assert done.returncode == 0, done.stderr


def did(result: dict[str, object]) -> list[tuple[str, str]]:
    workers = result["workers"]
    assert isinstance(workers, list)
    return [(each["role"], each["did"]) for each in workers]


def unlocked(host: Copied) -> list[str]:
    """Every file, with its time, but the lock, which says who had it last."""
    return [line for line in host.files().splitlines() if ".lock " not in line]


def test_a_first_deploy_starts_every_role(host: Copied) -> None:
    """What install would have written is there, and the workers stand in the release's folder."""
    first = host.release()
    result = host.deploy(first)
    assert (result["state"], result["before"], result["release"]) == ("deployed", None, first)
    assert did(result) == [("builder", "started"), ("tester", "started")]
    assert host.workers() == {"builder": first, "tester": first}
    assert host.links() == (first, None)
    assert host.files().count("agent.yml") == 1


def test_a_second_deploy_of_the_same_has_nothing_to_do(host: Copied) -> None:
    """The same pids; not a file has changed."""
    first = host.release()
    host.deploy(first)
    before, files = host.rows(), unlocked(host)
    result = host.deploy(first)
    assert (result["state"], result["changes"], did(result)) == ("nothing to do", [], [])
    assert {role: row["pid"] for role, row in host.rows().items()} == {
        role: row["pid"] for role, row in before.items()
    }
    assert unlocked(host) == files


def test_an_attempt_lives_through_a_deploy(host: Copied) -> None:
    """The same agent, under a new worker of the new release; its task ends once."""
    host.configure(BUSY)
    host.write_queue(build())
    first = host.release()
    host.deploy(first)
    agent = host.agent()
    second = host.release(version="2")
    result = host.deploy(second)
    assert (result["state"], result["before"], result["release"]) == ("deployed", first, second)
    assert did(result) == [("builder", "restarted"), ("tester", "restarted")]
    assert host.workers() == {"builder": second, "tester": second}
    assert host.links() == (second, first)
    assert host.alive(agent)
    host.sh("touch work/go")
    host.wait_status("ready_for_integrator")
    assert host.sh("cat work/ends") == "\n"


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (EXITS, "builder: not started\n  ended with exit status 1 before it was ready"),
        (DIES, "builder: died after it was ready"),
        (NEVER_READY, "builder: not started\n  not ready within"),
    ],
    ids=["exits", "dies", "never ready"],
)
def test_a_release_whose_workers_fail_is_put_back(host: Copied, edit: Edit, why: str) -> None:
    """Links, config and workers are the old ones; the attempt lives through all of it."""
    host.configure(BUSY)
    host.write_queue(build())
    first = host.release()
    host.deploy(first)
    second = host.release(edit)
    agent, config = host.agent(), host.sh("cat .config/rolecall/agent.yml")
    host.configure({**BUSY, "builder": {**BUSY["builder"], "heartbeat": 2}})
    result = host.deploy(second, settle=3)
    assert (result["state"], result["before"], result["release"]) == ("put back", first, first)
    assert result["problems"][0]["what"].startswith(why)
    assert host.workers() == {"builder": first, "tester": first}
    assert host.links() == (first, None)
    assert host.sh("cat .config/rolecall/agent.yml") == config
    assert not host.sh("ls .config/rolecall").count("deploying")
    assert host.alive(agent)
    host.sh("touch work/go")
    host.wait_status("ready_for_integrator")
    assert host.sh("cat work/ends") == "\n"


def test_a_first_deploy_that_fails_leaves_nothing(host: Copied) -> None:
    """But the release itself, so that it need not be copied again."""
    second = host.release(DIES)
    before = host.files()
    result = host.deploy(second, settle=3)
    assert (result["state"], result["release"]) == ("put back", None)
    assert host.links() == (None, None)
    assert {row["state"] for row in host.rows().values()} == {"not installed"}
    assert [line for line in host.files().splitlines() if ".config" in line] == []
    assert before.count("MANIFEST") == host.files().count("MANIFEST") == 1
