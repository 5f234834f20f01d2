"""Landing: a task's branch is merged with main, looked at as merged, and only then put on main.

"Main" is whatever branch the workspace is on. The merge is made in the task's worktree, off its
branch; main moves in one step, at the end, or not at all.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from typing import Any

from daemon import evidence, hindrance, tree
from daemon.git import GitError, Said
from daemon.model import Outcome, Result
from daemon.queue import durable
from daemon.queue.lock import NAME
from daemon.repository import PLAIN, check_top, listed, names, title_of
from daemon.state import dirty, linked, links
from daemon.worktree import Worktree, alone

CONFLICT = "conflict.txt"  # in the run's folder: what did not merge
CONFLICT_BYTES = 64 * 1024
JOURNAL_BYTES = 8192
LOCKING = 10.0  # seconds after its start in which a git takes its locks
LOCKED = ("index", "HEAD", "ORIG_HEAD")  # by a git that moves the workspace's branch, beside that
ORPHAN = 10.0  # seconds that the git of a killed attempt may take to be gone
NAP = 0.05  # seconds between looks for it
LITERAL = {"GIT_LITERAL_PATHSPECS": "1"}
# Of the merge that moves main. A config's branch.*.mergeOptions come before it, and are undone.
FORWARD = (
    *("merge", "--ff-only", "--quiet", "--no-stat", "--commit", "--no-squash", "--no-autostash"),
    *("--no-verify-signatures", "--no-overwrite-ignore"),
)


class Landing:
    """One task's way to main. ``task``: as it was when it was claimed; ``mark``: the attempt's."""

    def __init__(self, worktree: Worktree, task: dict[str, Any], run_dir: str, mark: str) -> None:
        self.worktree, self.git = worktree, worktree.git
        self.workspace, self.path = worktree.workspace, worktree.path
        self.task, self.run_dir, self.mark = task, run_dir, mark
        self.main = self.commit = self.head = ""

    # --- merging ---------------------------------------------------------------------------------

    def begin(self) -> Result | None:
        """Merge main into what the task's branch holds; a result where there is no more to do."""
        self.main = self.branch_of_workspace()
        self.commit, self.head = self.main_now(), self.worktree.head()
        refused = self.fence()
        if refused is not None:
            return refused
        if self.is_merged(self.head):
            note = f"{self.worktree.branch} holds nothing that {self.main} lacks"
            return Result(Outcome.SUCCESS, note)
        base = self.git.run(self.path, "merge-base", self.commit, self.head).out.strip()
        if not base:
            raise GitError(f"{self.worktree.branch} and {self.main} have no commit in common")
        self.worktree.leave()
        self.worktree.put_back(base)
        return self.merge()

    def fence(self) -> Result | None:
        """Refuse what no settled attempt stands for; a person who looked at it lets it pass."""
        task_id, branch = self.worktree.task_id, self.worktree.branch
        again = f"; then: invoke queue.retry {task_id}"
        told = self.task.get("git_changed")
        if told:
            note = (
                f"an attempt changed what git runs ({told!s:.500}): look at it in"
                f" {self.worktree.common}, and mend it{again}"
            )
            return Result(Outcome.BLOCKED, note, changes={"git_changed": None})
        known = self.task.get("commit")
        if isinstance(known, str) and known != self.head and not self.are_merged(known, self.head):
            note = (
                f"{branch} holds commits that no current attempt made: the last one left"
                f" {known:.10}, it is at {self.head:.10} now. Look at them (git log"
                f" {known:.10}..{branch}){again}, which takes them as they are"
            )
            return Result(Outcome.BLOCKED, note, changes={"commit": self.head})
        found = dirty(self.git, self.path, self.worktree.ours)
        if found:
            note = (
                f"{self.path} holds what nobody committed: {listed(found)}. Commit it or throw it"
                f" away{again}"
            )
            return Result(Outcome.BLOCKED, note, changes={"commit": None})
        return None

    def merge(self) -> Result | None:
        """Merge main, as it is now, into what the worktree holds; a rejection on conflict."""
        self.commit = self.main_now()
        words = ("merge", "--ff", "--commit", "--no-squash", "--no-verify", "--no-stat")
        message = f"--message=Merge {self.main} into {self.worktree.branch}"
        said = self.git.run(self.path, *words, message, self.commit)
        if said.status == 0:
            return None
        unmerged = names(self.git(self.path, "diff", "--name-only", "-z", "--diff-filter=U"))
        if not unmerged:
            raise GitError(f"git merge: {said.last}", where=self.path)
        text = said.out + "\n" + self.git(self.path, "diff", *PLAIN)
        data = text.encode(errors="surrogateescape")[:CONFLICT_BYTES]
        evidence.write_new(self.run_dir, CONFLICT, data.decode(errors="replace"))
        self.git(self.path, "merge", "--abort")
        return Result(
            Outcome.REJECTED,
            f"{self.worktree.branch} conflicts with {self.main} ({self.commit:.10}) in"
            f" {listed(unmerged, 10)}: merge {self.main} into the branch and keep what both meant"
            f" (the conflict is in {os.path.join(self.run_dir, CONFLICT)})",
        )

    def is_merged(self, commit: str) -> bool:
        """Whether main has that commit."""
        return self.has(self.commit, commit)

    def has(self, commit: str, earlier: str) -> bool:
        """Whether a commit has the other one among those that it was made from, or is it."""
        words = ("merge-base", "--is-ancestor", earlier, commit)
        return self.git.run(self.workspace, *words).status == 0

    def are_merged(self, *commits: str) -> bool:
        """Whether main has all of them."""
        return all(self.is_merged(each) for each in commits)

    def main_now(self) -> str:
        """Main's commit."""
        name = f"refs/heads/{self.main}^{{commit}}"
        return self.git(self.workspace, "rev-parse", "--verify", name).strip()

    def branch_of_workspace(self) -> str:
        """The branch that the workspace is on: main. Raises GitError where it is on none."""
        said = self.git.run(self.workspace, "symbolic-ref", "--quiet", "--short", "HEAD")
        if said.status:
            raise GitError(
                "it is on no branch that a task could be merged into",
                where=self.workspace,
                hint=f"git -C {shlex.quote(self.workspace)} switch BRANCH",
            )
        return said.out.rstrip("\n")

    # --- landing -------------------------------------------------------------------------------

    def land(self, pinned: str) -> str:
        """Put on main what that commit holds; the merge commit, or "" where main has moved on.

        Raises GitError where something is in the way; main is untouched then.
        """
        self.check(pinned)
        with alone(self.git, self.worktree.config, "landing") as journal:
            self.mend(journal)
            hindrance.await_quiet(self.git, self.workspace)
            present = self.branch_of_workspace()
            if present != self.main:
                raise GitError(
                    f"it was on {self.main}, and is on {present} now", where=self.workspace
                )
            if self.main_now() != self.commit:
                return ""
            title = title_of(self.task)
            message = f"Merge {self.worktree.task_id}" + f": {title}" * bool(title) + "\n"
            content = self.git(self.path, "rev-parse", "--verify", f"{pinned}^{{tree}}").strip()
            parents = ("-p", self.commit, "-p", self.head)
            merged = self.git(self.path, "commit-tree", content, *parents, stdin=message).strip()
            self.git.pulse()
            self.git.renew()  # a lease that is lost must not land
            self.write(journal, merged)
            said = self.git.run(self.workspace, *FORWARD, merged, unhurried=True)
            if said.status or not self.has(self.main_now(), merged):
                self.failed(journal, said)
            os.ftruncate(journal, NAME)
        self.worktree.bring(merged)
        return merged

    def check(self, pinned: str) -> None:
        """Raise GitError where what is to land is not the merge of the branch and of main.

        Its tree becomes main's: without one of them in it, that one's work would be undone.
        """
        check_top(self.git, self.workspace)
        for commit, name in ((self.commit, self.main), (self.head, self.worktree.branch)):
            if not self.has(pinned, commit):
                raise GitError(
                    f"the agent took the merge back: {pinned:.10} lacks {name} ({commit:.10})",
                    where=self.path,
                )
        found = links(self.git, self.path, self.commit, pinned)
        if found:
            raise GitError(linked(found), where=self.path)

    def failed(self, journal: int, said: Said) -> None:
        """Raise what git said, with all as it was before."""
        if any(each in said.err for each in hindrance.UNTOUCHED):
            os.ftruncate(journal, NAME)
        else:
            self.mend(journal)
        found = hindrance.in_the_way(said.err, self.workspace)
        if found:
            raise GitError(
                f"your own uncommitted changes are in the way of the merge: {found};"
                f" {self.main} is untouched",
                where=self.workspace,
            )
        raise GitError(f"{self.main} cannot be moved: {said.first}", where=self.workspace)

    def write(self, journal: int, merged: str) -> None:
        """Note what is about to be done, for whoever comes after us if we are killed over it."""
        note = {"main": self.main, "old": self.commit, "new": merged, "mark": self.mark}
        os.pwrite(journal, json.dumps({**note, "at": time.time()}).encode(), NAME)
        os.fsync(journal)

    def mend(self, journal: int) -> None:
        """Undo what a killed landing has left half-way in the workspace's files.

        Main itself is one reference: git moves it last, and at once. Raises GitError where a person
        has gone on working on the same files.
        """
        try:
            cut = json.loads(os.pread(journal, JOURNAL_BYTES, NAME).rstrip(b"\0 \n"))
            main, old, new = str(cut["main"]), str(cut["old"]), str(cut["new"])
            mark, at = str(cut["mark"]), float(cut["at"])
        except (
            ValueError,
            KeyError,
            TypeError,
        ):  # there is none, or it was torn itself: no git yet
            return
        until = time.monotonic() + ORPHAN
        while set(tree.marked(mark)) - {os.getpid()}:
            if time.monotonic() > until:
                raise GitError("the git of a killed attempt still runs", where=self.workspace)
            self.git.pulse()
            time.sleep(NAP)
        self.unlock(main, at)
        if main == self.branch_of_workspace() and self.main_now() == old:
            hindrance.await_quiet(self.git, self.workspace)
            self.undo(old, new)
        os.ftruncate(journal, NAME)

    def unlock(self, main: str, since: float) -> None:
        """Remove the locks that the killed git has left, whether or not it has moved main.

        They are known by their time: git takes them at once. Any other one is a person's, and
        waited for.
        """
        words = [word for name in (*LOCKED, f"refs/heads/{main}") for word in ("--git-path", name)]
        for told in self.git(self.workspace, "rev-parse", *words).splitlines():
            path = f"{os.path.join(self.workspace, told)}.lock"
            try:
                if int(since) <= os.stat(path).st_mtime <= since + LOCKING:
                    os.unlink(path)
            except FileNotFoundError:
                continue

    def undo(self, old: str, new: str) -> None:
        """Give the files between the two commits their old content, but for a person's."""
        told = self.git(self.workspace, "diff", "--name-only", "-z", *PLAIN, old, new)
        before, after = self.standing(old), self.standing(new)
        edited = [
            path
            for path in names(told)
            if not (self.is_as(path, before) or self.is_as(path, after) or self.is_torn(path, new))
        ]
        if edited:
            raise GitError(
                f"a merge was cut short, and these files were changed since: {listed(edited)};"
                f" give them the content of {old:.10} or of {new:.10}",
                where=self.workspace,
            )
        paths = ("--pathspec-from-file=-", "--pathspec-file-nul")
        self.git(self.workspace, "reset", "--quiet", *paths, old, stdin=told, env=LITERAL)
        back = "".join(f"{path}\0" for path in names(told) if path in before)
        words = ("checkout-index", "--force", "--quiet", "-z", "--stdin")
        self.git(self.workspace, *words, stdin=back)
        for path in names(told):
            if path not in before:
                durable.drop(os.path.join(self.workspace, path))

    def is_as(self, path: str, standing: dict[str, bool]) -> bool:
        """Whether the workspace has the file as a commit has it, or not, as that has it not."""
        there = os.path.lexists(os.path.join(self.workspace, path))
        return standing.get(path, not there)

    def standing(self, commit: str) -> dict[str, bool]:
        """The commit's files, and whether the workspace has them as they are there."""
        told = self.git(self.workspace, "rev-parse", "--git-path", "rolecall-index").rstrip("\n")
        index = os.path.join(self.workspace, told)
        aside = {"GIT_INDEX_FILE": index}
        try:
            self.git(self.workspace, "read-tree", commit, env=aside)
            found = names(self.git(self.workspace, "ls-files", "-z", env=aside))
            words = ("diff", "--name-only", "-z", *PLAIN)
            others = set(names(self.git(self.workspace, *words, env=aside)))
        finally:
            durable.drop(index)
        return {path: path not in others for path in found}

    def is_torn(self, path: str, commit: str) -> bool:
        """Whether the file is what a killed checkout of the commit leaves: nothing, or a part."""
        try:
            descriptor = os.open(os.path.join(self.workspace, path), os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as file:
                found = file.read()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        said = self.git.run(self.workspace, "cat-file", "--filters", f"{commit}:{path}")
        return said.status == 0 and said.out.encode(errors="surrogateescape").startswith(found)
