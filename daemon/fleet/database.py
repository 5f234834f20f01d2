"""``queue.init``: the databases that hold queues of the inventory's hosts, made ready."""

from __future__ import annotations

from daemon import uri
from daemon.errors import ConfigError, Problem
from daemon.fleet.here import Fleet, UsageError
from daemon.queue import database

NOTHING = "nothing to do: the queue's schema is version {}"


def init(fleet: Fleet, owner: str | None = None) -> list[str]:
    """Lines of what was done in each database; ``owner``: the one, as its owner reaches it.

    Raises UsageError where no host's queue is in a database.
    """
    urls = [owner] if owner else list(_urls(fleet))
    if owner and (wrong := [Problem("--queue", *each) for each in uri.wrong(owner)]):
        raise ConfigError.of(wrong)
    if not urls:
        what = "no host's queue is on PostgreSQL: they are files"
        raise UsageError(what, where=fleet.inventory.folder, hint="invoke init makes those")
    lines = list[str]()
    for url in urls:
        with database.connect(url, "queue.init") as connection:
            from daemon.queue import migrating  # noqa: PLC0415  # connect says that psycopg is missing

            done = migrating.migrate(connection)
            done = done or [NOTHING.format(migrating.newest())]
        lines += [f"{url}: {line}" for line in done]
    return lines


def _urls(fleet: Fleet) -> dict[str, None]:
    configs = fleet.inventory.configs(fleet.hosts).values()
    return {config.queue: None for config in configs if config.on_postgres}
