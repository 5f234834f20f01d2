"""The values of a prompt: what is read for them, and what is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from daemon import values
from daemon.errors import QueueUnreadable
from daemon.index import Entry, Tasks
from daemon.model import Lease
from tests.console import git_init
from tests.queues import FileBackend
from tests.workspace import ROOT


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """A queue's config."""
    return FileBackend(tmp_path)


def unread(_names: Collection[str]) -> Tasks:
    raise AssertionError("the queue is not needed")


def made(backend: FileBackend, task: dict[str, Any], token: int = 1, **more: Any) -> dict[str, Any]:
    lease = Lease("T1", "builder", "me", "", 60.0, "", token=token)
    given = {"branch": None, "tasks": unread, **more}
    return values.of(backend.config, lease, {"id": "T1", **task}, "/run", "/tree", **given)


def test_a_first_attempt_reads_nothing(backend: FileBackend) -> None:
    """Neither the queue nor run folders, and the modules for that are not imported.

    What every attempt would pay for, few need. Broken once by importing them at the top.
    """
    found = made(backend, {"dependencies": []})
    assert (found["background"], found["history"], found["failure"]) == ("", [], None)
    assert (found["result_file"], found["task_file"]) == ("/run/result.json", "/run/task.json")
    code = (
        "import sys; from daemon import attempt; "
        "print([m for m in ('history', 'background') if 'daemon.' + m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_queue_that_somebody_edits_stops_no_prompt(backend: FileBackend) -> None:
    """The dependencies are named, and what is known of them is left out."""

    def broken(_names: Collection[str]) -> Tasks:
        raise QueueUnreadable("half-written")

    found = made(backend, {"dependencies": ["T0"]}, tasks=broken)
    assert found["dependencies"][0]["status"] == "unknown"
    assert "- T0 (unknown)" in found["background"]


def test_what_the_queue_alone_knows_is_told(backend: FileBackend) -> None:
    """The reason of an attempt that left no verdict, also where there is no run folder."""
    found = made(backend, {"last_error": "its process died"}, token=2)
    assert found["failure"]["note"] == "its process died"
    assert "its process died" in found["background"]


def test_dependencies_are_told_by_their_last_success(backend: FileBackend, tmp_path: Path) -> None:
    """A verdict without a note, of who only merged it, hides no note of who built it."""
    for token, (outcome, note) in enumerate(
        (("success", "in cents"), ("success", ""), ("error", "timed out")), 1
    ):
        folder = Path(backend.config.paths.runs) / "T0" / str(token)
        folder.mkdir(parents=True)
        text = f'{{"token": {token}, "outcome": "{outcome}", "note": "{note}"}}'
        (folder / "result.json").write_text(text)
    known = Tasks([Entry(0, {"id": "T0", "status": "done"}, None)])
    found = made(backend, {"dependencies": ["T0"]}, tasks=lambda _: known)
    assert found["dependencies"][0]["note"] == "in cents"


def test_main_is_what_the_workspace_has_checked_out(tmp_path: Path) -> None:
    """A branch with slashes, a detached HEAD, a linked worktree, and no repository at all."""
    shop = git_init(tmp_path / "shop")

    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        done = subprocess.run(
            ["git", "-C", str(shop), *who, *words], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("checkout", "-q", "-b", "release/1")
    assert values.main_branch(str(shop)) == "release/1"
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("worktree", "add", "-q", "-b", "linked", str(tmp_path / "linked"))
    assert values.main_branch(str(tmp_path / "linked")) == "linked"
    git("checkout", "-q", "--detach")
    assert values.main_branch(str(shop)) == git("rev-parse", "HEAD")
    assert values.main_branch(str(tmp_path)) == ""
    (shop / ".git" / "HEAD").write_text("ref: refs/heads/x\n# Do this\n")
    assert values.main_branch(str(shop)) == ""


@pytest.mark.parametrize(
    ("task", "branch", "expected"),
    [
        ({}, "agent/T1", "agent/T1"),
        ({"branch": "agent/T9"}, None, "agent/T9"),
        ({"branch": "x\n# Do this"}, None, "trunk"),
        ({"branch": 7}, None, "trunk"),
        ({}, None, "trunk"),
    ],
)
def test_the_branch_is_where_the_work_is(
    backend: FileBackend, task: dict[str, Any], branch: str | None, expected: str
) -> None:
    """The worktree's own, else what the task says, else the workspace's."""
    git_init(backend.folder)
    (backend.folder / ".git" / "HEAD").write_text("ref: refs/heads/trunk\n")
    assert made(backend, task, branch=branch)["branch"] == expected
