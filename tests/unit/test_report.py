"""What is said of hosts that failed, and what a command is worth then."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.errors import ConfigError, RolecallError
from daemon.fleet import agents, report
from daemon.fleet.answers import PUT_BACK, Done, Installed, Row, Switched, known
from daemon.fleet.connection import Local, NoAnswer, Unreachable
from daemon.fleet.fanout import Answer
from daemon.fleet.finding import Finding
from daemon.fleet.output import Style
from daemon.fleet.report import Failures
from daemon.inventory import Host

WEB1, WEB2, WEB3 = (Host(f"web{number}", {}, {}) for number in (1, 2, 3))
GONE = NoAnswer("no answer within 10 s", hint="ssh web2")
WRONG = ConfigError("it is wrong", where="all.yml:3")


def test_an_unreachable_host_decides_the_exit_status() -> None:
    """A host that cannot be asked may be worse than any that says what is wrong with it."""
    failures = Failures([WEB1, WEB2, WEB3])
    assert failures.exit_status == 0
    failures.count(WEB1, 1)
    assert failures.exit_status == 1
    failures.add(WEB2, WRONG)
    assert failures.exit_status == 78
    failures.add(WEB3, GONE)
    assert failures.exit_status == 4


def test_failed_hosts_are_listed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """In the inventory's order, each with its reason; control characters are escaped.

    The doctor looks closer, but not at one that ssh does not reach: ssh itself does.
    """
    failures = Failures([WEB1, WEB2, WEB3])
    failures.add(WEB3, RolecallError("a \x1b[2J"))
    failures.add(WEB2, GONE)
    failures.count(WEB1, 1)
    assert failures.tell() == 4
    assert capsys.readouterr().err == (
        "web2: error: no answer within 10 s\nhint:  ssh web2\nweb3: error: a \\x1b[2J\n"
        "3 of 3 hosts failed; look closer: invoke doctor --limit web1,web3; ssh web2\n"
    )


def test_a_host_that_says_itself_why_not_is_for_the_doctor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its user manager may not run: ssh reaches it all the same."""
    failures = Failures([WEB1, WEB2])
    failures.add(WEB1, Unreachable("the user manager does not run"))
    assert failures.tell() == 4
    assert capsys.readouterr().err.endswith("look closer: invoke doctor --limit web1\n")


def test_the_doctor_s_json_has_every_host(capsys: pytest.CaptureFixture[str]) -> None:
    """One that cannot be reached, too."""
    found = Finding("git", "ok", "2.39")._asdict()
    answers: list[Answer[Any]] = [Answer(WEB2, None, GONE), Answer(WEB1, [found], None)]
    assert report.print_findings([WEB1, WEB2], answers, json=True) == 4
    one, two = json.loads(capsys.readouterr().out)
    assert one == {"host": "web1", **found}
    assert two == {
        "host": "web2",
        "check": "reach",
        "state": "fail",
        "what": "no answer within 10 s",
        "hint": "ssh web2",
        "role": "",
    }


def test_one_host_needs_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """Its error is all there is to say."""
    failures = Failures([WEB1])
    failures.add(WEB1, WRONG)
    assert failures.tell() == 78
    assert capsys.readouterr().err == "web1: error: all.yml:3: it is wrong\n"


def test_json_is_one_document_in_the_inventory_s_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever host was first; one that failed has its error, and no changes."""
    done = Installed("x", "pidfile").facts()
    answers: list[Answer[Any]] = [Answer(WEB2, None, GONE), Answer(WEB1, done, None)]
    status = report.print_installed([WEB1, WEB2], answers, check=False, diff=False, json=True)
    found = json.loads(capsys.readouterr().out)
    assert status == 4
    assert [(each["host"], each["error"] is None) for each in found] == [
        ("web1", True),
        ("web2", False),
    ]
    assert found[1]["changes"] == []


def test_a_worker_that_failed_counts_its_host(capsys: pytest.CaptureFixture[str]) -> None:
    """Its reason stands below its line; the exit status is what the worst deserves."""
    bad = Done("web1", "builder", "not started", ok=False, note="why")
    answers = [Answer(WEB1, [bad, Done("web1", "tester", "started")], None)]
    assert report.print_done([WEB1, WEB2], answers, None) == 1
    said = capsys.readouterr()
    assert said.out == "web1: builder: not started\n  why\nweb1: tester: started\n"
    assert said.err == "1 of 2 hosts failed; look closer: invoke doctor --limit web1\n"


@pytest.mark.parametrize("facts", [None, 7, [], "x", {"role": "builder"}, {"host": "x"}])
def test_an_answer_that_makes_no_sense_is_an_error(facts: object) -> None:
    """A host may run anything; it is told in our words, not in a traceback."""
    with pytest.raises(RolecallError, match="makes no sense"):
        known(Row, facts)


@pytest.mark.parametrize(
    "facts", [7, [7], [{"host": "x"}], {"changes": 1, "host": "", "supervisor": ""}]
)
def test_nonsense_of_one_host_is_its_own_error(
    facts: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others' results are printed all the same."""
    answers: list[Answer[Any]] = [
        Answer(WEB1, facts, None),
        Answer(WEB2, Installed("web2", "pidfile").facts(), None),
    ]
    assert report.print_installed([WEB1, WEB2], answers, check=False, diff=False, json=False) == 1
    said = capsys.readouterr()
    assert said.out == "web1: failed\nweb2: nothing to do\n"
    assert "web1: error: its answer makes no sense here" in said.err
    assert report.print_findings([WEB1], [Answer(WEB1, facts, None)], json=False) == 1


ROW = {"host": "a", "role": "b", "supervisor": "c", "state": "running"}
WORK = {"task_id": "T1", "attempt": 1, "pid": 1}


@pytest.mark.parametrize(
    "facts",
    [
        *({**ROW, "working_on": [{**WORK, "seconds": float(each)}]} for each in ("inf", "nan")),
        {**ROW, "restarts": 10**400},
        {**ROW, "pid": "x"},
        {**ROW, "since": 7},
        {**ROW, "working_on": {}},
        *({**ROW, "worktrees": each} for each in ({"a": 1}, [], [1], "x", {})),
        *({**ROW, "worktrees": {"number": 1, "bytes": each}} for each in ("x", 10**400)),
    ],
)
def test_a_row_that_could_not_be_printed_is_an_error(facts: object) -> None:
    """Of its host, and found before anything is printed."""
    with pytest.raises(RolecallError, match="makes no sense"):
        Row.of(facts)


def test_a_newer_count_of_worktrees_is_understood() -> None:
    """Its further keys are left out."""
    used = {"number": 2, "bytes": 9, "new": 1}
    row = Row.of({**ROW, "worktrees": used})
    assert row.worktrees == {"number": 2, "bytes": 9, "whole": True}


CHANGE = {"host": "a", "path": "", "kind": "zap"}


@pytest.mark.parametrize(
    "more", [{"changes": [CHANGE]}, {"changes": 5}, {"notes": [7]}, {"notes": "x"}, {"home": None}]
)
@pytest.mark.parametrize("kind", [Installed, Switched])
def test_changes_that_could_not_be_told_are_an_error(
    kind: type[Installed | Switched], more: dict[str, Any]
) -> None:
    """Of an install and of a deploy."""
    with pytest.raises(RolecallError, match="makes no sense"):
        kind.of({"host": "a", "supervisor": "b", "state": "deployed", **more})


@pytest.mark.parametrize("state", ["zap", "", None, 7])
def test_no_state_of_a_deploy_is_taken_on_trust(state: object) -> None:
    """One that is not known could be good or bad; one that failed says why, in any case."""
    with pytest.raises(RolecallError, match="makes no sense"):
        Switched.of({"host": "a", "supervisor": "b", "state": state})
    failed = Switched.of({"host": "a", "supervisor": "b", "state": "put back"})
    assert [each.what for each in failed.problems] == ["it failed, and does not say why"]


@pytest.mark.parametrize("status", [0, -5, 256, 999])
def test_a_worker_s_exit_status_is_one(status: int) -> None:
    """What failed is never worth 0."""
    facts = {"host": "a", "role": "b", "did": "not started", "ok": False, "exit_code": status}
    assert Done.of(facts).exit_code == 1


def test_a_finding_s_unknown_state_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """The rest of what was found is printed."""
    facts = [{"check": "git", "state": "zz", "what": "x"}]
    assert report.print_findings([WEB1], [Answer(WEB1, facts, None)], json=False) == 1
    assert capsys.readouterr().out == "fail  git  x\n"


def test_nothing_that_a_host_says_reaches_the_terminal_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it did, what it checked: control characters are escaped everywhere."""
    bad = "\x1b[2J"
    each = Done(bad, bad, bad, note=bad)
    assert report.print_done([WEB1], [Answer(WEB1, [each, each._replace(ok=False)], None)], None)
    facts = [Finding(bad, "ok", bad, bad, bad)._asdict()]
    report.print_findings([WEB1], [Answer(WEB1, facts, None)], json=False)
    out, err = capsys.readouterr()
    assert bad not in out + err
    assert out.count("\\x1b[2J") == 12


def test_a_release_that_knows_more_is_understood() -> None:
    """What this one does not know of an answer is left out; what it lacks has its default."""
    row = Row.of({"host": "a", "role": "b", "supervisor": "c", "state": "running", "new": 1})
    assert row == Row("a", "b", "c", "running")


def test_below_the_table_stands_what_there_is_to_do() -> None:
    """Workers that have not read what is there, and tasks for a person: one line of each host."""
    row = Row("web1", "builder", "pidfile", "running", release="a1", outdated=True, parked=2)
    rows = [row, row._replace(role="tester"), row._replace(role="refiner", outdated=False)]
    rows.append(Row("here", "builder", "pidfile", "running", parked=1))
    assert agents.table(rows, Style()).splitlines()[-3:] == [
        (
            "web1: builder, tester: started before the last change of config, release or code: "
            "invoke deploy"
        ),
        "web1: 2 tasks wait for a person: needs_manual in its queue",
        "here: 1 task waits for a person: invoke queue.check",
    ]
    assert "run: []" in agents.table([], Style())


def test_a_worker_that_is_well_has_exit_code_0() -> None:
    """As `ok` has it; one that is not keeps its own."""
    bad = Done("web1", "tester", "not started", ok=False, exit_code=4)
    found = Switched("web1", "", PUT_BACK, workers=(Done("web1", "builder", "restarted"), bad))
    assert [each["exit_code"] for each in found.facts()["workers"]] == [0, 4]


def test_a_command_for_a_host_is_typed_through_ssh() -> None:
    """In the quotes that a person can read; on this machine as it is."""
    far = Local("web1", "/home/deploy/current", "ssh -p 2222 web1")
    assert far.typed("git -C x pull") == "ssh -p 2222 web1 'git -C x pull'"
    assert far.typed("git commit -m 'First'") == "ssh -p 2222 web1 \"git commit -m 'First'\""
    assert far.typed("echo '$HOME'") == "ssh -p 2222 web1 'echo '\"'\"'$HOME'\"'\"''"
    assert Local().typed("git init x") == "git init x"
