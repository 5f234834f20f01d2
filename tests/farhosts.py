"""Hosts that ssh reaches, without an sshd: a stand-in for it runs the command in another home.

What runs there is real: stage 0, the release that it is sent, and workers under PID files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.console import git_init
from tests.workspace import PATIENCE, QUICK, ROOT

#: What runs on the host is not ended with the call: it has a session and pipes of its own.
#: The last argument is the command, the one before it the host; a host without a home is cut off.
SSH = """#!/bin/sh
for each; do host=$command; command=$each; done
echo $$ >>{homes}/calls
cd {homes}/$host 2>/dev/null || {{
    echo "ssh: connect to host $host port 22: No route to host" >&2
    exit 255
}}
cat | HOME={homes}/$host setsid --wait sh -c "$command" | cat
"""


class FarHosts:
    """An operator's machine, and hosts that it reaches by what it takes for ssh."""

    def __init__(self, path: Path, *names: str, script: str = "cat >/dev/null") -> None:
        self.path, self.names = path, names
        self.homes, self.inventory = path / "homes", path / "inventory"
        for name in names:
            git_init(self.homes / name / "shop")
            queue = self.homes / name / "shop/.oodatcaa/work/SPRINT_QUEUE.json"
            queue.parent.mkdir(parents=True)
            queue.write_text('{"tasks": []}\n')
        program = path / "bin" / "ssh"
        program.parent.mkdir()
        program.write_text(SSH.format(homes=self.homes))
        program.chmod(0o755)
        (self.inventory / "group_vars").mkdir(parents=True)
        self.write_hosts({name: {} for name in names})
        role = {**QUICK, "agent": "command", "command": ["sh", "-c", script]}
        self.configure(roles={"builder": role, "tester": role})

    def write_hosts(self, hosts: dict[str, dict[str, Any]]) -> None:
        """JSON is YAML."""
        (self.inventory / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))

    def configure(self, **variables: Any) -> None:
        """The variables of all hosts; those that were named before stay."""
        file = self.inventory / "group_vars" / "all.yml"
        old = json.loads(file.read_text()) if file.exists() else {}
        every = {"workspace": "~/shop", "supervisor": "pidfile", "run": ["builder"]}
        file.write_text(json.dumps({**every, **old, **variables}))

    @property
    def environ(self) -> dict[str, str]:
        """As the operator's shell has it."""
        ours = {"ROLECALL_INVENTORY": str(self.inventory), "HOME": str(self.path)}
        return {**os.environ, **ours, "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}"}

    def start(self, *arguments: str, **keys: Any) -> subprocess.Popen[str]:
        """Type a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *arguments],
            cwd=ROOT,
            env=self.environ,
            text=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **keys,
            },
        )

    def invoke(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Type a command, and see it end."""
        with self.start(*arguments) as typed:
            out, err = typed.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, typed.returncode, out, err)

    def do(self, *arguments: str) -> list[str]:
        """A command that must succeed; the lines that it prints, whichever host was first."""
        done = self.invoke(*arguments)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return sorted(done.stdout.splitlines())

    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``agents.status --json``, by host and role."""
        rows = json.loads(self.invoke("agents.status", "--json").stdout)
        return {(row["host"], row["role"]): row for row in rows}

    def files(self, name: str) -> list[str]:
        """What is in a host's home outside of its workspace."""
        home = self.homes / name
        found = [str(path.relative_to(home)) for path in home.rglob("*")]
        return sorted(path for path in found if not path.startswith("shop"))

    def calls(self) -> list[int]:
        """The pid of each call of ssh so far."""
        path = self.homes / "calls"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def cut(self, name: str) -> None:
        """A host that cannot be reached."""
        (self.homes / name).rename(self.homes / f"{name}.cut")

    def heal(self, name: str) -> None:
        """And can again."""
        (self.homes / f"{name}.cut").rename(self.homes / name)
