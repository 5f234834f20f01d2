"""A program: what the real Ansible makes of inventories. A request a line in, an answer a line out.

A request is {"folder": ..., "limits": [...]}. An answer is {"list": what `ansible-inventory --list`
prints, "limits": each limit to names of hosts, or to {"error": why}}, or {"error": why}. It lives
in a process of its own: starting Ansible takes a second, and it warns of what pytest makes errors.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ansible import context
from ansible.cli.inventory import InventoryCLI
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.vars import host_group_vars
from ansible.vars.manager import VariableManager


def answer(cli: Any, request: dict[str, Any]) -> dict[str, Any]:
    for cache in (host_group_vars.FOUND, host_group_vars.NAK, host_group_vars.CANONICAL_PATHS):
        cache.clear()  # what a new process would not have
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[request["folder"]])
    cli.loader, cli.inventory = loader, inventory
    cli.vm = VariableManager(loader=loader, inventory=inventory, version_info=cli.version_info())
    listed = json.loads(cli.dump(cli.json_inventory(inventory.groups["all"])))
    limits: dict[str, Any] = {}
    for limit in request["limits"]:
        try:
            inventory.subset(limit)
            limits[limit] = [host.name for host in inventory.get_hosts("all")]
        except Exception as error:  # noqa: BLE001  # of some it makes an IndexError
            limits[limit] = {"error": str(error)}
        inventory.subset(None)
    return {"list": listed, "limits": limits}


def main() -> None:
    cli = InventoryCLI(["ansible-inventory", "--list"])
    cli.parse()
    assert context.CLIARGS["list"]
    for line in sys.stdin:
        try:
            found = answer(cli, json.loads(line))
        except Exception as error:  # noqa: BLE001  # whatever it is, Ansible did not read that
            found = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
