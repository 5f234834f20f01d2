"""People's commands on a queue on PostgreSQL, as they are typed; and a sprint from start to end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daemon.errors import EXIT_CONFIG
from daemon.fleet import here, orphans
from daemon.fleet.connection import Local
from daemon.lifecycle import DEFAULT_ROLES
from daemon.model import Outcome, Result
from daemon.queue import Queue
from daemon.queue.opening import open_queue
from tests.console import Operator
from tests.queues import FAR
from tests.workspace import PATIENCE, QUICK, ROOT, wait_for

LINES = (
    "queue.list",
    "queue.add --title Till --priority 2",
    "queue.add --json {more}",
    "queue.list",
    "queue.list --json",
    "queue.list --board",
    "queue.list --standing claimable --json",
    "queue.show S-1",
    "queue.show S-1 --json",
    "queue.show T9",
    "queue.check",
    "queue.check --json",
    "prompt T1",
    "queue.retry T2",
    "queue.retry T1",
    "queue.retry all --standing parked",
    "queue.release T1",
    "queue.cancel T3",
    "queue.cancel T9",
    "queue.add --title again --id T1",
    "queue.import {more}",
    "queue.import {other}",
    "queue.import {more} --replace",
    "queue.list --json",
    "queue.export --to {more}",
    "budget --json",
    "budget",
    "agents.status",
    "agents.status --json",
)
#: What is refused, or 3 of ``agents.status``: nothing is installed.
FAILING = {
    "queue.show T9",
    "queue.release T1",
    "queue.cancel T9",
    "queue.add --title again --id T1",
    "queue.import {more}",
    "queue.import {other}",
    "queue.export --to {more}",
    "agents.status",
    "agents.status --json",
}
MORE: list[dict[str, Any]] = [
    {"id": "T1", "title": "Fix", "type": "Build", "status": "ready", "own": {"a": [1, 1.0, None]}},
    {"id": "S-1", "title": "Plan", "type": "Story", "dependencies": ["T1"]},
    {"id": "T2", "title": "Ask", "status": "needs_manual", "last_error": "what?"},
    {"id": "T3", "title": "In", "status": "ready", "parent": "S-1", "subtasks": [{"id": "T3.1"}]},
]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
BUILDER = {**QUICK, "agent": "command", "command": ["sh", "-c", "cat >/dev/null; exec sleep 600"]}


def made(path: Path, **variables: Any) -> Operator:
    """A person whose inventory names one repository."""
    path.mkdir(exist_ok=True)
    operator = Operator(path, **variables)
    host = operator.inventory / "host_vars" / "localhost.yml"
    host.write_text(f"workspace: {operator.workspace}\n")
    return operator


@pytest.fixture
def operator(tmp_path: Path, database: str) -> Operator:
    """One whose queue is on PostgreSQL, and made."""
    roles = {**{name: {} for name in DEFAULT_ROLES}, "builder": BUILDER}
    operator = made(tmp_path / "mine", queue=database, roles=roles)
    assert operator.invoke("queue.init").returncode == 0
    return operator


def queue_of(operator: Operator, far: bool = False) -> Queue:  # noqa: FBT001, FBT002  # whose eyes
    """The queue as this host sees it, or another one."""
    config = here.fleet(str(operator.inventory)).config()
    return open_queue(config, me=FAR if far else None)


def typed(operator: Operator, *words: str) -> subprocess.Popen[str]:
    """A command that is being waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=operator.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_each_command_answers_as_on_a_file(tmp_path: Path, database: str) -> None:
    """The same words, the same JSON, the same exit status; the URL in place of the path."""
    said: list[list[tuple[str, int, str, str]]] = []
    for name, queue in (("file", {}), ("base", {"queue": database})):
        operator = made(tmp_path / name, **queue)
        operator.init()
        if queue:
            assert operator.invoke("queue.init").returncode == 0
        files = {each: str(tmp_path / name / f"{each}.json") for each in ("more", "other")}
        Path(files["more"]).write_text(json.dumps({"tasks": MORE}))
        Path(files["other"]).write_text(json.dumps({"tasks": [{**MORE[0], "title": "other"}]}))
        answers = []
        for line in LINES:
            done = operator.invoke(*line.format(**files).split())
            both = [
                MOMENT.sub("THEN", text)
                .replace(str(operator.queue), "QUEUE")
                .replace(database, "QUEUE")
                .replace(str(tmp_path / name), "HOME")
                for text in (done.stdout, done.stderr)
            ]
            answers.append((line, done.returncode, *both))
        said.append(answers)  # type: ignore[arg-type]
        exported = json.loads(operator.invoke("queue.export").stdout)
        assert json.dumps(exported["tasks"]) == json.dumps(MORE)
    for on_file, on_postgres in zip(*said, strict=True):
        assert on_postgres == on_file
    failed = {line for line, status, *_ in said[0] if status}
    assert failed == FAILING


@pytest.mark.parametrize(
    ("command", "status", "word"),
    [("cancel", "cancelled", "cancelled"), ("release", "ready", "released")],
)
def test_an_attempt_on_another_host_hears_of_it_when_it_renews(
    operator: Operator, command: str, status: str, word: str
) -> None:
    """The command waits until the attempt has settled, and says what the task is then."""
    operator.invoke("queue.add", "--title", "x", "--id", "T1")
    far = queue_of(operator, far=True)
    claim = far.claim("builder", "far:builder")
    assert claim
    waiting = typed(operator, "invoke", f"queue.{command}", "T1")
    wait_for(lambda: far.renew(claim.lease).wish == command, "the wish in the lease")
    assert waiting.poll() is None
    far.settle(far.renew(claim.lease), Result(Outcome.RELEASED, "asked"))
    far.close()
    told, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 0, told
    assert f"T1: {word}: its attempt has ended, the task is {status}\n" in told


def test_a_lease_that_ran_out_far_away_is_no_reason_to_wait(operator: Operator) -> None:
    """Nobody will renew it: what is asked is done at once."""
    every = json.loads(operator.variables.read_text())
    every["roles"]["builder"] |= {"lease_ttl": 0.5, "heartbeat": 0.1}
    operator.variables.write_text(json.dumps(every))
    operator.invoke("queue.add", "--title", "x", "--id", "T1")
    far = queue_of(operator, far=True)
    claim = far.claim("builder", "far:builder")
    assert claim
    far.close()
    near = queue_of(operator)
    wait_for(lambda: (lease := near.read_lease("T1")) and near.gone(lease), "its end")
    near.close()
    done = operator.invoke("queue.cancel", "T1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "T1: in_progress -> cancelled: cancelled by " in done.stdout


@pytest.mark.parametrize(("command", "status"), [("cancel", "cancelled"), ("release", "ready")])
def test_an_attempt_on_this_host_ends_at_once(
    operator: Operator, command: str, status: str
) -> None:
    """Its tree is dead when the command returns, and its worker has nothing to complain of."""
    operator.invoke("queue.add", "--title", "x", "--id", "T1")
    worker = typed(operator, "daemon", "--once", "--role", "builder")
    near = queue_of(operator)
    wait_for(lambda: near.read_lease("T1"), "a lease")
    wait_for(lambda: list(operator.workspace.glob(".agent-runs/T1/1/stdout.log")), "its agent")
    done = operator.invoke(f"queue.{command}", "T1")
    assert done.returncode == 0, done.stderr
    assert f"its attempt has ended, the task is {status}" in done.stdout
    assert near.read_lease("T1") is None
    near.close()
    told, _ = worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 0, told


def test_an_attempt_of_another_workspace_of_this_machine_is_not_ours_to_end(
    operator: Operator, tmp_path: Path, database: str
) -> None:
    """While it is frozen nothing is settled for it; it hears of the wish when it renews.

    Neither does a stop of our workers end it. Broken by taking every process here for ours.
    """
    roles = {**{name: {} for name in DEFAULT_ROLES}, "builder": {**BUILDER, "lease_ttl": 120}}
    operator.variables.write_text(
        json.dumps({**json.loads(operator.variables.read_text()), "roles": roles})
    )
    other = made(tmp_path / "theirs", queue=database, roles=roles)
    operator.invoke("queue.add", "--title", "x", "--id", "T1")
    worker = typed(other, "daemon", "--once", "--role", "builder")
    near = queue_of(operator)
    wait_for(lambda: list(other.workspace.glob(".agent-runs/T1/1/stdout.log")), "its agent")
    lease = near.read_lease("T1")
    assert lease
    worker.kill()
    wait_for(lambda: worker.poll() is not None, "the worker's end")
    assert orphans.end(Local("localhost"), near.config, ["builder"]) == {}
    os.kill(lease.pid, signal.SIGSTOP)
    try:
        done = operator.invoke("queue.release", "T1")
        held = near.read_lease("T1")
    finally:
        os.kill(lease.pid, signal.SIGCONT)
    assert done.returncode == 1, done.stdout
    assert "T1: its attempt on " in done.stderr
    assert "it ends when it renews its lease" in done.stderr
    assert held
    assert (held.token, held.wish) == (lease.token, "release")
    wait_for(lambda: near.read_lease("T1") is None, "its hearing of it")
    near.close()
    worker.communicate(timeout=PATIENCE)


def test_a_worker_that_stops_leaves_another_workspace_s_attempt_alone(
    operator: Operator, tmp_path: Path, database: str
) -> None:
    """Both have one host's name and one role, and so one owner in their leases.

    Broken by going by the owner alone: it was ended.
    """
    roles = {**{name: {} for name in DEFAULT_ROLES}, "builder": {**BUILDER, "stop_budget": 0.2}}
    operator.variables.write_text(
        json.dumps({**json.loads(operator.variables.read_text()), "roles": roles})
    )
    other = made(tmp_path / "theirs", queue=database, roles=roles)
    operator.invoke("queue.add", "--title", "x", "--id", "T1")
    theirs = typed(other, "daemon", "--role", "builder")
    near = queue_of(operator)
    wait_for(lambda: list(other.workspace.glob(".agent-runs/T1/1/stdout.log")), "its agent")
    lease = near.read_lease("T1")
    pid_file = tmp_path / "ours.pid"
    ours = typed(operator, "daemon", "--role", "builder", "--pid-file", str(pid_file))
    try:
        wait_for(pid_file.exists, "our worker")
        ours.terminate()
        told, _ = ours.communicate(timeout=PATIENCE)
        held = near.read_lease("T1")
    finally:
        theirs.terminate()
        theirs.communicate(timeout=PATIENCE)
    assert ours.returncode == 0, told
    assert " T1:" not in told  # a time of day may have T1
    assert lease
    assert held
    assert (held.token, held.pid) == (lease.token, lease.pid)
    assert near.read_lease("T1") is None
    near.close()


def test_a_rehearsal_of_a_claim_changes_nothing(operator: Operator) -> None:
    """``--dry-run`` says what would be claimed."""
    operator.invoke("queue.add", "--title", "x", "--id", "T1")
    before = operator.invoke("queue.export").stdout
    told, _ = typed(operator, "daemon", "--once", "--dry-run").communicate(timeout=PATIENCE)
    assert "T1" in told
    assert operator.invoke("queue.export").stdout == before
    assert not (operator.workspace / ".agent-runs").exists()


def test_a_queue_that_nobody_made_is_told_with_the_command(tmp_path: Path, database: str) -> None:
    """Every command says the same, for none of them an empty queue is the truth."""
    operator = made(tmp_path / "mine", queue=database)
    for line in ("queue.list", "queue.show T1", "queue.add --title x", "queue.export", "prompt T1"):
        done = operator.invoke(*line.split())
        assert done.returncode == 78, line
        assert "there is no queue in the database" in done.stderr
        assert "hint:  invoke queue.init" in done.stderr


@pytest.fixture
def sprint() -> ModuleType:
    """The demo's own steps."""
    import importlib.util  # noqa: PLC0415  # it is no module of a package

    spec = importlib.util.spec_from_file_location("sprint", ROOT / "docs" / "demo" / "sprint.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sprint_of_five_roles_is_drained(
    sprint: ModuleType, tmp_path: Path, database: str
) -> None:
    """Planned, built in worktrees, rejected, refined, tested, merged: every task is done."""
    demo = sprint.Demo(tmp_path)
    demo.lay_out()
    variables = tmp_path / "inventory" / "group_vars" / "all.yml"
    variables.write_text(f"queue: {json.dumps(database)}\n{variables.read_text()}")

    def invoke(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=demo.environ,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    invoke("invoke", "init")
    invoke("invoke", "queue.init")
    invoke("invoke", "queue.add", "--json", str(tmp_path / "sprint.json"))
    invoke("daemon", "--drain")
    tasks = json.loads(invoke("invoke", "queue.export"))["tasks"]
    assert {task["status"] for task in tasks} == {"done"}
    planned = {task["id"] for task in tasks if task.get("parent") == "SHOP-1"}
    assert len(tasks) == 4 + len(planned)
    assert len(planned) >= 3
    events = (demo.shop / ".agent-daemon-logs" / "events.jsonl").read_text().splitlines()
    moves = [(event.get("task"), event.get("to")) for event in map(json.loads, events)]
    assert ("SHOP-3", "needs_adapt") in moves  # and refined
    merged = subprocess.run(
        ["git", "log", "--oneline", "main"],
        cwd=demo.shop,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in ("SHOP-2", "SHOP-3", *planned - {"SHOP-1-T1"}):
        assert name in merged
    assert not any((demo.shop / ".worktrees").iterdir())
    assert not (demo.shop / ".leases").exists()  # they are in the database


def test_a_host_without_a_clone_takes_no_tasks(operator: Operator, tmp_path: Path) -> None:
    """Its workers would do other hosts' work, on nothing: nothing is installed, started or made.

    A host that runs nothing needs none.
    """
    gone = operator.workspace.rename(tmp_path / "gone")
    home = tmp_path / "home"
    home.mkdir()
    for command in ("install", "install --check", "deploy", "agents.start", "agents.restart"):
        done = operator.invoke(*command.split(), HOME=str(home))
        said = done.stdout + done.stderr
        assert done.returncode == EXIT_CONFIG, (command, said)
        assert "the workspace is no folder" in said
        assert f"git clone REPOSITORY {operator.workspace}" in said
    assert not operator.workspace.exists()
    assert [*home.rglob("*")] == []
    host = operator.inventory / "host_vars" / "localhost.yml"
    host.write_text(json.dumps({"workspace": str(operator.workspace), "run": []}))
    done = operator.invoke("install", "--check", HOME=str(home))
    assert done.returncode == 0, done.stderr
    gone.rename(operator.workspace)
