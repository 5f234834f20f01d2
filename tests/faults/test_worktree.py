"""An attempt that is killed while git makes its worktree."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.workspace import Workspace, wait_for


def test_a_half_made_worktree_is_made_anew(ws: Workspace) -> None:
    """Kill -9 in the middle of the checkout: the next agent finds every file, and no lock of git's.

    Broken once by taking what stands there: the agent saw all files deleted, and the task ended
    in needs_manual. (Killed a little earlier, every later attempt failed: "on HEAD, not on ...".)
    """
    first = ws.path / "first"
    smudge = f"[ -e {first} ] || {{ : >{first}; sleep 600; }}; cat"

    def git(*words: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", "-C", str(ws.path), *who, *words], check=True)

    git("init", "--quiet")
    (ws.path / ".gitattributes").write_text("slow filter=slow\n")
    for name in ("early", "slow", "with"):
        (ws.path / name).write_text("text\n")
    git("add", ".gitattributes", "early", "slow", "with")
    git("commit", "--quiet", "--message=files")
    git("config", "filter.slow.smudge", smudge)
    script = 'test -z "$(git status --porcelain)" && test -f with && git commit --allow-empty -m x'
    role = {"script": script, "worktree": True, "evidence": False, "max_attempts": 2}
    ws.write_config(builder=role)
    ws.write_queue({"id": "T1", "title": "x", "type": "Build", "status": "ready"})
    worker = ws.start("--role", "builder", "--drain")
    attempt = ws.attempt_pid()
    wait_for(first.exists, "git is at the slow file")
    os.kill(attempt, signal.SIGKILL)
    worker.wait(30)
    ws.start("--role", "builder")
    ws.wait_status("awaiting_test")
    assert ws.task()["token"] == 2
