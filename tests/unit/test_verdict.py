"""What an agent that ended by itself came to: the worst of what speaks for and against it."""

from __future__ import annotations

import pytest

from daemon import verdict
from daemon.agents.preset import Record
from daemon.model import Outcome, Result

GOOD = Record(Outcome.SUCCESS, "all done", usage={"input_tokens": 10}, session="s1")
LIMIT = Record(Outcome.THROTTLED, "usage limit", retry_after=60.0)


def test_the_record_of_a_cli_and_its_exit_status_must_agree() -> None:
    """A success record of a process that failed, or was killed, is an error."""
    for status, told in ((1, "exit status 1"), (-15, "signal 15"), (75, "exit status 75")):
        found = verdict.of_preset(status, GOOD, Result(Outcome.SUCCESS), silent_is_fine=True)
        assert (found.outcome, found.session) == (Outcome.ERROR, "s1")
        assert told in found.note


def test_a_silent_agent_needs_evidence() -> None:
    """Without a result file, and without evidence to be looked at, success is nobody's word."""
    found = verdict.of_preset(0, GOOD, None, silent_is_fine=False)
    assert found.outcome is Outcome.ERROR
    assert found.note.startswith("the agent gave no verdict")
    assert found.usage == {"input_tokens": 10}
    assert verdict.of_preset(0, GOOD, None, silent_is_fine=True).outcome is Outcome.SUCCESS


SAID = {
    Outcome.SUCCESS: (Outcome.SUCCESS, Outcome.ERROR, Outcome.THROTTLED, Outcome.BLOCKED),
    Outcome.REJECTED: (Outcome.REJECTED, Outcome.ERROR, Outcome.THROTTLED, Outcome.BLOCKED),
    Outcome.ERROR: (Outcome.ERROR, Outcome.ERROR, Outcome.THROTTLED, Outcome.BLOCKED),
    # Of limits the CLI knows: a model that could say so would stop every role of the account.
    Outcome.THROTTLED: (Outcome.ERROR, Outcome.ERROR, Outcome.THROTTLED, Outcome.BLOCKED),
    Outcome.BLOCKED: (Outcome.BLOCKED,) * 4,
}


@pytest.mark.parametrize("said", SAID)
def test_the_worse_of_record_and_result_file_counts(said: Outcome) -> None:
    """Neither hides what the other knows."""
    records = (Outcome.SUCCESS, Outcome.ERROR, Outcome.THROTTLED, Outcome.BLOCKED)
    found = [
        verdict.of_preset(
            int(each is not Outcome.SUCCESS), Record(each), Result(said), silent_is_fine=False
        ).outcome
        for each in records
    ]
    assert tuple(found) == SAID[said]


def test_a_result_file_counts_for_nothing_beside_a_failed_run() -> None:
    """Tasks and statuses that it asks for are those of an agent that did not come to its end."""
    said = Result(Outcome.SUCCESS, status="done", add_tasks=({"id": "T9"},))
    found = verdict.of_preset(1, LIMIT, said, silent_is_fine=False)
    assert found == Result(Outcome.THROTTLED, "usage limit", retry_after=60.0)


def test_what_a_cli_counted_wins_over_what_the_model_says_it_used() -> None:
    """The file's counts only of a CLI that tells none: a cost of 0 would beat the role's price."""
    said = Result(Outcome.SUCCESS, usage={"input_tokens": 1, "cost_usd": 0})
    found = verdict.of_preset(0, GOOD, said, silent_is_fine=False)
    assert found.usage == {"input_tokens": 10}
    found = verdict.of_preset(0, GOOD._replace(usage=None), said, silent_is_fine=False)
    assert found.usage == {"input_tokens": 1, "cost_usd": 0}


def test_a_plan_has_tasks() -> None:
    """Else the story would wait for ever for its children, in a status that nobody claims."""
    plain, more = Result(Outcome.SUCCESS, "Fine."), Result(Outcome.SUCCESS, add_tasks=({},))
    found = verdict.of_plan(plain, has_children=False)
    assert (found.outcome, found.note) == (Outcome.ERROR, "the plan has no tasks: Fine.")
    failed = Result(Outcome.REJECTED)
    assert verdict.of_plan(failed, has_children=False) == failed
    assert verdict.of_plan(more, has_children=False) == more
    assert verdict.of_plan(plain, has_children=True) == plain


def test_a_limit_that_the_model_claims_is_an_error() -> None:
    """With no wait of its choice; a command's word is its own, for it has no other record."""
    said = Result(Outcome.THROTTLED, "slow", retry_after=3e7)
    found = verdict.of_preset(0, GOOD, said, silent_is_fine=True)
    assert (found.outcome, found.retry_after) == (Outcome.ERROR, None)
    assert found.note == "the model says throttled, its CLI does not: slow"
    assert verdict.of_command(0, said) == said


def test_what_the_cli_calls_blocked_is_the_credentials() -> None:
    """What the model calls so is its task's, also where the CLI repeats it, as ours does."""
    denied = Record(Outcome.BLOCKED, "401")
    assert verdict.of_preset(1, denied, None, silent_is_fine=True).denied
    a_model = denied._replace(denied=False)
    assert not verdict.of_preset(1, a_model, None, silent_is_fine=True).denied
    said = Result(Outcome.BLOCKED, "Who?")
    for record in (GOOD, denied):
        assert not verdict.of_preset(0, record, said, silent_is_fine=True).denied
