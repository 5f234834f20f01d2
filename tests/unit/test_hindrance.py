"""What of a person's is in a merge's way: waited for within bounds, and named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from daemon import hindrance
from daemon.git import Git, GitError
from tests.repository import Repository, repository
from tests.workspace import Workspace


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A repository with one commit."""
    return repository(Workspace(tmp_path))


def test_a_persons_git_is_waited_for(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and so does the waiting; the caller's duties are seen to meanwhile."""
    held = repo.path / ".git" / "index.lock"
    held.write_text("")
    beats: list[bool] = []

    def tick() -> float:
        beats.append(held.exists())
        return 0.0

    git = Git(tick)
    monkeypatch.setattr(time, "sleep", lambda _: held.unlink())
    hindrance.await_quiet(git, str(repo.path))
    assert not held.exists()
    assert beats


@pytest.mark.parametrize(
    ("name", "told"),
    [("index.lock", "another git is at work there"), ("MERGE_HEAD", "is not concluded")],
)
def test_one_that_does_not_end_is_named(
    repo: Repository, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file that it holds, which stays."""
    monkeypatch.setattr(hindrance, "PATIENCE", 0.0)
    held = repo.path / ".git" / name
    held.write_text("")
    with pytest.raises(GitError, match=f"{told}.*{held}"):
        hindrance.await_quiet(Git(), str(repo.path))
    assert held.exists()


def test_each_file_gets_the_words_that_help() -> None:
    """Only what git has in a commit can be stashed by name; all else is moved away."""
    said = """error: Your local changes to the following files would be overwritten by merge:
\ta b.txt
\tc.txt
Please commit your changes or stash them before you merge.
error: The following untracked working tree files would be overwritten by merge:
\tnew.txt
error: Updating the following directories would lose untracked files in them:
\td

Aborting
"""
    assert hindrance.in_the_way(said, "/w s") == (
        "a b.txt, c.txt (commit, or: git -C '/w s' stash push --include-untracked --"
        " 'a b.txt' c.txt); new.txt, d (in no commit of yours: move it away)"
    )
    assert hindrance.in_the_way("fatal: \n\tx\n", "/w") == ""
