"""The run folders: one per attempt, 0700, made without following anybody's link."""

from __future__ import annotations

import contextlib
import errno
import os

from daemon.errors import RolecallError
from daemon.queue import durable

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LONGEST_NUMBER = 18  # digits; a longer name is no token of ours


def largest(runs: str, task_id: str) -> int:
    """The largest token that a run folder of the task has, 0 where there is none."""
    try:
        fd = os.open(os.path.join(runs, task_id), FOLDER)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _refused(error, os.path.join(runs, task_id)) from None
    try:
        return _largest(fd)
    finally:
        os.close(fd)


def _largest(fd: int) -> int:
    names = os.listdir(fd)
    return max((int(n) for n in names if n.isdecimal() and len(n) <= LONGEST_NUMBER), default=0)


def make_largest(runs: str, task_id: str, token: int) -> str | None:
    """Make the attempt's own folder, where no earlier attempt has had its token or a larger one.

    Its path, or None. Raises RolecallError if something is in the way.
    """
    of_task = os.path.join(runs, task_id)
    try:
        own = os.open(of_task, FOLDER)
    except FileNotFoundError:
        return make(runs, task_id, token)[0]
    except OSError as error:
        raise _refused(error, of_task) from None
    path = os.path.join(of_task, str(token))
    try:
        if _largest(own) >= token:
            return None
        os.mkdir(str(token), 0o700, dir_fd=own)
    except OSError as error:
        raise _refused(error, path) from None
    finally:
        os.close(own)
    return path


def make(runs: str, task_id: str, token: int) -> tuple[str, list[str]]:
    """Make the attempt's own folder: its path, and the folders to sync so that it lasts.

    Raises RolecallError if something is in the way.
    """
    of_task = os.path.join(runs, task_id)
    path, changed = os.path.join(of_task, str(token)), [of_task]
    try:
        top = _top(runs)
        try:
            try:
                os.mkdir(task_id, 0o700, dir_fd=top)
                changed.append(runs)
            except FileExistsError:
                pass
            own = os.open(task_id, FOLDER, dir_fd=top)
            try:
                os.mkdir(str(token), 0o700, dir_fd=own)
            except OSError:
                with contextlib.suppress(OSError):  # something else is in it
                    os.rmdir(task_id, dir_fd=top)
                raise
            finally:
                os.close(own)
        finally:
            os.close(top)
    except OSError as error:
        raise _refused(error, path) from None
    return path, changed


def _top(runs: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(runs, flags)
    except FileNotFoundError:
        os.makedirs(runs, mode=0o700, exist_ok=True)
        return os.open(runs, flags)


def remove(path: str) -> None:
    """Take back a folder that no attempt has used, and its parent where that is empty then."""
    parent, name = os.path.split(path)
    with contextlib.suppress(OSError):
        own = os.open(parent, FOLDER)
        try:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=own)
        finally:
            os.close(own)
        os.rmdir(parent)


def _refused(error: OSError, path: str) -> RolecallError:
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EEXIST):
        return RolecallError(
            f"the run folder cannot be made, its task is left alone: {error.strerror}",
            where=path,
            hint=f"look at it: ls -ld {path}",
        )
    return durable.failure(error, path)
