"""What a command speaks of: by which config a person's machine looks at the queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ConfigError
from daemon.fleet import here
from daemon.fleet.here import UsageError

URL = "postgresql://db.example.com/shop"


def fleet(folder: Path, limit: str | None = None, **hosts: dict[str, Any]) -> here.Fleet:
    """Hosts that are reached by ssh; they share a queue where nothing else is said."""
    common = {"workspace": "~/shop", "queue": URL, "roles": {"builder": {}, "tester": {}}}
    document = {"all": {"vars": common, "hosts": hosts}}
    (folder / "inventory").mkdir()
    (folder / "inventory" / "hosts.yml").write_text(json.dumps(document))
    return here.fleet(str(folder / "inventory"), limit)


def test_a_shared_queue_is_looked_at_from_anywhere(tmp_path: Path, home: Path) -> None:
    """By what the hosts agree on; what is kept of it is not in a workspace that is not here."""
    found = fleet(tmp_path, web1={"run": ["builder"]}, web2={"run": ["tester"]}).queue_config()
    assert (found.queue, found.run) == (URL, ("builder", "tester"))
    assert Path(found.paths.logs).is_relative_to(home / ".local/state/rolecall/agent")


def test_a_host_that_is_this_machine_looks_by_its_own_config(tmp_path: Path) -> None:
    """Whatever the others have."""
    here_too = {"ansible_connection": "local", "queue": "file:/shop.json", "workspace": "/shop"}
    found = fleet(tmp_path, web1={}, desk=here_too).queue_config()
    assert (found.queue, found.workspace) == ("file:/shop.json", "/shop")


def test_hosts_with_queues_of_their_own_are_not_looked_at(tmp_path: Path) -> None:
    """Which is meant is open, until --limit says it."""
    hosts: dict[str, dict[str, Any]] = {"web1": {}, "web2": {"queue": f"{URL}2"}}
    with pytest.raises(ConfigError, match="no host is this machine"):
        fleet(tmp_path, None, **hosts).queue_config()
    limited = here.fleet(str(tmp_path / "inventory"), "web2")
    assert limited.queue_config().queue == f"{URL}2"


def test_a_file_is_looked_at_where_it_is(tmp_path: Path) -> None:
    """On its host; this machine has none of that name, or another one."""
    with pytest.raises(UsageError, match="web1 is not this machine"):
        fleet(tmp_path, "web1", web1={"queue": "file:/shop.json"}, web2={}).queue_config()
