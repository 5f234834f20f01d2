"""What runs first on a host: it says its facts, receives a release, and hands over to its code.

The text of this file is sent over ssh and run by whatever Python the host has: it imports nothing
but the standard library, and every Python since 3.6 can read it. The host's own code imports it,
too.

    ~/.local/share/rolecall/<prefix>/releases/<id>/   daemon/ templates/ jinja2/ ... MANIFEST
    ~/.local/share/rolecall/<prefix>/current -> releases/<id>     and previous -> ...

What is changed there is changed by who holds the ``Lock``.
"""

import errno
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

if TYPE_CHECKING or __name__ != "__main__":
    from daemon.errors import RolecallError
else:

    class RolecallError(Exception):
        """As daemon.errors has it, which is not here yet."""

        exit_code = 1

        def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
            self.problems = ((where, what, hint),)
            super().__init__(what)


PROTOCOL = 1
OLDEST = (3, 11)
MARK = b"\x1erolecall "
MANIFEST = "MANIFEST"
CURRENT, PREVIOUS, RELEASES = "current", "previous", "releases"
LOCK, MADE = ".lock", ".made"
ASIDE = ".new-"
DIGITS = 16  # of a release's id
HEAD = 8  # bytes before a message: its length, as hexadecimal digits
SHOWN = 3  # files of a damaged release that are named
CHUNK = 1 << 16
# Against what is no release at all: the largest, with the packages of `agent: llm`, has some
# thousands of files, and less than 100 MB.
MOST_FILES, MOST_BYTES, LONGEST_FRAME = 50000, 1 << 30, 1 << 26
PULSE = 2.0  # seconds between two signs of life
PATIENCE = 30.0  # seconds that another's work is waited for, or the next bytes of an upload
QUESTION = 600.0  # seconds that a person's side may take to think
NAP = 0.1
SYNCS = 16  # files at once: a disk needs as long for many as for one
WRITING = ("install", "deploy", "uninstall")
HINTS = {
    errno.ENOSPC: "make room on that disk; what was there is unchanged",
    errno.EDQUOT: "make room in that quota; what was there is unchanged",
    errno.EROFS: "the file system is read-only; what was there is unchanged",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f); what was there is unchanged",
    errno.EACCES: "look at the folder's owner and permissions",
}


class Damaged(RolecallError):
    """A release that is not what its manifest says; another copy of it mends that."""

    code = "damaged"


# --- the conversation -----------------------------------------------------------------------------


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
        import select  # noqa: PLC0415  # of the conversation, as above

        until = time.monotonic() + self.patience
        while not select.select([self.fd], [], [], min(PULSE, self.patience))[0]:
            self.beat()
            if time.monotonic() >= until:
                raise RolecallError(f"nothing more has come for {self.patience:g} s")
        self.beat()
        data = os.read(self.fd, min(size, self.left)) if self.left else b""
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


def failure(error: OSError, path: str = "") -> RolecallError:
    """What the system refused, in our voice."""
    where = path or str(error.filename or "")
    return RolecallError(str(error.strerror), where=where, hint=HINTS.get(error.errno or 0, ""))


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
    place = place_of(os.path.expanduser("~"), hello["prefix"])
    known = facts(place)
    say({"facts": known})
    request = frame()
    if request is None:
        return
    beat, wanted, upload = pulse(), request.get("release"), request.get("upload") or 0
    if wanted is None:
        wanted = known["current"]
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
            raise Damaged(f"the release cannot be entered: {error.strerror}", where=path) from None
        if request.get("verb") in WRITING:
            verify(path, beat)
        _serve(request, known)


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

    folder = tempfile.mkdtemp(prefix="rolecall-")
    try:
        unpack(Incoming(0, upload, beat, PATIENCE), folder, wanted)
        os.chdir(folder)
        _serve(request, known)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(request: "dict[str, Any]", known: "dict[str, Any]") -> None:
    """Hand over to the code of the release that we stand in."""
    import importlib  # noqa: PLC0415  # most is imported by the release, not by us

    sys.path.insert(0, os.getcwd())  # where it truly is, whatever `current` will say
    sys.dont_write_bytecode = True
    try:
        onhost = importlib.import_module("daemon.fleet.onhost")
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name in sys.stdlib_module_names:
            raise RolecallError(
                f"this Python has no module {name}, as every whole one has",
                where=sys.executable,
                hint="apt-get install python3 (python3-minimal is not enough)",
            ) from error
        raise RolecallError(
            f"the release does not run: {error}", where=os.getcwd(), hint="invoke install"
        ) from error
    if getattr(onhost, "PROTOCOL", PROTOCOL) != PROTOCOL:
        raise RolecallError(
            "the release that runs there is of another time, and speaks otherwise",
            where=os.getcwd(),
            hint="invoke deploy",
        )
    onhost.serve(request, known)


# --- what the host is -----------------------------------------------------------------------------


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


def identify(manifest: bytes) -> str:
    """The id of the release that has this manifest."""
    import hashlib  # noqa: PLC0415  # felt at each start

    return hashlib.sha256(manifest).hexdigest()[:DIGITS]


# --- the lock, and the folders around it ----------------------------------------------------------


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
            fd = self._open(path)
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

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                _make(self.place)
                return os.open(path, flags, 0o600)
            except FileNotFoundError:
                continue  # between the two, another removed the folder that was empty
            except OSError as error:
                _remove_folders(self.place)
                raise failure(error, path) from None


def _make(place: str) -> None:
    """Make the folder, closed to others, and note which ones around Rolecall's own were made."""
    missing: list[str] = []
    folder = place
    while not os.path.isdir(folder):
        missing.insert(0, folder)
        folder = os.path.dirname(folder)
    for each in missing:
        try:
            os.mkdir(each, 0o700)
        except FileExistsError:
            if not os.path.isdir(each):
                raise
    shared = os.path.dirname(place)
    around = [each for each in missing if shared.startswith(each + os.sep)]
    if around:
        with open(os.path.join(shared, MADE), "w", encoding="utf-8") as file:
            file.write("".join(each + "\n" for each in around))
    if os.stat(place).st_uid != os.geteuid():
        raise PermissionError(errno.EACCES, "it is another account's", place)
    os.chmod(place, 0o700)


def tidy(place: str) -> None:
    """Remove what is left where there is no release any more: the lock, and folders that are empty.

    The lock is held by who calls this, and useless from then on.
    """
    try:
        os.rmdir(os.path.join(place, RELEASES))
    except FileNotFoundError:
        pass
    except OSError:
        return  # releases are left
    for name in (CURRENT, PREVIOUS):
        if linked(place, name) is not None:
            os.unlink(os.path.join(place, name))
    if os.listdir(place) == [LOCK]:
        os.unlink(os.path.join(place, LOCK))
    _remove_folders(place)


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


# --- a release ------------------------------------------------------------------------------------


def receive(place: str, wanted: str, stream: Incoming, beat: "Callable[[], None]") -> str:
    """Put the release there that comes as a .tar.gz, whole and lasting, or change nothing.

    ``place`` is locked. Returns its folder. A damaged one of that id is replaced.
    """
    if not is_id(wanted):
        raise RolecallError(f"{wanted!r} is no release's id")
    releases = os.path.join(place, RELEASES)
    aside, final = os.path.join(releases, ASIDE + wanted), os.path.join(releases, wanted)
    umask = os.umask(0o022)
    try:
        sweep(place)
        os.makedirs(aside)
        unpack(stream, aside, wanted)
        compile_in(aside, final, beat)
        _sync(aside, beat)
        try:
            verify(final, beat)
        except Damaged:
            # Nothing is there under its name for an instant; what runs of it has been read before.
            if os.path.lexists(final):
                os.rename(final, aside + "-damaged")
            os.rename(aside, final)
        for folder in (releases, place):
            sync_one(folder)
    except BaseException as error:
        sweep(place)
        tidy(place)
        if isinstance(error, OSError):
            raise failure(error, aside) from None
        raise
    else:
        sweep(place)
    finally:
        os.umask(umask)
    return final


def sweep(place: str) -> None:
    """Remove what uploads that were broken off have left. ``place`` is locked."""
    import shutil  # noqa: PLC0415  # felt at each start

    releases = os.path.join(place, RELEASES)
    for name in os.listdir(releases) if os.path.isdir(releases) else ():
        if name.startswith(ASIDE):
            shutil.rmtree(os.path.join(releases, name), ignore_errors=True)


def unpack(stream: Incoming, folder: str, wanted: str) -> None:
    """Write the files of a .tar.gz into an empty folder: those of its manifest, and nothing else.

    The manifest comes first, and is the one that ``wanted`` is the id of. Raises Damaged where
    anything is otherwise.
    """
    import tarfile  # noqa: PLC0415  # felt at each start
    import zlib  # noqa: PLC0415  # as above

    left: dict[str, str] | None = None
    room = MOST_BYTES
    source: Any = stream  # a file of which tarfile wants no more than read
    try:
        with tarfile.open(fileobj=source, mode="r|gz") as archive:
            for member in archive:
                name = member.name
                room -= member.size
                hashed = name == MANIFEST if left is None else left.pop(name, None)
                content = archive.extractfile(member) if member.type == tarfile.REGTYPE else None
                if not hashed or content is None or room < 0:
                    raise Damaged(f"something else is in the archive, or too much: {name!r}")
                found = _write(os.path.join(folder, name), content)
                if left is None:
                    if found[:DIGITS] != wanted:
                        raise Damaged("the archive is that of another release")
                    left = listed(folder)
                elif found != hashed:
                    raise Damaged(f"{name} is not what the manifest says")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise Damaged(f"the archive was cut short, or is none: {error}") from error
    while stream.left and stream.read():  # what fills its last block up
        pass
    if left is None or left or stream.left:
        raise Damaged("the archive was cut short")


def _write(path: str, content: "Any") -> str:
    """Write what can be read there to a new file. Returns its hash."""
    import hashlib  # noqa: PLC0415  # felt at each start

    os.makedirs(os.path.dirname(path), exist_ok=True)
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o644), "wb") as file:
        part = content.read(CHUNK)
        while part:
            digest.update(part)
            file.write(part)
            part = content.read(CHUNK)
    return digest.hexdigest()


def listed(folder: str) -> "dict[str, str]":
    """The files that the manifest of a release names, and their hashes. Raises Damaged."""
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            lines = file.read(MOST_FILES * 200).split("\n")
    except (OSError, ValueError) as error:
        raise Damaged(f"its manifest cannot be read: {error}", where=path) from None
    found = {}
    for line in lines[:-1]:
        hashed, name = line[:64], line[66:]
        parts = name.split("/")
        strange = {"", ".", "..", "__pycache__", MANIFEST} & set(parts) or not name.isprintable()
        if strange or "\\" in name or line[64:66] != "  " or not hashed.isalnum():
            raise Damaged(f"no line of a manifest: {line[:200]!r}", where=path)
        found[name] = hashed
    if lines[-1] or not 0 < len(found) == len(lines) - 1 <= MOST_FILES:
        raise Damaged("it is cut short, too long, or names a file twice", where=path)
    return found


def verify(folder: str, beat: "Callable[[], None]" = lambda: None) -> None:
    """Raise Damaged unless a release is, file by file, what its manifest says, and no more.

    What Python has compiled of it is no part of that: where it is not of these very sources, it is
    made again.
    """
    expected = listed(folder)
    expected[MANIFEST] = ""
    folders = {name[:at] for name in expected for at, each in enumerate(name) if each == "/"}
    wrong = []
    for where, inside, names in os.walk(folder):
        below = os.path.relpath(where, folder) + os.sep if where != folder else ""
        inside[:] = [each for each in inside if each != "__pycache__"]
        for each in inside:
            if below + each not in folders or os.path.islink(os.path.join(where, each)):
                wrong.append(f"{below}{each} is too much")  # noqa: PERF401  # two of them read worse
        for each in names:
            beat()
            hashed = expected.pop(below + each, None)
            if hashed is None:
                wrong.append(f"{below}{each} is too much")
                continue
            found = _hash(os.path.join(where, each))
            # What the manifest itself must hash to is the name of the release.
            if found != hashed if hashed else found[:DIGITS] != os.path.basename(folder):
                wrong.append(f"{below}{each} has changed")
    wrong += [f"{name} is missing" for name in expected]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise Damaged(f"damaged: {', '.join(sorted(wrong)[:SHOWN])}{more}", where=folder)
    try:
        compile_in(folder, folder, beat)
    except OSError:
        pass  # on a full disk it runs all the same


def _hash(path: str) -> str:
    """A regular file's hash; "" where it is none, or cannot be read."""
    import hashlib  # noqa: PLC0415  # felt at each start

    digest = hashlib.sha256()
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            part = file.read(CHUNK)
            while part:
                digest.update(part)
                part = file.read(CHUNK)
    except OSError:
        return ""
    return digest.hexdigest()


def compile_in(folder: str, final: str, beat: "Callable[[], None]") -> None:
    """Compile what is not compiled for this Python yet, for a time when ``folder`` is ``final``.

    Units may not write there, and without it each attempt would start much later. Python's usual
    kind, known by the source's time and size: an edit by hand counts at once, though ``verify``
    will call it damage.
    """
    import importlib.util  # noqa: PLC0415  # felt at each start
    import py_compile  # noqa: PLC0415  # as above

    for name in listed(folder):
        if not name.endswith(".py"):
            continue
        beat()
        path = os.path.join(folder, name)
        compiled, found = importlib.util.cache_from_source(path), os.stat(path)
        head = importlib.util.MAGIC_NUMBER + bytes(4)
        for number in (int(found.st_mtime), found.st_size):
            head += (number & 0xFFFFFFFF).to_bytes(4, "little")
        try:
            with open(compiled, "rb") as file:
                if file.read(16) == head:
                    continue
        except FileNotFoundError:
            pass
        try:
            py_compile.compile(path, compiled, os.path.join(final, name), doraise=True)
        except py_compile.PyCompileError:
            pass  # a package may bring what only another Python reads


def _sync(folder: str, beat: "Callable[[], None]") -> None:
    """Make all of a folder last."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # slow

    paths = []
    for where, _, names in os.walk(folder):
        paths += [where] + [os.path.join(where, name) for name in names]
    with ThreadPoolExecutor(SYNCS) as pool:
        for _ in pool.map(sync_one, paths):
            beat()


def sync_one(path: str) -> None:
    """Make one file last, or what was created, renamed or removed last in one folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
