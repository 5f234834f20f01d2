"""The lease files: one per task, written whole, each under a lock of its own."""

from __future__ import annotations

import errno
import json
import os
import stat as modes
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple

from daemon import index, process
from daemon.errors import LeaseLost, RolecallError
from daemon.model import Lease, format_time, is_task_id, parse_time
from daemon.process import Identity
from daemon.queue import durable, lock

LONGEST = 64 * 1024  # bytes
LONGEST_BOOT = 1e10  # seconds; no machine runs for three hundred years
LOCK_WAIT = 2.0  # seconds; its holders write one small file, and the queue's lock may be held
EMPTY = 10.0  # seconds that somebody may take between making a file and writing it
PUBLIC = ("task_id", "role", "owner", "started_at", "ttl_seconds", "heartbeat_at")
SUFFIX = ".json"


def encode(lease: Lease) -> bytes:
    """The lease as its file holds it."""
    return (json.dumps(lease._asdict(), indent=2) + "\n").encode()


@lru_cache(maxsize=64)  # between two looks most leases stay as they are
def decode(data: bytes, task_id: str) -> Lease:
    """A lease file's text. Raises ValueError with what is wrong with it."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")  # a wrong text, not a wrong call
    missing = [key for key in PUBLIC if key not in value]
    if missing:
        raise ValueError(f'it has no "{missing[0]}"')
    fields: dict[str, Any] = {key: value[key] for key in Lease._fields if key in value}
    for key, kind in Lease.__annotations__.items():
        if key in fields:
            fields[key] = _checked(key, fields[key], str(kind))
    if not 0 <= fields.get("heartbeat_boottime", 0.0) < LONGEST_BOOT:
        raise ValueError('its "heartbeat_boottime" is not usable')
    if fields["task_id"] != task_id:
        raise ValueError("its task_id is another one")
    if parse_time(fields["heartbeat_at"]) is None:
        raise ValueError("its heartbeat_at is no time")
    return Lease(**fields)


def _checked(key: str, value: Any, kind: str) -> Any:
    if "str" in kind and isinstance(value, str):
        return value
    if "tuple" in kind and isinstance(value, list) and all(type(each) is int for each in value):
        return tuple(value)
    if "float" in kind and index.number(value) is not None:
        return float(value)
    if kind.endswith(("int", "'int')")) and type(value) is int and value >= 0:
        return value
    raise ValueError(f'its "{key}" is not usable')


def gone(lease: Lease, me: Identity, now: float, boottime: float) -> str:
    """Whether the lease's attempt is gone: "died", "expired", or "" while it is live.

    ``now`` is wall time, ``boottime`` CLOCK_BOOTTIME, which counts on the lease's own boot: a
    stepped clock ends no lease there, nor prolongs it.
    """
    if is_here(lease, me) and (
        lease.boot_id != me.boot_id or not process.is_alive(lease.pid, lease.pid_started)
    ):
        return "died"
    return "expired" if seconds_left(lease, me, now, boottime) <= 0 else ""


def is_here(lease: Lease, me: Identity) -> bool:
    """Whether the lease names a process whose pid we can look up."""
    machine = (lease.machine_id, lease.pid_namespace, lease.host if not me.machine_id else "")
    mine = (me.machine_id, me.pid_namespace, me.host if not me.machine_id else "")
    return lease.pid > 0 and machine == mine


def seconds_left(lease: Lease, me: Identity, now: float, boottime: float) -> float:
    """How long until the lease runs out, unless it is renewed."""
    if lease.boot_id and lease.boot_id == me.boot_id and lease.heartbeat_boottime > 0:
        return lease.heartbeat_boottime + lease.ttl_seconds - boottime
    return (parse_time(lease.heartbeat_at) or 0.0) + lease.ttl_seconds - now


def believed(lease: Lease, written: float, now: float) -> Lease:
    """The lease with a beat that its file can vouch for: it was written at that wall time.

    One that will beat in more than its time to live, and says so by more than its file, is not
    waited for until then. Where boot time counts, that decides all the same.
    """
    latest = max(written, now) + max(0.0, lease.ttl_seconds)
    if (parse_time(lease.heartbeat_at) or 0.0) <= latest:
        return lease
    return lease._replace(heartbeat_at=format_time(written))


class Found(NamedTuple):
    """All lease files: those we understand by task id, and what is wrong with the others.

    ``broken`` ones bar their task; what is told in ``doubts``, by the name of the file, bars none.
    """

    leases: dict[str, Lease]
    broken: dict[str, str]
    doubts: dict[str, str]


class Leases:
    """The folder of leases."""

    def __init__(self, folder: str, locks: str, clock: Callable[[], float]) -> None:
        self.folder, self.locks, self.clock = folder, locks, clock

    def path(self, task_id: str) -> str:
        """The task's lease file."""
        return os.path.join(self.folder, task_id + SUFFIX)

    def lock(self, task_id: str) -> AbstractContextManager[int]:
        """The lock of one lease."""
        return lock.hold(os.path.join(self.locks, f"lease-{task_id}.lock"), LOCK_WAIT)

    def read(self, task_id: str) -> Lease | None:
        """The task's lease, as far as it is believed. Raises RolecallError for what is none."""
        found = self.look(task_id)
        return found and believed(*found, self.clock())

    def look(self, task_id: str) -> tuple[Lease, float] | None:
        """The task's lease, and when its file was written.

        A file that has been empty for a while is none: a renewal is not synced, and some file
        systems leave that of it when the power fails.
        """
        path = self.path(task_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            what = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise self.refused(task_id, f"{what}") from None
        try:
            facts = os.fstat(fd)
            if not modes.S_ISREG(facts.st_mode):
                raise self.refused(task_id, "not a regular file")
            data = os.read(fd, LONGEST + 1)
        except OSError as error:
            raise self.refused(task_id, str(error.strerror)) from None
        finally:
            os.close(fd)
        if len(data) > LONGEST:
            raise self.refused(task_id, "too large")
        # Whoever may set the one time cannot set the other.
        written = min(facts.st_mtime, facts.st_ctime)
        if not data.strip(b"\0") and written + EMPTY < self.clock():
            return None
        try:
            return decode(data, task_id), written
        except ValueError as error:
            raise self.refused(task_id, str(error)) from None

    def refused(self, task_id: str, what: str) -> RolecallError:
        """The one error of a lease file that cannot be used."""
        return RolecallError(
            f"the lease cannot be used: {what}; its task is left alone",
            where=self.path(task_id),
            hint=f"mend it or remove it: rm {self.path(task_id)}",
        )

    def every(self) -> Found:
        """All leases as they are now."""
        found = Found({}, {}, {})
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return found
        except OSError as error:
            hint = f"look at it: ls -ld {self.folder}"
            what = f"cannot read the leases: {error.strerror}"
            raise RolecallError(what, where=self.folder, hint=hint) from None
        now = self.clock()
        for name in names:
            task_id, path = name.removesuffix(SUFFIX), os.path.join(self.folder, name)
            if name == task_id or name.startswith("."):  # another tool's own, or half-written
                continue
            if not is_task_id(task_id):
                found.doubts[name] = f"{path}: no task can have that id: the file is left alone"
                continue
            try:
                seen = self.look(task_id)
            except RolecallError as error:
                found.broken[task_id] = str(error)
                continue
            if seen is None:
                continue
            found.leases[task_id] = lease = believed(*seen, now)
            if lease is not seen[0] and not lease.heartbeat_boottime:
                found.doubts[name] = (
                    f"{path}: its heartbeat_at {seen[0].heartbeat_at} is later than the file:"
                    f" it counts as {lease.heartbeat_at}, for {lease.ttl_seconds:g} s"
                )
        return found

    def write(self, lease: Lease, *, sync: bool) -> None:
        """Put the lease in place, over whatever is there. Its lock is held.

        With ``sync`` the file lasts; the folder it stands in is the caller's to sync.
        """
        path = self.path(lease.task_id)
        if not os.path.isdir(self.folder):
            try:
                os.makedirs(self.folder, exist_ok=True)
            except OSError as error:
                raise durable.failure(error, self.folder) from None
        aside = durable.write_aside(path, encode(lease), like=None, sync=sync)
        durable.put(aside.path, path)

    def rewrite(self, lease: Lease) -> None:
        """Put a newer form of the lease in the place of its file; it need not last.

        Raises LeaseLost where a person has removed that since it was read: it must not come back.
        """
        path = self.path(lease.task_id)
        aside = durable.write_aside(path, encode(lease), like=None, sync=False)
        if not os.path.lexists(path):
            durable.drop(aside.path)
            raise LeaseLost(f"the lease of {lease.task_id} is gone")
        durable.put(aside.path, path)

    def own(self, lease: Lease) -> Lease:
        """The lease as its file has it. Raises LeaseLost when it is another's or gone."""
        now = self.read(lease.task_id)
        if now is None:
            raise LeaseLost(f"the lease of {lease.task_id} is gone")
        if now.token != lease.token or now.role != lease.role:
            raise LeaseLost(f"the lease of {lease.task_id} is another's: token {now.token}")
        return now

    def ask(self, lease: Lease, wish: str, who: str) -> Lease:
        """The lease with a person's wish, written into its file, where that is there."""
        with self.lock(lease.task_id):
            try:
                lease = self.own(lease)._replace(wish=wish, wished_by=who)
                self.rewrite(lease)
            except LeaseLost:
                return lease._replace(wish=wish, wished_by=who)
        return lease

    def remove(self, lease: Lease) -> None:
        """End the lease, if the file is still of this token."""
        try:
            with self.lock(lease.task_id):
                found = self.read(lease.task_id)
                if found is None or found.token == lease.token:
                    durable.drop(durable.aside_of(self.path(lease.task_id)))
                    durable.drop(self.path(lease.task_id))
        except RolecallError:
            return  # what is left is no task's: it is removed when its process has ended

    def left(self) -> list[str]:
        """What killed writers left beside leases that are no more.

        Under the queue's lock, nobody is about to put them in place.
        """
        try:
            names = set(os.listdir(self.folder))
        except OSError:
            return []
        ids = (name[1:].removesuffix(f"{SUFFIX}.new") for name in names if name[0] == ".")
        return [
            aside
            for task_id in ids
            if is_task_id(task_id) and task_id + SUFFIX not in names
            if os.path.basename(aside := durable.aside_of(self.path(task_id))) in names
        ]
