"""What a queue's move into a database can leave behind: its file, and attempts that hold its tasks.

Workers that still read the file would make a second queue of it; so would a branch that brings a
committed file back.
"""

from __future__ import annotations

import os

from daemon.config import FILE, Config
from daemon.errors import RolecallError
from daemon.index import status_of
from daemon.lifecycle import ENDED
from daemon.queue.opening import open_queue
from daemon.schema import QUEUE

HINT = "invoke queue.check --against it, then rename it (git mv): nobody shall take it for a queue"


def attempts(config: Config) -> list[str]:
    """The tasks on which attempts are that will settle into the file, by this host's leases."""
    if not config.on_postgres:
        return []
    return sorted(lease.task_id for lease in open_queue(_before(config)).live())


def problem(config: Config) -> str:
    """What is wrong with a file that lies where the queue was, where one does; "" for nothing."""
    before = _before(config)
    if not config.on_postgres or not os.path.lexists(before.queue_file):
        return ""
    try:
        tasks = open_queue(before).snapshot().tasks.entries
    except RolecallError as error:
        return f"{before.queue_file}: not the queue, and unreadable: {error.problems[0].what}"
    left = sum(status_of(entry.task) not in ENDED for entry in tasks)
    if not left:
        return ""
    noun = "1 open task" if left == 1 else f"{left} open tasks"
    return f"{before.queue_file}: not the queue, which is in the database, and it holds {noun}"


def _before(config: Config) -> Config:
    return config._replace(queue=FILE + os.path.join(config.workspace, QUEUE))
