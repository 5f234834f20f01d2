"""Units whose queue is on PostgreSQL, on a machine with real systemd: by effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from daemon.queue import Queue, migrating
from daemon.queue.database import connect
from daemon.queue.opening import open_queue
from tests.fleet import Fleet, Inside, build
from tests.postgres import Server
from tests.queues import FileBackend
from tests.system.conftest import Machine
from tests.workspace import wait_for

#: What an agent sees of libpq's variables, and where it may write.
SCRIPT = """\
cat >/dev/null; env | grep ^PG >seen; (: >"$HOME/made") || echo closed >>seen; mv seen done"""


@pytest.fixture
def fleet(testbed: Callable[[str], Machine]) -> Iterator[Fleet]:
    """A machine that shares this host's network, and finds a server on its loopback."""
    machine = testbed("database")
    machine.up()
    inside = Inside(machine)
    made = Fleet(inside, "auto")
    yield made
    done = made.invoke("uninstall")
    inside.close()
    machine.down()
    assert done.returncode == 0, done.stderr


@pytest.fixture
def queue(servers: Callable[..., Server], tmp_path: Path) -> Iterator[tuple[Queue, str, str]]:
    """A queue; its URL for a login of workers alone; and the line of a password file for that."""
    server = servers()
    with connect(server.url("postgres"), "test") as owner:
        migrating.migrate(owner)
        owner.execute("create role builder login password 's3cret'")
        owner.execute("grant rolecall_worker to builder")
    url = server.url("postgres", tcp=True).replace("//postgres@", "//builder@")
    config = FileBackend(tmp_path / "here").config._replace(queue=server.url("postgres"))
    with closing(open_queue(config)) as made:
        yield made, url, f"127.0.0.1:{server.port}:postgres:builder:s3cret\n"


def test_worker_and_attempt_reach_the_server_by_the_home_s_password_file(
    fleet: Fleet, queue: tuple[Queue, str, str]
) -> None:
    """Both from inside their sandboxes, as a login of least rights; the agent has no PG variable.

    Broken once by leaving the worker without a network: this failed.
    """
    tasks, url, passline = queue
    fleet.write(".pgpass", passline)
    fleet.sh("chmod 600 .pgpass; printf PGSSLKEY=unused >environment")
    fleet.sh("mkdir -p .config/environment.d; mv environment .config/environment.d/pg.conf")
    fleet.sh("systemctl --user daemon-reload")  # what the manager then gives to every unit
    fleet.configure({"builder": {"script": SCRIPT}}, queue=url)
    fleet.do("install")
    doctor = fleet.invoke("doctor").stdout
    assert "as builder" in doctor, doctor
    assert "owns the queue's schema" not in doctor
    fleet.do("agents.start")
    tasks.add([build()])
    wait_for(lambda: tasks.snapshot().tasks.in_status("awaiting_test"), "a task that is done")
    assert fleet.sh("cat work/done") == "closed\n"
    worker = fleet.rows()["builder"]["pid"]
    assert "PGSSLKEY=unused" in fleet.sh(f"tr '\\0' '\\n' </proc/{worker}/environ")
    unit = fleet.sh("systemctl --user cat agent-builder.service")
    assert "s3cret" not in unit + doctor
    assert url not in unit
    rated = "systemd-analyze --user security --no-pager --threshold=40 agent-builder.service"
    assert "Overall exposure level" in fleet.sh(rated)
    fleet.do("agents.stop")
