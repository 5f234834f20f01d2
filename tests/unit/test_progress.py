"""The line on a terminal that says who is waited for."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.fleet.progress import CLEAR, Progress
from tests.farhosts import FarHosts
from tests.workspace import ROOT


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_it_says_who_is_waited_for() -> None:
    """How many are done, of how many, and the names of the rest; cleared, nothing is left of it."""
    stream = Terminal()
    progress = Progress(stream, ["web1", "web2", "web3"], {"TERM": "xterm"})
    progress.done("web2")
    progress.draw()
    progress.clear()
    progress.clear()
    assert stream.getvalue() == f"{CLEAR}1 of 3 hosts; waiting for web1, web3{CLEAR}"


def test_it_fits_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps could not be cleared; names are escaped."""
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    Progress(stream, ["a\x1b[2J", *(f"web{n}" for n in range(100))], {"TERM": "xterm"}).draw()
    drawn = stream.getvalue().removeprefix(CLEAR)
    assert len(drawn) <= 39
    assert "\\x1b[2J" in drawn


@pytest.mark.parametrize(
    ("stream", "term"),
    [(io.StringIO(), "xterm"), (Terminal(), "dumb"), (Terminal(), ""), (None, "xterm")],
    ids=["pipe", "dumb", "no TERM", "none"],
)
def test_elsewhere_there_is_none(stream: io.StringIO | None, term: str) -> None:
    """Not in a pipe, a log, or on a terminal that cannot take it back."""
    progress = Progress(stream, ["web1"], {"TERM": term})
    progress.draw()
    progress.clear()
    assert stream is None or stream.getvalue() == ""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[FarHosts]:
    """Two hosts, of which the second takes its time to log in."""
    hosts = FarHosts(tmp_path, "web1", "web2")
    ssh = tmp_path / "bin" / "ssh"
    wait = f'[ "$host" = web1 ] || until [ -e {tmp_path}/go ]; do sleep 0.05; done\n'
    text = ssh.read_text()
    ssh.write_text(text.replace("cat | HOME=", f"{wait}cat | HOME="))
    yield hosts
    hosts.do("uninstall")


def test_a_terminal_shows_it_and_keeps_nothing_of_it(slow: FarHosts, tmp_path: Path) -> None:
    """While one host is waited for; what is printed never shares a line with it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "invoke", "install"]
    environ = {**slow.environ, "TERM": "xterm", "NO_COLOR": "1"}
    said = b""
    with subprocess.Popen(
        command, cwd=ROOT, env=environ, stdin=theirs, stdout=theirs, stderr=theirs
    ) as typed:
        os.close(theirs)
        while b"waiting for web2\r\n" not in said and b"1 of 2 hosts; waiting for web2" not in said:
            said += os.read(ours, 4096)
        (tmp_path / "go").touch()
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:  # how Linux says that the terminal has no other end any more
            pass
    os.close(ours)
    assert typed.returncode == 0
    lines = said.decode().split("\r\n")
    shown = [line.rpartition("\x1b[K")[2] for line in lines]
    assert [line for line in shown if "waiting" in line] == []
    assert sum(": created ~/.config" in line for line in shown) == 2
