"""Each value of a config checked against its declaration; what is wrong, in one voice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from daemon import schema
from daemon.errors import ConfigError, Problem
from daemon.kinds import QUOTE, Kind
from daemon.way import REFUSED
from daemon.yamltext import WRONG, Placed

MANY = 50  # names that a person still reads


def raise_all(problems: Iterable[Problem]) -> None:
    """One ConfigError of all problems, each once, by file and line; nothing where there is none."""
    unique = list(dict.fromkeys(problems))
    if not unique:
        return
    files = list(dict.fromkeys(problem.where.rpartition(":")[0] for problem in unique))

    def place(problem: Problem) -> tuple[int, int]:
        file, _, line = problem.where.rpartition(":")
        return files.index(file), int(line) if line.isdigit() else 0

    raise ConfigError.of(sorted(unique, key=place))


def close(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that this one is probably meant to be; "" where none is near."""
    import difflib  # noqa: PLC0415  # only what is wrong needs it

    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), "")


def suggest(name: str, known: Iterable[str]) -> str:
    """The hint of a name that is not known."""
    known = list(known)
    if near := close(name, known):
        return f'did you mean "{near}"?'
    more = ", ..." if len(known) > MANY else ""
    return f"known: {', '.join(known[:MANY])}{more}" if known else ""


def check(placed: Placed, problems: list[Problem]) -> Placed:
    """Checks each value by its own kind: of a whole config, or of one layer of an inventory.

    What is returned is the same without what was wrong, to be looked at as a whole.
    """
    data = placed.data or {}
    if data is WRONG:
        return placed._replace(data={})
    if not isinstance(data, dict):
        problems.append(Problem(placed.where, "a mapping of keys is expected here"))
        return placed._replace(data={})
    ansible = {key.name: key for key in schema.ANSIBLE}
    own, others = {}, {}
    for name, value in data.items():
        if not name.startswith("ansible_"):
            own[name] = value
            continue
        others[name] = value
        if name in ansible:
            others[name] = _value(value, ansible[name].kind, name, problems)
        elif name not in REFUSED and (near := close(name, ansible, 0.9)):
            what = f'unknown key "{name}"'
            problems.append(Problem(value.key, what, f'did you mean "{near}"?'))
    checked = _value(placed._replace(data=own), schema.TOP, "", problems)
    return checked._replace(data={**others, **checked.data})


def _value(value: Placed, kind: Kind, path: str, problems: list[Problem]) -> Placed:
    data = value.data
    if data is None or data is WRONG:
        return value  # unset, or reported already
    if not _fits(data, kind.schema):
        problems.append(_misfit(value, kind, path))
    elif isinstance(data, list) and kind.items:
        before = len(problems)
        for number, each in enumerate(data, 1):
            if each.data is None:
                problems.append(Problem(each.where, f"{path} holds an empty entry", kind.hint))
            else:
                _value(each, kind.items, f"{path}[{number}]", problems)
            if len(problems) > before:
                break  # a list is wrong as a whole more often than in many places
        else:
            return value
    elif isinstance(data, dict):
        return value._replace(data=_mapping(data, kind, path, problems))
    else:
        return value
    return value._replace(data=WRONG)


def _mapping(
    data: Mapping[str, Placed], kind: Kind, path: str, problems: list[Problem]
) -> dict[str, Placed]:
    keys = {key.name: key.kind for key in kind.keys}
    inside = f" in {path}" if path else ""
    right = {}
    for name, each in data.items():
        dotted = f"{path}.{name}" if path else name
        wanted = kind.values or keys.get(name)
        if wanted is None:
            what = f'unknown key "{name[:60]}"{inside}'
            problems.append(Problem(each.key, what, suggest(name, keys)))
        elif kind.values and not re.fullmatch(kind.names, name):
            what = f'"{name[:60]}"{inside} is not a name that can stand here'
            problems.append(Problem(each.key, what, kind.hint))
        elif kind.values and wanted.secret and each.data is None:
            problems.append(Problem(each.where, f"{dotted} has no value", 'write ""'))
        else:
            right[name] = _value(each, wanted, dotted, problems)
    return right


def _fits(data: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether a value alone fits its JSON Schema, as far as kinds use that language."""
    if "enum" in wanted:
        return isinstance(data, str) and data in wanted["enum"]
    match wanted["type"]:
        case "string":
            return isinstance(data, str) and re.search(wanted["pattern"], data) is not None
        case "boolean":
            return isinstance(data, bool)
        case "array":
            return isinstance(data, list) and len(data) >= wanted["minItems"]
        case "object":
            return isinstance(data, dict)
        case "integer":
            right = isinstance(data, int) and not isinstance(data, bool)
        case _:
            right = isinstance(data, int | float) and not isinstance(data, bool)
    return (
        right
        and math.isfinite(data)
        and data >= wanted.get("minimum", -math.inf)
        and data > wanted.get("exclusiveMinimum", -math.inf)
        and data <= wanted.get("maximum", math.inf)
    )


def _misfit(value: Placed, kind: Kind, path: str) -> Problem:
    data = value.data
    if isinstance(data, str) and data in kind.later:
        return Problem(value.where, f"{path}: {data} is not in this version", kind.hint)
    hint = kind.hint
    if "enum" in kind.schema and isinstance(data, str):
        near = close(data, kind.schema["enum"])
        hint = f'did you mean "{near}"?' if near else hint
    elif hint == QUOTE and isinstance(data, int | float):
        hint = f'write it in quotes: "{_scalar(data)}"' if not kind.secret else hint
    elif hint == QUOTE:
        hint = ""
    if kind.secret:
        found = "" if isinstance(data, str) else f", not a {_sort(data)}"
    elif isinstance(data, dict | list) and data:
        found = f", not a {_sort(data)}"
    elif isinstance(data, int) and math.isfinite(maximum := kind.schema.get("maximum", math.inf)):
        found = (
            f", not {_scalar(data)}"
            if data <= maximum or isinstance(data, bool)
            else (f" and at most {maximum}, not {_scalar(data)}")
        )
    else:
        found = f", not {_scalar(data)}"
    return Problem(value.where, f"{path} must be {kind.words}{found}", hint)


def _sort(data: Any) -> str:
    sorts = ((bool, "boolean"), (str, "string"), (list, "list"), (dict, "mapping"))
    return next((name for kind, name in sorts if isinstance(data, kind)), "number")


def _scalar(data: Any) -> str:
    if isinstance(data, bool):
        return "true" if data else "false"
    if isinstance(data, str):
        return f'"{data[:60]}"' if data.isprintable() else f"{data[:60]!r}"
    return f"an empty {_sort(data)}" if isinstance(data, dict | list) else f"{data!s:.40}"
