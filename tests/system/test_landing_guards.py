"""What agents, gates and settings do about a merge, and what of a person's is in its way."""

from __future__ import annotations

import json
import os
import time

import pytest

from tests.repository import EDIT, Repository, repository, roles, task
from tests.system.test_landing import drain, note
from tests.workspace import Workspace

EVIDENCE = {"evidence": True, "max_attempts": 1}


@pytest.mark.parametrize("undo", ["main", "HEAD~1"])
def test_a_merge_that_the_agent_took_back_does_not_land(ws: Workspace, undo: str) -> None:
    """Neither the task's work nor main's is lost with it: main is what it was."""
    repo = repository(ws)
    agent = {"script": f"git reset -q --hard {undo}; echo z > z", "max_attempts": 1}
    ws.write_config(**roles(integrator=agent))
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    before = repo.commit("meanwhile", m_txt="m\n")
    drain(ws, "integrator")
    assert ws.status() == "needs_manual"
    assert "the agent took the merge back" in note(ws)
    assert repo.head() == before
    assert repo.names("agent/T1") == {"readme.txt", "T1.txt"}


COMMIT = "echo evil > evil.txt; git add evil.txt; git commit -qm evil"
MOVES = [
    COMMIT,
    "git reset -q --hard HEAD~1",
    "git checkout -q -b other",
    "git rebase -qx false @~1",
]


@pytest.mark.parametrize("gate", MOVES)
def test_a_gate_moves_nothing(ws: Workspace, gate: str) -> None:
    """What it saw is what is settled, and what lands: not its commits, not an older one."""
    repo = repository(ws)
    gates = {"gates": [["sh", "-c", f"{gate} || true"]]}
    ws.write_config(**roles(builder=gates, integrator=gates))
    ws.write_queue(task())
    drain(ws, "builder")
    assert ws.status() == "awaiting_test", note(ws)
    assert repo.names("agent/T1") == {"readme.txt", "T1.txt"}
    assert ws.task()["commit"] == repo.head("agent/T1")
    worktree = Repository(ws.path / ".worktrees" / "T1")
    assert worktree.git("symbolic-ref", "--short", "HEAD") == "agent/T1"
    assert worktree.git("status", "--porcelain") == ""
    drain(ws, "tester", "integrator")
    assert ws.status() == "done", note(ws)
    assert repo.names() == {"readme.txt", "T1.txt"}


def test_ignored_files_of_a_person_are_left_alone(ws: Workspace) -> None:
    """One that the branch commits, and one in a folder that the branch replaces: both are named."""
    repo = repository(ws, _gitignore="*.db\n*.log\n", d_a="a\n")
    repo.git("mv", "d.a", ".d")
    repo.write("d/a", "a\n")
    repo.git("add", "d/a")
    repo.commit("a folder")
    repo.write("my.db", "mine\n")
    repo.write("d/my.log", "mine\n")
    build = "[ $ROLECALL_TASK_ID = T1 ] && { echo x > my.db; git add -f my.db; exit; }; rm -r d"
    ws.write_config(
        **roles(builder={"script": f"{build}; echo x > d"}, integrator={"max_attempts": 1})
    )
    ws.write_queue(task(), task("T2"))
    before = repo.head()
    drain(ws)
    assert (ws.status("T1"), ws.status("T2")) == ("needs_manual", "needs_manual")
    assert "in the way of the merge: my.db (in no commit of yours: move it away)" in note(ws)
    assert "in the way of the merge: d (in no commit of yours: move it away)" in note(ws, "T2")
    assert (repo.head(), repo.changed()) == (before, [])
    assert (ws.path / "my.db").read_text() == "mine\n"
    assert (ws.path / "d" / "my.log").read_text() == "mine\n"


def test_a_stash_that_is_proposed_takes_no_queue_away(ws: Workspace) -> None:
    """It names the files, and makes way for the merge."""
    repo = repository(ws)
    ws.write_config(
        **roles(builder={"script": "echo two > readme.txt"}, integrator={"max_attempts": 1})
    )
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    repo.write("readme.txt", "mine\n")
    drain(ws, "integrator")
    command = note(ws).partition("or: git -C ")[2].partition(")")[0]
    assert command == f"{ws.path} stash push --include-untracked -- readme.txt"
    repo.git(*command.split()[1:])
    ws.write_queue({**ws.task(), "status": "ready_for_integrator"})
    drain(ws, "integrator")
    assert ws.status() == "done", note(ws)
    assert repo.git("show", "stash@{0}:readme.txt") == "mine"


def test_a_repository_within_the_worktree_is_not_committed_as_a_link(ws: Workspace) -> None:
    """Its files would be lost with the worktree: the builder's attempt is an error by name."""
    repo = repository(ws)
    script = "git init -q lib; echo x > lib/a; git -C lib add a; git -C lib commit -qm x"
    script += "; git add -A 2>&1; git commit -qm built"
    ws.write_config(**roles(builder={"script": script, **EVIDENCE}))
    ws.write_queue(task())
    drain(ws)
    assert ws.status() == "needs_manual"
    assert "lib: a repository of its own" in note(ws)
    assert repo.names() == {"readme.txt"}
    assert (ws.path / ".worktrees" / "T1" / "lib" / "a").exists()


def test_a_link_to_a_repository_does_not_land(ws: Workspace) -> None:
    """However it came to the branch: here a person vouched for the commit."""
    repo = repository(ws)
    ws.write_config(**roles(integrator={"max_attempts": 1}))
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    late = Repository(ws.path / ".worktrees" / "T1")
    late.git("update-index", "--add", "--cacheinfo", f"160000,{late.head()},lib")
    late.commit("link")
    (late.path / "lib").mkdir()
    ws.write_queue({**ws.task(), "commit": late.head()})
    drain(ws, "integrator")
    assert ws.status() == "needs_manual"
    assert "lib: a repository of its own" in note(ws)
    assert repo.names() == {"readme.txt"}


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        ("", "git merge -q main", "the branch holds nothing that main lacks"),
        ("echo x > junk", "git clean -fdq", "the branch holds nothing that main lacks"),
        ("", "git init -q sub; echo x > sub/a", "sub/: a repository of its own"),
    ],
)
def test_what_is_not_the_tasks_is_no_evidence(
    ws: Workspace, first: str, then: str, told: str
) -> None:
    """Main's own work, a dead attempt's litter that is gone, a repository that no commit holds."""
    repo = repository(ws)
    script = f'if [ "$ROLECALL_TOKEN" = 1 ]; then {first or ":"}; exit 3; fi; {then}'
    builder = {"script": script, "evidence": True, "max_attempts": 2}
    ws.write_config(**roles(builder={**builder, "backoff": {"base": 0, "cap": 0}}))
    ws.write_queue(task())
    assert ws.run("--role", "builder", "--once").returncode in {0, 1}
    repo.commit("other work", other_txt="x\n")
    drain(ws, "builder")
    assert ws.status() == "needs_manual"
    assert told in note(ws)


def test_a_branch_without_work_merges_nothing(ws: Workspace) -> None:
    """Of a task that is a test, or a builder that is not asked for evidence; and it says so."""
    repo = repository(ws)
    ws.write_config(**roles(builder={"script": "git merge -q main", "evidence": False}))
    for number in (1, 2):
        ws.write_queue(task(f"T{number}"))
        drain(ws, "builder", "tester")
        drain(ws, "integrator")
        assert ws.status(f"T{number}") == "done", note(ws, f"T{number}")
        told = json.loads((ws.path / f".agent-runs/T{number}/3/result.json").read_text())["note"]
        assert told == f"agent/T{number} holds nothing that main lacks"
        repo.commit("other work", other_txt="x\n")


@pytest.mark.parametrize("option", ["--squash", "--no-commit", "--autostash"])
def test_settings_of_merges_move_no_less_of_main(ws: Workspace, option: str) -> None:
    """Those of main's branch are for a person's merges."""
    repo = repository(ws)
    repo.git("config", "branch.main.mergeOptions", option)
    ws.write_config(**roles())
    ws.write_queue(task())
    drain(ws)
    assert ws.status() == "done", note(ws)
    assert repo.subjects() == ["Merge T1: Do T1", "first"]
    assert repo.changed() == []


def test_the_markers_of_a_conflict_do_not_land(ws: Workspace) -> None:
    """A refiner that commits them has an error, and whatever else did is rejected by name.

    A heading that is underlined with seven signs is no conflict.
    """
    repo = repository(ws)
    script = 'printf "$ROLECALL_TASK_ID\\n=======\\n" > readme.txt'
    refiner = {"script": "git merge -q main; git add -A; git commit -qm merged", **EVIDENCE}
    ws.write_config(**roles(builder={"script": script}, refiner=refiner))
    ws.write_queue(task("T1"), task("T2"))
    drain(ws, "builder", "tester", "integrator", "refiner")
    assert (ws.status("T1"), ws.status("T2")) == ("done", "needs_manual")
    told = "the markers of a conflict are left in readme.txt"
    assert told in note(ws, "T2")
    found = {"status": "ready_for_integrator", "commit": repo.head("agent/T2")}
    ws.write_queue(ws.task("T1"), {**ws.task("T2"), **found})
    drain(ws, "integrator")
    assert ws.status("T2") == "needs_adapt"
    assert told in note(ws, "T2")
    assert repo.show("readme.txt") == "T1\n======="


def test_what_an_attempt_changed_of_git_bars_the_merges_of_all(ws: Workspace) -> None:
    """Another task's merge would run it. A person's retry of any one lets all pass."""
    repo = repository(ws)
    change = "git config filter.evil.smudge 'touch ../evil; cat'"
    script = f"[ $ROLECALL_TASK_ID != T1 ] || {{ {change}; exit 3; }}; {EDIT}"
    ws.write_config(**roles(builder={"script": script, "max_attempts": 1}))
    ws.write_queue(task("T1"))
    drain(ws, "builder")  # alone: an attempt beside it would be told of it as well
    ws.write_queue(ws.task("T1"), task("T2"), task("T3"))
    drain(ws)
    assert {ws.status(f"T{n}") for n in (1, 2, 3)} == {"needs_manual"}
    told = "an attempt changed what git runs (filter.evil.smudge in config; of T1)"
    assert told in note(ws, "T2")
    assert told in note(ws, "T3")
    assert repo.names() == {"readme.txt"}
    back = "ready_for_integrator"
    ws.write_queue(*({**ws.task(f"T{n}"), "status": back} for n in (2, 3)))
    drain(ws, "integrator")
    assert (ws.status("T2"), ws.status("T3")) == ("done", "done"), note(ws, "T3")


def test_a_change_that_was_mended_bars_nobody_else(ws: Workspace) -> None:
    """The task whose attempt it was is still looked at by a person."""
    repo = repository(ws)
    change = "git config filter.evil.smudge cat"
    ws.write_config(**roles(builder={"script": f"[ $ROLECALL_TASK_ID != T1 ] || {change}; {EDIT}"}))
    ws.write_queue(task("T1"))
    drain(ws, "builder")
    repo.git("config", "--remove-section", "filter.evil")
    ws.write_queue(ws.task("T1"), task("T2"))
    drain(ws)
    assert (ws.status("T1"), ws.status("T2")) == ("needs_manual", "done"), note(ws, "T2")


@pytest.mark.parametrize("kind", ["subfolder", "core.worktree", "a branch called agent"])
def test_a_workspace_that_git_sees_elsewhere_blocks(ws: Workspace, kind: str) -> None:
    """No worktree is made of it, and the words say what to do; nor with a name that is taken."""
    repo = repository(ws)
    ws.write_config(**roles(builder={"max_attempts": 2}))
    ws.write_queue(task())
    if kind == "subfolder":
        ws.write_config(**roles(builder={"max_attempts": 2}))
        inside = ws.path / "inside"
        inside.mkdir()
        config = json.loads(ws.config.read_text())
        ws.config.write_text(
            json.dumps({**config, "workspace": str(inside), "queue": f"file:{ws.queue}"})
        )
        told = "is a folder inside the repository"
    elif kind == "core.worktree":
        repo.git("config", "core.worktree", str(ws.path / ".oodatcaa"))
        told = "config --unset core.worktree"
    else:
        repo.git("branch", "agent")
        told = "a branch called agent bars agent/T1: rename it"
    drain(ws, "builder")
    assert ws.status() == "needs_manual"
    assert told in note(ws)
    assert ws.task().get("attempts", 0) == 0


@pytest.mark.parametrize("age", [0, 60])
def test_a_lock_is_taken_for_a_dead_gits_by_its_time(ws: Workspace, age: int) -> None:
    """A killed landing's journal stands there; a lock of much later is somebody else's."""
    repo = repository(ws)
    ws.write_config(**roles(integrator={"timeout": 2, "max_attempts": 1}))
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    said = {"main": "main", "old": repo.head(), "new": repo.head("agent/T1"), "mark": "X=/nope"}
    journal = ws.path / ".locks" / "landing.lock"
    journal.write_text(" " * 256 + json.dumps({**said, "at": time.time() - age}))
    held = ws.path / ".git" / "index.lock"
    held.write_text("")
    drain(ws, "integrator")
    assert held.exists() is bool(age)
    assert ws.status() == ("needs_manual" if age else "done"), note(ws)
    assert os.path.exists(ws.path / "T1.txt") is not bool(age)
