"""What workers said: the journal, where this account may read it, and their own files elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daemon.errors import RolecallError
from daemon.fleet.connection import Local, Unreachable
from daemon.log import KEPT

KEEP = (
    f"as root: mkdir {KEPT} && systemd-tmpfiles --create --prefix {KEPT}"
    " && systemctl restart systemd-journald"
)
GROUP = "systemd-journal"  # whose members may read all of the journal


def problem(connection: Local, kept: str = KEPT) -> RolecallError | None:
    """Why the journal shows this account nothing, and what to type; None where it does.

    ``kept``: the folder that journald keeps its files in, where there is one.
    """
    try:
        # Not --user, which passes over the journal of all that members of GROUP may read.
        done = connection.run(["journalctl", "--quiet", "--lines=0", "--user-unit=none"])
    except Unreachable as error:
        return RolecallError(error.problems[0].what, hint="install systemd's journalctl")
    if done.status == 0:
        return None
    user = connection.user
    if connection.exists(kept):
        what = f"{user} may not read the journal: {done.said}"
        hint = f"as root: usermod --append --groups {GROUP} {user}  (it counts from the next login)"
        return RolecallError(what, hint=hint)
    what = f"{user} may not read the journal, which is not kept on disk (there is no {kept})"
    return RolecallError(what, hint=KEEP)


def command(unit_names: Sequence[str], lines: int, *more: str) -> list[str]:
    """The command that prints what these units, and what speaks in their names, said last."""
    names = [f"--user-unit={name}" for name in unit_names]
    return ["journalctl", "--quiet", "--no-pager", f"--lines={lines}", *more, *names]


def from_files(
    connection: Local, paths: Sequence[str], lines: int, *, follow: bool
) -> Iterator[str]:
    """The last lines of each file, one after another; then what is added to them."""
    files = [path for path in paths if connection.exists(path)]
    if follow:
        return connection.lines(["tail", f"--lines={lines}", "-F", "--", *files])
    several = len(files) > 1
    return (
        line
        for path in files
        for line in ([f"==> {path} <=="] if several else []) + connection.tail(path, lines)
    )
