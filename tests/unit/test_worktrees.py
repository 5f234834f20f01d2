"""What a person is told of worktrees: their disk use, and those that stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.fleet import agents, doctor, worktrees
from daemon.fleet.answers import Row
from daemon.fleet.output import Style
from tests.queues import FileBackend
from tests.repository import Repository, repository
from tests.workspace import Workspace


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """A queue in a workspace that is a repository; its worktrees are in ``worktrees``."""
    repository(Workspace(tmp_path))
    (tmp_path / ".git" / "info" / "exclude").write_text("/worktrees\n/locks\n")
    found = FileBackend(tmp_path, worktree=True)
    found.fill()
    return found


def test_the_disk_use_is_counted_within_its_time(backend: FileBackend) -> None:
    """Links are not followed; where time or entries run out it is "more than"."""
    assert worktrees.usage(backend.config) is None
    for task_id in ("T1", "T2"):
        folder = backend.folder / "worktrees" / task_id / "deep"
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"x" * 100_000)
        (folder / "link").symlink_to("/usr")
    found = worktrees.usage(backend.config)
    assert found
    assert found.whole
    assert found.number == 2
    assert 200_000 <= found.bytes < 300_000
    assert str(found).startswith("2 worktrees, 2")
    assert "more than" in str(worktrees.usage(backend.config, entries=1))
    assert "more than" in str(worktrees.usage(backend.config, seconds=0.0))


def test_a_status_shows_it_below_its_table_and_in_each_row() -> None:
    """A host's worktrees are said once; without any nothing is said."""
    used = worktrees.Usage(3, 12_400_000)._asdict()
    row = Row("localhost", "builder", "pidfile", "running", worktrees=used)
    style = Style(colour=False)
    said = agents.table([row, row._replace(role="tester")], style)
    assert said.endswith("\n\nlocalhost: 3 worktrees, 12.4 MB")
    assert json.loads(json.dumps(agents.as_json([row])))[0]["worktrees"]["bytes"] == 12_400_000
    assert "worktrees" not in agents.table([row._replace(worktrees=None)], style)


def test_the_doctor_lists_what_stays_and_why(backend: FileBackend) -> None:
    """Unmerged work of an ended task, and worktrees of tasks that the queue does not know."""
    repo = Repository(backend.folder)
    for name in ("T1", "T2", "T3"):
        repo.git("worktree", "add", "-q", "-b", f"agent/{name}", f"worktrees/{name}")
    Repository(backend.folder / "worktrees" / "T1").commit("work", x="x")
    backend.fill({"id": "T1", "status": "cancelled"}, {"id": "T3", "status": "ready"})
    first, second = worktrees.findings(backend.config)
    assert (first.state, second.state) == ("ok", "warn")
    assert first.what.startswith("3 worktrees, ")
    assert "T1 (agent/T1 is not merged); T2 (the queue has no such task)" in second.what
    assert "T3" not in second.what


def test_the_doctor_says_that_submodules_go_with_no_worktree(backend: FileBackend) -> None:
    """Before a task is blocked by it."""
    assert list(worktrees.findings(backend.config)) == []
    repo = Repository(backend.folder)
    repo.commit("a module", _gitmodules='[submodule "x"]\n\tpath = x\n\turl = ./x\n')
    (found,) = worktrees.findings(backend.config)
    assert (found.state, found.hint) == ("fail", "set worktree: false")


def test_a_role_that_only_merges_needs_neither_agent_nor_prompt(backend: FileBackend) -> None:
    """The doctor is content with it."""
    config = backend.config
    merging = config.roles["integrator"]._replace(merge=True, agent=None, gates=(("true",),))
    config = config._replace(roles={**config.roles, "integrator": merging}, supervisor="pidfile")
    found = [each for each in doctor.examine(config, role="integrator") if each.role]
    assert [(each.check, each.state) for each in found] == [("agent", "ok")]
    config = config._replace(roles={"integrator": merging._replace(gates=())}, run=("integrator",))
    found = [each for each in doctor.examine(config, role="integrator") if each.role]
    assert [(each.check, each.state) for each in found] == [("agent", "warn")]
