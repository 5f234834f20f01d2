"""What is said of hosts that failed, and what a command is worth then."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.errors import ConfigError, RolecallError
from daemon.fleet import agents, report
from daemon.fleet.answers import PUT_BACK, Done, Installed, Row, Switched, known
from daemon.fleet.connection import Local, Unreachable
from daemon.fleet.fanout import Answer
from daemon.fleet.output import Style
from daemon.fleet.report import Failures
from daemon.inventory import Host

WEB1, WEB2, WEB3 = (Host(f"web{number}", {}, {}) for number in (1, 2, 3))
GONE = Unreachable("no answer within 10 s", hint="ssh web2")
WRONG = ConfigError("it is wrong", where="all.yml:3")


def test_an_unreachable_host_decides_the_exit_status() -> None:
    """A host that cannot be asked may be worse than any that says what is wrong with it."""
    failures = Failures(3)
    assert failures.exit_status == 0
    failures.count(WEB1, 1)
    assert failures.exit_status == 1
    failures.add(WEB2, WRONG)
    assert failures.exit_status == 78
    failures.add(WEB3, GONE)
    assert failures.exit_status == 4


def test_failed_hosts_are_listed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its reason, and all in one command to look closer; control characters escaped."""
    failures = Failures(3)
    failures.count(WEB1, 1)
    failures.add(WEB2, GONE)
    failures.add(WEB3, RolecallError("a \x1b[2J"))
    assert failures.tell() == 4
    assert capsys.readouterr().err == (
        "web2: error: no answer within 10 s\nhint:  ssh web2\nweb3: error: a \\x1b[2J\n"
        "3 of 3 hosts failed; look closer: invoke doctor --limit web1,web2,web3\n"
    )


def test_one_host_needs_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """Its error is all there is to say."""
    failures = Failures(1)
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
    assert report.print_done(2, answers, None) == 1
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
