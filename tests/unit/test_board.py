"""The queue as a person sees it: why each task waits, what is wrong, what is printed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from daemon import evidence
from daemon.errors import QueueUnreadable, RolecallError
from daemon.fleet import adding, board, waiting
from daemon.fleet.board import Board
from daemon.fleet.here import UsageError
from daemon.fleet.output import Style
from daemon.model import Outcome, Result, format_time
from tests.queues import FileBackend
from tests.workspace import ROOT

PLAIN = Style()


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """A file queue of the five roles."""
    return FileBackend(tmp_path)


def look(backend: FileBackend) -> Board:
    return Board(backend.config)


def why(backend: FileBackend, task_id: str) -> tuple[str, str]:
    wait = look(backend).find(task_id)
    return wait.kind, wait.why


def task(task_id: str, status: str = "ready", **more: Any) -> dict[str, Any]:
    return {"id": task_id, "title": f"Do {task_id}", "status": status, **more}


def test_a_free_task_is_claimable_by_its_role(backend: FileBackend) -> None:
    """What nothing keeps back names the role that claims it."""
    backend.fill(task("T1"))
    assert why(backend, "T1") == ("claimable", "claimable by builder")


def test_a_dependency_is_named_with_its_status(backend: FileBackend) -> None:
    """What a task waits for is said with where that stands."""
    backend.fill(task("T1", dependencies=["T2", "T3"]), task("T2", "testing"), task("T3", "done"))
    assert why(backend, "T1") == ("dependency", "waits for T2 (testing)")


@pytest.mark.parametrize(
    ("others", "kind", "text"),
    [
        ([], "unknown", "waits for T2 (unknown): no task has that id"),
        (
            [task("T2", "cancelled")],
            "cancelled",
            "waits for T2 (cancelled): what is cancelled is never satisfied",
        ),
        (
            [task("T2", dependencies=["T3"]), task("T3", dependencies=["T1"])],
            "cycle",
            "waits for itself: T1 -> T2 -> T3 -> T1",
        ),
    ],
)
def test_what_can_never_be_satisfied_is_a_problem(
    backend: FileBackend, others: list[dict[str, Any]], kind: str, text: str
) -> None:
    """Unknown and cancelled dependencies and cycles are told apart, and reported as problems."""
    backend.fill(task("T1", dependencies=["T2"]), *others)
    assert why(backend, "T1") == (kind, text)
    assert f"T1: {text}" in look(backend).problems


@pytest.mark.parametrize(
    ("needed", "hint"),
    [
        (["GONE"], 'invoke queue.add --id GONE --title "...", or invoke queue.cancel T1'),
        (["S"], "invoke queue.retry S --status needs_plan, or invoke queue.cancel T1"),
        (["S", "GONE"], 'invoke queue.add --id GONE --title "...", or invoke queue.cancel T1'),
        (["../x"], "invoke queue.cancel T1, then add it anew"),
        ("S", "invoke queue.cancel T1, then add it anew"),
    ],
    ids=str,
)
def test_what_is_never_satisfied_has_a_way_out(
    backend: FileBackend, needed: Any, hint: str
) -> None:
    """The check and the task's own page say what to type."""
    backend.fill(task("T1", dependencies=needed), task("S", "cancelled", type="Story"))
    found = look(backend)
    assert found.find("T1").hint == hint
    assert f" -> {hint}" in board.check(found, PLAIN)
    assert f" -> {hint}" in board.show(found, found.find("T1"), PLAIN)


def test_a_task_that_depends_on_itself_is_a_cycle(backend: FileBackend) -> None:
    """The shortest cycle there is."""
    backend.fill(task("T1", dependencies=["T1"]))
    assert why(backend, "T1") == ("cycle", "waits for itself: T1 -> T1")


def test_a_task_behind_a_cycle_is_not_in_it(backend: FileBackend) -> None:
    """Only those that come back to themselves are called cycles."""
    backend.fill(
        task("T0", dependencies=["T1"]),
        task("T1", dependencies=["T2"]),
        task("T2", dependencies=["T1"]),
    )
    assert why(backend, "T0")[0] == "dependency"
    assert why(backend, "T1")[0] == "cycle"


def test_a_child_that_waits_for_its_own_story_is_a_cycle(backend: FileBackend) -> None:
    """A planned story ends when its children have: they cannot wait for it."""
    backend.fill(task("S1", "planning_complete"), task("T1", parent="S1", dependencies=["S1"]))
    assert why(backend, "T1") == ("cycle", "waits for itself: T1 -> S1 -> T1")
    assert why(backend, "S1")[0] == "cycle"


def test_a_long_chain_of_dependencies_is_judged_without_recursion(backend: FileBackend) -> None:
    """Thousands of tasks in a row end in no traceback."""
    chain = [task(f"T{n}", dependencies=[f"T{n + 1}"]) for n in range(3000)]
    backend.fill(*chain, task("T3000", dependencies=["T0"]))
    kind, text = why(backend, "T0")
    assert kind == "cycle"
    assert text.endswith("T6 -> T7 -> ... -> T0")


def test_beyond_the_wip_limit_a_task_waits_for_its_turn(backend: FileBackend) -> None:
    """The first in the line is claimable, the next ones say how many come before them."""
    backend.fill(task("T1"), task("T2", priority=1), wip_limits={"builder": 1})
    assert why(backend, "T2")[0] == "claimable"
    assert why(backend, "T1") == ("wip", "builder's WIP is 0 of 1, 1 before it")


def test_a_full_wip_is_said(backend: FileBackend) -> None:
    """A person's hold counts for the limit, and says that nothing moves it."""
    backend.fill(task("T1"), task("T2", "in_progress", agent="somebody"))
    assert why(backend, "T1") == ("wip", "builder's WIP is 1 of 1")
    kind, text = why(backend, "T2")
    assert kind == "held"
    assert text.startswith("a person holds it")


def test_a_backoff_says_until_when(backend: FileBackend) -> None:
    """not_before is shown as written, and as seconds."""
    until = format_time(time.time() + 100)
    backend.fill(task("T1", not_before=until))
    kind, text = why(backend, "T1")
    assert kind == "backoff"
    assert text.startswith(f"not before {until} (in ")


def test_a_held_task_names_the_holder_of_its_lease(backend: FileBackend) -> None:
    """Whose lease, which attempt, and how long ago it was renewed."""
    backend.fill(task("T1"))
    assert FileBackend(backend.folder).open().claim("builder", "desk:builder")
    kind, text = why(backend, "T1")
    assert kind == "held"
    assert text.startswith("held by desk:builder, attempt 1, last heartbeat ")


def test_a_held_task_whose_lease_is_gone_will_be_recovered(backend: FileBackend) -> None:
    """`rm .leases/T1.json` is a thing people do."""
    backend.fill(task("T1"))
    backend.open().claim("builder", "desk:builder")
    backend.lease_file("T1").unlink()
    assert "recovers it" in why(backend, "T1")[1]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (task("T1", "blocked"), "blocked without dependencies: a person has to move it"),
        (task("T1", "blocked", blocker="no key"), "a person has to look: no key"),
        (task("T1", "needs_manual", last_error="it broke"), "a person has to look: it broke"),
    ],
)
def test_a_parked_task_says_what_a_person_is_to_look_at(
    backend: FileBackend, document: dict[str, Any], text: str
) -> None:
    """The reason that stands in the task is the reason that is shown."""
    backend.fill(document)
    assert why(backend, "T1") == ("parked", text)
    assert look(backend).problems == []


def test_a_check_says_who_waits_for_a_person_and_what_to_type(backend: FileBackend) -> None:
    """The queue is in order all the same, and says so."""
    backend.fill(
        *(task(f"T{i}", "needs_manual", last_error="it broke") for i in (1, 2)), task("T3")
    )
    told = board.check(look(backend), PLAIN)
    assert "it broke -> invoke queue.show T1, then invoke queue.retry T1" in told
    assert told.endswith(
        "no problems in the queue; open tasks: 3, ended: 0\n\n2 tasks wait for a person "
        "(needs_manual): invoke queue.show ID, then invoke queue.retry ID"
    )


def test_a_move_that_happens_by_itself_is_announced(backend: FileBackend) -> None:
    """A blocked task whose dependencies are satisfied does not wait for a person."""
    backend.fill(task("T1", "blocked", dependencies=["T2"]), task("T2", "done"))
    assert why(backend, "T1") == (
        "claimable",
        "goes to ready at the next look: its dependencies are satisfied; then claimable by builder",
    )


def test_a_story_that_ends_by_itself_is_announced(backend: FileBackend) -> None:
    """And what waits for it is judged as it will be then."""
    backend.fill(
        task("S1", "planning_complete"),
        task("T1", "done", parent="S1"),
        task("T2", dependencies=["S1"]),
    )
    assert why(backend, "S1") == ("moves", "goes to done at the next look: its children have ended")
    assert why(backend, "T2")[0] == "claimable"


def test_a_story_waits_for_its_children(backend: FileBackend) -> None:
    """Those that have not ended are named, subtasks too."""
    backend.fill(
        task("S1", "planning_complete", subtasks=[task("S1.1")]), task("T1", "testing", parent="S1")
    )
    assert why(backend, "S1") == ("children", "waits for its children S1.1, T1")


def test_what_no_role_claims_is_a_problem(backend: FileBackend) -> None:
    """A status that is nobody's is a task that stands still for ever."""
    backend.fill(task("T1", "redy"), {"id": "T2"})
    assert look(backend).problems == ["T1: no role claims status redy", "T2: it has no status"]


def test_ids_that_cannot_be_used_are_problems_and_harm_no_other(backend: FileBackend) -> None:
    """Bad and doubled ids are reported; the rest of the queue is judged as ever."""
    backend.fill(task("T1"), task("T1"), task("../x"), {"title": "none"}, task("T2", "done"))
    found = look(backend)
    assert len(found.problems) == 3
    assert found.find("T1").kind == "claimable"
    assert [wait.kind for wait in found.standing.waits] == ["claimable", "id", "id", "id", "ended"]


def test_limits_that_are_no_numbers_are_problems(backend: FileBackend) -> None:
    """Then the role's own limit counts, and the check says so."""
    backend.fill(wip_limits={"builder": "three"})
    assert look(backend).problems == [
        "wip_limits.builder is no number of 0 or more: the role's own, 1, counts"
    ]


def test_the_list_escapes_what_would_drive_a_terminal(backend: FileBackend) -> None:
    """Titles, ids, statuses and reasons come from files: none of them reaches a terminal raw."""
    evil = "\x1b[2J\x9b31m\u202e\x07"
    backend.fill(
        {
            "id": "T1",
            "title": evil,
            "status": "ready",
            "dependencies": [evil],
            "extra": {evil: evil},
        },
        task("T2", evil),
        task("T3", "blocked", blocker=evil),
        task(evil),
    )
    found = look(backend)
    texts = [
        board.listing(found, found.standing.waits, PLAIN),
        board.columns(found, found.standing.waits, PLAIN),
        board.check(found, PLAIN),
        board.show(found, found.find("T1"), PLAIN),
        board.print_list(found, found.standing.waits, json_=True, by_status=False),
    ]
    for text in texts:
        assert all(char.isprintable() or char == "\n" for char in text), text


def test_the_list_can_be_filtered(backend: FileBackend) -> None:
    """By statuses, by the role that holds or claims; what is misspelt is not an empty list."""
    backend.fill(task("T1"), task("T2", "in_progress"), task("T3", "done"))
    found = look(backend)

    def ids(waits: list[waiting.Wait]) -> list[str]:
        return [wait.entry.task["id"] for wait in waits]

    assert ids(found.pick(["ready", "done"])) == ["T1", "T3"]
    assert ids(found.pick([], "builder")) == ["T1", "T2"]
    with pytest.raises(UsageError, match="redy") as error:
        found.pick(["redy"])
    assert 'did you mean "ready"?' in str(error.value)
    with pytest.raises(UsageError, match="bilder"):
        found.pick([], "bilder")


def test_show_tells_of_every_attempt(backend: FileBackend) -> None:
    """Each run folder with what it came to; what an agent said alone is no outcome."""
    backend.fill(task("T1"))
    queue = backend.open(random=0.0)
    usage = {"input_tokens": 1200.0, "output_tokens": 34.0, "cost_usd": 0.25}
    for text in ('{"outcome": "rejected", "note": "too slow"}', "no JSON", "{}"):
        claim = queue.claim("builder", "desk:builder")
        assert claim
        (Path(claim.run_dir) / "result.json").write_text(text)
        result = Result(Outcome.ERROR, "it broke", usage=usage)
        if text == "{}":
            said = evidence.claimed(claim.run_dir)
            role = backend.config.roles["builder"]
            final = evidence.final(result, said, claim.lease, role, 1.5)
            assert not evidence.keep(claim.run_dir, final)
        queue.settle(claim.lease, result)
    found = look(backend)
    runs = board.detail(found, found.find("T1"))["runs"]
    assert [run["token"] for run in runs] == [1, 2, 3]
    assert [run["outcome"] for run in runs] == ["", "", "error"]
    assert runs[0]["claimed"] == {"outcome": "rejected", "note": "too slow"}
    assert runs[1]["note"].startswith("result.json: it is not JSON")
    assert (runs[2]["note"], runs[2]["role"], runs[2]["seconds"]) == ("it broke", "builder", 1.5)
    assert runs[2]["claimed"] == {"outcome": "success"}
    assert runs[2]["usage"] == usage
    text = board.show(found, found.find("T1"), PLAIN)
    assert "too slow; the agent says rejected" in text
    assert "1,200 in, 34 out, $0.2500" in text
    assert "it broke; the agent said success" in text


def test_an_unknown_task_is_a_usage_error_with_a_guess(backend: FileBackend) -> None:
    """As everywhere: what was probably meant."""
    backend.fill(task("P001-B01"))
    with pytest.raises(UsageError) as error:
        look(backend).find("P001-B1")
    assert 'did you mean "P001-B01"?' in str(error.value)
    assert error.value.exit_code == 2


def test_added_tasks_get_the_next_free_ids(backend: FileBackend) -> None:
    """Ids of ours count up from the largest; a status comes from the type."""
    backend.fill(task("T007"))
    tasks = adding.new_tasks(None, depends="T007, ", title="One", type="Story", priority="2")
    assert adding.add(backend.config, [*tasks, {"title": "Two"}]) == [
        "T008: added, needs_plan",
        "T009: added, ready",
    ]
    added = backend.task("T008")
    assert (added["status"], added["priority"], added["dependencies"]) == (
        "needs_plan",
        2,
        ["T007"],
    )


def test_a_taken_id_is_refused_and_nothing_is_added(backend: FileBackend) -> None:
    """Whole or not at all."""
    backend.fill(task("T1"))
    before = backend.path.read_bytes()
    with pytest.raises(RolecallError, match="taken"):
        adding.add(backend.config, [{"id": "T2", "title": "x"}, {"id": "T1", "title": "x"}])
    assert backend.path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "it holds no task"),
        ("[1]", "it holds no task"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_a_file_that_holds_no_tasks_is_a_usage_error(
    tmp_path: Path, text: str, message: str
) -> None:
    """With the file's name, and the line where there is one."""
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        adding.new_tasks(str(path), depends=None)
    assert str(path) in str(error.value)


def test_a_whole_queue_can_be_added(tmp_path: Path) -> None:
    """One task, a list of them, or a document with ``tasks``: all are understood."""
    path = tmp_path / "tasks.json"
    for document in (task("T1"), [task("T1")], {"tasks": [task("T1")]}):
        path.write_text(json.dumps(document))
        assert adding.new_tasks(str(path), depends=None) == [task("T1")]


def test_options_beside_a_file_are_refused() -> None:
    """A title would be for which of the tasks in the file."""
    with pytest.raises(UsageError, match="--json brings whole tasks"):
        adding.new_tasks("-", depends=None, title="x")


@pytest.mark.parametrize("text", ["high", "nan", "inf", ""])
def test_a_priority_is_a_number(text: str) -> None:
    """1 first."""
    with pytest.raises(UsageError, match="want a number"):
        adding.new_tasks(None, depends=None, title="x", priority=text)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/data/queues").iterdir()), ids=lambda p: p.stem
)
def test_real_queues_are_shown_whole(backend: FileBackend, path: Path) -> None:
    """Every task has its line and its reason; what is called claimable is what workers claim."""
    backend.path.write_bytes(path.read_bytes())
    if b"<<<<<<<" in path.read_bytes():
        with pytest.raises(QueueUnreadable):
            look(backend)
        return
    found = look(backend)
    tasks = json.loads(path.read_text())["tasks"]
    assert len(board.listing(found, found.standing.waits, PLAIN).splitlines()) > len(tasks)
    for wait in found.standing.waits:
        assert wait.kind == "ended" or wait.why
        assert board.show(found, wait, PLAIN)
    for role in backend.config.roles:
        claim = backend.open().claim(role, "desk", dry_run=True)
        ready = [w for w in found.standing.waits if (w.kind, w.role) == ("claimable", role)]
        ids = {wait.entry.task["id"] for wait in ready}
        assert (claim.lease.task_id in ids) if claim else not ids


def test_what_has_no_slot_says_so(tmp_path: Path) -> None:
    """The WIP limit would allow it, this host's slots do not."""
    backend = FileBackend(tmp_path, slots=1, wip_limit=3)
    backend.fill(task("T1"), task("T2"), task("T3"))
    kinds = [wait.kind for wait in look(backend).standing.waits]
    assert kinds == ["claimable", "slots", "slots"]
    backend.open().claim("builder", "me")
    assert why(backend, "T2") == ("slots", "the slots of builder on this host are taken")


def test_a_status_that_is_no_word_stops_no_command(backend: FileBackend) -> None:
    """It is listed and explained; a folder of no attempt is not taken for one.

    Broken once by looking for the status in a set: every command ended in a traceback.
    """
    backend.fill(task("T1", ["ready"]), task("T2", {"a": 1}), task("T3"))  # type: ignore[arg-type]  # as a file may say
    (backend.folder / "runs" / "T3" / "\u00b2").mkdir(parents=True)
    found = look(backend)
    assert [wait.kind for wait in found.standing.waits] == ["unclaimed", "unclaimed", "claimable"]
    assert board.detail(found, found.find("T3"))["runs"] == []
