"""The git worktree of a task, on its branch: made, found again, committed in, merged in."""

from __future__ import annotations

import os
import re
import shlex
import stat
from contextlib import AbstractContextManager
from typing import NamedTuple

from daemon import conflicts
from daemon.config import Config
from daemon.errors import ConfigError
from daemon.evidence import own_paths
from daemon.git import Git, GitError
from daemon.queue import lock
from daemon.repository import (
    PLAIN,
    check_top,
    common_folder,
    git,
    has_submodules,
    identity,
    is_worktree,
    listed,
    names,
    own,
    own_folder,
    registered,
    scope,
)
from daemon.state import linked, links, strangers, untracked

__all__ = ["Git", "GitError", "git"]

OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
MERGING = "rolecall-merging"  # in the worktree's own git folder while it is off its branch
LOCK = ".lock"  # how git's own lock files end, in that folder: of the index, of HEAD, ORIG_HEAD


class Pin(NamedTuple):
    """The commit that a worktree holds, and its branch's: the same but during a merge."""

    commit: str
    branch: str


def branch_of(task_id: str) -> str:
    """The branch that a task's roles share."""
    return f"agent/{task_id}"


def path_of(config: Config, task_id: str) -> str:
    """Where a task's worktree is."""
    return os.path.join(config.paths.worktrees, task_id)


def alone(git: Git, config: Config, name: str) -> AbstractContextManager[int]:
    """Hold a lock of ours for as long as it takes to get it; the lease is renewed meanwhile."""
    return lock.patiently(os.path.join(config.paths.locks, f"{name}.lock"), git.pulse)


class Worktree:
    """The worktree of one task, while an attempt works in it: no other one can meanwhile."""

    def __init__(self, git: Git, config: Config, task_id: str) -> None:
        self.git, self.config, self.task_id = git, config, task_id
        self.workspace, self.path = config.workspace, path_of(config, task_id)
        self.branch, self.ours = branch_of(task_id), own_paths(config)
        self.common = ""
        self._holding = alone(git, config, f"worktree-{task_id}")

    @property
    def folder(self) -> str:
        """Its own git folder."""
        return own_folder(self.path)

    # --- having it ---------------------------------------------------------------------------

    def prepare(self, commit: object = None) -> None:
        """Make it, or find it as an earlier role left it.

        ``commit``: what the task knows of its branch, from which a lost one is made again. Raises
        ConfigError for a repository that allows none, and GitError.
        """
        self._holding.__enter__()
        self._allowed()
        self.common = common_folder(self.git, self.workspace)
        with alone(self.git, self.config, "worktrees"):
            if not self._found():
                self._make(commit)
        self.unlock()
        self.git.extra |= identity(self.git, self.path)
        self._settle_in()

    def release(self) -> None:
        """Let others have it."""
        self._holding.__exit__(None, None, None)

    def _allowed(self) -> None:
        head = self.git.run(self.workspace, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        if head.status == 1:
            raise ConfigError(
                f"{self.workspace} has no commit: no worktree can be made of it"
                f" (git -C {shlex.quote(self.workspace)} commit --allow-empty -m 'First commit')"
            )
        if head.status:
            raise GitError(f"git rev-parse: {head.last}", where=self.workspace)
        check_top(self.git, self.workspace)
        if has_submodules(self.git, self.workspace):
            raise ConfigError(
                f"{self.workspace} has submodules, which worktrees do not get:"
                " set worktree: false for the role"
            )

    def _found(self) -> bool:
        """Whether it stands there. Raises GitError for what stands in its place."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return False
        look = f"look at it (ls -ld {shlex.quote(self.path)}), and move it away"
        if not stat.S_ISDIR(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
            raise GitError(f"{what} stands in the worktree's place", where=self.path, hint=look)
        if not os.listdir(self.path):
            os.rmdir(self.path)
            return False
        if is_worktree(self.path, self.common):
            return not _discard_unfinished(self.path)
        what = "what stands in the worktree's place is no worktree of this repository"
        raise GitError(what, where=self.path, hint=look)

    def _make(self, commit: object) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        for path in registered(self.git, self.workspace):
            if os.path.realpath(path) == os.path.realpath(self.path):  # removed by hand
                self.git(self.workspace, "worktree", "remove", "--force", "--force", path)
        words = ["worktree", "add", "--quiet"]
        if self.git.says(
            self.workspace, "show-ref", "--verify", "--quiet", f"refs/heads/{self.branch}"
        ):
            words += [self.path, self.branch]
        else:
            words += ["-b", self.branch, self.path, self._start(commit)]
        said = self.git.run(self.workspace, *words)
        if said.status == 0:
            return
        elsewhere = re.search(r"is already (?:checked out|used by worktree) at '(.*)'", said.err)
        if elsewhere:
            raise GitError(
                f"{self.branch} is checked out in {elsewhere[1]}",
                where=self.path,
                hint=f"git -C {shlex.quote(elsewhere[1])} switch -",
            )
        bar = self.branch.partition("/")[0]
        if f"'refs/heads/{bar}' exists" in said.err:
            raise ConfigError(
                f"a branch called {bar} bars {self.branch}: rename it"
                f" (git -C {shlex.quote(self.workspace)} branch -m {bar} OTHER)"
            )
        raise GitError(f"git worktree add: {said.last}", where=self.path)

    def _start(self, commit: object) -> str:
        """Where a branch starts that is not there: at what is known of a lost one, else at HEAD."""
        if not isinstance(commit, str) or not OID.fullmatch(commit):
            return "HEAD"
        if self.git.run(self.workspace, "cat-file", "-e", f"{commit}^{{commit}}").status:
            if (
                self.config.on_postgres
            ):  # anew from HEAD, others' roles would judge what is not there
                raise GitError(
                    f"what was done for {self.task_id} is not in this clone: {commit[:12]}, which"
                    f" is on {self.branch} of the host that did it",
                    where=self.workspace,
                    hint=f"git fetch THAT_HOST:ITS_CLONE {self.branch}:{self.branch}",
                )
            return "HEAD"
        merged = self.git.says(self.workspace, "merge-base", "--is-ancestor", commit, "HEAD")
        return "HEAD" if merged else commit

    def unlock(self) -> None:
        """Remove the lock files of a git that died: whoever worked here is dead."""
        self.check()
        branch = os.path.join(self.common, "refs", "heads", f"{self.branch}{LOCK}")
        left = [name for name in os.listdir(self.folder) if name.endswith(LOCK)]
        for path in (*(os.path.join(self.folder, name) for name in left), branch):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue

    def _settle_in(self) -> None:
        """See that it is on its branch, whatever a killed attempt has left."""
        if self.is_off:
            self.come_back()
            return
        if self._is_rebasing():
            self.git.run(self.path, "rebase", "--abort")
        present = self.present()
        if present == self.branch:
            return
        kept = ("merge-base", "--is-ancestor", "HEAD", f"refs/heads/{self.branch}")
        if (
            self.git.run(self.path, *kept).status
            or self.git.run(self.path, "switch", "--quiet", self.branch).status
        ):
            raise self.strayed(present)

    def _is_rebasing(self) -> bool:
        folders = (os.path.join(self.folder, f"rebase-{how}") for how in ("merge", "apply"))
        return any(map(os.path.isdir, folders))

    def present(self) -> str:
        """The branch that it is on now; "" for none."""
        return self.git.run(self.path, "symbolic-ref", "--quiet", "--short", "HEAD").out.rstrip(
            "\n"
        )

    def strayed(self, present: str) -> GitError:
        """What is to be said of one that is not on its branch."""
        if self.is_off:  # for a merge, and it comes back of itself
            return GitError(
                f"the worktree was switched to {present}, away from the merge that is to be seen"
                " and landed",
                where=self.path,
            )
        return GitError(
            f"the worktree is on {present or 'no branch'}, not on {self.branch}",
            where=self.path,
            hint=f"git -C {shlex.quote(self.path)} switch {self.branch}",
        )

    # --- what an attempt makes of it ------------------------------------------------------------

    def head(self) -> str:
        """The branch's commit."""
        return self.git(
            self.path, "rev-parse", "--verify", f"refs/heads/{self.branch}^{{commit}}"
        ).strip()

    def forked(self) -> str:
        """The commit that it has in common with main; "" for none."""
        main = self.git(self.workspace, "rev-parse", "--verify", "HEAD").strip()
        return self.git.run(self.path, "merge-base", "HEAD", main).out.strip()

    def has_work(self, commit: object = None) -> bool:
        """Whether it holds work beyond that commit, of the task's last settling; or beyond main."""
        base = commit if isinstance(commit, str) and OID.fullmatch(commit) else ""
        if not base or self.git.run(self.path, "cat-file", "-e", f"{base}^{{commit}}").status:
            base = self.forked()
        if not base:
            return False
        inside = scope(self.ours)
        return not self.git.says(self.path, "diff", "--quiet", *PLAIN, base, *inside) or bool(
            untracked(self.git, self.path, self.ours)
        )

    def commit(self, message: str) -> None:
        """Commit what the agent has left, less our own paths; nothing, where there is nothing.

        Raises GitError where it left a merge that is not finished, another branch, or a commit of
        what no commit holds.
        """
        self.unlock()
        present = self.present()
        if present != ("" if self.is_off else self.branch):
            raise self.strayed(present)
        unmerged = conflicts.left(self.git, self.path)
        if unmerged:
            raise GitError(
                f"a merge was left with conflicts in {listed(unmerged)}", where=self.path
            )
        strange = [n for n in strangers(self.git, self.path, self.ours) if n.endswith("/")]
        outside = (f":(top,exclude,literal){each}" for each in strange)  # repositories of their own
        # Ours are taken out again: git refuses to leave out what it ignores anyway.
        self.git(self.path, "add", "--all", "--", ":/", *outside)
        if self.ours:
            self.git(self.path, "reset", "--quiet", "HEAD", *own(self.ours))
        found = links(self.git, self.path, self.forked() or "HEAD")
        if found:
            raise GitError(linked(found), where=self.path)
        merging = os.path.exists(os.path.join(self.folder, "MERGE_HEAD"))
        if merging or not self.git.says(self.path, "diff", "--cached", "--quiet", *PLAIN, "HEAD"):
            self.record(message)

    def check(self) -> None:
        """Raise GitError where it is no longer a worktree of this repository."""
        if not is_worktree(self.path, self.common):
            what = "it is no worktree of this repository any more"
            raise GitError(what, where=self.path, hint="look at what the agent did there")

    def record(self, message: str) -> None:
        """Commit what is staged."""
        words = ("commit", "--quiet", "--no-verify", "--cleanup=whitespace", "--file=-")
        self.git(self.path, *words, stdin=message)

    def put_back(self, commit: str) -> None:
        """Commit our own paths as they are in that commit, so that no merge carries them."""
        if not self.ours:
            return
        inside = own(self.ours)
        told = self.git(self.path, "diff", "--name-only", "-z", *PLAIN, commit, "HEAD", *inside)
        if not names(told):
            return
        self.git(
            self.path,
            "restore",
            f"--source={commit}",
            "--staged",
            "--worktree",
            "--pathspec-from-file=-",
            "--pathspec-file-nul",
            stdin="".join(f":(top,literal){name}\0" for name in names(told)),
        )
        self.record(f"{self.task_id}: what is not the task's own")

    def pin(self) -> Pin:
        """Where it and its branch stand."""
        return Pin(self.git(self.path, "rev-parse", "--verify", "HEAD").strip(), self.head())

    def hold(self, pin: Pin) -> None:
        """Make it what it was when that was taken: gates leave neither files nor moves."""
        self.unlock()
        if self._is_rebasing():
            self.git.run(self.path, "rebase", "--quit")
        reference = f"refs/heads/{self.branch}"
        if self.is_off:
            self.git(self.path, "update-ref", "--no-deref", "HEAD", pin.commit)
        else:
            self.git(self.path, "symbolic-ref", "HEAD", reference)
        self.git(self.path, "update-ref", reference, pin.branch)
        self.tidy()

    def tidy(self) -> None:
        """Make it what its commit says: gates leave nothing (but what git ignores)."""
        self.unlock()
        self.git(self.path, "reset", "--quiet", "--hard")
        self.git(self.path, "clean", "--quiet", "-d", "--force", *scope(self.ours))

    # --- off its branch, for a merge ---------------------------------------------------------

    @property
    def is_off(self) -> bool:
        """Whether a merge of ours has taken it off its branch."""
        folder = self.folder
        return bool(folder) and os.path.exists(os.path.join(folder, MERGING))

    def leave(self) -> None:
        """Take it off its branch, where commits bind nobody."""
        with open(os.path.join(self.folder, MERGING), "wb"):
            pass
        self.git(self.path, "checkout", "--quiet", "--detach")

    def come_back(self) -> None:
        """Bring it back to its branch; what was not committed there is none of the task's work."""
        self.tidy()
        if self.present() != self.branch:
            self.git(self.path, "checkout", "--quiet", "--force", self.branch)
        os.unlink(os.path.join(self.folder, MERGING))

    def bring(self, commit: str) -> None:
        """Come back with that commit, whose tree stands here, as the branch's own."""
        reference = f"refs/heads/{self.branch}"
        self.git(self.path, "update-ref", reference, commit, self.head())
        self.git(self.path, "symbolic-ref", "HEAD", reference)
        os.unlink(os.path.join(self.folder, MERGING))


def _discard_unfinished(path: str) -> bool:
    """Remove a worktree that an attempt died over making; whether it was such a one.

    Git keeps it locked until it is complete. What stands there half checked out looks as if
    everything else had been deleted.
    """
    lock_file = os.path.join(own_folder(path), "locked")
    try:
        with open(lock_file, encoding="utf-8", errors="surrogateescape") as file:
            reason = file.read().strip()
    except OSError:
        return False
    if reason != "initializing":
        return False
    import shutil  # noqa: PLC0415  # hardly ever needed

    shutil.rmtree(path)
    return True
