"""What other tests take for granted of the PostgreSQL servers that they are given."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from tests.postgres import (
    BINARIES,
    Databases,
    Missing,
    Server,
    binaries,
    facts,
    living,
    sweep,
    unprivileged,
)
from tests.workspace import PATIENCE, ROOT, wait_for

Servers = Callable[..., Server]
Program = Callable[..., subprocess.Popen[str]]
#: One of the processes that test in a run.
USER = """
import sys
from pathlib import Path
from tests.postgres import shared
with shared(Path(sys.argv[1])) as found:
    print(found.uri, flush=True)
    sys.stdin.readline()
"""
#: One that has a server of its own.
OWNER = """
import sys
from tests.postgres import Server
with Server() as server:
    if sys.argv[1:]:
        server.freeze()
    print(server.folder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def program() -> Iterator[Program]:
    """Start one of these; it is killed with the test, and what it left is swept up."""
    try:
        binaries(16)
    except Missing as why:
        pytest.skip(str(why))
    begun: list[subprocess.Popen[str]] = []

    def start(source: str, *arguments: object, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-c", source, *map(str, arguments)]
        begun.append(
            subprocess.Popen(
                command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        return begun[-1]

    yield start
    for each in begun:
        with each:
            each.kill()
    sweep()


def said(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    line = program.stdout.readline().rstrip()
    assert line, "it has ended"
    return line


def note(run: Path) -> Path:
    """The folder of the run's server."""
    return Path(json.loads((run / "postgres.json").read_text())["folder"])


def ask(url: str, query: str, *, seconds: int = 20) -> object:
    with psycopg.connect(url, autocommit=True, connect_timeout=seconds) as connection:
        cursor = connection.execute(query.encode())
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def test_databases_are_separate(postgres: Databases) -> None:
    """What stands in one is not in another; a copy begins with what its template has."""
    with postgres.fresh() as one, postgres.fresh() as other:
        ask(one, "CREATE TABLE word AS SELECT 'here'::text AS said")
        assert ask(one, "SELECT said FROM word") == "here"
        assert ask(other, "SELECT to_regclass('word')") is None
        name = str(ask(one, "SELECT current_database()"))
        with postgres.fresh(template=name) as copy:
            assert ask(copy, "SELECT said FROM word") == "here"


def test_a_database_goes_with_its_clients(postgres: Databases) -> None:
    """One who forgot to disconnect keeps no database alive."""
    with postgres.fresh() as url:
        forgotten = psycopg.connect(url)
        name = forgotten.info.dbname
    with pytest.raises(psycopg.OperationalError):
        forgotten.execute("SELECT 1")
    forgotten.close()
    names = ask(postgres.uri, "SELECT array_agg(datname::text) FROM pg_database")
    assert isinstance(names, list)
    assert name not in names


def test_a_stop_keeps_everything(servers: Servers) -> None:
    """What was there before a restart is there after it, behind the same URL."""
    server = servers()
    url = server.create("kept")
    ask(url, "CREATE TABLE word AS SELECT 1 AS number")
    server.restart()
    assert ask(url, "SELECT number FROM word") == 1
    server.stop("immediate")
    assert server.pids() == []
    with pytest.raises(psycopg.OperationalError):
        ask(url, "SELECT 1")
    server.start()
    assert ask(url, "SELECT number FROM word") == 1


@pytest.mark.parametrize("major", BINARIES)
def test_a_kill_loses_what_was_committed_asynchronously_and_no_more(
    servers: Servers, major: int
) -> None:
    """A client's own commits stand; one that did not wait for the disk may be gone."""
    server = servers(major=major, durable=True, settings={"wal_writer_delay": "10s"})
    url = server.create("killed")
    ask(url, "CREATE TABLE word (number int)")
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.info.server_version // 10_000 == major
        connection.execute("INSERT INTO word VALUES (1)")
        connection.execute("SET synchronous_commit = off")
        connection.execute("INSERT INTO word VALUES (2)")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert server.pids() == []
    server.start()
    assert ask(url, "SELECT array_agg(number) FROM word") == [1]


def test_a_frozen_server_answers_nobody_until_it_is_thawed(servers: Servers) -> None:
    """Connections to it hang, old and new; afterwards both go on."""
    server = servers()
    with psycopg.connect(server.uri, autocommit=True) as before:
        server.freeze()
        states = {facts(pid)[0] for pid in server.pids()}
        assert states == {"T"}
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            ask(server.uri, "SELECT 1", seconds=2)
        before.pgconn.send_query(b"SELECT 7")
        before.pgconn.consume_input()
        assert before.pgconn.is_busy()
        server.thaw()
        while result := before.pgconn.get_result():
            assert result.get_value(0, 0) == b"7"
    assert ask(server.uri, "SELECT 1") == 1


def test_by_tcp_the_password_of_its_file_is_wanted(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other accounts of the machine get nowhere: its socket lies in a folder of ours alone."""
    server = servers()
    url = server.url("postgres", tcp=True)
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        ask(url, "SELECT 1")
    monkeypatch.setenv("PGPASSFILE", str(server.passfile))
    assert ask(url, "SELECT 1") == 1
    assert server.folder.stat().st_mode & 0o777 == 0o700


def test_it_is_never_root(servers: Servers) -> None:
    """And of root's rights it has the one alone that lets it into the wheel's folder."""
    server = servers()
    status = Path(f"/proc/{server.pids()[0]}/status").read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    user = os.geteuid() or pwd.getpwnam("nobody").pw_uid
    assert set(facts["Uid"].split()) == {str(user)}
    dac_override = 1 << 1
    assert int(facts["CapEff"], 16) == (0 if os.geteuid() else dac_override)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_whoever_is_not_root_gets_one_too(program: Program) -> None:
    """It then runs as its owner, and nobody else has to be changed to."""
    owner = program(OWNER, prefix=unprivileged())
    folder = said(owner)
    assert Path(folder).stat().st_uid == pwd.getpwnam("nobody").pw_uid
    owner.communicate("\n", PATIENCE)
    assert owner.returncode == 0
    assert not os.path.exists(folder)


def test_a_run_has_one_server_until_its_last_user_is_gone(program: Program, tmp_path: Path) -> None:
    """Whoever comes second gets that of the first, whoever goes first leaves it to the others."""
    first, second = program(USER, tmp_path), program(USER, tmp_path)
    uri, again = said(first), said(second)
    assert again == uri
    assert ask(uri, "SELECT 1") == 1
    first.communicate("\n")
    assert first.returncode == 0
    folder = note(tmp_path)
    assert ask(uri, "SELECT 1") == 1
    second.send_signal(signal.SIGKILL)
    wait_for(lambda: not folder.exists(), "the end of the server")
    assert living(folder / "data") == []


def test_a_keeper_that_is_killed_takes_its_server_with_it(program: Program, tmp_path: Path) -> None:
    """The run's next user starts another one, and with that goes what the first has left."""
    first = program(USER, tmp_path)
    said(first)
    folder = note(tmp_path)
    server = living(folder / "data")[0]
    keeper = int(facts(server)[1])
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not living(folder / "data"), "the end of the server")
    second = program(USER, tmp_path)
    assert ask(said(second), "SELECT 1") == 1
    assert not folder.exists()


def test_what_a_killed_owner_has_left_is_removed_by_the_next(program: Program) -> None:
    """A server that was frozen just then cannot end itself; those of living owners stay."""
    dead, alive = program(OWNER, "freeze"), program(OWNER)
    folder, other = Path(said(dead)), Path(said(alive))
    dead.kill()
    dead.wait()
    assert living(folder / "data")
    segments = Path("/proc/sysvipc/shm").read_text()
    key = (folder / "data/postmaster.pid").read_text().splitlines()[6].split()[0]
    assert key in segments
    sweep()
    assert not folder.exists()
    assert living(folder / "data") == []
    assert key not in Path("/proc/sysvipc/shm").read_text()
    assert living(other / "data")
