"""Leases and locks that are not ours: of people, of other tools, old, broken, from the future.

All of them are files. On PostgreSQL a lease is in its task's row, which nobody else writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon import transient
from daemon.errors import RolecallError
from daemon.fleet.board import Board
from daemon.model import format_time
from daemon.queue.file import FileQueue
from tests.queues import FAR, FileBackend
from tests.workspace import Workspace, wait_for

FUTURE = "2999-01-01T00:00:00Z"


@pytest.fixture
def backend(tmp_path: Path) -> FileBackend:
    """A queue of two ready tasks; T1 is the one whose lease is strange."""
    made = FileBackend(tmp_path)
    made.fill({"id": "T1", "status": "ready"}, {"id": "T2", "status": "ready"})
    (tmp_path / "leases").mkdir()
    return made


def public(**values: Any) -> dict[str, Any]:
    """A lease with the public six and no more."""
    now = format_time(time.time())
    return {
        "task_id": "T1",
        "role": "builder",
        "owner": "ann",
        "started_at": now,
        "ttl_seconds": 60,
        "heartbeat_at": now,
        **values,
    }


def put(backend: FileBackend, *, age: float = 0, **values: Any) -> Path:
    """Write T1's lease by hand, ``age`` seconds before what the queue takes for now."""
    path = backend.lease_file("T1")
    path.write_text(json.dumps(public(**values)))
    backend.clock.step(age)
    return path


def won(queue: FileQueue) -> list[str]:
    """The ids of all that the builder can claim."""
    found = []
    while claim := queue.claim("builder", "me", ignore_wip=True):
        found.append(claim.lease.task_id)
    return found


def why(backend: FileBackend, task_id: str) -> tuple[str, str]:
    """What ``queue.check`` says of the task."""
    wait = Board(backend.config).find(task_id)
    return wait.kind, wait.why


# --- what counts as alive -------------------------------------------------------------------------


def test_a_lease_without_our_fields_bars_its_task_until_it_runs_out(backend: FileBackend) -> None:
    """The public six are enough; afterwards its file goes and the task is claimed."""
    path = put(backend)
    queue = backend.open()
    assert won(queue) == ["T2"]
    assert why(backend, "T1") == ("lease", "a live lease of ann is on it")
    backend.clock.step(61)
    for stale in queue.stale():
        queue.recover(stale)
    assert not path.exists() or json.loads(path.read_text()).get("token")
    assert "T1" in won(queue)


def test_a_beat_from_the_future_counts_from_when_the_file_was_written(backend: FileBackend) -> None:
    """It bars its task for its ttl and not for centuries, and the problem says so.

    Broken once by believing every beat: this failed.
    """
    path = put(backend, heartbeat_at=FUTURE)
    queue = backend.open()
    assert won(queue) == ["T2"]
    (problem,) = queue.problems()
    assert str(path) in problem
    assert FUTURE in problem
    assert problem in Board(backend.config).problems
    later = queue.next_time("builder", backend.clock.wall)
    assert later is not None
    assert later < backend.clock.wall + 61
    backend.clock.step(61)
    assert ("T1", "orphan") in [(stale.task_id, stale.why) for stale in queue.stale()]
    assert won(queue) == ["T1"]


@pytest.mark.parametrize("ahead", [30, -30])
def test_a_beat_near_the_file_s_own_time_is_believed(backend: FileBackend, ahead: float) -> None:
    """Clocks of two hosts differ a little: up to the ttl nobody asks."""
    beat = time.time() + ahead
    put(backend, heartbeat_at=datetime.fromtimestamp(beat, UTC).isoformat())
    queue = backend.open()
    assert queue.problems() == ()
    backend.clock.step(ahead + 55)
    assert won(queue) == ["T2"]
    backend.clock.step(10)
    assert won(queue) == ["T1"]


def test_a_file_whose_time_was_set_ahead_counts_from_its_change(backend: FileBackend) -> None:
    """Touch sets the one time of a file, and the kernel keeps the other."""
    path = put(backend, heartbeat_at=FUTURE)
    os.utime(path, (2**33, 2**33))
    backend.clock.step(61)
    assert "T1" in won(backend.open())


def test_a_lease_of_ours_is_measured_by_boot_time_whatever_its_beat_says(
    backend: FileBackend,
) -> None:
    """A clock that was set back by years between two renewals ends no attempt of this boot."""
    queue = backend.open()
    backend.clock.wall += 10 * 365 * 86400
    claim = queue.claim("builder", "me")
    assert claim is not None
    backend.clock.wall -= 10 * 365 * 86400
    assert queue.stale() == []
    assert queue.problems() == ()
    backend.clock.step(59)
    assert queue.stale() == []
    backend.clock.step(2)
    assert [stale.why for stale in queue.stale()] == ["expired"]


def test_another_host_s_lease_from_the_future_ends_too(backend: FileBackend) -> None:
    """There is no boot time of ours for it: its file's time counts."""
    backend.clock.wall += 10 * 365 * 86400
    assert backend.open(FAR).claim("builder", "me") is not None
    backend.clock.wall -= 10 * 365 * 86400
    assert backend.open().stale() == []
    backend.clock.step(61)
    assert [stale.why for stale in backend.open().stale()] == ["expired"]


# --- what cannot be used --------------------------------------------------------------------------

TYPES: dict[str, dict[str, Any]] = {
    "ttl a string": {"ttl_seconds": "60"},
    "ttl a bool": {"ttl_seconds": True},
    "ttl null": {"ttl_seconds": None},
    "ttl a list": {"ttl_seconds": [60]},
    "beat a number": {"heartbeat_at": 1_700_000_000},
    "beat no time": {"heartbeat_at": "yesterday"},
    "owner an object": {"owner": {}},
    "role null": {"role": None},
    "token a bool": {"token": True},
    "token negative": {"token": -1},
    "token a float": {"token": 1.5},
    "pid a string": {"pid": "1"},
    "sessions no list": {"sessions": "1"},
    "sessions of words": {"sessions": ["1"]},
    "another task's": {"task_id": "T2"},
}
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "a pid": b"4711\n",
    "endless": json.dumps(public()).replace("60", "1e999").encode(),
    "no number": json.dumps(public()).replace("60", "NaN").encode(),
    "long digits": json.dumps(public()).replace("60", "9" * 5000).encode(),
    "deep": b"[" * 60_000,
    "huge": b" " * 100_000,
    "not UTF-8": json.dumps(public(owner="\u00e9"), ensure_ascii=False).encode("latin-1"),
    "a key less": json.dumps({k: v for k, v in public().items() if k != "owner"}).encode(),
    "conflict": b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> theirs\n",
    **{name: json.dumps(public(**values)).encode() for name, values in TYPES.items()},
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_lease_bars_its_own_task_alone(backend: FileBackend, kind: str) -> None:
    """One problem names the file and the way out, the file stays, ``queue.check`` says it too."""
    path = backend.lease_file("T1")
    path.write_bytes(TEXTS[kind])
    queue = backend.open()
    assert won(queue) == ["T2"]
    (problem,) = queue.problems()
    assert f"{path}: the lease cannot be used: " in problem
    assert f"rm {path}" in problem
    assert queue.stale() == []
    assert path.read_bytes() == TEXTS[kind]
    assert why(backend, "T1") == ("lease", f"barred by {path}: it cannot be used")
    assert problem in Board(backend.config).problems
    path.unlink()
    assert won(queue) == ["T1"]


def test_a_ttl_below_zero_has_run_out(backend: FileBackend) -> None:
    """Its task is free."""
    put(backend, ttl_seconds=-5, age=1)
    assert "T1" in won(backend.open())


@pytest.mark.parametrize("name", ["a b.json", "-x.json", "T1.lock.json", "a..b.json", "é.json"])
def test_a_name_that_no_task_can_have_is_said_and_left_alone(
    backend: FileBackend, name: str
) -> None:
    """It bars nothing."""
    path = backend.folder / "leases" / name
    path.write_text(json.dumps(public()))
    queue = backend.open()
    assert queue.stale() == []
    assert queue.problems() == (f"{path}: no task can have that id: the file is left alone",)
    assert sorted(won(queue)) == ["T1", "T2"]
    assert path.exists()


@pytest.mark.parametrize("name", ["T1.json.tmp", "T1.lock", ".T1.json.swp", ".T1.json", "T1"])
def test_what_other_tools_leave_beside_leases_means_nothing(
    backend: FileBackend, name: str
) -> None:
    """Neither a problem nor a bar, and it is not removed."""
    path = backend.folder / "leases" / name
    path.write_text("1\n")
    queue = backend.open()
    assert sorted(won(queue)) == ["T1", "T2"]
    assert queue.problems() == ()
    assert path.read_text() == "1\n"


def test_a_lease_of_an_unknown_task_bars_nothing(backend: FileBackend) -> None:
    """It stays until it has run out; then its file is removed."""
    path = backend.lease_file("T9")
    path.write_text(json.dumps(public(task_id="T9")))
    queue = backend.open()
    assert sorted(won(queue)) == ["T1", "T2"]
    assert (queue.stale(), path.exists()) == ([], True)
    backend.clock.step(61)
    for stale in queue.stale():
        queue.recover(stale)
    assert not path.exists()


# --- queue.check ----------------------------------------------------------------------------------


def test_a_stale_lease_of_ours_is_explained_until_it_is_recovered(backend: FileBackend) -> None:
    """The task is not claimable yet, though its status says so.

    Broken once by looking at live leases only: this failed.
    """
    claim = backend.open(FAR).claim("builder", "me")
    assert claim is not None
    text = backend.lease_file("T1").read_text()
    old = text.replace(json.loads(text)["heartbeat_at"], "2020-01-01T00:00:00.000Z")
    backend.lease_file("T1").write_text(old)
    told = "its lease ran out: the next look of a worker recovers it"
    assert why(backend, "T1") == ("held", told)
    backend.change("T1", status="ready")
    assert why(backend, "T1") == ("lease", told)
    assert look_wip(backend) == 1
    backend.lease_file("T1").write_text(old.replace('"builder"', '"welder"'))
    assert why(backend, "T1")[1].endswith("look of a worker with the role welder recovers it")
    backend.lease_file("T1").write_text("{")
    assert why(backend, "T1")[1] == f"barred by {backend.lease_file('T1')}: it cannot be used"
    backend.change("T1", status="in_progress")
    assert why(backend, "T1")[1] == f"barred by {backend.lease_file('T1')}: it cannot be used"


def look_wip(backend: FileBackend) -> int:
    """How many tasks ``queue.check`` calls claimable by the builder."""
    return next(w.claimable for w in Board(backend.config).standing.wips if w.role == "builder")


# --- folders and locks ----------------------------------------------------------------------------

FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda path: path.write_text(""), "cannot read the leases: Not a directory"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "cannot write: File exists"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_leases_folder_that_is_none_is_one_clear_error(backend: FileBackend, kind: str) -> None:
    """Nothing is claimed without a lease, and the queue stays as it was."""
    make, told = FOLDERS[kind]
    folder = backend.folder / "leases"
    folder.rmdir()
    make(folder)
    before = backend.path.read_bytes()
    queue = backend.open()
    try:
        said: str = f"{won(queue)} {queue.problems()}"
    except RolecallError as error:
        said = str(error)
    assert told in said
    assert str(folder) in said
    assert "Traceback" not in said
    assert backend.path.read_bytes() == before


def test_a_leases_folder_that_is_a_link_to_one_will_do(backend: FileBackend) -> None:
    """People keep such things elsewhere."""
    folder = backend.folder / "leases"
    folder.rename(backend.folder / "elsewhere")
    folder.symlink_to("elsewhere")
    assert sorted(won(backend.open())) == ["T1", "T2"]
    assert sorted(p.name for p in (backend.folder / "elsewhere").iterdir()) == [
        "T1.json",
        "T2.json",
    ]


@pytest.mark.parametrize("text", ["", "{pid}\n", "999999999\n", "another tool's words", "\0" * 9])
@pytest.mark.parametrize("name", ["queue.lock", "T1.lock", "lease-T1.lock"])
def test_what_stands_in_a_lock_file_locks_nothing(
    backend: FileBackend, name: str, text: str
) -> None:
    """Only the kernel's lock counts, whatever live or dead pid an older tool has written there."""
    path = backend.folder / "locks" / name
    path.parent.mkdir()
    path.write_text(text.format(pid=os.getppid()))
    assert sorted(won(backend.open())) == ["T1", "T2"]
    assert path.exists()
    if name == "T1.lock":
        assert path.read_text() == text.format(pid=os.getppid())


def test_a_lock_that_is_a_folder_is_one_clear_error(backend: FileBackend) -> None:
    """The queue is not written without its lock; the error says what to look at."""
    (backend.folder / "locks" / "queue.lock").mkdir(parents=True)
    before = backend.path.read_bytes()
    with pytest.raises(RolecallError, match="cannot lock: Is a directory") as error:
        backend.open().claim("builder", "me")
    assert "ls -ld" in str(error.value)
    assert backend.path.read_bytes() == before
    assert list((backend.folder / "leases").iterdir()) == []


# --- real workers ---------------------------------------------------------------------------------


def unprivileged() -> tuple[str, ...]:
    """What starts a program without the right to pass over permissions, which only root has."""
    if os.geteuid():
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is missing: apt-get install util-linux")
    lost = "-dac_override,-dac_read_search"
    return (setpriv, f"--bounding-set={lost}", f"--inh-caps={lost}", "--")


def strange_workspace(ws: Workspace, kinds: dict[str, Callable[[Path], object]]) -> None:
    """One task for each strange lease, and one good one."""
    ws.write_config(builder={"script": "exit 0", "wip_limit": 99, "slots": 9})
    tasks = [{"id": f"T{n}", "title": name, "status": "ready"} for n, name in enumerate(kinds)]
    ws.write_queue(*tasks, {"id": "GOOD", "status": "ready"})
    (ws.path / ".leases").mkdir()
    for number, make in enumerate(kinds.values()):
        make(ws.path / ".leases" / f"T{number}.json")


def closed(path: Path) -> None:
    """A lease that may not be read."""
    path.write_text("{}")
    path.chmod(0)


def closed_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0)


def test_strange_leases_stop_no_worker_and_are_said_once(ws: Workspace) -> None:
    """A closed file, a folder, a pipe, a link, a lease from the future: one line each, no more.

    A read-only lock file of another account is no obstacle. Broken once by telling all problems
    as one text, and by asking for the right to write lock files: this failed both times.
    """
    kinds: dict[str, Callable[[Path], object]] = {
        "closed": closed,
        "closed folder": closed_folder,
        "pipe": os.mkfifo,
        "link": lambda path: path.symlink_to("/dev/zero"),
        "deep": lambda path: path.write_text("[" * 60_000),
        "future": lambda path: path.write_text(
            json.dumps(public(task_id=path.stem, heartbeat_at=FUTURE, ttl_seconds=600))
        ),
    }
    strange_workspace(ws, kinds)
    lock = ws.path / ".locks" / "queue.lock"
    lock.parent.mkdir()
    lock.write_text("another tool's\n")
    lock.chmod(0o444)
    ws.prefix = unprivileged()
    ws.start("--role", "builder")
    ws.wait_status("awaiting_test", "GOOD")
    (ws.path / ".leases" / "T2.json").unlink()  # mended: the others are not said again
    ws.wait_status("awaiting_test", "T2")
    ws.write_queue(*ws.document()["tasks"], {"id": "LAST", "status": "ready"})
    ws.wait_status("awaiting_test", "LAST")
    wait_for(lambda: len(ws.leases()) == 5)
    told = [each["message"] for each in ws.events() if each["level"] != "info"]
    for number in range(len(kinds)):
        assert len([text for text in told if f"/T{number}.json" in text]) == 1, told
    assert len(told) == len(kinds)
    assert "Traceback" not in ws.log()
    assert {ws.status(f"T{n}") for n in (0, 1, 3, 4, 5)} == {"ready"}
    (ws.path / ".leases" / "T1.json").chmod(0o700)


def test_a_folder_of_leases_that_may_not_be_read_is_waited_for(ws: Workspace) -> None:
    """It is said once, the worker lives, and goes on by itself when it may."""
    strange_workspace(ws, {})
    (ws.path / ".leases").chmod(0)
    ws.prefix = unprivileged()
    worker = ws.start("--role", "builder", "--interval", "0.2")
    wait_for(lambda: "cannot read the leases: Permission denied" in ws.log())
    (ws.path / ".leases").chmod(0o755)
    ws.wait_status("awaiting_test", "GOOD")
    assert worker.poll() is None
    assert ws.log().count("cannot read the leases") == 1


def test_a_lease_by_hand_ends_no_process_and_no_unit(ws: Workspace) -> None:
    """A pid, a session and a unit that a lease of others names are not ours to end.

    Broken once by ending what every stale lease names: this failed.
    """
    ws.write_config(builder={"script": "exit 0"})
    ws.write_queue({"id": "T1", "status": "ready"})
    (ws.path / ".leases").mkdir()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        values = {"pid": bystander.pid, "sessions": [bystander.pid], "unit": "dbus.service"}
        values |= {"boot_id": boot, "heartbeat_boottime": 1e9, "ttl_seconds": -1e9}
        values |= {"pid_namespace": os.readlink("/proc/self/ns/pid")}
        lease = json.dumps(public(**values))
        (ws.path / ".leases" / "T1.json").write_text(lease)
        try:
            assert ws.run("--role", "builder", "--once").returncode == 0
            assert ws.status() == "awaiting_test"
            assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.parametrize(
    ("unit", "own"),
    [
        ("rolecall-attempt-T1-1.service", True),
        ("rolecall-second-attempt-T1-1.service", True),
        ("rolecall-attempt-T1-11.service", False),
        ("dbus.service", False),
        ("--help", False),
        ("", False),
    ],
)
def test_only_the_unit_of_that_very_attempt_is_ended(
    backend: FileBackend, unit: str, *, own: bool
) -> None:
    """A lease is a file, and names what it likes."""
    claim = backend.open().claim("builder", "me")
    assert claim is not None
    assert transient.is_unit_of(claim.lease._replace(unit=unit)) is own


@pytest.mark.parametrize("data", [b"", b"\0" * 300])
def test_what_a_power_cut_left_of_a_renewal_bars_nothing_for_ever(
    backend: FileBackend, data: bytes
) -> None:
    """Renewals are not synced: an empty file is none after a while, and its task is released.

    Broken once by taking it for a lease that cannot be used: the task was held for ever.
    """
    queue = backend.open()
    claim = queue.claim("builder", "me")
    assert claim is not None
    task_id = claim.lease.task_id
    backend.lease_file(task_id).write_bytes(data)
    assert queue.stale() == []
    backend.clock.step(11)
    (stale,) = queue.stale()
    assert (stale.task_id, stale.why) == (task_id, "vanished")
    (move,) = queue.recover(stale)
    assert (move.target, move.outcome) == ("ready", "released")
    assert not backend.lease_file(task_id).exists()
    assert task_id in won(queue)


@pytest.mark.parametrize("boot", [1e307, -1.0, 1e11])
def test_a_boot_time_of_no_machine_is_no_lease(backend: FileBackend, boot: float) -> None:
    """It bars its own task, and nobody reckons with it.

    Broken once by believing it: the worker ended in an overflow.
    """
    put(backend, token=1, heartbeat_boottime=boot)
    queue = backend.open()
    assert won(queue) == ["T2"]
    assert "heartbeat_boottime" in queue.problems()[0]
