"""Pid files that fool nobody, and sd_notify."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from daemon import process
from daemon.service import Notifier, PidFile


def test_a_pid_file_names_its_writer_while_it_runs(tmp_path: Path) -> None:
    """Two lines: pid and start time; removed by its writer."""
    file = PidFile(str(tmp_path / "pids" / "builder.pid"))
    file.write()
    me = process.identity()
    assert Path(file.path).read_text() == f"{me.pid}\n{me.pid_started}\n"
    assert file.running() == os.getpid()
    file.remove()
    assert not Path(file.path).exists()


def test_a_pid_file_that_was_never_put_in_place_is_removed(tmp_path: Path) -> None:
    """By the next writer; that of a living one, and other files, are left alone."""
    for name in (f"w.pid.{2**22 + 1}.tmp", "w.pid.1.tmp", "w.pid.notes.tmp", "x.pid.1.tmp"):
        (tmp_path / name).touch()
    PidFile(str(tmp_path / "w.pid")).write()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"w.pid", "w.pid.1.tmp", "w.pid.notes.tmp", "x.pid.1.tmp"}


def test_a_reused_or_unproven_pid_is_not_trusted(tmp_path: Path) -> None:
    """A pid whose start time differs or is missing, or that never was, is nobody's."""
    file = PidFile(str(tmp_path / "builder.pid"))
    me = process.identity()
    for text in (
        f"{me.pid}\n{me.pid_started + 1}\n",
        f"{me.pid}\n",
        f"{me.pid} x\n",
        f"{2**22 + 1}\n1\n",
        "-1\n1\n",
        "",
    ):
        Path(file.path).write_text(text)
        assert file.running() == 0, text
        file.remove()
        assert Path(file.path).exists()


def test_notifies_and_takes_the_socket_out_of_the_environment(tmp_path: Path) -> None:
    """What is said arrives; a status is said once; agents inherit no socket to speak on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "120000000"}
        notifier = Notifier(environ)
        assert environ == {}
        assert notifier.watchdog == 60
        notifier.send("READY=1", "STATUS=started")
        assert listener.recv(100) == b"READY=1\nSTATUS=started"
        notifier.status("idle")
        notifier.status("idle")
        notifier.status("busy")
        assert [listener.recv(100), listener.recv(100)] == [b"STATUS=idle", b"STATUS=busy"]


def test_a_watchdog_for_another_process_is_not_ours() -> None:
    """WATCHDOG_PID names whom the supervisor means."""
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog is None
