"""Presets: how they are found, run and read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from daemon import agents, config
from daemon.agents import preset as presets
from daemon.agents.preset import Preset, Record, Traces
from daemon.model import Outcome
from tests.workspace import Workspace

NOW = 1_795_643_000.0  # 2026-11-25, 21:43 UTC
TOKENS = {"input_tokens": 5, "output_tokens": 2}


def traces(folder: Path, *lines: object, status: int = 0, stderr: str = "") -> Traces:
    """The traces of a run that printed these lines, each as JSON unless it is text."""
    text = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    (folder / "stdout.log").write_text("".join(f"{line}\n" for line in text))
    (folder / "stderr.log").write_text(stderr)
    return Traces(status, str(folder), NOW)


def a_preset(name: str) -> Preset:
    found = agents.find(name)
    assert found
    return found


@pytest.mark.parametrize("name", agents.NAMES)
def test_each_preset_is_whole(name: str) -> None:
    """It is found under its name, says what it is, and reads a run that printed nothing."""
    preset = a_preset(name)
    assert preset.name == name
    assert preset.title
    assert preset.argv
    assert preset.provider
    assert preset.version
    assert preset.install
    nothing = presets.read(preset, Traces(0, "/nonexistent", NOW))
    assert nothing.outcome is Outcome.ERROR, "exit 0 and no record is no success"
    assert nothing.note


def test_command_is_no_preset() -> None:
    """Nor is a role without an agent, or a name that nobody knows."""
    assert [agents.find(name) for name in ("command", None, "preset", "os")] == [None] * 4


def test_events_are_read_one_line_at_a_time(tmp_path: Path) -> None:
    """What is no JSON object is passed over, a line of any length included."""
    huge = json.dumps({"x": "y" * presets.LINE})
    log = traces(tmp_path, {"a": 1}, "Warning: {", "[1]", huge, "{broken", "[" * 99999, {"b": 2})
    assert list(log.events()) == [{"a": 1}, {"b": 2}]


def test_a_document_may_have_words_before_it(tmp_path: Path) -> None:
    """A CLI prints notices, then its JSON over many lines."""
    log = traces(tmp_path, "Loaded credentials.", json.dumps({"response": "x"}, indent=2))
    assert log.document() == {"response": "x"}
    assert traces(tmp_path, "nothing").document() == {}


def test_a_broken_record_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """Whatever form the output has, the task settles."""

    def read(_: Traces) -> Record:
        raise KeyError("usage")

    found = presets.read(a_preset("claude")._replace(read=read), traces(tmp_path))
    assert found == Record(Outcome.ERROR, "its output is not as expected: KeyError: 'usage'")


def test_the_llm_loop_says_it_in_its_last_line(tmp_path: Path) -> None:
    """A JSON object; without one the end of stderr is the note."""
    llm = a_preset("llm")
    said = {
        "outcome": "throttled",
        "note": "429",
        "retry_after": 9,
        "usage": TOKENS,
        "session": "s",
    }
    found = presets.read(llm, traces(tmp_path, {"outcome": "success"}, said))
    assert found == Record(Outcome.THROTTLED, "429", 9, TOKENS, "s")
    far = presets.read(llm, traces(tmp_path, {**said, "retry_after": 1e14}))
    assert far.retry_after == 366 * 86400
    assert not presets.read(llm, traces(tmp_path, {**said, "denied": False})).denied
    for odd in ({"outcome": "lost"}, {"outcome": ["success"]}, {}):
        assert presets.read(llm, traces(tmp_path, odd, stderr="oh")).outcome is Outcome.ERROR
    assert presets.read(llm, traces(tmp_path, stderr="no module")).note == "no module"


def written(tmp_path: Path, role: str) -> config.Role:
    path = tmp_path / "rc.yml"
    path.write_text(f"workspace: {tmp_path}\nroles: {{builder: {role}, tester: {role}}}\n")
    return config.load(str(path)).roles["builder"]


def test_a_preset_brings_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worktree, evidence of builders, its CLI's folders; what the role says itself wins."""
    monkeypatch.setenv("HOME", str(tmp_path))
    role = written(tmp_path, "{agent: claude, write_paths: [x]}")
    assert (role.worktree, role.evidence, role.prompt_via) == (True, True, "stdin")
    claude = [f"{tmp_path}/{name}" for name in (".claude", ".cache", "x")]
    assert list(role.write_paths) == claude
    role = written(tmp_path, "{agent: claude, worktree: false, prompt_via: file}")
    assert (role.worktree, role.evidence, role.prompt_via) == (False, False, "file")


def test_a_config_with_a_preset_survives_being_written(tmp_path: Path) -> None:
    """What `install` writes for the units is read as what it was made from."""
    written(tmp_path, "{agent: claude, model: m, write_paths: [~/x]}")
    made = config.load(str(tmp_path / "rc.yml"))
    (tmp_path / "again.yml").write_text(config.to_json(made))
    assert config.load(str(tmp_path / "again.yml")) == made
    assert config.from_json(config.to_json(made)) == made


CLAUDE = """#!/bin/sh
printf '%s\\n' "$@" > "$ROLECALL_WORKSPACE/argv"
env > "$ROLECALL_WORKSPACE/env"
cat > prompt-seen
cat "$ROLECALL_WORKSPACE/answer"
exit $(cat "$ROLECALL_WORKSPACE/status")
"""
RESULT = {
    "type": "result",
    "subtype": "success",
    "is_error": False,
    "result": "All done.",
    "session_id": "s1",
    "total_cost_usd": 0.25,
    "usage": {"input_tokens": 4, "cache_read_input_tokens": 1, "output_tokens": 2},
}


class Stand:
    """A workspace whose `claude` is a script that answers as it is told."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        git = ("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-C", str(ws.path))
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "First"], check=True)
        (ws.path / "bin").mkdir()
        program = ws.path / "bin" / "claude"
        program.write_text(CLAUDE)
        program.chmod(0o755)

    def run(self, name: str, task: dict[str, Any], answer: object, status: int = 0) -> str:
        """One attempt of the role; the status that the task has then."""
        (self.ws.path / "answer").write_text(json.dumps(answer) + "\n")
        (self.ws.path / "status").write_text(str(status))
        self.ws.write_queue({"id": "T1", "type": "Build", **task})
        path = f"{self.ws.path}/bin:{os.environ['PATH']}"
        key = {"ANTHROPIC_API_KEY": "sk-secret-value"}
        self.ws.run("--role", name, "--once", env={**os.environ, "PATH": path, **key})
        return self.ws.status()


@pytest.fixture
def stand(ws: Workspace) -> Stand:
    role = {"agent": "claude", "model": "opus", "args": ["--add-dir", "{workspace}"]}
    ws.write_config(builder=role, tester=role)
    return Stand(ws)


def test_a_preset_is_run_as_it_says(stand: Stand) -> None:
    """Its argv, then model and args; the prompt on stdin; its environment and its API key."""
    assert stand.run("builder", {"status": "ready"}, RESULT) == "awaiting_test", stand.ws.log()
    claude = a_preset("claude")
    argv = (stand.ws.path / "argv").read_text().splitlines()
    assert argv == [*claude.argv[1:], "--model", "opus", "--add-dir", str(stand.ws.path)]
    assert "T1" in (stand.ws.path / ".worktrees/T1/prompt-seen").read_text()
    env = dict(
        line.split("=", 1)
        for line in (stand.ws.path / "env").read_text().splitlines()
        if "=" in line
    )
    assert env["ANTHROPIC_API_KEY"] == "sk-secret-value"
    assert claude.env.items() <= env.items()


def test_a_record_of_failure_is_no_success(stand: Stand) -> None:
    """Whatever the exit status says, and though the worktree has changed."""
    assert stand.run("builder", {"status": "ready"}, {**RESULT, "is_error": True}) == "ready"
    assert stand.ws.task()["attempts"] == 1
    assert stand.run("builder", {"status": "ready"}, {"type": "system"}) == "ready"
    assert stand.run("builder", {"status": "ready"}, RESULT, status=1) == "ready"


def test_a_role_without_evidence_needs_a_verdict(stand: Stand) -> None:
    """A tester whose CLI is content, and which says nothing in its result file, passed nothing."""
    assert stand.run("tester", {"status": "awaiting_test"}, RESULT) == "awaiting_test"
    assert "no verdict" in stand.ws.task()["last_error"]
