"""``invoke``, as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.bench.pick_up import STAMP, pick_up
from tests.bench.rows import Row
from tests.bench.timing import ENVIRON, ROOT, milliseconds, seconds
from tests.bench.workspaces import five_roles, make_workspace

INVOKE = str(Path(sys.executable).parent / "invoke")
COMMANDS = 7  # runs of each fleet command
INSTALLS = 3  # rounds of install, install, uninstall
NO_CHILDREN = -1  # the parent of no process: attempts under systemd are not the worker's children


def user_manager() -> bool:
    """Whether this user's systemd can be reached."""
    try:
        seconds(["systemctl", "--user", "show-environment"])
    except (OSError, RuntimeError):
        return False
    return True


def command_rows(folder: Path) -> list[Row]:
    """``invoke`` on five workers, beside an invoke whose command does nothing."""
    systemd = user_manager()
    name = "systemd" if systemd else "pidfile"
    env = command_environment(folder, name)
    empty = folder / "empty"
    empty.mkdir()
    (empty / "tasks.py").write_text(
        "from invoke import task\n\n\n@task\ndef nothing(c):\n    pass\n"
    )
    rows: list[Row] = []
    times: dict[str, list[float]] = {"bare": [], "first": [], "second": [], "status": []}

    def run(row: str, *command: str) -> None:
        times[row].append(seconds([INVOKE, *command], env))

    def bare() -> None:
        times["bare"].append(seconds([INVOKE, "nothing"], env, empty))

    bare()
    times["bare"].clear()  # that one compiled tasks.py
    try:
        for _ in range(INSTALLS):
            run("first", "install")
            bare()
            run("second", "install")
            bare()
            seconds([INVOKE, "uninstall"], env)
        for command in ("install", "agents.start"):
            seconds([INVOKE, command], env)
        for _ in range(COMMANDS):
            run("status", "agents.status")
            bare()
        if systemd:
            seconds([INVOKE, "agents.stop"], env)
            seconds([INVOKE, "agents.start", "--role", "builder"], env)
            figure = "ready to the agent's first instruction (systemd)"
            rows.append(pick_up(folder / "workspace", NO_CHILDREN, figure))
    finally:
        for command in ("agents.stop", "uninstall"):
            subprocess.run([INVOKE, command], cwd=ROOT, env=env, capture_output=True, check=False)
    reference = milliseconds(times["bare"])
    texts = (
        (f"invoke agents.status, five workers ({name})", "status", 2),
        (f"invoke install, five units, first time ({name})", "first", 3),
        (f"invoke install, five units, second time ({name})", "second", 3),
    )
    for text, key, goal in texts:
        rows.append(Row(text, milliseconds(times[key]), "ms", reference, goal))
    return rows


def command_environment(folder: Path, supervisor: str) -> dict[str, str]:
    """An inventory of this host alone, and a HOME of its own unless a user manager reads HOME."""
    workspace, inventory = folder / "workspace", folder / "inventory"
    make_workspace(workspace, STAMP)
    (inventory / "group_vars").mkdir(parents=True)
    hosts = {"all": {"hosts": {"localhost": {"ansible_connection": "local"}}}}
    (inventory / "hosts.yml").write_text(json.dumps(hosts))
    values = {
        "workspace": str(workspace),
        "supervisor": supervisor,
        "unit_prefix": f"bench{os.getpid()}",
        "roles": five_roles(STAMP),
    }
    (inventory / "group_vars" / "all.yml").write_text(json.dumps(values))
    home = folder / "home"
    home.mkdir()
    ours = {"ROLECALL_INVENTORY": str(inventory), "NO_COLOR": "1"}
    return ENVIRON | ours | ({} if supervisor == "systemd" else {"HOME": str(home)})
