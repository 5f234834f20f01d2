"""A queue that cannot be asked for a while, and one that is no file."""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_mock import MockerFixture

from daemon import __main__ as command
from daemon import launch
from daemon.attending import RETRY, RETURN, Attempts
from daemon.config import Config
from daemon.errors import QueueUnreachable, QueueUnreadable, RolecallError
from daemon.evidence import own_paths
from daemon.fleet import copied, init, workers
from daemon.fleet.connection import Local
from daemon.fleet.here import Fleet, UsageError
from daemon.inventory import Host, Inventory
from daemon.log import Log
from daemon.model import Lease, Move
from daemon.queue import Queue, Stale, Waker
from daemon.queue.file import FileQueue
from daemon.service import Notifier
from daemon.wake import Signals
from daemon.worker import Mode, Worker
from tests.console import git_init
from tests.queues import FAR, FileBackend

URL = "postgresql://db.example/sprint"
INTERVAL = 3600.0


class Away(FileQueue):
    """Nobody answers the first question."""

    asked = False
    error: RolecallError = QueueUnreachable("no answer", where=URL)

    def answer(self) -> None:
        if not self.asked:
            self.asked = True
            raise self.error

    def stale(self) -> list[Stale]:
        self.answer()
        return super().stale()

    def live(self, role: str | None = None, host: str | None = None) -> list[Lease]:
        self.answer()
        return super().live(role, host)

    def exists(self) -> bool:
        self.answer()
        return super().exists()


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """One whose queue is away."""
    return worker_of(Away(FileBackend(tmp_path, interval=INTERVAL).config))


def worker_of(queue: Queue) -> Worker:
    """A builder that is not told of anything."""
    config = queue.config
    return Worker(
        config,
        ["builder"],
        queue,
        Log(config.paths.logs, "builder", "me", form="none"),
        mode=Mode(),
        owner=lambda _: "me",
        notifier=Notifier(),
        signals=cast("Signals", None),
        watch=queue.watch(["builder"]),
        environ={},
        reload=lambda: (config, queue),
    )


@pytest.mark.parametrize(
    ("error", "between"),
    [
        (QueueUnreachable("no answer"), (-INTERVAL, RETRY)),
        (QueueUnreadable("torn"), (RETRY, INTERVAL)),
    ],
)
def test_who_gets_no_answer_asks_again_soon(
    worker: Worker, error: RolecallError, between: tuple[float, float]
) -> None:
    """A text is mended by somebody whose saving wakes the worker; a server that is back is silent.

    Broken once by waiting in both cases, and once by asking again in both.
    """
    cast("Away", worker.queue).error = error
    worker.look()
    worker.watch.close()
    least, most = between
    assert least < worker.look_at - time.monotonic() <= most


class Seen(FileQueue):
    """Leases that are as the test has them."""

    found: tuple[Stale, ...] | RolecallError = ()

    def stale(self) -> list[Stale]:
        if isinstance(self.found, RolecallError):
            raise self.found
        self.recovered = list[str]()
        return [*self.found]

    def recover(self, stale: Stale) -> tuple[Move, ...]:
        self.recovered.append(stale.task_id)
        return ()

    def claim(self, *_: object, **__: object) -> None:
        raise QueueUnreachable("no answer")


def gone(task_id: str, why: str, token: int = 1) -> Stale:
    lease = Lease(task_id, "builder", "far:builder", "2026-01-01T00:00:00Z", 60.0, "", token, 1)
    return Stale(lease._replace(**FAR._asdict()), task_id, why)


def test_what_has_run_out_on_a_server_is_recovered_when_it_was_seen_so_for_a_while(
    tmp_path: Path, mocker: MockerFixture
) -> None:
    """The worker looks just then. What died or vanished needs no second look.

    It counts anew where the lease was renewed, is another's, or nobody answered in between.
    Broken once by leaving out each of these, and by looking again at the next interval.
    """
    config = FileBackend(tmp_path).config._replace(queue=URL)
    log = Log(config.paths.logs, "builder", "me", form="none")
    queue, now = Seen(config), mocker.patch("time.monotonic", return_value=0.0)
    start = launch.start
    keys: dict[str, Any] = {"environ": {}, "unit_log": "", "start": start, "foreground": False}
    attempts = Attempts(config, queue, log, **keys)

    def looked(moment: float, *found: Stale) -> list[str]:
        queue.found, attempts.look_at, now.return_value = found, math.inf, moment
        attempts.recover()
        return queue.recovered

    late = gone("T1", "expired")
    assert looked(0, late, gone("T2", "died"), gone("T3", "vanished")) == ["T2", "T3"]
    assert attempts.look_at == attempts.doubt() == RETURN
    assert looked(RETURN - 1, late, gone("T4", "expired")) == []
    assert attempts.look_at == RETURN
    assert looked(RETURN, late, gone("T4", "expired")) == ["T1"]
    assert attempts.look_at == 2 * RETURN - 1
    assert looked(100) == []
    assert looked(200, late) == []
    assert looked(201, gone("T1", "expired", token=2)) == []
    assert looked(200 + RETURN, late) == []
    renewed = late._replace(lease=late.lease._replace(heartbeat_at="2026-01-01T00:01:00Z"))
    assert looked(200 + 2 * RETURN, renewed) == []
    assert looked(300, late) == []
    queue.found = QueueUnreachable("no answer")
    with pytest.raises(QueueUnreachable):
        attempts.recover()
    assert looked(300 + RETURN, late) == []
    assert looked(300 + 2 * RETURN, late) == ["T1"]


def test_a_server_that_went_away_within_a_look_was_away(tmp_path: Path) -> None:
    """What was seen to have run out counts from its return.

    Broken once by forgetting it only where the leases themselves could not be read.
    """
    queue = Seen(FileBackend(tmp_path, interval=INTERVAL).config._replace(queue=URL))
    worker = worker_of(queue)
    queue.found = (gone("T1", "expired"),)
    worker.look()
    worker.watch.close()
    assert worker.is_away
    assert worker.attempts.doubted == {}


def test_who_hands_over_leaves_though_the_queue_is_away(worker: Worker) -> None:
    """Whether its attempts have begun, it asks again.

    Broken once by letting the error through.
    """
    assert worker.hand_over() == 0
    worker.watch.close()
    assert cast("Away", worker.queue).asked


def test_a_worker_starts_though_the_queue_is_away(tmp_path: Path) -> None:
    """Only a queue that is known to be missing is told so; for the other it waits."""
    config = FileBackend(tmp_path).config
    assert not command.is_missing(Away(config))
    assert command.is_missing(FileQueue(config))


def test_a_status_hides_no_worker_whose_queue_is_away(
    tmp_path: Path, mocker: MockerFixture
) -> None:
    """It says who does not answer, once, and goes on.

    Broken once by asking for the pauses in the way of the rest.
    """
    queue = Away(FileBackend(tmp_path).config)
    mocker.patch("daemon.queue.opening.open_queue", return_value=queue)
    mocker.patch.object(queue.memory, "pauses", side_effect=queue.error)
    working, pauses, trouble, _ = workers._working(queue.config, ["builder", "tester"])
    assert (working, pauses, trouble) == ({}, {}, f"{URL}: no answer")


def test_a_database_is_nothing_of_a_workspaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No path to be kept from evidence, no file to be made, committed, merged or asked for.

    Broken once by leaving out each of the conditions: the URL was taken for a path.
    """
    monkeypatch.chdir(tmp_path)  # where a relative path would be one of the workspace's
    config = FileBackend(tmp_path).config._replace(queue=URL)
    assert not [path for path in own_paths(config) if "db.example" in path]
    step = init.make_queue(config)
    assert (step.did, step.path) == ("none", URL)
    assert "invoke queue.init" in step.note
    assert init.offer_commit(config) == init.offer_merge_driver(config) == []
    (step,) = init.set_merge_driver(config)
    assert (step.did, step.path) == ("none", URL)
    assert not [path for path in tmp_path.rglob("*") if "sprint" in path.name]


def test_no_host_lacks_the_file_of_a_database(tmp_path: Path) -> None:
    """What a workspace lacks is told, and no queue: that is made once, for all hosts.

    Broken once by looking for the URL as a path.
    """
    git_init(tmp_path)
    file = FileBackend(tmp_path).config
    (lack,) = copied.lacks(Local(), file)
    assert lack.startswith(f"there is no {file.queue_file}")
    assert copied.lacks(Local(), file._replace(queue=URL)) == []


def test_a_person_gets_to_a_database_with_psql(tmp_path: Path) -> None:
    """A command that looks at this machine says how to look from the host, whatever is there.

    Broken once by offering an editor.
    """

    class Far:
        """An inventory of which one host is asked for."""

        folder, every = "inventory", ("web1", "web2")

        def config(self, _host: Host) -> Config:
            return FileBackend(tmp_path).config._replace(queue=f"{URL}?sslmode=require")

    with pytest.raises(UsageError) as error:
        Fleet(cast("Inventory", Far()), [Host("web1", {}, {})]).here()
    psql = shlex.join(["psql", f"{URL}?sslmode=require"])
    hint = error.value.problems[0].hint
    assert hint.endswith(f"a database: ssh -t web1 {shlex.quote(psql)}")


def test_nobody_sleeps_on_what_was_told_already(worker: Worker) -> None:
    """What an answer brought with it no descriptor shows any more."""
    worker.watch.close()
    worker.watch = cast("Waker", SimpleNamespace(fd=-1, pending=True))
    worker.signals = cast("Signals", SimpleNamespace(fd=-1))
    worker.look_at = time.monotonic() + 30
    worker.sleep()
    assert time.monotonic() < worker.look_at
