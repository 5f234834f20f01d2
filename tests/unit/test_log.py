"""State changes, once each, for a person and for a program."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from daemon import log
from daemon.log import Log
from daemon.model import Move

MOVE = Move("T1", "builder", "ready", "in_progress", "claimed", attempt=1, token=4, seconds=2.0)


def test_a_move_is_a_line_and_a_json_object(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same facts in both files, and on stderr."""
    Log(str(tmp_path), "builder", "h:builder").tell([MOVE])
    line = (tmp_path / "builder.log").read_text()
    assert line.endswith("builder T1: ready -> in_progress (attempt 1, token 4, 2.0 s): claimed\n")
    assert capfd.readouterr().err == line
    event = json.loads((tmp_path / "events.jsonl").read_text())
    expected = {
        "task": "T1",
        "from": "ready",
        "to": "in_progress",
        "token": 4,
        "owner": "h:builder",
    }
    assert expected.items() <= event.items()


def test_a_line_begins_with_the_time_in_utc(tmp_path: Path, mocker: MockerFixture) -> None:
    """RFC 3339 to the millisecond, wherever the machine stands."""
    mocker.patch("time.time", return_value=1_800_000_000.25)
    Log(str(tmp_path), "builder", "h").say("started")
    assert (tmp_path / "builder.log").read_text() == "2027-01-15T08:00:00.250Z builder started\n"


def test_json_on_stderr_where_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--log-format json."""
    Log(str(tmp_path), "builder", "h", form="json").say("started")
    assert json.loads(capfd.readouterr().err)["message"] == "started"


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    """A task's text drives no terminal and forges no line."""
    Log(str(tmp_path), "builder", "h").say("a\x1b[2J\nb")
    assert (tmp_path / "builder.log").read_text().endswith(" builder a\\x1b[2J\\nb\n")


def test_what_lasts_is_said_once(tmp_path: Path) -> None:
    """A queue that stays broken is one line, and one more when it breaks anew."""
    said = Log(str(tmp_path), "builder", "h")
    for text in ("bad", "worse", "bad", "worse", "", "", "bad"):
        said.once("queue", text)
    told = (tmp_path / "builder.log").read_text()
    assert (told.count("bad"), told.count("worse")) == (2, 1)


def test_a_move_is_told_in_the_name_of_its_role(tmp_path: Path) -> None:
    """A process of several roles (--once) leaves each role's story in that role's log."""
    Log(str(tmp_path), "all", "h").tell([MOVE])
    assert " builder T1: " in (tmp_path / "builder.log").read_text()
    assert not (tmp_path / "all.log").exists()


def test_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log does not grow for ever; one older file is kept."""
    monkeypatch.setattr(log, "ROTATE_BYTES", 100)
    said = Log(str(tmp_path), "builder", "h")
    for number in range(9):
        said.say(f"line {number}")
    assert (tmp_path / "builder.log.1").exists()
    assert sum(len(each.read_text()) for each in tmp_path.glob("builder.log*")) < 500


def test_many_moves_are_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a line of its own, whole; the file rotates on the way, and no line is lost by it."""
    monkeypatch.setattr(log, "ROTATE_BYTES", 40_000)
    ids = [f"T{number}" for number in range(300)]
    said = Log(str(tmp_path), "builder", "h", form="none")
    said.tell([Move(each, "", "", "ready", "imported") for each in ids])
    parts = [(tmp_path / f"events.jsonl{end}").read_text() for end in (".1", "")]
    assert [json.loads(line)["task"] for part in parts for line in part.splitlines()] == ids
    assert len((tmp_path / "builder.log").read_text().splitlines()) == len(ids)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """Logging is never the reason for a worker to end."""
    (tmp_path / "file").write_text("")
    Log(str(tmp_path / "file"), "builder", "h").say("started")


def test_a_new_task_comes_from_nowhere(tmp_path: Path) -> None:
    """Every event of a task has the keys ``from`` and ``to``; a dead one's is told in its name."""
    said = Log(str(tmp_path), "builder", "h")
    said.tell([Move("T1", "", "", "ready", "added")], "the dead")
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert (event["task"], event["from"], event["to"], event["owner"]) == (
        "T1",
        None,
        "ready",
        "the dead",
    )
    assert (tmp_path / "builder.log").read_text().endswith(" builder T1: ready: added\n")


def in_children(count: int, run: Callable[[int], None]) -> list[int]:
    """Run it in so many processes at once; their exit statuses."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                run(number)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_processes_that_rotate_at_once_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes the older file is always a full one, and every line of it is whole.

    Broken once by appending without the lock: this failed.
    """
    monkeypatch.setattr(log, "ROTATE_BYTES", 3000)
    older = tmp_path / "builder.log.1"

    def run(number: int) -> None:
        said = Log(str(tmp_path), "builder", "h")
        for line in range(300):
            said.say(f"process {number}, line {line}")
            if older.exists():
                text = older.read_text()
                assert len(text) > log.ROTATE_BYTES
                assert all("line" in each for each in text.splitlines())

    assert in_children(4, run) == [0, 0, 0, 0]
    assert older.exists()


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """What does not fit is left out, and when there is room again the next line is whole.

    Broken once by leaving what a short write had written: this failed.
    """
    events = tmp_path / "events.jsonl"

    def run(_number: int) -> None:
        said = Log(str(tmp_path), "builder", "h")
        said.say("before")
        room = events.stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        said.say("meanwhile")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        said.say("after")

    assert in_children(1, run) == [0]
    told = [json.loads(line)["message"] for line in events.read_text().splitlines()]
    assert told == ["before", "after"]


def test_half_a_line_of_another_is_glued_to_none(tmp_path: Path) -> None:
    """Whatever ended in the middle of a line, ours begins on one of its own."""
    (tmp_path / "builder.log").write_text("half")
    Log(str(tmp_path), "builder", "h").say("started")
    half, ours = (tmp_path / "builder.log").read_text().splitlines()
    assert (half, ours.endswith("builder started")) == ("half", True)


def test_a_log_that_somebody_locked_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that froze in the middle of an append stops no other; only nothing is rotated."""
    monkeypatch.setattr(log, "ROTATE_BYTES", 10)
    monkeypatch.setattr(log, "LOCK_WAIT", 0.01)
    path = tmp_path / "builder.log"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Log(str(tmp_path), "builder", "h").say("started")
    assert path.read_text().endswith("started\n")
    assert not (tmp_path / "builder.log.1").exists()


def test_standard_error_that_is_the_log_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under pid files it is: nothing is told twice, and after a rotation it is the fresh file.

    Broken once by not following: this failed.
    """
    monkeypatch.setattr(log, "ROTATE_BYTES", 100)
    path = tmp_path / "builder.log"

    def run(_number: int) -> None:
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        said = Log(str(tmp_path), "builder", "h")
        for number in range(10):
            said.say(f"line {number}")
        os.write(2, b"a traceback\n")

    assert in_children(1, run) == [0]
    assert path.read_text().endswith("line 9\na traceback\n")
    lines = [
        each for file in tmp_path.glob("builder.log*") for each in file.read_text().splitlines()
    ]
    assert len(lines) == len(set(lines))


def test_a_full_disk_under_standard_error_glues_no_lines(tmp_path: Path) -> None:
    """Half a line stays alone there, and the process still ends with its own exit status.

    Broken once by forgetting that the last line was cut: this failed.
    """
    path = tmp_path / "err"

    def run(_number: int) -> None:
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        said = Log(str(tmp_path / "no" / "logs"), "builder", "h")
        said.say("before")
        room = path.stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        said.say("meanwhile")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        said.say("after")

    assert in_children(1, run) == [0]
    first, half, last = path.read_text().splitlines()
    assert (first.endswith(" before"), len(half), last.endswith(" after")) == (True, 20, True)


def test_a_reader_that_does_not_read_stops_nobody(tmp_path: Path) -> None:
    """Standard error is a full pipe: the line is in the files, and the next one waits no more.

    Broken once by writing all the same: the process hung, with the queue's lock in hand.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(write, b"x" * 4096):
            pass
    os.set_blocking(write, True)
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 2)
        said = Log(str(tmp_path), "builder", "h")
        for number in range(20):
            said.say(f"line {number} " + "y" * 9000)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len((tmp_path / "builder.log").read_text().splitlines()) == 20
    os.close(read)
    os.close(write)


def test_a_journal_that_does_not_read_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is full: the events go to the files instead.

    Broken once by waiting for it: this hung.
    """
    address = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(address)
        monkeypatch.setattr(log, "JOURNAL", address)
        said = Log(str(tmp_path), "builder", "h", form="none", unit="agent-builder.service")
        count = 1000
        for _ in range(count):
            said.tell([MOVE])
    told = (tmp_path / "events.jsonl").read_text().splitlines()
    assert 0 < len(told) < count
