"""What runs first on a host: it says its facts, receives a release, and hands over to its code.

The last part of stage 0 (runtime.stage_zero), which is sent over ssh and run by whatever Python the
host has: it imports nothing but the standard library, and every Python since 3.6 can read it.
"""

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

if TYPE_CHECKING or __name__ != "__main__":
    from daemon.errors import RolecallError
    from daemon.fleet.arrival import CHUNK, LOOK, Damaged, clear, receive, unpack, verify
    from daemon.fleet.place import (
        CURRENT,
        MANIFEST,
        PATIENCE,
        PREVIOUS,
        RELEASES,
        Lock,
        failure,
        linked,
        place_of,
        present,
    )

PROTOCOL = 1
OLDEST = (3, 11)
MARK = b"\x1erolecall "
HEAD = 8  # bytes before a message: its length, as hexadecimal digits
LONGEST_FRAME = 1 << 26
PULSE = 2.0  # seconds between two signs of life
QUESTION = 600.0  # seconds that the operator's side may take to ask
FOR_NOW = "rolecall-now-"  # releases that are not to be kept, among temporary files
BRINGING = ("install", "deploy")  # verbs that first look whether the release is whole


def say(message: "dict[str, Any]") -> None:
    """Tell the operator's side one thing. Its end of the pipe may be gone."""
    import json  # noqa: PLC0415  # the host's own code never says anything by this function

    data = MARK + json.dumps(message).encode() + b"\n"
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        pass


def pulse() -> "Callable[[], None]":
    """What is called often, and every now and then gives a sign of life."""
    last = [time.monotonic()]

    def beat() -> None:
        now = time.monotonic()
        if now - last[0] >= PULSE:
            last[0] = now
            say({"alive": 1})

    return beat


class Incoming:
    """The next ``size`` bytes of a descriptor, as a file that can be read; never one more."""

    def __init__(self, fd: int, size: int, beat: "Callable[[], None]", patience: float) -> None:
        self.fd, self.left, self.beat, self.patience = fd, size, beat, patience

    def read(self, size: int = CHUNK) -> bytes:
        """At most so many bytes; none at the end of them, or of the descriptor."""
        import select  # noqa: PLC0415  # the host's own code reads nothing by it

        if not self.left:
            return b""  # whatever may follow is not ours to wait for
        until = time.monotonic() + self.patience
        while not select.select([self.fd], [], [], min(LOOK, self.patience))[0]:
            self.beat()
            if time.monotonic() >= until:
                raise RolecallError(f"nothing more has come for {self.patience:g} s")
        self.beat()
        data = os.read(self.fd, min(size, self.left))
        self.left -= len(data)
        return data

    def all(self) -> bytes:
        """All of them; fewer where the descriptor ends before."""
        parts = []
        while self.left:
            part = self.read(self.left)
            if not part:
                break
            parts.append(part)
        return b"".join(parts)


def frame() -> "dict[str, Any] | None":
    """The next message of the operator's side; None where it has gone."""
    import json  # noqa: PLC0415  # of the conversation, as above

    head = Incoming(0, HEAD, lambda: None, QUESTION).all()
    if len(head) < HEAD:
        return None
    try:
        size = int(head, 16)
        body = Incoming(0, min(size, LONGEST_FRAME), lambda: None, PATIENCE).all()
        found: Any = json.loads(body.decode()) if len(body) == size else None
    except ValueError:
        raise RolecallError("what came is no message of Rolecall's") from None
    return found if isinstance(found, dict) else None


def main() -> None:
    """One conversation, by frames on stdin and lines on stdout."""
    sys.path[:] = [each for each in sys.path if each]  # nothing of ours lies in the home folder
    os.write(1, b"\n")  # a banner may have left its line open
    try:
        try:
            _converse()
        except OSError as error:
            raise failure(error) from error
    except RolecallError as error:
        found = {"problems": [list(each) for each in error.problems], "exit_code": error.exit_code}
        say({"error": dict(found, code=getattr(error, "code", ""))})
        sys.exit(1)


def _converse() -> None:
    hello = frame()
    if hello is None:
        return
    if sys.version_info < OLDEST:
        raise RolecallError(
            "Python {}.{}.{} is too old".format(*sys.version_info[:3]),
            where=sys.executable,
            hint="install Python 3.11 or newer there, or name one that is there in the inventory: "
            "ansible_python_interpreter",
        )
    place = place_of(os.path.expanduser("~"), str(hello.get("prefix")))
    known = facts(place)
    say({"facts": known})
    request = frame()
    if request is None:
        return
    beat, wanted, upload = pulse(), request.get("release"), request.get("upload") or 0
    if wanted is None:
        wanted = known["current"] or _left_over(place, request.get("verb"), known)
    if wanted is None:
        say({"result": None, "missing": True})
    elif upload and not request.get("keep", True):
        _serve_from_aside(wanted, upload, beat, request, known)
    elif upload:
        with Lock(place, beat):
            # As soon as we stand in it, it is in use, and nobody prunes it.
            os.chdir(receive(place, wanted, Incoming(0, upload, beat, PATIENCE), beat))
        _serve(request, known)
    else:
        path = os.path.join(place, RELEASES, wanted)
        try:
            os.chdir(path)
        except OSError as error:
            what = f"the release cannot be entered: {error.strerror}"
            raise Damaged(what, where=path, hint="invoke install copies it anew") from None
        if request.get("verb") in BRINGING:
            verify(path, beat, compiles=not (request.get("options") or {}).get("check"))
        _serve(request, known)


def _left_over(place: str, verb: object, known: "dict[str, Any]") -> "str | None":
    """A release that can take away what an install has left that was broken off; None for none."""
    if verb != "uninstall" or not os.path.isdir(place):
        return None
    if known["releases"]:
        return str(known["releases"][-1])
    with Lock(place, pulse()):
        clear(place)
    return None


def _serve_from_aside(
    wanted: str,
    upload: int,
    beat: "Callable[[], None]",
    request: "dict[str, Any]",
    known: "dict[str, Any]",
) -> None:
    """Run a release that the host is not to keep: what only looks leaves nothing behind."""
    import shutil  # noqa: PLC0415  # felt at each start
    import tempfile  # noqa: PLC0415  # as above

    around = tempfile.gettempdir()
    for name in os.listdir(around):
        if name.startswith(FOR_NOW):
            _remove_left(os.path.join(around, name))
    folder = tempfile.mkdtemp(prefix=FOR_NOW)
    held = _held(folder)  # as long as we live
    try:
        unpack(Incoming(0, upload, beat, PATIENCE), folder, wanted)
        os.chdir(folder)
        _serve(request, known)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _held(folder: str) -> "int | None":
    """A lock on a folder; None where a live process has one, or it is not ours."""
    import fcntl  # noqa: PLC0415  # felt at each start

    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _remove_left(folder: str) -> None:
    """Remove what one who was killed has left of a release that nobody was to keep."""
    import shutil  # noqa: PLC0415  # as above

    held = _held(folder)
    # Between its making and its lock one is empty, and may be another's who has just begun.
    if held is not None:
        if os.listdir(folder):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _serve(request: "dict[str, Any]", known: "dict[str, Any]") -> None:
    """Hand over to the code of the release that we stand in."""
    import importlib  # noqa: PLC0415  # most is imported by the release, not by us

    sys.dont_write_bytecode = True
    try:
        sys.path.insert(0, os.getcwd())  # where it truly is, whatever `current` will say
        onhost = importlib.import_module("daemon.fleet.onhost")
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name in sys.stdlib_module_names:
            raise RolecallError(
                f"this Python has no module {name}, as every whole one has",
                where=sys.executable,
                hint="apt-get install python3 (python3-minimal is not enough)",
            ) from error
        # Another copy mends it; or an uninstall has just removed it.
        raise Damaged(
            f"the release does not run: {error}", where=sys.path[0], hint="invoke install"
        ) from error
    except FileNotFoundError:
        raise Damaged("the release was removed meanwhile", hint="invoke install") from None
    if getattr(onhost, "PROTOCOL", PROTOCOL) != PROTOCOL:
        raise RolecallError(
            "the release that runs there is of another time, and speaks otherwise",
            where=os.getcwd(),
            hint="invoke deploy",
        )
    onhost.serve(request, known)


def kind() -> str:
    """What compiled files must be made for, to run here: "linux-x86_64-glibc-cp311"."""
    system, _, _, _, machine = os.uname()
    # A 32-bit Python says so, whatever the kernel is.
    machine = str(getattr(sys.implementation, "_multiarch", "")).partition("-")[0] or machine
    try:
        libc = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")[0] or "musl"
    except (OSError, ValueError):
        libc = "musl"
    name = {"cpython": "cp"}.get(sys.implementation.name, sys.implementation.name)
    version = "{}{}".format(*sys.version_info[:2]) + getattr(sys, "abiflags", "")
    return "-".join((system.lower(), machine, libc, name + version))


def facts(place: str) -> "dict[str, Any]":
    """What the operator's side wants to know before it says what is to be done."""
    import pwd  # noqa: PLC0415  # of the conversation, as above

    home, uid = os.path.expanduser("~"), os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        disk = os.statvfs(home)
        free = disk.f_bavail * disk.f_frsize
    except OSError:
        free = 0
    return {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "kind": kind(),
        "home": home,
        "user": user,
        "uid": uid,
        "node": os.uname().nodename,
        "current": linked(place, CURRENT),
        "previous": linked(place, PREVIOUS),
        "releases": [
            each
            for each in present(place)
            if os.path.isfile(os.path.join(place, RELEASES, each, MANIFEST))
        ],
        "free": free,
    }


if __name__ == "__main__":
    main()
