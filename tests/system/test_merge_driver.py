"""The merge driver under real git: merge, rebase, cherry-pick, stash, and what can go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import QueueUnreadable
from daemon.fleet import mergedriver
from daemon.fleet.init import init
from daemon.queue import jsontext
from tests.console import Operator, git_init, write_inventory
from tests.workspace import ROOT

WHO = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main")
TASK = {"id": "T1", "title": "x", "status": "ready", "agent": None, "lease": None, "n": 1}


class Clone:
    """A repository with the driver set up, and a queue of one task in its first commit."""

    def __init__(self, folder: Path, inventory: Path, queue: str) -> None:
        self.folder, self.queue = git_init(folder), folder / queue
        self.git("symbolic-ref", "HEAD", "refs/heads/main")
        init(str(folder), str(inventory), merge_driver=True)
        self.commit(TASK)

    def git(self, *arguments: str, status: int = 0) -> str:
        """What git prints, errors too; it must end with that status."""
        done = subprocess.run(
            ["git", *WHO, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def write(self, *tasks: dict[str, Any]) -> None:
        self.queue.write_text(json.dumps({"tasks": list(tasks)}, indent=2) + "\n")

    def commit(self, *tasks: dict[str, Any]) -> None:
        """Commit a queue of these tasks."""
        self.write(*tasks)
        self.git("add", "--", str(self.queue))
        self.git("commit", "--quiet", "--message", "queue")

    def fork(self, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
        """Two branches, main and other, from the commit that is checked out; main is left so."""
        self.git("switch", "--quiet", "--create", "other")
        self.commit(*theirs)
        self.git("switch", "--quiet", "main")
        self.commit(*ours)

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks that the queue holds now."""
        found: list[dict[str, Any]] = json.loads(self.queue.read_text())["tasks"]
        return found


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A clone, with a space in every path."""
    inventory = write_inventory(tmp_path / "inventory", queue="file:my work/the queue.json")
    (tmp_path / "my shop" / "my work").mkdir(parents=True)
    return Clone(tmp_path / "my shop", inventory, "my work/the queue.json")


OURS = {**TASK, "title": "ours"}
THEIRS = {**TASK, "n": 2}
BOTH = {**TASK, "title": "ours", "n": 2}
NEW = {"id": "T2", "status": "ready"}
NEXT = {"id": "T3", "status": "ready"}


@pytest.mark.parametrize(
    "how",
    [("merge", "--no-edit", "other"), ("rebase", "other"), ("cherry-pick", "other")],
    ids=lambda how: how[0],
)
def test_changes_of_one_task_and_new_tasks_go_together(clone: Clone, how: tuple[str, ...]) -> None:
    """However git merges; line by line the new tasks would be in conflict.

    Broken once by a driver of another name in the attributes, so that git merged by itself: this
    failed.
    """
    clone.fork([OURS, NEW], [THEIRS, NEXT])
    clone.git(*how)
    assert clone.tasks[0] == BOTH
    assert {task["id"] for task in clone.tasks[1:]} == {"T2", "T3"}
    assert clone.git("status", "--short", "--untracked-files=no") == ""


def test_a_stash_goes_onto_another_commit(clone: Clone) -> None:
    """Changes that were put aside come back into a queue that moved on."""
    clone.write(THEIRS, NEXT)
    clone.git("stash")
    clone.commit(OURS, NEW)
    clone.git("stash", "pop")
    assert clone.tasks == [BOTH, NEW, NEXT]


def test_a_linked_worktree_merges_as_its_clone_does(clone: Clone, tmp_path: Path) -> None:
    """One set-up is for all worktrees of a clone."""
    clone.fork([OURS, NEW], [THEIRS, NEXT])
    clone.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"), "other")
    clone.folder = tmp_path / "linked"
    clone.git("merge", "--no-edit", "main")
    clone.queue = clone.folder / "my work" / "the queue.json"
    assert clone.tasks == [BOTH, NEXT, NEW]


def test_a_conflict_stands_where_both_changed_a_key_and_nowhere_else(clone: Clone) -> None:
    """Git stops, our reader names the line, and a side kept by hand is a queue to commit."""
    clone.fork([{**TASK, "title": "ours", "n": 5}], [{**TASK, "title": "theirs"}, NEW])
    said = clone.git("merge", "other", status=1)
    assert "rolecall: my work/the queue.json: left to you: T1 title\n" in said
    assert clone.git("status", "--short", "--untracked-files=no")[:2] == "UU"
    text = clone.queue.read_text()
    with pytest.raises(QueueUnreadable, match="conflict marker") as error:
        jsontext.parse(text.encode(), "q")
    assert error.value.problems[0].where == "q:5"
    lines = text.splitlines()
    assert lines[4:9] == [
        "<<<<<<< ours",
        '      "title": "ours",',
        "=======",
        '      "title": "theirs",',
        ">>>>>>> theirs",
    ]
    clone.queue.write_text("\n".join([*lines[:4], lines[5], *lines[9:], ""]))
    assert clone.tasks == [{**TASK, "title": "ours", "n": 5}, NEW]
    clone.git("commit", "--quiet", "--all", "--no-edit")


def test_merges_of_merges_have_a_base(clone: Clone) -> None:
    """Where two branches merged each other before, their common ancestors may be in conflict.

    Broken once by leaving that inner merge to the driver too, as git does by itself: this failed.
    """
    clone.fork([{**TASK, "n": 5}], [{**TASK, "n": 6}])
    clone.git("branch", "first")
    for branch, other, chosen in (("main", "other", 5), ("other", "first", 6)):
        clone.git("switch", "--quiet", branch)
        clone.git("merge", other, status=1)
        clone.commit(
            {**TASK, "n": chosen, "title": branch} if branch == "main" else {**TASK, "n": 5}
        )
    clone.git("switch", "--quiet", "main")
    said = clone.git("merge", "--no-edit", "other")
    assert "line by line" not in said
    assert clone.tasks == [{**TASK, "n": 5, "title": "main"}]


def test_what_is_no_queue_is_merged_by_lines_and_that_is_said(clone: Clone) -> None:
    """Two tasks of one id: git's own markers, and the reason."""
    clone.fork([{**TASK, "n": 5}], [TASK, TASK])
    said = clone.git("merge", "other", status=1)
    assert (
        "rolecall: my work/the queue.json is merged line by line: theirs: two tasks have the id T1"
    ) in said
    assert "<<<<<<< ours\n" in clone.queue.read_text()


def test_what_is_no_text_is_left_as_ours_and_in_conflict(clone: Clone) -> None:
    """As git itself does with binary files."""
    clone.git("switch", "--quiet", "--create", "other")
    clone.queue.write_bytes(b"\0\1\2")
    clone.git("commit", "--quiet", "--all", "--message", "binary")
    clone.git("switch", "--quiet", "main")
    clone.commit(OURS)
    assert "left to you: all of it" in clone.git("merge", "other", status=1)
    assert clone.tasks == [OURS]


@pytest.mark.parametrize("gone", ["python", "checkout"])
def test_a_program_that_is_gone_costs_no_side_its_changes(clone: Clone, gone: str) -> None:
    """Git's own merge takes its place: both sides stand there.

    git alone would keep ours, without a marker. Broken once by a command line that did not look for
    its program: this failed.
    """
    paths = {"python": sys.executable, "checkout": str(ROOT), gone: "/none"}
    for key, value in mergedriver.settings(**paths).items():
        clone.git("config", key, value)
    clone.fork([OURS], [{**TASK, "title": "theirs"}])
    clone.git("merge", "other", status=1)
    text = clone.queue.read_text()
    assert "<<<<<<< ours" in text
    assert '"ours"' in text
    assert '"theirs"' in text


def test_paths_of_any_characters_reach_the_driver(clone: Clone, tmp_path: Path) -> None:
    """Of Python, of the checkout, of the clone and of the queue: git and sh take none apart."""
    odd = tmp_path / 'it\'s 100% $HOME "x" %P'
    odd.mkdir()
    (odd / "co").symlink_to(ROOT)
    (odd / "python").symlink_to(sys.executable)
    queue = 'q [1]*? "x" \\ é.json'
    inventory = write_inventory(odd / "inventory", queue=f"file:{queue}")
    other = Clone(odd / "shop", inventory, queue)
    for key, value in mergedriver.settings(str(odd / "python"), str(odd / "co")).items():
        other.git("config", key, value)
    other.fork([OURS, NEW], [THEIRS, NEXT])
    other.git("merge", "--no-edit", "other")
    assert other.tasks == [BOTH, NEW, NEXT]


def test_code_of_the_repository_does_not_run(clone: Clone) -> None:
    """Agents write there: a package or module of a name that we import is not taken for ours.

    Broken once by leaving out -P: this failed.
    """
    for name in ("daemon", "json", "subprocess"):
        (clone.folder / f"{name}.py").write_text("raise SystemExit('it ran')\n")
    clone.fork([OURS], [THEIRS])
    clone.git("merge", "--no-edit", "other")
    assert clone.tasks == [BOTH]


def test_a_result_that_cannot_be_written_leaves_the_file_whole(tmp_path: Path) -> None:
    """A full disk: ours is there to the byte, nothing beside it, and git calls the merge failed.

    Broken once by writing into the file itself: this failed.
    """
    texts = {
        name: json.dumps({"tasks": [task]}).encode()
        for name, task in (("base", TASK), ("ours", OURS), ("theirs", THEIRS))
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    command = [sys.executable, "-P", "-S", "-m", "daemon.fleet.mergedriver", *texts, "7", "q.json"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 129
    assert done.stderr == (
        "rolecall: q.json is not merged, what stands there is ours alone:"
        " cannot write: File too large\n"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == texts


def test_a_person_sets_it_up_with_one_command(tmp_path: Path) -> None:
    """``invoke init`` offers it, ``--merge-driver`` does it, the second time changes nothing."""
    operator = Operator(tmp_path)
    offered = operator.invoke("init", "--workspace", str(operator.workspace)).stdout
    assert any(each.endswith("invoke init --merge-driver)") for each in offered.splitlines())
    made = operator.invoke("init", "--merge-driver").stdout.splitlines()
    assert [line.split()[0] for line in made[-3:]] == ["changed", "made", "commit"]
    again = operator.invoke("init").stdout + operator.invoke("init", "--merge-driver").stdout
    assert {line.split()[0] for line in again.splitlines()} == {"kept", "commit"}
