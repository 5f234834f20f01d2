"""How we call git: what it may know, what it may not run, and how it is ended."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from daemon.errors import Interrupted, LeaseLost
from daemon.git import Git, GitError
from tests.repository import Repository, repository
from tests.workspace import PATIENCE, Workspace, wait_for


class Asked:
    """A stop that is asked for from the Nth look on."""

    def __init__(self, after: int = 0) -> None:
        self.fd, self.left = -1, after

    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A repository with one commit."""
    return repository(Workspace(tmp_path))


def test_a_lock_that_somebody_holds_is_named(repo: Repository) -> None:
    """Git's advice comes after it, and is none."""
    (repo.path / ".git" / "index.lock").write_text("")
    with pytest.raises(GitError, match=r"git add: Unable to create '.*/index\.lock': File exists"):
        Git()(str(repo.path), "add", "--all")


def slow(repo: Repository, what: str = "exec sleep 600") -> tuple[str, ...]:
    """A call that hangs in a child of git's, which writes its pid."""
    repo.git("config", "alias.hang", f"!sh -c 'echo $$ > {repo.path}/pid; {what}'")
    return str(repo.path), "hang"


def check_over(repo: Repository) -> None:
    """What the call started ends with it."""
    pid = (repo.path / "pid").read_text().strip()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or is_zombie(pid), f"{pid} has ended")


def is_zombie(pid: str) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return True


def test_it_gives_what_git_prints_and_says_what_failed(repo: Repository) -> None:
    """Output of any size, input of any size, and git's own last line in an error."""
    git = Git()
    assert git(str(repo.path), "rev-parse", "HEAD").strip() == repo.head()
    text = "line\n" * 500_000
    oid = git(str(repo.path), "hash-object", "-w", "--stdin", stdin=text).strip()
    assert git(str(repo.path), "cat-file", "blob", oid) == text
    assert git.says(str(repo.path), "merge-base", "--is-ancestor", "HEAD", "HEAD")
    with pytest.raises(GitError, match="git rev-parse: Needed a single revision"):
        git(str(repo.path), "rev-parse", "--verify", "none")
    with pytest.raises(GitError, match="cannot change to"):
        git(str(repo.path / "none"), "status")


def test_a_missing_git_is_said(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no descriptor is left open."""
    monkeypatch.setenv("PATH", str(repo.path))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(GitError, match="git is not installed"):
            Git()(str(repo.path), "hash-object", "--stdin", stdin="x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_is_led_nowhere_by_the_environment(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a hook of the user's, or a terminal, has set does not reach it."""
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert Git()(str(repo.path), "status", "--porcelain") == ""


def test_nothing_of_the_repository_runs(repo: Repository) -> None:
    """No hook, no file-system monitor, no signature."""
    mark = repo.path / "ran"
    hook = repo.path / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    for key, value in (
        ("core.fsmonitor", str(hook)),
        ("commit.gpgSign", "true"),
        ("gpg.program", str(hook)),
        ("core.editor", str(hook)),
        ("user.name", "x"),
        ("user.email", "x@localhost"),
    ):
        repo.git("config", key, value)
    git = Git()
    git(str(repo.path), "status")
    git(str(repo.path), "commit", "--quiet", "--allow-empty", "--file=-", stdin="x\n")
    assert not mark.exists()


def test_a_deadline_ends_it_with_what_it_started(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late is our own knowledge, and nothing is left running, not even what minds no TERM."""
    monkeypatch.setattr("daemon.git.GRACE", 0.1)
    monkeypatch.setattr("daemon.git.LEAST", 0.5)
    git = Git(deadline=time.monotonic())
    with pytest.raises(Interrupted) as cut:
        git(*slow(repo, "trap : TERM; while :; do sleep 1; done"))
    assert cut.value.why == "timeout"
    check_over(repo)


def test_a_call_has_some_seconds_when_the_time_is_over(repo: Repository) -> None:
    """The last looks of an attempt that was late are taken all the same."""
    assert Git(deadline=time.monotonic() - 60)(str(repo.path), "rev-parse", "HEAD")


def test_a_stop_ends_it(repo: Repository) -> None:
    """As soon as it is asked for."""
    git = Git(lambda: 0.05, Asked(after=20))
    with pytest.raises(Interrupted) as cut:
        git(*slow(repo))
    assert cut.value.why == "stopped"
    check_over(repo)


def test_it_ticks_meanwhile_and_ends_with_the_lease(repo: Repository) -> None:
    """As often as is asked for; what a tick raises ends the call."""
    beats: list[float] = []

    def tick() -> float:
        beats.append(time.monotonic())
        if len(beats) == 4:
            raise LeaseLost("gone")
        return 0.05

    with pytest.raises(LeaseLost):
        Git(tick)(*slow(repo))
    check_over(repo)
    assert beats[-1] - beats[0] < PATIENCE


def test_what_must_not_be_torn_is_let_end(repo: Repository) -> None:
    """Neither a stop nor a lost lease ends it; the loss is told behind it."""
    mark = repo.path / "done"
    repo.git("config", "alias.brief", f"!sleep 0.3; touch {mark}")

    def tick() -> float:
        raise LeaseLost("gone")

    git = Git(tick, Asked(), deadline=-math.inf)
    with pytest.raises(LeaseLost):
        git.run(str(repo.path), "brief", unhurried=True)
    assert mark.exists()
