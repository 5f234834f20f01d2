"""State changes, once each, for a person and for a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from daemon import log
from daemon.log import Log
from daemon.model import Move

MOVE = Move("T1", "builder", "ready", "in_progress", "claimed", attempt=1, token=4, seconds=2.0)


def test_a_move_is_a_line_and_a_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same facts in both files, and on stderr."""
    Log(str(tmp_path), "builder", "h:builder").move(MOVE)
    line = (tmp_path / "builder.log").read_text()
    assert line.endswith("builder T1: ready -> in_progress (attempt 1, token 4, 2.0 s): claimed\n")
    assert capsys.readouterr().err == line
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


def test_json_on_stderr_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--log-format json."""
    Log(str(tmp_path), "builder", "h", form="json").say("started")
    assert json.loads(capsys.readouterr().err)["message"] == "started"


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    """A task's text drives no terminal and forges no line."""
    Log(str(tmp_path), "builder", "h").say("a\x1b[2J\nb")
    assert (tmp_path / "builder.log").read_text().endswith(" builder a\\x1b[2J\\nb\n")


def test_what_lasts_is_said_once(tmp_path: Path) -> None:
    """A queue that stays broken is one line, and one more when it breaks anew."""
    said = Log(str(tmp_path), "builder", "h")
    for text in ("bad", "bad", "", "", "bad"):
        said.once("queue", text)
    assert (tmp_path / "builder.log").read_text().count("bad") == 2


def test_a_move_is_told_in_the_name_of_its_role(tmp_path: Path) -> None:
    """A process of several roles (--once) leaves each role's story in that role's log."""
    Log(str(tmp_path), "all", "h").move(MOVE)
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


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """Logging is never the reason for a worker to end."""
    (tmp_path / "file").write_text("")
    Log(str(tmp_path / "file"), "builder", "h").say("started")


def test_a_new_task_comes_from_nowhere(tmp_path: Path) -> None:
    """Every event of a task has the keys ``from`` and ``to``; a dead one's is told in its name."""
    said = Log(str(tmp_path), "builder", "h")
    said.move(Move("T1", "", "", "ready", "added"), "the dead")
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert (event["task"], event["from"], event["to"], event["owner"]) == (
        "T1",
        None,
        "ready",
        "the dead",
    )
    assert (tmp_path / "builder.log").read_text().endswith(" builder T1: ready: added\n")
