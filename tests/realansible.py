"""The real ansible-core, asked what it makes of an inventory; and the same of ours, to compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.errors import RolecallError
from daemon.inventory import Inventory
from tests.workspace import PATIENCE, ROOT

SERVER = ROOT / "tests/ansibleserver.py"


def environment(folder: Path) -> dict[str, str]:
    """One in which Ansible knows no settings, plugins or home but those of an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ansible.cfg").touch()
    return {
        **{name: os.environ[name] for name in ("PATH", "ROLECALL_TEST_SESSION")},
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_COLLECTIONS_PATH": str(folder),
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",  # else what is wrong is left out
        "ANSIBLE_HOST_PATTERN_MISMATCH": "error",
    }


class Ansible:
    """A process that reads inventories as ``ansible-inventory`` does."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Ansible]:
        """One for as long as the block runs; ``folder`` is its home."""
        command = [sys.executable, str(SERVER)]
        env = environment(folder)
        with (
            (folder / "stderr").open("w") as errors,
            subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            ) as process,
        ):
            yield cls(process, folder)
            assert process.stdin
            process.stdin.close()
            process.wait(PATIENCE)

    def read(self, folder: Path, limits: Iterable[str] = ()) -> dict[str, Any]:
        """What it says: see tests/ansibleserver.py."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), "limits": [*limits]}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "is it installed? make ansible\n" + (self.folder / "stderr").read_text()
        answer: dict[str, Any] = json.loads(line)
        for name, variables in answer.get("list", {}).get("_meta", {}).get("hostvars", {}).items():
            variables.pop("roles", None)  # it merges key by key, in ours alone
            assert name
        return answer


def ours(folder: Path, limits: Iterable[str] = ()) -> dict[str, Any]:
    """The same of our reading."""
    try:
        inventory = Inventory.load(str(folder))
    except RolecallError as error:
        return {"error": str(error)}
    found: dict[str, Any] = {}
    for limit in limits:
        try:
            found[limit] = [host.name for host in inventory.hosts(limit)]
        except RolecallError as error:
            found[limit] = {"error": str(error)}
    return {"list": listed(inventory), "limits": found}


def listed(inventory: Inventory) -> dict[str, Any]:
    """What ``ansible-inventory --list`` prints."""
    variables = {
        host.name: {key: value for key, value in host.vars.items() if key != "roles"}
        for host in inventory.every
    }
    found: dict[str, Any] = {}
    for name, group in inventory.groups.by_name.items():
        hosts = [] if name == "all" else [*group.hosts]
        sections = {"hosts": hosts, "children": [*group.children]}
        if any(sections.values()):
            found[name] = {key: each for key, each in sections.items() if each}
    hostvars = {name: each for name, each in variables.items() if each}
    return {**found, "_meta": {"hostvars": hostvars, "profile": "inventory_legacy"}}


def text(value: Any) -> str:
    """JSON for a person to compare, in which 1 is not 1.0, and not a number is itself."""
    return json.dumps(value, indent=1, sort_keys=True)


def same_hosts(limit: str, mine: object, theirs: object) -> None:
    """A limit comes to the same hosts; what leaves Ansible without any is an error of ours."""
    if isinstance(mine, list) and isinstance(theirs, list):
        assert set(mine) == set(theirs), limit
    else:
        assert isinstance(mine, dict), (limit, mine, theirs)
        assert theirs == [] or isinstance(theirs, dict), (limit, mine, theirs)


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """The folder, with these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder
