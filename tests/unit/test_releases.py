"""Which release of a host runs, and which ones may go: real folders, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.fleet import releases
from daemon.fleet.arrival import Damaged
from daemon.fleet.place import Lock
from daemon.fleet.releases import Links
from daemon.fleet.runtime import Runtime
from tests.farside import Far, release, upload

A, B, C, D = (release(each) for each in "abcd")
WAITS = "print('up', flush=True); input()"


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    """A host with three releases; its lock is held."""
    (tmp_path / "there").mkdir()
    host = Far(tmp_path / "there")
    for each in (A, B, C):
        host.last(upload(each))
    with Lock(str(host.place)):
        yield host


@pytest.fixture
def place(far: Far) -> str:
    return str(far.place)


def folder(far: Far, made: Runtime) -> Path:
    return far.releases / made.id


def there(far: Far) -> set[str]:
    return set(os.listdir(far.releases))


def test_a_switch_keeps_the_one_before(place: str) -> None:
    """By links that are relative: the home may be mounted elsewhere."""
    assert releases.links(place) == (None, None)
    assert releases.switch(place, A.id)
    assert releases.links(place) == (A.id, None)
    assert releases.switch(place, B.id)
    assert releases.links(place) == (B.id, A.id)
    assert os.readlink(os.path.join(place, "current")) == f"releases/{B.id}"
    assert releases.switch(place, C.id)
    assert releases.links(place) == (C.id, B.id)


def test_a_switch_to_the_present_one_changes_nothing(place: str) -> None:
    """Above all it does not lose the one before."""
    releases.switch(place, A.id)
    releases.switch(place, B.id)
    before = os.lstat(os.path.join(place, "current")).st_ino
    assert not releases.switch(place, B.id)
    assert releases.links(place) == (B.id, A.id)
    assert os.lstat(os.path.join(place, "current")).st_ino == before


def test_no_switch_to_a_damaged_release(far: Far, place: str) -> None:
    """It is compared with its manifest before each."""
    releases.switch(place, A.id)
    (folder(far, B) / "daemon" / "__init__.py").write_text("")
    with pytest.raises(Damaged):
        releases.switch(place, B.id)
    with pytest.raises(Damaged):
        releases.switch(place, D.id)
    assert releases.links(place) == (A.id, None)


def test_a_switch_is_taken_back(place: str) -> None:
    """To just what was there before it, also to nothing."""
    releases.switch(place, A.id)
    before = releases.links(place)
    releases.switch(place, B.id)
    releases.point(place, before)
    assert releases.links(place) == before == (A.id, None)
    releases.point(place, Links(None, None))
    assert sorted(os.listdir(place)) == [".lock", "releases"]


def test_what_a_killed_switch_left_is_no_hindrance(place: str) -> None:
    """A link that was not renamed yet."""
    os.symlink("nowhere", os.path.join(place, ".current.new"))
    assert releases.switch(place, A.id)
    assert releases.links(place) == (A.id, None)


def test_only_what_nobody_needs_is_pruned(far: Far, place: str) -> None:
    """The current and the previous one stay, and what is no release at all."""
    (far.releases / "notes").mkdir()
    releases.switch(place, A.id)
    assert set(releases.prune(place)) == {B.id, C.id}
    assert there(far) == {A.id, "notes"}


@pytest.mark.parametrize("where", ["cwd", "PYTHONPATH", "argument", "mapped"])
def test_what_a_live_process_has_is_kept(far: Far, place: str, where: str) -> None:
    """A worker stands in its release, an attempt has it in PYTHONPATH, others in other places.

    Each was left out once: this failed.
    """
    releases.switch(place, A.id)
    used = folder(far, C)
    code, cwd, more = WAITS, far.home, {}
    arguments: list[str] = []
    if where == "cwd":
        cwd = used
    elif where == "PYTHONPATH":
        more = {"PYTHONPATH": f"/elsewhere:{used}"}
    elif where == "argument":
        arguments = [str(used / "daemon" / "__init__.py")]
    else:
        code = "import mmap, os; f = open('MANIFEST'); m = mmap.mmap(f.fileno(), 0, prot=1); "
        code += "f.close(); os.chdir('/'); " + WAITS
        cwd = used
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == "up\n"
        assert releases.prune(place) == [B.id]
        assert there(far) == {A.id, C.id}
        running.communicate("\n")
    assert releases.prune(place) == [C.id]


def test_a_home_behind_a_link_is_the_same_home(far: Far, place: str, tmp_path: Path) -> None:
    """Processes name the release by its true path, and we perhaps by another."""
    (tmp_path / "alias").symlink_to(far.home)
    alias = place.replace(str(far.home), str(tmp_path / "alias"))
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        cwd=folder(far, C),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == "up\n"
        assert releases.used(alias) == {C.id}
        running.communicate("\n")


def test_a_release_that_serves_is_in_use(far: Far, place: str) -> None:
    """From the moment on that its lock is free: another operator's prune leaves it alone."""
    made = release("slow", "import sys\ndef serve(request, facts):\n sys.stdin.read()\n", d="")
    sent = upload(made)
    lock = Lock(place)
    lock.fd = -1
    far.place.joinpath(".lock").unlink()  # whose lock the fixture holds
    with far.start() as running:
        assert running.stdin
        running.stdin.write(sent)
        running.stdin.flush()
        while made.id not in releases.used(place):
            assert running.poll() is None
        running.communicate()


def test_nothing_is_left_of_what_was_there(far: Far, place: str) -> None:
    """Releases, links, leftovers, lock, and the folders that were made for them."""
    releases.switch(place, A.id)
    releases.switch(place, B.id)
    os.symlink("nowhere", os.path.join(place, ".current.new"))
    (far.releases / ".new-0123").mkdir()
    releases.remove(place)
    assert far.files() == []


def test_what_is_not_ours_stays(far: Far, place: str) -> None:
    """A person's notes beside the releases, and the folders they are in."""
    releases.switch(place, A.id)
    (far.releases / "notes").write_text("")
    releases.remove(place)
    assert [path for path in far.files() if path.endswith("notes")]
    assert not (far.place / "current").is_symlink()
    assert there(far) == {"notes"}
