"""The files below one folder, and never anything else: what the model may read and write.

Every path is walked from the folder's own descriptor, one component after the other, and no
symbolic link is followed on the way, so that nothing which is swapped between a look and an action
leads outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LARGEST = 16 << 20  # bytes of a file that is read or edited; beyond that a command serves better
HEAD = 8192  # bytes in which a NUL says that a file is binary, as for git
ASIDE = ".rolecall-new"  # what is written before it takes the file's place


class Refused(Exception):
    """What the model asked for is not done; the message is for the model, and the run goes on."""


class Found(NamedTuple):
    """An entry of a listing. ``path`` counts from the root and ends in a slash for a folder."""

    path: str
    size: int
    mode: int


class Files:
    """The files below ``root``. Methods raise Refused, with the reason in words."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._real = os.path.realpath(root)
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def parts(self, path: str) -> tuple[str, ...]:
        """The components below the root; Refused for what is, or could be, elsewhere."""
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            raise Refused("the path holds what is no character") from None
        if "\0" in path:
            raise Refused("the path holds a NUL character")
        if path.startswith("/"):
            for root in (self.root, self._real):
                if path == root or path.startswith(root.rstrip("/") + "/"):
                    path = path[len(root) :]
                    break
            else:
                raise Refused(f"{path} is outside the working folder: name it relative to that")
        parts = tuple(part for part in path.split("/") if part not in {"", "."})
        if ".." in parts:
            raise Refused(f"{path}: '..' is not taken: name the file relative to the folder")
        if any(part.casefold() == ".git" for part in parts):
            raise Refused(f"{path}: what git keeps in .git is not touched")
        return parts

    def _folder(self, parts: tuple[str, ...], *, make: bool = False) -> int:
        """A descriptor of that folder, for the caller to close."""
        at = os.dup(self.fd)
        for number, part in enumerate(parts, 1):
            try:
                try:
                    below = os.open(part, FOLDER, dir_fd=at)
                except FileNotFoundError:
                    if not make:
                        raise
                    os.mkdir(part, dir_fd=at)
                    below = os.open(part, FOLDER, dir_fd=at)
            except OSError as error:
                raise _refusal("/".join(parts[:number]), error, at, part) from None
            finally:
                os.close(at)
            at = below
        return at

    def load(self, path: str) -> bytes:
        """All of a file. Refused for what is no regular file, too large, or binary."""
        parts = self.parts(path)
        if not parts:
            raise Refused("the path names no file")
        folder = self._folder(parts[:-1])
        try:
            data, _ = _load(folder, parts[-1], "/".join(parts))
        finally:
            os.close(folder)
        return data

    def read(self, path: str, first: int, last: int | None, most: int) -> str:
        """Lines ``first`` to ``last``, from 1, in ``most`` bytes; and how many there are."""
        lines = self.load(path).splitlines(keepends=True)
        first = max(1, first)
        chosen = lines[first - 1 : last]
        if not chosen:
            return (
                f"[{path} has {len(lines)} lines: none of these]" if lines else f"[{path} is empty]"
            )
        shown, room = list[bytes](), most
        for line in chosen:
            if len(line) > room:
                break
            shown.append(line)
            room -= len(line)
        text = b"".join(shown) if shown else chosen[0][:most]
        end = first + max(1, len(shown)) - 1
        cut = "" if shown else f", the first {most} bytes of a line of {len(chosen[0])}"
        whole = first == 1 and end == len(lines) and not cut
        note = "" if whole else f"[lines {first}-{end} of {len(lines)}{cut}]\n"
        return note + text.decode(errors="replace")

    def write(self, path: str, content: str) -> str:
        """Write the whole file, new or not, and the folders that it needs; says what was done."""
        parts = self.parts(path)
        if not parts:
            raise Refused("the path names no file")
        folder = self._folder(parts[:-1], make=True)
        try:
            mode = _mode(folder, parts[-1], "/".join(parts))
            _replace(folder, parts[-1], _encoded(content), mode, "/".join(parts))
        finally:
            os.close(folder)
        lines = content.count("\n") + (not content.endswith("\n") and bool(content))
        return f"wrote {'/'.join(parts)}: {lines} lines{'' if mode is not None else ', a new file'}"

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace the one place where ``old`` stands; says what was done."""
        parts = self.parts(path)
        if not parts:
            raise Refused("the path names no file")
        if not old:
            raise Refused("old is empty: use write_file for a new file")
        if old == new:
            raise Refused("old and new are the same")
        folder = self._folder(parts[:-1])
        name = "/".join(parts)
        try:
            data, mode = _load(folder, parts[-1], name)
            before, after = _encoded(old), _encoded(new)
            if before not in data and b"\r\n" in data:
                before, after = (_with_crlf(each) for each in (before, after))
            count = data.count(before)
            if not count:
                raise Refused(f"{name} does not hold that text: read it, and copy exactly")
            if count > 1:
                raise Refused(f"{name} holds that text {count} times: add the lines around it")
            line = data[: data.index(before)].count(b"\n") + 1
            _replace(folder, parts[-1], data.replace(before, after), mode, name)
        finally:
            os.close(folder)
        return f"edited {name} at line {line}"

    def entries(self, path: str, depth: int | None = None) -> Iterator[Found]:
        """What is below that folder, sorted, without .git; links are named and not followed."""
        parts = self.parts(path)
        todo = [(parts, 1)]
        while todo:
            at, level = todo.pop()
            try:
                folder = self._folder(at)
            except Refused:
                if at == parts:
                    raise
                continue  # it has gone meanwhile
            below = []
            try:
                for name in sorted(os.listdir(folder)):
                    if name.casefold() == ".git":
                        continue
                    try:
                        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    except OSError:
                        continue
                    inside = stat.S_ISDIR(found.st_mode)
                    each = (*at, name)
                    yield Found("/".join(each) + "/" * inside, found.st_size, found.st_mode)
                    if inside and (depth is None or level < depth):
                        below.append((each, level + 1))
            finally:
                os.close(folder)
            todo += reversed(below)

    def list(self, path: str, depth: int, pattern: str, most: int) -> str:
        """The listing as text, ``most`` entries at the most; ``pattern`` is of file names."""
        lines, more = list[str](), False
        for found in self.entries(path, depth):
            if not fnmatchcase(found.path.rstrip("/").rpartition("/")[2], pattern):
                continue
            if len(lines) == most:
                more = True
                break
            lines.append(_shown(found.path) + ("@" if stat.S_ISLNK(found.mode) else ""))
        if not lines:
            return "[nothing]"
        note = f"\n[more than {most}: name a folder below, or a pattern]" if more else ""
        return "\n".join(lines) + note


def _load(folder: int, name: str, path: str) -> tuple[bytes, int]:
    """A regular file's content and mode."""
    if _mode(folder, name, path) is None:
        raise Refused(f"{path}: no such file")
    try:
        descriptor = os.open(name, READ, dir_fd=folder)
    except OSError as error:
        raise _refusal(path, error, folder, name) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{path} is no regular file")
        if found.st_size > LARGEST:
            raise Refused(f"{path} is larger than {LARGEST >> 20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(data) > LARGEST:
        raise Refused(f"{path} is larger than {LARGEST >> 20} MiB")
    if b"\0" in data[:HEAD]:
        raise Refused(f"{path} is a binary file ({found.st_size} bytes)")
    return data, found.st_mode


def _mode(folder: int, name: str, path: str) -> int | None:
    """A regular file's mode, None where there is nothing; nothing is opened, FIFOs neither."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refusal(path, error, folder, name) from None
    if stat.S_ISLNK(found.st_mode):
        raise Refused(_link(path, folder, name))
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise Refused(f"{path} is {kind}")
    return found.st_mode


def _replace(folder: int, name: str, data: bytes, mode: int | None, path: str) -> None:
    """Put a new file in its place: others that share the old one's inode keep theirs."""
    aside = f"{ASIDE}-{os.getpid()}"
    try:
        descriptor = os.open(aside, NEW, 0o666, dir_fd=folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(aside, dir_fd=folder)
            raise
    except OSError as error:
        raise _refusal(path, error, folder, name) from None


def _refusal(path: str, error: OSError, folder: int, name: str) -> Refused:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        try:
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return Refused(_link(path, folder, name))
        except OSError:
            pass
    return Refused(f"{path}: {error.strerror}")


def _link(path: str, folder: int, name: str) -> str:
    try:
        target = os.readlink(name, dir_fd=folder)
    except OSError:
        target = "?"
    return f"{path} is a symbolic link (to {_shown(target)}), and links are not followed"


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Refused("the text holds half of a character") from None


def _with_crlf(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _shown(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")
