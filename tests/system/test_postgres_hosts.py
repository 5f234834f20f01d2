"""A host whose queue is on PostgreSQL: what reaches the server, and what never reaches an agent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from daemon.config import load
from daemon.errors import RolecallError
from daemon.fleet import clone
from daemon.fleet import doctor as whole
from daemon.fleet.connection import Local
from daemon.fleet.finding import Finding
from daemon.queue import migrating
from daemon.queue.database import MISSING, connect
from daemon.queue.opening import open_queue
from daemon.queue.session import Session
from tests.farhosts import FarHosts
from tests.postgres import Server
from tests.queues import FileBackend
from tests.workspace import ROOT, Workspace, wait_for

SECRETS = {
    "PGPASSWORD": "correct horse",
    "PGPASSFILE": "/dev/null",
    "PGSERVICEFILE": "/dev/null",
    "PGSSLKEY": "/dev/null",
    "PGSSLMODE": "prefer",
    "PGUSER": "postgres",
    "PGAPPNAME": "shop",
}
TASK = {"id": "T1", "title": "A cart", "type": "Build", "status": "ready"}


@pytest.mark.parametrize("passed", [[], ["PGPASSWORD"]])
def test_agents_and_gates_know_nothing_of_the_database(
    ws: Workspace, database: str, passed: list[str]
) -> None:
    """But what pass_env names, for the agent alone; worker and attempt have all of it.

    Broken once by passing on what begins with PG: this failed.
    """
    script = 'cat >/dev/null; env >agent; tr "\\0" "\\n" </proc/$PPID/environ >attempt'
    gate = ["sh", "-c", 'env >"$PWD/gate"']
    ws.write_config(builder={"script": script, "gates": [gate], "pass_env": passed})
    document = {**json.loads(ws.config.read_text()), "queue": database}
    ws.config.write_text(json.dumps(document))
    with connect(database, "test") as owner:
        migrating.migrate(owner)
    with closing(open_queue(load(str(ws.config)))) as queue:
        queue.add([TASK])
    done = ws.run("--once", "--role", "builder", env={**os.environ, **SECRETS})
    assert done.returncode == 0, done.stderr

    def known(name: str) -> list[str]:
        lines = ws.file(name).splitlines()
        return sorted(line for line in lines if line.startswith("PG"))

    every = sorted(f"{key}={value}" for key, value in SECRETS.items())
    assert known("attempt") == every
    assert known("agent") == [line for line in every if line.partition("=")[0] in passed]
    assert known("gate") == []
    assert f"ROLECALL_QUEUE={database}" in ws.file("agent").splitlines()


class Doctor:
    """A host, and what its doctor says of the queue in that database."""

    def __init__(self, path: Path, url: str) -> None:
        self.url = url
        self.config = FileBackend(path / "shop").config

    def look(self, url: str = "", **builder: Any) -> list[Finding]:
        roles = {**self.config.roles}
        roles["builder"] = roles["builder"]._replace(**builder)
        config = self.config._replace(queue=url or self.url, roles=roles)
        return list(clone.queue(config, Local(), "/dev/null"))

    def one(self, check: str, url: str = "", **builder: Any) -> Finding:
        found = self.look(url, **builder)
        (one,) = (each for each in found if each.check == check)
        return one


@pytest.fixture
def doctor(tmp_path: Path, database: str) -> Doctor:
    with connect(database, "test") as owner:
        migrating.migrate(owner)
    return Doctor(tmp_path, database)


def login(url: str, name: str, *grants: str) -> str:
    """The URL of a new login, which may do what the statements say."""
    with connect(url, "test") as owner:
        owner.execute(f"create role {name} login password 's3cret'".encode())
        for each in grants:
            owner.execute(f"{each} to {name}".encode())
    return url.replace("//postgres@", f"//{name}@")


@pytest.fixture
def fay(database: str) -> Iterator[str]:
    """The name of a login of the test's own: logins are the whole server's."""
    name = f"fay_{os.urandom(4).hex()}"
    yield name
    with connect(database, "test") as owner:
        owner.execute(f"drop owned by {name}".encode())
        owner.execute(f"drop role {name}".encode())


def test_a_ready_host(doctor: Doctor, fay: str) -> None:
    """The server, who we are to it, and what is in the queue."""
    url = login(doctor.url, fay, "grant rolecall_worker")
    server, queue = doctor.look(url)
    assert (server.check, server.state) == ("server", "ok")
    assert re.fullmatch(rf"PostgreSQL \d+\.\d+ at \S+, as {fay}", server.what)
    database = urlsplit(url).path[1:]
    assert queue == Finding("queue", "ok", f"0 tasks in {database}")


def test_what_is_in_the_queue_is_counted(doctor: Doctor, tmp_path: Path) -> None:
    """By status, the most first, at any depth, as of a file; what is skipped is told of."""
    done = {"id": "T2", "status": "done", "subtasks": [{"id": "T3", "status": "done"}]}
    tasks = [{"id": "T1", "status": "ready"}, done, {"id": "T4"}, {"id": "T5", "status": 7}]
    file = FileBackend(tmp_path / "file")
    for strange in ([], [{"id": "../x"}, {"id": "T1"}]):
        data = json.dumps({"tasks": [*tasks, *strange]})
        with closing(open_queue(doctor.config._replace(queue=doctor.url))) as queue:
            queue.load(data.encode(), "a file", replace=True)
        file.save(data)
        found = doctor.one("queue")
        told = found.what.replace(urlsplit(doctor.url).path[1:], str(file.path))
        assert [found._replace(what=told)] == [
            each for each in clone.queue(file.config, Local(), "/dev/null") if each.check == "queue"
        ]
        assert found.what.split(": ")[1].startswith("2 done, 2 without status, 1 ready")
        assert found.state == ("warn" if strange else "ok")


def test_the_owner_of_the_schema_may_more_than_workers_need(doctor: Doctor) -> None:
    """That works, and is worth a word."""
    found = doctor.look()
    assert [each.state for each in found] == ["ok", "warn", "ok"]
    assert found[1].what == "postgres owns the queue's schema: workers need less"
    assert "GRANT rolecall_worker TO builder" in found[1].hint


def test_rights_that_are_missing(doctor: Doctor, fay: str) -> None:
    """Whose they are, and what the owner has to type; that done, all is well."""
    url = login(doctor.url, fay)
    found = doctor.one("queue", url)
    assert (found.state, found.hint) == (
        "fail",
        f"its owner types: GRANT rolecall_worker TO {fay}",
    )
    with connect(doctor.url, "test") as owner:
        owner.execute(f"grant usage on schema rolecall to {fay}".encode())
        owner.execute(f"grant select on all tables in schema rolecall to {fay}".encode())
        half = doctor.look(url)[1]
        assert (half.state, half.what) == (
            "fail",
            f"{fay} may not claim, renew, settle, take_over",
        )
        owner.execute(half.hint.removeprefix("its owner types: ").encode())
    assert {each.state for each in doctor.look(url)} == {"ok"}


def test_no_queue_and_another_schema(tmp_path: Path, database: str) -> None:
    """What to type is `invoke queue.init`, or a newer Rolecall's deploy."""
    doctor = Doctor(tmp_path, database)
    found = doctor.one("queue")
    assert (found.state, found.hint) == ("fail", "invoke queue.init")
    with connect(database, "test") as owner:
        migrating.migrate(owner)
        owner.execute("insert into rolecall.migration (version) values (999)")
    found = doctor.one("queue")
    assert found.what == (
        f"the queue's schema is version 999, this Rolecall knows {migrating.newest()}"
    )
    assert (found.state, "invoke deploy" in found.hint) == ("fail", True)


def test_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    """Libpq's reason in one line, and what to try there."""
    doctor = Doctor(tmp_path, f"postgresql://fay@/shop?host={tmp_path}")
    (found,) = doctor.look()
    assert (found.check, found.state) == ("queue", "fail")
    assert found.what.endswith("No such file or directory")
    assert "\n" not in found.what
    assert found.hint == f"psql 'postgresql://fay@/shop?host={tmp_path}'"


def test_a_password_that_libpq_does_not_read(
    doctor: Doctor, servers: Callable[..., Server], home: Path
) -> None:
    """A file that others may read is none to it; closed, it opens the door, and is never shown."""
    server = servers()
    url = server.url("postgres", tcp=True)
    with connect(server.url("postgres"), "test") as owner:
        migrating.migrate(owner)
    assert "no password" in doctor.one("queue", url).what
    passfile = home / ".pgpass"
    passfile.write_bytes(server.passfile.read_bytes())
    passfile.chmod(0o640)
    found = doctor.look(url)
    assert [each.state for each in found] == ["warn", "fail"]
    assert "open to others (mode 0640)" in found[0].what
    subprocess.run(["sh", "-c", found[0].hint], check=True)
    assert doctor.one("queue", url).state == "ok"
    password = passfile.read_text().strip().rpartition(":")[2]
    assert password not in str(found)


def test_what_keeps_a_login_out_is_hinted_at(
    servers: Callable[..., Server], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that libpq looks into, by what it said; nothing is guessed of other reasons."""
    url = servers().url("postgres", tcp=True)
    passfile = "~/.pgpass (chmod 600 ~/.pgpass)"
    cases = (
        (f"{url}?sslmode=require", "server does not support SSL", "another sslmode"),
        (
            "postgresql:///?service=shop",
            'definition of service "shop" not found',
            "pg_service.conf",
        ),
        (url, "no password supplied", passfile),
        (url, "password authentication failed", passfile),
        (f"postgresql:///shop?host={home}", "No such file", ""),
    )
    for tried, said, hint in cases:
        if said.startswith("password"):
            monkeypatch.setenv("PGPASSWORD", "wrong")
        session = Session(tried, "test", lambda _: None)
        for ask in (partial(session.call, "SELECT 1"), partial(connect, tried, "test")):
            with pytest.raises(RolecallError) as refused:
                ask()
            (problem,) = refused.value.problems
            assert said in problem.what
            assert hint in problem.hint
            assert bool(problem.hint) == bool(hint)
        session.drop()


def test_a_right_that_a_command_lacks_is_that_of_the_group_of_people(
    doctor: Doctor, fay: str
) -> None:
    """A worker's login that types a person's command is told of no group that it is in already."""
    url = login(doctor.url, fay, "grant rolecall_worker")
    with closing(open_queue(doctor.config._replace(queue=url))) as queue:
        for ask in (
            partial(queue.add, [TASK]),
            partial(queue.load, b'{"tasks": []}', "a file", replace=True),
        ):
            with pytest.raises(RolecallError, match="permission denied for function") as refused:
                ask()
            hint = refused.value.problems[0].hint
            assert hint == "GRANT rolecall_operator TO its login role"


@pytest.fixture
def front() -> Iterator[Callable[..., int]]:
    """Starts one (tests/front.py), whose port it gives; gone with the test."""
    with ExitStack() as stack:

        def start(*arguments: object) -> int:
            command = [sys.executable, "-m", "tests.front", *map(str, arguments)]
            made = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            stack.enter_context(made)
            stack.callback(made.kill)
            assert made.stdout
            return int(made.stdout.readline())

        yield start


@pytest.fixture
def remote(doctor: Doctor, servers: Callable[..., Server], home: Path) -> Server:
    """A server with a queue, whose password the home knows."""
    server = servers()
    with connect(server.url("postgres"), "test") as owner:
        migrating.migrate(owner)
    (home / ".pgpass").write_bytes(server.passfile.read_bytes())
    (home / ".pgpass").chmod(0o600)
    return server


def test_what_is_said_of_tls(
    doctor: Doctor, remote: Server, front: Callable[..., int], tmp_path: Path
) -> None:
    """Plain text to another machine, TLS with anyone, TLS with the one whose name it is."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=db.example.com"
    make += " -addext subjectAltName=DNS:db.example.com -keyout server.pem -out server.crt"
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True)
    with (tmp_path / "server.pem").open("a") as file:
        file.write((tmp_path / "server.crt").read_text())

    def url(port: int, more: str = "", host: str = "db.example.com") -> str:
        return f"postgresql://postgres@{host}:{port}/postgres?hostaddr=127.0.0.1{more}"

    found = doctor.look(url(remote.port))[0]
    assert (found.state, found.what.endswith(", not encrypted")) == ("warn", True)
    tls = front(remote.port, tmp_path / "server.pem")
    found = doctor.look(url(tls))[0]
    assert (found.state, "is not checked (sslmode=prefer)" in found.what) == ("warn", True)
    checked = f"&sslmode=verify-full&sslrootcert={tmp_path}/server.crt"
    found = doctor.look(url(tls, checked))[0]
    assert (found.state, found.what.endswith(", encrypted")) == ("ok", True)
    (found,) = doctor.look(url(tls, checked, "other.example.com"))
    assert (found.state, "does not match host name" in found.what) == ("fail", True)


def test_a_pooler_is_refused(doctor: Doctor, remote: Server, front: Callable[..., int]) -> None:
    """By the doctor and by what claims; with what to name instead."""
    url = f"postgresql://postgres@127.0.0.1:{front(remote.port)}/postgres"
    (found,) = doctor.look(url)
    assert (found.check, found.state) == ("queue", "fail")
    assert "is a pooler, which passes no notifications on" in found.what
    assert found.hint.startswith("name PostgreSQL's own host and port")
    with pytest.raises(RolecallError, match="through a pooler"):
        open_queue(doctor.config._replace(queue=url)).snapshot()


def test_clocks_that_differ(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in seconds, from five on."""
    real = time.time
    for behind, told in ((3.0, []), (60.0, ["this host's clock is 60 s behind the server's"])):
        monkeypatch.setattr(time, "time", lambda behind=behind: real() - behind)
        found = [each.what for each in doctor.look() if each.check == "clock"]
        assert found == told


def test_pass_env_may_open_the_database_to_an_agent(doctor: Doctor) -> None:
    """It is the person's own word; the doctor says what it means."""
    found = doctor.look(pass_env=("CI", "PGPASSWORD"))[0]
    assert (found.check, found.state, found.role) == ("secrets", "warn", "builder")
    assert found.what == "pass_env hands PGPASSWORD on: the agent may reach what they open"
    assert not [each for each in doctor.look(pass_env=("CI",)) if each.check == "secrets"]


def test_nothing_is_said_of_files(doctor: Doctor) -> None:
    """Neither of a file system nor of inotify: the server tells of changes."""
    config = doctor.config._replace(queue=doctor.url, supervisor="pidfile")
    checks = {each.check for each in whole.examine(config)}
    assert {"server", "queue"} <= checks
    assert not {"inotify", "file system"} & checks


def test_without_psycopg_the_doctor_says_how_to_get_it(tmp_path: Path) -> None:
    """In a checkout by make; a host of copied releases gets it with the next one."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from daemon.fleet import server\n"
        "from daemon.config import load\n"
        "from daemon.fleet.connection import Local\n"
        "config = load(sys.argv[1])\n"
        "for place in (Local(), Local(checkout='/r/current')):\n"
        "    print(*[f'{each.what}|{each.hint}' for each in server.findings(config, place, str)])\n"
    )
    path = tmp_path / "c.yml"
    path.write_text("queue: postgresql:///d\nroles: {builder: {}}\n")
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{MISSING}|make postgres (or pip install -e '.[postgres]')",
        f"{MISSING}|invoke deploy brings it",
    ]


def test_hosts_share_a_queue(tmp_path: Path, database: str) -> None:
    """Copied releases bring psycopg; the workers do each task of the one queue once; all goes."""
    script = 'cat >/dev/null; echo "$ROLECALL_TASK_ID" >>../did'
    hosts = FarHosts(tmp_path, "web1", "web2", script=script)
    hosts.configure(queue=database)
    before = [hosts.files(name) for name in hosts.names]
    assert hosts.do("queue.init")[-1].endswith(f"is version {migrating.newest()} now")
    hosts.do("install")
    assert hosts.do("agents.start") == [f"{name}: builder: started" for name in hosts.names]
    for name in hosts.names:
        (release,) = (hosts.homes / name / ".local/share/rolecall/agent/releases").iterdir()
        assert (release / "psycopg" / "__init__.py").exists()
        assert (release / "daemon" / "queue" / "sql" / "001.sql").exists()
    config = Doctor(tmp_path, database).config._replace(queue=database)
    with closing(open_queue(config)) as queue:
        queue.add([{**TASK, "id": f"T{number}"} for number in range(8)])
        wait_for(lambda: len(queue.snapshot().tasks.in_status("awaiting_test")) == 8, "all done")
    did = [path.read_text().split() for path in hosts.homes.glob("*/did")]
    assert sorted(chain(*did)) == [f"T{number}" for number in range(8)]
    said = hosts.invoke("doctor").stdout
    assert said.count("PostgreSQL 1") == 2, said
    assert said.count("8 tasks in") == 2, said
    assert hosts.do("install") == [f"{name}: nothing to do" for name in hosts.names]
    hosts.do("agents.stop")
    hosts.do("uninstall")
    assert [[f for f in hosts.files(name) if f != "did"] for name in hosts.names] == before
