"""Placed YAML values, checked against the declaration, into a Config. Every problem at once."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from daemon import schema, yamltext
from daemon.config import FILE, Config, Paths, Role, role_from
from daemon.errors import ConfigError, Problem
from daemon.lifecycle import DEFAULT_ROLES, ENDED, PARKED
from daemon.schema import Key, Kind
from daemon.yamltext import WRONG, Placed

MOVES = ("claims", "holds", "on_success", "on_rejected", "on_exhausted")
EVIDENCE_ROLES = frozenset({"builder", "refiner"})


def read_config(path: str, *, workspace: str | None = None, queue: str | None = None) -> Config:
    """The config of one file. ``workspace`` and ``queue`` are the command line's."""
    problems: list[Problem] = []
    placed = yamltext.read(os.path.expanduser(path), problems)
    if placed is None:
        raise_all(problems)
        raise AssertionError(path)
    checked = check(placed, problems)
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    return build(checked, folder, problems, workspace=workspace, queue=queue)


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


def suggest(name: str, known: Iterable[str]) -> str:
    """The hint of a name that is not known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"known: {', '.join(known)}" if known else ""


def check(placed: Placed, problems: list[Problem]) -> Placed:
    """Checks each value by its own kind: of a whole config, or of one layer of an inventory.

    What is returned is the same without what was wrong, to be looked at as a whole.
    """
    data = placed.data or {}
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
        elif close := difflib.get_close_matches(name, ansible, n=1, cutoff=0.9):
            what = f'unknown key "{name}"'
            problems.append(Problem(value.key, what, f'did you mean "{close[0]}"?'))
    checked = _value(placed._replace(data=own), schema.TOP, "", problems)
    return checked._replace(data={**others, **checked.data})


def _value(value: Placed, kind: Kind, path: str, problems: list[Problem]) -> Placed:
    data = value.data
    if data is None:
        return value  # unset
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
        elif wanted.secret and each.data is None:
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
        close = difflib.get_close_matches(data, kind.schema["enum"], n=1)
        hint = f'did you mean "{close[0]}"?' if close else hint
    elif hint == schema.QUOTE and isinstance(data, int | float):
        hint = f'write it in quotes: "{_scalar(data)}"' if not kind.secret else hint
    elif hint == schema.QUOTE:
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
    return {dict: "mapping", list: "list", str: "string", bool: "boolean"}.get(type(data), "number")


def _scalar(data: Any) -> str:
    if isinstance(data, bool):
        return "true" if data else "false"
    if isinstance(data, str):
        return f'"{data[:60]}"' if data.isprintable() else f"{data[:60]!r}"
    return {dict: "an empty mapping", list: "an empty list"}.get(type(data), f"{data!s:.40}")


def build(
    placed: Placed,
    folder: str,
    problems: list[Problem],
    *,
    workspace: str | None = None,
    queue: str | None = None,
) -> Config:
    """The Config of checked values; a ConfigError of ``problems`` and what does not go together.

    ``folder`` is where a relative workspace counts from.
    """
    builder = _Builder(placed.data, placed.where, problems)
    config = builder.config(folder, workspace, queue)
    raise_all(problems)
    return config


class _Builder:
    def __init__(self, top: dict[str, Placed], where: str, problems: list[Problem]) -> None:
        self.top = top
        self.where = where
        self.problems = problems

    def problem(self, where: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(where, what, hint))

    def config(self, folder: str, workspace: str | None, queue: str | None) -> Config:
        values = _defaults(schema.TOP.keys, self.top)
        root = self.workspace(values["workspace"], folder, workspace)
        paths = _defaults(schema.PATHS.keys, _inside(self.top, "paths"))
        places = {key: os.path.join(root, os.path.expanduser(path)) for key, path in paths.items()}
        roles = self.roles(root)
        self.cross(roles)
        return Config(
            workspace=root,
            queue=self.queue(root, values["queue"], queue),
            supervisor=values["supervisor"],
            unit_prefix=values["unit_prefix"],
            run=self.run(roles),
            roles=roles,
            paths=self.distinct(Paths(**{k: os.path.normpath(v) for k, v in places.items()})),
            max_adaptations=values["max_adaptations"],
            unblock=values["unblock"],
            close_stories=values["close_stories"],
        )

    def workspace(self, written: str | None, folder: str, given: str | None) -> str:
        if given is not None:
            return os.path.abspath(os.path.expanduser(given))
        if written is None:
            return git_top(os.getcwd())
        expanded = os.path.expanduser(written)
        if expanded.startswith("~"):
            self.problem(self.top["workspace"].where, f"there is no home folder of {expanded}")
        return os.path.normpath(os.path.join(folder, expanded))

    def queue(self, root: str, written: str, given: str | None) -> str:
        where = "--queue" if given is not None else getattr(self.top.get("queue"), "where", "")
        url = given if given is not None else written
        scheme = url.partition(":")[0].lower() if ":" in url else ""
        if "@" in url and ":" in url.partition("://")[2].rpartition("@")[0]:
            self.problem(where, "queue holds a password", "leave it out of the URL")
        elif scheme in {"postgresql", "postgres"}:
            hint = f"use file: and a path, such as file:{schema.QUEUE}"
            self.problem(where, "a PostgreSQL queue is not in this version", hint)
        elif scheme != "file":
            hint = f'did you mean "file:{url}"?' if not scheme else "use file: and a path"
            self.problem(where, f'queue: "{url[:80]}" is not a file: URL', hint)
        else:
            path = url[len(FILE) :]
            if path.startswith("//"):
                parts = urlsplit(url)
                if parts.netloc not in {"", "localhost"}:
                    hint = "write file: and a path, with no host"
                    self.problem(where, f"queue: a file of another host ({parts.netloc})", hint)
                path = path[2:].removeprefix("localhost")
            if not path or path.endswith("/"):
                self.problem(where, "queue: the URL names no file", f"such as file:{schema.QUEUE}")
            return FILE + os.path.normpath(os.path.join(root, os.path.expanduser(path)))
        return FILE

    def distinct(self, paths: Paths) -> Paths:
        seen: dict[str, str] = {}
        for name, path in paths._asdict().items():
            if path in seen:
                where = _inside(self.top, "paths").get(name, self.top.get("paths")).where  # type: ignore[union-attr]
                self.problem(where, f"paths.{name} is the same folder as paths.{seen[path]}")
            seen[path] = name
        return paths

    def roles(self, root: str) -> dict[str, Role]:
        found = _inside(self.top, "roles")
        if not found and not ("roles" in self.top and self.top["roles"].data is WRONG):
            where = self.top["roles"].where if "roles" in self.top else self.where
            hint = f"such as: roles: {{{', '.join(f'{name}: {{}}' for name in DEFAULT_ROLES)}}}"
            self.problem(where, "no role is declared", hint)
        order = [name for name in DEFAULT_ROLES if name in found]
        order += [name for name in found if name not in DEFAULT_ROLES]
        return {name: self.role(name, found[name], root) for name in order}

    def role(self, name: str, placed: Placed, root: str) -> Role:
        own = _data(placed)
        wrong = {key for key, each in own.items() if each.data is WRONG}

        def where(key: str) -> str:
            return own[key].where if key in own else placed.key or placed.where

        values = _defaults(schema.ROLE.keys, own)
        moves = {**DEFAULT_ROLES.get(name, {})}
        moves.update((key, values[key]) for key in MOVES if values[key] is not None)
        missing = [key for key in MOVES if key not in moves]
        moves.update((key, ["?"] if key == "claims" else "?") for key in missing)
        if missing := [key for key in missing if key not in wrong]:
            known = difflib.get_close_matches(name, DEFAULT_ROLES, n=1)
            hint = f'did you mean "{known[0]}"? ' if known else ""
            self.problem(
                where(""),
                f"roles.{name} lacks {', '.join(missing)}",
                f"{hint}a role of your own says what it claims and where its tasks go",
            )
        values.update(moves)
        if values["agent"] is None and values["command"]:
            values["agent"] = "command"
        values["command"] = values["command"] or []
        if values["agent"] == "command" and not values["command"] and "command" not in wrong:
            hint = "add command: [program, argument, ...]"
            self.problem(where("agent"), f"roles.{name}: agent: command without a command", hint)
        values["worktree"] = bool(values["worktree"])
        if values["evidence"] is None:
            values["evidence"] = values["worktree"] and name in EVIDENCE_ROLES
        if values["lease_ttl"] <= values["heartbeat"] and not wrong & {"lease_ttl", "heartbeat"}:
            key = "lease_ttl" if "lease_ttl" in own else "heartbeat"
            what = f"roles.{name}: lease_ttl ({values['lease_ttl']:g}) is not above heartbeat"
            hint = "a lease must outlive its renewal; three heartbeats are usual"
            self.problem(where(key), f"{what} ({values['heartbeat']:g})", hint)
        inner = _inside(own, "backoff")
        values["backoff"] = _floats(_defaults(schema.BACKOFF.keys, inner), "base", "cap")
        if values["backoff"]["cap"] < values["backoff"]["base"] and not any(
            each.data is WRONG for each in inner.values()
        ):
            self.problem(where("backoff"), f"roles.{name}.backoff: cap is below base")
        values["limits"] = _defaults(schema.LIMITS.keys, _inside(own, "limits"))
        for key in ("prompt", "env_file"):
            if values[key] is not None:
                values[key] = os.path.normpath(os.path.join(root, os.path.expanduser(values[key])))
        values["write_paths"] = [
            os.path.normpath(os.path.join(root, os.path.expanduser(path)))
            for path in values["write_paths"]
        ]
        times = ("interval", "lease_ttl", "heartbeat", "timeout", "stop_budget", "kill_grace")
        return role_from(name, _floats(values, *times))

    def run(self, roles: Mapping[str, Role]) -> tuple[str, ...]:
        placed = self.top.get("run")
        if placed is None or not isinstance(placed.data, list):
            return tuple(roles)
        for each in placed.data:
            if each.data not in roles:
                what = f'unknown role "{each.data}" in run'
                self.problem(each.where, what, suggest(each.data, roles))
        chosen = {each.data for each in placed.data}
        return tuple(name for name in roles if name in chosen)

    def cross(self, roles: Mapping[str, Role]) -> None:
        """What must hold between roles for the state machine to be one."""
        placed = _inside(self.top, "roles")

        def problem(name: str, key: str, what: str, hint: str = "") -> None:
            own = _data(placed[name])
            at = own[key].where if key in own else placed[name].key or placed[name].where
            self.problem(at, f"roles.{name}.{key}: {what}", hint)

        holders: dict[str, str] = {}
        claimers: dict[str, str] = {}
        for name, role in roles.items():
            if "?" in (role.holds, *role.claims):
                continue
            for status in dict.fromkeys(role.claims):
                other = claimers.setdefault(status, name)
                if other != name:
                    problem(name, "claims", f'"{status}" is claimed by {other} already')
            other = holders.setdefault(role.holds, name)
            if other != name:
                problem(name, "holds", f'"{role.holds}" is held by {other} already')
        for name, role in roles.items():
            if "?" in (role.holds, *role.claims):
                continue
            if role.holds in claimers:
                problem(name, "holds", f'"{role.holds}" is claimed by {claimers[role.holds]}')
            elif role.holds in ENDED | PARKED:
                problem(name, "holds", f'"{role.holds}" is no status of a task in work')
            for key in ("on_success", "on_rejected", "on_exhausted"):
                status = getattr(role, key)
                if status in holders:
                    problem(name, key, f'"{status}" is the status that {holders[status]} holds')
                elif status in role.claims and key != "on_rejected":
                    problem(name, key, f'"{status}" is claimed by {name} itself, without end')


def git_top(folder: str) -> str:
    """The git repository that the folder is in, or the folder itself."""
    at = os.path.abspath(folder)
    while at != os.path.dirname(at):
        if os.path.exists(os.path.join(at, ".git")):
            return at
        at = os.path.dirname(at)
    return os.path.abspath(folder)


def _inside(data: Mapping[str, Placed], key: str) -> dict[str, Placed]:
    return _data(data[key]) if key in data else {}


def _data(placed: Placed) -> dict[str, Placed]:
    return placed.data if isinstance(placed.data, dict) else {}


def _defaults(keys: Iterable[Key], data: Mapping[str, Placed]) -> dict[str, Any]:
    found = {}
    for key in keys:
        value = yamltext.plain(data[key.name]) if key.name in data else None
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        found[key.name] = default if value is None else value
    return found


def _floats(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: float(value) if key in names else value for key, value in values.items()}
