"""The LLM loop through real attempts, against a scripted provider."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import fakellm
from tests.fakellm import MARK, script
from tests.workspace import PATIENCE, QUICK, Workspace, wait_for

KEY = "sk-do-not-tell-123"
ENV = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with fakellm.served() as url:
        yield url


@pytest.fixture
def repository(ws: Workspace) -> Workspace:
    """A workspace that is a git repository with one commit."""
    commit = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "a",
    )
    for command in (("init", "-q"), commit):
        subprocess.run(["git", "-C", str(ws.path), *command], check=True)
    return ws


def configure(ws: Workspace, url: str, role: str = "builder", **more: Any) -> None:
    model = more.pop("model", "openai:gpt-5-mini")
    llm = {"base_url": url, "commands": [["bash", "-lc"]], "retries": 0, **more.pop("llm", {})}
    # Loading pydantic-ai takes seconds, and many of them on a busy machine.
    times = {**QUICK, "timeout": 120}
    ws.write_config(**{role: {**times, "agent": "llm", "model": model, "llm": llm, **more}})
    status = {"builder": "ready", "planner": "needs_plan"}[role]
    ws.write_queue({"id": "T1", "title": "Add a line", "status": status})


def once(ws: Workspace) -> str:
    """One pass; what it says of the task."""
    ran = ws.run("--once", env={**os.environ, **ENV})
    assert KEY not in ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def transcript(ws: Workspace) -> list[dict[str, Any]]:
    path = ws.path / ".agent-runs" / "T1" / "1" / "transcript.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_an_edit_moves_the_task_on(repository: Workspace, server: str) -> None:
    """On the task's own branch; the transcript is in the run's folder."""
    configure(repository, f"{server}/edit/v1")
    said = once(repository)
    assert repository.status() == "awaiting_test", said
    assert (repository.path / ".worktrees/T1/AGENT.txt").read_text() == f"{MARK}\n"
    assert not (repository.path / "AGENT.txt").exists()
    assert transcript(repository)[-1]["record"]["usage"]["output_tokens"] == 100


def test_a_planner_adds_tasks(repository: Workspace, server: str) -> None:
    """By its verdict, on the Anthropic wire."""
    task = {"id": "T2", "title": "Build it", "type": "Build"}
    verdict = {"outcome": "success", "note": "Planned.", "add_tasks": [task]}
    url = f"{server}/{script(('report_result', verdict))}"
    configure(repository, url, "planner", model="anthropic:claude-sonnet-5-5")
    said = once(repository)
    assert repository.status() == "planning_complete", said
    assert repository.task("T2")["title"] == "Build it"


@pytest.mark.parametrize(
    ("scenario", "status", "note"),
    [
        ("e401", "needs_manual", "refuses the key"),
        ("e429", "ready", "limit is reached"),
        ("refuse", "ready", "no evidence"),
    ],
)
def test_what_is_no_success_is_none(
    repository: Workspace, server: str, scenario: str, status: str, note: str
) -> None:
    """A 401 needs a person at once, a limit waits and counts nothing, a refusal is an error."""
    configure(repository, f"{server}/{scenario}/v1", model="openai-responses:gpt-5-mini")
    said = once(repository)
    assert repository.status() == status, said
    assert note in said
    assert repository.task().get("attempts", 0) == (1 if scenario == "refuse" else 0)


def test_a_timeout_ends_a_loop_that_waits_for_its_provider(
    repository: Workspace, server: str
) -> None:
    """An error, by the attempt's own clock; nothing is left."""
    configure(repository, f"{server}/stall/v1", timeout=6)
    said = once(repository)
    assert repository.status() == "ready", said
    assert "timed out after 6 s" in repository.task()["last_error"]
    assert repository.tree() == []


@pytest.mark.parametrize("scenario", ["stall", "spawn"])
def test_a_stop_ends_the_loop(repository: Workspace, server: str, scenario: str) -> None:
    """Whether it waits for its provider or for a command; nothing is counted, nothing is left."""
    configure(repository, f"{server}/{scenario}/v1", stop_budget=0)
    before = fakellm.Handler.requests[scenario]
    worker = repository.start("--role", "builder", env={**os.environ, **ENV})
    if scenario == "stall":
        wait_for(lambda: fakellm.Handler.requests[scenario] > before, "a request")
    else:
        wait_for(lambda: "time.sleep(976)" in commands(repository), "the command")
    worker.terminate()
    assert worker.wait(PATIENCE) == 0
    assert repository.status() == "ready"
    assert repository.task().get("attempts", 0) == 0
    assert repository.tree() == []
    assert transcript(repository)[-1]["record"]["note"] == "the run was stopped"


def commands(ws: Workspace) -> str:
    """The command lines of the attempt's tree."""
    found = []
    for pid in ws.tree():
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text())
        except OSError:
            continue
    return " ".join(found)
