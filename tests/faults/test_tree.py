"""What a dead attempt left behind is found and killed from another process, and nothing else is."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import executor, process, tree
from daemon.errors import RolecallError
from daemon.model import Lease

ROOT = Path(__file__).parents[2]
ATTEMPT = """
import os, sys, time
from daemon import executor
executor.become_subreaper()
class Stop:
    fd = -1
    def asked(self): return False
def tick():
    told = " ".join(map(str, executor.sessions()))
    with open("sessions.new", "w") as file: file.write(told)
    os.rename("sessions.new", "sessions")
    return 0.02
run = executor.Run(("sh", "-c", sys.argv[1]), dict(os.environ), ".", b"", "out", "err", (),
                   time.monotonic() + 60, 1.0, sys.argv[2])
executor.execute(run, tick, Stop())
"""


class Nursery:
    """Processes that a test starts, each marked or not, and all gone when it is over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = f"ROLECALL_RESULT_FILE={folder}/result.json"
        self.mine: list[int] = []

    def start(self, *argv: str, marked: bool = True) -> int:
        """A process in a session of its own; its pid."""
        key, _, value = self.marker.partition("=")
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            **({key: value} if marked else {}),
        }
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.chdir(self.folder)
            os.execvpe(argv[0], argv, env)  # noqa: S606  # no shell is needed
        self.mine.append(pid)
        return pid

    def attempt(self, script: str) -> int:
        """A process that executes an agent, as an attempt does."""
        return self.start(sys.executable, "-c", ATTEMPT, script, self.marker)

    def lease(self, pid: int = 0, **more: object) -> Lease:
        """The lease that the attempt with that pid would hold now."""
        me = process.identity(pid or None)
        lease = Lease(
            task_id="T-1",
            role="builder",
            owner="test",
            started_at="",
            ttl_seconds=60,
            heartbeat_at="",
            machine_id=me.machine_id,
            boot_id=me.boot_id,
            pid_namespace=me.pid_namespace,
            pid=pid,
            pid_started=me.pid_started if pid else 0,
            heartbeat_boottime=time.clock_gettime(time.CLOCK_BOOTTIME),
        )
        return lease._replace(**more)  # type: ignore[arg-type]  # a test names fields that exist

    def until(self, ready: Callable[[], object]) -> None:
        """Wait for a condition, up to a minute."""
        end = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < end, "waited for a minute in vain"
            select.select([], [], [], 0.01)

    def noted(self, name: str = "pids") -> list[int]:
        """Wait until pids are noted in that file; which ones."""
        path = self.folder / name
        self.until(lambda: path.exists() and path.read_text().endswith("\n"))
        return [int(word) for word in path.read_text().split()]

    def die(self, pid: int) -> None:
        """KILL one of ours and collect it."""
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.mine.remove(pid)


def running(pid: int) -> bool:
    found = process.stat(pid)
    return found is not None and found.state not in "ZX"


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    """A nursery; the test's process is a subreaper, as a worker is."""
    tree.become_subreaper()
    nursery = Nursery(tmp_path)
    yield nursery
    for pid in tree.children(os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue
    assert executor.marked(nursery.marker) == []


# Its parent is gone at once, so that it does not even descend from a process with the marker.
UNMARKED = "(env -i setsid sh -c 'echo $$ > pids; sleep 100; :' &); exec sleep 100"
LEFT = {
    "a child": "sleep 100 &",
    "another session": "setsid sleep 100 &",
    "a double fork": "(setsid sleep 100 &)",
    "one that ignores TERM": "setsid sh -c 'trap \"\" TERM; sleep 100; sleep 100' &",
    "many": "for i in 1 2 3 4 5; do setsid sleep 100 & sleep 100 & done",
}


@pytest.mark.parametrize("script", LEFT.values(), ids=LEFT)
def test_nothing_marked_is_left_of_a_killed_attempt(nursery: Nursery, script: str) -> None:
    """The marker alone finds it: the lease names nothing that lives."""
    attempt = nursery.attempt(f"{script}\ntouch ready; exec sleep 100")
    nursery.until((nursery.folder / "ready").exists)
    lease = nursery.lease(attempt)
    nursery.die(attempt)
    assert executor.marked(nursery.marker)
    executor.kill_tree(lease, nursery.marker)
    assert executor.marked(nursery.marker) == []


def test_an_attempt_that_lives_is_killed_with_all_below_it(nursery: Nursery) -> None:
    """Also what shows no marker."""
    attempt = nursery.attempt("env -i setsid sleep 100 & echo $! $$ > pids; exec sleep 100")
    pids = nursery.noted()
    executor.kill_tree(nursery.lease(attempt), nursery.marker)
    assert not any(running(pid) for pid in [attempt, *pids])


def test_a_frozen_attempt_is_killed(nursery: Nursery) -> None:
    """SIGSTOP keeps nobody alive."""
    attempt = nursery.attempt("echo $$ > pids; exec sleep 100")
    pids = nursery.noted()
    os.kill(attempt, signal.SIGSTOP)
    executor.kill_tree(nursery.lease(attempt), nursery.marker)
    assert not any(running(pid) for pid in [attempt, *pids])


def test_the_sessions_of_the_lease_find_what_shows_no_marker(nursery: Nursery) -> None:
    """An attempt notes them while it renews; they outlive it in the lease."""
    attempt = nursery.attempt(UNMARKED)
    (pid,) = nursery.noted()
    path = nursery.folder / "sessions"
    nursery.until(lambda: path.exists() and str(pid) in path.read_text().split())
    sessions = tuple(int(word) for word in path.read_text().split())
    assert attempt in sessions
    lease = nursery.lease(attempt, sessions=sessions)
    nursery.die(attempt)
    executor.kill_tree(lease._replace(sessions=()), nursery.marker)
    assert running(pid)
    executor.kill_tree(lease, nursery.marker)
    assert not running(pid)


def test_a_session_number_that_was_given_out_again_harms_nobody(nursery: Nursery) -> None:
    """A session that began after the last renewal is another one, and so is the caller's own."""
    lease = nursery.lease()
    before = process.stat(os.getpid())
    assert before is not None
    nursery.until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > lease.heartbeat_boottime + 0.05)
    bystander = nursery.start("sleep", "100", marked=False)
    executor.kill_tree(lease._replace(sessions=(bystander, os.getsid(0))), nursery.marker)
    assert running(bystander)


def test_a_pid_that_was_given_out_again_harms_nobody(nursery: Nursery) -> None:
    """The start time tells, and so does the missing marker: until takeover it is the worker's."""
    bystander = nursery.start("sleep", "100", marked=False)
    lease = nursery.lease(bystander)
    for each in (lease, lease._replace(pid_started=lease.pid_started - 1)):
        executor.kill_tree(each, nursery.marker)
        assert running(bystander)


@pytest.mark.parametrize("field", ["machine_id", "boot_id"])
def test_an_attempt_of_elsewhere_or_before_is_not_looked_for(nursery: Nursery, field: str) -> None:
    """Another host's processes are not here; another boot's are gone."""
    far: dict[str, object] = {field: "0" * 32}
    pid = nursery.start("sleep", "100")
    nursery.until(lambda: executor.marked(nursery.marker) == [pid])
    lease = nursery.lease(pid, **far)
    executor.kill_tree(lease, nursery.marker)
    assert not executor.terminate(lease)
    assert running(pid)


def test_a_lease_without_identity_is_served_by_the_marker(nursery: Nursery) -> None:
    """Its file was removed: what the task says names no process."""
    pid = nursery.start("sleep", "100")
    nursery.until(lambda: executor.marked(nursery.marker) == [pid])
    lease = Lease("T-1", "builder", "test", "", 60, "")
    executor.kill_tree(lease, nursery.marker)
    assert not running(pid)


def test_orphans_that_came_to_the_worker_die_without_a_trace_of_the_attempt(
    nursery: Nursery,
) -> None:
    """A worker that names its own children has all others ended: no marker, no session needed."""
    attempt = nursery.attempt(UNMARKED)
    (pid,) = nursery.noted()
    lease = nursery.lease(attempt)
    nursery.die(attempt)
    other = nursery.start("sleep", "100", marked=False)
    executor.kill_tree(lease, nursery.marker)
    assert running(pid)
    executor.kill_tree(lease, nursery.marker, known=[other])
    assert not running(pid)
    assert running(other)


def test_grace_lets_it_end_by_itself(nursery: Nursery) -> None:
    """TERM comes first where there is a grace, and it is not waited for longer than needed."""
    nursery.start(
        "sh", "-c", "trap 'touch ended; exit' TERM; touch ready; while :; do sleep 0.01; done"
    )
    nursery.until((nursery.folder / "ready").exists)
    executor.kill_tree(nursery.lease(), nursery.marker, grace=60)
    assert (nursery.folder / "ended").exists()


def test_the_caller_is_spared_though_it_is_marked(nursery: Nursery) -> None:
    """An agent may release its own task: all others of its tree die."""
    script = (
        "import os\n"
        "from daemon import executor\n"
        "from daemon.model import Lease\n"
        "pid = os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '100')\n"
        f"executor.kill_tree(Lease('T-1', 'builder', 'x', '', 60, ''), {nursery.marker!r})\n"
        "print(os.waitpid(pid, 0)[1], file=open('status', 'w'))\n"
    )
    pid = nursery.start(sys.executable, "-c", script)
    assert os.waitpid(pid, 0)[1] == 0
    assert (nursery.folder / "status").read_text() == "9\n"


def test_terminate_asks_only_that_very_process(nursery: Nursery) -> None:
    """The pid with its start time, and never the caller."""
    pid = nursery.start("sleep", "100")
    lease = nursery.lease(pid)
    assert not executor.terminate(lease._replace(pid_started=lease.pid_started - 1))
    assert not executor.terminate(nursery.lease(os.getpid()))
    assert executor.terminate(lease)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM


def test_what_outlives_kill_is_named() -> None:
    """An error says which processes, and how to look at them; it does not wait for ever."""
    init = process.stat(1)
    assert init is not None
    error = tree.outlived([init])
    assert isinstance(error, RolecallError)
    assert "1 process of the attempt cannot be killed: 1" in str(error)
    assert "ps -o" in str(error)


def test_a_marker_is_a_whole_entry(nursery: Nursery) -> None:
    """Neither a longer path nor the same text in a prompt is it."""
    pid = nursery.start("sleep", "100")
    nursery.until(lambda: executor.marked(nursery.marker) == [pid])
    assert executor.marked(nursery.marker[:-1]) == []
    assert executor.marked(nursery.marker[1:]) == []
    assert executor.marked(nursery.marker + "x") == []
