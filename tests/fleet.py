"""One host with an inventory of its own, whatever supervises its workers."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from typing import Any, Protocol

from tests.system.conftest import Machine
from tests.workspace import QUICK, ROOT, wait_for

Done = subprocess.CompletedProcess[str]
LONG_AGENT = "cat >/dev/null; echo $$ >agent.pid; exec sleep 600"


class Shell(Protocol):
    """Runs a shell script on the host, as the user of the workers, in the home."""

    def __call__(self, script: str) -> Done: ...


def local(script: str) -> Done:
    """This machine."""
    return subprocess.run(
        ["sh", "-c", f"cd; {script}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class Inside:
    """A machine of the test bed, by one connection that is kept: a new one costs 0.2 s."""

    SERVER = (
        "import json, subprocess, sys\n"
        "for line in sys.stdin:\n"
        "    done = subprocess.run(['sh', '-c', json.loads(line)], stdin=subprocess.DEVNULL,"
        " capture_output=True, text=True, timeout=120)\n"
        "    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)\n"
    )

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.server: subprocess.Popen[str] | None = None

    def __call__(self, script: str) -> Done:
        if self.server is None or self.server.poll() is not None:  # a power cut ends it
            self.close()
            self.server = self.machine.open("python3", "-c", self.SERVER)
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(script) + "\n")
        self.server.stdin.flush()
        return Done(script, *json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        if self.server is not None:
            with contextlib.suppress(BrokenPipeError):
                self.server.communicate()


class Fleet:
    """An inventory of one host, and a workspace there. Paths are relative to the home."""

    def __init__(self, shell: Shell, supervisor: str, name: str = "work") -> None:
        self.shell, self.supervisor, self.name = shell, supervisor, name
        self.inventory, self.workspace = f"{name}.inventory", name
        self.queue = f"{name}/.oodatcaa/work/SPRINT_QUEUE.json"
        self.write(f"{self.inventory}/hosts.yml", "all: {hosts: {localhost: }}\n")
        self.sh(f"git init --quiet {name}")
        self.write_queue()

    def sh(self, script: str) -> str:
        """Run a script that must succeed; returns what it prints."""
        done = self.shell(script)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        aside, quoted = shlex.quote(path + ".new"), shlex.quote(path)
        folder = f'mkdir -p "$(dirname {quoted})"'
        self.sh(f"{folder} && printf %s {shlex.quote(text)} >{aside} && mv {aside} {quoted}")

    def write_queue(self, *tasks: dict[str, Any]) -> None:
        self.write(self.queue, json.dumps({"tasks": tasks}, indent=2))

    def configure(self, roles: dict[str, dict[str, Any]], **top: Any) -> None:
        """JSON is YAML. A role given as ``{"script": TEXT}`` runs it in sh."""
        made = {}
        for name, given in roles.items():
            role = {**QUICK, **given}
            if "script" in role:
                role |= {"agent": "command", "command": ["sh", "-c", role.pop("script")]}
            made[name] = role
        whole = {
            "workspace": f"~/{self.workspace}",
            "supervisor": self.supervisor,
            "run": list(roles),
            "roles": made,
            **top,
        }
        self.write(f"{self.inventory}/group_vars/all.yml", json.dumps(whole))

    def invoke(self, *arguments: str, inventory: str = "", env: str = "") -> Done:
        """Run an invoke command of this checkout."""
        return self.shell(self.typed(*arguments, inventory=inventory, env=env))

    def typed(self, *arguments: str, inventory: str = "", env: str = "") -> str:
        """What a shell is to be given for an invoke command; ``env``: more arguments of env(1)."""
        words = [sys.executable, "-m", "invoke", *arguments]
        where = f'env {env} ROLECALL_INVENTORY="$HOME"/{inventory or self.inventory}'
        return f"cd {shlex.quote(str(ROOT))} && {where} {shlex.join(words)}"

    def do(self, *arguments: str) -> str:
        """An invoke command that must succeed; returns what it prints."""
        done = self.invoke(*arguments)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def rows(self) -> dict[str, dict[str, Any]]:
        """``agents.status --json``, by role."""
        return {
            row["role"]: row for row in json.loads(self.invoke("agents.status", "--json").stdout)
        }

    def task(self, identifier: str = "T1") -> dict[str, Any]:
        document = json.loads(self.sh(f"cat {self.queue}"))
        found: dict[str, Any]
        found = next(each for each in document["tasks"] if each["id"] == identifier)
        return found

    def wait_status(self, status: str, identifier: str = "T1") -> None:
        wait_for(lambda: self.task(identifier)["status"] == status, f"{identifier} is {status}")

    def lease(self, identifier: str = "T1") -> dict[str, Any] | None:
        done = self.shell(f"cat {self.workspace}/.leases/{identifier}.json")
        found: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
        return found

    def agent(self) -> int:
        """The pid of a running LONG_AGENT; waits for it."""
        path = f"{self.workspace}/agent.pid"
        return int(wait_for(lambda: self.shell(f"cat {path}").stdout, path))

    def alive(self, pid: int) -> bool:
        return self.shell(f"grep -q '^State:.[^ZX]' /proc/{pid}/status").returncode == 0

    def files(self) -> str:
        """Every file of the home outside the workspace and its inventory, with its time."""
        skipped = f"-path ./{self.workspace} -o -path ./{self.inventory} -o -path ./.cache"
        return self.sh(f"find . \\( {skipped} \\) -prune -o -printf '%p %T@ %i\\n' | sort")


def build(identifier: str = "T1", **more: Any) -> dict[str, Any]:
    """A task that the builder claims."""
    return {"id": identifier, "title": "a task", "type": "Build", "status": "ready", **more}
