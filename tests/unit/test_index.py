"""Tasks looked up: an index that was carried on says what one made anew would say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemon.index import Entry, Tasks

TASK = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["A", "B", "C", "D", "../x", 7]),
        "status": st.sampled_from(["ready", "done", "blocked", 5, None]),
        "priority": st.sampled_from([1, 2, 0.5, "high", None]),
    },
)
STATUSES = ("ready", "done", "blocked", "")


def said(tasks: Tasks) -> dict[str, Any]:
    """All that can be asked of them."""
    return {
        "every": tasks.every,
        "entries": tasks.entries,
        "by id": tasks.by_id,
        "problems": tasks.problems,
        "counted": [len(tasks.by_status.get(status, ())) for status in STATUSES],
        "in status": [tasks.in_status(status) for status in STATUSES],
        "in both": tasks.in_status("ready", "blocked"),
        "in line": [tasks.in_line(status) for status in STATUSES],
        "in one line": tasks.in_line("ready", "blocked"),
    }


@given(
    tasks=st.lists(TASK, min_size=1, max_size=6),
    changes=st.lists(st.tuples(st.integers(0, 5), TASK), max_size=4),
    looked_at=st.booleans(),
)
def test_a_changed_index_is_as_one_made_anew(
    tasks: list[dict[str, Any]], changes: list[tuple[int, dict[str, Any]]], *, looked_at: bool
) -> None:
    """Status, priority and id may change, ids may be no ids; the index before stays as it was.

    Broken once by leaving a task in the line of the status that it had: this failed.
    """
    old = Tasks(Entry(index, task, None) for index, task in enumerate(tasks))
    before = said(old) if looked_at else {}
    new = {index: Entry(index, task, None) for index, task in changes if index < len(tasks)}
    every = [new.get(entry.index, entry) for entry in old.every]
    assert said(old.changed(list(new.values()))) == said(Tasks(every))
    assert said(old.with_entries(every)) == said(Tasks(every))
    assert not looked_at or said(old) == before


def test_many_changes_are_looked_up_anew() -> None:
    """A queue that was rewritten as a whole is understood as a whole."""
    old = Tasks(Entry(index, {"id": f"T{index}"}, None) for index in range(300))
    every = [entry._replace(task={**entry.task, "status": "done"}) for entry in old.every]
    assert len(old.with_entries(every).in_status("done")) == 300
    assert old.with_entries(every[:200]).every == every[:200]
