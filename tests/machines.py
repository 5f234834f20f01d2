"""Several machines of the test bed as hosts of one inventory, seen from an operator's side."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.fleet.fanout import SILENCE
from tests.fleet import Done, Inside
from tests.system.conftest import Machine
from tests.workspace import PATIENCE, QUICK, ROOT, wait_for

RELEASES = ".local/share/rolecall/agent/releases"


class Member:
    """One machine under its name in the inventory; ``sh`` runs a script in its user's home."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine, self.inside = name, machine, Inside(machine)

    def sh(self, script: str) -> str:
        done = self.inside(script)
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def root(self, script: str) -> str:
        return self.machine.run("sh", "-c", script, root=True).stdout

    def write(self, path: str, text: str) -> None:
        quoted = shlex.quote(path)
        self.sh(f'mkdir -p "$(dirname {quoted})" && printf %s {shlex.quote(text)} >{quoted}')

    def queue(self, *tasks: dict[str, Any]) -> None:
        self.write("work/.oodatcaa/work/SPRINT_QUEUE.json", json.dumps({"tasks": tasks}))

    def received(self) -> int:
        """Bytes that came in over its cable so far."""
        lines = self.sh("cat /proc/net/dev").splitlines()
        return next(int(each.split()[1]) for each in lines if each.split()[0] == "eth0:")

    def releases(self) -> list[str]:
        return self.sh(f"ls -A {RELEASES} 2>/dev/null || :").split()

    def files(self) -> str:
        """The files of its home, with their times; not the lock, which names who held it last."""
        return self.sh("find . -path ./work -prune -o ! -name .lock -printf '%p %T@ %i\n' | sort")

    def everything(self) -> str:
        """All that could be left on it: files of the home, units, processes, lingering."""
        return self.sh(
            "find . -path ./work -prune -o -printf '%p %y %m\\n' | sort; "
            "ls -A /tmp /var/lib/systemd/linger /run/user/2000; "
            "systemctl --user list-units --all --plain --no-legend 'agent*' 'rolecall*'; "
            "systemctl --user list-unit-files --plain --no-legend 'agent*' 'rolecall*'; "
            "systemctl --user show-environment | grep -v ^SSH_; "
            "pgrep -u deploy -a python || :"
        )


class Many:
    """An operator with an inventory of machines. ``variables`` go to each host by its name."""

    def __init__(self, folder: Path, members: Mapping[str, Member]) -> None:
        self.folder, self.members = folder, members
        self.inventory = folder / "inventory"
        self.known_hosts = folder / "known_hosts"
        self.ssh_config = folder / "ssh_config"
        self.environ: dict[str, str] = {}
        first = next(iter(members.values())).machine
        self.key = first.state / "id_ed25519"
        self.known_hosts.write_text((first.state / "known_hosts").read_text())
        self.write_ssh_config()
        self.hosts: dict[str, dict[str, Any]] = {name: {} for name in members}

    def write_ssh_config(self, *more: str, key: str | None = None) -> None:
        """What an operator's ~/.ssh/config says; ``more`` comes first, and so wins."""
        lines = [*more]
        for name, member in self.members.items():
            lines += [f"Host {name}", f"  HostName {member.machine.address}"]
        lines += ["Host *", "  User deploy", f"  UserKnownHostsFile {self.known_hosts}"]
        lines += ["  IdentitiesOnly yes", f"  IdentityFile {self.key}"] if key is None else [key]
        self.ssh_config.write_text("\n".join(lines) + "\n")

    def configure(self, roles: dict[str, dict[str, Any]], **top: Any) -> None:
        """JSON is YAML. A role given as ``{"script": TEXT}`` runs it in sh."""
        made = {}
        for name, given in roles.items():
            role = {**QUICK, **given}
            if "script" in role:
                role |= {"agent": "command", "command": ["sh", "-c", role.pop("script")]}
            made[name] = role
        common = {"workspace": "~/work", "roles": made, **top}
        common["ansible_ssh_common_args"] = f"-F {self.ssh_config}"
        self.inventory.mkdir(exist_ok=True)
        document = {"all": {"vars": common, "hosts": self.hosts}}
        (self.inventory / "hosts.yml").write_text(json.dumps(document, indent=1))

    def invoke(self, *arguments: str, timeout: float = PATIENCE) -> Done:
        """Run an invoke command of this checkout on this machine.

        ``timeout``: seconds of silence; hosts that answer are waited for on a busy machine, too.
        """
        return self._ended(*arguments, f"--timeout={timeout:g}")

    def _ended(self, *arguments: str) -> Done:
        started = self.start(*arguments)
        try:
            out, err = started.communicate(timeout=120)
        finally:
            started.kill()
        return Done(arguments, started.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start such a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.environ, "ROLECALL_INVENTORY": str(self.inventory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def do(self, *arguments: str) -> str:
        """An invoke command that must succeed on every host; returns what it prints."""
        return _out(self.invoke(*arguments))

    def do_here(self, *arguments: str) -> str:
        """One that asks no host, and must succeed; returns what it prints."""
        return _out(self._ended(*arguments))

    def rows(
        self, *arguments: str, exit_status: int | None = 0, timeout: float = PATIENCE
    ) -> dict[str, dict[str, Any]]:
        """``agents.status --json``: each row by ``host:role``."""
        done = self.invoke("agents.status", "--json", *arguments, timeout=timeout)
        if exit_status is not None:
            assert done.returncode == exit_status, f"{done.stdout}\n{done.stderr}"
        return {f"{row['host']}:{row['role']}": row for row in json.loads(done.stdout)}

    def states(
        self, *arguments: str, exit_status: int | None = 0, timeout: float = PATIENCE
    ) -> dict[str, str]:
        found = self.rows(*arguments, exit_status=exit_status, timeout=timeout)
        return {who: row["state"] for who, row in found.items()}

    def clean(self) -> None:
        """Take away what the test has left, on hosts that it may have broken."""
        for member in self.members.values():
            member.sh("rm -rf work")


def _out(done: Done) -> str:
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def switched_on(machines: Mapping[str, Machine], *options: str) -> Iterator[dict[str, Member]]:
    """The machines, booted at once; they do not see this checkout."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: each.up(*options, shown=()), machines.values()))
    members = {name: Member(name, each) for name, each in machines.items()}
    yield members
    for member in members.values():
        member.inside.close()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: each.down(), machines.values()))


def reachable(many: Many, name: str) -> None:
    """Wait until a machine that was plugged in again answers."""
    wait_for(
        lambda: (
            "unreachable"
            not in many.states("--limit", name, exit_status=None, timeout=SILENCE).values()
        ),
        f"{name} reachable",
    )
