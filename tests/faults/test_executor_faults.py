"""The executor against agents that behave as badly as real ones do, and worse."""

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import executor, process, tree
from daemon.errors import LeaseLost, RolecallError
from daemon.executor import Ended, Run

LONG = 60.0  # seconds that no test comes near to


class Asked:
    """A stop that a test asks for."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()
        self._asked = False

    def ask(self) -> None:
        """Ask, and wake whoever polls."""
        self._asked = True
        os.write(self._write, b"!")

    def asked(self) -> bool:
        """Whether it was asked for."""
        return self._asked

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self.fd)
        os.close(self._write)


class Bench:
    """Where one agent runs: its folder, its marker, its ticks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = f"ROLECALL_RESULT_FILE={folder}/result.json"
        self.stop = Asked()
        self.before = tree.children(os.getpid())
        self.ticks = 0
        self.on_tick: Callable[[], float] = lambda: 0.02

    def tick(self) -> float:
        """Count, then do what the test wants."""
        self.ticks += 1
        return self.on_tick()

    def run(self, *argv: str, seconds: float = LONG, **more: Any) -> Ended:
        """Run an agent to its end."""
        key, _, value = self.marker.partition("=")
        run = Run(
            argv=argv,
            env={"PATH": os.environ["PATH"], key: value},
            cwd=str(self.folder),
            stdin=b"",
            stdout=str(self.folder / "out"),
            stderr=str(self.folder / "err"),
            secrets=(),
            deadline=time.monotonic() + seconds,
            kill_grace=1.0,
            marker=self.marker,
        )
        return executor.execute(run._replace(**more), self.tick, self.stop)

    def sh(self, script: str, seconds: float = LONG, **more: Any) -> Ended:
        """Run a shell script as the agent."""
        return self.run("sh", "-c", script, seconds=seconds, **more)

    def python(self, script: str, seconds: float = LONG, **more: Any) -> Ended:
        """Run a Python script as the agent."""
        return self.run(sys.executable, "-I", "-S", "-c", script, seconds=seconds, **more)

    def when(self, name: str, then: Callable[[], object]) -> None:
        """Do it at the first tick that finds that file."""

        def look() -> float:
            if (self.folder / name).exists():
                then()
            return 0.02

        self.on_tick = look

    def left(self) -> list[int]:
        """The children that we have now and had not before, ended ones included."""
        return [pid for pid in tree.children(os.getpid()) if pid not in self.before]

    def out(self) -> bytes:
        """What the agent printed."""
        return (self.folder / "out").read_bytes()

    def pids(self, name: str = "pids") -> list[int]:
        """The pids that the agent noted."""
        return [int(line) for line in (self.folder / name).read_text().split()]


def running(pid: int) -> bool:
    found = process.stat(pid)
    return found is not None and found.state not in "ZX"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench that proves, at the end, that the agent left nothing: no process, no descriptor."""
    before = sorted(os.listdir("/proc/self/fd"))
    bench = Bench(tmp_path)
    yield bench
    bench.stop.close()
    assert executor.marked(bench.marker) == []
    assert bench.left() == []
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- how a program is started ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill $$", -15)]
)
def test_the_exit_status_is_the_agents_own(bench: Bench, script: str, status: int) -> None:
    """A signal is a negative number; output goes to its two files."""
    ended = bench.sh(f"echo out; echo err >&2; {script}")
    assert ended[:3] == (status, "exited", "")
    assert bench.out() == b"out\n"
    assert (bench.folder / "err").read_bytes() == b"err\n"


def test_one_path_for_both_outputs_keeps_their_order(bench: Bench) -> None:
    """Gates write both to one file."""
    path = str(bench.folder / "out")
    bench.sh("echo 1; echo 2 >&2; echo 3; echo 4 >&2", stderr=path)
    assert bench.out() == b"1\n2\n3\n4\n"


def test_what_cannot_be_executed_is_not_started(bench: Bench) -> None:
    """A missing program, a folder, a file without the right to run, a missing interpreter."""
    (bench.folder / "plain").write_text("echo no\n")
    (bench.folder / "script").write_text("#!/no/such/interpreter\n")
    (bench.folder / "script").chmod(0o755)
    for name, why in (
        ("no-such-program", "no-such-program: No such file or directory"),
        ("./no-such-program", "./no-such-program: No such file or directory"),
        (str(bench.folder), f"{bench.folder}: Permission denied"),
        ("./plain", "./plain: Permission denied"),
        ("./script", "./script: the interpreter that its first line names is missing"),
    ):
        assert bench.run(name)[:3] == (None, "not started", why)
    assert bench.run("true", "a\0b").status is None
    assert bench.run("true", "\ud800").status is None
    missing = bench.run("true", cwd="/no/such/folder")
    assert missing.note == "working directory /no/such/folder: No such file or directory"


def test_the_child_starts_clean(bench: Bench) -> None:
    """A session of its own, no signal blocked or ignored, no descriptor beyond 0, 1 and 2."""
    spare = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(spare, True)  # noqa: FBT003  # its only parameter
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        bench.python(
            "import os\n"
            "print(os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd'))[:4])\n"
            "lines = open('/proc/self/status').read().split('\\n')\n"
            "masks = [x.split() for x in lines if x[:6] in ('SigBlk', 'SigIgn')]\n"
            # Above 31 are the C library's own and real-time ones, as whoever started us left them.
            "print(*[f'{name} {int(mask, 16) & 0x7fffffff:x}' for name, mask in masks])\n"
            "print(sorted(os.environ), os.getcwd())\n",
        )
    finally:
        os.close(spare)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    first, second, third = bench.out().decode().splitlines()
    assert first == "True ['0', '1', '2', '3']"  # 3 is the listing's own
    # Python itself ignores SIGPIPE (13) and SIGXFSZ (25).
    assert second.split() == ["SigBlk:", "0", "SigIgn:", "1001000"]
    assert "'ROLECALL_RESULT_FILE'" in third
    assert third.endswith(str(bench.folder))


def test_our_own_signal_mask_and_descriptors_survive(bench: Bench) -> None:
    """The caller's mask is what it was before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    bench.run("true")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


# --- input and output --------------------------------------------------------------------------


def test_a_prompt_of_five_megabytes_reaches_an_agent_that_reads(bench: Bench) -> None:
    """Input and output flow at the same time."""
    prompt = os.urandom(5_000_000)
    assert bench.run("cat", stdin=prompt).status == 0
    assert bench.out() == prompt


def test_an_agent_that_never_reads_blocks_nobody(bench: Bench) -> None:
    """Not one that ends, not one that closes its input, and not one that sleeps on it."""
    prompt = b"x" * 5_000_000
    assert bench.sh("exit 4", stdin=prompt)[:2] == (4, "exited")
    assert bench.sh("exec <&-; echo closed", stdin=prompt)[:2] == (0, "exited")
    bench.when("ready", bench.stop.ask)
    assert bench.sh("touch ready; exec sleep 100", stdin=prompt).why == "stopped"


def test_without_a_prompt_standard_input_is_empty(bench: Bench) -> None:
    """An agent that reads sees the end at once."""
    assert bench.run("cat").status == 0


def test_ticks_come_while_output_flows(bench: Bench) -> None:
    """50 MB of output starve no tick: it goes on until ticks have come, and is whole."""
    size = 50_000_000
    script = (
        "import os\n"
        "block = b'\\x00\\xff' * 50_000\n"
        f"for _ in range({size // 100_000}): os.write(1, block)\n"
        "while not os.path.exists('enough'): os.write(1, block)\n"
    )

    def enough() -> float:
        if bench.ticks == 20:
            (bench.folder / "enough").touch()
        return 0.001

    bench.on_tick = enough
    ended = bench.python(script, secrets=("hunter22", "another secret"))
    assert ended[:2] == (0, "exited")
    assert bench.ticks >= 20
    assert len(bench.out()) >= size


def test_secrets_are_masked_across_writes(bench: Bench) -> None:
    """On both outputs, also where the agent writes a secret in two parts."""
    bench.sh(
        "printf hun; sleep 0.05; printf 'ter22 and hunter22\\n'; printf hunter22 >&2",
        secrets=("hunter22",),
    )
    assert bench.out() == b"*** and ***\n"
    assert (bench.folder / "err").read_bytes() == b"***"


def test_a_full_disk_loses_output_and_not_the_agent(bench: Bench) -> None:
    """A write that fails is told in the note; the agent runs to its end."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The nearest thing to a full disk that needs no mount: files may grow to 1000 bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        ended = bench.sh("head -c 5000 /dev/zero; echo done >&2; exit 7")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert ended[:2] == (7, "exited")
    assert ended.note == f"4000 bytes of output were lost: {bench.folder}/out: File too large"
    assert (bench.folder / "err").read_bytes() == b"done\n"


def test_a_symlink_in_place_of_a_log_is_refused(bench: Bench) -> None:
    """Nothing is started then, and nothing written where the link leads."""
    (bench.folder / "err").symlink_to(bench.folder / "elsewhere")
    with pytest.raises(RolecallError, match="output cannot be kept"):
        bench.sh("touch started")
    assert not (bench.folder / "elsewhere").exists()
    assert not (bench.folder / "started").exists()


# --- ends --------------------------------------------------------------------------------------


def test_a_timeout_is_one_whatever_the_exit_status(bench: Bench) -> None:
    """An agent that answers TERM with exit 0 has still timed out."""
    ended = bench.sh("trap 'echo bye; exit 0' TERM; while :; do sleep 0.02; done", seconds=0.3)
    assert ended[:2] == (0, "timeout")
    assert bench.out() == b"bye\n"


def test_an_agent_that_ignores_term_is_killed(bench: Bench) -> None:
    """KILL comes when the grace is over."""
    ended = bench.sh("trap '' TERM; while :; do sleep 1; done", seconds=0.2, kill_grace=0.1)
    assert ended[:2] == (-9, "timeout")


def test_a_stopped_agent_ends_too(bench: Bench) -> None:
    """One that was frozen by SIGSTOP still hears TERM."""
    ended = bench.sh("kill -STOP $$", seconds=0.2, kill_grace=LONG)
    assert ended[:2] == (-15, "timeout")


def test_a_stop_ends_it(bench: Bench) -> None:
    """TERM first, and why says who wished it."""
    bench.when("ready", bench.stop.ask)
    ended = bench.sh("trap 'exit 5' TERM; touch ready; while :; do sleep 0.02; done")
    assert ended[:2] == (5, "stopped")


def test_a_lost_lease_kills_at_once(bench: Bench) -> None:
    """What a tick raises comes out of execute, after the tree is dead."""

    def lose() -> float:
        if (bench.folder / "pids").exists():
            raise LeaseLost("gone")
        return 0.02

    bench.on_tick = lose
    script = "trap '' TERM; setsid sleep 100 & echo $! $$ > new; mv new pids; wait; sleep 100"
    with pytest.raises(LeaseLost):
        bench.sh(script, kill_grace=LONG)
    assert not any(running(pid) for pid in bench.pids())


def test_ticks_go_on_during_the_grace(bench: Bench) -> None:
    """A lease is renewed while an agent takes its time to end."""
    at_term = 0

    def look() -> float:
        nonlocal at_term
        if (bench.folder / "ready").exists():
            bench.stop.ask()
        if (bench.folder / "term").exists():
            at_term = at_term or bench.ticks
            if bench.ticks > at_term + 5:
                (bench.folder / "end").touch()
        return 0.01

    bench.on_tick = look
    script = (
        "trap 'touch term; while ! [ -e end ]; do sleep 0.01; done; exit 0' TERM\n"
        "touch ready; while :; do sleep 0.01; done"
    )
    assert bench.sh(script, kill_grace=LONG)[:2] == (0, "stopped")


# --- what agents leave behind ------------------------------------------------------------------

LEFT = {
    "a child": "sleep 100 &",
    "another session": "setsid sleep 100 &",
    "a double fork": "(sleep 100 &)",
    "no marker, another session": "env -i setsid sleep 100 &",
    "a daemon without marker": "(env -i setsid sh -c 'setsid sleep 100 & exit' &)",
    "one that ignores TERM": "setsid sh -c 'trap \"\" TERM; sleep 100; sleep 100' &",
    "one that is stopped": "setsid sh -c 'kill -STOP $$; sleep 100' &",
}


@pytest.mark.parametrize("script", LEFT.values(), ids=LEFT)
def test_what_an_agent_leaves_running_dies(bench: Bench, script: str) -> None:
    """Nothing is left below us, though all of them hold the output pipes open."""
    ended = bench.sh(f"{script}\nsleep 0.1; exit 6", kill_grace=0.3)
    assert ended[:2] == (6, "exited")
    assert bench.left() == []


@pytest.mark.parametrize("script", LEFT.values(), ids=LEFT)
def test_the_whole_tree_dies_at_a_timeout(bench: Bench, script: str) -> None:
    """The same, where the agent itself goes on."""
    ended = bench.sh(f"{script}\nexec sleep 100", seconds=0.3, kill_grace=0.3)
    assert ended.why == "timeout"
    assert bench.left() == []


def test_what_is_left_may_clean_up(bench: Bench) -> None:
    """It gets TERM first, and what it prints then is kept."""
    script = "(trap 'echo cleaned; exit' TERM; touch ready; while :; do sleep 0.01; done) &"
    bench.sh(f"{script} while ! [ -e ready ]; do sleep 0.01; done")
    assert bench.out() == b"cleaned\n"


def test_a_process_whose_first_thread_ended_dies(bench: Bench) -> None:
    """It looks like a zombie, and its other threads run on."""
    script = (
        "import ctypes, os, threading, time\n"
        "def work():\n"
        "    while True: time.sleep(0.01)\n"
        "if os.fork() == 0:\n"
        "    threading.Thread(target=work).start()\n"
        "    open('ready', 'w').close()\n"
        "    ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\n"
        "while not os.path.exists('ready'): time.sleep(0.01)\n"
        "time.sleep(0.1)\n"
    )
    assert bench.python(script, kill_grace=0.1).status == 0


FORKS = {
    "a chain": "if os.fork(): os._exit(0)",
    "a chain of sessions": "if os.fork(): os._exit(0)\n    os.setsid()",
    "a bomb": "try: pid = os.fork()\n    except OSError: pid = 0\n    pid or os.setsid()\n"
    "    time.sleep(0.01)",
}


@pytest.mark.parametrize("step", FORKS.values(), ids=FORKS)
def test_forking_without_end_loses(bench: Bench, step: str) -> None:
    """Bounded, in case that we lose: by a count of generations and by the clock."""
    script = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "end = time.monotonic() + 20\n"
        "if os.fork(): time.sleep(0.3); os._exit(0)\n"
        "for n in range(9 if 'sleep' in STEP else 100_000):\n"
        "    if time.monotonic() > end: break\n"
        f"    {step}\n"
        "while time.monotonic() < end: time.sleep(1)\n"
    ).replace("STEP", repr(step))
    began = time.monotonic()
    bench.python(script, kill_grace=0.05)
    assert time.monotonic() - began < 15
    assert bench.left() == []


def test_orphans_that_end_are_collected_while_it_runs(bench: Bench) -> None:
    """They come to us, and uncollected ones would use up the limit of processes."""

    def look() -> float:
        pids = bench.pids() if (bench.folder / "pids").exists() else []
        if len(pids) == 3 and not any(process.stat(pid) for pid in pids):
            (bench.folder / "enough").touch()
        return 0.02

    bench.on_tick = look
    orphan = "(sh -c 'echo $$ >> pids' &)"
    script = f"{orphan}; {orphan}; {orphan}; while ! [ -e enough ]; do sleep 0.01; done"
    assert bench.sh(script).status == 0


def test_children_of_the_caller_are_let_live(bench: Bench) -> None:
    """Only what came after the start belongs to the agent; the caller's children are its own."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        bench.sh("sleep 100 &", kill_grace=0.1)
        assert running(pid)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(pid, 0)


def test_a_stop_that_was_asked_before_starts_little(bench: Bench) -> None:
    """The agent is ended without a wait for anything."""
    bench.stop.ask()
    assert select.select([bench.stop.fd], [], [], 0)[0]
    assert bench.sh("sleep 100").why == "stopped"
