"""What is copied to a host: Rolecall and the packages it needs there, one archive with its hashes.

What every role needs has no compiled file and fits every Linux with Python 3.11 or newer. Only the
packages of EXTRAS bind an archive to the kind of machine that it was made on.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from daemon.errors import RolecallError
from daemon.fleet import arrival, bootstrap, place
from daemon.transient import ROOT

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from daemon.config import Config

#: What the workers, attempts and commands on a host import beside the standard library.
PACKAGES = ("inotify_simple", "jinja2", "markupsafe", "pyyaml")
#: What a package's own folder tells of it; the rest there is about the operator's installation.
TOLD = ("METADATA", "entry_points.txt")
LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")
#: Folders and endings of what nothing imports or opens.
UNUSED_FOLDERS = {"__pycache__", "test", "tests"}
UNUSED_ENDINGS = (".pyc", ".pyi", ".c", ".h", ".pxd", ".pyx")
OPERATORS_OWN = "invoke"  # the commands are typed nowhere else
LEVEL = 6  # of zlib: 9 saves less than a hundredth, and takes twice as long


class Extra(NamedTuple):
    """Packages that only some hosts need: ``what`` needs them, and ``otherwise`` is the way out.

    Its name is that of its lock, and of what ``make`` installs.
    """

    what: str
    otherwise: str


EXTRAS = {
    "llm": Extra("`agent: llm`", "give the roles that run there another agent"),
    "postgres": Extra(
        "a queue on PostgreSQL",
        "set up a checkout there (make setup postgres), and install from that",
    ),
}


class Runtime(NamedTuple):
    """One release, ready to be sent.

    ``manifest``: lines as ``sha256sum --check`` reads them; ``id``: what its own hash begins with,
    and its folder's name. ``files``: path to content. ``kind``: what machine its ``extras`` bind it
    to, as ``bootstrap.kind()`` says it; "" where it has none, and fits all.
    """

    id: str
    manifest: bytes
    files: Mapping[str, bytes]
    kind: str = ""
    extras: tuple[str, ...] = ()

    @property
    def archive(self) -> bytes:
        """The bytes of a .tar.gz, the manifest first. Made once, when the first host lacks it."""
        with _packing:
            if self.id not in _archives:
                _archives[self.id] = _archive(self)
            return _archives[self.id]

    def check_fits(self, host: str, kind: str) -> None:
        """Raise RolecallError where a host of that kind cannot run it."""
        if self.kind in {"", kind}:
            return
        what = " and ".join(EXTRAS[name].what for name in self.extras)
        ways = [
            "type the command on a machine of the host's kind, with the same Python there",
            "name in the inventory's ansible_python_interpreter a Python of the host that fits",
            *(EXTRAS[name].otherwise for name in self.extras),
        ]
        raise RolecallError(
            f"the packages of {what} are here for {self.kind}, and this host is {kind}",
            where=host,
            hint="; or ".join(ways),
        )


def extras(config: Config) -> tuple[str, ...]:
    """The names of those EXTRAS that a host of that config needs."""
    llm = any(config.roles[name].agent == "llm" for name in config.run or config.roles)
    return ("llm",) * llm + ("postgres",) * config.on_postgres


_building, _packing = threading.Lock(), threading.Lock()
_archives: dict[str, bytes] = {}


def build(*extras: str) -> Runtime:
    """The release of this checkout, with the packages of the operator's own environment.

    Made once for the same extras; threads that ask at once wait for it. Raises RolecallError where
    a package is not to be had.
    """
    with _building:
        return _build(*extras)


@functools.cache
def _build(*extras: str) -> Runtime:
    files = dict(ours(ROOT))
    for name in PACKAGES:
        files |= package(name)
    if not extras:
        return pack(files)
    for extra in extras:
        for name in sorted(locked(extra) - {*PACKAGES, OPERATORS_OWN}):
            files |= package(name, hint=f"make {extra}", compiled=True)
    return pack(files, bootstrap.kind(), extras)


def pack(files: Mapping[str, bytes], kind: str = "", extras: tuple[str, ...] = ()) -> Runtime:
    """A release of these files, path to content: the same ones give the same bytes."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items()]
    manifest = "".join(sorted(lines, key=lambda line: line[66:])).encode()
    return Runtime(
        hashlib.sha256(manifest).hexdigest()[: place.DIGITS], manifest, files, kind, extras
    )


def _archive(release: Runtime) -> bytes:
    import io  # noqa: PLC0415  # as tarfile: only where something is installed
    import tarfile  # noqa: PLC0415  # as above

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in (place.MANIFEST, *sorted(release.files)):
            data = release.manifest if path == place.MANIFEST else release.files[path]
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    # gzip would write the time of day into its head.
    packing = zlib.compressobj(LEVEL, wbits=31)
    return packing.compress(plain.getbuffer()) + packing.flush()


def ours(root: str) -> Iterator[tuple[str, bytes]]:
    """The files of a checkout that a host needs: path in the release, content."""
    yield "LICENSE", _content(os.path.join(root, "LICENSE"))
    for top, endings in (("daemon", (".py", ".sql")), ("templates", ".j2")):
        for folder, inside, names in os.walk(os.path.join(root, top)):
            inside[:] = sorted(set(inside) - {"__pycache__"})
            for name in sorted(names):
                path = os.path.join(folder, name)
                # An editor's lock begins with a dot, and may be a link to nowhere.
                if name.endswith(endings) and not name.startswith(".") and os.path.isfile(path):
                    yield os.path.relpath(path, root), _content(path)


def package(name: str, *, hint: str = "make setup", compiled: bool = False) -> dict[str, bytes]:
    """The files of an installed package: path below site-packages, content.

    Without ``compiled``, its Python files alone: all of ours run without their compiled ones.
    """
    from importlib import metadata  # noqa: PLC0415  # slow, and only where something is installed

    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        what = f"the package {name} is not installed here, and so cannot be copied to a host"
        raise RolecallError(what, hint=hint) from None
    listed = found.files
    if listed is None:
        raise RolecallError(
            f"nothing says which files the package {name} has: its RECORD is missing", hint=hint
        )
    wanted = {}
    for each in listed:
        path = str(each)
        if _wanted(path, each.parts, compiled=compiled):
            wanted[path] = _listed(found, path, name, hint)
    return wanted


def _wanted(path: str, parts: Iterable[str], *, compiled: bool) -> bool:
    folders, name = list(parts)[:-1], os.path.basename(path)
    if ".." in folders or os.path.isabs(path) or UNUSED_FOLDERS & set(folders):
        return False  # programs of the environment's bin; tests
    if folders and folders[0].endswith(".dist-info"):
        return name in TOLD or name.upper().startswith(LICENCES) or "licenses" in folders
    return not name.endswith(UNUSED_ENDINGS) if compiled else name.endswith(".py")


def _listed(found: Distribution, path: str, name: str, hint: str) -> bytes:
    where = str(found.locate_file(path))
    try:
        return _content(where)
    except OSError as error:
        raise RolecallError(
            f"a file of the package {name} cannot be read: {error.strerror}", where=where, hint=hint
        ) from None


def locked(extra: str) -> set[str]:
    """The names of what the lock of an extra brings."""
    with open(os.path.join(ROOT, f"requirements-{extra}.lock"), encoding="utf-8") as file:
        return {line.partition("==")[0] for line in file if "==" in line}


@functools.cache
def stage_zero() -> bytes:
    """The program that is sent ahead, compressed by zlib: ``ssh.BOOT`` runs it.

    The text of three modules. One after another they are one program, for what one has of another
    stands above it then.
    """
    texts = [_content(str(each.__file__)) for each in (place, arrival, bootstrap)]
    return zlib.compress(b"\n".join(texts), level=9)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
