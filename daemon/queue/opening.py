"""The one door to a queue, whatever it is kept in."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from daemon import packages
from daemon.config import Config
from daemon.errors import ConfigError

if TYPE_CHECKING:
    from daemon.process import Identity
    from daemon.queue import Queue
    from daemon.queue.outbox import Teller


def open_queue(
    config: Config,
    *,
    teller: Teller | None = None,
    me: Identity | None = None,
    clock: Callable[[], float] | None = None,
) -> Queue:
    """The config's queue. ``teller`` tells each state change; ``me`` claims: else this process.

    ``clock``: else this host's for a file, the server's for a database. Nothing is read and nobody
    asked yet. Raises ConfigError for a kind that is not installed.
    """
    if config.on_postgres:
        packages.reach()
        try:
            from daemon.queue.postgres import PostgresQueue  # noqa: PLC0415  # see below
        except ModuleNotFoundError as error:
            if error.name != "psycopg":
                raise
            from daemon.queue.database import HINT, MISSING  # noqa: PLC0415  # only here

            raise ConfigError(MISSING, where=config.queue_name, hint=HINT) from None
        return PostgresQueue(config, teller=teller, me=me, clock=clock)
    from daemon.queue.file import FileQueue  # noqa: PLC0415  # each kind is loaded where it is used

    return FileQueue(config, teller=teller, me=me, clock=clock or time.time)


def how_to_make(config: Config) -> str:
    """The command that makes the queue where there is none, as it is typed."""
    import shlex  # noqa: PLC0415  # only errors say it

    if config.on_postgres:
        return "invoke queue.init"
    return f"invoke init --workspace {shlex.quote(config.workspace)}"
