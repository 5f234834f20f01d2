"""Writes whose last step fails: what may not last is never trusted, and begun anew."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.errors import LeaseLost, RolecallError
from daemon.model import Outcome, Result
from daemon.queue import durable
from daemon.queue.file import FileQueue
from tests.queues import FileBackend


class Disk:
    """Stands for fsync: counts what reaches the disk, and fails where it is told to."""

    def __init__(self, fsync: Callable[[int], None]) -> None:
        self.fsync, self.fails = fsync, ""  # or the end of the path that cannot be synced
        self.synced: list[str] = []

    def __call__(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if self.fails and path.endswith(self.fails):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.fsync(fd)
        kind = "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        self.synced.append(f"{kind} {os.path.basename(path)}")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The system's fsync, under the test's control."""
    made = Disk(os.fsync)
    monkeypatch.setattr(os, "fsync", made)
    return made


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """A queue of one ready task."""
    made = FileBackend(tmp_path)
    made.fill({"id": "T1", "status": "ready"})
    return made


@pytest.mark.parametrize(
    "place",
    ["leases/.T1.json.new", "leases", "runs", "runs/T1", ".SPRINT_QUEUE.json.new", "queue folder"],
)
def test_a_claim_that_cannot_be_synced_is_none(
    backend: FileBackend, disk: Disk, place: str
) -> None:
    """Whichever step fails, nothing of it is left, and the next try syncs every step again.

    Broken once by keeping a run folder whose making could not be synced, and once by keeping such
    a lease: this failed both times.
    """
    before = backend.path.read_bytes()
    disk.fails = str(backend.folder) if place == "queue folder" else f"{backend.folder}/{place}"
    with pytest.raises(durable.DiskError, match="Input/output error"):
        backend.open().claim("builder", "me")
    assert list((backend.folder / "leases").iterdir()) == []
    runs = backend.folder / "runs"
    assert not runs.exists() or list(runs.iterdir()) == []
    assert not list(backend.folder.glob(".*"))
    if place == "queue folder":  # it is in its place already, held under no lease
        assert [stale.why for stale in backend.open().stale()] == ["vanished"]
        disk.fails = ""
        backend.open().recover(backend.open().stale()[0])
    else:
        assert backend.path.read_bytes() == before
    disk.fails = ""
    disk.synced.clear()
    assert backend.open().claim("builder", "me") is not None
    lease, *together, last = disk.synced
    assert (lease, last) == ("file .T1.json.new", f"folder {backend.folder.name}")
    files = ["file .SPRINT_QUEUE.json.new"]
    assert sorted(together) == [*files, "folder T1", "folder leases", "folder runs"]


@pytest.mark.parametrize("place", [".SPRINT_QUEUE.json.new", ""])
def test_a_settling_write_that_cannot_be_synced_is_made_once_and_anew(
    backend: FileBackend, disk: Disk, place: str
) -> None:
    """The attempt that tries again finds its own write and syncs it; it is not told "lost".

    Broken once by taking what is found for another's, and once by trusting it as it is: this
    failed both times.
    """
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    disk.fails = f"{backend.folder}/{place}" if place else str(backend.folder)
    for _ in range(2):
        with pytest.raises(durable.DiskError, match="Input/output error"):
            queue.settle(claim.lease, Result(Outcome.ERROR, "broke"))
    assert backend.lease_file("T1").exists()
    disk.fails = ""
    disk.synced.clear()
    (move,) = queue.settle(claim.lease, Result(Outcome.ERROR, "broke"))
    assert (move.outcome, move.target) == ("error", "ready")
    assert disk.synced == ["file .SPRINT_QUEUE.json.new", f"folder {backend.folder.name}"]
    assert backend.task("T1")["attempts"] == 1
    assert not backend.lease_file("T1").exists()
    with pytest.raises(LeaseLost):
        queue.settle(claim.lease, Result(Outcome.ERROR, "broke"))


def test_a_result_that_is_found_written_may_have_been_moved_on(
    backend: FileBackend, disk: Disk
) -> None:
    """Another's write on top of ours has synced it, and stays."""
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    disk.fails = str(backend.folder)
    with pytest.raises(durable.DiskError):
        queue.settle(claim.lease, Result(Outcome.SUCCESS))
    disk.fails = ""
    backend.change("T1", status="cancelled")
    (move,) = queue.settle(claim.lease, Result(Outcome.SUCCESS))
    assert (move.target, backend.task("T1")["status"]) == ("awaiting_test", "cancelled")


def test_a_rehearsal_leaves_nothing(backend: FileBackend, disk: Disk) -> None:
    """It says whether the disk takes a queue, and changes none."""
    before = backend.path.stat()
    queue: FileQueue = backend.open()
    queue.rehearse()
    disk.fails = ".SPRINT_QUEUE.json.new"
    with pytest.raises(durable.DiskError):
        queue.rehearse()
    assert backend.path.stat().st_ino == before.st_ino
    assert not list(backend.folder.glob(".*"))


def test_a_lease_that_cannot_be_removed_does_not_unsettle(backend: FileBackend) -> None:
    """The queue is written: what is left of the lease is an orphan, and goes later.

    Broken once by letting that error out: this failed.
    """
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    path = backend.folder / "locks" / "lease-T1.lock"
    path.unlink()
    path.mkdir()
    assert queue.settle(claim.lease, Result(Outcome.SUCCESS))
    assert backend.task("T1")["status"] == "awaiting_test"
    path.rmdir()
    backend.clock.step(61)
    (stale,) = backend.open().stale()
    assert stale.why == "orphan"
    assert isinstance(durable.failure(OSError(errno.EIO, "x"), "q"), RolecallError)


@pytest.mark.parametrize("how", ["update", "import"])
def test_a_rename_that_fails_is_no_event(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Nobody tells later what never happened.

    Broken once by leaving the note in the lock file, in each of the two places.
    """

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), target)

    queue, data = backend.open(), b'{"tasks": [{"id": "N"}]}'
    ways: dict[str, Callable[[], object]] = {
        "update": lambda: queue.add([{"id": "N"}]),
        "import": lambda: queue.load(data, "a file", replace=True),
    }
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(RolecallError, match="cannot write"):
            ways[how]()
    backend.open().add([{"id": "M"}])
    assert [move.task_id for move in backend.told.moves] == ["M"]
