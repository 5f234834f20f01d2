"""What kind of file system a path is on: the file queue wants a local one."""

from __future__ import annotations

import os
import re

# flock and rename of these are not to be relied on between hosts, or even on one.
NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "smb2",
        "smb3",
        "smbfs",
    }
)
NETWORK_FUSE = ("ceph", "gluster", "goofys", "mfs", "rclone", "s3fs", "sshfs")
ESCAPED = re.compile(r"\\([0-7]{3})")


def kind(path: str, mountinfo: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that holds the path, or would hold it; "" where unknown."""
    path = os.path.realpath(path)
    try:
        with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return ""
    best, found = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:  # noqa: PLR2004  # proc(5): the fifth is the mount point
            continue
        point = ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two on one point the later hides the first
            best, found = point, after.split()[0]
    return found


def is_network(name: str) -> bool:
    """Whether a file system of that type is another machine's."""
    prefix, _, driver = name.partition(".")
    return name in NETWORK or (prefix == "fuse" and driver.startswith(NETWORK_FUSE))
