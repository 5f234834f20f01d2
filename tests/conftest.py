"""What every test gets: a HOME of its own, no settings of the person's; and nothing may be left."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import GIVEN, Databases, Missing, Server, shared
from tests.queues import BACKENDS, Backend, Copies, FileBackend, PostgresBackend
from tests.workspace import Workspace

SESSION = "ROLECALL_TEST_SESSION"  # in the environment of every process that a test starts
LAST_WORDS = 5.0  # seconds for what a test has ended to be gone
#: What would lead our programs to the person's own files, bus, or supervisor.
STRANGE = (
    "ANTHROPIC_",
    "DBUS_",
    "GIT_",
    "INVOCATION_ID",
    "INVOKE_",
    "JOURNAL_STREAM",
    "LISTEN_",
    "MANAGERPID",
    "NOTIFY_SOCKET",
    "ROLECALL_",
    "SYSTEMD_",
    "WATCHDOG_",
    "XDG_",
    *(() if GIVEN else ("PG",)),  # else they are how that server is reached
)


def pytest_configure() -> None:
    """Mark this session; pytest-xdist's processes inherit the mark."""
    os.environ.setdefault(SESSION, uuid.uuid4().hex)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell starts what it puts into the background; what we start would ignore it, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """TMPDIR is a folder of the session's, which must be empty in the end."""
    folder = tmp_path_factory.mktemp("tmpdir")
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    yield
    tempfile.tempdir = None
    del os.environ["TMPDIR"]
    if before is not None:
        os.environ["TMPDIR"] = before
    assert not os.listdir(folder), f"temporary files were left in {folder}"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home, and an environment that knows no other."""
    for name in list(os.environ):
        if name.startswith(STRANGE) and name != SESSION:
            monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace, whose workers are ended with the test."""
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.end()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """A server that all tests of the run share, in whatever process of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    try:
        with shared(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) as found:
            yield found
    except Missing as why:
        pytest.skip(f"{why}, or ROLECALL_TEST_POSTGRES=postgresql://...")


@pytest.fixture
def database(postgres: Databases) -> Iterator[str]:
    """The URL of an empty database, dropped with the test."""
    with postgres.fresh() as url:
        yield url


@pytest.fixture(scope="session")
def copies(postgres: Databases) -> Iterator[Copies]:
    """Databases with an empty queue each."""
    with Copies(postgres) as found:
        yield found


@pytest.fixture
def on_postgres(copies: Copies) -> Iterator[Callable[..., PostgresBackend]]:
    """Makes queues in databases of their own."""
    with copies.taken() as make:
        yield make


@pytest.fixture(params=BACKENDS)
def queues(request: pytest.FixtureRequest) -> Callable[..., Backend]:
    """Makes queues of each kind."""
    made: Callable[..., Backend] = FileBackend
    if request.param == "postgres":
        made = request.getfixturevalue("on_postgres")
    return made


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    """Start servers of the test's own, to be stopped, killed and frozen; gone with the test."""
    with ExitStack() as stack:

        def start(**keys: Any) -> Server:
            try:
                return stack.enter_context(Server(**keys))
            except Missing as why:
                pytest.skip(str(why))

        yield start


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Processes that outlive the tests are a failure, with the test that started them."""
    if hasattr(session.config, "workerinput"):
        return  # of pytest-xdist: the session is over when all of its processes are
    deadline = time.monotonic() + LAST_WORDS
    while (left := _left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, told in left.items():
        print(f"\nleft running: {pid}: {told}")  # noqa: T201  # pytest's way to be told, this late
        os.kill(pid, signal.SIGKILL)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left() -> dict[int, str]:
    """The living processes of this session less pytest itself, and what is known of each."""
    mark, found = f"{SESSION}={os.environ[SESSION]}".encode(), {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path("/proc", entry, "environ").read_bytes().split(b"\0")
            command = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if mark in environ:
            tests = [each for each in environ if each.startswith(b"PYTEST_CURRENT_TEST=")]
            found[int(entry)] = f"{command} ({b' '.join(tests).decode()})"
    return found
