"""What the hosts of one PostgreSQL queue share, each with folders of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.model import Outcome, Result
from tests.queues import FAR, PostgresBackend

Hosts = tuple[PostgresBackend, PostgresBackend]


@pytest.fixture
def hosts(on_postgres: Callable[..., PostgresBackend], tmp_path: Path) -> Hosts:
    """Two hosts: the builders of both spend from the same credential."""
    one = on_postgres(tmp_path / "one", credential="acme")
    one.fill({"id": "T1", "status": "ready"}, {"id": "T2", "status": "ready", "priority": 2})
    other = copy.copy(one)
    other.folder = tmp_path / "other"
    other.folder.mkdir()
    return one, other


def test_all_hosts_wait_for_a_credential_that_met_its_limit(hosts: Hosts) -> None:
    """Until the reset that one of them was told, or until a person wants it tried."""
    here, there = (each.open(me) for each, me in zip(hosts, (None, FAR), strict=True))
    claim = here.claim("builder", "me", ignore_wip=True)
    assert claim
    here.settle(claim.lease, Result(Outcome.THROTTLED, "usage limit", retry_after=600.0))
    (pause,) = there.memory.pauses("builder")
    assert (pause.kind, pause.topic) == ("credential", "credential acme")
    assert pause.until == pytest.approx(hosts[0].clock.wall + 600)
    assert there.claim("builder", "me", ignore_wip=True) is None
    assert there.next_time("builder", hosts[0].clock.wall) == pytest.approx(pause.until)
    here.memory.end_wait("acme")
    assert there.memory.pauses("builder") == ()
    again = there.claim("builder", "me", ignore_wip=True)
    assert again
    assert again.lease.task_id == "T1"  # T2 itself still waits for the reset
