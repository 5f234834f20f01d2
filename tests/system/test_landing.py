"""From ready to main: builders side by side, and an integrator that is Rolecall itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.repository import EDIT, Repository, repository, roles, task
from tests.workspace import Workspace, wait_for


def drain(ws: Workspace, *names: str) -> None:
    """Let these roles, or all of them, work until nothing is claimable."""
    chosen = (("--role", name) for name in names) if names else [()]
    for words in chosen:
        done = ws.run(*words, "--drain")
        assert done.returncode in {0, 1}, done.stderr


def note(ws: Workspace, identifier: str = "T1") -> str:
    return str(ws.task(identifier).get("last_error"))


def test_three_builders_at_once_end_in_three_clean_merges(ws: Workspace) -> None:
    """Each in its own worktree, at the same time; main has all three, one merge commit for each.

    Agents that commit nothing have it committed for them; worktrees and branches are gone then.
    """
    repo = repository(ws)
    meet = f"touch {ws.path}/.agent-$ROLECALL_TASK_ID; while [ $(ls -d {ws.path}/.agent-T* | wc -l)"
    ws.write_config(**roles(builder={"script": f"{meet} -lt 3 ]; do sleep 0.05; done; {EDIT}"}))
    ws.write_queue(*(task(f"T{n}") for n in (1, 2, 3)))
    drain(ws)
    assert {ws.status(f"T{n}") for n in (1, 2, 3)} == {"done"}, ws.document()
    assert repo.names() == {"readme.txt", "T1.txt", "T2.txt", "T3.txt"}
    merges = repo.git("log", "--first-parent", "--merges", "--format=%s %p").splitlines()
    assert {line.partition(" ")[0] for line in merges} == {"Merge"}
    assert {line.split(":")[0] for line in merges} == {f"Merge T{n}" for n in (1, 2, 3)}
    assert repo.show("T2.txt") == "T2"
    assert (ws.path / "T2.txt").read_text() == "T2\n"
    assert repo.changed() == []
    assert repo.git("branch", "--format=%(refname:short)") == "main"
    assert list((ws.path / ".worktrees").iterdir()) == []
    assert repo.git("worktree", "list").count("\n") == 0


def test_two_tasks_that_edit_one_line_end_in_a_merge_and_a_refined_one(ws: Workspace) -> None:
    """The second is rejected with the conflict in its run's folder, and main is what it was.

    A refiner that merges main and keeps both gets it through.
    """
    repo = repository(ws)
    builder = {"script": 'echo "$ROLECALL_TASK_ID" > readme.txt'}
    ws.write_config(**roles(builder=builder))
    ws.write_queue(task("T1"), task("T2"))
    drain(ws, "builder", "tester", "integrator")
    assert (ws.status("T1"), ws.status("T2")) == ("done", "needs_adapt")
    assert repo.show("readme.txt") == "T1"
    told = ws.task("T2")
    assert "conflicts with main" in note(ws, "T2")
    assert "readme.txt" in note(ws, "T2")
    conflict = ws.path / ".agent-runs" / "T2" / str(told["token"]) / "conflict.txt"
    assert "CONFLICT" in conflict.read_text()
    assert "<<<<<<<" in conflict.read_text()
    assert str(conflict) in note(ws, "T2")
    worktree = Repository(ws.path / ".worktrees" / "T2")
    assert worktree.git("status", "--porcelain") == ""
    assert worktree.git("symbolic-ref", "--short", "HEAD") == "agent/T2"

    refine = "git merge --no-edit main; printf 'T1\\nT2\\n' > readme.txt"
    ws.write_config(**roles(builder=builder, refiner={"script": refine, "evidence": True}))
    drain(ws, "refiner", "tester", "integrator")
    assert ws.status("T2") == "done", note(ws, "T2")
    assert repo.show("readme.txt") == "T1\nT2"


def test_what_is_green_alone_and_red_together_leaves_main_alone(ws: Workspace) -> None:
    """The gates see the merged tree; a refiner then finds that very tree on the branch."""
    repo = repository(ws)
    gates = {"gates": [["sh", "-c", 'test "$(ls T*.txt | wc -l)" -lt 2']]}
    ws.write_config(**roles(builder=gates, integrator=gates))
    ws.write_queue(task("T1"), task("T2"))
    drain(ws, "builder", "tester", "integrator")
    assert (ws.status("T1"), ws.status("T2")) == ("done", "needs_adapt")
    assert repo.names() == {"readme.txt", "T1.txt"}
    assert "merged with main" in note(ws, "T2")
    assert repo.names("agent/T2") == {"readme.txt", "T1.txt", "T2.txt"}
    assert ws.task("T2")["commit"] == repo.head("agent/T2")
    ws.write_config(**roles(refiner={"script": "rm T1.txt", "evidence": True}, integrator=gates))
    drain(ws, "refiner", "tester", "integrator")
    assert ws.status("T2") == "done", note(ws, "T2")
    assert repo.names() == {"readme.txt", "T2.txt"}


def test_a_merge_carries_no_queue(ws: Workspace) -> None:
    """An agent that commits the queue, or a prompt, changes main's neither.

    Nor does the queue hinder a merge by being dirty: we write it all the time.
    """
    repo = repository(ws)
    ws.write_config(
        **roles(
            builder={
                "script": f"{EDIT}; echo '{{}}' > .oodatcaa/work/SPRINT_QUEUE.json;"
                " mkdir -p .oodatcaa/prompts; echo x > .oodatcaa/prompts/builder.md;"
                " git add -A; git commit -qm mine"
            }
        )
    )
    ws.write_queue(task())
    repo.git("add", ".oodatcaa")
    repo.commit("the queue")
    drain(ws, "builder", "tester")
    repo.git("add", ".oodatcaa")
    repo.commit("the queue, as it is by now")  # it would conflict
    before = repo.show(".oodatcaa/work/SPRINT_QUEUE.json")
    drain(ws, "integrator")
    assert ws.status() == "done", note(ws)
    assert repo.show(".oodatcaa/work/SPRINT_QUEUE.json") == before
    assert repo.names() == {"readme.txt", "T1.txt", ".oodatcaa/work/SPRINT_QUEUE.json"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("git config filter.x.clean evil", "filter.x.clean in config"),
        ("echo x > $(git rev-parse --git-common-dir)/hooks/post-merge", "hooks/post-merge"),
        ("echo '* filter=x' > $(git rev-parse --git-common-dir)/info/attributes", "attributes"),
        ("git config user.name me; git config branch.x.remote y", ""),
    ],
)
def test_what_git_runs_must_be_as_it_was(ws: Workspace, change: str, told: str) -> None:
    """A hook or setting that an attempt made bars its task's way to main until a person looked."""
    repo = repository(ws)
    ws.write_config(**roles(builder={"script": f"{EDIT}; {change}"}))
    ws.write_queue(task())
    drain(ws)
    if not told:
        assert ws.status() == "done", note(ws)
        return
    assert ws.status() == "needs_manual"
    assert "an attempt changed what git runs" in note(ws)
    assert told in note(ws)
    assert repo.names() == {"readme.txt"}
    ws.write_queue({**ws.task(), "status": "ready_for_integrator"})
    drain(ws, "integrator")
    assert ws.status() == "done", note(ws)


def test_a_gate_that_changes_what_git_runs_stops_the_merge(ws: Workspace) -> None:
    """It is seen in the integrator's own attempt, before main moves."""
    repo = repository(ws)
    ws.write_config(**roles(integrator={"gates": [["git", "config", "core.pager", "evil"]]}))
    ws.write_queue(task())
    drain(ws)
    assert ws.status() == "needs_manual"
    assert "core.pager in config" in note(ws)
    assert repo.names() == {"readme.txt"}


def test_a_change_of_what_git_runs_outlives_its_attempt(ws: Workspace) -> None:
    """The attempt that made it is killed before it could look; the next one of the task tells."""
    repo = repository(ws)
    script = f"[ -e {ws.path}/.agent-hit ] && {{ {EDIT}; exit; }}; git config core.editor evil;"
    script += f" touch {ws.path}/.agent-hit; kill -9 $PPID; sleep 60"
    ws.write_config(**roles(builder={"script": script}))
    ws.write_queue(task())
    drain(ws)
    drain(ws)  # the wait after an error is over at once, or soon
    assert ws.status() == "needs_manual", ws.log()
    assert "core.editor in config" in note(ws)
    assert repo.names() == {"readme.txt"}


def test_a_commit_that_no_current_attempt_made_is_not_merged(ws: Workspace) -> None:
    """What comes onto the branch after the last attempt has settled is refused by name."""
    repo = repository(ws)
    ws.write_config(**roles())
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    late = Repository(ws.path / ".worktrees" / "T1")
    settled = late.head()
    assert ws.task()["commit"] == settled
    head = late.commit("late", late_txt="late\n")
    drain(ws, "integrator")
    assert ws.status() == "needs_manual"
    assert "agent/T1 holds commits that no current attempt made" in note(ws)
    assert settled[:10] in note(ws)
    assert repo.names() == {"readme.txt"}
    ws.write_queue({**ws.task(), "status": "ready_for_integrator"})  # as queue.retry does
    drain(ws, "integrator")
    assert ws.status() == "done", note(ws)
    assert repo.names() == {"readme.txt", "T1.txt", "late.txt"}
    assert repo.head(f"{head}^{{commit}}") == head


def test_uncommitted_changes_of_a_person_are_left_alone(ws: Workspace) -> None:
    """Where they are in the way main stays; where they are not they stay as well."""
    repo = repository(ws, readme_txt="one\n", other_txt="one\n")
    ws.write_config(**roles(builder={"script": "echo two > readme.txt"}, integrator={}))
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    repo.write("readme.txt", "mine\n")
    repo.write("other.txt", "mine\n")
    before = repo.head()
    drain(ws, "integrator")
    assert ws.status() == "needs_manual"  # after three attempts
    assert "your own uncommitted changes are in the way of the merge: readme.txt" in note(ws)
    assert repo.head() == before
    assert (ws.path / "readme.txt").read_text() == "mine\n"
    repo.write("readme.txt", "one\n")
    ws.write_queue({**ws.task(), "status": "ready_for_integrator"})
    drain(ws, "integrator")
    assert ws.status() == "done", note(ws)
    assert (ws.path / "readme.txt").read_text() == "two\n"
    assert (ws.path / "other.txt").read_text() == "mine\n"


def test_main_that_moves_meanwhile_is_merged_and_looked_at_again(ws: Workspace) -> None:
    """A person commits while the gates run: they run again, on what main is then."""
    repo = repository(ws)
    gate = f"ls >> {ws.path}/.agent-seen; [ -e {ws.path}/.agent-moved ] ||"
    gate += f" {{ touch {ws.path}/.agent-moved; cd {ws.path}; echo x > p.txt; git add p.txt;"
    gate += " git -c user.name=p -c user.email=p@localhost commit -qm person; }"
    ws.write_config(**roles(integrator={"gates": [["sh", "-c", gate]]}))
    ws.write_queue(task())
    drain(ws)
    assert ws.status() == "done", note(ws)
    assert ws.task()["token"] == 3  # in one attempt of each role
    assert repo.names() == {"readme.txt", "T1.txt", "p.txt"}
    assert repo.subjects() == ["Merge T1: Do T1", "person", "first"]
    assert (ws.path / ".agent-seen").read_text().split() == [
        *("T1.txt", "readme.txt"),
        *("T1.txt", "p.txt", "readme.txt"),
    ]


def test_an_agent_that_merges_works_on_the_merged_tree(ws: Workspace) -> None:
    """What it leaves there lands in the merge itself, less our own paths."""
    repo = repository(ws)
    script = "test -f p.txt && test -f T1.txt && echo both > both.txt && mkdir -p .oodatcaa/work"
    script += "; echo {} > .oodatcaa/work/SPRINT_QUEUE.json; git add -A; git commit -qm mine"
    script += "; echo more >> both.txt"
    ws.write_config(**roles(integrator={"script": script}))
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    repo.commit("person", p_txt="x\n")
    drain(ws, "integrator")
    assert ws.status() == "done", note(ws)
    assert repo.names() == {"readme.txt", "T1.txt", "p.txt", "both.txt"}
    assert repo.show("both.txt") == "both\nmore"
    assert repo.subjects() == ["Merge T1: Do T1", "person", "first"]


def test_a_workspace_without_a_branch_merges_nothing(ws: Workspace) -> None:
    """Somebody is in the middle of something: it is tried again."""
    repo = repository(ws)
    ws.write_config(**roles(integrator={"max_attempts": 1}))
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    repo.git("checkout", "--quiet", "--detach")
    drain(ws, "integrator")
    assert ws.status() == "needs_manual"
    assert "no branch that a task could be merged into" in note(ws)


def test_nothing_to_merge_is_a_success(ws: Workspace) -> None:
    """A branch that somebody has merged already needs no gates."""
    repo = repository(ws)
    ws.write_config(**roles(integrator={"gates": [["false"]]}))
    ws.write_queue(task())
    drain(ws, "builder", "tester")
    repo.git("merge", "--quiet", "--no-edit", "agent/T1")
    drain(ws, "integrator")
    assert ws.status() == "done", note(ws)


def test_a_title_cannot_write_the_message(ws: Workspace) -> None:
    """It is one line of a commit, whatever it holds."""
    repo = repository(ws)
    ws.write_config(**roles())
    ws.write_queue(task(title="Do\n\n#it\x1b[31m --amend\x00 " + "x" * 500))
    drain(ws)
    assert ws.status() == "done", note(ws)
    (first, *_) = repo.subjects()
    assert first.startswith("Merge T1: Do #it [31m --amend xxx")
    assert len(first) < 250
    assert repo.git("log", "-1", "--format=%b") == ""


@pytest.mark.parametrize("how", ["removed", "renamed", "cut off"])
def test_a_worktree_that_somebody_removed_is_made_again(ws: Workspace, how: str) -> None:
    """The branch is what counts; a lost branch is made again from what the task knows."""
    repo = repository(ws)
    ws.write_config(**roles())
    ws.write_queue(task())
    drain(ws, "builder")
    folder = ws.path / ".worktrees" / "T1"
    folder.rename(ws.path / ".worktrees" / "away")
    if how == "removed":
        repo.git("worktree", "prune")
    if how == "cut off":
        repo.git("worktree", "prune")
        repo.git("branch", "--quiet", "-D", "agent/T1")
    drain(ws, "tester", "integrator")
    assert ws.status() == "done", note(ws)
    assert repo.names() == {"readme.txt", "T1.txt"}


@pytest.mark.parametrize("what", ["link", "file", "folder", "elsewhere", "repository"])
def test_what_stands_in_a_worktrees_place_is_an_error(ws: Workspace, what: str) -> None:
    """It is named, and it is left as it is."""
    repo = repository(ws)
    ws.write_config(**roles(builder={"max_attempts": 1}))
    ws.write_queue(task())
    place = ws.path / ".worktrees" / "T1"
    place.parent.mkdir()
    if what == "link":
        place.symlink_to(ws.path)
    elif what == "file":
        place.write_text("mine")
    elif what == "folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif what == "repository":
        Repository(ws.path).git("init", "--quiet", str(place))
    else:
        repo.git("switch", "--quiet", "--create", "agent/T1")
    drain(ws, "builder")
    assert ws.status() == "needs_manual"
    told = {
        "link": "a symbolic link stands in the worktree's place",
        "file": "a file stands in the worktree's place",
        "elsewhere": f"agent/T1 is checked out in {ws.path}",
    }
    assert told.get(what, "no worktree of this repository") in note(ws)
    assert not (ws.path / "T1.txt").exists()


@pytest.mark.parametrize("kind", ["no commit", "submodules"])
def test_a_repository_that_allows_no_worktree_blocks_at_once(ws: Workspace, kind: str) -> None:
    """With words on what to do."""
    repo = repository(ws)
    if kind == "no commit":
        repo.git("checkout", "--quiet", "--orphan", "fresh")
    else:
        repo.commit("a module", _gitmodules='[submodule "x"]\n\tpath = x\n\turl = ./x\n')
    ws.write_config(**roles())
    ws.write_queue(task())
    drain(ws, "builder")
    assert ws.status() == "needs_manual"
    words = {"no commit": "has no commit", "submodules": "worktree: false"}
    assert words[kind] in note(ws)
    assert ws.task().get("attempts", 0) == 0


def test_evidence_is_what_a_file_holds(ws: Workspace) -> None:
    """An empty commit, a file written anew as it was, the queue: none of them is success."""
    repo = repository(ws)
    for script in (
        "git commit --allow-empty -qm empty",
        "cat readme.txt > x; mv x readme.txt; touch readme.txt",
        "mkdir -p .agent-runs .oodatcaa/work; echo x > .oodatcaa/work/SPRINT_QUEUE.json",
        "git -c user.name=x commit --amend --allow-empty -qm other",
        "echo x > new; git add new; git commit -qm new; git revert --no-edit HEAD",
    ):
        ws.write_config(**roles(builder={"script": script, "max_attempts": 1}))
        ws.write_queue(task())
        drain(ws, "builder")
        assert (ws.status(), note(ws).split(" (")[0]) == (
            "needs_manual",
            "no evidence: this attempt changed nothing",
        ), script
    assert repo.names("agent/T1") == {"readme.txt"}


@pytest.mark.parametrize("says", ["success", ""])
def test_work_that_a_dead_attempt_left_is_evidence_where_the_agent_says_so(
    ws: Workspace, says: str
) -> None:
    """A killed attempt had done it all: the next one has only to say that it is right."""
    repository(ws)
    hit = ws.path / ".agent-hit"
    said = '{"outcome": "success"}' if says else "{}"
    script = f"[ -e {hit} ] && {{ echo '{said}' > $ROLECALL_RESULT_FILE; exit; }}; touch {hit};"
    ws.write_config(**roles(builder={"script": f"{script} {EDIT}; exit 1", "max_attempts": 2}))
    ws.write_queue(task())
    drain(ws, "builder")
    assert ws.status() == ("awaiting_test" if says else "needs_manual"), note(ws)


def test_gates_leave_nothing_for_the_next_role_to_commit(ws: Workspace) -> None:
    """What they make is gone, but for what git ignores: the work is committed before."""
    repo = repository(ws, _gitignore="cache\n")
    gate = "echo x > dropping; echo x > cache; echo x >> T1.txt"
    ws.write_config(**roles(builder={"gates": [["sh", "-c", gate]]}))
    ws.write_queue(task())
    drain(ws, "builder")
    folder = ws.path / ".worktrees" / "T1"
    assert {path.name for path in folder.iterdir()} == {".git", ".gitignore", "T1.txt", "cache"}
    drain(ws, "tester", "integrator")
    assert repo.names() == {".gitignore", "T1.txt"}
    assert repo.show("T1.txt") == "T1"


@pytest.mark.parametrize("who", ["agent", "gate"])
def test_a_worktree_that_lost_its_git_is_not_taken_for_the_workspace(
    ws: Workspace, who: str
) -> None:
    """An agent, or a gate, removes ``.git`` there: nothing of the workspace is reset or removed."""
    repo = repository(ws)
    lose = "rm -rf .git"
    gates = [["sh", "-c", lose]] if who == "gate" else []
    script = f"{EDIT}; {lose}" if who == "agent" else EDIT
    ws.write_config(**roles(builder={"script": script, "gates": gates, "max_attempts": 1}))
    ws.write_queue(task())
    repo.write("readme.txt", "mine\n")
    repo.write("untracked.txt", "mine\n")
    head = repo.head()
    drain(ws, "builder")
    assert ws.status() == "needs_manual"
    assert repo.head() == head
    assert {line.strip() for line in repo.changed()} == {"M readme.txt", "?? untracked.txt"}


def test_what_an_agent_left_unfinished_is_no_success(ws: Workspace) -> None:
    """Conflict markers are not committed, and another branch's work is not taken for the task's."""
    repo = repository(ws)
    repo.git("branch", "side")
    repo.commit("main's", readme_txt="main\n")
    for script, told in (
        ("git checkout -q -b mine; echo x > x", "on mine, not on agent/T1"),
        (
            "echo x > readme.txt; git commit -qam x; git merge side2; :",
            "a merge was left with conflicts in readme.txt",
        ),
    ):
        repo.git("checkout", "--quiet", "-B", "side2", "side")
        repo.commit("side", readme_txt="side\n")
        repo.git("checkout", "--quiet", "main")
        ws.write_config(**roles(builder={"script": script, "max_attempts": 1}))
        ws.write_queue(task())
        drain(ws, "builder")
        assert ws.status() == "needs_manual"
        assert told in note(ws)
        repo.git("worktree", "remove", "--force", ".worktrees/T1")
        repo.git("branch", "-D", "agent/T1")


def result(ws: Workspace, **keys: Any) -> str:
    """What a script writes to say so."""
    return f"echo '{json.dumps(keys)}' > $ROLECALL_RESULT_FILE"


def test_an_ended_tasks_worktree_stays_where_something_would_be_lost(ws: Workspace) -> None:
    """Unmerged, uncommitted, untracked, locked, of no task: all of them stay; ours may go."""
    repo = repository(ws, _gitignore="cache\n")
    ws.write_config(**roles(builder={"wip_limit": 9}))
    ids = ["unmerged", "changed", "untracked", "locked", "unknown", "open", "clean", "ours"]
    ws.write_queue(*(task(each) for each in ids))
    drain(ws, "builder")
    folders = {each: ws.path / ".worktrees" / each for each in ids}
    for each in ids[1:]:
        repo.git("merge", "--quiet", "--no-edit", f"agent/{each}")
    (folders["changed"] / "readme.txt").write_text("x")
    (folders["changed"] / "changed.txt").write_text("x")
    (folders["untracked"] / "more.txt").write_text("x")
    (folders["clean"] / "cache").write_text("x")
    (folders["ours"] / ".agent-runs").mkdir()
    (folders["ours"] / ".agent-runs" / "x").write_text("x")
    repo.git("worktree", "lock", str(folders["locked"]))
    status = {"open": "awaiting_test", "unmerged": "cancelled"}
    tasks = [{**ws.task(each), "status": status.get(each, "done")} for each in ids]
    ws.write_queue(*(each for each in tasks if each["id"] != "unknown"), task("last"))
    drain(ws, "builder")
    left = {path.name for path in (ws.path / ".worktrees").iterdir()}
    assert left == {*ids, "last"} - {"clean", "ours"}
    branches = repo.git("branch", "--format=%(refname:short)", "--list", "agent/*").split()
    assert set(branches) == {f"agent/{each}" for each in left}


def test_a_stop_ends_what_git_does(ws: Workspace, tmp_path: Path) -> None:
    """A filter that never ends holds neither the lease nor the attempt."""
    repo = repository(ws)
    begun = ws.path / ".agent-begun"
    repo.commit("slow", _gitattributes="slow filter=slow\n", slow="x\n")
    repo.git(
        "config", "filter.slow.smudge", f"[ -e {begun} ] && cat || {{ touch {begun}; sleep 600; }}"
    )
    ws.write_config(**roles())
    ws.write_queue(task())
    worker = ws.start("--role", "builder")
    wait_for(begun.exists, "git is at the slow file")
    lease = ws.lease()
    assert lease
    wait_for(lambda: (ws.lease() or lease)["heartbeat_at"] > lease["heartbeat_at"], "a renewal")
    worker.terminate()
    wait_for(lambda: "stopping" in ws.log(), "the first signal is heard")
    worker.terminate()
    assert worker.wait(30) == 0
    assert ws.status() == "ready"
    assert ws.tree() == []
    drain(ws, "builder")
    assert ws.status() == "awaiting_test", note(ws)
