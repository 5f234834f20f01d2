"""What a program prints, kept in a file: secrets masked as it is written, and never too much."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Container, Iterable, Sequence

from daemon.errors import RolecallError

MASK = b"***"
PIECE = 1 << 20  # bytes of a file that are masked at a time
LIMIT = 64 << 20  # bytes of one file; what comes after them is read and thrown away


class Mask:
    """Replaces secrets in a stream, also those that arrive in pieces or overlap each other."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [form for secret in secrets if secret for form in _forms(secret)]
        self._held = b""  # the tail that may be the beginning of a secret
        self.found = False  # whether any was masked
        self._covered = 0  # how many bytes of it the last mask stands for already

    def feed(self, data: bytes) -> bytes:
        """The bytes that are known by now to be fit to show."""
        data = self._held + data
        return self._show(data, min((_tail(data, s) for s in self._secrets), default=len(data)))

    def flush(self) -> bytes:
        """What was held back, for nothing comes behind it."""
        return self._show(self._held, len(self._held))

    def _show(self, data: bytes, end: int) -> bytes:
        """The part up to ``end``, masked; the rest is held."""
        done, parts = self._covered, []
        for start, stop in _found(data, self._secrets):
            if start >= end:
                break
            if start >= done:
                parts += [data[done:start], MASK]
                self.found = True
            done = max(done, stop)
        parts.append(data[done:end])
        self._held, self._covered = data[end:], max(0, done - end)
        return b"".join(parts)


def masked(data: bytes, secrets: Sequence[str]) -> bytes:
    """All of it at once."""
    if not secrets:
        return data
    mask = Mask(secrets)
    return mask.feed(data) + mask.flush()


def masked_text(text: str, secrets: Sequence[str]) -> str:
    """All of it at once, of text that may hold half a character."""
    data = masked(text.encode(errors="surrogatepass"), secrets)
    return data.decode(errors="surrogatepass")


def mask_files(folder: str, secrets: Sequence[str], keep: Container[str]) -> None:
    """Mask each file that programs themselves have put into the folder, but for those to keep.

    Folders in it are not looked into. One that cannot be masked, on a full disk say, is removed.
    """
    if not secrets:
        return
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name in keep or not stat.S_ISREG(os.lstat(path).st_mode):
            continue
        aside = f"{path}.{os.urandom(6).hex()}"
        try:
            if _mask_file(path, aside, secrets):
                os.replace(aside, path)
            else:
                os.unlink(aside)
        except OSError:
            for each in (path, aside):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each)


def _mask_file(path: str, aside: str, secrets: Sequence[str]) -> bool:
    """Write a masked copy; whether it differs."""
    mask = Mask(secrets)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with (
        open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file,
        open(os.open(aside, flags, 0o600), "wb") as copy,
    ):
        while data := file.read(PIECE):
            copy.write(mask.feed(data))
        copy.write(mask.flush())
    return mask.found


def _forms(secret: str) -> set[bytes]:
    """The secret as it is, and as it stands inside a JSON string."""
    quoted = secret.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return {os.fsencode(secret), os.fsencode(quoted)}


def _tail(data: bytes, secret: bytes) -> int:
    """Where the longest tail begins that may go on to become the secret."""
    at = data.find(secret[:1], max(0, len(data) - len(secret) + 1))
    while at >= 0 and not secret.startswith(data[at:]):
        at = data.find(secret[:1], at + 1)
    return at if at >= 0 else len(data)


def _found(data: bytes, secrets: list[bytes]) -> list[tuple[int, int]]:
    """Where secrets stand, in order; they may overlap."""
    found = []
    for secret in secrets:
        at = data.find(secret)
        while at >= 0:
            found.append((at, at + len(secret)))
            at = data.find(secret, at + 1)
    return sorted(found)


class Capture:
    """A file that output is appended to. A full disk loses output, never the program."""

    def __init__(self, path: str, secrets: Iterable[str], limit: int = LIMIT) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._file = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RolecallError(f"output cannot be kept: {error.strerror}", where=path) from error
        facts = os.fstat(self._file)
        if not stat.S_ISREG(facts.st_mode):
            os.close(self._file)
            raise RolecallError("output cannot be kept: not a regular file", where=path)
        self._path, self._mask, self._limit = path, Mask(secrets), limit
        self._room = max(0, limit - facts.st_size)
        self._full = False
        self._lost, self._why = 0, ""

    def feed(self, data: bytes) -> None:
        """Keep this too."""
        self._keep(self._mask.feed(data))

    def close(self) -> str:
        """Write what was held back; returns what was lost, in words."""
        self._keep(self._mask.flush())
        os.close(self._file)
        if not self._lost:
            return ""
        return f"{self._lost} bytes of output were lost: {self._path}: {self._why}"

    def _keep(self, data: bytes) -> None:
        if self._full:
            return
        self._write(data[: self._room])
        if len(data) > self._room:
            self._full = True
            self._write(b"\n[rolecall: output beyond %d bytes is not kept]\n" % self._limit)
        self._room -= min(self._room, len(data))

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._file, data) :]
            except OSError as error:
                self._lost, self._why = self._lost + len(data), error.strerror or str(error)
                return
