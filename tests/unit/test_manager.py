"""What a host lacks for units, as its programs tell it: stand-ins of them, first on PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon import transient
from daemon.fleet import journal, linger, manager
from daemon.fleet.connection import Local


class Programs:
    """A PATH with nothing on it but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def put(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(made.folder))
    return made


def test_without_systemctl_pid_files_are_proposed(programs: Programs) -> None:
    """It is no manager that does not run: what runs is unknown."""
    del programs
    problem = manager.manager_problem(Local())
    assert problem
    assert not isinstance(problem, manager.NoManager)
    assert problem.problems[0].what == "systemctl cannot be run: No such file or directory"
    assert problem.problems[0].hint == manager.OR_ELSE


def test_a_manager_that_answers_is_no_problem(programs: Programs) -> None:
    """And nothing else is asked."""
    programs.put("systemctl", "exit 0")
    assert manager.manager_problem(Local()) is None


def test_linger_that_cannot_be_asked_for_is_left_to_root(programs: Programs) -> None:
    """Without loginctl, and where it is refused, with its own words."""
    connection = Local()
    mend = f"As root: loginctl enable-linger {connection.user}"
    if linger.state(connection):
        pytest.skip(f"lingering of {connection.user} is on, on this host")
    said = linger.enable(connection)
    assert said.startswith("lingering is off (loginctl cannot be run: No such file or directory)")
    assert said.endswith(mend)
    programs.put("loginctl", "echo Could not enable linger: Access denied. >&2; exit 1")
    said = linger.enable(connection)
    assert said.startswith("lingering is off (Could not enable linger: Access denied): ")
    assert said.endswith(mend)


def test_a_journal_that_may_not_be_read(programs: Programs, tmp_path: Path) -> None:
    """One on disk is its group's; one in memory is root's alone, until it is kept."""
    connection = Local()
    programs.put("journalctl", "echo No journal files were opened. >&2; exit 1")
    on_disk = journal.problem(connection, str(tmp_path))
    in_memory = journal.problem(connection, str(tmp_path / "none"))
    assert on_disk
    assert in_memory
    assert on_disk.problems[0].hint.startswith("as root: usermod --append --groups")
    assert in_memory.problems[0].hint == journal.KEEP
    programs.put("journalctl", "exit 0")
    assert journal.problem(connection, str(tmp_path)) is None


def test_another_account_s_runtime_folder_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its bus; our own folder is, wherever it is."""
    usual = f"/run/user/{os.getuid()}"
    assert transient.runtime_dir("") == transient.runtime_dir(f"{tmp_path}/none") == usual
    ours = tmp_path / "runtime"
    (ours / "systemd").mkdir(parents=True)
    assert transient.runtime_dir(str(ours)) == str(ours)
    if os.getuid():
        assert transient.runtime_dir("/") == usual
    else:
        os.chown(ours, 2000, 2000)
        assert transient.runtime_dir(str(ours)) == usual
        os.chown(ours, 0, 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(ours))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={ours},guid=1")
    assert transient.environment()["DBUS_SESSION_BUS_ADDRESS"] == f"unix:path={ours},guid=1"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={ours}/none")
    assert "DBUS_SESSION_BUS_ADDRESS" not in transient.environment()
