"""Queues of real sprints: who claims what, and what becomes of the text."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pytest

from daemon.errors import QueueUnreadable
from daemon.lifecycle import DEFAULT_ROLES
from daemon.model import Outcome, Result
from daemon.queue import jsonedit, jsontext
from tests.queues import FileBackend

DATA = Path(__file__).parent.parent / "data" / "queues"
BROKEN = "sprint-011"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
WHOLE = [name for name in NAMES if name != BROKEN]

#: What each role claims first; a role that is missing finds nothing.
CLAIMS = {
    "sprint-000": {},
    "sprint-005": {"tester": "P001-T01", "integrator": "P006-B02"},
    "sprint-018": {"tester": "P001-B03"},
    "sprint-025": {"builder": "P005-B03"},
    "sprint-033": {"tester": "P003-B03"},
    "sprint-041": {"builder": "P004-B02", "tester": "P002-T01"},
    "sprint-050": {"builder": "W008"},
    "sprint-062": {},
    "sprint-075": {"planner": "W005"},
    "sprint-088": {"tester": "W002"},
    "sprint-099": {"planner": "W001"},
}
#: Blocked tasks whose dependencies are satisfied: they move by themselves.
UNBLOCKED = {
    "sprint-005": {"P001-T01"},
    "sprint-041": {"P002-T01", "P004-T01"},
    "sprint-050": {"W008-B02"},
}


def backend(tmp_path: Path, name: str) -> FileBackend:
    """A queue of one of the real files."""
    made = FileBackend(tmp_path)
    made.path.write_bytes((DATA / f"{name}.json").read_bytes())
    return made


def changed(before: bytes, after: bytes) -> int:
    """How many lines a diff of the two shows."""
    lines = difflib.ndiff(before.decode().splitlines(), after.decode().splitlines())
    return sum(line[0] in "+-" for line in lines)


def apart(data: bytes) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """The document without its tasks, and its top-level tasks."""
    document = json.loads(data)
    tasks = {task["id"]: task for task in document.pop("tasks")}
    return document, tasks


@pytest.mark.parametrize("role", DEFAULT_ROLES)
@pytest.mark.parametrize("name", WHOLE)
def test_each_role_claims_its_task_and_changes_only_that(
    tmp_path: Path, name: str, role: str
) -> None:
    """The claimed task is the lifecycle's choice; other lines, keys and tasks stay as they were."""
    queue = backend(tmp_path, name)
    before = queue.path.read_bytes()
    claim = queue.open().claim(role, "me")
    after = queue.path.read_bytes()
    expected = CLAIMS[name].get(role)
    assert (claim.lease.task_id if claim else None) == expected
    top, tasks = apart(before)
    new_top, new_tasks = apart(after)
    moved = {key for key in tasks if tasks[key] != new_tasks[key]}
    assert new_top == top
    assert list(new_tasks) == list(tasks)
    assert moved == UNBLOCKED.get(name, set()) | ({expected} if expected else set())
    assert changed(before, after) <= 12 * bool(expected) + 6 * len(UNBLOCKED.get(name, ()))
    for key in moved:
        assert {k: v for k, v in new_tasks[key].items() if tasks[key].get(k) != v}.keys() <= {
            "status",
            "agent",
            "lease",
            "token",
            "updated_at",
        }


@pytest.mark.parametrize("name", [name for name in WHOLE if CLAIMS[name]])
def test_a_settled_task_shows_a_small_diff(tmp_path: Path, name: str) -> None:
    """Claimed and settled, a task differs from the start by its state and our few keys."""
    made = backend(tmp_path, name)
    before = made.path.read_bytes()
    queue = made.open()
    role, task_id = next(iter(CLAIMS[name].items()))
    claim = queue.claim(role, "me")
    assert claim is not None
    (move,) = queue.settle(claim.lease, Result(Outcome.SUCCESS))
    assert (move.task_id, move.target) == (task_id, DEFAULT_ROLES[role]["on_success"])
    after = made.path.read_bytes()
    assert changed(before, after) <= 10 + 6 * len(UNBLOCKED.get(name, ()))
    assert queue.live() == []


def test_conflict_markers_are_refused_with_their_line(tmp_path: Path) -> None:
    """A queue in the middle of a merge is named with the line, and not a byte of it changes."""
    queue = backend(tmp_path, BROKEN)
    before = queue.path.read_bytes()
    with pytest.raises(QueueUnreadable, match="conflict marker") as error:
        queue.open().claim("builder", "me")
    assert error.value.problems[0].where == f"{queue.path}:708"
    assert queue.path.read_bytes() == before


@pytest.mark.parametrize("name", WHOLE)
def test_an_edit_of_every_task_keeps_every_other_byte(name: str) -> None:
    """Setting a key and setting it back gives the same bytes, for each task in turn."""
    data = (DATA / f"{name}.json").read_bytes()
    document = jsontext.parse(data, name)
    assert jsonedit.edit(document, {}) == data
    for entry in document.entries:
        status = entry.task["status"]
        edited = jsonedit.edit(document, {entry.index: {"status": "\u2192 other"}})
        assert edited != data
        again = jsontext.parse(edited, name)
        assert again.entries[entry.index].task["status"] == "\u2192 other"
        assert jsonedit.edit(again, {entry.index: {"status": status}}) == data
