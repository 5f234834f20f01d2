"""Every status, role and outcome: lifecycle against a model of the design, and no other move."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest

from daemon import lifecycle
from daemon.index import Entry, Tasks
from daemon.lifecycle import DEFAULT_ROLES, Machine, Rules
from daemon.model import Outcome, Result
from tests import model
from tests.model import TABLE, Task
from tests.workspace import ROOT

NOW = 1_800_000_000.0
MACHINE = Machine(
    {
        name: Rules(name, tuple(row["claims"]), *list(row.values())[1:])
        for name, row in DEFAULT_ROLES.items()
    }
)
#: Each word of the table, those beside it, unknown ones, and what is no word at all.
WORDS = sorted(
    {word for row in TABLE.values() for word in row}
    | {*model.ENDED, "blocked", "Done", "", "weird"}
)
STRANGE: list[Any] = [None, 7, True, ["ready"], {"status": "ready"}]
STATUSES = [*WORDS, *STRANGE]
OUTCOMES = [each for each in Outcome if each is not Outcome.LOST]  # a lost attempt writes nothing
ASKED = [None, *WORDS]
ATTEMPTS = range(model.MAX_ATTEMPTS + 1)
ADAPTATIONS = range(model.MAX_ADAPTATIONS + 2)


def holding(status: object, **keys: Any) -> Task:
    """A task that an attempt of token 3 holds, as far as its lease says."""
    return {"id": "T", "status": status, "token": 3, "lease": {"owner": "me", "token": 3}, **keys}


def results() -> Iterator[tuple[Outcome, str | None]]:
    """Each outcome with each status asked for, which a success alone makes a difference to."""
    for outcome in OUTCOMES:
        for asked in ASKED if outcome is Outcome.SUCCESS else (None, "done", "weird"):
            yield outcome, asked


def flat(tasks: list[Task]) -> Tasks:
    return Tasks(Entry(i, task, up) for i, (task, up) in enumerate(model.walk(tasks)))  # type: ignore[arg-type]


def settled(task: Task, role: str, result: Result) -> tuple[Task, lifecycle.Transition]:
    entry = Entry(0, task, None)
    made = lifecycle.settle(entry, MACHINE, role, result, NOW, lambda: 0.5)
    return {**task, **made.changes}, made


@pytest.mark.parametrize("role", TABLE)
def test_every_outcome_of_every_status_is_the_models(role: str) -> None:
    """Statuses, asked statuses, outcomes, attempts and adaptations: what is written is the same.

    Broken once by counting a released attempt, by taking one adaptation more, and by letting an
    agent ask for any status: each time this failed.
    """
    table = itertools.product(STATUSES, results(), ATTEMPTS, ADAPTATIONS)
    for status, (outcome, asked), attempts, adaptations in table:
        task = holding(status, attempts=attempts, adaptations=adaptations)
        found, made = settled(task, role, Result(outcome, status=asked, retry_after=5.0))
        wanted, worth = dict(task), model.weighed(role, outcome.value, asked)
        model.settle(wanted, role, worth, wait=5.0, luck=0.5, now=NOW)
        which = (role, status, outcome, asked, attempts, adaptations)
        assert (which, model.seen(found)) == (which, model.seen(wanted))
        assert (made.source, made.target) == (str(status), wanted["status"])


@pytest.mark.parametrize("role", TABLE)
@pytest.mark.parametrize("token", [0, 2, 3, 4])
def test_who_may_settle_is_the_models(role: str, token: int) -> None:
    """Only the token of the task's own lease, and only in the role's own statuses.

    Broken once by asking for the task's token alone, not its lease's: this failed.
    """
    for status in STATUSES:
        leases: list[Any] = [None, "", [], {}, {"token": 3}, {"token": 2}, {"token": True}]
        for lease, known in itertools.product(leases, (None, 3, 2, "3", True)):
            task = {"id": "T", "status": status, "lease": lease, "token": known}
            found = lifecycle.is_held(task, MACHINE.roles[role], token)
            assert (task, found) == (task, model.held(task, role, token))


def families() -> Iterator[list[Task]]:
    """Small queues: a task of every status and type, and what it may depend on or wait for."""
    others = ("done", "completed", "cancelled", "testing", ["done"])
    for status, kind, other, more in itertools.product(
        STATUSES, ("Story", "Test", "Testing", "Build", None), others, others[::2]
    ):
        for keys in ({}, {"blocked_reason": "x"}, {"blocker": "x"}):
            first: Task = {"id": "T", "status": status, "type": kind, **keys}
            a, b = {"id": "A", "status": other}, {"id": "B", "status": more}
            yield [{**first, "dependencies": ["A", "B"]}, a, b]
            yield [{**first, "dependencies": ["A", "GONE"]}, a, b]
            yield [first, {**a, "parent": "T"}, {**b, "parent_task": "T"}]
            yield [{**first, "subtasks": [a, {"status": more}]}]
            up = {"id": "T", "status": "blocked", "dependencies": ["S"]}
            yield [up, {**first, "id": "S", "subtasks": [a]}, {**b, "parent": "S"}]


def test_what_moves_by_itself_is_the_models() -> None:
    """The same moves in the same order, to the same end.

    Broken once by an unblocked task whose blocker still stands, and by a closed story whose
    children were all cancelled: each time this failed.
    """
    for tasks in families():
        found = [(t.entry.task["id"], t.source, t.target) for t in _moves(tasks)]
        before = repr(tasks)
        assert (before, found) == (before, model.by_itself(tasks))


def _moves(tasks: list[Task]) -> list[lifecycle.Transition]:
    return lifecycle.moves(flat(tasks), MACHINE, NOW)


def test_no_undeclared_move_exists() -> None:
    """All that settling, claiming and moving by itself can ever do is what the design declares."""
    made: set[tuple[str, str]] = set()
    for role, rules in MACHINE.roles.items():
        table = itertools.product(WORDS, results(), ATTEMPTS, ADAPTATIONS)
        for status, (outcome, asked), attempts, adaptations in table:
            task = holding(status, attempts=attempts, adaptations=adaptations)
            if lifecycle.is_held(task, rules, 3):
                _, move = settled(task, role, Result(outcome, status=asked))
                made.add((move.source, move.target))
        for status in STATUSES:
            tasks = flat([{"id": "T", "status": status}])
            for entry in lifecycle.claimable(tasks, rules, NOW, ()):
                made.add((status, str(lifecycle.claim(entry, rules, {}, 1, NOW)["status"])))
    for family in families():
        made |= {(move.source, move.target) for move in _moves(family)}
    assert made == model.declared()


def test_the_table_of_the_docs_is_the_code() -> None:
    """docs/lifecycle.md, the code's data and the model say the same of each role.

    Broken once by another word in the document: this failed.
    """
    text = (ROOT / "docs" / "lifecycle.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    table = {row[0]: row[1:] for row in rows if row[0] in DEFAULT_ROLES and len(row) == 6}
    assert table == {name: list(row) for name, row in TABLE.items()}
    code = {name: (row["claims"], *list(row.values())[1:]) for name, row in DEFAULT_ROLES.items()}
    assert code == {name: ([row[0]], *row[1:]) for name, row in table.items()}


def test_the_drawing_of_the_docs_is_the_code() -> None:
    """Each arrow is a move that exists, and none is missing but the ways back and to a person.

    Broken once by an arrow drawn to another status: this failed.
    """
    text = (ROOT / "docs" / "lifecycle.md").read_text()
    (drawing,) = re.findall("```mermaid\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for line in drawing.splitlines()[1:]]
    arrows = [re.fullmatch(r"(\S+) --> (\S+?)(?:: (.+))?", line) for line in lines]
    found = [each.groups("") for each in arrows if each]
    assert len(found) == len(lines)
    wanted = {("planning_complete", "done", "by itself"), ("blocked", "ready", "by itself")}
    for name, row in DEFAULT_ROLES.items():
        wanted |= {(claims, row["holds"], f"{name} claims") for claims in row["claims"]}
        wanted.add((row["holds"], row["on_success"], "success"))
        wanted.add((row["holds"], row["on_rejected"], "rejected"))
    inner = {(a, b, why.split(",")[0]) for a, b, why in found if "[*]" not in (a, b)}
    assert inner == wanted
    ends = {(a, b) for a, b, _ in found if "[*]" in (a, b)}
    assert ends == {("[*]", s) for s in ("needs_plan", "ready")} | {
        (s, "[*]") for s in ("done", "needs_manual")
    }
