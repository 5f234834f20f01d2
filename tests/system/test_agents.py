"""Real agent CLIs, run by the daemon, against a scripted LLM on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.model import parse_time
from tests import agentclis
from tests.fakellm import FILE, MARK, RESETS_IN, served
from tests.workspace import PATIENCE, Workspace, wait_for

CLIS = ("claude", "codex", "opencode")
SLOW = 120  # seconds; opencode alone wants six of a processor of its own to start


@pytest.fixture(scope="module")
def llm() -> Iterator[str]:
    with served() as url:
        yield url


class Stand:
    """A workspace in which one CLI builds, and talks to the LLM of one scenario."""

    def __init__(self, ws: Workspace, cli: str, url: str) -> None:
        if why := agentclis.missing(cli):
            pytest.skip(why)
        self.ws, self.cli, self.url = ws, cli, url
        agentclis.prepare_home(Path(os.environ["HOME"]))
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("commit", "--quiet", "--allow-empty", "--message=First")

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=T", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(self.ws.path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def ready(self, scenario: str, timeout: float, *names: str) -> dict[str, str]:
        """Write the config and the queue; returns the environment that a worker needs."""
        role = agentclis.role(self.cli, f"{self.url}/{scenario}")
        role |= {"timeout": timeout, "stop_budget": 0}
        self.ws.write_config(**dict.fromkeys(names or ("builder",), role))
        self.ws.write_queue({"id": "T1", "title": "A line", "type": "Build", "status": "ready"})
        temporary = self.ws.path / "tmp"
        temporary.mkdir(exist_ok=True)  # they leave files there
        return {**os.environ, "PATH": agentclis.path(), "TMPDIR": str(temporary)}

    def attempt(self, scenario: str, timeout: float = SLOW) -> str:
        """One attempt at the task; the status that it has then. No process may be left."""
        worker = self.ws.start("--role", "builder", "--once", env=self.ready(scenario, timeout))
        worker.wait(2 * SLOW)
        assert self.ws.tree() == []
        return self.ws.status()


@pytest.fixture(params=CLIS)
def stand(request: pytest.FixtureRequest, ws: Workspace, llm: str) -> Stand:
    return Stand(ws, request.param, llm)


def test_an_edit_moves_the_task_on(stand: Stand) -> None:
    """With the CLI's own tools, on the task's branch alone, and without a question to anybody.

    What it spent is in the run's result.json.
    """
    assert stand.attempt("edit") == "awaiting_test", stand.ws.log()
    assert stand.git("show", f"agent/T1:{FILE}") == f"{MARK}\n"
    assert not (stand.ws.path / FILE).exists()
    verdict = json.loads((stand.ws.path / ".agent-runs/T1/1/result.json").read_text())
    assert verdict["outcome"] == "success"
    assert verdict["usage"]["input_tokens"] >= 2000, "two turns of a thousand tokens"
    assert verdict["usage"]["output_tokens"] >= 100
    assert verdict["session"]


def test_its_tools_are_ended_with_it(stand: Stand) -> None:
    """In whatever sessions and groups the CLI has started them."""
    environment = stand.ready("spawn", timeout=SLOW)
    worker = stand.ws.start("--role", "builder", "--once", env=environment)
    spawned = stand.ws.path / ".worktrees" / "T1" / "spawned"
    wait_for(spawned.exists, f"a tool run of {stand.cli}", SLOW)
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
    assert stand.ws.tree() == []
    assert (stand.ws.status(), stand.ws.task().get("attempts")) == ("ready", None)


@pytest.mark.parametrize("stand", ["claude", "codex"], indirect=True)
def test_a_provider_that_does_not_answer_is_no_success(stand: Stand) -> None:
    """By our own clock: claude exits 0 when it is ended, and tells of success."""
    assert stand.attempt("stall", timeout=2) == "ready"
    assert "timed out" in stand.ws.task()["last_error"]


@pytest.mark.parametrize("stand", ["claude", "codex"], indirect=True)
def test_a_usage_limit_is_waited_for(stand: Stand) -> None:
    """Until the time that the CLI tells; it counts as no attempt."""
    began = time.time()
    assert stand.attempt("limit") == "ready", stand.ws.log()
    task = stand.ws.task()
    wait = (parse_time(task["not_before"]) or 0) - began
    assert abs(wait - RESETS_IN) < 120, task
    assert not task.get("attempts")


@pytest.mark.parametrize("stand", ["claude"], indirect=True)
def test_a_key_that_is_not_accepted_needs_a_person(stand: Stand) -> None:
    """At once: no second attempt would fare better."""
    assert stand.attempt("e401") == "needs_manual", stand.ws.log()
    assert "401" in stand.ws.task()["last_error"]


@pytest.mark.parametrize("stand", ["codex"], indirect=True)
def test_a_refusal_is_no_success(stand: Stand) -> None:
    """Though the CLI itself is content, and exits 0."""
    assert stand.attempt("refuse") == "ready", stand.ws.log()
    assert "no evidence" in stand.ws.task()["last_error"]


@pytest.mark.parametrize("stand", ["codex"], indirect=True)
def test_a_sprint_goes_through(stand: Stand) -> None:
    """From a story to the end of what its plan has added, each role by the same CLI."""
    roles = ("planner", "builder", "tester", "refiner", "integrator")
    environment = stand.ready("work", SLOW, *roles)
    stand.ws.write_queue({"id": "S1", "title": "Two", "type": "Story", "status": "needs_plan"})
    assert stand.ws.start("--drain", env=environment).wait(2 * SLOW) == 0, stand.ws.log()
    found = {task["id"]: task["status"] for task in stand.ws.document()["tasks"]}
    assert found == {"S1": "done", "S1-B1": "done"}, stand.ws.log()
