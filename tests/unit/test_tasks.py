"""``invoke`` as a person types it: exit statuses, errors in one voice, quick to come up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.console import Operator
from tests.workspace import ROOT

COMMANDS = {
    "init",
    "install",
    "uninstall",
    "config",
    "doctor",
    "agents.start",
    "agents.stop",
    "agents.restart",
    "agents.status",
    "agents.logs",
    "queue.list",
    "queue.show",
    "queue.add",
    "queue.check",
}


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    """A person with an inventory that names one repository."""
    made = Operator(tmp_path)
    (made.inventory / "host_vars" / "localhost.yml").write_text(f"workspace: {made.workspace}\n")
    return made


def test_every_command_is_there(operator: Operator) -> None:
    """Each with a line of help."""
    listed = json.loads(operator.invoke("--list", "--list-format=json").stdout)

    def names(node: dict[str, list[dict[str, str]]], prefix: str = "") -> set[str]:
        own = {prefix + task["name"] for task in node["tasks"] if task["help"]}
        for inner in node["collections"]:
            own |= names(inner, f"{prefix}{inner['name']}.")  # type: ignore[arg-type]
        return own

    assert names(listed) == COMMANDS


def test_loading_the_commands_loads_nothing_of_ours() -> None:
    """What a command needs is imported when it runs: a bare invoke stays fast."""
    code = "import sys, tasks; print([m for m in sys.modules if m.split('.')[0] in {'daemon'}])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_from_init_to_a_checked_queue(operator: Operator) -> None:
    """A person's first minutes: init, add, list, show, check; in text and in JSON."""
    operator.init()
    added = operator.invoke("queue.add", "--title", "Fix the till", "--priority", "1")
    assert (added.returncode, added.stdout) == (0, "T001: added, ready\n")
    more = '[{"id": "S-1", "title": "Plan it", "type": "Story", "dependencies": ["T001"]}]'
    assert operator.invoke("queue.add", "--json", "-", stdin=more).returncode == 0
    listed = operator.invoke("queue.list").stdout.splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [
        ["T001", "ready", "builder"],
        ["S-1", "needs_plan", "planner"],
    ]
    only = json.loads(operator.invoke("queue.list", "--role", "planner", "--json").stdout)
    assert [(each["id"], each["why"]) for each in only] == [("S-1", "waits for T001 (ready)")]
    assert "Fix the till" in operator.invoke("queue.show", "T001").stdout
    assert json.loads(operator.invoke("queue.show", "T001", "--json").stdout)["runs"] == []
    checked = operator.invoke("queue.check")
    assert checked.returncode == 0
    assert "S-1   needs_plan  waits for T001 (ready)" in checked.stdout
    assert "ready (1)\n" in operator.invoke("queue.list", "--board").stdout


def test_a_queue_with_problems_fails_its_check(operator: Operator) -> None:
    """For scripts: 0 all well, 1 something to mend."""
    operator.write_queue({"id": "T1", "title": "x", "status": "redy"})
    done = operator.invoke("queue.check")
    assert done.returncode == 1
    assert "problem: T1: no role claims status redy" in done.stdout
    problems = json.loads(operator.invoke("queue.check", "--json").stdout)["problems"]
    assert problems == ["T1: no role claims status redy"]


def test_a_missing_queue_is_an_empty_one_with_a_hint(operator: Operator) -> None:
    """The hint goes to stderr, and names the command."""
    done = operator.invoke("queue.list")
    assert (done.returncode, done.stdout) == (0, "no tasks\n")
    assert f"hint:  invoke init --workspace {operator.workspace}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["queue.show", "T9"], 2, 'error: unknown task "T9"'),
        (["queue.list", "--status", "redy"], 2, 'hint:  did you mean "ready"?'),
        (["queue.list", "--role", "bilder"], 2, 'hint:  did you mean "builder"?'),
        (["queue.add"], 2, "error: a task needs a title"),
        (["doctor", "--role", "bilder"], 2, 'hint:  did you mean "builder"?'),
        (["queue.list", "--limit", "shopp"], 2, 'no host or group "shopp"'),
        (["config", "--inventory", "/none"], 78, "error: /none"),
        (["init", "--workspace", "/none"], 1, "hint:  git init /none"),
    ],
)
def test_an_error_is_told_in_one_voice(
    operator: Operator, arguments: list[str], status: int, message: str
) -> None:
    """What happened and what to type, on stderr, with its exit status and without a traceback."""
    operator.write_queue({"id": "T1", "title": "x", "status": "ready"})
    done = operator.invoke(*arguments)
    assert message in done.stderr
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_broken_config_names_every_problem_once(operator: Operator) -> None:
    """All at once, with file, line and a guess; exit status 78."""
    (operator.inventory / "group_vars" / "all.yml").write_text(
        "roles:\n  builder: {wip_limt: 3}\n  tester: {timeout: soon}\n"
    )
    done = operator.invoke("queue.list")
    assert done.returncode == 78
    assert "all.yml:2: " in done.stderr
    assert "all.yml:3: " in done.stderr
    assert 'hint:  did you mean "wip_limit"?' in done.stderr


def test_an_unreadable_queue_is_refused_with_its_line(operator: Operator) -> None:
    """As a worker does: one error, not a byte changed."""
    operator.write_queue()
    text = '{"tasks": [\n<<<<<<< HEAD\n]}\n'
    operator.queue.write_text(text)
    for arguments in (["queue.list"], ["queue.check"], ["queue.add", "--title", "x"]):
        done = operator.invoke(*arguments)
        assert done.returncode == 78
        assert f"{operator.queue}:2" in done.stderr
    assert operator.queue.read_text() == text


def test_an_error_cannot_drive_a_terminal(operator: Operator) -> None:
    """What an error quotes comes from files, and is escaped as all else is."""
    operator.write_queue({"id": "T1", "title": "x", "status": "\x1b[2Jready"})
    done = operator.invoke("queue.list", "--status", "2Jready")
    assert "\\x1b[2Jready" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_traceback_needs_debug(operator: Operator) -> None:
    """For those who mend Rolecall itself."""
    assert "Traceback" in operator.invoke("queue.show", "T9", "--debug").stderr


def test_a_reader_that_has_seen_enough_is_no_error(operator: Operator) -> None:
    """`invoke queue.list | head -1` says nothing on stderr."""
    operator.write_queue(
        *({"id": f"T{n}", "title": "x" * 100, "status": "ready"} for n in range(2000))
    )
    command = f"'{sys.executable}' -m invoke queue.list --inventory '{operator.inventory}'"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:2] == ["id", "status"]


def test_the_config_is_shown_with_its_origins(operator: Operator) -> None:
    """Where each value came from; as JSON, each host's merged variables."""
    text = operator.invoke("config").stdout
    assert f"workspace: {operator.workspace}" in " ".join(text.split())
    assert "host_vars/localhost.yml:1" in text
    variables = json.loads(operator.invoke("config", "--json").stdout)
    assert variables["localhost"]["workspace"] == str(operator.workspace)


def test_doctor_fails_where_something_is_missing(operator: Operator) -> None:
    """Exit status 1, in JSON as in text."""
    operator.init()
    done = operator.invoke("doctor", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 1
    assert {each["check"] for each in findings if each["state"] == "fail"} == {"agent"}
    assert "there is no agent" in operator.invoke("doctor").stdout


def test_workers_are_installed_started_and_stopped(tmp_path: Path) -> None:
    """The life of a fleet of one worker: each command says what it did, in one line a thing."""
    operator = Operator(tmp_path, run=["builder"], workspace=str(tmp_path / "shop"))
    operator.init()
    assert operator.invoke("agents.status").returncode == 3
    would = operator.invoke("install", "--check", "--diff")
    assert "would create ~/.config/rolecall/agent.yml" in would.stdout
    assert "\n+" in would.stdout
    assert operator.invoke("install").stdout == "localhost: created ~/.config/rolecall/agent.yml\n"
    assert operator.invoke("install").stdout == "localhost: nothing to do\n"
    try:
        assert operator.invoke("agents.start").stdout == "localhost: builder: started\n"
        status = operator.invoke("agents.status", "--json")
        assert status.returncode == 0
        assert [row["state"] for row in json.loads(status.stdout)] == ["running"]
        assert "builder started" in operator.invoke("agents.logs").stdout
        assert operator.invoke("agents.restart").returncode == 0
    finally:
        stopped = operator.invoke("agents.stop")
    assert stopped.stdout == "localhost: builder: stopped\n"
    assert operator.invoke("uninstall").stdout == (
        "localhost: removed ~/.config/rolecall/agent.yml\n"
    )
