"""The result file: what an agent may say of itself, and what hostile files get."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon import evidence
from daemon.attempt import judge
from daemon.errors import RolecallError
from daemon.model import Outcome, Result


def test_no_file_says_nothing(tmp_path: Path) -> None:
    """An agent need not write one."""
    assert evidence.read_result(str(tmp_path)) is None


def test_everything_that_may_be_said(tmp_path: Path) -> None:
    """Each documented key arrives."""
    said = {
        "outcome": "throttled",
        "status": "needs_manual",
        "note": "later",
        "artifacts": ["a.txt"],
        "add_tasks": [{"id": "N1"}],
        "retry_after": 60,
        "usage": {"input_tokens": 1, "output_tokens": 2, "cost_usd": 0.5},
    }
    (tmp_path / "result.json").write_text(json.dumps(said))
    result = evidence.read_result(str(tmp_path))
    assert result is not None
    assert result._asdict() == {
        **said,
        "artifacts": ("a.txt",),
        "add_tasks": ({"id": "N1"},),
        "changes": None,
        "session": "",
        "gate": 0,
    }


@pytest.mark.parametrize(
    "said",
    [
        [],
        "success",
        {"outcome": "lost"},
        {"outcome": "released"},
        {"outcome": "great"},
        {"outcome": ["success"]},
        {"status": 7},
        {"retry_after": -1},
        {"retry_after": True},
        {"retry_after": 1e12},
        {"add_tasks": {}},
        {"add_tasks": ["T"]},
        {"usage": {"cost_usd": "1"}},
        {"outcme": "success"},
    ],
)
def test_bad_forms_are_refused(said: Any) -> None:
    """Whatever has not the form of a result is an error, never a success."""
    with pytest.raises(RolecallError):
        evidence.parse_result(said)


@pytest.mark.parametrize(
    "kind", ["symlink", "fifo", "folder", "large", "broken", "deep", "not utf-8"]
)
def test_hostile_files_are_refused(tmp_path: Path, kind: str) -> None:
    """Anything but a regular JSON file of at most 1 MiB is refused, and nothing hangs."""
    path = tmp_path / "result.json"
    match kind:
        case "symlink":
            (tmp_path / "other").write_text("{}")
            path.symlink_to("other")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "large":
            path.write_text(json.dumps({"note": "x" * evidence.RESULT_BYTES}))
        case "broken":
            path.write_text('{"outcome": ')
        case "deep":
            path.write_text("[" * 100_000)
        case _:
            path.write_bytes(b'{"note": "\xff"}')
    with pytest.raises(RolecallError):
        evidence.read_result(str(tmp_path))


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    """A link laid in the run's folder does not lead our writes elsewhere."""
    (tmp_path / "prompt.md").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        evidence.write_new(str(tmp_path), "prompt.md", "x")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("status", "said", "outcome"),
    [
        (0, None, "success"),
        (0, "rejected", "rejected"),
        (0, "error", "error"),
        (1, None, "error"),
        (1, "success", "error"),
        (1, "rejected", "rejected"),
        (-9, None, "error"),
        (75, None, "throttled"),
        (78, None, "blocked"),
        (78, "success", "blocked"),
    ],
)
def test_the_worse_of_exit_status_and_claim_counts(
    status: int, said: str | None, outcome: str
) -> None:
    """Nothing an agent says turns a failed exit status into success."""
    claim = Result(Outcome(said)) if said else None
    assert judge(status, claim).outcome == outcome


def test_a_disk_that_is_full_loses_no_masked_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the agent said is known by then; its file is written anew where there is room.

    Broken once by letting the error out: a finished attempt became an error.
    """

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "result.json"
    path.write_text('{"note": "used hunter2-hunter2"}')
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", full)
        found = evidence.read_result(str(tmp_path), ["hunter2-hunter2"])
    assert found is not None
    assert (found.outcome, found.note) == (Outcome.SUCCESS, "used ***")
    evidence.read_result(str(tmp_path), ["hunter2-hunter2"])
    assert path.read_text() == '{"note": "used ***"}'
