"""Which hosts are deployed to together."""

from __future__ import annotations

import pytest

from daemon.fleet.deploy import batch_size, batches, check_settle
from daemon.fleet.here import UsageError
from daemon.inventory import Host


def host(name: str) -> Host:
    """One that is this machine where its name begins with "here"."""
    connection = "local" if name.startswith("here") else "ssh"
    return Host(name, {"ansible_connection": connection}, {})


@pytest.mark.parametrize(
    ("serial", "size"), [("1", 1), ("3", 3), ("25%", 2), ("1%", 1), ("100%", 10), ("250%", 25)]
)
def test_a_batch_is_a_number_of_hosts_or_a_percentage(serial: str, size: int) -> None:
    """Of ten hosts; never fewer than one."""
    assert batch_size(serial, 10) == size


@pytest.mark.parametrize("serial", ["0", "-1", "1.5", "", "%", "ten", "0%", "²"])
def test_what_is_no_number_of_hosts_is_refused(serial: str) -> None:
    """With what would be one."""
    with pytest.raises(UsageError) as error:
        batch_size(serial, 10)
    assert str(error.value) == (
        f'error: --serial: no number of hosts: "{serial}"\nhint:  such as 1, 3 or 25%'
    )


@pytest.mark.parametrize("seconds", [-5.0, float("nan"), float("inf"), 1e9])
def test_what_is_no_time_to_watch_is_refused(seconds: float) -> None:
    """Nothing is watched for less than no time, nor for ever."""
    with pytest.raises(UsageError, match="no time to watch"):
        check_settle(seconds)
    check_settle(0)


def test_this_machine_is_deployed_to_alone() -> None:
    """Hosts keep their order; what an interruption puts back is in one thread."""
    names = ["a", "b", "here1", "here2", "c", "d", "e"]
    found = [[each.name for each in batch] for batch in batches([host(n) for n in names], 2)]
    assert found == [["a", "b"], ["here1"], ["here2"], ["c", "d"], ["e"]]
