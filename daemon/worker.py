"""The loop of a worker: wake, recover, claim, start attempts, sleep. It never waits on an agent.

Signal handlers only record; what they mean is decided here. TERM and INT drain (a second one skips
the waiting), HUP re-reads the config, USR1 hands over: exit at once, the attempts live on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from daemon import executor, launch, process
from daemon.config import Config, Role
from daemon.errors import EXIT_CONFIG, EXIT_ERROR, LeaseLost, QueueUnreadable, RolecallError
from daemon.log import Log
from daemon.model import Claim, Lease, Move, Outcome, Result
from daemon.queue import Stale, durable
from daemon.queue.file import FileQueue
from daemon.queue.lease import is_here
from daemon.service import Notifier
from daemon.wake import Signals, Watch, wait

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
HANDOVER = 5.0  # seconds for attempts just started to take their leases over
RETRY = 5.0  # seconds until a look that failed is tried again
END_MARGIN = 5.0  # seconds beyond two kill graces, for an attempt to end its tree and settle


class Mode(NamedTuple):
    """How a worker was asked to run."""

    once: bool = False
    drain: bool = False
    dry_run: bool = False
    ignore_wip: bool = False


class Starter(Protocol):
    """Starts the attempt of a claim (``launch.start``)."""

    def __call__(
        self, config: Config, claim: Claim, environ: Mapping[str, str], unit_log: str
    ) -> launch.Child:
        """Start it; raises RolecallError where no process can be had."""


class Worker:
    """The daemon of one role (or, in the foreground, of several) on this host."""

    def __init__(  # noqa: PLR0913  # what it acts on is passed in, so that tests patch nothing
        self,
        config: Config,
        roles: list[str],
        queue: FileQueue,
        log: Log,
        *,
        mode: Mode,
        owner: Callable[[str], str],
        notifier: Notifier,
        signals: Signals,
        watch: Watch,
        environ: Mapping[str, str],
        reload: Callable[[], tuple[Config, FileQueue]],
        unit_log: str = "",
        start: Starter = launch.start,
    ) -> None:
        self.config, self.roles, self.queue, self.log = config, roles, queue, log
        self.mode, self.owner, self.notifier = mode, owner, notifier
        self.signals, self.watch, self.environ = signals, watch, environ
        self.reload, self.unit_log, self.start = reload, unit_log, start
        self.me = process.identity()
        self.children: dict[int, launch.Child] = {}  # by pidfd
        self.others: dict[tuple[int, int], int] = {}  # attempts not our children: pidfd by identity
        self.stop_at: float | None = None  # when a stop ends what still runs; None: not stopping
        self.handing_over = False
        self.unsettled: list[tuple[Lease, Result]] = []  # what could not be written yet
        self.ended: list[tuple[launch.Child, int]] = []  # whose leases could not be read yet
        self.spared_until = 0.0  # until then attempts may renew that a full disk has kept from it
        self.failed = False  # an attempt ended in error
        self.problems: tuple[str, ...] = ()  # of single tasks and leases, as they were last told
        self.seen: object = None  # the queue's signature at the last look
        self.look_at = 0.0

    # --- the three ways to run -------------------------------------------------------------

    def serve(self) -> int:
        """Run until told to stop. Returns the exit status."""
        for name in self.roles:  # whoever starts a worker has looked at what was wrong
            self.queue.close_breaker(name)
        self.log.say("started")
        self.notifier.send("READY=1", "STATUS=started")
        while True:
            self.obey()
            self.reap()
            if self.handing_over:
                return self.hand_over()
            if self.stop_at is not None:
                if not self.held() and not self.children:
                    break
                if time.monotonic() >= self.stop_at:
                    self.end_attempts()
                    break
            elif self.due():
                self.look()
            self.sleep()
        self.log.say("stopped")
        return 0

    def once(self) -> int:
        """Recover, then for each role claim at most one task and run it to its end."""
        try:
            self.recover()
            for name in self.roles:
                if not self.may_claim():
                    break
                self.claim(name)
                self.finish()
        except QueueUnreadable as error:
            return self.unreadable(error)
        self.tell_problems()
        return self.foreground_status()

    def drain(self) -> int:
        """Go on until nothing is claimable now and nothing runs."""
        try:
            while True:
                self.recover()
                while self.may_claim() and sum(map(self.claim, self.roles)):
                    pass
                if not self.children:
                    break
                self.finish(all_of_them=False)
        except QueueUnreadable as error:
            return self.unreadable(error)
        self.tell_problems()
        return self.foreground_status()

    def may_claim(self) -> bool:
        """Whether nobody has told us to stop or to leave."""
        self.obey()
        return self.stop_at is None and not self.handing_over

    def foreground_status(self) -> int:
        """The exit status of a run in the foreground; one that was told to leave has done it."""
        if self.handing_over:
            return self.hand_over()
        return EXIT_ERROR if self.failed else 0

    def unreadable(self, error: QueueUnreadable) -> int:
        """A queue that cannot be read ends a run in the foreground, its attempts first."""
        self.log.say(str(error).replace("\n", "; "), "error")
        self.stop_at = time.monotonic() + self.budget()
        self.finish()
        return EXIT_CONFIG

    def finish(self, *, all_of_them: bool = True) -> None:
        """Wait until our children have ended (or one of them)."""
        before = len(self.children)
        while self.children and (all_of_them or len(self.children) == before):
            self.sleep()
            self.obey()
            self.reap()
            if self.handing_over:
                return
            if self.stop_at is not None and time.monotonic() >= self.stop_at:
                self.end_attempts()
            if time.monotonic() >= self.look_at:
                self.look_at = time.monotonic() + RETRY
                self.recover_while_waiting()

    def recover_while_waiting(self) -> None:
        """End an attempt that froze. For a queue that is broken the attempts wait themselves."""
        try:
            self.settle_rest()
            self.recover()
        except (OSError, RolecallError) as error:
            self.log.once("queue", str(error), "error")

    # --- looking and claiming --------------------------------------------------------------

    def due(self) -> bool:
        """Whether to look now: something told us, a time has come, or the queue is another."""
        if self.watch.changed() or time.monotonic() >= self.look_at:
            return True
        return self.watch.fd < 0 and self.queue.signature() != self.seen

    def look(self) -> None:
        """Recover and claim all that can be. What cannot be read is said once and waited for."""
        self.watch.renew()
        self.watch.changed()  # what we see below is at least as new
        self.seen = self.queue.signature()
        self.look_at = time.monotonic() + min(self.role(name).interval for name in self.roles)
        try:
            self.settle_rest()
            self.recover()
            for name in self.roles:
                while self.claim(name):
                    pass
                later = self.queue.next_time(name, time.time())
                if later is not None:
                    until = max(0.0, later - time.time())
                    self.look_at = min(self.look_at, time.monotonic() + until)
            self.follow()
            self.queue.rest()
            self.watch.renew()  # the first claim makes the leases' folder
        except (OSError, RolecallError) as error:
            self.watch.changed()  # what we took back ourselves must not wake us
            text = str(error).replace("\n", "; ")
            self.log.once("queue", text, "error")
            self.notifier.status(text)
            if isinstance(error, durable.DiskError):
                self.spared_until = time.monotonic() + RETRY
            if not isinstance(error, QueueUnreadable):
                self.look_at = min(self.look_at, time.monotonic() + RETRY)
            return
        self.log.once("queue", "")
        self.tell_problems()
        self.tell()

    def recover(self) -> None:
        """Settle what attempts that are gone have left, their trees first."""
        for stale in self.queue.stale():
            if self.is_spared(stale):
                continue
            run_dir = os.path.join(self.config.paths.runs, stale.task_id, str(stale.lease.token))
            # Where its file is gone no unit is told, and the attempt may well be alive in it.
            lease = stale.lease._replace(unit=launch.unit_of(stale.lease, self.config))
            try:
                if lease.token:  # what others write of processes is theirs
                    executor.kill_tree(lease, launch.marker(run_dir), known=self.child_pids())
                self.judge(self.queue.recover(stale))
            except QueueUnreadable:
                raise
            except RolecallError as error:
                self.log.once(f"recover {stale.task_id}", str(error), "error")

    def is_spared(self, stale: Stale) -> bool:
        """Whether it may be that only the disk, which takes no writes, kept it from renewing.

        It has its result in hand, perhaps: ended now, it could not even be settled.
        """
        if stale.why != "expired" or not is_here(stale.lease, self.me):
            return False
        try:
            self.queue.rehearse()
        except durable.DiskError:
            self.spared_until = time.monotonic() + RETRY
        if time.monotonic() >= self.spared_until:
            return False
        self.look_at = min(self.look_at, self.spared_until)
        return True

    def claim(self, name: str) -> bool:
        """Claim one task of the role and start its attempt. Whether there was one."""
        mode = self.mode
        if name not in self.config.roles:
            return False
        claim = self.queue.claim(
            name, self.owner(name), ignore_wip=mode.ignore_wip, dry_run=mode.dry_run
        )
        self.log.once(f"breaker {name}", self.pause(name))
        if claim is None:
            return False
        if mode.dry_run:
            print(f"{name}: would claim {claim.lease.task_id}")  # noqa: T201  # what was asked for
            return False
        try:
            child = self.start(self.config, claim, self.environ, self.unit_log)
        except RolecallError as error:
            result = Result(Outcome.RELEASED, error.problems[0].what)
            self.unsettled.append((claim.lease, result))
            self.settle_rest()
            raise
        self.children[child.pidfd] = child
        return True

    def pause(self, name: str) -> str:
        """Why the role claims nothing for a while, in words; "" where it does."""
        state = self.queue.breaker(name)
        return state.pause_in_words if state.until > time.time() else ""

    def judge(self, moves: tuple[Move, ...]) -> None:
        """Remember whether one of them was an error of an attempt."""
        self.failed = self.failed or any(move.outcome == Outcome.ERROR for move in moves)

    # --- children --------------------------------------------------------------------------

    def follow(self) -> None:
        """Hold a pidfd of every attempt on this host that is no child of ours: death wakes us."""
        ours = {child.lease.task_id for child in self.children.values()}
        alive = {
            (lease.pid, lease.pid_started)
            for lease in self.queue.live(host=self.me.host)
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
        ours = self.child_pids()
        if not process.has_children():
            return
        for found in process.every():
            if found.parent == self.me.pid and found.state == "Z" and found.pid not in ours:
                os.waitpid(found.pid, os.WNOHANG)

    def child_pids(self) -> list[int]:
        """The attempts that we started; any other child is an orphan of an attempt that died."""
        return [child.pid for child in self.children.values()]

    def settle_for(self, child: launch.Child, code: int) -> None:
        """An attempt that ended has settled, unless it was killed or never began."""
        task_id, token = child.lease.task_id, child.lease.token
        try:
            leases = self.leases()
        except (OSError, RolecallError):  # the look that is next says so
            self.ended.append((child, code))
            return
        left = [lease for lease in leases if (lease.task_id, lease.token) == (task_id, token)]
        if not left or left[0].pid != self.me.pid:
            if self.mode.once or self.mode.drain:
                self.recover()
            return
        stopping = self.stop_at is not None
        result = Result(
            Outcome.RELEASED if stopping else Outcome.ERROR,
            "stopped" if stopping else f"the attempt ended before it began (exit status {code})",
        )
        self.unsettled.append((left[0], result))
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

    def leases(self) -> list[Lease]:
        """The leases of this host that are alive, or whose holder we are."""
        return self.queue.live(host=self.me.host)

    def held(self) -> list[Lease]:
        """The attempts that a stop of this worker has to wait for."""
        children = {child.lease.task_id for child in self.children.values()}
        owners = {self.owner(name) for name in self.roles}
        serving = not (self.mode.once or self.mode.drain)
        return [
            lease
            for lease in self.leases()
            if lease.task_id in children
            or (serving and lease.owner in owners and lease.role in self.roles)
        ]

    # --- stopping --------------------------------------------------------------------------

    def obey(self) -> None:
        """Do what the signals since the last call ask for."""
        for number in self.signals.taken():
            if number == signal.SIGUSR1:
                self.handing_over = True
            elif number == signal.SIGHUP:
                self.re_read()
            else:
                self.stop()

    def stop(self) -> None:
        """Claim no more; attempts may run on for the stop budget. The second time: for no more."""
        now = time.monotonic()
        if self.stop_at is None:
            self.stop_at = now + self.budget()
            self.log.say(f"stopping, for at most {self.budget():g} s")
            self.notifier.send("STOPPING=1")
            self.notifier.status("stopping")
        else:
            self.stop_at = now

    def budget(self) -> float:
        """How long a stop lets attempts run on, in seconds."""
        return max((self.role(name).stop_budget for name in self.roles), default=0.0)

    def re_read(self) -> None:
        """Take the config as it is now; a broken one is said, and the old one kept."""
        try:
            config, queue = self.reload()
        except RolecallError as error:
            self.log.say(str(error).replace("\n", "; "), "error")
            return
        missing = [name for name in self.roles if name not in config.roles]
        if missing:
            self.log.say(f"the new config has no role {missing[0]}: the old one is kept", "error")
            return
        self.config, self.queue = config, queue
        self.watch.close()
        self.watch = Watch(config.queue_file, config.paths.leases)
        for name in self.roles:
            self.queue.close_breaker(name)
        self.look_at = 0.0
        self.log.say("config read again")

    def end_attempts(self) -> None:
        """End what still runs: TERM lets an attempt release its task, KILL does it for it."""
        grace = max((self.role(lease.role).kill_grace for lease in self.held()), default=0.0)
        until = time.monotonic() + 2 * grace + END_MARGIN
        asked: set[tuple[str, int]] = set()
        while time.monotonic() < until:
            self.reap()
            held = self.held()
            if not held:
                return
            for lease in held:  # one that has just begun cannot be asked yet
                who = (lease.task_id, lease.token)
                if who not in asked and executor.terminate(lease):
                    asked.add(who)
            self.notifier.alive()
            wait([self.watch.fd, *self.children], 0.5 if len(asked) == len(held) else 0.05)
            self.watch.changed()
        for lease in self.held():
            run_dir = os.path.join(self.config.paths.runs, lease.task_id, str(lease.token))
            try:
                executor.kill_tree(lease, launch.marker(run_dir), known=self.child_pids())
                self.judge(self.queue.settle(lease, Result(Outcome.RELEASED, "stopped, killed")))
            except (OSError, RolecallError) as error:
                self.log.say(f"{lease.task_id}: {error}", "error")
        self.reap()

    def hand_over(self) -> int:
        """Leave, once every attempt just started holds its own lease."""
        until = time.monotonic() + HANDOVER
        while time.monotonic() < until:
            self.reap()
            if not any(lease.pid == self.me.pid for lease in self.leases()):
                break
            wait([], 0.02)
        self.children.clear()
        self.log.say("handed over")
        return 0

    # --- sleeping --------------------------------------------------------------------------

    def sleep(self) -> None:
        """Until something happens, a time comes, or the supervisor wants a sign of life."""
        now = time.monotonic()
        self.notifier.alive()
        times = [self.notifier.watchdog, *([self.stop_at - now] if self.stop_at else [])]
        if self.stop_at is None:
            times.append(self.look_at - now)
        fds = [self.signals.fd, self.watch.fd, *self.children, *self.others.values()]
        wait(fds, min((each for each in times if each is not None), default=None))
        if self.stop_at is not None or self.mode.once or self.mode.drain:
            self.watch.changed()

    def tell_problems(self) -> None:
        """Say what is wrong with single tasks and leases, each once for as long as it lasts."""
        problems = self.queue.problems()
        for each in problems:
            if each not in self.problems:
                self.log.say(each.replace("\n", "; "), "warning")
        self.problems = problems

    def role(self, name: str) -> Role:
        """The role as it is configured now."""
        return self.config.roles[name]

    def tell(self) -> None:
        """Say in words what the worker is doing."""
        held = sorted(lease.task_id for lease in self.held())
        pauses = [text for name in self.roles if (text := self.pause(name))]
        doing = f"working on {', '.join(held)}" if held else "waiting for a task"
        self.notifier.status("; ".join(pauses) or doing)
