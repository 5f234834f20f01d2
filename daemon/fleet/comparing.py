"""``queue.check --against``: whether two queues say the same, every value and every order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from daemon import uri
from daemon.config import FILE, Config
from daemon.errors import ConfigError, Problem
from daemon.fleet.output import escape
from daemon.fleet.transfer import read
from daemon.queue.opening import open_queue
from daemon.queue.transfer import Incoming

SHOWN = 20  # differences that a person gets; a program gets all
WIDE = 60  # characters of a value
HERE, THERE = "here", "there"


def against(config: Config, other: str) -> list[str]:
    """Where the config's queue and another one differ, in words; none where they are identical.

    ``other``: a file's path, "-" for standard input, or a queue's URL. Raises QueueUnreadable with
    the line of what is no queue.
    """
    queue = open_queue(config)
    ours = Incoming.of(queue.export(), queue.name)
    if other.startswith(tuple(f"{each}:" for each in uri.SCHEMES)):
        if wrong := [Problem("--against", *each) for each in uri.wrong(other)]:
            raise ConfigError.of(wrong)
        theirs = Incoming.of(open_queue(config._replace(queue=other)).export(), other)
    else:
        theirs = Incoming.of(*read(other.removeprefix(FILE)))
    return list(_differences("", ours.document, theirs.document))


def facts(config: Config, other: str, found: list[str]) -> dict[str, Any]:
    """The comparison, for a program."""
    return {"queue": config.queue_name, "against": other, "differences": found}


def text(config: Config, other: str, found: list[str]) -> str:
    """The comparison, for a person."""
    lines = [f"here: {config.queue_name}", f"there: {other}"]
    lines += found[:SHOWN] or ["they are identical: every value, and every order"]
    lines += [f"and {len(found) - SHOWN} more differences"] * (len(found) > SHOWN)
    return "\n".join(map(escape, lines))


def _differences(place: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        yield from _of_objects(place, one, other)
    elif isinstance(one, list) and isinstance(other, list):
        ours, theirs = _by_id(one), _by_id(other)
        if ours is None or theirs is None:
            yield from _of_lists(place, one, other)
        else:
            yield from _of_objects(place, ours, theirs)
    elif _words(one) != _words(other):
        yield f"{place or 'the queue'}: {_short(one)} here, {_short(other)} there"


def _of_objects(place: str, one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    for key, value in one.items():
        if key not in other:
            yield f"{_join(place, key)}: only here"
        else:
            yield from _differences(_join(place, key), value, other[key])
    yield from (f"{_join(place, key)}: only there" for key in other if key not in one)
    ours, theirs = [key for key in one if key in other], [key for key in other if key in one]
    if ours != theirs:
        at = next(n for n, key in enumerate(ours) if key != theirs[n])
        yield f"{place or 'the queue'}: another order: {ours[at]} here, {theirs[at]} there"


def _of_lists(place: str, one: list[Any], other: list[Any]) -> Iterator[str]:
    for at, (ours, theirs) in enumerate(zip(one, other, strict=False)):
        yield from _differences(f"{place}[{at}]", ours, theirs)
    for values, where in ((one[len(other) :], HERE), (other[len(one) :], THERE)):
        if values:
            yield f"{place}: {len(values)} more {where}, as {_short(values[0])}"


def _by_id(values: list[Any]) -> dict[str, Any] | None:
    """Tasks by their ids, so that one more of them is one difference; None for anything else."""
    made = {
        each["id"]: each
        for each in values
        if isinstance(each, dict) and isinstance(each.get("id"), str)
    }
    return made if values and len(made) == len(values) else None


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _words(value: Any) -> str:
    """1, 1.0 and true are three values."""
    return json.dumps(value)


def _short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= WIDE else said[: WIDE - 3] + "..."
