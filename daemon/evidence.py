"""What an attempt leaves behind that can be looked at: its run's folder, its result file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from typing import Any

from daemon.capture import masked
from daemon.config import Config
from daemon.errors import RolecallError
from daemon.model import Outcome, Result

RESULT_BYTES = 1024 * 1024
YEAR = 366 * 86400.0  # no provider's reset is further away, and times stay representable
# What an agent may say of itself; lost and released are not its to say.
SAYABLE = {
    each.value: each
    for each in (
        Outcome.SUCCESS,
        Outcome.REJECTED,
        Outcome.ERROR,
        Outcome.THROTTLED,
        Outcome.BLOCKED,
    )
}
KEYS = {"outcome", "status", "note", "artifacts", "add_tasks", "retry_after", "usage"}


def write_new(folder: str, name: str, text: str) -> None:
    """Write a file of the run's folder that must not be there yet; links are not followed."""
    where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        # JSON may name half a character, which UTF-8 cannot: its escape is written again.
        data = text.encode(errors="backslashreplace")
        with open(os.open(name, flags, 0o600, dir_fd=where), "wb") as file:
            file.write(data)
    finally:
        os.close(where)


def drop(folder: str, name: str) -> None:
    """Remove a file of the run's folder, if it is there and can be."""
    try:
        os.unlink(os.path.join(folder, name))
    except OSError:
        pass


def says_success(folder: str) -> bool:
    """Whether the result file names success in so many words: silence and ``{}`` do not."""
    try:
        with open(os.path.join(folder, "result.json"), encoding="utf-8") as file:
            said = json.loads(file.read(RESULT_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("outcome") == Outcome.SUCCESS.value


def read_result(folder: str, secrets: Sequence[str] = ()) -> Result | None:
    """What the agent says of itself, secrets masked; None where it says nothing.

    Raises RolecallError for what is no regular file, is too large, or has not the form of one.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(os.path.join(folder, "result.json"), flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RolecallError(f"it cannot be opened: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RolecallError("it is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(RESULT_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > RESULT_BYTES:
        raise RolecallError("it is larger than 1 MiB")
    shown = masked(data, secrets)
    if shown != data:  # the folder is kept, and shown to people
        try:
            os.unlink(os.path.join(folder, "result.json"))
            write_new(folder, "result.json", shown.decode(errors="surrogateescape"))
        except OSError:
            pass  # a full disk: what was said is known, and counts
    try:
        said = json.loads(shown)
    except (ValueError, RecursionError) as error:
        raise RolecallError(f"it is not JSON: {error}") from error
    return parse_result(said)


def parse_result(said: Any) -> Result:
    """The result that a JSON value stands for. Raises RolecallError."""
    if not isinstance(said, dict):
        raise RolecallError("it is no JSON object")
    unknown = sorted(set(said) - KEYS)
    if unknown:
        raise RolecallError(f"unknown key {unknown[0]!r}")
    said = {key: value for key, value in said.items() if value is not None}
    outcome, status = said.get("outcome", "success"), said.get("status")
    if not isinstance(outcome, str) or outcome not in SAYABLE:
        raise RolecallError(f"outcome is none of {', '.join(SAYABLE)}")
    note, retry_after = said.get("note", ""), said.get("retry_after")
    artifacts, add_tasks = said.get("artifacts", []), said.get("add_tasks", [])
    usage = said.get("usage", {})
    checks = (
        ("status", status is None or isinstance(status, str), "a string"),
        ("note", isinstance(note, str), "a string"),
        (
            "retry_after",
            retry_after is None or _is_amount(retry_after, YEAR),
            "seconds, 0 to a year",
        ),
        ("artifacts", _is_list_of(artifacts, str), "a list of strings"),
        ("add_tasks", _is_list_of(add_tasks, dict), "a list of tasks"),
        ("usage", isinstance(usage, dict) and all(map(_is_amount, usage.values())), "numbers"),
    )
    for key, holds, wanted in checks:
        if not holds:
            raise RolecallError(f"{key} wants {wanted}")
    return Result(
        SAYABLE[outcome],
        note=note[:2000],
        status=status,
        retry_after=retry_after,
        add_tasks=tuple(add_tasks),
        artifacts=tuple(artifacts),
        usage=usage or None,
    )


def _is_amount(value: object, most: float = float("inf")) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def own_paths(config: Config) -> tuple[str, ...]:
    """Our own paths below the workspace: they are never evidence, and no merge carries them."""
    queue = config.queue_file
    ours = dict.fromkeys((*config.paths, queue, os.path.realpath(queue)))
    relative = (os.path.relpath(path, config.workspace) for path in ours)
    return tuple(path for path in relative if path != "." and not path.startswith(".."))
