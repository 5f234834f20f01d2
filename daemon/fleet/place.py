"""Where a host keeps the releases of a prefix, and the lock under which that is changed.

    ~/.local/share/rolecall/<prefix>/releases/<id>/   daemon/ templates/ jinja2/ ... MANIFEST
    ~/.local/share/rolecall/<prefix>/current -> releases/<id>     and previous -> ...

The first part of stage 0 (runtime.stage_zero): every Python since 3.6 can read it, and it imports
nothing but the standard library.
"""

import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

if TYPE_CHECKING or __name__ != "__main__":
    from daemon.errors import RolecallError
else:

    class RolecallError(Exception):
        """As daemon.errors has it, which is not here yet."""

        exit_code = 1

        def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
            self.problems = ((where, what, hint),)
            super().__init__(what)


CURRENT, PREVIOUS, RELEASES, MANIFEST = "current", "previous", "releases", "MANIFEST"
LOCK, MADE = ".lock", ".made"
DIGITS = 16  # of a release's id
PATIENCE = 30.0  # seconds that another's work is waited for
NAP = 0.02  # seconds between two tries
HINTS = {
    errno.ENOSPC: "make room on that disk; what was there is unchanged",
    errno.EDQUOT: "make room in that quota; what was there is unchanged",
    errno.EROFS: "the file system is read-only; what was there is unchanged",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f); what was there is unchanged",
    errno.EACCES: "look at the folder's owner and permissions",
}


def failure(error: OSError, path: str = "") -> RolecallError:
    """What the system refused, in our voice."""
    where = str(error.filename or path)
    return RolecallError(str(error.strerror), where=where, hint=HINTS.get(error.errno or 0, ""))


def place_of(home: str, prefix: str) -> str:
    """Where the releases of a prefix are."""
    if not prefix.replace("-", "").isalnum():
        raise RolecallError(f"{prefix!r} is no unit_prefix")
    return os.path.join(home, ".local", "share", "rolecall", prefix)


def linked(place: str, name: str) -> "str | None":
    """The id of the release that ``current`` or ``previous`` names; None where it names none."""
    try:
        folder, found = os.path.split(os.readlink(os.path.join(place, name)))
    except OSError:
        return None
    return found if folder == RELEASES and is_id(found) else None


def present(place: str) -> "list[str]":
    """The ids of the releases that are there, whole or not."""
    try:
        return sorted(each for each in os.listdir(os.path.join(place, RELEASES)) if is_id(each))
    except OSError:
        return []


def is_id(name: str) -> bool:
    """Whether a folder of that name is a release."""
    return len(name) == DIGITS and not set(name) - set("0123456789abcdef")


class Lock:
    """The right to change what is in ``place``, which it makes where there is none yet.

    Raises RolecallError where another holds it for ``wait`` seconds. Whoever takes the last release
    away also removes the file, and still holds it (``tidy``): who waited for it sees that, and
    makes another one.
    """

    def __init__(
        self, place: str, beat: "Callable[[], None]" = lambda: None, wait: float = PATIENCE
    ) -> None:
        self.place, self.beat, self.wait, self.fd = place, beat, wait, -1

    def __enter__(self) -> "Self":
        import fcntl  # noqa: PLC0415  # felt at each start

        until = time.monotonic() + self.wait
        path = os.path.join(self.place, LOCK)
        while True:
            fd = self._open(path, until)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd)):
                    self.fd = fd
                    break
            except BlockingIOError:
                if time.monotonic() >= until:
                    who = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
                    os.close(fd)
                    raise RolecallError(
                        f"another command is at work on this host: {who}",
                        where=path,
                        hint="type this one again when that has ended",
                    ) from None
            except FileNotFoundError:
                pass  # it was removed before we had it
            os.close(fd)
            self.beat()
            time.sleep(NAP)
        came = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} of {came or 'this host'}, {now}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the name is for people, the lock holds without it
        return self

    def __exit__(self, *raised: object) -> None:
        os.close(self.fd)

    def _open(self, path: str, until: float) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                _make(self.place)
                return os.open(path, flags, 0o600)
            except OSError as error:
                # Between the two, another may have removed the folder, which was empty.
                if isinstance(error, FileNotFoundError) and time.monotonic() < until:
                    continue
                _remove_folders(self.place)
                raise failure(error, path) from None


def _make(place: str) -> None:
    """Make the folder, closed to others, and note which ones around Rolecall's own were made."""
    shared = os.path.dirname(place)
    missing: list[str] = []
    folder = place
    while not os.path.isdir(folder):
        missing.insert(0, folder)
        folder = os.path.dirname(folder)
    made: list[str] = []
    try:
        for each in missing:
            try:
                os.mkdir(each, 0o700)
            except FileExistsError:  # another was faster
                continue
            made.append(each)
            sync_one(os.path.dirname(each))
        around = [each for each in made if shared.startswith(each + os.sep)]
        if around:
            with open(os.path.join(shared, MADE), "a", encoding="utf-8") as file:
                file.write("".join(each + "\n" for each in around))
    except BaseException:
        _unmake(made, os.path.join(shared, MADE))
        raise
    if os.stat(place).st_uid != os.geteuid():
        raise PermissionError(errno.EACCES, "it is another account's", place)
    os.chmod(place, 0o700)


def _unmake(made: "list[str]", record: str) -> None:
    """Remove the folders that were made just now, with the record of them, which may be half."""
    if os.path.dirname(record) in made and os.path.exists(record):
        os.unlink(record)
    for each in reversed(made):
        try:
            os.rmdir(each)
        except OSError:
            return  # another uses it by now


def tidy(place: str) -> None:
    """Remove what is left where there is no release any more: the lock, and folders that are empty.

    The lock is held by who calls this, and useless from then on.
    """
    for name in (CURRENT, PREVIOUS):
        for path in (os.path.join(place, name), os.path.join(place, aside_of(name))):
            if os.path.islink(path) and not os.path.exists(path):
                os.unlink(path)
    try:
        os.rmdir(os.path.join(place, RELEASES))
    except FileNotFoundError:
        pass
    except OSError:
        return  # releases are left
    os.unlink(os.path.join(place, LOCK))
    _remove_folders(place)


def aside_of(name: str) -> str:
    """What a link is called until it takes the place of the old one."""
    return f".{name}.new"


def _remove_folders(place: str) -> None:
    """Remove the folder, Rolecall's own, and those that were made for it, where they are empty."""
    shared = os.path.dirname(place)
    record = os.path.join(shared, MADE)
    try:
        os.rmdir(place)
        around = []
        if os.listdir(shared) == [MADE]:
            with open(record, encoding="utf-8") as file:
                around = file.read().splitlines()
            os.unlink(record)
        os.rmdir(shared)
        for each in reversed(around):
            if shared.startswith(each + os.sep):
                os.rmdir(each)
    except OSError:
        return  # another prefix is there, or another program's files


def sync_one(path: str) -> None:
    """Make one file last, or what was created, renamed or removed last in one folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
