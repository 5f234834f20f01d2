"""An operator's machine: an inventory of a test's own, and ``invoke`` as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.workspace import PATIENCE, ROOT


def git_init(folder: Path) -> Path:
    """An empty git repository."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def write_inventory(folder: Path, **variables: Any) -> Path:
    """An inventory of this machine alone; without roles, those of section 4 as they are."""
    for name in ("group_vars", "host_vars"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    hosts = {"all": {"hosts": {"localhost": {"ansible_connection": "local"}}}}
    (folder / "hosts.yml").write_text(json.dumps(hosts))
    roles = ("planner", "builder", "tester", "refiner", "integrator")
    every = {"supervisor": "pidfile", "roles": {name: {} for name in roles}, **variables}
    (folder / "group_vars" / "all.yml").write_text(json.dumps(every))  # JSON is YAML
    return folder


class Operator:
    """``invoke`` in the checkout, over an inventory that names one workspace."""

    def __init__(self, path: Path, **variables: Any) -> None:
        self.workspace = git_init(path / "shop")
        self.inventory = write_inventory(path / "inventory", **variables)
        self.queue = self.workspace / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"

    @property
    def variables(self) -> Path:
        """The inventory's variables of all hosts."""
        return self.inventory / "group_vars" / "all.yml"

    @property
    def environ(self) -> dict[str, str]:
        """That in which the person types."""
        return {**os.environ, "ROLECALL_INVENTORY": str(self.inventory)}

    def invoke(
        self, *arguments: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Type it, and see it end."""
        return subprocess.run(
            [sys.executable, "-m", "invoke", *arguments],
            cwd=ROOT,
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def init(self) -> None:
        """Have the workspace ready for work."""
        done = self.invoke("init", "--workspace", str(self.workspace))
        assert done.returncode == 0, done.stderr

    def write_queue(self, *tasks: dict[str, Any], **top: Any) -> None:
        """Make the queue hold these tasks."""
        self.queue.parent.mkdir(parents=True, exist_ok=True)
        self.queue.write_text(json.dumps({"tasks": list(tasks), **top}, indent=2) + "\n")
