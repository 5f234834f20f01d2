"""Kill -9 while main moves: it has moved then, or it has not, and the next attempt goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import Repository, repository, roles, task
from tests.workspace import ROOT, Workspace, wait_for

DRIVER = [sys.executable, str(ROOT / "tests" / "faults" / "crashing.py"), "worker"]
GIT = "Landing.land > Git.run > _Call.__init__ > spawn"  # the git that moves main
STEPS = (
    "attempt: *Landing.write > write #1 before",
    "attempt: *Landing.write > fsync #1 after",
    f"attempt: *{GIT} #1 before",
    f"attempt: *{GIT} #1 after",
    "attempt: *Landing.land > Git.run > _Call.pump > _Call.collect > wait #1 after",
    "attempt: *Worktree.bring > * > spawn #1 before",
    "attempt: *Worktree.bring > * > spawn #2 before",
    "attempt: *Worktree.leave > * > spawn #1 before",
    "attempt: *Landing.merge > Git.run > _Call.__init__ > spawn #1 after",
)


def built(ws: Workspace) -> Repository:
    """A workspace whose task is ready for the integrator."""
    repo = repository(ws, readme_txt="one\n", old_txt="old\n")
    script = "echo two > readme.txt; git rm -q old.txt; echo new > new.txt"
    ws.write_config(
        **roles(builder={"script": script}, integrator={"backoff": {"base": 0, "cap": 0}})
    )
    ws.write_queue(task())
    for role in ("builder", "tester"):
        assert ws.run("--role", role, "--drain").returncode == 0
    assert ws.status() == "ready_for_integrator"
    return repo


def check(repo: Repository, ws: Workspace) -> None:
    """The task is done, main has it once, and the workspace's files are main's."""
    assert ws.status() == "done", ws.task()
    assert repo.names() == {"readme.txt", "new.txt"}
    assert repo.subjects() == ["Merge T1: Do T1", "first"]
    assert repo.changed() == []
    assert (ws.path / "readme.txt").read_text() == "two\n"
    assert list((ws.path / ".worktrees").iterdir()) == []


def crash(ws: Workspace, step: str, how: str = "--drain") -> None:
    """Have the integrator's attempt die there."""
    log = ws.path / ".agent-crash"
    command = [*DRIVER, "--config", str(ws.config), "--role", "integrator", how]
    with ws.stderr.open("a") as out:
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "CRASH_LOG": str(log), "CRASH_AT": step},
            stdout=out,
            stderr=out,
            timeout=60,
            check=False,
        )
    assert Path(f"{log}.died.0").exists(), log.read_text()


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step(ws: Workspace, step: str) -> None:
    """Main is untouched or moved, never half; the next attempt brings the task to its end."""
    repo = built(ws)
    crash(ws, step)
    assert repo.subjects() in (["Merge T1: Do T1", "first"], ["first"])
    assert ws.run("--role", "integrator", "--drain").returncode == 0
    check(repo, ws)


def slow(repo: Repository, name: str) -> Path:
    """Have git stop for ever in the middle of the workspace's checkout; the file that says so."""
    begun = repo.path / ".agent-begun"
    (repo.path / ".git" / "info" / "attributes").write_text(f"{name} filter=slow\n")
    held = f"touch {begun}; sleep 600"
    smudge = f'[ "$PWD" != {repo.path} ] || [ -e {begun} ] || {{ {held}; }}; cat'
    repo.git("config", "filter.slow.smudge", smudge)
    return begun


@pytest.mark.parametrize("edited", ["", "new.txt"])
def test_killed_in_the_middle_of_the_files(ws: Workspace, edited: str) -> None:
    """Half of the files are the merge's: they are put back, but for what a person has changed."""
    repo = built(ws)
    begun = slow(repo, "readme.txt")
    worker = ws.start("--role", "integrator")
    attempt = ws.attempt_pid()
    wait_for(begun.exists, f"git is at the slow file: {ws.log()}")
    assert repo.subjects() == ["first"]
    if edited:
        os.kill(worker.pid, signal.SIGSTOP)
    os.kill(attempt, signal.SIGKILL)
    if edited:
        repo.write(edited, "mine\n")
        os.kill(worker.pid, signal.SIGCONT)
        ws.wait_status("needs_manual")
        assert "new.txt" in str(ws.task()["last_error"])
        assert (ws.path / "new.txt").read_text() == "mine\n"
        assert repo.subjects() == ["first"]
        (ws.path / "new.txt").unlink()
        ws.write_queue({**ws.task(), "status": "ready_for_integrator"})
    ws.wait_status("done")
    worker.terminate()
    worker.wait(30)
    check(repo, ws)


LANDING, MERGING = (
    f"attempt: *{GIT} #1 before",
    "attempt: *Landing.merge > Git.run > _Call.__init__ > spawn #1 before",
)


@pytest.mark.parametrize(
    ("step", "lock"),
    [
        *((LANDING, each) for each in ("index", "HEAD", "ORIG_HEAD", "refs/heads/main")),
        *((MERGING, f"worktrees/T1/{each}") for each in ("index", "HEAD", "ORIG_HEAD")),
    ],
)
def test_the_locks_of_a_killed_git(ws: Workspace, step: str, lock: str) -> None:
    """What a git that was killed with its attempt has left locked bars nobody for good."""
    repo = built(ws)
    crash(ws, step, "--once")
    repo.write(f".git/{lock}.lock", "")
    assert ws.run("--role", "integrator", "--drain").returncode == 0
    check(repo, ws)
    assert not (repo.path / ".git" / f"{lock}.lock").exists()


def test_a_lock_of_somebody_else(ws: Workspace) -> None:
    """A lock that stood there before the git that was killed is not ours to remove."""
    repo = built(ws)
    crash(ws, LANDING, "--once")
    repo.write(".git/HEAD.lock", "")
    os.utime(repo.path / ".git" / "HEAD.lock", (1, 1))
    ws.run("--role", "integrator", "--drain")
    assert ws.status() == "needs_manual"
    assert "HEAD.lock" in str(ws.task()["last_error"])
    assert repo.subjects() == ["first"]
