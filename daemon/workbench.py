"""What git does for one attempt: its worktree, what it changed there, and main, for who merges."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from daemon import conflicts, evidence, fingerprint
from daemon.config import Config
from daemon.errors import Interrupted, LeaseLost, RolecallError
from daemon.git import Git
from daemon.landing import Landing
from daemon.model import Lease, Outcome, Result
from daemon.repository import listed, title_of
from daemon.state import State, differs, state, strangers
from daemon.worktree import Worktree, alone

NOTHING = "no evidence: this attempt changed nothing"
NO_MORE = "no evidence: the branch holds nothing that main lacks"
NOTED = "git-changed"  # a file of the locks' folder, and its lock
SEEN = "git.json"  # in the run's folder while the attempt runs: what stood in the git folder before


class Workbench:
    """The place of an attempt whose role has a worktree, or wants evidence.

    ``changes`` takes what is to be written into the task, whatever the attempt comes to.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # all that an attempt is made of
        self,
        git: Git,
        config: Config,
        lease: Lease,
        task: dict[str, Any],
        run_dir: str,
        mark: str,
        changes: dict[str, Any],
    ) -> None:
        self.git, self.config, self.task, self.run_dir = git, config, task, run_dir
        self.changes = changes
        self.noted = os.path.join(config.paths.locks, f"{NOTED}.json")
        self.role, self.task_id = config.roles[lease.role], lease.task_id
        self.ours = evidence.own_paths(config)
        self.worktree = Worktree(git, config, lease.task_id) if self.role.worktree else None
        self.cwd = self.worktree.path if self.worktree else config.workspace
        self.merges = self.role.merge and self.worktree is not None
        self.mark = mark

    def work(self, agent: Callable[[], Result], gates: Callable[[Result], Result]) -> Result:
        """The agent, and what comes before and after it. Raises RolecallError, OSError."""
        if self.worktree is None:
            return gates(self.weighed(agent))
        worktree = self.worktree
        worktree.prepare(self.task.get("commit"))
        self.changes["branch"] = worktree.branch
        before = self.remembered(worktree)
        try:
            if self.merges:
                result = self.merged(worktree, agent, gates, before)
            else:
                result = self.settled(worktree, self.weighed(agent), gates)
        except (Interrupted, LeaseLost):
            raise  # there is no time: the next attempt comes back, and tells
        except (RolecallError, OSError, ValueError):
            self.tell(worktree, before)
            if worktree.is_off:
                worktree.come_back()
            raise
        if result.outcome is Outcome.RELEASED:  # likewise
            return result
        if not self.merges:
            self.tell(worktree, before)
        evidence.drop(self.run_dir, SEEN)
        if result.outcome in {Outcome.SUCCESS, Outcome.REJECTED}:
            self.changes["commit"] = worktree.head()
        worktree.release()
        return result

    def weighed(self, agent: Callable[[], Result]) -> Result:
        """Have the agent work; its success wants evidence, where the role says so."""
        before = self.look() if self.role.evidence else None
        result = agent()
        if result.outcome is not Outcome.SUCCESS or before is None:
            return result
        why = self.lacking(before)
        if not why:
            return result
        note = f"{why}. {result.note}" if result.note else why  # a refusal has its words
        return result._replace(outcome=Outcome.ERROR, note=note)

    def lacking(self, before: State) -> str:
        """Why what an agent has made is no evidence, in words; "" where it is."""
        changed = differs(self.git, self.cwd, self.ours, before, self.look())
        if self.worktree is None:
            return "" if changed else NOTHING
        if changed:
            # Main's own work, or a dead attempt's litter that is cleaned away, is not the task's.
            why = "" if self.worktree.has_work() else NO_MORE
        else:
            # What an attempt before it has left may be all there is to do; that must be said, then.
            left = self.worktree.has_work(self.task.get("commit"))
            why = "" if left and evidence.says_success(self.run_dir) else NOTHING
        if not why:
            return ""
        others = [each for each in strangers(self.git, self.cwd, self.ours) if each.endswith("/")]
        return f"{why} ({listed(others)}: a repository of its own is none)" if others else why

    def look(self) -> State:
        """What the working directory holds."""
        return state(self.git, self.cwd, self.ours)

    def settled(
        self, worktree: Worktree, result: Result, gates: Callable[[Result], Result]
    ) -> Result:
        """Commit what is left, and have the gates look at what is committed then."""
        if result.outcome is not Outcome.SUCCESS:
            return result
        worktree.commit(self.message)
        result = self.unmarked(result, worktree.forked())
        return self.gated(worktree, gates, result)

    def merged(
        self,
        worktree: Worktree,
        agent: Callable[[], Result],
        gates: Callable[[Result], Result],
        before: fingerprint.Fingerprint,
    ) -> Result:
        """Merge main and the branch, have agent and gates look at that, and move main."""
        landing = Landing(worktree, self.task, self.run_dir, self.mark)
        refused = self.unseen(worktree) or landing.begin()
        if refused:  # no agent has run: nothing was spent, and that is known
            result = refused._replace(usage={})
        else:
            result = self.landed(landing, self.weighed(agent), gates, before)
        if worktree.is_off:
            self.back(worktree, result)
        return result

    def landed(
        self,
        landing: Landing,
        result: Result,
        gates: Callable[[Result], Result],
        before: fingerprint.Fingerprint,
    ) -> Result:
        """Have the gates look at what the agent left of the merged tree, and move main."""
        worktree = landing.worktree
        if result.outcome is Outcome.SUCCESS:
            worktree.commit(self.message)
        while result.outcome is Outcome.SUCCESS:
            worktree.put_back(landing.commit)
            pin = worktree.pin()
            result = self.gated(worktree, gates, self.unmarked(result, landing.commit))
            if result.outcome is not Outcome.SUCCESS:
                note = f"merged with {landing.main} ({landing.commit:.10}): {result.note}"
                return result._replace(note=note)
            told = fingerprint.changed(before, self.now(worktree))
            if told:
                note = (
                    f"this attempt changed what git runs ({told}): look at it in {worktree.common},"
                    f" and mend it; then: invoke queue.retry {self.task_id}"
                )
                self.note(before, self.now(worktree), seen=True)
                return result._replace(outcome=Outcome.BLOCKED, note=note)
            landed = landing.land(pin.commit)
            if landed:
                note = f"merged into {landing.main}: {landed:.10}"
                return result._replace(note=f"{result.note}; {note}" if result.note else note)
            result = landing.merge() or result  # main has moved on meanwhile
        return result

    def back(self, worktree: Worktree, result: Result) -> None:
        """Bring the worktree back to its branch, after a merge that did not land.

        What was rejected as merged goes on from there, so that a refiner sees what is wrong; what
        does not merge goes on from the branch.
        """
        worktree.tidy()
        head = self.git(self.cwd, "rev-parse", "--verify", "HEAD").strip()
        ahead = self.git.says(self.cwd, "merge-base", "--is-ancestor", worktree.head(), head)
        if result.outcome is Outcome.REJECTED and ahead and not worktree.present():
            worktree.bring(head)
        else:
            worktree.come_back()

    def gated(
        self, worktree: Worktree, gates: Callable[[Result], Result], result: Result
    ) -> Result:
        """What the gates say, and nothing left of what they have made: what they saw counts."""
        if not self.role.gates or result.outcome is not Outcome.SUCCESS:
            return result
        pin = worktree.pin()
        result = gates(result)
        worktree.check()
        worktree.hold(pin)
        return result

    def unmarked(self, result: Result, base: str) -> Result:
        """The same, or no success where a conflict's markers are left that the base lacks.

        A role whose work is changes tries again; any other one's verdict is a rejection.
        """
        found = conflicts.committed(self.git, self.cwd, base, "HEAD") if base else []
        if not found:
            return result
        note = f"the markers of a conflict are left in {listed(found)}: keep what both sides meant"
        outcome = Outcome.ERROR if self.role.evidence else Outcome.REJECTED
        return result._replace(outcome=outcome, note=note)

    @property
    def message(self) -> str:
        """Of a commit that we make for the agent."""
        title = title_of(self.task)
        return f"{self.task_id}: {title}" if title else self.task_id

    # --- what git runs -------------------------------------------------------------------------

    def remembered(self, worktree: Worktree) -> fingerprint.Fingerprint:
        """What git runs, as it was before this attempt, or before one that died untold."""
        now = self.now(worktree)
        then = now
        folder, own = os.path.split(self.run_dir)
        for token in sorted(int(each) for each in os.listdir(folder) if each.isdecimal()):
            path = os.path.join(folder, str(token), SEEN)
            if str(token) == own or not os.path.exists(path):
                continue
            try:
                with open(path, encoding="utf-8") as file:
                    found = json.load(file)
            except (OSError, ValueError):
                found = None
            if then is now and isinstance(found, dict):
                then = found
            evidence.drop(os.path.dirname(path), SEEN)
        evidence.write_new(self.run_dir, SEEN, json.dumps(then))
        return then

    def tell(self, worktree: Worktree, before: fingerprint.Fingerprint) -> None:
        """Have the task say what this attempt changed of it: no merge before a person looked."""
        now = self.now(worktree)
        told = fingerprint.changed(before, now)
        if told:
            self.changes["git_changed"] = told
            self.note(before, now)
        evidence.drop(self.run_dir, SEEN)

    def now(self, worktree: Worktree) -> fingerprint.Fingerprint:
        """What git runs."""
        return fingerprint.take(self.git, worktree.common, worktree.folder)

    def note(
        self, before: fingerprint.Fingerprint, now: fingerprint.Fingerprint, *, seen: bool = False
    ) -> None:
        """Have no other task merge with what this attempt changed of it, before a person looked."""
        with alone(self.git, self.config, NOTED):
            found = fingerprint.noted(self.noted).more(self.task_id, before, now)
            by = (self.task_id,) if seen else ()
            fingerprint.note(self.noted, found._replace(seen=by))

    def unseen(self, worktree: Worktree) -> Result | None:
        """Refuse to merge with what an attempt of any task has changed of it; once, for a person.

        Whoever comes again was sent by one: it passes, and so do all others then.
        """
        if not os.path.exists(self.noted):
            return None
        with alone(self.git, self.config, NOTED):
            found = fingerprint.noted(self.noted)
            still = found.still(self.now(worktree))
            if not still or self.task_id in found.seen:
                evidence.drop(*os.path.split(self.noted))
                return None
            fingerprint.note(self.noted, found._replace(seen=(*found.seen, self.task_id)))
        note = (
            f"an attempt changed what git runs ({listed(still)}; of {listed([*found.by])}): look at"
            f" it in {worktree.common}, and mend it; then: invoke queue.retry {self.task_id}"
        )
        return Result(Outcome.BLOCKED, note, changes={"git_changed": None})
