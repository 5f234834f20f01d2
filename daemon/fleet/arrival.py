"""How a release comes to a host: received, unpacked, compared with its manifest, put into place.

The second part of stage 0 (runtime.stage_zero): every Python since 3.6 can read it, and it imports
nothing but the standard library.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from daemon.fleet.bootstrap import Incoming

if TYPE_CHECKING or __name__ != "__main__":
    from daemon.errors import RolecallError
    from daemon.fleet.place import (
        DIGITS,
        MANIFEST,
        RELEASES,
        failure,
        is_id,
        present,
        sync_one,
        tidy,
    )

ASIDE = ".new-"
CHUNK = 1 << 16
# Against what is no release at all: the largest, with the packages of `agent: llm`, has some
# thousands of files, and less than 100 MB.
MOST_FILES, MOST_BYTES = 50000, 1 << 30
SHOWN = 3  # files of a damaged release that are named
LOOK = 1.0  # seconds between two signs of life while nothing comes
SYNCS = 16  # files at once: a disk needs as long for many as for one


class Damaged(RolecallError):
    """A release that is not what its manifest says; another copy of it mends that."""

    code = "damaged"


def receive(place: str, wanted: str, stream: "Incoming", beat: "Callable[[], None]") -> str:
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
            raise failure(error, releases) from None
        raise
    else:
        sweep(place)
    finally:
        os.umask(umask)
    return final


def sweep(place: str) -> None:
    """Remove what uploads that were broken off have left. ``place`` is locked."""
    releases = os.path.join(place, RELEASES)
    for name in os.listdir(releases) if os.path.isdir(releases) else ():
        if name.startswith(ASIDE):
            _discard(os.path.join(releases, name))


def clear(place: str) -> None:
    """Remove every release, the links, the lock, and the folders that were made for them.

    What else lies there stays. ``place`` is locked. The last thing that is done on a host: of a
    release that is gone nothing can be imported any more.
    """
    sweep(place)
    releases = os.path.join(place, RELEASES)
    for name in present(place):
        aside = os.path.join(releases, ASIDE + name)
        # Away under a name that no one looks for: no half of it is ever taken for a release.
        os.rename(os.path.join(releases, name), aside)
        _discard(aside)
    tidy(place)


def _discard(path: str) -> None:
    import shutil  # noqa: PLC0415  # felt at each start

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def unpack(stream: "Incoming", folder: str, wanted: str) -> None:
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


def verify(
    folder: str, beat: "Callable[[], None]" = lambda: None, *, compiles: bool = True
) -> None:
    """Compare a release with its manifest, as ``compare`` does.

    What Python has compiled of it is no part of that: where it is not of these very sources, it is
    made again, if ``compiles``.
    """
    compare(folder, beat)
    try:
        if compiles:
            compile_in(folder, folder, beat)
    except OSError:
        pass  # on a full disk it runs all the same


def compare(folder: str, beat: "Callable[[], None]" = lambda: None) -> None:
    """Raise Damaged unless a release is, file by file, what its manifest says, and no more."""
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
        what = f"damaged: {', '.join(sorted(wrong)[:SHOWN])}{more}"
        raise Damaged(what, where=folder, hint="invoke install copies it anew")


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
    from concurrent import futures  # noqa: PLC0415  # slow

    paths = []
    for where, _, names in os.walk(folder):
        paths += [where] + [os.path.join(where, name) for name in names]
    with futures.ThreadPoolExecutor(SYNCS) as pool:
        asked = [pool.submit(sync_one, path) for path in paths]
        while futures.wait(asked, LOOK).not_done:
            beat()
    for each in asked:
        each.result()
