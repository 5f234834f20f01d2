"""``invoke queue.init`` and what is behind it, on real servers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection, errors

from daemon.errors import QueueUnreadable, RolecallError
from daemon.queue import migrating
from daemon.queue.database import connect
from daemon.queue.migrating import Patience
from tests.console import Operator
from tests.postgres import Server
from tests.workspace import PATIENCE, ROOT, wait_for

TASKS = "create table rolecall.task (id text primary key);\n"
WORK = "create function rolecall.work() returns int language sql as 'select 1';\n"
GRANTS = """\
revoke execute on all functions in schema rolecall from public;
grant usage on schema rolecall to rolecall_worker, rolecall_operator;
grant select on all tables in schema rolecall to rolecall_worker, rolecall_operator;
"""
OLD = """\
create function rolecall.older() returns trigger language plpgsql as
$$ begin raise exception 'an older one'; end $$;
create trigger older before update on rolecall.task for each row execute function rolecall.older();
"""
BRIEF = Patience(lock=0.1, pause=0.0, tries=2)
Folder = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a folder of migrations."""

    def write(*texts: str, grants: str = GRANTS) -> str:
        made = tmp_path / f"sql{len(texts)}"
        made.mkdir(exist_ok=True)
        for number, text in enumerate(texts, 1):
            (made / f"{number:03}.sql").write_text(text)
        (made / "grants.sql").write_text(grants)
        return str(made)

    return write


@pytest.fixture
def connection(database: str) -> Iterator[Connection[Any]]:
    with connect(database, "test") as made:
        yield made


def test_each_migration_is_applied_once(connection: Connection[Any], folder: Folder) -> None:
    """What there is stays, what is new is added, and the next time there is nothing to do."""
    first, both = folder(TASKS), folder(TASKS, WORK)
    assert migrating.version(connection) == 0
    done = migrating.migrate(connection, first)
    assert done[0] == f"made the schema rolecall in the database {connection.info.dbname}"
    assert "the queue's schema is version 1 now" in done
    assert migrating.migrate(connection, first) == []
    connection.execute("insert into rolecall.task values ('T1')")
    done = migrating.migrate(connection, both)
    assert done[0] == "the queue's schema is version 2 now"
    assert migrating.migrate(connection, both) == []
    assert migrating.version(connection) == migrating.newest(both) == 2
    assert connection.execute("select id, rolecall.work() from rolecall.task").fetchall() == [
        ("T1", 1)
    ]


def test_functions_are_those_of_the_newest_version(
    connection: Connection[Any], folder: Folder
) -> None:
    """Those of an older one are gone, and with them what hung on them; the tables stay."""
    old = Path(folder(Path(migrating.SQL, "001.sql").read_text(), grants=""))
    (old / "functions.sql").write_text(OLD)
    migrating.migrate(connection, str(old))
    connection.execute(
        "insert into rolecall.task (place, id, document, status, start, stuck)"
        " values (1, 'T1', '{}', 'ready', 'ready', false)"
    )
    with pytest.raises(errors.RaiseException, match="an older one"):
        connection.execute("update rolecall.task set status = 'done'")
    migrating.migrate(connection)
    assert migrating.version(connection) == migrating.newest()
    assert connection.execute("select to_regproc('rolecall.older')").fetchone() == (None,)
    connection.execute("update rolecall.task set status = 'done'")
    row = connection.execute("select status, version from rolecall.task").fetchone()
    assert row == ("done", 1)  # by the new trigger
    assert migrating.migrate(connection) == []


def test_two_at_once_do_nothing_twice(database: str, folder: Folder) -> None:
    """Each line of what was done is said by one of them."""
    path = folder(TASKS, WORK)
    said, ready = list[str](), threading.Barrier(4)

    def init() -> None:
        with connect(database, "test") as own:
            ready.wait(PATIENCE)
            said.extend(migrating.migrate(own, path))

    several = [threading.Thread(target=init) for _ in range(4)]
    for each in several:
        each.start()
    for each in several:
        each.join(PATIENCE)
    for line in ("the queue's schema is version 1 now", "the queue's schema is version 2 now"):
        assert said.count(line) == 1, said
    assert len(said) == len(set(said))


def test_a_newer_schema_is_refused(connection: Connection[Any], folder: Folder) -> None:
    """By what would migrate it and by what would use it; and nothing is changed."""
    migrating.migrate(connection, folder(TASKS, WORK))
    for step in (migrating.migrate, migrating.check):
        with pytest.raises(QueueUnreadable, match="is version 2, this Rolecall knows 1") as caught:
            step(connection, folder(TASKS))
        assert "invoke deploy" in caught.value.problems[0].hint
    assert migrating.version(connection) == 2


def test_what_a_worker_is_told(connection: Connection[Any], folder: Folder) -> None:
    """No queue, an old schema, one that fits; each with what to type."""
    old, new = folder(TASKS), folder(TASKS, WORK)
    with pytest.raises(QueueUnreadable, match="there is no queue in the database") as caught:
        migrating.check(connection, old)
    assert caught.value.problems[0].hint == "invoke queue.init"
    migrating.migrate(connection, old)
    migrating.check(connection, old)
    with pytest.raises(QueueUnreadable, match="is version 1, this Rolecall needs 2") as caught:
        migrating.check(connection, new)
    assert caught.value.problems[0].hint == "invoke queue.init"


def test_what_is_wrong_in_a_migration(connection: Connection[Any], folder: Folder) -> None:
    """It is told with its line, what was before it stays, and nothing of itself is left."""
    path = folder(TASKS, f"{WORK}select 1;\nselect nothing;\n")
    with pytest.raises(RolecallError, match='column "nothing" does not exist') as caught:
        migrating.migrate(connection, path)
    assert caught.value.problems[0].where == f"{path}/002.sql:3"
    assert migrating.version(connection) == 1
    found = connection.execute("select to_regproc('rolecall.work')").fetchone()
    assert found == (None,)


def test_a_table_in_use(connection: Connection[Any], database: str, folder: Folder) -> None:
    """It is waited for a while, several times; then who uses it is told, and how to end that."""
    migrating.migrate(connection, folder(TASKS))
    both = folder(TASKS, "alter table rolecall.task add title text")
    with connect(database, "holder") as other, other.transaction():
        other.execute("select from rolecall.task")
        with pytest.raises(RolecallError, match="in use: pid ") as caught:
            migrating.migrate(connection, both, BRIEF)
        problem = caught.value.problems[0]
        assert (
            f"pid {other.info.backend_pid} (rolecall holder, idle in transaction)" in problem.what
        )
        assert f"pg_terminate_backend({other.info.backend_pid})" in problem.hint
    assert migrating.migrate(connection, both, BRIEF) == ["the queue's schema is version 2 now"]


def test_a_migration_tries_again(
    connection: Connection[Any], database: str, folder: Folder
) -> None:
    """Workers that use a table longer than one wait hinder it no longer than that.

    Broken once by raising at the first lock that was not to be had: this failed.
    """
    migrating.migrate(connection, folder(TASKS))
    both = folder(TASKS, "alter table rolecall.task add title text")
    done = list[str]()
    patient = BRIEF._replace(tries=1000)

    def init() -> None:
        done.extend(migrating.migrate(connection, both, patient))

    with (
        connect(database, "holder") as other,
        connect(database, "looker") as looker,
    ):
        waits = set[object]()

        def several() -> bool:
            found = looker.execute("select waitstart from pg_locks where not granted").fetchall()
            waits.update(start for (start,) in found if start)
            return len(waits) > 2

        with other.transaction():
            other.execute("select from rolecall.task")
            thread = threading.Thread(target=init)
            thread.start()
            wait_for(several, "waits that were given up")
        thread.join(PATIENCE)
    assert done == ["the queue's schema is version 2 now"]


def test_an_owner_who_may_make_no_roles(servers: Callable[..., Server], folder: Folder) -> None:
    """Says which command an administrator has to type; the schema is made, and rights are later."""
    server = servers()
    with connect(server.url("postgres"), "test") as admin:
        admin.execute("create role shop_owner login")
        admin.execute("create role fay login")
        admin.execute('create database "the shop" template template0 owner shop_owner')
    url = server.url("the shop").replace("//postgres@", "//shop_owner@")
    path = folder(TASKS, WORK)
    with connect(url, "test") as owner:
        done = migrating.migrate(owner, path)
        roles = [line for line in done if line.startswith("not made")]
        assert [line.partition("types: ")[2] for line in roles] == [
            f"CREATE ROLE {role} NOLOGIN; then you: invoke queue.init"
            for role in ("rolecall_worker", "rolecall_operator")
        ]
        assert migrating.version(owner) == 2
        with connect(server.url("postgres"), "test") as admin:
            for line in roles:
                admin.execute(line.partition("types: ")[2].partition(";")[0].encode())
        [granted] = migrating.migrate(owner, path)
        assert granted.startswith("rolecall_worker and rolecall_operator may")
        assert migrating.migrate(owner, path) == []
    fay = server.url("the shop").replace("//postgres@", "//fay@")
    with connect(fay, "test") as worker:
        with pytest.raises(QueueUnreadable, match="fay may not use the queue") as caught:
            migrating.check(worker, path)
        hint = caught.value.problems[0].hint
        with connect(server.url("postgres"), "test") as admin:
            admin.execute(hint.removeprefix("its owner types: ").encode())
        migrating.check(worker, path)
        with pytest.raises(errors.InsufficientPrivilege, match="function work"):
            worker.execute("select rolecall.work()")
        with pytest.raises(RolecallError, match="fay may not change the queue's schema") as told:
            migrating.migrate(worker, folder(TASKS, WORK, "create table rolecall.x ()"))
        hint = "it is shop_owner's: invoke queue.init --queue postgresql://shop_owner@..."
        assert told.value.problems[0].hint == hint
    other = server.url("postgres").replace("//postgres@", "//fay@")
    with connect(other, "test") as stranger:
        with pytest.raises(RolecallError) as refused:
            migrating.migrate(stranger, path)
        hint = refused.value.problems[0].hint
        assert hint == "an administrator types: GRANT CREATE ON DATABASE postgres TO fay"


def test_queue_init_as_it_is_typed(database: str, tmp_path: Path) -> None:
    """A line for each thing done, then nothing to do; the inventory's queue, or the one named."""
    operator = Operator(tmp_path, queue=database, workspace=str(tmp_path / "shop"))
    first = operator.invoke("queue.init")
    assert first.returncode == 0, first.stderr
    newest = migrating.newest()
    assert f"{database}: the queue's schema is version {newest} now\n" in first.stdout
    second = operator.invoke("queue.init", "--queue", database)
    nothing = f"{database}: nothing to do: the queue's schema is version {newest}\n"
    assert (second.returncode, second.stdout, second.stderr) == (0, nothing, "")
    refused = operator.invoke("queue.init", "--queue", "postgresql://u:s3cret@h/d")
    assert refused.returncode == 78
    assert "--queue: queue holds a password" in refused.stderr
    assert "s3cret" not in refused.stderr


def test_a_file_needs_no_queue_init(tmp_path: Path) -> None:
    """Which command makes that one is said."""
    done = Operator(tmp_path).invoke("queue.init")
    assert done.returncode == 2
    assert "no host's queue is on PostgreSQL" in done.stderr
    assert "hint:  invoke init makes those" in done.stderr


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Libpq's reason, in one line, and no password."""
    url = f"postgresql://fay@/shop?host={tmp_path}"
    done = Operator(tmp_path, queue=url).invoke("queue.init", PGPASSWORD="s3cret")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: the queue's database: connection to server on socket")
    assert line.endswith("No such file or directory")


def test_without_psycopg() -> None:
    """What is missing is told, and how to get it."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from daemon.queue import database\n"
        "try: database.connect('postgresql:///d', 'test')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "error: a queue on PostgreSQL needs psycopg\n"
        "hint:  make postgres (or pip install -e '.[postgres]')\n"
    )
