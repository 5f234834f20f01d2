"""The line to a host, against far sides of every kind; what stands for ssh is a Python program."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.errors import RolecallError
from daemon.fleet import wire as wires
from daemon.fleet.connection import Unreachable
from daemon.fleet.wire import KEPT, HungUp, Overdue, Wire
from tests.workspace import PATIENCE, wait_for

SAY = """
import json, os, signal, subprocess, sys, time
def say(**message):
    os.write(1, b"\\x1erolecall " + json.dumps(message).encode() + b"\\n")
"""
Connect = Callable[..., Wire]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes a wire to a program that has ``say``; all are closed afterwards."""
    made = []

    def to(program: str, silence: float = PATIENCE) -> Wire:
        made.append(Wire([sys.executable, "-c", SAY + program], silence))
        return made[-1]

    yield to
    for each in made:
        each.close()


def hung_up(wire: Wire) -> wires.Ended:
    with pytest.raises(HungUp) as caught:
        wire.receive()
    return caught.value.ended


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_messages_are_told_from_whatever_else_is_printed(connect: Connect) -> None:
    """Banners, a prompt without an end of line, bytes that are no text, a message cut in two."""
    wire = connect(
        'os.write(1, b"Welcome!\\n\\xff\\xfe {\\n\\nlast login: "); say(a=1)\n'
        'os.write(1, b"\\x1erolecall {\\"b\\""); time.sleep(0.1); os.write(1, b": 2}\\n bye\\n")'
    )
    assert wire.receive() == {"a": 1}
    assert wire.receive() == {"b": 2}
    ended = hung_up(wire)
    assert ended.status == 0
    assert "Welcome!" in ended.noise
    assert "last login" in ended.noise
    assert ended.noise.endswith(" bye\n")


def test_both_sides_may_talk_at_once(connect: Connect) -> None:
    """A far side that talks before it listens holds up no large upload, and loses none of it."""
    size = 4 << 20
    wire = connect(
        f'for n in range(64): say(n=n, text="x" * {1 << 16})\n'
        f"data = sys.stdin.buffer.read({size})\n"
        "say(got=len(data), sum=sum(data))"
    )
    wire.send(b"head", bytes(range(256)) * (size // 256 - 1), b"z" * 252)
    assert [wire.receive()["n"] for _ in range(64)] == list(range(64))
    total = sum(b"head") + sum(range(256)) * (size // 256 - 1) + 252 * ord("z")
    assert wire.receive() == {"got": size, "sum": total}


def test_silence_ends_it(connect: Connect) -> None:
    """After as many seconds as were allowed; signs of life put that off."""
    wire = connect("for n in range(4): time.sleep(0.3); say(alive=1)\ntime.sleep(600)", 1.0)
    began = time.monotonic()
    for _ in range(4):
        assert wire.receive() == {"alive": 1}
    assert time.monotonic() - began > 1.0
    began = time.monotonic()
    assert hung_up(wire).status is None
    assert 0.9 < time.monotonic() - began < PATIENCE / 2


def test_noise_is_no_sign_of_life(connect: Connect) -> None:
    """An rc file that prints for ever is silence to us, and fills no memory."""
    wire = connect('while True: os.write(1, b"y" * 60000)', 0.5)
    ended = hung_up(wire)
    assert ended.status is None
    assert len(ended.noise) <= KEPT


def test_a_far_side_that_only_lives_is_not_waited_for_for_ever(connect: Connect) -> None:
    """Its signs of life may come from a thread beside the one that hangs, as fast as they like."""
    wire = connect("while True: say(alive=1)")
    assert wire.receive() == {"alive": 1}
    wire.end_after(0.5)
    with pytest.raises(Overdue):
        list(iter(wire.receive, None))


def test_ssh_has_no_terminal_to_ask_on(connect: Connect) -> None:
    """One of a jump host would ask there, from the background, and be stopped for it."""
    wire = connect(
        "say(session=os.getsid(0) == os.getpid(), asks=os.environ['SSH_ASKPASS_REQUIRE'])"
    )
    assert wire.receive() == {"session": True, "asks": "never"}


def test_an_upload_that_goes_on_is_a_sign_of_life(connect: Connect) -> None:
    """A slow line is not taken for a dead one."""
    wire = connect(
        "left = 1 << 20\n"
        "while left: left -= len(os.read(0, 1 << 16)); time.sleep(0.1)\n"
        "say(done=1)",
        1.0,
    )
    wire.send(bytes(1 << 20))
    assert wire.receive() == {"done": 1}


def test_how_it_ended_is_told(connect: Connect) -> None:
    """The exit status, and both ends of a long story on stderr."""
    wire = connect(f'sys.stderr.write("first\\n" + "x" * {1 << 20} + "\\nlast\\n"); sys.exit(255)')
    ended = hung_up(wire)
    assert ended.status == 255
    assert ended.stderr.startswith("first\n")
    assert ended.stderr.endswith("\nlast\n")
    assert len(ended.stderr) <= 2 * KEPT
    assert hung_up(connect("os.kill(os.getpid(), 9)")).status == -9


def test_who_does_not_read_is_heard_nevertheless(connect: Connect) -> None:
    """A far side that ends in the middle of an upload has said why before."""
    wire = connect('say(error="no room"); sys.exit(1)')
    wire.send(bytes(8 << 20))
    assert wire.receive() == {"error": "no room"}
    assert hung_up(wire).status == 1


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", "1", '{"a": NaN' + "}" * 9, "\xff", '{"a":' * 100_000, "[" * 500_000],
    ids=["open", "list", "number", "rest", "no text", "deep", "deeper"],
)
def test_a_message_without_sense_is_an_error(connect: Connect, text: str) -> None:
    """It never reaches anybody who relies on its shape."""
    wire = connect(
        f"text = {text[:20]!r} if {len(text)} < 20 else {text[:5]!r} * {len(text) // 5}\n"
        'sys.stdout.write("\\x1erolecall " + text + "\\n")'
    )
    with pytest.raises(RolecallError, match="makes no sense"):
        wire.receive()


def test_a_message_without_end_is_an_error(connect: Connect) -> None:
    """It fills no memory."""
    wire = connect(
        'os.write(1, b"\\x1erolecall "); data = b"x" * 65536\nwhile True: os.write(1, data)'
    )
    with pytest.raises(RolecallError, match="more than 16 MiB"):
        wire.receive()


def test_ssh_and_what_it_started_end_with_it(connect: Connect) -> None:
    """Even where they heed no signal; one that went its own way is not waited for."""
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
    deaf += "time.sleep(600)"
    wire = connect(
        f"jump = subprocess.Popen([sys.executable, '-c', {deaf!r}], stdout=subprocess.PIPE)\n"
        "jump.stdout.readline()\n"
        "master = subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=2)\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "say(pids=[os.getpid(), jump.pid, master.pid])\n"
        "time.sleep(600)"
    )
    ssh, jump, master = wire.receive()["pids"]
    try:
        wire.close()
        wait_for(lambda: gone(ssh) and gone(jump), "ssh and its jump host's gone")
        assert not gone(master)  # of ControlMaster: the user's own
    finally:
        os.kill(master, signal.SIGKILL)


def test_a_master_that_keeps_stderr_open_is_not_waited_for(connect: Connect) -> None:
    """As ControlPersist leaves one behind."""
    wire = connect(
        "master = subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=2)\n"
        "say(pid=master.pid); sys.stderr.write('why\\n'); sys.exit(255)"
    )
    master = wire.receive()["pid"]
    try:
        began = time.monotonic()
        assert hung_up(wire) == (255, "why\n", "")
        wire.close()
        assert time.monotonic() - began < wires.GRACE
    finally:
        os.kill(master, signal.SIGKILL)


def test_a_far_side_that_is_done_is_not_killed(connect: Connect, tmp_path: Path) -> None:
    """It sees the end of its input, and may put its things in order."""
    wire = connect(
        f"say(result=1); sys.stdin.read(); time.sleep(0.2); open({str(tmp_path / 'end')!r}, 'w')"
    )
    assert wire.receive() == {"result": 1}
    wire.close()
    assert (tmp_path / "end").exists()


def test_every_call_can_be_cut_at_once(connect: Connect) -> None:
    """As an interrupted command does it, while threads wait for messages."""
    ends = []
    lines = [connect("say(a=1); time.sleep(600)") for _ in range(3)]
    for each in lines:
        each.receive()
    threads = [threading.Thread(target=lambda w=w: ends.append(hung_up(w))) for w in lines]
    for thread in threads:
        thread.start()
    wires.cut_all()
    for thread in threads:
        thread.join(PATIENCE)
    assert [end.status for end in ends] == [-signal.SIGTERM] * 3


def test_a_machine_without_ssh_is_told_what_to_install(tmp_path: Path) -> None:
    """Not that a file is missing."""
    with pytest.raises(Unreachable, match="there is no no-such-ssh on this machine") as caught:
        Wire(["no-such-ssh"], 1)
    assert "openssh-client" in str(caught.value)
    with pytest.raises(Unreachable, match="cannot be run: Permission denied"):
        Wire([str(tmp_path)], 1)
