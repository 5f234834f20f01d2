"""What wakes a worker, and what must not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from daemon.wake import Signals, Watch, wait

pytest.importorskip("inotify_simple", reason="inotify_simple is not installed")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    queue, leases = tmp_path / "work" / "queue.json", tmp_path / "leases"
    queue.parent.mkdir()
    leases.mkdir()
    queue.write_text("{}")
    return queue, leases


def test_a_rename_over_the_queue_wakes(folders: tuple[Path, Path]) -> None:
    """The way we and careful editors write; and so does a plain write."""
    queue, leases = folders
    watch = Watch(str(queue), str(leases))
    assert not watch.changed()
    aside = queue.with_suffix(".tmp")
    aside.write_text("{}")
    assert not watch.changed()
    aside.rename(queue)
    assert watch.changed()
    queue.write_text("{ }")
    assert wait([watch.fd], 10) == {watch.fd}
    assert watch.changed()
    watch.close()


def test_a_linked_queue_wakes_too(folders: tuple[Path, Path]) -> None:
    """The file behind the link is what changes."""
    queue, leases = folders
    link = leases / "linked.json"
    link.symlink_to(queue)
    watch = Watch(str(link), str(leases))
    queue.write_text("{ }")
    assert watch.changed()
    watch.close()


def test_a_lease_wakes_when_it_goes_but_not_when_it_beats(folders: tuple[Path, Path]) -> None:
    """Every heartbeat would otherwise wake every worker."""
    queue, leases = folders
    watch = Watch(str(queue), str(leases))
    for _ in range(2):
        aside = leases / ".T1.tmp"
        aside.write_text("{}")
        aside.rename(leases / "T1.json")
    assert not watch.changed()
    (leases / "T1.json").unlink()
    assert watch.changed()
    watch.close()


def test_a_folder_made_anew_is_watched_again(folders: tuple[Path, Path]) -> None:
    """People remove `.leases` and check out branches under a running worker."""
    queue, leases = folders
    watch = Watch(str(queue), str(leases))
    leases.rmdir()
    assert watch.changed()
    leases.mkdir()
    watch.renew()
    (leases / "T1.json").write_text("{}")
    (leases / "T1.json").unlink()
    assert watch.changed()
    watch.close()


def test_signals_are_recorded_and_wake() -> None:
    """A handler decides nothing: it leaves a note and makes the poll return."""
    before = signal.getsignal(signal.SIGUSR2)
    signals = Signals(signal.SIGUSR2)
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert wait([signals.fd], 10) == {signals.fd}
        assert signals.taken() == [signal.SIGUSR2]
        assert signals.taken() == []
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.set_wakeup_fd(-1)
