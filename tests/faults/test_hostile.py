"""Hostile input, in front of real workers: a clear error, no harm, and no other task is stopped."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workspace import Workspace, wait_for

HERE = 'cd "$(dirname "$ROLECALL_RESULT_FILE")"'
TONGUES = r"\\u001b]0;owned\\u0007\\u009b2J\\ud800\\u202e"  # a shell halves the backslashes
#: What an agent does to its own files, and what its task's last_error says then ("" for success).
AGENTS = {
    "good": ("exit 0", ""),
    "result-pipe": (f"{HERE}; mkfifo result.json", "no regular file"),
    "result-folder": (f"{HERE}; mkdir result.json", "no regular file"),
    "result-link": (f"{HERE}; ln -s ../../../victim result.json", "cannot be opened"),
    "result-endless": (f"{HERE}; ln -s /dev/zero result.json", "cannot be opened"),
    "result-huge": (f"{HERE}; head -c 2000000 /dev/zero > result.json", "larger than 1 MiB"),
    "result-deep": (f"{HERE}; head -c 900000 /dev/zero | tr '\\0' '[' > result.json", "not JSON"),
    "result-nan": (f'{HERE}; echo \'{{"usage": {{"cost_usd": NaN}}}}\' > result.json', "usage"),
    "log-link": (f"{HERE}; ln -s ../../../victim gate-1.log", "output cannot be kept"),
    "log-pipe": (f"{HERE}; mkfifo gate-1.log", "output cannot be kept"),
    "adds-a-path": (
        f'{HERE}; echo \'{{"add_tasks": [{{"id": "../../victim"}}]}}\' > result.json',
        "no valid id",
    ),
    "adds-half": (f'{HERE}; echo \'{{"note": "half \\\\ud800"}}\' > result.json', ""),
    "speaks-in-tongues": (
        f'{HERE}; echo \'{{"outcome": "error", "note": "{TONGUES}"}}\' > result.json',
        "owned",
    ),
}


def test_what_agents_do_to_their_files_harms_nobody(ws: Workspace) -> None:
    """Each is an error of its own attempt alone, in words; nothing is written through a link.

    Broken once by following links to logs of gates, and once by writing events as they come: this
    failed both times.
    """
    ws.write_config(
        builder={
            "script": "exec sh ./$ROLECALL_TASK_ID",
            "gates": [["true"]],
            "wip_limit": 99,
            "slots": 4,
            "max_attempts": 1,
        }
    )
    for name, (script, _) in AGENTS.items():
        (ws.path / name).write_text(script)
    (ws.path / "victim").write_text("whole")
    ws.write_queue(*({"id": name, "title": name, "status": "ready"} for name in AGENTS))
    done = ws.run("--role", "builder", "--drain")
    assert done.returncode == 1
    found = {name: ws.task(name) for name in AGENTS}
    for name, (_, error) in AGENTS.items():
        expected = "needs_manual" if error else "awaiting_test"
        assert (name, found[name]["status"]) == (name, expected), found[name].get("last_error")
        assert error in (found[name].get("last_error") or "")
    assert (ws.path / "victim").read_text() == "whole"
    assert "Traceback" not in done.stderr
    for text in (done.stderr, (ws.path / ".agent-daemon-logs" / "events.jsonl").read_text()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert len(ws.events()) >= 2 * len(AGENTS)
    assert ws.tree() == []


TITLES = {
    "half": "half a character: \ud800",
    "template": "{{ 7 * 7 }} {% raise %} ${HOME} $(touch victim) `touch victim`",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b2J\u202e\r\n- id: X",
    "long": "x" * 300_000,
    "nothing": "\0",
}


@pytest.mark.parametrize("via", ["stdin", "file", "argument"])
def test_hostile_titles_reach_the_agent_as_they_are(ws: Workspace, via: str) -> None:
    """They are never run, rendered or printed; what no argument can hold fails alone."""
    script = 'cat "$ROLECALL_TASK_FILE" > "$ROLECALL_TASK_ID.task"; cat > "$ROLECALL_TASK_ID.in"'
    ws.write_config(
        builder={"script": script, "prompt_via": via, "wip_limit": 99, "max_attempts": 1}
    )
    prompts = ws.path / ".oodatcaa" / "prompts"
    prompts.mkdir(parents=True)
    (prompts / "builder.md").write_text("Do {{ task.title }}")
    ws.write_queue(*({"id": k, "title": v, "status": "ready"} for k, v in TITLES.items()))
    done = ws.run("--role", "builder", "--drain")
    no_argument = {"half", "long", "nothing"} if via == "argument" else set()
    for name, title in TITLES.items():
        if name in no_argument:
            assert ws.status(name) == "needs_manual"
            continue
        assert ws.status(name) == "awaiting_test", ws.task(name)
        assert json.loads((ws.path / f"{name}.task").read_text())["title"] == title
        if via == "stdin":
            prompt = (ws.path / f"{name}.in").read_bytes()
            assert prompt == f"Do {title}".encode(errors="backslashreplace")
    assert {name: ws.task(name)["title"] for name in TITLES} == TITLES
    assert not (ws.path / "victim").exists()
    assert "Traceback" not in done.stderr
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.stderr)


def nested(depth: int) -> str:
    """A queue whose first task holds so deep a value."""
    task = '{"id": "DEEP", "status": "ready", "x": ' + "[" * depth + "]" * depth + "}"
    return '{"tasks": [' + task + ', {"id": "T1", "status": "ready"}]}'


QUEUES: dict[str, bytes] = {
    "equal keys": b'{"tasks": [\n{"id": "T1", "status": "ready", "id": "T2"}]}',
    "equal keys at the top": b'{"tasks": [],\n"tasks": []}',
    "no number": b'{"tasks": [\n{"id": "T1", "status": "ready", "priority": NaN}]}',
    "endless": b'{"tasks": [\n{"id": "T1", "status": "ready", "priority": -Infinity}]}',
    "deep": nested(200_000).encode(),
    "not UTF-8": b'{"tasks": [\n{"id": "T1", "status": "ready", "title": "\xe9"}]}',
    "a NUL": b'{"tasks": [\n{"id": "T1", "status": "ready"}]}\0',
    "two": b'{"tasks": []}\n{"tasks": []}',
    "a list": b"[]",
    "empty": b"",
    "too large": b'{"tasks": []}' + b" " * (65 << 20),
}


@pytest.mark.parametrize("kind", QUEUES)
def test_a_hostile_queue_is_refused_and_left_alone(ws: Workspace, kind: str) -> None:
    """Exit status 78 and where it is wrong; not a byte of it is changed, nothing is made."""
    ws.write_config(builder={"script": "touch ran"})
    ws.queue.parent.mkdir(parents=True)
    ws.queue.write_bytes(QUEUES[kind])
    done = ws.run("--role", "builder", "--once")
    assert done.returncode == 78, done.stderr
    assert str(ws.queue) in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000
    assert ws.queue.read_bytes() == QUEUES[kind]
    assert not (ws.path / "ran").exists()
    assert ws.leases() == []


@pytest.mark.parametrize("depth", [200, 700, 900, 940, 960, 980])
def test_a_deep_task_stops_no_other(ws: Workspace, depth: int) -> None:
    """What can just be read is no task's end, what cannot is a queue that is refused."""
    ws.write_config(builder={"script": "exit 0", "max_attempts": 1})
    ws.queue.parent.mkdir(parents=True)
    ws.queue.write_text(nested(depth))
    done = ws.run("--role", "builder", "--drain")
    assert "Traceback" not in done.stderr
    assert done.returncode in {0, 1} or (done.returncode == 78 and depth > 900), done.stderr
    if done.returncode != 78:  # too deep for this test, perhaps, which reads from deeper down
        assert re.search(r'"id": "T1", "status": "awaiting_test"', ws.queue.read_text())
    assert ws.leases() == []


def test_a_queue_of_sixty_megabytes_is_worked_on(ws: Workspace) -> None:
    """It is slow, not wrong: all that was not to be changed is as it was."""
    ws.write_config(builder={"script": "exit 0", "timeout": 60})
    big = {"id": "BIG", "status": "done", "description": "x" * (60 << 20)}
    ws.write_queue(big, {"id": "T1", "status": "ready"})
    done = ws.run("--role", "builder", "--once")
    assert done.returncode == 0, done.stderr
    assert (ws.status("T1"), ws.task("BIG") == big) == ("awaiting_test", True)


Place = Callable[[Path], object]
PLACES: dict[str, tuple[str, Place]] = {
    "role's log": (".agent-daemon-logs/builder.log", lambda p: p.symlink_to("../victim")),
    "events": (".agent-daemon-logs/events.jsonl", lambda p: p.symlink_to("../victim")),
    "logs' folder": (".agent-daemon-logs", lambda p: p.write_text("")),
    "run folder": (".agent-runs/T0", lambda p: p.symlink_to("../elsewhere")),
    "run folder, a file": (".agent-runs/T0", lambda p: p.write_text("")),
    "lease": (".leases/T0.json", lambda p: p.symlink_to("../victim")),
    "lease's lock": (".locks/lease-T0.lock", lambda p: p.symlink_to("../victim")),
    "lease's lock, a pipe": (".locks/lease-T0.lock", os.mkfifo),
    "left aside": (
        ".oodatcaa/work/.SPRINT_QUEUE.json.new",
        lambda p: p.symlink_to("../../victim"),
    ),
    "lease left aside": (".leases/.T1.json.new", lambda p: p.symlink_to("../victim")),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_lies_in_our_way_is_not_followed(ws: Workspace, place: str) -> None:
    """Links, pipes and files where ours would be: nothing is written behind them, T1 is done.

    Broken once by following links: to run folders, to locks, to logs. Each time its case failed.
    """
    ws.write_config(builder={"script": "exit 0", "wip_limit": 2})
    ws.write_queue({"id": "T0", "status": "ready"}, {"id": "T1", "status": "ready"})
    (ws.path / "victim").write_text("{}")
    (ws.path / "elsewhere").mkdir()
    name, make = PLACES[place]
    path = ws.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    done = ws.run("--role", "builder", "--drain")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert ws.status("T1") == "awaiting_test", done.stderr
    assert (ws.path / "victim").read_text() == "{}"
    assert list((ws.path / "elsewhere").iterdir()) == []
    if "T0" in name:
        assert ws.status("T0") == "ready"
        assert done.stderr.count(name) in {1, 2}, done.stderr  # where, and what to look at
        assert os.path.lexists(path)


def test_a_secret_that_others_may_read_stops_its_own_role(ws: Workspace) -> None:
    """Opened to others while the worker runs: its task goes to a person, with the command to type.

    The secret does not reach the agent, and the other role's task is done.
    """
    secret = ws.path / "secret.env"
    secret.write_text("TOKEN=swordfish\n")
    secret.chmod(0o600)
    roles: dict[str, dict[str, Any]] = {
        "builder": {"script": "env > builder.env", "env_file": str(secret)},
        "tester": {"script": "exit 0"},
    }
    ws.write_config(**roles)
    ws.write_queue()
    worker = ws.start()
    wait_for(lambda: "started" in ws.log())
    secret.chmod(0o640)
    ws.write_queue({"id": "T1", "status": "ready"}, {"id": "T2", "status": "awaiting_test"})
    ws.wait_status("needs_manual")
    ws.wait_status("ready_for_integrator", "T2")
    assert "open to others" in ws.task()["last_error"]
    assert not (ws.path / "builder.env").exists()
    assert "swordfish" not in ws.log()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
