"""Real workers and attempts on a real queue, and what happens when they are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.standin import claude, said
from tests.workspace import ROOT, Workspace, wait_for

# The second attempt looks whether anything of the first one still lives.
SECOND_LOOKS = (
    "if [ $ROLECALL_TOKEN -gt 1 ]; then kill -0 $(cat pid) && touch overlap; exit 0; fi; "
)
TASK: dict[str, Any] = {"id": "T1", "title": "x", "type": "Build", "status": "ready"}


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.end()


def build(ws: Workspace, script: str, *tasks: dict[str, Any], **role: Any) -> None:
    ws.write_config(builder={"script": script, **role})
    ws.write_queue(*(tasks or (TASK,)), wip_limits={"builder": 3})


@pytest.mark.parametrize(
    ("script", "status", "code", "outcome"),
    [
        ("exit 0", "awaiting_test", 0, "success"),
        ("exit 3", "ready", 1, "error"),
        ("exit 75", "ready", 0, "throttled"),
        ("exit 78", "needs_manual", 0, "blocked"),
        ("kill -9 $$", "ready", 1, "error"),
        ('echo \'{"outcome": "rejected"}\' > $ROLECALL_RESULT_FILE', "needs_adapt", 0, "rejected"),
        ("echo nonsense > $ROLECALL_RESULT_FILE", "ready", 1, "error"),
        ("ln -s /etc/passwd $ROLECALL_RESULT_FILE", "ready", 1, "error"),
        ('echo \'{"status": "done"}\' > $ROLECALL_RESULT_FILE', "ready", 1, "error"),
    ],
)
def test_once_settles_what_the_agent_gave(
    ws: Workspace, script: str, status: str, code: int, outcome: str
) -> None:
    """Each exit status and claim of the contract, its next status, and our own exit status."""
    build(ws, script)
    done = ws.run("--role", "builder", "--once")
    assert (ws.status(), done.returncode) == (status, code), done.stderr
    assert [each["outcome"] for each in ws.events() if "outcome" in each] == [outcome]
    assert ws.leases() == []
    wait_for(lambda: ws.tree() == [])


def test_a_missing_agent_is_never_a_success(ws: Workspace) -> None:
    """The task goes to a person at once, with the program's name."""
    ws.write_config(builder={"agent": "command", "command": ["no-such-agent"]})
    ws.write_queue(TASK)
    assert ws.run("--role", "builder", "--once").returncode == 0
    assert ws.status() == "needs_manual"
    assert "no-such-agent" in ws.task()["last_error"]


def test_the_agent_gets_what_the_contract_says(ws: Workspace) -> None:
    """Prompt on stdin, the variables, the task as JSON, the workspace as its folder."""
    script = 'cat > prompt; env > env; cp "$ROLECALL_TASK_FILE" task; pwd > pwd'
    build(ws, script, {**TASK, "title": "$(touch pwned) {{ 7*7 }}"}, env={"CI": "1"})
    prompts = ws.path / ".oodatcaa" / "prompts"
    prompts.mkdir(parents=True)
    (prompts / "builder.md").write_text("Do {{ task.title }}")
    environ = {**os.environ, "HIDDEN": "secret"}
    assert ws.run("--role", "builder", "--once", env=environ).returncode == 0
    assert ws.file("prompt") == "Do $(touch pwned) {{ 7*7 }}"
    assert not (ws.path / "pwned").exists()
    found = dict(line.split("=", 1) for line in ws.file("env").splitlines() if "=" in line)
    expected = {
        "ROLECALL_TASK_ID": "T1",
        "ROLECALL_ROLE": "builder",
        "ROLECALL_ATTEMPT": "1",
        "ROLECALL_TOKEN": "1",
        "ROLECALL_QUEUE": f"file:{ws.queue}",
        "ROLECALL_WORKSPACE": str(ws.path),
        "TERM": "dumb",
        "CI": "1",
    }
    assert expected.items() <= found.items()
    assert "HIDDEN" not in found
    assert json.loads(ws.file("task"))["title"] == "$(touch pwned) {{ 7*7 }}"
    assert ws.file("pwd").strip() == str(ws.path)


def test_arguments_are_filled_in_without_a_shell(ws: Workspace) -> None:
    """Each {name} becomes part of one argument; other braces stay."""
    script = "import sys; open('argv', 'w').write('\\n'.join(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "--task={task_id}", "{other}", "{role}:{attempt}"]
    ws.write_config(builder={"agent": "command", "command": command, "prompt_via": "file"})
    ws.write_queue({**TASK, "id": "T-1.a"})
    assert ws.run("--role", "builder", "--once").returncode == 0
    prompt_file = ws.path / ".agent-runs" / "T-1.a" / "1" / "prompt.md"
    assert ws.file("argv").splitlines() == [
        "--task=T-1.a",
        "{other}",
        "builder:1",
        str(prompt_file),
    ]


def test_a_gate_that_was_killed_has_decided_nothing(ws: Workspace) -> None:
    """Out of memory, or a person: the attempt is an error, and the task is not rejected.

    Broken once by taking it for a gate that failed: the task went to needs_adapt.
    """
    build(ws, "exit 0", gates=[["sh", "-c", "kill -9 $$"]])
    assert ws.run("--role", "builder", "--once").returncode == 1
    assert (ws.status(), ws.task()["attempts"]) == ("ready", 1)
    assert "was ended by signal 9" in ws.task()["last_error"]


def test_gates_decide(ws: Workspace) -> None:
    """An agent that says success is rejected by a gate that fails; the gate gets no credentials."""
    env_file = ws.path / "env"
    env_file.write_text("TOKEN=hunter2hunter2\n")
    env_file.chmod(0o600)
    gate = ["sh", "-c", 'test -z "$TOKEN" && test -f good']
    build(ws, 'echo "$TOKEN"; exit 0', env_file=str(env_file), gates=[gate])
    assert ws.run("--role", "builder", "--once").returncode == 0
    assert ws.status() == "needs_adapt"
    assert (ws.path / ".agent-runs/T1/1/stdout.log").read_text() == "***\n"
    ws.write_queue(TASK)
    (ws.path / "good").touch()
    assert ws.run("--role", "builder", "--once").returncode == 0
    assert ws.status() == "awaiting_test"


@pytest.mark.parametrize(
    ("then", "status"),
    [("exit 0", "needs_adapt"), ("touch good", "awaiting_test"), ("touch good; exit 3", "ready")],
)
def test_a_status_that_an_agent_writes_into_the_queue_is_a_claim(
    ws: Workspace, then: str, status: str
) -> None:
    """Exit status and gates still decide, whatever the agent made of its task's status."""
    said = f'sed -i \'s/"in_progress"/"awaiting_test"/\' {ws.queue}; {then}'
    build(ws, said, gates=[["test", "-f", "good"]])
    ws.run("--role", "builder", "--once")
    assert ws.status() == status
    assert ws.task().get("lease") is None


def test_a_bad_task_stops_no_other(ws: Workspace) -> None:
    """It is skipped with one error, which names it."""
    build(ws, "exit 0", {**TASK, "id": "../etc"}, TASK, TASK)
    ws.start("--role", "builder")
    ws.wait_status("awaiting_test")
    wait_for(lambda: "../etc" in ws.log() and "taken: T1" in ws.log())


def test_drain_takes_everything_in_order(ws: Workspace) -> None:
    """More tasks than slots, by priority; it ends when nothing is claimable now."""
    tasks = [{**TASK, "id": f"T{i}", "priority": 9 - i} for i in range(6)]
    build(ws, 'echo "$ROLECALL_TASK_ID" >> order', *tasks, slots=1)
    assert ws.run("--role", "builder", "--drain").returncode == 0
    assert {ws.status(f"T{i}") for i in range(6)} == {"awaiting_test"}
    assert ws.file("order").split() == ["T5", "T4", "T3", "T2", "T1", "T0"]


def test_once_without_a_role_is_one_pass_of_all(ws: Workspace) -> None:
    """A task runs through builder, tester and integrator in the order of the roles."""
    ok = {"script": "exit 0"}
    ws.write_config(integrator=ok, tester=ok, builder=ok)
    ws.write_queue(TASK)
    assert ws.run("--once").returncode == 0
    assert ws.status() == "done"


def test_a_dry_run_changes_nothing(ws: Workspace) -> None:
    """It says what would be claimed."""
    build(ws, "exit 0")
    before = ws.queue.read_bytes()
    done = ws.run("--role", "builder", "--once", "--dry-run")
    assert (done.returncode, done.stdout) == (0, "builder: would claim T1\n")
    assert ws.queue.read_bytes() == before
    assert not (ws.path / ".agent-runs").exists()


def test_a_missing_queue_is_an_empty_one(ws: Workspace) -> None:
    """One hint that names the command, exit status 0."""
    ws.write_config(builder={"script": "exit 0"})
    done = ws.run("--role", "builder", "--once")
    assert done.returncode == 0
    assert "invoke init" in done.stderr


def test_a_broken_queue_is_refused_and_left_alone(ws: Workspace) -> None:
    """Exit status 78, the line, and not a byte changed."""
    build(ws, "exit 0")
    ws.queue.write_text('{\n"tasks": [\n<<<<<<< HEAD\n]}\n')
    before = ws.queue.read_bytes()
    for how in ("--once", "--drain"):
        done = ws.run("--role", "builder", how)
        assert done.returncode == 78
        assert "SPRINT_QUEUE.json:3" in done.stderr
        assert "Traceback" not in done.stderr
    assert ws.queue.read_bytes() == before


def test_bad_usage_and_bad_config(ws: Workspace) -> None:
    """2 for usage, 78 for configuration, one clear text each."""
    build(ws, "exit 0")
    assert ws.run("--once", "--drain").returncode == 2
    assert ws.run("--interval", "-1").returncode == 2
    done = ws.run("--role", "bilder", "--once")
    assert done.returncode == 78
    assert "bilder" in done.stderr
    assert ws.run("--once", "--workspace", str(ws.path / "gone")).returncode == 78
    ws.config.write_text("roles: {builder: {wip_limt: 1}}\n")
    done = ws.run("--role", "builder", "--once")
    assert done.returncode == 78
    assert 'did you mean "wip_limit"?' in done.stderr


def test_a_timeout_ends_the_whole_tree(ws: Workspace) -> None:
    """A child in a session of its own that ignores TERM dies too, and the attempt is an error."""
    script = "setsid sh -c 'trap \"\" TERM; sleep 600' & trap '' TERM; sleep 600"
    build(ws, script, timeout=1, max_attempts=1)
    assert ws.run("--role", "builder", "--once").returncode == 1
    assert ws.status() == "needs_manual"
    assert "timed out" in ws.task()["last_error"]
    wait_for(lambda: ws.tree() == [])


def test_a_worker_is_woken_and_goes_on(ws: Workspace) -> None:
    """It claims one task after another, long before its interval, also those added later."""
    build(ws, "exit 0", interval=3600)
    worker = ws.start("--role", "builder")
    ws.wait_status("awaiting_test")
    for number in range(3):
        ws.write_queue(*ws.document()["tasks"], {**TASK, "id": f"N{number}"})
        ws.wait_status("awaiting_test", f"N{number}")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert ws.leases() == []


def test_a_worker_waits_for_a_broken_queue(ws: Workspace) -> None:
    """It says so once and goes on when it is mended."""
    build(ws, "exit 0", interval=3600)
    good = ws.queue.read_text()
    ws.queue.write_text("{")
    worker = ws.start("--role", "builder")
    wait_for(lambda: "SPRINT_QUEUE.json:1" in ws.log())
    ws.queue.write_text(good)
    ws.wait_status("awaiting_test")
    assert ws.log().count("SPRINT_QUEUE.json:1") == 1
    assert worker.poll() is None


def test_kill_of_a_worker_ends_no_attempt(ws: Workspace) -> None:
    """The attempt settles by itself; the next worker counts it and claims no second time."""
    build(ws, "echo $ROLECALL_TOKEN >> tokens; while [ ! -e go ]; do sleep 0.05; done")
    worker = ws.start("--role", "builder")
    attempt = ws.attempt_pid()
    worker.kill()
    worker.wait()
    ws.start("--role", "builder")
    wait_for(lambda: ws.log().count("started") == 2)
    assert ws.lease()["pid"] == attempt  # type: ignore[index]  # it is held
    (ws.path / "go").touch()
    ws.wait_status("awaiting_test")
    assert ws.file("tokens") == "1\n"


def test_kill_of_an_attempt_ends_its_tree_and_counts(ws: Workspace) -> None:
    """The worker sees it at once, ends what is left, and the task is tried again."""
    script = SECOND_LOOKS + "setsid sleep 600 & echo $! > pid; echo up > up; sleep 600"
    build(ws, script, interval=3600)
    ws.start("--role", "builder")
    ws.file("up")
    os.kill(ws.attempt_pid(), signal.SIGKILL)
    ws.wait_status("awaiting_test")
    assert ws.task()["token"] == 2
    assert not (ws.path / "overlap").exists()
    wait_for(lambda: ws.tree() == [])


def test_worker_and_attempt_killed_together(ws: Workspace) -> None:
    """A new worker ends what is left of the tree before the task is tried again."""
    script = SECOND_LOOKS + "setsid sleep 600 & echo $! > pid; echo up > up; sleep 600"
    build(ws, script, interval=3600)
    worker = ws.start("--role", "builder")
    ws.file("up")
    attempt = ws.attempt_pid()
    worker.kill()
    os.kill(attempt, signal.SIGKILL)
    worker.wait()
    ws.start("--role", "builder")
    ws.wait_status("awaiting_test")
    wait_for(lambda: ws.tree() == [])


def test_term_drains(ws: Workspace) -> None:
    """No more is claimed, what runs may end within the stop budget."""
    build(
        ws,
        "echo up > up; while [ ! -e go ]; do sleep 0.05; done",
        TASK,
        {**TASK, "id": "T2"},
        slots=1,
    )
    worker = ws.start("--role", "builder")
    ws.file("up")
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in ws.log())
    (ws.path / "go").touch()
    assert worker.wait(20) == 0
    assert (ws.status(), ws.status("T2")) == ("awaiting_test", "ready")


def test_a_second_term_releases_at_once(ws: Workspace) -> None:
    """The tree dies, the task goes back, nothing is counted."""
    build(ws, "setsid sleep 600 & echo up > up; sleep 600", stop_budget=600)
    worker = ws.start("--role", "builder")
    ws.file("up")
    ws.attempt_pid()
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in ws.log())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert ws.status() == "ready"
    assert ws.task().get("attempts", 0) == 0
    assert (ws.tree(), ws.leases()) == ([], [])


def test_the_stop_budget_is_kept(ws: Workspace) -> None:
    """An agent that ignores TERM is killed, and its task released."""
    build(ws, "trap '' TERM; echo up > up; while :; do sleep 1; done", stop_budget=0.2)
    worker = ws.start("--role", "builder")
    ws.file("up")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 0
    assert ws.status() == "ready"
    wait_for(lambda: ws.tree() == [])


def test_usr1_hands_over(ws: Workspace) -> None:
    """The worker exits 0 at once, its attempt lives on and settles."""
    build(ws, "echo up > up; while [ ! -e go ]; do sleep 0.05; done")
    worker = ws.start("--role", "builder")
    ws.file("up")
    worker.send_signal(signal.SIGUSR1)
    assert worker.wait(10) == 0
    assert ws.status() == "in_progress"
    (ws.path / "go").touch()
    ws.wait_status("awaiting_test")


def test_hup_reads_the_config_again(ws: Workspace) -> None:
    """A good one counts from then on; a broken one is said and the old one kept."""
    build(ws, "exit 3", {**TASK, "status": "blocked"}, interval=3600)
    worker = ws.start("--role", "builder")
    wait_for(lambda: "started" in ws.log())
    good = ws.config.read_text()
    ws.config.write_text("roles: [")
    worker.send_signal(signal.SIGHUP)
    wait_for(lambda: "rolecall.yml" in ws.log())
    ws.config.write_text(good.replace("exit 3", "exit 0"))
    worker.send_signal(signal.SIGHUP)
    wait_for(lambda: "config read again" in ws.log())
    ws.write_queue(TASK)
    ws.wait_status("awaiting_test")


def test_a_removed_lease_releases(ws: Workspace) -> None:
    """Rm .leases/T1.json: the attempt is ended, the task goes back, nothing is counted."""
    script = "[ $ROLECALL_TOKEN -gt 1 ] && exit 0; echo up > up; sleep 600"
    build(ws, script, interval=3600)
    ws.start("--role", "builder")
    ws.file("up")
    ws.attempt_pid()
    (ws.path / ".leases" / "T1.json").unlink()
    ws.wait_status("awaiting_test")
    assert any(each.get("outcome") == "released" for each in ws.events())
    assert not any(each.get("outcome") == "error" for each in ws.events())
    wait_for(lambda: ws.tree() == [])


def test_a_person_s_move_is_kept(ws: Workspace) -> None:
    """What somebody decided while the agent ran stands; the attempt writes nothing."""
    build(ws, "echo up > up; while [ ! -e go ]; do sleep 0.05; done")
    worker = ws.start("--role", "builder")
    ws.file("up")
    text = ws.queue.read_text().replace('"in_progress"', '"cancelled"')
    ws.queue.write_text(text)
    (ws.path / "go").touch()
    wait_for(lambda: ws.leases() == [])
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert ws.status() == "cancelled"
    assert any("lost" in each["message"] for each in ws.events())


def test_a_frozen_attempt_is_fenced_off(ws: Workspace) -> None:
    """SIGSTOP for longer than its lease: its successor starts when it is dead."""
    script = SECOND_LOOKS + "echo $$ > pid; echo up > up; sleep 600"
    build(ws, script, interval=0.5, lease_ttl=3)
    ws.start("--role", "builder")
    ws.file("up")
    os.kill(ws.attempt_pid(), signal.SIGSTOP)
    ws.wait_status("awaiting_test")
    assert ws.task()["token"] == 2
    assert not (ws.path / "overlap").exists()
    wait_for(lambda: ws.tree() == [])


def test_two_workers_keep_one_limit(ws: Workspace) -> None:
    """Never more than the limit at once, every task once, over several workers of one role."""
    script = (
        "mkdir running.$ROLECALL_TASK_ID; ls -d running.* | wc -l >> counts; sleep 0.1; "
        "rmdir running.$ROLECALL_TASK_ID; echo $ROLECALL_TASK_ID >> done"
    )
    tasks = [{**TASK, "id": f"T{i}"} for i in range(9)]
    ws.write_config(builder={"script": script, "slots": 9})
    ws.write_queue(*tasks, wip_limits={"builder": 2})
    workers = [ws.start("--role", "builder", "--drain", "--owner", f"w{i}") for i in range(3)]
    wait_for(lambda: {ws.status(each["id"]) for each in tasks} == {"awaiting_test"}, ws.log())
    assert [worker.wait(20) for worker in workers] == [0, 0, 0]
    assert max(map(int, ws.file("counts").split())) <= 2
    assert sorted(ws.file("done").split()) == sorted(each["id"] for each in tasks)


@pytest.mark.parametrize(
    "bad",
    [
        {"id": "T0", "status": ["done"]},
        {"id": "T0", "status": "ready", "priority": 10**400},
        {"id": "T0", "status": "blocked", "dependencies": [{"a": 1}]},
        {
            "id": "T0",
            "status": "ready",
            "lease": {"heartbeat_at": "2020-01-01T00:00:00Z", "ttl_seconds": 10**400},
        },
        {"id": "T0", "status": "ready", "title": "\ud800"},
        {"id": "T0", "token": 10**400, "status": "ready"},
        {"id": "T0", "subtasks": {"a": 1}, "dependencies": 7, "attempts": "x", "status": None},
    ],
)
def test_a_strange_task_stops_no_other(ws: Workspace, bad: dict[str, Any]) -> None:
    """Whatever stands in one task, the next one is worked on, and nobody sees a traceback."""
    build(ws, "exit 0", bad, {**TASK, "dependencies": []})
    ws.write_queue(*ws.document()["tasks"], wip_limits={"builder": 3, "tester": 10**400})
    done = ws.run("--role", "builder", "--drain")
    assert ws.status() == "awaiting_test", done.stderr
    assert "Traceback" not in done.stderr


def test_a_strange_lease_stops_no_other(ws: Workspace) -> None:
    """An unreadable lease keeps its own task, and a far too long one is no crash."""
    build(ws, "exit 0", {**TASK, "id": "T0"}, TASK)
    leases = ws.path / ".leases"
    leases.mkdir()
    lease = {"task_id": "T0", "role": "builder", "owner": "ann", "ttl_seconds": 10**400}
    lease |= {"started_at": "2020-01-01T00:00:00Z", "heartbeat_at": "2020-01-01T00:00:00Z"}
    (leases / "T0.json").write_text(json.dumps(lease))
    done = ws.run("--role", "builder", "--drain")
    assert (ws.status(), ws.status("T0")) == ("awaiting_test", "ready"), done.stderr


@pytest.mark.parametrize("place", ["prompt", "log"])
def test_a_pipe_in_place_of_a_file_hangs_nothing(ws: Workspace, place: str) -> None:
    """The prompt is refused, the log goes without; neither waits for a writer or a reader."""
    build(ws, "exit 0")
    if place == "prompt":
        path, status = ws.path / ".oodatcaa" / "prompts" / "builder.md", "needs_manual"
    else:
        path, status = ws.path / ".agent-daemon-logs" / "events.jsonl", "awaiting_test"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert ws.run("--role", "builder", "--once").returncode == 0
    assert ws.status() == status


def test_once_ends_an_attempt_that_froze(ws: Workspace) -> None:
    """Nobody else would look: its lease runs out, its tree dies, the pass ends in error."""
    build(ws, "echo up > up; sleep 600", lease_ttl=2, heartbeat=0.5)
    worker = ws.start("--role", "builder", "--once")
    ws.file("up")
    os.kill(ws.attempt_pid(), signal.SIGSTOP)
    assert worker.wait(25) == 1
    assert ws.task()["attempts"] == 1
    wait_for(lambda: ws.tree() == [])


def test_once_that_hands_over_claims_no_more(ws: Workspace) -> None:
    """USR1 during the builder's attempt: the tester's turn does not come."""
    wait = {"script": "echo up > up; while [ ! -e go ]; do sleep 0.05; done"}
    ws.write_config(builder=wait, tester={"script": "exit 0"})
    ws.write_queue(TASK, {**TASK, "id": "T2", "status": "awaiting_test"})
    worker = ws.start("--once")
    ws.file("up")
    worker.send_signal(signal.SIGUSR1)
    assert worker.wait(10) == 0
    assert ws.status("T2") == "awaiting_test"
    (ws.path / "go").touch()
    ws.wait_status("awaiting_test")


def test_a_lease_that_cannot_be_judged_costs_nothing(ws: Workspace) -> None:
    """One by hand that names our host and no process is waited for, not looked at for ever."""
    build(ws, "exit 0", interval=3600)
    now = datetime.now(UTC).isoformat()
    lease = {"task_id": "T1", "role": "builder", "owner": "ann", "ttl_seconds": 600}
    lease |= {"started_at": now, "heartbeat_at": now, "host": os.uname().nodename, "pid": 2**22 + 7}
    (ws.path / ".leases").mkdir()
    (ws.path / ".leases" / "T1.json").write_text(json.dumps(lease))
    worker = ws.start("--role", "builder")
    wait_for(lambda: "started" in ws.log())
    ws.write_queue(*ws.document()["tasks"], {**TASK, "id": "T2"})
    ws.wait_status("awaiting_test", "T2")

    def switches() -> str:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        return next(line for line in status.splitlines() if line.startswith("voluntary"))

    seen: list[str] = []

    def sleeps() -> bool:
        seen.append(switches())
        return seen[-9:].count(seen[-1]) == 9

    wait_for(sleeps)
    assert ws.status() == "ready"


def test_jq_answers_truly_while_workers_run(ws: Workspace) -> None:
    """The three queries that people type: what is in progress, the limit, what is ready."""
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("jq is not installed")

    def ask(query: str) -> list[str]:
        told = subprocess.check_output([jq, query, str(ws.queue)], text=True)
        return sorted(line.strip('"') for line in told.splitlines())

    working = '.tasks[] | select(.agent == "builder" and .status == "in_progress") | .id'
    ready = (
        '.tasks[] | select(.type == "Build" and .status == "ready" '
        'and (.lease == null or .lease == "")) | .id'
    )
    tasks = [{**TASK, "id": f"T{i}"} for i in range(4)]
    build(ws, "touch up.$ROLECALL_TASK_ID; while [ ! -e go ]; do sleep 0.05; done", *tasks)
    assert (ask(working), ask(ready)) == ([], ["T0", "T1", "T2", "T3"])
    ws.start("--role", "builder")
    for number in range(3):
        wait_for((ws.path / f"up.T{number}").exists)
    assert (ask(working), ask(ready)) == (["T0", "T1", "T2"], ["T3"])
    assert ask(".wip_limits.builder") == ["3"]
    (ws.path / "go").touch()
    ws.wait_status("awaiting_test", "T3")
    wait_for(lambda: not ask(working))
    assert ask(ready) == []


def test_an_idle_worker_loads_little(ws: Workspace) -> None:
    """No yaml, jinja2 or asyncio in the process that sleeps."""
    ws.write_config(builder={"script": "exit 0"})
    code = (
        "import sys, runpy\n"
        "sys.argv = ['daemon', '--config', sys.argv[1], '--role', 'builder', '--drain']\n"
        "try: runpy.run_module('daemon', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('asyncio', 'jinja2', 'yaml') "
        "if m in sys.modules])"
    )
    ws.write_queue({**TASK, "status": "done"})
    done = subprocess.run(
        [sys.executable, "-c", code, str(ws.config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_silent_agent_is_ended_as_stalled(ws: Workspace) -> None:
    """Long before its timeout, its tree with it; one that goes on talking is left alone.

    Broken once by never asking for the time of the last output: the first task timed out.
    """
    talks = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.3; done"
    script = f"[ $ROLECALL_TASK_ID = T2 ] && {{ {talks}; exit 0; }}; echo up; setsid sleep 600"
    build(ws, script, TASK, {**TASK, "id": "T2"}, stall_after=1.2, max_attempts=1)
    assert ws.run("--role", "builder", "--drain").returncode == 1
    assert (ws.status(), ws.status("T2")) == ("needs_manual", "awaiting_test")
    assert "stalled: it printed nothing for 1.2 s" in ws.task()["last_error"]
    wait_for(lambda: ws.tree() == [])


def test_a_role_whose_every_attempt_fails_pauses(ws: Workspace) -> None:
    """Most of the queue keeps its attempts; it is said once; a worker that is started goes on.

    Broken once by letting the worker's start not close the breaker: no task was done.
    """
    tasks = [{**TASK, "id": f"T{i}"} for i in range(9)]
    breaker = {"failures": 3, "seconds": 10, "base": 3600, "cap": 3600}
    build(ws, "exit 0", *tasks, breaker=breaker, max_attempts=1, slots=1)
    good = ws.config.read_text()
    ws.config.write_text(good.replace("exit 0", "exit 9"))
    worker = ws.start("--role", "builder")
    wait_for(lambda: "3 attempts in a row failed within seconds, claims pause until" in ws.log())
    assert [ws.status(f"T{i}") for i in range(9)] == ["needs_manual"] * 3 + ["ready"] * 6
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert ws.log().count("claims pause") == 1
    ws.config.write_text(good)
    once = ws.run("--role", "builder", "--once")  # no start of a worker: it keeps the pause
    assert (once.returncode, "claims pause" in once.stderr) == (0, True)
    assert ws.status("T3") == "ready"
    ws.start("--role", "builder")
    for i in range(3, 9):
        ws.wait_status("awaiting_test", f"T{i}")


def test_every_role_of_a_throttled_credential_waits(ws: Workspace) -> None:
    """The second task of the first role and the first of the second: no agent is started for them.

    It is said once. A worker that is started waits as well; one success later all go on.
    """
    script = """echo $ROLECALL_TASK_ID >> begun
        [ -e open ] || { echo '{"retry_after": 3600}' > $ROLECALL_RESULT_FILE; exit 75; }"""
    role = {"script": script, "credential": "acme", "slots": 1, "wip_limit": 1}
    ws.write_config(builder=role, tester=role)
    ws.write_queue(TASK, {**TASK, "id": "T2"}, {**TASK, "id": "T3", "status": "awaiting_test"})
    done = ws.run("--role", "builder", "--drain")
    assert (done.returncode, done.stderr.count("waits for credential acme until")) == (0, 1)
    worker = ws.start("--role", "tester")
    wait_for(lambda: "waits for credential acme until" in ws.log())
    assert ws.file("begun").split() == ["T1"]
    assert [ws.status(f"T{i}") for i in (1, 2, 3)] == ["ready", "ready", "awaiting_test"]
    (ws.path / "open").touch()
    (ws.path / ".agent-runs" / ".throttle-acme.json").unlink()
    worker.send_signal(signal.SIGHUP)
    ws.wait_status("ready_for_integrator", "T3")
    assert ws.log().count("waits for credential acme until") == 1


def test_a_budget_holds_for_real_attempts(ws: Workspace) -> None:
    """What the agent tells is charged; the role waits when it is spent, and over a restart.

    One that overspends parks its role until the worker is told to read its config again.
    """
    script = """echo '{"usage": {"input_tokens": 60, "output_tokens": 40}}' >$ROLECALL_RESULT_FILE
        [ $ROLECALL_TASK_ID != T3 ] || exit 1"""
    tasks = [{**TASK, "id": f"T{i}"} for i in range(1, 6)]
    budget = {"attempt": {"tokens": 100}, "total": {"cost_usd": 0.35}}
    price = {"input": 1000, "output": 1000}
    build(ws, script, *tasks, budget=budget, price=price, max_attempts=1, slots=1)
    assert ws.run("--role", "builder", "--drain").returncode == 1  # T3 fails, and has cost as much
    statuses = [ws.status(f"T{i}") for i in range(1, 6)]
    assert statuses == [*["awaiting_test"] * 2, "needs_manual", *["ready"] * 2]
    again = ws.run("--role", "builder", "--drain")
    assert "what is left of the total budget of builder (0.35 USD) is not enough" in again.stderr
    budget = {"attempt": {"tokens": 49}}
    build(ws, script, *tasks[3:], budget=budget, max_attempts=1, slots=1)
    worker = ws.start("--role", "builder")
    wait_for(lambda: "spent 100 tokens, its budget is 49 tokens: claims wait" in ws.log())
    assert (ws.status("T4"), ws.status("T5")) == ("awaiting_test", "ready")
    worker.send_signal(signal.SIGHUP)
    ws.wait_status("awaiting_test", "T5")


def test_a_cli_that_can_limit_itself_is_told_the_attempts_budget(ws: Workspace) -> None:
    """In its own words, and only where there is one; what it then tells is charged."""
    programs = ws.path / "bin"
    programs.mkdir()
    told = {"type": "result", "subtype": "success", "is_error": False, "total_cost_usd": 0.125}
    (programs / "claude").write_text(f"#!/bin/sh\necho \"$@\" >> argv\necho '{json.dumps(told)}'\n")
    (programs / "claude").chmod(0o755)
    path = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    for budget in ({}, {"attempt": {"cost_usd": 0.25}}):
        role = {"agent": "claude", "worktree": False, "evidence": False, "budget": budget}
        ws.write_config(tester=role)
        ws.write_queue({**TASK, "status": "awaiting_test"})
        ws.run("--role", "tester", "--once", env=path)
    without, limited = ws.file("argv").splitlines()
    assert "budget" not in without
    assert limited.endswith("--max-budget-usd 0.250000")
    lines = (ws.path / ".agent-runs" / ".spending.jsonl").read_text().splitlines()
    spent = [line["usage"]["cost_usd"] for line in map(json.loads, lines) if "usage" in line]
    assert spent == [0.125, 0.125]


def test_secrets_appear_nowhere(ws: Workspace) -> None:
    """Not in captured output, of a gate either, not in result files, the queue or the events.

    Broken once by reading the result file unmasked, and once by giving gates no mask.
    """
    secret = "hunter2-hunter2"  # noqa: S105  # what is to be masked
    env_file = ws.path / "secrets.env"
    env_file.write_text(f"TOKEN={secret}\n")
    env_file.chmod(0o600)
    said = '{"outcome": "success", "note": "used %s", "add_tasks": [{"id": "N", "title": "%s"}]}'
    script = (
        f"echo $TOKEN; echo $TOKEN > file; printf '{said}' $TOKEN $TOKEN > $ROLECALL_RESULT_FILE"
    )
    gate = ["sh", "-c", "cat file; test $ROLECALL_TOKEN -gt 1"]
    build(ws, f"{script}", env_file=str(env_file), gates=[gate])
    ws.run("--role", "builder", "--once")
    assert ws.status() == "needs_adapt"
    bad = '{"outcome": "error", "note": "no login with %s"}'
    build(ws, f"printf '{bad}' $TOKEN > $ROLECALL_RESULT_FILE", env_file=str(env_file))
    ws.run("--role", "builder", "--once")
    assert "no login with ***" in ws.task()["last_error"]
    (ws.path / "file").unlink()
    env_file.unlink()
    kept = [path for path in ws.path.rglob("*") if path.is_file()]
    assert [str(path) for path in kept if secret in path.read_text()] == []
    assert "***" in (ws.path / ".agent-runs" / "T1" / "1" / "gate-1.log").read_text()


def test_a_key_in_the_records_of_a_cli_is_masked(ws: Workspace) -> None:
    """A file that the CLI writes itself, and the words of an error in it: queue, logs, run folder.

    Broken once by masking only what the attempt captures: the key stood in ``last_error``.
    """
    key = "sk-swordfish-123"
    told = '{"info": {"exit_status": "E"}, "messages": [{"extra": {"exception_str": "bad %s"}}]}'
    script = f"""#!/bin/sh
while [ "$1" != --output ]; do shift; done
printf '{told}' "$OPENAI_API_KEY" > "$2"
exit 1
"""
    mini = ws.path / "bin" / "mini"
    mini.parent.mkdir()
    mini.write_text(script)
    mini.chmod(0o755)
    ws.write_config(builder={"agent": "mini", "worktree": False, "evidence": False})
    ws.write_queue({"id": "T1", "status": "ready"})
    path = f"{mini.parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OPENAI_API_KEY": key}
    ws.run("--role", "builder", "--once", env=env)
    assert ws.task()["last_error"] == "E: bad ***"
    kept = [path for path in ws.path.rglob("*") if path.is_file()]
    assert [str(path) for path in kept if key in path.read_text()] == []


def test_a_rejected_login_is_said_with_what_to_do(ws: Workspace) -> None:
    """In the task, and of the other tasks and roles in status; a CLI that is missing likewise.

    Broken once by going on: the queue was empty within a second, each task needed a person.
    """
    claude(ws.path / "bin", last=said("Not logged in", is_error=True))
    role: dict[str, Any] = {"agent": "claude", "worktree": False, "evidence": False}
    role["backoff"] = {"base": 600, "cap": 3600}
    ws.write_config(builder=role, tester=role)
    ids = [{"id": f"T{number}", "status": "ready"} for number in (1, 2, 3)]
    ws.write_queue(*ids, {"id": "X", "status": "awaiting_test"})
    env = {**os.environ, "PATH": f"{ws.path / 'bin'}:{os.environ['PATH']}"}
    passes = [ws.run("--role", n, "--once", env=env) for n in ("builder", "builder", "tester")]
    statuses = [ws.status(name) for name in ("T1", "T2", "T3", "X")]
    assert statuses == ["needs_manual", "ready", "ready", "awaiting_test"]
    told = ws.task("T1")["last_error"]
    assert told.startswith("Not logged in; log in: claude, then /login; or ")
    assert told.endswith("; then: invoke queue.retry T1")
    for each in passes[1:]:
        assert "waits for credential anthropic until" in each.stdout + each.stderr
    (ws.path / ".agent-runs" / ".throttle-anthropic.json").unlink()
    (ws.path / "bin" / "claude").unlink()
    ws.run("--role", "builder", "--once", env={**env, "PATH": "/usr/bin:/bin"})
    assert ws.task("T2")["last_error"].startswith("the agent cannot be started: claude: No such")
    assert "install it: npm install" in ws.task("T2")["last_error"]
    ws.run("--role", "builder", "--once", env=env)
    assert ws.status("T3") == "ready"


def test_a_plan_without_tasks_is_an_error(ws: Workspace) -> None:
    """Of a model; a command may plan by other means, and a story may have its tasks already.

    Broken once by taking it: the story stood in planning_complete for ever.
    """
    claude(ws.path / "bin", 'echo "{}" > "$ROLECALL_RESULT_FILE"')
    ws.write_config(planner={"agent": "claude", "worktree": False})
    child = {"id": "C", "status": "ready", "parent": "S2"}
    ws.write_queue(
        *({"id": f"S{i}", "type": "Story", "status": "needs_plan"} for i in (2, 1)), child
    )
    env = {**os.environ, "PATH": f"{ws.path / 'bin'}:{os.environ['PATH']}"}
    for _ in range(2):
        ws.run("--role", "planner", "--once", env=env)
    assert (ws.status("S1"), ws.status("S2")) == ("needs_plan", "planning_complete")
    assert ws.task("S1")["last_error"].startswith("the plan has no tasks")


def test_waiting_for_an_attempt_costs_nothing(ws: Workspace) -> None:
    """A pass in the foreground sleeps while the agent works.

    Broken once by never moving the time of the next look on: it looked a thousand times a second.
    """
    build(ws, "echo up > up; while [ ! -e go ]; do sleep 0.05; done", heartbeat=5, lease_ttl=60)
    worker = ws.start("--role", "builder", "--once")
    ws.file("up")
    ws.attempt_pid()

    seen: list[str] = []

    def sleeps() -> bool:
        seen.append(Path(f"/proc/{worker.pid}/schedstat").read_text().split()[0])  # time on a CPU
        return seen[-20:].count(seen[-1]) == 20

    wait_for(sleeps)
    (ws.path / "go").touch()
    assert worker.wait(20) == 0
