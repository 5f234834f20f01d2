"""What keeps workers running on a host: one interface, two kinds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from daemon.config import Config
from daemon.fleet.connection import Local

SYSTEMD, PIDFILE = "systemd", "pidfile"
BOOTED = "/run/systemd/system"  # sd_booted(3)


class State(NamedTuple):
    """One worker as its supervisor sees it. ``since`` is in seconds since the epoch.

    ``state``: running, starting, stopping, stopped, failed or not installed.
    """

    state: str
    pid: int | None = None
    since: float | None = None
    restarts: int = 0
    text: str = ""


class Told(NamedTuple):
    """What came of telling a worker to start or stop. ``note``: why not, in several lines."""

    did: str
    ok: bool = True
    note: str = ""


class Supervisor(Protocol):
    """Starts, stops and watches the workers of one workspace on one host.

    Each call takes several roles and answers for each of them.
    """

    name: str

    def files(self) -> dict[str, str]:
        """The files it needs on the host for the roles that run there: path to text."""
        ...

    def installed(self) -> dict[str, str]:
        """Those of its prefix that are on the host, wanted or not: path to text."""
        ...

    def missing(self, changed: Sequence[str], *, check: bool = False) -> list[str]:
        """What is to be done (words for a person) beside changing these files.

        ``check``: nothing was done before that, lingering included.
        """
        ...

    def notes(self, *, fresh: bool) -> list[str]:
        """What a person has to do, or to know where the host's install is ``fresh``."""
        ...

    def forget(self, removed: Sequence[str]) -> None:
        """Stop and disable what these files define, before they are removed."""
        ...

    def refresh(self, changed: Sequence[str], *, enable: bool = True) -> None:
        """Read changed files again; have the workers start at boot, where it can."""
        ...

    def disabled(self) -> list[str]:
        """Which of its units are not to start at boot."""
        ...

    def disable(self, names: Sequence[str]) -> None:
        """Have these units not start at boot; those that run are left alone."""
        ...

    def states(self, roles: Sequence[str]) -> dict[str, State]:
        """How the workers are."""
        ...

    def start(self, roles: Sequence[str]) -> dict[str, Told]:
        """Start the workers, and wait until each is ready or has failed."""
        ...

    def stop(self, roles: Sequence[str]) -> dict[str, Told]:
        """Stop the workers: each drains within its stop budget first."""
        ...

    def restart(self, roles: Sequence[str]) -> dict[str, Told]:
        """Hand the attempts over to new workers."""
        ...

    def kill(self, roles: Sequence[str]) -> None:
        """End workers that heed nothing, at once. Their attempts live on."""
        ...

    def logs(self, roles: Sequence[str], lines: int, *, follow: bool) -> Iterator[str]:
        """What the workers said, oldest first."""
        ...


def reason(text: str, log: Iterable[str]) -> str:
    """Why a worker does not run, and what its log adds: each line once.

    It may have tried several times, and said each time what its status says, too.
    """
    lines = dict.fromkeys(filter(None, (line.strip() for line in log)))
    said = [line for line in lines if line.removeprefix("error: ") not in text]
    return "\n".join([text, *said])


def supervisor_name(connection: Local, config: Config) -> str:
    """The kind of supervisor that the host gets: what the config says, ``auto`` resolved."""
    if config.supervisor != "auto":
        return config.supervisor
    return SYSTEMD if connection.exists(BOOTED) else PIDFILE


def supervisor(connection: Local, config: Config) -> Supervisor:
    """The host's supervisor."""
    if supervisor_name(connection, config) == SYSTEMD:
        from daemon.fleet.systemd import Systemd  # noqa: PLC0415  # one of the two is needed

        return Systemd(connection, config)
    from daemon.fleet.pidfile import PidFiles  # noqa: PLC0415  # or the other

    return PidFiles(connection, config)
