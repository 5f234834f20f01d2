"""``invoke doctor --in-unit``: each agent is tried as its attempts would run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon import agents
from daemon.config import Role
from daemon.fleet import trying
from daemon.fleet.finding import Finding
from daemon.lifecycle import DEFAULT_ROLES
from daemon.trial import Reply
from tests import standin
from tests.console import Operator
from tests.workspace import ROOT, wait_for

READY = Reply(
    program="/bin/claude",
    version="2.1.5",
    present=("ANTHROPIC_API_KEY",),
    outcome="success",
    seconds=3.14,
    usage={"input_tokens": 1000, "output_tokens": 50, "cost_usd": 0.004},
)


def role(name: str = "builder", **more: Any) -> Role:
    moves: Any = DEFAULT_ROLES[name]
    return Role(name, **moves)._replace(**{"agent": "claude", **more})


def found(reply: Reply | trying.Broken, **more: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in trying.words(role(**more), reply)}


def test_an_agent_that_answers_is_told_with_what_it_has_cost() -> None:
    """Where it is, its version, its credentials by name, its time, tokens and money."""
    findings = found(READY)
    assert {finding.state for finding in findings.values()} == {"ok"}
    assert findings["cli"].what == "Claude Code 2.1.5, /bin/claude"
    assert findings["credentials"].what == "set: ANTHROPIC_API_KEY"
    assert findings["answer"].what == "answered in 3.1 s, 1,050 tokens, USD 0.004"


@pytest.mark.parametrize(
    ("changes", "check", "state", "what", "hint"),
    [
        ({"version": "3.0.0"}, "cli", "warn", "was tried with 2.1.197", "first attempts"),
        ({"version": "", "trouble": "it timed out"}, "cli", "warn", "it timed out", "npm install"),
        (
            {"program": "", "path": "/bin"},
            "cli",
            "fail",
            "that attempts have (/bin)",
            "npm install",
        ),
        ({"closed": ("/h/.claude",)}, "state", "fail", "/h/.claude cannot be", "write_paths"),
        ({"present": ()}, "answer", "ok", "answered", ""),
        ({"outcome": "blocked", "note": "401"}, "answer", "fail", "401", "log in: claude"),
        ({"outcome": "throttled", "retry_after": 61.0}, "answer", "warn", "limit", "in 61 s"),
        ({"outcome": "error", "note": "API Error: 500"}, "answer", "fail", "500", "mend it"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_type(
    changes: dict[str, Any], check: str, state: str, what: str, hint: str
) -> None:
    """Only a limit that passes is a warning among what an agent may answer."""
    finding = found(READY._replace(**changes))[check]
    assert finding.state == state
    assert what in finding.what
    assert hint in finding.hint


def test_a_preset_that_was_never_tried_says_so() -> None:
    """It is from documents alone."""
    name = next(name for name in agents.NAMES if not getattr(agents.find(name), "tried", ""))
    finding = found(READY, agent=name)["cli"]
    assert (finding.state, "never tried" in finding.what) == ("warn", True)


def test_a_trial_that_cannot_be_made_fails() -> None:
    """A reply of an agent that is not there is no reply."""
    finding = found(trying.Broken("Failed at step NAMESPACE"))["trial"]
    assert (finding.state, "NAMESPACE" in finding.what) == ("fail", True)


def test_roles_whose_trial_would_be_the_same_are_tried_once() -> None:
    """Another model, account or argument is another trial; gates and times are not."""
    same = [role(), role("refiner", gates=(("true",),), timeout=5.0)]
    others = [role("tester", model="m"), role("planner", env_file="/e"), role("integrator")]
    others[2] = others[2]._replace(env={"A": "b"})
    none = role("tester", agent=None)
    assert trying.alike([*same, *others, none]) == [same, *([each] for each in others)]


class Tried:
    """An operator whose one builder runs a stand-in of Claude Code, and what the doctor says."""

    def __init__(self, path: Path, script: str = "", last: str = "") -> None:
        self.home, self.scratch = path / "home", path / "scratch"
        self.home.mkdir()
        self.scratch.mkdir()
        self.program = standin.claude(path / "bin", script, last)
        self.operator = Operator(
            path,
            run=["builder"],
            workspace=str(path / "shop"),
            roles={"builder": {"agent": "claude", "pass_env": ["EXTRA"], "kill_grace": 0.1}},
        )
        self.environ = {
            "HOME": str(self.home),
            "PATH": f"{path}/bin:{os.environ['PATH']}",
            "TMPDIR": str(self.scratch),
            "ANTHROPIC_API_KEY": "sk-swordfish",
            "EXTRA": "1",
            "SECRET_OF_OTHERS": "1",
        }

    def doctor(self, *arguments: str) -> dict[str, dict[str, str]]:
        done = self.operator.invoke("doctor", "--in-unit", "--json", *arguments, **self.environ)
        assert "swordfish" not in done.stdout + done.stderr
        assert "a few tokens" in done.stderr
        findings: list[dict[str, str]] = json.loads(done.stdout)
        assert done.returncode == int(any(each["state"] == "fail" for each in findings))
        return {each["check"]: each for each in findings}

    def is_clean(self) -> bool:
        """Whether neither a file nor a process of a trial is left."""
        return not list(self.scratch.iterdir()) and not running(self.scratch)


def running(folder: Path) -> list[str]:
    """The processes that hold the folder in their environment or as their working directory."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.fsencode(folder) in Path("/proc", entry, "environ").read_bytes():
                found.append(entry)
        except OSError:
            continue
    return found


def test_a_trial_is_run_as_an_attempt_is(tmp_path: Path) -> None:
    """A repository of its own, no terminal, and of all variables those of an attempt."""
    script = """
    ! [ -t 0 ] && ! [ -t 1 ] && ! [ -t 2 ] && [ "$TERM" = dumb ] && git rev-parse --git-dir &&
      [ "$EXTRA$SECRET_OF_OTHERS" = 1 ] && [ "$ANTHROPIC_API_KEY" = sk-swordfish ] &&
      [ "$ROLECALL_ROLE$ROLECALL_TASK_ID" = buildertrial ] && pwd > ~/tried || exit 9
    echo "$ANTHROPIC_API_KEY"
    sleep 300 &
    """
    tried = Tried(tmp_path, script)
    findings = tried.doctor()
    assert findings["answer"]["what"].startswith("answered in ")
    assert findings["answer"]["what"].endswith(" s, 1,050 tokens, USD 0.004")
    assert findings["cli"]["what"] == f"Claude Code {standin.VERSION}, {tried.program}"
    assert findings["credentials"]["what"] == "set: ANTHROPIC_API_KEY, EXTRA"
    assert findings["state"]["state"] == "ok"  # without a sandbox, the CLI makes its folders itself
    where = (tried.home / "tried").read_text()
    assert where.startswith(str(tried.scratch))
    assert tried.is_clean()


def test_what_the_cli_says_of_itself_counts(tmp_path: Path) -> None:
    """Exit status 0 and an answer do not make a login."""
    last = standin.said("Invalid API key · Please run /login", is_error=True)
    finding = Tried(tmp_path, last=last).doctor()["answer"]
    assert finding["state"] == "fail"
    assert "/login" in finding["what"]
    assert finding["hint"].startswith("log in: claude")


def test_an_agent_that_never_answers_is_ended(tmp_path: Path) -> None:
    """With all its processes, when its time is up."""
    tried = Tried(tmp_path, "setsid sleep 300 & sleep 300")
    finding = tried.doctor("--answer-timeout", "1")["answer"]
    assert (finding["state"], "timed out" in finding["what"]) == ("fail", True)
    assert tried.is_clean()


def test_an_interrupted_doctor_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a trial."""
    tried = Tried(tmp_path, "touch ~/began; sleep 300")
    environ = {**os.environ, **tried.environ}
    environ["ROLECALL_INVENTORY"] = str(tried.operator.inventory)
    with subprocess.Popen(
        [sys.executable, "-m", "invoke", "doctor", "--in-unit"],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as doctor:
        wait_for((tried.home / "began").exists, "a trial")
        doctor.send_signal(signal.SIGINT)
        assert doctor.wait(30) == 130
    assert tried.is_clean()
