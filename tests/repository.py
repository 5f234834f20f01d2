"""A git repository of a test's own, with a queue and roles that work on it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.workspace import Workspace

#: An agent that changes one file as its task says, and leaves the commit to us.
EDIT = 'echo "$ROLECALL_TASK_ID" > "$ROLECALL_TASK_ID.txt"'


class Repository:
    """The workspace's git, as a person types it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *words: str, check: bool = True) -> str:
        who = ("-c", "user.name=person", "-c", "user.email=person@localhost")
        done = subprocess.run(
            ["git", "-C", str(self.path), *who, *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, (words, done.stderr)
        return done.stdout.rstrip("\n")

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self, message: str = "work", **files: str) -> str:
        """Commit these files (``a_txt`` is a.txt) and nothing else; the commit's id."""
        for name, text in files.items():
            self.write(name.replace("_", "."), text)
            self.git("add", "--force", name.replace("_", "."))
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.head()

    def head(self, name: str = "HEAD") -> str:
        return self.git("rev-parse", "--verify", name)

    def names(self, name: str = "main") -> set[str]:
        return set(self.git("ls-tree", "-r", "--name-only", name).splitlines())

    def show(self, path: str, name: str = "main") -> str:
        return self.git("show", f"{name}:{path}")

    def subjects(self, which: str = "main") -> list[str]:
        return self.git("log", "--first-parent", "--format=%s", which).splitlines()

    def changed(self) -> list[str]:
        """What git finds changed in the workspace, less our own files."""
        scope = ("--", ":/", ":(exclude).oodatcaa", ":(exclude)rolecall.yml")
        return [line for line in self.git("status", "--porcelain", *scope).splitlines() if line]


def repository(ws: Workspace, **files: str) -> Repository:
    """Make the workspace a repository on branch main, whose git leaves our paths alone."""
    found = Repository(ws.path)
    found.git("init", "--quiet", "--initial-branch=main")
    ours = (".leases", ".locks", ".agent-*", ".worktrees", "workers.log", "rolecall.yml")
    (ws.path / ".git" / "info" / "exclude").write_text("".join(f"/{each}\n" for each in ours))
    found.commit("first", **(files or {"readme_txt": "one\n"}))
    return found


def roles(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Builder, tester, refiner and integrator, each with the worktree; no person is asked."""
    made: dict[str, dict[str, Any]] = {
        "builder": {"script": EDIT, "worktree": True, "wip_limit": 3},
        "tester": {"script": "true", "worktree": True, "wip_limit": 3},
        "integrator": {"worktree": True},
    }
    for name, keys in changed.items():
        made[name] = {"worktree": True, **made.get(name, {}), **keys}
    return made


def task(identifier: str = "T1", **keys: Any) -> dict[str, Any]:
    """A task that is to be built."""
    found = {"id": identifier, "title": f"Do {identifier}", "type": "Build", "status": "ready"}
    return {**found, **keys}
