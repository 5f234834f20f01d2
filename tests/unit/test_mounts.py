"""File systems that are another machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon import mounts

MOUNTS = """\
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:5 / /srv rw shared:1 - nfs4 host:/srv rw
23 22 0:6 / /srv/fast\\040disk rw - xfs /dev/sdb rw
24 21 0:7 / /mnt rw - ext4 /dev/sdc rw
25 21 0:8 / /mnt rw - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/etc/passwd", "ext4", False),
        ("/srv/shop/queue.json", "nfs4", True),
        ("/srvx", "ext4", False),
        ("/srv/fast disk/shop", "xfs", False),
        ("/mnt/shop", "fuse.sshfs", True),
    ],
)
def test_the_nearest_mount_decides(tmp_path: Path, path: str, kind: str, *, network: bool) -> None:
    """Names count as a whole, escapes are read, and the later of two mounts hides the first."""
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    assert mounts.kind(path, str(table)) == kind
    assert mounts.is_network(kind) is network


def test_a_system_that_does_not_say_is_not_warned_about(tmp_path: Path) -> None:
    """Where there is no /proc there is no answer."""
    assert mounts.kind("/", str(tmp_path / "none")) == ""
    assert not mounts.is_network("")
