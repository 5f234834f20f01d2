"""What earlier attempts left: verdicts and failed output are read, whatever an agent put there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon import history
from daemon.history import Past


def run(runs: Path, token: int, **said: Any) -> Path:
    """A run folder with a verdict."""
    folder = runs / "T1" / str(token)
    folder.mkdir(parents=True)
    if said:
        document = {"token": token, "role": "builder", "attempt": 1, "note": "", **said}
        (folder / "result.json").write_text(json.dumps(document))
    return folder


def test_attempts_are_told_in_the_order_of_their_tokens(tmp_path: Path) -> None:
    """By number and not by name, only those before a token, and only the last ones."""
    for token in range(1, 14):
        run(tmp_path, token, outcome="error", note=f"n{token}")
    (tmp_path / "T1" / "x").mkdir()
    (tmp_path / "T1" / "007").mkdir()
    (tmp_path / "T1" / "2.txt").write_text("")
    found = history.read(str(tmp_path), "T1", before=13)
    assert [past.token for past in found] == list(range(3, 13))
    assert found[-1].note == "n12"
    assert [past.token for past in history.verdicts(str(tmp_path), "T1")] == list(range(1, 14))
    assert [past.token for past in history.verdicts(str(tmp_path), "T1", 1)] == [13]
    assert history.read(str(tmp_path), "T2") == []


def test_the_gate_that_failed_and_the_conflict_are_read(tmp_path: Path) -> None:
    """The log of that gate's number alone, its end; of a conflict the beginning.

    Broken once by reading the first log, and once by the log's beginning.
    """
    folder = run(tmp_path, 1, outcome="rejected", gate=2)
    (folder / "gate-1.log").write_text("passed")
    (folder / "gate-2.log").write_text("start" + "é" * history.TAIL + "\nE  assert 1 == 2\n")
    (folder / "conflict.txt").write_text("<<<<<<< ours" + "x" * history.CONFLICT)
    (past,) = history.read(str(tmp_path), "T1")
    assert past.output.endswith("\nE  assert 1 == 2")
    assert past.output.startswith("[the beginning is left out]\né")
    assert len(past.output.encode()) < history.TAIL + 100
    assert past.conflict.startswith("<<<<<<< ours")
    assert past.conflict.endswith("\n[the rest is left out]")
    assert len(past.conflict) < history.CONFLICT + 100


def test_output_is_text_that_drives_nothing(tmp_path: Path) -> None:
    """Valid UTF-8, no control characters, no colours; lines and tabs stay."""
    folder = run(tmp_path, 1, outcome="rejected", gate=1)
    hostile = b"\x1b[31mred\x1b[0m\x1b]0;owned\x07\tand \xff\x00\x9b2J\r\nnext\rlast\xe2\x80\xae"
    (folder / "gate-1.log").write_bytes(hostile)
    (past,) = history.read(str(tmp_path), "T1")
    assert past.output == "red\tand \ufffd\ufffd2J\nnext\nlast"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        '{"outcome": "success", "note": "as an agent says it"}',
        '{"outcome": "success", "token": 2}',
        '{"outcome": "great", "token": 1}',
        '{"outcome": ["success"], "token": 1}',
        "[" * 100_000,
    ],
    ids=range(8),
)
def test_what_is_no_verdict_of_the_token_says_nothing(tmp_path: Path, text: str) -> None:
    """An agent's own file, a copy of another attempt's and rubbish alike."""
    folder = run(tmp_path, 1)
    (folder / "result.json").write_text(text)
    assert history.read(str(tmp_path), "T1") == [Past(1)]


def test_values_of_wrong_kinds_are_left_out(tmp_path: Path) -> None:
    """A verdict that somebody edited still tells what is right in it."""
    run(
        tmp_path,
        1,
        outcome="error",
        note=["x"],
        attempt="many",
        gate=-1,
        seconds=1e400,
        usage={"input_tokens": "1", "cost_usd": 2},
        claimed={"outcome": 7, "note": "n\x1b[2J"},
        role=None,
    )
    (past,) = history.read(str(tmp_path), "T1")
    assert past == Past(1, outcome="error", usage={"cost_usd": 2}, claimed={"note": "n"})


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "run link", "task link", "file"])
def test_what_lies_in_the_way_is_not_followed(tmp_path: Path, kind: str) -> None:
    """Nothing hangs, nothing of another place is told, and the other attempts are."""
    runs, secret = tmp_path / "runs", tmp_path / "secret"
    secret.mkdir()
    (secret / "conflict.txt").write_text("swordfish")
    verdict = {"token": 1, "outcome": "rejected", "gate": 1, "note": "swordfish"}
    (secret / "result.json").write_text(json.dumps(verdict))
    folder = run(runs, 2, outcome="error", gate=1)
    match kind:
        case "symlink":
            (folder / "gate-1.log").symlink_to(secret / "conflict.txt")
            (folder / "conflict.txt").symlink_to(secret / "conflict.txt")
        case "fifo":
            os.mkfifo(folder / "gate-1.log")
            (runs / "T1" / "1").mkdir()
            os.mkfifo(runs / "T1" / "1" / "result.json")
        case "folder":
            (folder / "gate-1.log").mkdir()
        case "run link":
            (runs / "T1" / "1").symlink_to(secret)
        case "task link":
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "T1").symlink_to(runs / "T1")
            assert history.read(str(tmp_path / "other"), "T1") == []
        case _:
            (runs / "T1" / "1").write_text("")
    found = history.read(str(runs), "T1")
    assert found[-1] == Past(2, "builder", 1, "error", gate=1)
    assert "swordfish" not in str(found)
