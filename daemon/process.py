"""Who a process is: what tells it from a later one that got the same number."""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple


class Identity(NamedTuple):
    """A process of some host, told apart from every other one that ever had its pid."""

    host: str
    machine_id: str
    boot_id: str
    pid_namespace: str
    pid: int
    pid_started: int


class Stat(NamedTuple):
    """What /proc/PID/stat says, as far as we ask. ``started`` is in clock ticks since boot."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int


def stat(pid: int) -> Stat | None:
    """The process's facts, or None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(pid, fields[0].decode(), *(int(fields[i]) for i in (1, 2, 3, 19)))


def every() -> list[Stat]:
    """All processes that this one can see."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [found for pid in pids if (found := stat(pid))]


def has_children() -> bool:
    """Whether this process has any child, ended ones included; cheaper than looking for them."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def is_alive(pid: int, started: int) -> bool:
    """Whether exactly this process still runs. A zombie has ended."""
    found = stat(pid) if pid > 0 else None
    return found is not None and found.started == started and found.state not in "ZX"


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


@cache
def boot_id() -> str:
    """This boot of this machine ("" where the system does not say)."""
    return _read("/proc/sys/kernel/random/boot_id")


@cache
def machine_id() -> str:
    """This installation ("" where the system does not say)."""
    return _read("/etc/machine-id") or _read("/var/lib/dbus/machine-id")


@cache
def pid_namespace() -> str:
    """The namespace that pids of ours count in ("" where the system does not say)."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def identity(pid: int | None = None) -> Identity:
    """Who this process is, or the one with that pid."""
    return _identity(pid) if pid else _own()


def _identity(pid: int) -> Identity:
    found = stat(pid)
    started = found.started if found else 0
    return Identity(os.uname().nodename, machine_id(), boot_id(), pid_namespace(), pid, started)


@cache
def _own() -> Identity:
    return _identity(os.getpid())


os.register_at_fork(after_in_child=_own.cache_clear)
