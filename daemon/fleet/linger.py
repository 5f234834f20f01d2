"""Lingering: whether a user's workers outlive the last logout, and start at boot."""

from __future__ import annotations

import os

from daemon.fleet.connection import Local, Unreachable

FOLDER = "/var/lib/systemd/linger"


def state(connection: Local) -> bool:
    """Whether it is on."""
    return connection.exists(os.path.join(FOLDER, connection.user))


def enable(connection: Local) -> str:
    """Turn it on; returns what a person has to do where that is not allowed ("" where it was)."""
    user = connection.user
    said = _ask(connection, "enable-linger")
    if state(connection):
        return ""
    return (
        f"lingering is off ({said}): the workers end at the last logout and "
        f"do not start at boot. As root: loginctl enable-linger {user}"
    )


def doubt(connection: Local) -> str:
    """What cannot be known before it is turned on, and what a person has to do then."""
    return (
        f"whether {connection.user} may turn lingering on is known only when it is tried; if not, "
        f"as root: loginctl enable-linger {connection.user}"
    )


def disable(connection: Local) -> str:
    """Turn it off; returns what a person has to do where that is not allowed."""
    user = connection.user
    said = _ask(connection, "disable-linger")
    if not state(connection):
        return ""
    return (
        f"install turned lingering on, and it cannot be turned off ({said}). "
        f"As root: loginctl disable-linger {user}"
    )


def _ask(connection: Local, what: str) -> str:
    """What loginctl has to say, or why it cannot be asked. For oneself that needs polkit."""
    try:
        # Outside of a login session it does not know by itself whose lingering is meant.
        return connection.run(["loginctl", what, connection.user]).said.strip(".") or "refused"
    except Unreachable as error:
        return error.problems[0].what
