"""A task's worktree: one attempt has it at a time, and it is on its branch or says why not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from daemon import fingerprint, state
from daemon.config import Config
from daemon.errors import Interrupted
from daemon.git import Git, GitError
from daemon.reclaim import GONE, reclaim
from daemon.repository import git, title_of
from daemon.worktree import Worktree
from tests.queues import FileBackend
from tests.repository import Repository, repository
from tests.workspace import Workspace


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """A queue in a workspace that is a repository."""
    repository(Workspace(tmp_path))
    ours = "/worktrees\n/locks\n/leases\n/runs\n/SPRINT_QUEUE*\n"
    (tmp_path / ".git" / "info" / "exclude").write_text(ours)
    found = FileBackend(tmp_path, worktree=True)
    found.fill()
    return found


@pytest.fixture
def config(backend: FileBackend) -> Config:
    return backend.config


def prepared(config: Config, task_id: str = "T1", commit: object = None) -> Worktree:
    found = Worktree(Git(), config, task_id)
    found.prepare(commit)
    return found


def inside(worktree: Worktree) -> Repository:
    return Repository(Path(worktree.path))


def test_two_attempts_never_share_one(config: Config) -> None:
    """The second waits until the first has let go of it, or has died; it renews meanwhile."""
    first = prepared(config)
    beats: list[float] = []

    def tick() -> float:
        beats.append(time.monotonic())
        return 0.05

    late = Worktree(Git(tick, deadline=time.monotonic() + 0.3), config, "T1")
    with pytest.raises(Interrupted):
        late.prepare()
    assert len(beats) > 2
    other = prepared(config, "T2")
    other.release()
    first.release()
    prepared(config).release()


def test_what_a_killed_git_locked_is_unlocked(config: Config) -> None:
    """Nobody else works in a task's worktree."""
    first = prepared(config)
    for name in ("index.lock", "HEAD.lock"):
        Path(first.folder, name).touch()
    Path(first.common, "refs", "heads", "agent", "T1.lock").touch()
    first.release()
    again = prepared(config)
    inside(again).write("x", "x\n")
    again.commit("x")
    assert inside(again).git("log", "-1", "--format=%s %an") == "x Rolecall agent"


def test_what_another_host_did_is_missed_not_begun_anew(config: Config) -> None:
    """The hosts of one queue have clones of their own: a tester must not pass what is not there.

    With a file such a commit is only one that was thrown away: the work begins anew.
    """
    elsewhere = "1234567890" * 4
    shared = config._replace(queue="postgresql://db.example.com/shop")
    with pytest.raises(GitError, match="T1 is not in this clone: 123456789012, which is on agent"):
        prepared(shared, commit=elsewhere)
    prepared(config, "T2", commit=elsewhere).release()


def test_it_comes_back_from_where_a_killed_attempt_has_left_it(config: Config) -> None:
    """A rebase and a branch that holds nothing of its own end; what would be lost is named."""
    tree = prepared(config)
    repo = inside(tree)
    repo.commit("mine", readme_txt="mine\n")
    head = tree.head()
    tree.release()
    main = Repository(Path(config.workspace))
    main.commit("main's", readme_txt="main\n")
    repo.git("rebase", "main", check=False)
    assert repo.git("symbolic-ref", "-q", "HEAD", check=False) == ""
    tree = prepared(config)
    assert (tree.head(), tree.present()) == (head, "agent/T1")
    tree.release()
    repo.git("checkout", "-q", "--detach")
    prepared(config).release()
    assert repo.git("symbolic-ref", "--short", "HEAD") == "agent/T1"
    repo.git("checkout", "-q", "-b", "other")
    repo.commit("elsewhere")
    with pytest.raises(GitError, match="is on other, not on agent/T1"):
        prepared(config)


def test_what_is_committed_is_the_agents_work_alone(config: Config) -> None:
    """Neither our own paths nor a repository that it cloned there; a mended conflict counts."""
    tree = prepared(config)
    repo = inside(tree)
    repo.write("work/a b.txt", "x\n")
    repo.write("runs/x", "x\n")
    repo.write("SPRINT_QUEUE.json", "{}\n")
    repo.git("add", "--force", "SPRINT_QUEUE.json")
    repo.git("init", "--quiet", "cloned")
    Repository(Path(tree.path, "cloned")).commit("theirs", x="x")
    tree.commit("T1: work")
    assert repo.names("HEAD") == {"readme.txt", "work/a b.txt"}
    before = tree.head()
    tree.commit("T1: again")
    assert tree.head() == before
    Repository(Path(config.workspace)).commit("main's", readme_txt="main\n")
    repo.commit("mine", readme_txt="mine\n")
    repo.git("merge", "main", check=False)
    with pytest.raises(GitError, match=r"left with conflicts in readme\.txt"):
        tree.commit("T1: merged")
    repo.write("readme.txt", "both\n")
    tree.commit("T1: merged")
    assert repo.show("readme.txt", "HEAD") == "both"
    assert len(repo.git("log", "-1", "--format=%p").split()) == 2


def test_an_agent_cannot_put_another_repository_there(config: Config) -> None:
    """What it makes of the folder is no worktree any more, and is not committed."""
    tree = prepared(config)
    Path(tree.path, ".git").unlink()
    inside(tree).git("init", "--quiet")
    with pytest.raises(GitError, match="no worktree of this repository any more"):
        tree.commit("T1")
    tree.release()
    with pytest.raises(GitError, match="no worktree of this repository"):
        prepared(config)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda repo: repo.write("new", "x"), True),
        (lambda repo: repo.write("readme.txt", "two\n"), True),
        (lambda repo: (repo.path / "readme.txt").chmod(0o755), True),
        (lambda repo: (repo.path / "left").chmod(0o755), True),
        (lambda repo: (repo.path / "left").write_text("other"), True),
        (lambda repo: repo.commit("left", left="left"), True),
        (lambda repo: (repo.path / "left").write_text("left"), False),
        (lambda repo: (repo.path / "readme.txt").write_text("one\n"), False),
        (lambda repo: repo.commit("empty"), False),
        (lambda repo: repo.write("SPRINT_QUEUE.json", "{}"), False),
        (lambda repo: repo.commit("ours", SPRINT_QUEUE_json="{}"), False),
        (lambda repo: repo.git("config", "user.name", "x"), False),
    ],
)
def test_evidence_is_content(config: Config, change: object, seen: bool) -> None:  # noqa: FBT001
    """Not a time, not an empty commit, not our own paths."""
    tree = prepared(config)
    repo = inside(tree)
    repo.write("left", "left")
    ours = ("SPRINT_QUEUE.json", "SPRINT.QUEUE.json")
    before = state.state(git, tree.path, ours)
    assert callable(change)
    change(repo)
    after = state.state(git, tree.path, ours)
    assert state.differs(git, tree.path, ours, before, after) is seen


def test_what_git_runs_is_told_by_name(config: Config) -> None:
    """Hooks, settings, attributes, what a config includes; user.* and branch.* are harmless."""
    tree = prepared(config)
    repo = Repository(Path(config.workspace))
    extra = Path(config.workspace, ".git", "extra")
    extra.write_text("")
    repo.git("config", "include.path", "extra")

    def told() -> str:
        return fingerprint.changed(before, fingerprint.take(git, tree.common, tree.folder))

    before = fingerprint.take(git, tree.common, tree.folder)
    repo.git("config", "user.name", "x")
    repo.git("config", "branch.main.remote", "x")
    assert told() == ""
    repo.git("config", "branch.main.mergeOptions", "-s ours")
    assert told() == "branch.main.mergeoptions in config"
    repo.git("config", "--unset", "branch.main.mergeOptions")
    extra.write_text("[core]\n\tpager = evil\n")
    assert told() == "core.pager in config"
    extra.write_text("")
    hook = Path(config.workspace, ".git", "hooks", "post-commit")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("x")
    assert told() == "hooks/post-commit"
    hook.unlink()
    Path(config.workspace, ".git", "info", "attributes").write_text("* filter=x\n")
    assert told() == "info/attributes"


@pytest.mark.parametrize("at", ["renamed", "unknown to git", "half removed"])
def test_a_removal_that_was_cut_short_is_finished(backend: FileBackend, at: str) -> None:
    """Kill -9 at each of its steps; a worktree that stands there anew meanwhile is not harmed."""
    config = backend.config
    repo = Repository(Path(config.workspace))
    tree = prepared(config)
    tree.release()
    folder, gone = Path(tree.folder), Path(config.paths.worktrees, f"{GONE}T1")
    Path(tree.path).rename(gone)
    if at != "renamed":
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    if at == "half removed":
        (gone / ".git").unlink()
    backend.fill({"id": "T1", "status": "done"})
    snapshot = backend.open().snapshot
    if at == "renamed":
        again = prepared(config)
        again.release()
        backend.fill({"id": "T1", "status": "ready"})
        reclaim(Git(), config, snapshot)
        assert not gone.exists()
        assert inside(again).git("status", "--porcelain") == ""
        backend.fill({"id": "T1", "status": "done"})
    reclaim(Git(), config, snapshot)
    assert list(Path(config.paths.worktrees).iterdir()) == []
    repo.git("worktree", "prune")
    assert reclaim(Git(), config, snapshot) == []


@pytest.mark.parametrize("kept", ["ignored repository", "link", "skip-worktree", "assumed", ""])
def test_what_git_does_not_tell_of_is_not_removed(backend: FileBackend, kept: str) -> None:
    """Repositories in ignored folders or behind links, and files that git must not look at."""
    tree = prepared(backend.config)
    repo = inside(tree)
    nested = {"ignored repository": "worktrees/lib", "link": "lib"}.get(kept)
    if nested:
        (repo.path / nested).mkdir(parents=True)
        repo.git("init", "--quiet", nested)
        Repository(repo.path / nested).commit("theirs", x="x")
    if kept == "link":
        repo.git("add", "lib")
        repo.commit("link")
        Repository(Path(backend.config.workspace)).git("merge", "--quiet", "agent/T1")
    if kept in {"skip-worktree", "assumed"}:
        how = {"assumed": "--assume-unchanged"}.get(kept, "--skip-worktree")
        repo.git("update-index", how, "readme.txt")
        repo.write("readme.txt", "mine\n")
    tree.release()
    backend.fill({"id": "T1", "status": "done"})
    done = reclaim(Git(), backend.config, backend.open().snapshot)
    assert done == ([] if kept else ["T1"])
    assert Path(tree.path, "readme.txt").exists() is bool(kept)


def test_one_that_an_agent_took_off_a_merge_says_so(config: Config) -> None:
    """It is no use to switch it by hand: it comes back of itself."""
    tree = prepared(config)
    tree.leave()
    inside(tree).git("switch", "--quiet", "--create", "mine")
    with pytest.raises(GitError, match="switched to mine, away from the merge") as found:
        tree.commit("T1")
    assert found.value.problems[0].hint == ""


def test_one_that_an_attempt_works_in_is_not_removed(backend: FileBackend) -> None:
    """Its task was moved to done by hand: the attempt is ended first."""
    tree = prepared(backend.config)
    backend.fill({"id": "T1", "status": "done"})
    assert reclaim(Git(), backend.config, backend.open().snapshot) == []
    assert Path(tree.path, "readme.txt").exists()
    tree.release()
    assert reclaim(Git(), backend.config, backend.open().snapshot) == ["T1"]


@pytest.mark.parametrize(
    ("title", "line"),
    [("a\nb\tc", "a b c"), (None, ""), (7, ""), ("\ud800x\x7f", "x"), ("x" * 999, "x" * 200)],
)
def test_a_title_is_one_line(title: object, line: str) -> None:
    """Of whatever a task holds."""
    assert title_of({"title": title}) == line
