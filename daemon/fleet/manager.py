"""This account's user manager on a host: whether it can be worked with, and how to mend it."""

from __future__ import annotations

import os

from daemon.fleet import linger
from daemon.fleet.connection import Local, Unreachable
from daemon.fleet.supervisor import BOOTED

OR_ELSE = "set supervisor: pidfile for it in the inventory"
NOT_RUNNING = ("inactive", "failed")


class NoManager(Unreachable):
    """The account has no user manager now: whatever units it has, none of them runs."""


class Dark(NoManager):
    """It has none for lingering is off, and nobody is logged in: turning it on starts one."""


def manager_problem(connection: Local) -> Unreachable | None:
    """Why the user manager cannot be worked with, and how to mend it; None where it can."""
    try:
        done = connection.run(["systemctl", "--user", "show", "--property=Version"])
    except Unreachable as error:
        return Unreachable(error.problems[0].what, hint=OR_ELSE)
    if done.status == 0:
        return None
    if not connection.exists(BOOTED):
        return NoManager(f"systemd does not run this host (there is no {BOOTED})", hint=OR_ELSE)
    user, unit = connection.user, f"user@{os.getuid()}.service"
    who = f"the user manager of {user}"
    state = connection.run(["systemctl", "is-active", unit]).out.strip()
    if state not in NOT_RUNNING:
        what = f"{who} can't be reached: {done.said}"
        return Unreachable(what, hint=f"systemctl status {unit}; or {OR_ELSE}")
    if state == "failed":
        what = f"{who} has failed"
        hint = f"as root: journalctl --unit={unit}, then systemctl restart {unit}"
        return NoManager(what, hint=f"{hint}  (it needs libpam-systemd)")
    if linger.state(connection):
        what = f"{who} does not run, though lingering is on"
        return NoManager(what, hint=f"as root: systemctl start {unit}")
    what = f"{who} does not run: lingering is off, and nobody is logged in"
    return Dark(what, hint=f"as root: loginctl enable-linger {user}; or {OR_ELSE}")


def bus_problem(connection: Local) -> tuple[str, str] | None:
    """That attempts cannot be started, and what to type: they are asked for over D-Bus."""
    if connection.exists(os.path.join(connection.environ["XDG_RUNTIME_DIR"], "bus")):
        return None
    mend = "systemctl --user daemon-reload && systemctl --user start dbus.socket"
    return (
        f"{connection.user} has no session bus, without which no attempt can be started",
        f"as root: apt-get install dbus-user-session; then: {mend}",
    )
