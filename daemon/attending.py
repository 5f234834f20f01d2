"""The attempts that a worker looks after: started, followed, collected, and settled for if need be.

They are processes of their own: our children, or left by a worker before us. None is waited on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from daemon import executor, launch, process
from daemon.config import Config
from daemon.errors import LeaseLost, QueueUnreadable, RolecallError
from daemon.log import Log
from daemon.model import Claim, Lease, Move, Outcome, Result
from daemon.queue import Queue, Stale, durable
from daemon.queue.lease import is_here

RETRY = 5.0  # seconds until what failed is tried again
DOUBT = 5.0  # seconds that a task has to stay moved: git and editors save what is soon put right
RETURN = 10.0  # seconds for attempts to renew what they could not while the server was away


class Starter(Protocol):
    """Starts the attempt of a claim (``launch.start``)."""

    def __call__(
        self, config: Config, claim: Claim, environ: Mapping[str, str], unit_log: str
    ) -> launch.Child:
        """Start it; raises RolecallError where no process can be had."""


class Attempts:
    """Those of one worker on this host.

    ``look_at`` is when they want the worker to look again (of time.monotonic()). The worker sets
    ``stopping``, and ``foreground`` where nobody else would recover what has died.
    """

    def __init__(  # noqa: PLR0913  # what it acts on is passed in, so that tests patch nothing
        self,
        config: Config,
        queue: Queue,
        log: Log,
        *,
        environ: Mapping[str, str],
        unit_log: str,
        start: Starter,
        foreground: bool,
    ) -> None:
        self.config, self.queue, self.log = config, queue, log
        self.environ, self.unit_log, self.start = environ, unit_log, start
        self.foreground, self.stopping = foreground, False
        self.me = process.identity()
        self.children: dict[int, launch.Child] = {}  # by pidfd
        self.others: dict[tuple[int, int], int] = {}  # no children of ours: pidfd by identity
        self.unsettled: list[tuple[Lease, Result]] = []  # what could not be written yet
        self.ended: list[tuple[launch.Child, int]] = []  # whose leases could not be read yet
        self.spared_until = 0.0  # until then they may renew what a full disk has kept from it
        self.moved: dict[tuple[str, int], float] = {}  # since when their tasks are not theirs
        #: Until when those whose leases have run out may renew, by task, token and last renewal.
        self.doubted: dict[tuple[str, int, str], float] = {}
        self.known: list[Lease] = []  # of this host, as they were read last
        self.failed = False  # one ended in error
        self.look_at = math.inf

    # --- starting and following ------------------------------------------------------------

    def begin(self, claim: Claim) -> None:
        """Start the attempt of a claim. Raises RolecallError where no process can be had."""
        try:
            child = self.start(self.config, claim, self.environ, self.unit_log)
        except RolecallError as error:
            result = Result(Outcome.RELEASED, error.problems[0].what)
            self.unsettled.append((claim.lease, result))
            self.settle_rest()
            raise
        self.children[child.pidfd] = child

    def follow(self) -> None:
        """Hold a pidfd of every attempt on this host that is no child of ours: death wakes us."""
        ours = {child.lease.task_id for child in self.children.values()}
        alive = {
            (lease.pid, lease.pid_started)
            for lease in self.leases()
            if lease.task_id not in ours and lease.pid != self.me.pid and is_here(lease, self.me)
        }
        for gone in set(self.others) - alive:
            os.close(self.others.pop(gone))
        for who in alive - set(self.others):
            try:
                self.others[who] = os.pidfd_open(who[0])
            except OSError:
                self.look_at = 0.0  # it died in between: look again at once
            else:
                if not process.is_alive(*who):
                    self.look_at = 0.0

    def descriptors(self) -> list[int]:
        """What becomes readable when one of them ends."""
        return [*self.children, *self.others.values()]

    def leases(self) -> list[Lease]:
        """The leases of this host that are alive, or whose holder we are."""
        self.known = self.queue.live(host=self.me.host)
        return self.known

    def remembered(self) -> list[Lease]:
        """As they were told last, while the queue cannot be asked; less those that have ended."""
        known = {lease.task_id: lease for lease in self.known}
        for child in self.children.values():
            held = known.get(child.lease.task_id)
            if held is None or held.token != child.lease.token or held.pid == self.me.pid:
                known[child.lease.task_id] = self.as_started(child)
        ended = {child.lease.task_id for child, _ in self.ended}
        return [
            lease
            for lease in known.values()
            if lease.task_id not in ended
            and (not is_here(lease, self.me) or process.is_alive(lease.pid, lease.pid_started))
        ]

    @staticmethod
    def as_started(child: launch.Child) -> Lease:
        """The child's lease with its process as the holder, which it has become or is to become."""
        found = None if child.unit else process.stat(child.pid)
        if found is None:
            return child.lease
        return child.lease._replace(pid=child.pid, pid_started=found.started)

    def has_started(self) -> bool:
        """Whether each that was started holds its own lease by now."""
        return not any(lease.pid == self.me.pid for lease in self.leases())

    # --- collecting ------------------------------------------------------------------------

    def reap(self) -> None:
        """Collect children that have ended; settle for those that never took their lease over."""
        for pidfd in list(self.children):
            child = self.children[pidfd]
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            del self.children[pidfd]
            os.close(pidfd)
            self.look_at = 0.0
            code = os.waitstatus_to_exitcode(status)
            self.failed = self.failed or code != 0
            self.settle_for(child, code)
        self.reap_strays()
        for who in [who for who in self.others if not process.is_alive(*who)]:
            os.close(self.others.pop(who))
            self.look_at = 0.0

    def reap_strays(self) -> None:
        """Orphans of dead attempts come to us, for we are a subreaper: collect the ended ones."""
        ours = self.pids()
        if not process.has_children():
            return
        for found in process.every():
            if found.parent == self.me.pid and found.state == "Z" and found.pid not in ours:
                os.waitpid(found.pid, os.WNOHANG)

    def pids(self) -> list[int]:
        """Those that we started; any other child is an orphan of an attempt that died."""
        return [child.pid for child in self.children.values()]

    # --- settling for them -----------------------------------------------------------------

    def settle_for(self, child: launch.Child, code: int) -> None:
        """An attempt that ended has settled, unless it was killed or never began."""
        task_id, token = child.lease.task_id, child.lease.token
        try:  # it may have run out: it could not be taken over while the queue could not be asked
            left = self.queue.read_lease(task_id)
        except (OSError, QueueUnreadable):  # the look that is next says so
            self.ended.append((child, code))
            return
        except RolecallError:  # it is no lease: whoever recovers says so
            left = None
        if left is None or (left.token, left.pid) != (token, self.me.pid):
            if self.foreground:
                self.recover()
            return
        if self.stopping or code == 0:  # it could not take its lease over: no fault of the task
            why = "stopped" if self.stopping else "the attempt could not take its lease over"
            result = Result(Outcome.RELEASED, why)
        else:
            why = f"the attempt ended before it began (exit status {code})"
            result = Result(Outcome.ERROR, why)
        self.unsettled.append((left, result))
        self.settle_rest()

    def settle_rest(self) -> None:
        """Settle for attempts that never began; what cannot be written now is kept."""
        ended, self.ended = self.ended, []
        for child, code in ended:
            self.settle_for(child, code)
        rest, self.unsettled = self.unsettled, []
        for lease, result in rest:
            try:
                self.judge(self.queue.settle(lease, result))
            except LeaseLost:
                continue
            except (OSError, RolecallError) as error:
                self.unsettled.append((lease, result))
                self.log.once("settle", f"{lease.task_id}: cannot settle: {error}", "error")
                self.look_at = min(self.look_at, time.monotonic() + RETRY)

    def recover(self) -> None:
        """Settle what attempts that are gone have left, their trees first."""
        doubted, self.doubted = self.doubted, {}
        for stale in self.queue.stale():
            if self.may_return(stale, doubted) or self.is_spared(stale):
                continue
            # Where its file is gone no unit is told, and the attempt may well be alive in it.
            lease = stale.lease._replace(unit=launch.unit_of(stale.lease, self.config))
            try:
                if lease.token:  # what others write of processes is theirs
                    self.kill(lease)
                self.judge(self.queue.recover(stale))
            except QueueUnreadable:
                raise
            except RolecallError as error:
                self.log.once(f"recover {stale.task_id}", str(error), "error")

    def end_abandoned(self, roles: Collection[str]) -> None:
        """Ask those to end whose tasks a person has moved or removed: their work would be lost."""
        now = time.monotonic()
        found = {(lease.task_id, lease.token): lease for lease in self.queue.abandoned()}
        self.moved = {who: self.moved.get(who, now) for who in found}
        for who, lease in found.items():
            due = self.moved[who] + DOUBT
            if lease.role in roles and now >= due and lease.pid != self.me.pid:
                executor.terminate(lease)
            self.look_at = min(self.look_at, due if now < due else now + RETRY)

    def may_return(self, stale: Stale, doubted: Mapping[tuple[str, int, str], float]) -> bool:
        """Whether it may be that only the queue's server, which was away, kept it from renewing.

        Who slept meanwhile knows of no absence: what counts is since when its lease was seen to
        have run out.
        """
        if stale.why != "expired" or not self.config.on_postgres:
            return False
        now, lease = time.monotonic(), stale.lease
        who = (lease.task_id, lease.token, lease.heartbeat_at)
        until = self.doubted[who] = doubted.get(who, now + RETURN)
        if now >= until:
            return False
        self.look_at = min(self.look_at, until)
        return True

    def doubt(self) -> float:
        """For how many seconds there are leases that may be renewed though they have run out."""
        return max(self.doubted.values(), default=0.0) - time.monotonic()

    def is_spared(self, stale: Stale) -> bool:
        """Whether it may be that only the disk, which takes no writes, kept it from renewing.

        It has its result in hand, perhaps: ended now, it could not even be settled.
        """
        if stale.why != "expired" or not is_here(stale.lease, self.me):
            return False
        try:
            self.queue.rehearse()
        except durable.DiskError:
            self.spare()
        if time.monotonic() >= self.spared_until:
            return False
        self.look_at = min(self.look_at, self.spared_until)
        return True

    def spare(self) -> None:
        """The disk takes no writes: end nobody for a while who could not renew."""
        self.spared_until = time.monotonic() + RETRY

    def may_end(self, lease: Lease) -> bool:
        """Whether it is no attempt of another workspace's on this machine, with our queue."""
        return lease.pid == self.me.pid or not executor.is_another_s(lease, self.marker(lease))

    def kill(self, lease: Lease) -> None:
        """End what is left of an attempt's tree. Raises RolecallError where something lives on."""
        executor.kill_tree(lease, self.marker(lease), known=self.pids())

    def marker(self, lease: Lease) -> str:
        """What tells the processes of its attempt, if that is ours."""
        run_dir = os.path.join(self.config.paths.runs, lease.task_id, str(lease.token))
        return launch.marker(run_dir)

    def release(self, lease: Lease) -> None:
        """Kill an attempt that did not end when it was asked, and settle for it."""
        try:
            self.kill(lease)
            self.judge(self.queue.settle(lease, Result(Outcome.RELEASED, "stopped, killed")))
        except (OSError, RolecallError) as error:
            self.log.say(f"{lease.task_id}: {error}", "error")

    def judge(self, moves: tuple[Move, ...]) -> None:
        """Remember whether one of them was an error."""
        self.failed = self.failed or any(move.outcome == Outcome.ERROR for move in moves)
