"""The loop of a worker: wake, recover, claim, start attempts, sleep. It never waits on an agent.

Signal handlers only record; what they mean is decided here. TERM and INT drain (a second one skips
the waiting), HUP re-reads the config, USR1 hands over: exit at once, the attempts live on.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from daemon import executor, launch
from daemon.attending import RETRY, Attempts, Starter
from daemon.config import Config, Role
from daemon.errors import EXIT_CONFIG, EXIT_ERROR, QueueUnreachable, QueueUnreadable, RolecallError
from daemon.log import Log
from daemon.model import Lease
from daemon.queue import Queue, Waker, durable
from daemon.service import Notifier
from daemon.wake import Signals, wait

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
HANDOVER = 5.0  # seconds for attempts just started to take their leases over
END_MARGIN = 5.0  # seconds beyond two kill graces, for an attempt to end its tree and settle


class Mode(NamedTuple):
    """How a worker was asked to run."""

    once: bool = False
    drain: bool = False
    dry_run: bool = False
    ignore_wip: bool = False


class Worker:
    """The daemon of one role (or, in the foreground, of several) on this host."""

    def __init__(  # noqa: PLR0913  # what it acts on is passed in, so that tests patch nothing
        self,
        config: Config,
        roles: list[str],
        queue: Queue,
        log: Log,
        *,
        mode: Mode,
        owner: Callable[[str], str],
        notifier: Notifier,
        signals: Signals,
        watch: Waker,
        environ: Mapping[str, str],
        reload: Callable[[], tuple[Config, Queue]],
        unit_log: str = "",
        start: Starter = launch.start,
    ) -> None:
        self.config, self.roles, self.queue, self.log = config, roles, queue, log
        self.mode, self.owner, self.notifier = mode, owner, notifier
        self.signals, self.watch, self.reload = signals, watch, reload
        self.attempts = Attempts(
            config,
            queue,
            log,
            environ=environ,
            unit_log=unit_log,
            start=start,
            foreground=mode.once or mode.drain,
        )
        self.stop_at: float | None = None  # when a stop ends what still runs; None: not stopping
        self.handing_over = False
        self.paused: dict[str, dict[str, str]] = {}  # what each role waits for, by topic
        self.problems: tuple[str, ...] = ()  # of single tasks and leases, as they were last told
        self.seen: object = None  # the queue's signature at the last look
        self.look_at = 0.0
        self.is_away = False  # the queue's server; said once

    # --- the three ways to run -------------------------------------------------------------

    def serve(self) -> int:
        """Run until told to stop. Returns the exit status."""
        for name in self.roles:  # whoever starts a worker has looked at what was wrong
            self.queue.memory.resume(name)
        self.log.say("started")
        self.notifier.send("READY=1", "STATUS=started")
        while True:
            self.obey()
            self.attempts.reap()
            if self.handing_over:
                return self.hand_over()
            if self.stop_at is not None:
                if not self.held() and not self.attempts.children:
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
                if not self.attempts.children:
                    break
                self.finish(all_of_them=False)
        except QueueUnreadable as error:
            return self.unreadable(error)
        self.tell_problems()
        return self.foreground_status()

    def recover(self) -> None:
        """Settle for attempts that are gone; wait for those of whom that is not sure yet."""
        self.attempts.recover()
        while (doubt := self.attempts.doubt()) > 0 and self.may_claim():
            wait([self.signals.fd], doubt)
            self.attempts.recover()

    def may_claim(self) -> bool:
        """Whether nobody has told us to stop or to leave."""
        self.obey()
        return self.stop_at is None and not self.handing_over

    def foreground_status(self) -> int:
        """The exit status of a run in the foreground; one that was told to leave has done it."""
        if self.handing_over:
            return self.hand_over()
        return EXIT_ERROR if self.attempts.failed else 0

    def unreadable(self, error: QueueUnreadable) -> int:
        """A queue that cannot be read ends a run in the foreground, its attempts first."""
        self.log.say(str(error).replace("\n", "; "), "error")
        self.stop_at = time.monotonic() + self.budget()
        self.attempts.stopping = True
        self.finish()
        return EXIT_CONFIG

    def finish(self, *, all_of_them: bool = True) -> None:
        """Wait until our children have ended (or one of them)."""
        before = len(self.attempts.children)
        while self.attempts.children and (all_of_them or len(self.attempts.children) == before):
            self.sleep()
            self.obey()
            self.attempts.reap()
            if self.handing_over:
                return
            if self.stop_at is not None and time.monotonic() >= self.stop_at:
                self.end_attempts()
            if time.monotonic() >= self.next_look():
                self.look_at, self.attempts.look_at = time.monotonic() + RETRY, math.inf
                self.recover_while_waiting()

    def recover_while_waiting(self) -> None:
        """End an attempt that froze. For a queue that is broken the attempts wait themselves."""
        try:
            self.attempts.settle_rest()
            self.attempts.recover()
        except (OSError, RolecallError) as error:
            self.log.once("queue", str(error), "error")

    # --- looking and claiming --------------------------------------------------------------

    def due(self) -> bool:
        """Whether to look now: something told us, a time has come, or the queue is another."""
        if self.watch.changed() or time.monotonic() >= self.next_look():
            return True
        return self.watch.fd < 0 and self.queue.signature() != self.seen

    def next_look(self) -> float:
        """When to look though nothing tells us to, of time.monotonic()."""
        return min(self.look_at, self.attempts.look_at)

    def look(self) -> None:
        """Recover and claim all that can be. What cannot be read is said once and waited for."""
        self.watch.renew()
        self.watch.changed()  # what we see below is at least as new
        self.seen = self.queue.signature()
        self.look_at = time.monotonic() + min(self.role(name).interval for name in self.roles)
        self.attempts.look_at = math.inf
        try:
            with self.queue.look():
                self.attempts.settle_rest()
                self.attempts.recover()
                self.attempts.end_abandoned(self.roles)
                for name in self.roles:
                    while self.claim(name):
                        pass
                    later = self.queue.next_time(name, time.time())
                    if later is not None:
                        until = max(0.0, later - time.time())
                        self.look_at = min(self.look_at, time.monotonic() + until)
                self.attempts.follow()
                self.tell()
            self.watch.renew()  # the first claim makes the leases' folder
        except (OSError, RolecallError) as error:
            self.watch.changed()  # what we took back ourselves must not wake us
            text = str(error).replace("\n", "; ")
            if not (self.is_away and isinstance(error, QueueUnreachable)):  # told of it already
                self.log.once("queue", text, "error")
            self.is_away = isinstance(error, QueueUnreachable)
            if self.is_away:
                self.attempts.doubted.clear()  # who was away like us is to renew first
            self.notifier.status(text)
            if isinstance(error, durable.DiskError):
                self.attempts.spare()
            # A text is mended by somebody, who wakes us; a server that is back tells nobody.
            silent = self.config.on_postgres or isinstance(error, QueueUnreachable)
            if silent or not isinstance(error, QueueUnreadable):
                again = (isinstance(error, QueueUnreachable) and error.again) or RETRY
                self.look_at = min(self.look_at, time.monotonic() + again)
            return
        if self.is_away:
            self.is_away = False
            self.log.say("the queue's server answers again")
        self.log.once("queue", "")
        self.tell_problems()

    def claim(self, name: str) -> bool:
        """Claim one task of the role and start its attempt. Whether there was one."""
        mode = self.mode
        if name not in self.config.roles:
            return False
        claim = self.queue.claim(
            name, self.owner(name), ignore_wip=mode.ignore_wip, dry_run=mode.dry_run
        )
        self.tell_pauses(name)
        if claim is None:
            return False
        if mode.dry_run:
            print(f"{name}: would claim {claim.lease.task_id}")  # noqa: T201  # what was asked for
            return False
        self.attempts.begin(claim)
        return True

    def tell_pauses(self, name: str) -> None:
        """Say why the role claims nothing for a while, each reason once for as long as it lasts."""
        pauses = {
            pause.topic: pause.why for pause in self.queue.memory.pauses(name) if not pause.passing
        }
        for topic in self.paused.get(name, ()):
            if topic not in pauses:
                self.log.once(topic, "")
        for topic, why in pauses.items():
            self.log.once(topic, why)
        self.paused[name] = pauses

    def held(self) -> list[Lease]:
        """The attempts that a stop of this worker has to wait for."""
        children = {child.lease.task_id for child in self.attempts.children.values()}
        owners = {self.owner(name) for name in self.roles}
        serving = not (self.mode.once or self.mode.drain)
        try:
            leases = self.attempts.leases()
        except (OSError, RolecallError) as error:
            if not self.is_away:
                self.log.once("queue", str(error), "error")
            leases = self.attempts.remembered()
        return [
            lease
            for lease in leases
            if lease.task_id in children
            or (
                serving
                and lease.owner in owners
                and lease.role in self.roles
                and self.attempts.may_end(lease)
            )
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
            self.attempts.stopping = True
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
        self.watch.close()
        self.queue.close()
        self.config, self.queue, self.watch = config, queue, queue.watch(self.roles)
        self.attempts.config, self.attempts.queue = config, queue
        for name in self.roles:
            self.queue.memory.resume(name)
        self.look_at = 0.0
        self.log.say("config read again")

    def end_attempts(self) -> None:
        """End what still runs: TERM lets an attempt release its task, KILL does it for it."""
        grace = max((self.role(lease.role).kill_grace for lease in self.held()), default=0.0)
        until = time.monotonic() + 2 * grace + END_MARGIN
        asked: set[tuple[str, int]] = set()
        while time.monotonic() < until:
            self.attempts.reap()
            held = self.held()
            if not held:
                return
            for lease in held:  # one that has just begun cannot be asked yet
                who = (lease.task_id, lease.token)
                if who not in asked and executor.terminate(lease):
                    asked.add(who)
            self.notifier.alive()
            wait([self.watch.fd, *self.attempts.children], 0.5 if len(asked) == len(held) else 0.05)
            self.watch.changed()
        for lease in self.held():
            self.attempts.release(lease)
        self.attempts.reap()

    def hand_over(self) -> int:
        """Leave, once every attempt just started holds its own lease."""
        until = time.monotonic() + HANDOVER
        while time.monotonic() < until:
            self.attempts.reap()
            with contextlib.suppress(OSError, RolecallError):  # they go on without us all the same
                if self.attempts.has_started():
                    break
            wait([], 0.02)
        self.attempts.children.clear()
        self.log.say("handed over")
        return 0

    # --- sleeping --------------------------------------------------------------------------

    def sleep(self) -> None:
        """Until something happens, a time comes, or the supervisor wants a sign of life."""
        now = time.monotonic()
        self.notifier.alive()
        times = [self.notifier.watchdog, *([self.stop_at - now] if self.stop_at else [])]
        if self.stop_at is None:
            times.append(self.next_look() - now)
        if self.watch.pending:
            times.append(0.0)
        fds = [self.signals.fd, self.watch.fd, *self.attempts.descriptors()]
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
        pauses = dict.fromkeys(why for found in self.paused.values() for why in found.values())
        doing = f"working on {', '.join(held)}" if held else "waiting for a task"
        self.notifier.status("; ".join(pauses) or doing)
