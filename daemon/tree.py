"""The processes that a program started, wherever they went, and how to end all of them.

Process groups are not enough: agents put their tools into groups and sessions of their own. A tree
is found by descent (orphans come to us, for we are a child subreaper), by the sessions it was seen
in, and by a marker in the environment. A process is signalled through a pidfd and only after its
start time was compared, so that a number that was given out again harms nobody.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import NamedTuple

from daemon import process
from daemon.errors import RolecallError
from daemon.process import Stat

CLEAN = 2  # looks that find nothing: a process in the middle of exec has an empty environment
PATIENCE = 10.0  # seconds that what was sent KILL may take to be gone
SHORTEST, LONGEST = 0.002, 0.1  # seconds between looks
ENVIRONMENT = 8 << 20  # bytes of one environment that are looked at
PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Have orphans among our descendants become our children (nothing where there is no prctl)."""
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # inherited: statuses would be lost
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    import ctypes  # noqa: PLC0415  # some milliseconds, and only those who start processes need it

    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None and prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def children(pid: int) -> list[int]:
    """The pids of its children, ended ones included; quick, and blind to one now and then."""
    if not _lists_children():
        return [each.pid for each in process.every() if each.parent == pid]
    found: list[int] = []
    for task in _tasks(pid):
        try:
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
        except OSError:  # that thread has just ended
            continue
    return found


def has_ended(found: Stat) -> bool:
    """Whether nothing of it runs: a zombie may have threads that outlived its first one."""
    if found.state not in "ZX":
        return False
    return len(_tasks(found.pid)) <= 1


def is_marked(pid: int, marker: str) -> bool:
    """Whether its environment holds the entry (no, where we may not look)."""
    entry = b"\0" + os.fsencode(marker) + b"\0"
    try:
        return entry in b"\0" + _read(f"/proc/{pid}/environ", ENVIRONMENT)
    except OSError:
        return False


def marked(marker: str) -> list[int]:
    """The pids of all processes whose environment holds the entry, the caller's own included."""
    return [
        each.pid for each in process.every() if not has_ended(each) and is_marked(each.pid, marker)
    ]


def sessions() -> tuple[int, ...]:
    """The sessions that this process leads and that its descendants are in."""
    me, mine = os.getpid(), os.getsid(0)
    found = {each.session for each in _descend(children(me))} - {mine}
    return tuple(sorted(found | ({me} if mine == me else set())))


def send(target: Stat, number: signal.Signals) -> bool:
    """Signal exactly this process; whether that was possible."""
    try:
        pidfd = os.pidfd_open(target.pid)
    except OSError:
        return False
    try:
        found = process.stat(target.pid)
        if found is None or found.started != target.started:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


class Tree(NamedTuple):
    """What makes a process one of ours.

    ``marker``: the entry in its environment, believed of what started at ``since`` (clock ticks
    since boot) or later. ``known``: the caller's children that are none of the tree, when all its
    other ones are. ``roots``: processes (pid, start time) that belong to it. ``sessions``: those
    it was seen in, at the time ``seen`` (clock ticks since boot).
    """

    marker: str
    since: int = 0
    known: Collection[int] | None = None
    roots: Collection[tuple[int, int]] = ()
    sessions: Collection[int] = ()
    seen: int = 0

    def find(self) -> list[Stat]:
        """All of it that runs now, the calling process never included.

        A chain of forks can run ahead of every look at /proc, but not without leaving us a zombie
        at each step: as long as there are any of those, they are what is found.
        """
        me = os.getpid()
        if self.known is not None:  # what is below us is found quickly: a fork bomb is in a hurry
            near = _strays(self.known)
            if near:
                zombies = [found for pid in near if (found := process.stat(pid))]
                return _descend(reversed(near)) or zombies
        everything = [each for each in process.every() if each.pid != me]
        sessions = self._sessions(everything)
        roots = {
            each.pid
            for each in everything
            if (self.known is not None and each.parent == me and each.pid not in self.known)
            or each.session in sessions
            or (each.pid, each.started) in self.roots
            or (each.started >= self.since and is_marked(each.pid, self.marker))
        }
        return [each for each in _below(roots, everything) if not has_ended(each)]

    def _sessions(self, everything: list[Stat]) -> set[int]:
        """Which sessions are still those that were seen.

        A session's number is not given out again while anything is in it, so one process that was
        there already tells.
        """
        old = {each.session for each in everything if each.started <= self.seen}
        return {
            session
            for session in set(self.sessions) & old - {os.getsid(0)}
            if not any(e.pid == session and e.started > self.seen for e in everything)
        }


def reap(known: Collection[int]) -> None:
    """Collect our children that have ended, but for the known ones."""
    for pid in _strays(known):
        os.waitpid(pid, os.WNOHANG)


def end(find: Callable[[], list[Stat]], pause: Callable[[float], None], grace: float) -> int:
    """TERM, then KILL after ``grace`` seconds; returns when nothing is left, with how many it was.

    ``pause`` waits for so many seconds. Raises RolecallError where something outlives KILL.
    """
    mild_until = time.monotonic() + grace
    hard_until = 0.0
    clean, wait = 0, SHORTEST
    seen: set[tuple[int, int]] = set()
    while True:
        left = find()
        now = time.monotonic()
        new = {(each.pid, each.started) for each in left} - seen
        clean = 0 if left else clean + 1
        if clean == CLEAN:
            return len(seen)
        if not left:
            wait = SHORTEST
        elif now < mild_until:
            for each in left if not seen else ():  # what is started to clean up is left alone
                send(each, signal.SIGTERM)
                send(each, signal.SIGCONT)
            wait = min(2 * wait, LONGEST, mild_until - now)
        else:
            hard_until = hard_until or now + PATIENCE
            if now > hard_until:
                raise outlived(left)
            strike(left)
            wait = 0.0 if new else min(max(2 * wait, SHORTEST), LONGEST)
        seen |= new
        pause(wait)


def strike(targets: list[Stat]) -> None:
    """KILL them and what is below them. All are stopped first, for what is stopped cannot fork."""
    me, stopped = os.getpid(), dict[int, Stat]()
    todo = list(targets)
    while todo:
        target = todo.pop()
        if target.pid in stopped or target.pid == me:
            continue
        stopped[target.pid] = target
        if send(target, signal.SIGSTOP):
            todo += (found for pid in children(target.pid) if (found := process.stat(pid)))
    for target in stopped.values():
        send(target, signal.SIGKILL)


def outlived(left: list[Stat]) -> RolecallError:
    """The error that names what KILL did not end: it hangs in the kernel, or is another user's."""
    pids = ", ".join(str(each.pid) for each in left[:5]) + (", ..." if len(left) > 5 else "")  # noqa: PLR2004  # enough to look at
    noun = "process" if len(left) == 1 else "processes"
    return RolecallError(
        f"{len(left)} {noun} of the attempt cannot be killed: {pids}",
        hint=f"ps -o pid,user,stat,wchan:20,args -p {left[0].pid}",
    )


def _strays(known: Collection[int]) -> list[int]:
    return [pid for pid in children(os.getpid()) if pid not in known]


def _descend(roots: Iterable[int]) -> list[Stat]:
    """The processes with these pids and what is below them, as far as it runs."""
    me, seen, found = os.getpid(), set[int](), list[Stat]()
    todo = list(roots)
    while todo:
        pid = todo.pop(0)
        each = process.stat(pid) if pid not in seen and pid != me else None
        seen.add(pid)
        if each is not None:
            todo += children(pid)
            if not has_ended(each):
                found.append(each)
    return found


def _below(roots: set[int], everything: list[Stat]) -> list[Stat]:
    """The roots and all that descends from them."""
    offspring: dict[int, list[Stat]] = {}
    for each in everything:
        offspring.setdefault(each.parent, []).append(each)
    found = [each for each in everything if each.pid in roots]
    seen = set(roots)
    for each in found:  # grows as it goes
        fresh = [child for child in offspring.get(each.pid, ()) if child.pid not in seen]
        seen.update(child.pid for child in fresh)
        found += fresh
    return found


@cache
def _lists_children() -> bool:
    """Whether this kernel has the lists (CONFIG_PROC_CHILDREN)."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _read(path: str, limit: int = 1 << 20) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, size = [], 0
        while size < limit and (part := os.read(descriptor, 1 << 16)):
            parts.append(part)
            size += len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
