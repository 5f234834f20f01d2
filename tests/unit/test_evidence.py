"""The result file: what an agent may say of itself, and what hostile files get."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon import evidence, history
from daemon.config import Role
from daemon.errors import RolecallError
from daemon.lifecycle import DEFAULT_ROLES
from daemon.model import Lease, Outcome, Result
from daemon.verdict import of_command

ROW = DEFAULT_ROLES["builder"]
BUILDER = Role("builder", **{**ROW, "claims": tuple(ROW["claims"])}, agent="claude", model="m")
LEASE = Lease("T1", "builder", "me", "", 60.0, "", token=7, attempt=2)


def kept(folder: Path, result: Result, secrets: tuple[str, ...] = ()) -> dict[str, Any]:
    """What stands in result.json once an attempt that came to this has kept its verdict."""
    said = evidence.claimed(str(folder), secrets)
    assert not evidence.keep(
        str(folder), evidence.final(result, said, LEASE, BUILDER, 1.5), secrets
    )
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert found.pop("ended_at").endswith("Z")
    return found


OURS = {
    "role": "builder",
    "attempt": 2,
    "token": 7,
    "agent": "claude",
    "model": "m",
    "seconds": 1.5,
}


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
        "denied": False,
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
    assert of_command(status, claim).outcome == outcome


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


def test_the_verdict_takes_the_place_of_what_the_agent_wrote(tmp_path: Path) -> None:
    """What counted, with all that came with it; a claim that did not count is still seen."""
    said = {"outcome": "success", "status": "awaiting_test", "note": "it works"}
    (tmp_path / "result.json").write_text(json.dumps(said))
    result = Result(Outcome.REJECTED, "gate failed", usage={"cost_usd": 0.5}, session="s", gate=2)
    assert kept(tmp_path, result) == {
        "outcome": "rejected",
        "note": "gate failed",
        "usage": {"cost_usd": 0.5},
        "gate": 2,
        "claimed": said,
        "session": "s",
        **OURS,
    }


def test_a_claim_that_counted_is_told_once(tmp_path: Path) -> None:
    """Nothing is said twice, and an agent without a file has claimed nothing."""
    said = {"outcome": "success", "status": "awaiting_test", "note": "é", "artifacts": ["a"]}
    (tmp_path / "result.json").write_text(json.dumps({**said, "add_tasks": [{"id": "N"}]}))
    result = evidence.read_result(str(tmp_path))
    assert result
    assert kept(tmp_path, result) == {**said, "add_tasks": [{"id": "N"}], **OURS}
    (tmp_path / "2").mkdir()
    assert kept(tmp_path / "2", Result(Outcome.ERROR, "timed out", add_tasks=({"id": "N"},))) == {
        "outcome": "error",
        "note": "timed out",
        **OURS,
    }


def test_a_status_that_an_agent_asks_for_is_weighed(tmp_path: Path) -> None:
    """As the queue does: one of the role's own stands for an outcome, any other is an error."""
    found = kept(tmp_path, Result(Outcome.SUCCESS, "x", status="needs_adapt"))
    assert (found["outcome"], found["status"]) == ("rejected", "needs_adapt")
    found = kept(tmp_path, Result(Outcome.SUCCESS, "x", status="done"))
    assert found["outcome"] == "error"
    assert "'done'" in found["note"]
    assert "status" not in found


@pytest.mark.parametrize(
    "kind", ["symlink", "fifo", "folder", "full folder", "large", "broken", "all names"]
)
def test_what_an_agent_laid_there_is_set_aside(tmp_path: Path, kind: str) -> None:
    """The verdict is kept all the same, nothing is written through a link, and people can look.

    Broken once by renaming over it: a folder kept the verdict out.
    """
    run = tmp_path / "run"
    path, aside = run / "result.json", run / "result.json.refused"
    (tmp_path / "victim").write_text("whole")
    run.mkdir()
    match kind:
        case "symlink":
            path.symlink_to("../victim")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "full folder":
            path.mkdir()
            (path / "x").write_text("")
            aside.write_text("")
        case "large":
            path.write_text("x" * (evidence.RESULT_BYTES + 1))
        case "broken":
            path.write_text('{"outcome": ')
        case _:
            path.write_text("x")
            (aside / "y").mkdir(parents=True)
    assert kept(run, Result(Outcome.ERROR, "result file: bad"))["outcome"] == "error"
    assert (tmp_path / "victim").read_text() == "whole"
    assert len(list(run.iterdir())) == (3 if kind in {"full folder", "all names"} else 2)
    assert oct(path.stat().st_mode)[-3:] == "600"


def test_secrets_are_masked_in_what_is_kept(tmp_path: Path) -> None:
    """In notes of ours, in the agent's tasks, and in what was claimed."""
    said = {"outcome": "success", "note": "with hunter2-hunter2"}
    (tmp_path / "result.json").write_text(json.dumps(said))
    result = Result(
        Outcome.REJECTED, "gate hunter2-hunter2", add_tasks=({"id": "hunter2-hunter2"},)
    )
    found = kept(tmp_path, result, ("hunter2-hunter2",))
    assert "hunter2" not in str(found)
    assert (found["note"], found["claimed"]["note"]) == ("gate ***", "with ***")


def test_what_cannot_be_json_is_left_out(tmp_path: Path) -> None:
    """Half a character is escaped; endless numbers and depths cost their own key alone."""
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    note = "half \ud800"
    found = kept(tmp_path, Result(Outcome.SUCCESS, note, add_tasks=({"id": "N", "x": deep},)))
    assert found == {"outcome": "success", "note": note, **OURS}
    found = kept(tmp_path, Result(Outcome.SUCCESS, add_tasks=({"x": float("nan")},)))
    assert "add_tasks" not in found


def test_a_disk_that_is_full_keeps_no_half_of_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, nothing is raised, and what stood there before is still whole."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "result.json").write_text('{"note": "mine"}')
    document = evidence.final(Result(Outcome.ERROR), None, LEASE, BUILDER, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        assert evidence.keep(str(tmp_path), document) == "No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == '{"note": "mine"}'
    assert evidence.keep(str(tmp_path / "gone"), document) == "No such file or directory"
    (tmp_path / "link").symlink_to(tmp_path)
    assert evidence.keep(str(tmp_path / "link"), document)


def test_what_was_kept_is_read_back(tmp_path: Path) -> None:
    """History understands what evidence writes."""
    run = tmp_path / "T1" / "7"
    run.mkdir(parents=True)
    result = Result(Outcome.REJECTED, "no", usage={"cost_usd": 0.5}, session="s", gate=1)
    kept(run, result)
    (past,) = history.verdicts(str(tmp_path), "T1")
    assert (past.token, past.role, past.attempt, past.outcome) == (7, "builder", 2, "rejected")
    assert (past.gate, past.usage, past.session, past.seconds) == (1, {"cost_usd": 0.5}, "s", 1.5)
