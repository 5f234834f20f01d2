"""What an attempt leaves behind that can be looked at: its run's folder, its result file."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from daemon import lifecycle
from daemon.capture import masked
from daemon.config import Config, Role
from daemon.errors import RolecallError
from daemon.model import Lease, Outcome, Result, format_time

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
RESULT = "result.json"
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
    where = os.open(folder, FOLDER)
    try:
        # JSON may name half a character, which UTF-8 cannot: its escape is written again.
        _create(where, name, text.encode(errors="backslashreplace"))
    finally:
        os.close(where)


def _create(where: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=where), "wb") as file:
        file.write(data)


def open_regular(name: str, where: int) -> BinaryIO | None:
    """A file of the open folder, for reading; None where there is none.

    Raises RolecallError for what is no regular file; links are not followed, pipes not waited for.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=where)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RolecallError(f"it cannot be opened: {error.strerror}") from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise RolecallError("it is no regular file")


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
    try:
        where = os.open(folder, FOLDER)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RolecallError(f"its folder cannot be opened: {error.strerror}") from error
    try:
        file = open_regular(RESULT, where)
    finally:
        os.close(where)
    if file is None:
        return None
    with file:
        data = file.read(RESULT_BYTES + 1)
    if len(data) > RESULT_BYTES:
        raise RolecallError("it is larger than 1 MiB")
    shown = masked(data, secrets)
    if shown != data:  # the folder is kept, and shown to people
        try:
            os.unlink(os.path.join(folder, RESULT))
            write_new(folder, RESULT, shown.decode(errors="surrogateescape"))
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


def claimed(folder: str, secrets: Sequence[str] = ()) -> Result | None:
    """What the agent said of itself, whatever its attempt came to; None where that is no result.

    What is no result is set aside as ``result.json.refused``, for people, and is not in our way.
    """
    with contextlib.suppress(OSError):
        try:
            return read_result(folder, secrets)
        except RolecallError:
            where = os.open(folder, FOLDER)
            try:
                _set_aside(where)
            finally:
                os.close(where)
    return None


def _set_aside(where: int) -> None:
    refused = f"{RESULT}.refused"
    try:
        os.rename(RESULT, refused, src_dir_fd=where, dst_dir_fd=where)
    except OSError:  # a folder has that name already, or is to get a file's
        os.rename(RESULT, f"{refused}.{_chance()}", src_dir_fd=where, dst_dir_fd=where)


def _chance() -> str:
    return os.urandom(6).hex()


def final(
    result: Result, said: Result | None, lease: Lease, role: Role, seconds: float
) -> dict[str, Any]:
    """The final result.json: what the attempt came to, whatever the agent ``said`` before.

    ``claimed`` holds what the agent said where that is something else.
    """
    result, asked_for = lifecycle.weigh(role.rules, result), result
    heard = asked_for.outcome is Outcome.SUCCESS and result.outcome is not Outcome.ERROR
    asked = asked_for.status if heard else None
    counts = result.outcome in {Outcome.SUCCESS, Outcome.REJECTED}
    claim = {
        "outcome": said.outcome.value if said and said.outcome is not result.outcome else None,
        "status": said.status if said and said.status != asked else None,
        "note": said.note if said and said.note not in result.note else None,
    }
    found = {
        "outcome": result.outcome.value,
        "note": result.note,
        "status": asked,
        "artifacts": list(result.artifacts),
        "add_tasks": list(result.add_tasks) if counts else None,
        "retry_after": result.retry_after,
        "usage": dict(result.usage or {}),
        "gate": result.gate,
        "claimed": {key: value for key, value in claim.items() if value},
        "role": role.name,
        "attempt": lease.attempt,
        "token": lease.token,
        "agent": role.agent,
        "model": role.model,
        "session": result.session,
        "seconds": round(seconds, 3),
        "ended_at": format_time(time.time()),
    }
    always = {"outcome", "note", "seconds"}
    return {key: value for key, value in found.items() if key in always or value}


def keep(folder: str, document: Mapping[str, Any], secrets: Sequence[str] = ()) -> str:
    """Put the final result.json there, whole or not at all; returns why not, "" where it is there.

    An attempt counts and settles without it, so nothing is raised. It is not synced: an empty file
    after a power cut is one verdict that later prompts go without.
    """
    try:
        lines = [_line(key, value) for key, value in document.items()]
        text = "{\n" + ",\n".join(filter(None, lines)) + "\n}\n"
        data = masked(text.encode(errors="backslashreplace"), secrets)
        where, aside = os.open(folder, FOLDER), f".{RESULT}.{_chance()}"
        try:
            _create(where, aside, data)
            os.rename(aside, RESULT, src_dir_fd=where, dst_dir_fd=where)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(aside, dir_fd=where)
            raise
        finally:
            os.close(where)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _line(key: str, value: object) -> str:
    """One key a line: deep values would grow with each level of an indent."""
    try:
        return f'  "{key}": {json.dumps(value, ensure_ascii=False, allow_nan=False)}'
    except (ValueError, RecursionError):  # tasks that the queue refuses as well
        return ""


def own_paths(config: Config) -> tuple[str, ...]:
    """Our own paths below the workspace: they are never evidence, and no merge carries them."""
    queue = () if config.on_postgres else (config.queue_file, os.path.realpath(config.queue_file))
    ours = dict.fromkeys((*config.paths, *queue))
    relative = (os.path.relpath(path, config.workspace) for path in ours)
    return tuple(path for path in relative if path != "." and not path.startswith(".."))
