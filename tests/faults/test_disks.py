"""Disks that are full, read-only, closed or broken: real ones, under real workers.

Each is a mount in a mount namespace of its own, which ends with the process that holds it, so that
nothing of it can be left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import process
from daemon.attempt import Attempt
from daemon.brief import Brief
from daemon.config import to_json
from daemon.errors import LeaseLost
from daemon.fleet import releases, runtime
from daemon.fleet.arrival import verify
from daemon.log import Log
from daemon.model import Lease
from daemon.queue import durable
from tests.farside import Far, release, request, upload
from tests.queues import FileBackend
from tests.unit.test_foreign_leases import unprivileged
from tests.workspace import ROOT, Workspace, wait_for

TASK: dict[str, Any] = {"id": "T1", "title": "x", "type": "Build", "status": "ready"}
WAITS = "echo $ROLECALL_TOKEN >> tokens; touch up; while [ ! -e go ]; do sleep 0.05; done"
PAGE = 4096
EXT4_IOC_SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2  # linux/fs/ext4/ext4.h


class Disk:
    """A mount namespace with a folder in it to mount on. ``path``: the folder as we reach it."""

    def __init__(self, folder: Path) -> None:
        self.inside = folder / "disk"
        self.inside.mkdir()
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
        )
        space = Path(f"/proc/{self.holder.pid}/ns/mnt")
        wait_for(lambda: space.readlink() != Path("/proc/self/ns/mnt").readlink())
        self.enter = ("nsenter", f"--mount={space}", f"--wdns={ROOT}", "--")
        self.path = Path(f"/proc/{self.holder.pid}/root{self.inside}")

    def sh(self, script: str) -> None:
        """Run a script in there, as root."""
        done = subprocess.run(
            [*self.enter, "sh", "-ec", f"cd {self.inside.parent}; {script}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stderr}"

    def tmpfs(self, size: str, where: str = "disk") -> None:
        """A disk in memory."""
        self.sh(f"mkdir -p {where}; mount -t tmpfs -o size={size} tmpfs {where}")

    def ext4(self) -> None:
        """A real file system on a file of a disk in memory, which can fill up below it."""
        self.tmpfs("16m", "below")
        # Only blocks of data are yet to be had below: what the file system says of itself is there.
        options = "-q -F -O ^has_journal,^uninit_bg -E lazy_itable_init=0,nodiscard"
        self.sh(f"truncate -s 8M below/image; mkfs.ext4 {options} below/image")
        self.sh("mount -o loop,noauto_da_alloc below/image disk")

    def die(self) -> None:
        """From now on every access fails, and what was not synced is gone."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(fd)

    def revive(self) -> None:
        """Another disk in its place, that holds what had reached the first one."""
        self.sh("umount --lazy disk; mount -o loop,noauto_da_alloc below/image disk")

    def fill(self, leave: int = 0, where: str = "disk") -> None:
        """Use up all room, but for so many bytes."""
        path = self.path.parent / where / "filler"
        with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(PAGE))
        os.truncate(path, path.stat().st_size - leave)

    def empty(self, where: str = "disk") -> None:
        """Give the room back."""
        (self.path.parent / where / "filler").unlink()

    def end(self) -> None:
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A namespace of the test's own. Wants root."""
    if os.geteuid():
        pytest.skip("mounts need root")
    for program in ("unshare", "nsenter"):
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: apt-get install util-linux")
    made = Disk(tmp_path)
    yield made
    made.end()


@pytest.fixture
def ws(disk: Disk, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace on the disk; what its workers print is kept elsewhere."""
    workspace = Workspace(disk.path, disk.inside, disk.enter)
    workspace.stderr = tmp_path / "workers.log"
    yield workspace
    workspace.end()


def build(ws: Workspace, script: str, padding: int = 0, **role: Any) -> None:
    ws.write_config(builder={"script": script, "interval": 0.3, **role})
    ws.write_queue({**TASK, "description": "x" * padding})


def looks(ws: Workspace, count: int = 3) -> None:
    """Wait until the queue was looked at so many times under its lock."""
    path = ws.path / ".locks" / "queue.lock"
    seen: set[int] = set()

    def enough() -> bool:
        seen.add(path.stat().st_mtime_ns)  # who takes the lock puts its name into it
        return len(seen) > count

    wait_for(enough, f"{count} looks: {ws.log()}")


def sleeps(pid: int) -> bool:
    """Whether it was on no processor for a while, between two of its looks."""
    path = Path(f"/proc/{pid}/schedstat")  # nanoseconds that it ran, first of all
    before = path.read_text().split()[0]
    time.sleep(0.1)
    return path.read_text().split()[0] == before


def left(ws: Workspace) -> list[str]:
    """What no attempt needs: leases, files that were to become others."""
    aside = [path.name for path in ws.queue.parent.iterdir() if path != ws.queue]
    runs = ws.path / ".agent-runs"
    empty = [str(p) for p in runs.rglob("*") if p.is_dir() and not any(p.iterdir())]
    return ws.leases() + aside + empty


def settled(ws: Workspace) -> list[str]:
    """The outcomes that were told."""
    return [each["outcome"] for each in ws.events() if "outcome" in each]


def told(ws: Workspace, what: str) -> int:
    """How many lines say so; a traceback in any of them is a failure."""
    assert "Traceback" not in ws.log()
    return sum(what in line for line in ws.log().splitlines())


# --- claiming -------------------------------------------------------------------------------------

Break = Callable[[Disk], None]
CLAIMS: dict[str, tuple[Break, Break, str]] = {
    "full before the lease": (Disk.fill, Disk.empty, "No space left on device"),
    "full before the queue": (
        lambda disk: disk.fill(leave=8 * PAGE),
        Disk.empty,
        "No space left on device",
    ),
    "read-only": (
        lambda disk: disk.sh("mount -o remount,ro disk"),
        lambda disk: disk.sh("mount -o remount,rw disk"),
        "Read-only file system",
    ),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_disk_that_takes_no_claim_is_waited_for(disk: Disk, ws: Workspace, kind: str) -> None:
    """The old queue stays byte for byte, it is said once, and the worker goes on by itself.

    Broken once by leaving a lease behind whose queue could not be written, and once by being woken
    by the removal of such a lease, over and over: this failed both times.
    """
    spoil, mend, error = CLAIMS[kind]
    disk.tmpfs("1m")
    build(ws, "exit 0", padding=12 * PAGE)
    (ws.path / ".locks").mkdir()
    (ws.path / ".locks" / "queue.lock").touch()
    before = ws.queue.read_bytes()
    spoil(disk)
    worker = ws.start("--role", "builder")
    wait_for(lambda: told(ws, error), ws.log())
    if kind != "read-only":
        looks(ws)
    wait_for(lambda: sleeps(worker.pid), "it does not spin")
    assert ws.queue.read_bytes() == before
    wait_for(lambda: left(ws) == [])  # each try makes and removes
    assert told(ws, error) == 1
    assert told(ws, "hint:") == 1
    mend(disk)
    ws.wait_status("awaiting_test")
    wait_for(lambda: left(ws) == [])
    assert (worker.poll(), told(ws, error), settled(ws)) == (None, 1, ["success"])


@pytest.mark.parametrize("place", ["queue", "leases", "runs"])
def test_a_folder_that_may_not_be_written_is_waited_for(tmp_path: Path, place: str) -> None:
    """An account without the right to: nothing is claimed, and nothing half-claimed is left.

    Broken once by not taking the lease back: this failed.
    """
    ws = Workspace(tmp_path, prefix=unprivileged())
    build(ws, "exit 0")
    folders = {"queue": ".oodatcaa/work", "leases": ".leases", "runs": ".agent-runs"}
    folder = tmp_path / folders[place]
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    before = ws.queue.read_bytes()
    worker = ws.start("--role", "builder")
    try:
        wait_for(lambda: told(ws, "Permission denied"))
        looks(ws)
        assert ws.queue.read_bytes() == before
        wait_for(lambda: left(ws) == [])
        assert told(ws, "Permission denied") == 1
        folder.chmod(0o755)
        ws.wait_status("awaiting_test")
        assert (worker.poll(), told(ws, "Permission denied")) == (None, 1)
    finally:
        folder.chmod(0o755)
        ws.end()


# --- renewing and settling ------------------------------------------------------------------------

SETTLES: dict[str, tuple[Break, Break, str]] = {
    "full": (Disk.fill, Disk.empty, "No space left on device"),
    "read-only": (
        lambda disk: disk.sh("mount -o remount,bind,ro disk/.oodatcaa"),
        lambda disk: disk.sh("mount -o remount,bind,rw disk/.oodatcaa"),
        "Read-only file system",
    ),
}


@pytest.mark.parametrize("kind", SETTLES)
def test_a_result_waits_for_the_disk_however_long(disk: Disk, ws: Workspace, kind: str) -> None:
    """Longer than its lease, too: then it is written, once, and the agent is not run again.

    Broken once by giving up when the lease had run out, and once by a worker that ended the
    attempt for it: the full disk failed both times.
    """
    spoil, mend, error = SETTLES[kind]
    disk.tmpfs("1m")
    build(ws, WAITS, lease_ttl=4, heartbeat=0.3)
    disk.sh("mount --bind disk/.oodatcaa disk/.oodatcaa")
    worker = ws.start("--role", "builder")
    ws.attempt_pid()
    wait_for((ws.path / "up").exists)
    spoil(disk)
    before = ws.queue.read_bytes()
    (ws.path / "go").touch()
    wait_for(lambda: told(ws, "cannot settle yet"), ws.log())
    if kind == "full":
        lease = ws.lease()
        assert lease
        end = lease["heartbeat_boottime"] + lease["ttl_seconds"]
        wait_for(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > end)
    looks(ws)
    assert ws.queue.read_bytes() == before
    mend(disk)
    ws.wait_status("awaiting_test")
    wait_for(lambda: ws.leases() == [])
    assert (settled(ws)[-1:], ws.file("tokens"), ws.task()["token"]) == (["success"], "1\n", 1)
    assert ws.task().get("attempts", 0) == 0
    assert told(ws, "cannot settle yet") == 1
    assert told(ws, error) <= 3  # the attempt's renewal and settling, the worker's own look
    assert worker.poll() is None
    assert left(ws) == []


def test_a_lease_that_cannot_be_renewed_for_a_while_is_kept(disk: Disk, ws: Workspace) -> None:
    """The agent works on through a disk that is full for less than the lease's time."""
    disk.tmpfs("1m")
    build(ws, WAITS, lease_ttl=30, heartbeat=0.2)
    ws.start("--role", "builder")
    ws.attempt_pid()
    wait_for((ws.path / "up").exists)
    disk.fill()
    lease = ws.lease()
    wait_for(lambda: told(ws, "cannot renew the lease"), ws.log())
    assert ws.lease() == lease
    disk.empty()
    wait_for(lambda: ws.lease() != lease)
    (ws.path / "go").touch()
    ws.wait_status("awaiting_test")
    assert (told(ws, "cannot renew"), settled(ws), ws.task()["token"]) == (1, ["success"], 1)


def test_a_lease_that_cannot_be_renewed_in_time_ends_its_tree(disk: Disk, ws: Workspace) -> None:
    """Nobody else may find two at work; it is tried again when there is room."""
    disk.tmpfs("1m")
    build(ws, f"[ $ROLECALL_TOKEN -gt 1 ] && exit 0; {WAITS}", lease_ttl=4, heartbeat=0.3)
    ws.start("--role", "builder")
    attempt = ws.attempt_pid()
    wait_for((ws.path / "up").exists)
    disk.fill()
    wait_for(lambda: not Path(f"/proc/{attempt}").exists())
    wait_for(lambda: ws.tree() == [])
    assert ws.status() == "in_progress"
    disk.empty()
    ws.wait_status("awaiting_test")
    assert settled(ws)[-2:] in (["error", "success"], ["success"])
    assert ws.task()["token"] == 2


def test_an_agent_that_fills_the_disk_loses_its_output_only(disk: Disk, ws: Workspace) -> None:
    """How much was lost is said; it ends by itself, and is settled when there is room.

    Broken once by keeping what the executor notes to itself: this failed.
    """
    disk.tmpfs("1m")
    disk.fill(leave=50 * PAGE)
    build(ws, "touch up; head -c 3000000 /dev/zero; touch done")
    ws.start("--role", "builder")
    wait_for((ws.path / "done").exists)
    wait_for(lambda: told(ws, "cannot settle yet"), ws.log())
    assert ws.status() == "in_progress"
    disk.empty()
    ws.wait_status("awaiting_test")
    assert told(ws, "bytes of output were lost: ") == 1
    assert ws.task()["token"] == 1


# --- logs -----------------------------------------------------------------------------------------


def test_a_full_disk_of_logs_stops_no_worker_and_glues_no_lines(disk: Disk, ws: Workspace) -> None:
    """Tasks are worked on meanwhile; when there is room again, whole lines follow whole lines.

    Standard error lies there, too, as pid files have it. Broken once by leaving half a line: this
    failed.
    """
    logs = ".agent-daemon-logs"
    ws.path.joinpath(logs).mkdir()
    disk.tmpfs("64k", f"disk/{logs}")
    events = ws.path / logs / "events.jsonl"
    line = json.dumps({"message": "padding", "level": "info"}) + "\n"
    events.write_text(line * ((PAGE - 30) // len(line)))
    ws.stderr = ws.path / logs / "builder.log"
    ws.stderr.write_text("x\n" * ((PAGE - 40) // 2))
    disk.fill(where=f"disk/{logs}")
    size = events.stat().st_size
    build(ws, "exit 0")
    worker = ws.start("--role", "builder")
    ws.wait_status("awaiting_test")
    wait_for(lambda: ws.tree() == [])  # its attempt has had its last words
    assert events.stat().st_size == size
    disk.empty(f"disk/{logs}")
    ws.write_queue(*ws.document()["tasks"], {**TASK, "id": "T2"})
    ws.wait_status("awaiting_test", "T2")
    wait_for(lambda: settled(ws) == ["success"])
    lines = ws.stderr.read_text().splitlines()
    assert all(each == "x" or " builder " in each for each in lines)
    assert "T2: in_progress -> awaiting_test" in lines[-1]
    worker.terminate()
    assert worker.wait(20) == 0


# --- disks that fail ------------------------------------------------------------------------------


@pytest.fixture
def ext4(disk: Disk) -> Disk:
    """The disk with a real file system on it."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("mkfs.ext4 is missing: apt-get install e2fsprogs")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("this kernel has no loop devices")
    disk.ext4()
    return disk


def test_a_disk_that_died_is_waited_for(ext4: Disk, ws: Workspace) -> None:
    """Every access gives EIO: it is said once, and with another disk in its place all goes on."""
    build(ws, "exit 0")
    ws.write_queue({**TASK, "status": "done"})
    worker = ws.start("--role", "builder")
    wait_for(lambda: told(ws, "started"))
    ext4.sh("sync -f disk")
    ext4.die()
    wait_for(lambda: told(ws, "Input/output error"), ws.log())
    ext4.revive()
    ws.write_queue(TASK)
    ws.wait_status("awaiting_test")
    assert (worker.poll(), told(ws, "Input/output error")) == (None, 1)


def test_what_could_not_reach_the_disk_is_never_taken_for_written(
    ext4: Disk, ws: Workspace
) -> None:
    """A failed fsync is an error though the next one would succeed; each try writes anew.

    In the end the disk is taken away without a last flush: what was settled is there. Broken once
    by not syncing what is written aside: this failed.
    """
    build(ws, "exit 0", padding=12 * PAGE)
    for folder in (".locks", ".leases", ".agent-runs", ".agent-daemon-logs"):
        (ws.path / folder).mkdir()
    ext4.sh("sync -f disk")
    before = ws.queue.read_bytes()
    ext4.fill(where="below")
    worker = ws.start("--role", "builder")
    wait_for(lambda: told(ws, "cannot write"), ws.log())
    looks(ws, 2)
    assert ws.queue.read_bytes() == before
    wait_for(lambda: left(ws) == [])  # each try makes and removes
    ext4.empty("below")
    ws.wait_status("awaiting_test")
    wait_for(lambda: ws.leases() == [])
    ext4.die()
    worker.kill()
    worker.wait()
    ext4.revive()
    assert (ws.status(), ws.task()["token"]) == ("awaiting_test", 1)
    errors = [line.partition(" builder ")[2] for line in ws.log().splitlines() if "error" in line]
    assert len(errors) == len(set(errors)), errors


# --- between the claim and the attempt ------------------------------------------------------------


class Refusing:
    """Stands for a queue on a disk that takes no writes for so many tries."""

    def __init__(self, tries: int) -> None:
        self.tries = tries

    def take_over(self, lease: Lease, me: process.Identity, unit: str = "") -> Lease:
        self.tries -= 1
        if self.tries >= 0:
            raise durable.DiskError("cannot write: No space left on device", where="T1.json")
        return lease._replace(pid=me.pid, unit=unit)


class Asked:
    """A stop that was asked for, or not."""

    def __init__(self, *, asked: bool) -> None:
        self.fd, self._asked = -1, asked

    def asked(self) -> bool:
        return self._asked

    def heed(self, lease: Lease) -> None:
        """It knows already."""


@pytest.mark.parametrize("asked", [False, True])
def test_a_lease_that_cannot_be_taken_over_yet_is_tried_again(
    tmp_path: Path, *, asked: bool
) -> None:
    """The disk may have filled up since the claim; the attempt waits, unless it is to end.

    Broken once by trying once: this failed.
    """
    backend = FileBackend(tmp_path)
    backend.fill(TASK)
    claim = backend.open().claim("builder", "me")
    assert claim is not None
    brief = Brief(backend.config, claim.lease, claim.task, claim.run_dir, {}, "", "")
    log = Log(str(tmp_path / "logs"), "builder", "me")
    queue: Any = Refusing(1)
    attempt = Attempt(brief, queue, log, Asked(asked=asked))  # type: ignore[arg-type]  # as above
    if asked:
        with pytest.raises(LeaseLost, match="could not be taken over"):
            attempt.take_over()
    else:
        attempt.take_over()
        assert attempt.lease.pid == os.getpid()
    assert (tmp_path / "logs" / "builder.log").read_text().count("No space left") == 1


# --- a release comes ------------------------------------------------------------------------------


def test_a_home_that_fills_up_keeps_the_old_release(disk: Disk) -> None:
    """The upload is refused in words, what it has written goes, and what was there still serves.

    Broken once by leaving what was unpacked: this failed.
    """
    disk.tmpfs("2m")
    far, seen = Far(disk.inside), Far(disk.path)
    before, large = release("before"), release(**{"daemon/large.py": "#" * 3_000_000})
    far.last(upload(before), *disk.enter)
    files = seen.files()
    where, what, hint = far.error(upload(large), *disk.enter)
    assert (where, what) == (str(far.releases), "No space left on device")
    assert "what was there is unchanged" in hint
    assert seen.files() == files
    disk.fill()
    assert far.error(upload(release("small")), *disk.enter)[1] == "No space left on device"
    assert "result" in far.last(request(before), *disk.enter)
    disk.empty()
    assert seen.files() == files
    verify(str(seen.releases / before.id))
    assert "result" in far.last(upload(release("small")), *disk.enter)


@pytest.mark.parametrize("reason", ["full", "read-only"])
def test_a_home_without_room_stays_empty(disk: Disk, reason: str) -> None:
    """No release has ever come: not even a folder is left."""
    disk.tmpfs("64k")
    far, seen = Far(disk.inside), Far(disk.path)
    if reason == "read-only":
        disk.sh("mount -o remount,ro disk")
    what = far.error(upload(release(large="#" * 300_000)), *disk.enter)[1]
    assert what == {"full": "No space left on device"}.get(reason, "Read-only file system")
    assert seen.files() == []


def test_a_deploy_s_question_says_that_there_is_no_room(disk: Disk, tmp_path: Path) -> None:
    """Before any host is changed; the home stays empty. With room there is nothing against it.

    Broken once by not asking for the room: the answer was "would deploy".
    """
    disk.tmpfs("4m")
    far, seen, made = Far(disk.inside), Far(disk.path), runtime.build()
    (tmp_path / "shop").mkdir()
    config = FileBackend(tmp_path / "shop").config._replace(supervisor="pidfile")
    asked: dict[str, Any] = {"keep": False, "options": {"check": True}, "config": to_json(config)}
    where, what, hint = far.error(upload(made, verb="deploy", **asked), *disk.enter)
    assert where == str(disk.inside)
    assert re.fullmatch(r"the release takes \d+ MiB, and the disk has [34] MiB left", what)
    assert hint.startswith("make room there: ")
    disk.sh("mount -o remount,size=64m disk")
    result = far.last(upload(made, verb="deploy", **asked), *disk.enter)["result"]
    assert result["state"] == "would deploy"
    assert seen.files() == []


def test_a_release_that_came_lasts(ext4: Disk) -> None:
    """A disk that is taken away right after the answer has all of it, and the links as they are.

    Broken once by not syncing what came: this failed.
    """
    far, seen = Far(ext4.inside), Far(ext4.path)
    before, made = release("before"), release("x" * 9000)
    for each in (before, made):
        far.last(upload(each), *ext4.enter)
        releases.switch(str(seen.place), each.id)
    ext4.die()
    ext4.revive()
    verify(str(seen.releases / made.id))
    assert releases.links(str(seen.place)) == (made.id, before.id)
