"""The folder of a prefix, and the lock that two operators meet at."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from daemon.errors import RolecallError
from daemon.fleet import place as places
from daemon.fleet.place import LOCK, Lock, tidy
from tests.farside import Far, release, upload
from tests.workspace import PATIENCE, ROOT

HOLD = """
import sys
from daemon.fleet.place import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A home, with nothing in it."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def place(there: Path) -> str:
    return places.place_of(str(there), "agent")


def everything(there: Path) -> list[str]:
    return sorted(str(path.relative_to(there)) for path in there.rglob("*"))


def holder(place: str) -> subprocess.Popen[str]:
    running = subprocess.Popen(
        [sys.executable, "-c", HOLD, place],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "SSH_CONNECTION": "198.51.100.7 1 198.51.100.8 22"},
    )
    assert running.stdout
    assert running.stdout.readline() == "held\n"
    return running


def test_the_lock_makes_its_folder_closed_to_others(place: str) -> None:
    """Also one that stood open."""
    os.makedirs(place, 0o755)
    with Lock(place):
        assert stat.S_IMODE(os.stat(place).st_mode) == 0o700


def test_who_waits_too_long_hears_who_is_at_work(place: str) -> None:
    """From which machine, since when; and waiting gave signs of life."""
    beats: list[int] = []
    with holder(place) as running:
        with pytest.raises(RolecallError) as raised, Lock(place, lambda: beats.append(1), 0.3):
            pass
        assert running.stdin
        running.stdin.close()
    problem = raised.value.problems[0]
    expected = f"another command is at work on this host: process {running.pid} of 198.51.100.7, 2"
    assert problem.what.startswith(expected)
    assert problem.where == os.path.join(place, LOCK)
    assert "again" in problem.hint
    assert beats


def test_the_lock_of_who_was_killed_is_free(place: str) -> None:
    """The kernel gives it back."""
    with holder(place) as running:
        running.kill()
    with Lock(place, wait=PATIENCE):
        pass


def test_who_waited_while_it_was_removed_makes_another(there: Path, place: str) -> None:
    """Two operators: one uninstalls while the other waits to install."""
    waited, entered = threading.Event(), threading.Event()

    def wait() -> None:
        with Lock(place, waited.set, PATIENCE) as lock:
            assert os.path.samestat(os.stat(os.path.join(place, LOCK)), os.fstat(lock.fd))
            entered.set()

    other = threading.Thread(target=wait)
    with Lock(place):
        other.start()
        assert waited.wait(PATIENCE)
        tidy(place)
        assert everything(there) == []
    other.join(PATIENCE)
    assert entered.is_set()


def test_one_at_a_time_however_often_it_is_removed(place: str, tmp_path: Path) -> None:
    """Many who lock, and remove the lock with all of its folders before they let go.

    Broken once by not looking whether the file that was locked is still there: this failed.
    """
    failed: list[BaseException] = []
    inside = tmp_path / "inside"

    def often() -> None:
        try:
            for _ in range(100):
                with Lock(place, wait=PATIENCE):
                    inside.touch(exist_ok=False)
                    inside.unlink()
                    tidy(place)
        except BaseException as error:  # noqa: BLE001  # it is told below
            failed.append(error)

    several = [threading.Thread(target=often) for _ in range(4)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    assert failed == []


def test_a_lock_is_no_link(place: str, tmp_path: Path) -> None:
    """It could make a file of somebody else's."""
    os.makedirs(place)
    os.symlink(tmp_path / "elsewhere", os.path.join(place, LOCK))
    with pytest.raises(RolecallError), Lock(place):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_folders_that_were_made_go_again(there: Path, place: str) -> None:
    """Those around Rolecall's own, too."""
    with Lock(place):
        assert (there / ".local" / "share" / "rolecall" / "agent" / LOCK).exists()
        tidy(place)
    assert everything(there) == []


@pytest.mark.parametrize("before", [".local", ".local/share", ".local/share/rolecall"])
def test_folders_that_were_there_stay(there: Path, place: str, before: str) -> None:
    """Though they are empty: they are not ours. But rolecall is, by its name."""
    (there / before).mkdir(parents=True)
    with Lock(place):
        tidy(place)
    kept = [".local", ".local/share"]
    assert everything(there) == [each for each in kept if before.startswith(each)]


def test_the_last_prefix_takes_the_folders_with_it(there: Path, place: str) -> None:
    """Whichever was there first."""
    other = places.place_of(str(there), "other")
    with Lock(place), Lock(other):
        tidy(place)
        assert (there / ".local" / "share" / "rolecall" / "other").exists()
        tidy(other)
    assert everything(there) == []


def test_what_others_put_there_stays(there: Path, place: str) -> None:
    """A folder goes only when it is empty."""
    with Lock(place):
        (there / ".local" / "share" / "applications").mkdir()
        tidy(place)
    assert everything(there) == [".local", ".local/share", ".local/share/applications"]


def test_a_home_that_takes_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    """Where it is a file, here; as where it is read-only or full."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ".local").write_text("")
    where, what, _ = Far(tmp_path / "there").error(upload(release()))
    assert (where, what) == (str(tmp_path / "there" / ".local" / "share"), "Not a directory")
    assert everything(tmp_path / "there") == [".local"]
