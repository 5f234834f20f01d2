"""Lingering: whether a user's workers outlive the last logout, and start at boot."""

from __future__ import annotations

import os

from daemon.fleet.connection import Local

FOLDER = "/var/lib/systemd/linger"


def state(connection: Local) -> bool:
    """Whether it is on."""
    return connection.exists(os.path.join(FOLDER, connection.user))


def enable(connection: Local) -> str:
    """Turn it on; returns what a person has to do where that is not allowed ("" where it was)."""
    user = connection.user
    done = connection.run(["loginctl", "enable-linger", user])
    if done.status == 0 and state(connection):
        return ""
    return (
        f"lingering is off ({done.said or 'refused'}): the workers end at the last logout and "
        f"do not start at boot. As root: loginctl enable-linger {user}"
    )


def disable(connection: Local) -> str:
    """Turn it off; returns what a person has to do where that is not allowed."""
    user = connection.user
    done = connection.run(["loginctl", "disable-linger", user])
    if done.status == 0 and not state(connection):
        return ""
    return (
        f"install turned lingering on, and it cannot be turned off ({done.said or 'refused'}). "
        f"As root: loginctl disable-linger {user}"
    )
