"""What an agent that ended by itself came to: its exit status, its record, its result file.

The worst of them counts. Our own clock is asked before, evidence and gates after this.
"""

from __future__ import annotations

from daemon.agents.preset import Record
from daemon.model import Outcome, Result

EXIT_THROTTLED, EXIT_MISCONFIGURED = 75, 78  # EX_TEMPFAIL, EX_CONFIG of sysexits.h
#: From the best to the worst. A limit that was met explains an error, and what needs a person
#: is mended by no waiting.
ORDER = (Outcome.SUCCESS, Outcome.REJECTED, Outcome.ERROR, Outcome.THROTTLED, Outcome.BLOCKED)


def of_command(status: int, said: Result | None) -> Result:
    """An exit status and what the agent says of itself, together: the worse one counts."""
    result = said or Result(Outcome.SUCCESS)
    if status == 0 or result.outcome in {Outcome.BLOCKED, Outcome.REJECTED, Outcome.THROTTLED}:
        return result
    known = {EXIT_THROTTLED: Outcome.THROTTLED, EXIT_MISCONFIGURED: Outcome.BLOCKED}
    return result._replace(
        outcome=known.get(status, Outcome.ERROR), note=_told(status, result.note), add_tasks=()
    )


def of_preset(status: int, record: Record, said: Result | None, *, silent_is_fine: bool) -> Result:
    """An exit status, the CLI's own record, and what the model says in the result file.

    ``silent_is_fine``: evidence will speak for an agent that writes no result file; of any other
    silence is an error, for a CLI is content with a model that did nothing.
    """
    if status and record.outcome is Outcome.SUCCESS:
        record = record._replace(outcome=Outcome.ERROR, note=_told(status, record.note))
    result = said or Result(Outcome.SUCCESS)
    if result.outcome is Outcome.THROTTLED:  # of limits the CLI knows, and others wait for them
        note = f"the model says throttled, its CLI does not: {result.note}"
        result = Result(Outcome.ERROR, note.removesuffix(": "))
    if ORDER.index(record.outcome) >= ORDER.index(result.outcome):
        if record.outcome is not Outcome.SUCCESS:
            # "A person is needed" of the model's own is of this task.
            denied = record.denied and record.outcome is Outcome.BLOCKED is not result.outcome
            wait = record.retry_after
            result = Result(record.outcome, record.note, retry_after=wait, denied=denied)
        elif said is None and not silent_is_fine:
            note = "the agent gave no verdict: it wrote no result file"
            result = Result(Outcome.ERROR, f"{note}. {record.note}" if record.note else note)
        elif not result.note:
            result = result._replace(note=record.note)
    told = record.usage or (said.usage if said else None)
    return result._replace(usage=told or None, session=record.session)


def with_hint(result: Result, hint: str, task_id: str) -> Result:
    """With what a person can do, where the agent could not work at all."""
    if not result.denied:
        return result
    note = f"{result.note.rstrip('.')}; {hint}; then: invoke queue.retry {task_id}"
    return result._replace(note=note)


def of_plan(result: Result, *, has_children: bool) -> Result:
    """A planner's: without a task, before or by this attempt, its story would never end."""
    if result.outcome is not Outcome.SUCCESS or result.add_tasks or has_children:
        return result
    note = f"the plan has no tasks: {result.note}".removesuffix(": ")
    return result._replace(outcome=Outcome.ERROR, status=None, note=note)


def _told(status: int, note: str) -> str:
    told = (
        f"the agent ended with exit status {status}"
        if status > 0
        else f"the agent was ended by signal {-status}"
    )
    return f"{told}: {note}" if note else told
