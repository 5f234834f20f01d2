"""How workers are, from what systemctl shows: the words of systemd 252."""

from __future__ import annotations

import pytest

from daemon.fleet import supervisor, unitfacts

RUNNING = """\
Id=agent-builder.service
LoadState=loaded
ActiveState=active
SubState=running
MainPID=142
ActiveEnterTimestamp=@1795654800
StateChangeTimestamp=@1795654800
NRestarts=1
StatusText=waiting for a task
Result=success
ExecMainStatus=0
"""
MISSING = """\
Id=agent-tester.service
LoadState=not-found
ActiveState=inactive
SubState=dead
MainPID=0
ActiveEnterTimestamp=
StateChangeTimestamp=
NRestarts=0
StatusText=
Result=success
ExecMainStatus=0
"""


def failed(**facts: str) -> str:
    """The text of the worker that has failed, where systemd says this of it."""
    said = dict(line.split("=", 1) for line in RUNNING.splitlines())
    said |= {"ActiveState": "failed", "SubState": "failed", "MainPID": "0", **facts}
    text = "".join(f"{key}={value}\n" for key, value in said.items())
    state = unitfacts.read(text)["agent-builder.service"]
    assert (state.state, state.pid) == ("failed", None)
    return state.text


def test_each_unit_that_is_shown_has_its_state() -> None:
    """With blank lines between them."""
    found = unitfacts.read(f"{RUNNING}\n{MISSING}")
    running = found["agent-builder.service"]
    assert running == ("running", 142, 1795654800.0, 1, "waiting for a task")
    assert found["agent-tester.service"] == unitfacts.MISSING


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"Result": "exit-code", "ExecMainStatus": "3"}, "ended with exit status 3"),
        ({"Result": "signal", "ExecMainStatus": "9"}, "ended with signal 9"),
        ({"Result": "oom-kill", "ExecMainStatus": "9"}, "killed: out of memory"),
        (
            {"Result": "exit-code", "ExecMainStatus": "78"},
            "exit status 78: its configuration, or its queue, cannot be used",
        ),
    ],
)
def test_why_a_worker_failed_is_told(facts: dict[str, str], why: str) -> None:
    """An old status of it is not the reason."""
    assert failed(**facts) == why


def test_a_worker_s_own_words_come_first() -> None:
    """It has said why it ends; a loop of starts is told beside that."""
    said = {"StatusText": "error: all.yml:3: unknown key", "ExecMainStatus": "78"}
    assert failed(Result="exit-code", **said) == "all.yml:3: unknown key"
    both = failed(Result="start-limit-hit", **said)
    assert both == "started too often in too short a time; all.yml:3: unknown key"


def test_a_worker_that_tried_often_says_why_once() -> None:
    """Its status, then what the log has beside it."""
    text = "~/work.env: it is open to others; hint:  chmod 600 work.env"
    again = ["error: ~/work.env: it is open to others", "hint:  chmod 600 work.env", "", "a: exit"]
    assert supervisor.reason(text, again * 3) == f"{text}\na: exit"
    assert supervisor.reason("ended", ["x", "y", "x"]) == "ended\nx\ny"
    assert supervisor.reason("ended", []) == "ended"
