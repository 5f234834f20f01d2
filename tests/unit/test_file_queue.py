"""The queue's file: links, modes, hands in the middle of our work, full disks, strange files."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import process
from daemon.errors import LeaseLost, LockTimeout, QueueUnreadable, RolecallError
from daemon.model import Outcome, Result
from daemon.queue import durable, lock
from daemon.queue.file import FileQueue
from tests.queues import FAR, FileBackend


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """A queue of two ready tasks."""
    made = FileBackend(tmp_path)
    made.fill({"id": "T1", "status": "ready"}, {"id": "T2", "status": "ready"})
    return made


def claimed(queue: FileQueue) -> str:
    """The id of the task that the builder wins."""
    claim = queue.claim("builder", "me", ignore_wip=True)
    assert claim is not None
    return claim.lease.task_id


def left(backend: FileBackend) -> set[str]:
    """The names beside the queue, and the leases."""
    names = {path.name for path in backend.folder.iterdir()}
    return names | {path.name for path in (backend.folder / "leases").glob("*")}


def test_a_missing_queue_is_empty(tmp_path: Path) -> None:
    """It has no task and nothing stale; adding to it names the command that makes one."""
    queue = FileBackend(tmp_path).open()
    assert (queue.claim("builder", "me"), queue.signature(), queue.stale()) == (None, None, [])
    assert queue.snapshot().tasks.every == []
    with pytest.raises(RolecallError, match="invoke init"):
        queue.add([{"id": "T"}])


def test_what_killed_writers_left_is_removed_at_the_next_look(backend: FileBackend) -> None:
    """Files that were to become leases, the queue, a breaker's; not that of a living lease."""
    queue = backend.open()
    task_id = claimed(queue)
    runs = Path(backend.config.paths.runs)
    mine = backend.folder / "leases" / f".{task_id}.json.new"
    dead = [backend.folder / "leases" / ".T9.json.new", backend.folder / ".SPRINT_QUEUE.json.new"]
    dead.append(runs / "..breaker-builder.json.new")
    notes = backend.folder / "leases" / ".notes"
    for path in (mine, notes, *dead):
        path.touch()
    assert queue.stale() == []
    assert [path for path in dead if path.exists()] == []
    assert mine.exists()
    assert notes.exists()


def test_the_token_of_a_claim_that_was_never_written_down_is_not_used_again(
    backend: FileBackend,
) -> None:
    """Killed between lease and queue: the lease goes, its empty run folder keeps the token.

    Broken once by removing the folder: an old buffer and a death let a token come twice.
    """
    old = backend.path.read_bytes()
    queue = backend.open(FAR)
    task_id = claimed(queue)
    backend.path.write_bytes(old)
    backend.clock.step(61)
    queue = backend.open()
    (stale,) = queue.stale()
    assert queue.recover(stale) == ()
    assert not backend.lease_file(task_id).exists()
    claim = queue.claim("builder", "me")
    assert claim is not None
    assert (claim.lease.task_id, claim.lease.token) == (task_id, 2)


def test_a_lease_removed_in_the_middle_of_a_renewal_stays_removed(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rm .leases/ID.json between its reading and its rewriting ends the attempt all the same."""
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    path = backend.folder / "leases" / f"{claim.lease.task_id}.json"
    write = durable.write_aside

    def remove(*arguments: Any, **keys: Any) -> durable.Aside:
        path.unlink()
        return write(*arguments, **keys)

    monkeypatch.setattr(durable, "write_aside", remove)
    with pytest.raises(LeaseLost, match="gone"):
        queue.renew(claim.lease)
    assert list(path.parent.iterdir()) == []


def test_a_lock_removed_in_the_middle_of_a_claim_lets_no_two_write(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rm -r .locks: whoever held one writes nothing, for others may hold a new one by now."""
    queue, before = backend.open(), backend.text()
    write = durable.write_aside

    def remove(path: str, *arguments: Any, **keys: Any) -> durable.Aside:
        if path == backend.config.queue_file:
            Path(backend.config.paths.locks, "queue.lock").unlink()
        return write(path, *arguments, **keys)

    monkeypatch.setattr(durable, "write_aside", remove)
    with pytest.raises(RolecallError, match="lock was removed"):
        queue.claim("builder", "me")
    assert backend.text() == before
    assert not backend.lease_file("T1").exists()
    assert f".{backend.path.name}.new" not in left(backend)
    monkeypatch.undo()
    assert claimed(queue) == "T1"


def test_a_symlinked_queue_stays_one(backend: FileBackend) -> None:
    """The file that the link names is replaced, with its mode."""
    real = backend.folder / "real" / "queue.json"
    real.parent.mkdir()
    backend.path.rename(real)
    real.chmod(0o640)
    backend.path.symlink_to(real)
    claimed(backend.open())
    assert backend.path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in real.parent.iterdir()] == ["queue.json"]
    assert json.loads(real.read_text())["tasks"][0]["status"] == "in_progress"


class Meddler:
    """A clock that lets a person act at one of its looks: in the middle of an update."""

    def __init__(self, backend: FileBackend, look: int, act: Callable[[], None]) -> None:
        self.backend, self.look, self.act = backend, look, act

    def __call__(self) -> float:
        self.look -= 1
        if self.look == 0:
            self.act()
        return self.backend.clock.wall


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("look", range(1, 5))
def test_a_hand_in_the_middle_of_a_claim_is_kept(
    backend: FileBackend, look: int, *, in_place: bool
) -> None:
    """Whenever a person saves, their change stands, and the claim is made on what they wrote."""

    def act() -> None:
        document = backend.document()
        document["tasks"][0]["status"] = "cancelled"
        document["tasks"][1]["title"] = "by hand"
        if in_place:
            backend.path.write_text(json.dumps(document))
        else:
            backend.put(document)

    meddler = Meddler(backend, look, act)
    queue = FileQueue(backend.config, clock=meddler)
    won = claimed(queue)
    assert meddler.look <= 0
    task = backend.task("T2")
    assert (won, task["title"], task["status"]) == ("T2", "by hand", "in_progress")
    assert backend.task("T1")["status"] == "cancelled"
    assert [lease.task_id for lease in queue.live()] == ["T2"]
    assert sorted(path.name for path in (backend.folder / "runs").iterdir()) == ["T2"]


def test_a_hand_in_the_middle_of_a_settle_is_kept(backend: FileBackend) -> None:
    """The settling write is made on what the person wrote."""
    lease = backend.open().claim("builder", "me")
    assert lease is not None

    def random() -> float:
        if "title" not in backend.task("T2"):
            backend.change("T2", title="by hand")
        return 0.0

    queue = FileQueue(backend.config, random=random)
    queue.settle(lease.lease, Result(Outcome.ERROR))
    assert backend.task("T2")["title"] == "by hand"
    assert (backend.task("T1")["status"], backend.task("T1")["attempts"]) == ("ready", 1)


def test_a_half_written_queue_settles_later(backend: FileBackend) -> None:
    """Unreadable or absent, it is left as it is, and the lease with it."""
    claim = backend.open().claim("builder", "me")
    assert claim is not None
    whole = backend.path.read_bytes()
    for break_it in (lambda: backend.path.write_bytes(whole[:50]), backend.path.unlink):
        break_it()
        with pytest.raises(QueueUnreadable):
            backend.open().settle(claim.lease, Result(Outcome.SUCCESS))
        assert len(backend.open().live()) == 1
    backend.path.write_bytes(whole)
    assert backend.open().settle(claim.lease, Result(Outcome.SUCCESS))


def in_child(run: Callable[[], None]) -> int:
    """Run it in a process of its own; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("limit", [200, 3000])
def test_a_write_that_fails_leaves_the_old_whole(backend: FileBackend, limit: int) -> None:
    """No byte is lost, nothing half-made is left, and the error says which file it was."""
    backend.change("T1", description="x" * 5000)
    before, files = backend.path.read_bytes(), left(backend)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        queue = backend.open()
        if limit < 1000:
            assert queue.claim("builder", "me") is None
            assert all("cannot write" in problem for problem in queue.problems())
        else:
            with pytest.raises(RolecallError, match="cannot write") as error:
                queue.claim("builder", "me")
            assert error.value.problems[0].where == str(backend.path)

    assert in_child(run) == 0
    assert backend.path.read_bytes() == before
    assert left(backend) - files == {"locks", "leases"} | ({"runs"} if limit > 1000 else set())
    assert list((backend.folder / "leases").iterdir()) == []


# --- what it remembers ---------------------------------------------------------------------------


def overwrite(path: Path, old: str, new: str) -> None:
    """A hand that saves in place, the file as long as before."""
    assert len(old) == len(new)
    with path.open("r+") as file:
        text = file.read().replace(old, new)
        file.seek(0)
        file.write(text)


def titles(queue: FileQueue) -> list[str]:
    return [entry.task["title"] for entry in queue.snapshot().tasks.entries]


def test_a_change_in_the_same_instant_is_seen(backend: FileBackend) -> None:
    """Same inode, size and mtime: where the file was just written its bytes decide.

    Broken once by trusting the three alone: this failed.
    """
    backend.fill({"id": "T1", "title": "one"})
    later = 2**62
    os.utime(backend.path, ns=(later, later))
    queue = backend.open()
    assert titles(queue) == ["one"]
    overwrite(backend.path, "one", "two")
    os.utime(backend.path, ns=(later, later))
    assert titles(queue) == ["two"]


def test_our_files_have_a_mtime_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the nanosecond; the kernel's may stand still for milliseconds, over several writes.

    Broken once by leaving them the kernel's: this failed.
    """
    now = 1_800_000_000_123_456_789
    monkeypatch.setattr(time, "time_ns", lambda: now)
    aside = durable.write_aside(str(tmp_path / "file"), b"x", like=None, sync=False)
    assert aside.precise
    assert os.stat(aside.path).st_mtime_ns == aside.found.st_mtime_ns == now


def test_a_remembered_queue_keeps_its_new_mode(backend: FileBackend) -> None:
    """Its owner closes the queue to others between two of our looks; our write leaves it so.

    Broken once by remembering the mode with the text: this failed.
    """
    os.utime(backend.path, ns=(0, 0))
    queue = backend.open()
    queue.snapshot()
    backend.path.chmod(0o600)
    claimed(queue)
    assert backend.path.stat().st_mode & 0o777 == 0o600


def test_a_large_queue_is_not_kept_over_a_rest(backend: FileBackend) -> None:
    """A worker that goes to sleep gives its memory back, and finds everything again.

    Broken once by keeping it all the same: this failed.
    """
    backend.fill({"id": "T1", "title": "x" * 2_000_000}, {"id": "T2", "title": "y"})
    queue = backend.open()
    with queue.look():
        assert len(titles(queue)) == 2
    assert queue.ledger._last is None
    assert len(titles(queue)) == 2


# --- what lasts ----------------------------------------------------------------------------------


def spied(monkeypatch: pytest.MonkeyPatch, fail: str = "") -> list[str]:
    """What is synced, and what takes another file's place or goes, in order, by last names."""
    seen: list[str] = []
    fsync, rename, unlink = os.fsync, os.rename, os.unlink

    def spy_fsync(fd: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        seen.append(f"sync {name}")
        if name == fail:
            raise OSError(28, "No space left on device")
        fsync(fd)

    def spy_rename(old: str, new: str) -> None:
        seen.append(f"put {os.path.basename(new)}")
        rename(old, new)

    def spy_unlink(path: str) -> None:
        unlink(path)
        seen.append(f"gone {os.path.basename(path)}")

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    monkeypatch.setattr(os, "unlink", spy_unlink)
    return seen


def test_what_the_queue_names_lasts_before_the_queue(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a claim the lease, its folder and the run folder; in a settling the queue, then no lease.

    Broken once by syncing the folders behind the queue, and once by removing the lease before the
    queue's folder was synced: this failed.
    """
    queue, seen = backend.open(), spied(monkeypatch)
    claim = queue.claim("builder", "me")
    assert claim is not None
    name, home = backend.path.name, backend.folder.name
    file, lease = f"sync .{name}.new", "sync .T1.json.new"
    assert seen[:2] == [lease, "put T1.json"]
    assert set(seen[2:6]) == {file, "sync leases", "sync runs", "sync T1"}
    assert seen[6:] == [f"put {name}", f"sync {home}"]
    seen.clear()
    queue.settle(claim.lease, Result(Outcome.SUCCESS))
    monkeypatch.undo()
    assert seen == [file, f"put {name}", f"sync {home}", "gone T1.json"]


@pytest.mark.parametrize("full", ["leases", "runs", "T1"])
def test_a_claim_that_cannot_last_is_taken_back(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """A folder that cannot be synced: queue, leases and what the worker remembers are as before.

    Broken once by changing the remembered tasks in place: this failed.
    """
    before, queue = backend.path.read_bytes(), backend.open()
    queue.snapshot()
    spied(monkeypatch, fail=full)
    with pytest.raises(durable.DiskError):
        queue.claim("builder", "me")
    monkeypatch.undo()
    assert backend.path.read_bytes() == before
    assert queue.live() == []
    assert list((backend.folder / "runs").iterdir()) == []
    assert queue.snapshot().tasks.by_id["T1"].task == {"id": "T1", "status": "ready"}
    assert claimed(queue) == "T1"


def test_a_forked_process_is_somebody_else(backend: FileBackend) -> None:
    """What was found out about oneself is forgotten in a child.

    Broken once by remembering it: this failed.
    """
    me = process.identity()

    def run() -> None:
        assert process.identity().pid == os.getpid() != me.pid

    assert in_child(run) == 0


STRANGE: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "no JSON": lambda path: path.write_text("{"),
    "deep": lambda path: path.write_text("[" * 60_000),
    "large": lambda path: path.write_text(" " * 100_000),
    "another's": lambda path: path.write_text(
        json.dumps(
            dict.fromkeys(["role", "owner", "started_at", "heartbeat_at"], "")
            | {"task_id": "T2", "ttl_seconds": 5}
        )
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_lease_stops_only_its_task(backend: FileBackend, kind: str) -> None:
    """One problem names the file; it is neither followed nor removed; the next task is claimed."""
    path = backend.lease_file("T1")
    path.parent.mkdir()
    STRANGE[kind](path)
    queue = backend.open()
    assert claimed(queue) == "T2"
    assert queue.stale() == []
    assert len(queue.problems()) == 1
    assert str(path) in queue.problems()[0]
    assert os.path.lexists(path)


@pytest.mark.parametrize("place", ["runs/T1", "locks/lease-T1.lock"])
def test_a_link_in_our_way_is_not_followed(backend: FileBackend, place: str) -> None:
    """A run folder or a lock that is a link stops its own task, and nothing is made behind it."""
    target = backend.folder / "elsewhere"
    target.mkdir()
    (backend.folder / place).parent.mkdir(exist_ok=True)
    (backend.folder / place).symlink_to(target)
    queue = backend.open()
    assert claimed(queue) == "T2"
    assert place in "".join(queue.problems())
    assert list(target.iterdir()) == []
    assert not backend.lease_file("T1").exists()


def by_hand(backend: FileBackend, **values: Any) -> None:
    """A lease with the public six, as other tools write it."""
    lease = {
        "task_id": "T1",
        "role": "builder",
        "owner": "a person",
        "started_at": "2020-01-01T00:00:00Z",
        "ttl_seconds": 60,
        "heartbeat_at": "2020-01-01T00:00:00+00:00",
        **values,
    }
    backend.lease_file("T1").parent.mkdir(exist_ok=True)
    backend.lease_file("T1").write_text(json.dumps(lease))


def test_a_lease_by_hand_counts_until_it_runs_out(backend: FileBackend) -> None:
    """Then its file goes, and the task stays whose it was."""
    by_hand(backend, heartbeat_at="2999-01-01T00:00:00Z")
    queue = backend.open()
    assert claimed(queue) == "T2"
    backend.fill({"id": "T1", "status": "in_progress", "agent": "builder", "lease": "me"})
    by_hand(backend)
    (stale,) = queue.stale()
    assert stale.why == "orphan"
    before = backend.path.read_bytes()
    assert queue.recover(stale) == ()
    assert backend.path.read_bytes() == before
    assert not backend.lease_file("T1").exists()
    assert queue.stale() == []


def test_tokens_only_grow(backend: FileBackend) -> None:
    """Whichever remembers the largest, task, lease or run folder, decides."""
    (backend.folder / "runs" / "T1" / "41").mkdir(parents=True)
    (backend.folder / "runs" / "T1" / "notes").mkdir()
    claim = backend.open().claim("builder", "me")
    assert claim is not None
    assert (claim.lease.token, os.path.basename(claim.run_dir)) == (42, "42")


def test_leftovers_of_a_killed_writer_are_replaced(backend: FileBackend) -> None:
    """A temporary file that somebody left is no obstacle, nor is a link in its place followed."""
    aside = backend.path.with_name(f".{backend.path.name}.new")
    aside.symlink_to("/etc/passwd")
    claimed(backend.open())
    assert not os.path.lexists(aside)


def test_a_full_disk_is_told_apart() -> None:
    """What no task can be written for stops the claim; what one task has in its way does not."""
    assert isinstance(
        durable.failure(OSError(28, "No space left on device"), "q"), durable.DiskError
    )
    assert not isinstance(durable.failure(OSError(21, "Is a directory"), "q"), durable.DiskError)


# --- locks ---------------------------------------------------------------------------------------


def holder(path: Path, *, stopped: bool) -> int:
    """A process that holds the lock, and perhaps is stopped."""
    ready, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock.hold(str(path)):
            os.write(write, b".")
            while True:
                signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(write)
    if stopped:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
    return pid


def test_a_lock_that_is_held_is_named(tmp_path: Path) -> None:
    """Waiting ends, and the error says who holds it; a holder that runs is not harmed."""
    path = tmp_path / "queue.lock"
    pid = holder(path, stopped=False)
    try:
        with (
            pytest.raises(LockTimeout, match=f"process {pid} on {os.uname().nodename}"),
            lock.hold(str(path), 0.2),
        ):
            pass
        assert process.is_alive(pid, process.identity(pid).pid_started)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("note", ["", "00000012 what was told"])
def test_a_stopped_holder_is_killed(tmp_path: Path, note: str) -> None:
    """A holder of ours that was stopped all the time that we waited is killed.

    Broken once by reading more of the file than the holder's name: behind a note nobody was found.
    """
    path = tmp_path / "queue.lock"
    path.write_text(" " * lock.NAME + note)
    pid = holder(path, stopped=True)
    try:
        with lock.hold(str(path), 0.3):
            assert not process.is_alive(pid, process.identity(pid).pid_started)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert path.exists()


def test_a_removed_lock_file_is_no_lock(tmp_path: Path) -> None:
    """Who waits on a file that is no longer there starts again on the one that is."""
    path = tmp_path / "queue.lock"
    pid = holder(path, stopped=False)
    path.unlink()
    try:
        with lock.hold(str(path), 5):
            assert path.read_text().split()[0] == str(os.getpid())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- what is remembered ---------------------------------------------------------------------------


def test_a_hand_edit_that_hides_its_time_is_seen(backend: FileBackend) -> None:
    """Same inode, same size, the mtime put back: the change of the file's own state tells.

    Broken once by comparing inode, size and mtime alone: T1 was claimed, and the edit lost.
    """
    queue = backend.open()
    assert queue.add([{"id": "T3"}])
    os.utime(backend.path, ns=(10**18, 10**18))
    queue.snapshot()
    text = backend.path.read_text()
    backend.path.write_text(text.replace('"ready"', '"draft"', 1))
    os.utime(backend.path, ns=(10**18, 10**18))
    assert claimed(queue) == "T2"
    assert backend.task("T1")["status"] == "draft"


def test_a_link_to_another_name_of_the_file_is_followed(backend: FileBackend) -> None:
    """The queue is a link, and is made one to the file's other name: a claim is written there.

    Broken once by keeping the resolved path as long as the file was the same.
    """
    real, other = backend.folder / "v1.json", backend.folder / "v2.json"
    backend.path.rename(real)
    os.link(real, other)
    os.utime(real, ns=(10**18 + 7, 10**18 + 7))
    backend.path.symlink_to(real)
    queue = backend.open()
    queue.snapshot()
    backend.path.unlink()
    backend.path.symlink_to(other)
    assert claimed(queue) == "T1"
    assert json.loads(other.read_text())["tasks"][0]["status"] == "in_progress"
    assert json.loads(real.read_text())["tasks"][0]["status"] == "ready"


def test_a_number_of_thousands_of_digits_stops_only_its_task(backend: FileBackend) -> None:
    """It can be read and, one larger, not be written: it counts as none.

    Broken once by counting on from it: every worker of the role ended.
    """
    huge = int("9" * 4000)
    backend.fill({"id": "T1", "status": "ready", "token": huge, "attempts": huge})
    claim = backend.open().claim("builder", "me")
    assert claim is not None
    assert (claim.lease.token, claim.lease.attempt) == (1, 1)


def test_a_held_lease_lock_passes_over_one_task(backend: FileBackend) -> None:
    """The others are not waited for either: the queue's lock is held meanwhile.

    Broken once by ending the claim there: no task was claimed.
    """
    (backend.folder / "locks").mkdir()
    pid = holder(backend.folder / "locks" / "lease-T1.lock", stopped=False)
    try:
        queue = backend.open()
        assert claimed(queue) == "T2"
        assert "lease-T1.lock" in queue.problems()[0]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
