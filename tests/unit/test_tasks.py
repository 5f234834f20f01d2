"""``invoke`` as a person types it: exit statuses, errors in one voice, quick to come up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daemon.model import format_time
from daemon.queue import breaker, spending, throttle
from tests.console import Operator
from tests.workspace import ROOT

COMMANDS = {
    "init",
    "install",
    "uninstall",
    "config",
    "deploy",
    "doctor",
    "prompt",
    "agents.start",
    "agents.stop",
    "agents.restart",
    "agents.status",
    "agents.logs",
    "queue.list",
    "budget",
    "queue.show",
    "queue.add",
    "queue.retry",
    "queue.cancel",
    "queue.release",
    "queue.import",
    "queue.export",
    "queue.check",
    "queue.init",
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
    prompt = operator.invoke("prompt", "T001").stdout
    assert prompt.startswith("You are the builder")
    assert '"title": "Fix the till"' in prompt
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


def test_a_queue_that_was_taken_away_is_a_problem(operator: Operator) -> None:
    """Its tasks have run folders: nobody is told to make a new one."""
    (operator.workspace / ".agent-runs" / "T1" / "1").mkdir(parents=True)
    hint = "a git stash or clean may have taken it: git stash list"
    listed, checked = operator.invoke("queue.list"), operator.invoke("queue.check")
    assert f"there is no queue, but its tasks have run folders\nhint:  {hint}" in listed.stderr
    assert checked.returncode == 1
    assert "problem: " in checked.stdout
    doctor = operator.invoke("doctor")
    assert (doctor.returncode, hint in doctor.stdout) == (1, True)
    assert "invoke init" not in listed.stderr + checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["queue.show", "T9"], 2, 'error: unknown task "T9"'),
        (["queue.list", "--status", "redy"], 2, 'hint:  did you mean "ready"?'),
        (["queue.list", "--role", "bilder"], 2, 'hint:  did you mean "builder"?'),
        (["queue.add"], 2, "error: a task needs a title"),
        (["prompt", "T9"], 2, 'error: unknown task "T9"'),
        (["prompt", "T1", "--role", "bilder"], 2, 'hint:  did you mean "builder"?'),
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
    created, note = operator.invoke("install").stdout.splitlines()
    assert created == "localhost: created ~/.config/rolecall/agent.yml"
    assert note.startswith("localhost: note: nothing starts pid-file workers again")
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


def test_a_task_s_way_by_hand(operator: Operator) -> None:
    """Cancel, retry, release, as a person types them; each is a line, and an event with who."""
    operator.write_queue(
        {"id": "T1", "status": "ready"},
        {"id": "T2", "status": "testing", "agent": "tester", "lease": {"owner": "bob"}},
    )
    done = operator.invoke("queue.cancel", "T1")
    assert done.stdout.startswith("T1: ready -> cancelled: cancelled by "), done.stderr
    refused = operator.invoke("queue.retry", "T1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "error: T1: its status is cancelled: say which one it shall have\nhint:  --status ready\n"
    )
    assert operator.invoke("queue.retry", "T1", "--status", "redy").returncode == 2
    assert operator.invoke("queue.retry", "T1", "--status", "ready").returncode == 0
    assert "testing -> awaiting_test" in operator.invoke("queue.release", "T2").stdout
    assert operator.invoke("queue.release", "T2").returncode == 1
    for command in ("queue.cancel", "queue.release", "queue.retry"):
        unknown = operator.invoke(command, "T3")
        assert (unknown.returncode, 'unknown task "T3"' in unknown.stderr) == (2, True)
    logs = operator.workspace / ".agent-daemon-logs"
    events = [json.loads(line) for line in (logs / "events.jsonl").read_text().splitlines()]
    assert [(each["task"], each["from"], each["to"]) for each in events] == [
        ("T1", "ready", "cancelled"),
        ("T1", "cancelled", "ready"),
        ("T2", "testing", "awaiting_test"),
    ]
    assert all("@" in each["owner"] and each["owner"] in each["why"] for each in events)
    assert "T2: testing -> awaiting_test" in (logs / "tester.log").read_text()


def test_several_tasks_are_tried_again(operator: Operator) -> None:
    """By their ids, or all that stand so; a line for each, and 1 where one cannot be."""
    parked = {"status": "needs_manual", "parked_from": "ready"}
    operator.write_queue(
        *({"id": f"T{i}", **parked} for i in range(1, 6)), {"id": "D", "status": "done"}
    )
    done = operator.invoke("queue.retry", "T1,D,T2")
    assert done.returncode == 1
    told = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert told == ["T1", "T2"]
    assert done.stderr.startswith("error: D: its status is done")
    assert operator.invoke("queue.retry", "T3", "--standing", "parked").returncode == 2
    done = operator.invoke("queue.retry", "all", "--standing", "parked")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    assert operator.invoke("queue.retry", "all").returncode == 2
    assert operator.invoke("queue.retry", "all", "--standing", "parked").stdout == ""


def test_a_queue_out_and_in(operator: Operator, tmp_path: Path) -> None:
    """Export to a file and to a pipe, every byte; import tells what it did, and never half."""
    operator.write_queue({"id": "T1", "status": "ready"}, mine={"a": 1.0})
    data = operator.queue.read_bytes()
    out = tmp_path / "out.json"
    assert operator.invoke("queue.export", "--to", str(out)).stdout.endswith("bytes written\n")
    assert operator.invoke("queue.export").stdout.encode() == out.read_bytes() == data
    assert operator.invoke("queue.export", "--to", str(out)).returncode == 2
    assert "1 were here already" in operator.invoke("queue.import", str(out)).stdout
    operator.queue.unlink()
    done = operator.invoke("queue.import", "-", stdin=data.decode())
    assert done.stdout == "T1: ready: imported\n1 imported\n"
    assert operator.queue.read_bytes() == data
    out.write_text(json.dumps({"tasks": [{"id": "T2"}, {"id": "T1", "status": "done"}]}))
    refused = operator.invoke("queue.import", str(out))
    assert refused.returncode == 1
    assert "T1 is another task here" in refused.stderr
    assert operator.queue.read_bytes() == data
    done = operator.invoke("queue.import", str(out), "--replace")
    assert done.stdout.endswith("2 imported, in place of all that was there\n")
    assert operator.queue.read_bytes() == out.read_bytes()


def test_an_import_is_told_task_by_task(operator: Operator, tmp_path: Path) -> None:
    """All of them in order in the events, each in the log of the role whose story it is."""
    statuses = ["ready", "done", "testing", "ready", "needs_adapt", "ready"]
    tasks = [{"id": f"T{n}", "status": status} for n, status in enumerate(statuses)]
    (tmp_path / "more.json").write_text(json.dumps({"tasks": tasks}))
    assert operator.invoke("queue.import", str(tmp_path / "more.json")).returncode == 0
    logs = operator.workspace / ".agent-daemon-logs"
    events = [json.loads(line) for line in (logs / "events.jsonl").read_text().splitlines()]
    assert [(each["task"], each["to"]) for each in events] == [
        (each["id"], each["status"]) for each in tasks
    ]
    for role, ids in (("builder", "T0 T3 T5"), ("tester", "T2"), ("refiner", "T4")):
        lines = (logs / f"{role}.log").read_text().splitlines()
        assert [line.split()[2] for line in lines] == [f"{each}:" for each in ids.split()]


def test_the_list_is_filtered(operator: Operator) -> None:
    """By status, role, type and standing; a word that nothing has is an error with a hint."""
    operator.write_queue(
        {"id": "A", "status": "ready", "type": "Build"},
        {"id": "B", "status": "ready", "type": "Fix", "dependencies": ["A"]},
        {"id": "C", "status": "needs_manual", "type": "Fix"},
    )

    def listed(*arguments: str) -> list[str]:
        found = json.loads(operator.invoke("queue.list", "--json", *arguments).stdout)
        return [each["id"] for each in found]

    assert listed("--type", "Fix") == ["B", "C"]
    assert listed("--standing", "dependency") == ["B"]
    assert listed("--type", "Fix", "--status", "needs_manual") == ["C"]
    assert listed("--standing", "claimable", "--role", "builder") == ["A"]
    assert operator.invoke("queue.list", "--type", "Fx").returncode == 2
    assert (
        'did you mean "claimable"?'
        in operator.invoke("queue.list", "--standing", "claimabel").stderr
    )


def test_a_pause_is_seen(operator: Operator) -> None:
    """In the status, for a person and a program, and as what the role's tasks wait for."""
    operator.write_queue({"id": "T1", "status": "ready"}, {"id": "T2", "status": "awaiting_test"})
    runs = operator.workspace / ".agent-runs"
    runs.mkdir()
    now = time.time()
    breaker.write(str(runs), "builder", breaker.State(5, now, now + 600, "no login"))
    rows = {
        row["role"]: row for row in json.loads(operator.invoke("agents.status", "--json").stdout)
    }
    assert rows["builder"]["paused_until"] == format_time(now + 600)
    assert rows["tester"]["paused_until"] is None
    assert "no login" in operator.invoke("agents.status").stdout
    tasks = {
        each["id"]: each
        for each in json.loads(operator.invoke("queue.check", "--json").stdout)["tasks"]
    }
    assert tasks["T1"]["standing"] == "paused"
    assert "5 attempts in a row failed within seconds" in tasks["T1"]["why"]
    assert tasks["T2"]["standing"] == "claimable"


def test_what_was_spent_is_seen(operator: Operator) -> None:
    """For a person and for a program; on a ledger that is not there, too."""
    operator.write_queue({"id": "T1", "status": "ready"})
    assert operator.invoke("budget").stdout == "nothing spent\n"
    line = {"what": "charged", "at": "2026-11-25T10:00:00Z", "task": "T1", "role": "builder"}
    line |= {"token": 1, "usage": {"input_tokens": 1000, "cost_usd": 0.25}}  # type: ignore[dict-item]
    spending.append(str(operator.workspace / ".agent-runs" / spending.NAME), line, sync=False)
    assert "builder  1,000   0.25" in operator.invoke("budget").stdout
    found = json.loads(operator.invoke("budget", "--json", "--role", "builder").stdout)
    assert [(each["role"], each["cost_usd"]) for each in found["roles"]] == [("builder", 0.25)]
    wrong = operator.invoke("budget", "--role", "buildr")
    assert (wrong.returncode, 'did you mean "builder"?' in wrong.stderr) == (2, True)


def test_the_wait_of_a_credential_is_seen_and_ended(operator: Operator) -> None:
    """In the status and the list; a retry of a task that waits ends it for all."""
    role = "agent: command, command: ['true'], credential: acme"
    vars_ = operator.inventory / "host_vars" / "localhost.yml"
    vars_.write_text(f"{vars_.read_text()}roles: {{builder: {{{role}}}, tester: {{{role}}}}}\n")
    operator.write_queue({"id": "T1", "status": "ready"}, {"id": "T2", "status": "awaiting_test"})
    (operator.workspace / ".agent-runs").mkdir()
    now = time.time()
    state = throttle.State(now + 600, 1, now, "usage limit")
    throttle.write(str(operator.workspace / ".agent-runs"), "acme", state)
    rows = json.loads(operator.invoke("agents.status", "--json").stdout)
    paused = {row["role"] for row in rows if row["paused_until"] == format_time(now + 600)}
    assert paused == {"builder", "tester"}
    listed = operator.invoke("queue.list").stdout
    assert listed.count(f"credential acme until {format_time(now + 600)}: usage limit") == 2
    retried = operator.invoke("queue.retry", "T1").stdout
    assert "credential acme: its wait is over, each of its roles claims again\n" in retried
    assert "waits for" not in operator.invoke("queue.check").stdout


def test_a_queue_that_nobody_can_read_is_seen_in_the_status(operator: Operator) -> None:
    """No worker can work, though all may run: the line is told beside each."""
    operator.write_queue()
    operator.queue.write_text('{"tasks": [\n<<<<<<< HEAD\n]}\n')
    rows = json.loads(operator.invoke("agents.status", "--json").stdout)
    assert {row["text"] for row in rows} == {
        f"{operator.queue}:2: not a queue: a git conflict marker (<<<<<<<)"
    }
