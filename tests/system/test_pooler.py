"""A queue behind a real PgBouncer: refused, with what to do instead."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.errors import RolecallError
from daemon.queue.migrating import migrate
from daemon.queue.opening import open_queue
from tests.postgres import Server, free_port, unprivileged
from tests.queues import FileBackend
from tests.workspace import wait_for

CONFIG = """\
[databases]
team = host={folder} port={port} dbname=team user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
logfile = {log}
"""


@pytest.fixture(params=["transaction", "session"])
def pooled(
    request: pytest.FixtureRequest, servers: Callable[..., Server], tmp_path: Path
) -> Iterator[str]:
    """The URL of a queue's database, by way of a pooler."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer on this machine: apt-get install pgbouncer")
    server, listen = servers(), free_port()
    migrated(server.create("team"))
    folder = server.folder  # which the account that is not root may pass
    log, config = folder / "pgbouncer.log", folder / "pgbouncer.ini"
    config.write_text(
        CONFIG.format(folder=folder, port=server.port, listen=listen, mode=request.param, log=log)
    )
    config.chmod(0o644)
    command = [*unprivileged(), program, str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as pooler:
        try:
            yield f"postgresql://postgres@127.0.0.1:{listen}/team"
        finally:
            pooler.terminate()


def migrated(url: str) -> None:
    import psycopg  # noqa: PLC0415  # an extra

    with psycopg.connect(url, autocommit=True) as connection:
        migrate(connection)


def test_a_queue_behind_a_pooler_is_refused(pooled: str, tmp_path: Path) -> None:
    """Nobody would be told of its changes: so it says at once, in whatever mode the pooler is."""
    queue = open_queue(FileBackend(tmp_path / "host").config._replace(queue=pooled))

    def answer() -> str:
        with pytest.raises(RolecallError) as refused:
            queue.claim("builder", "me")
        return "" if "cannot be reached" in str(refused.value) else str(refused.value)

    said = wait_for(answer, "the pooler answers")
    assert "is reached through a pooler, which passes no notifications on" in said
    assert "hint:  name PostgreSQL's own host and port" in said
    queue.close()
