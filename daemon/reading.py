"""Placed YAML values, checked against the declaration, into a Config. Every problem at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from daemon import agents, schema, uri, yamltext
from daemon.agents.llm import WIRES, provider_of, wire_of
from daemon.checking import check, close, raise_all, suggest
from daemon.config import FILE, Config, Paths, Role, budget_from, role_from
from daemon.errors import ConfigError, Problem
from daemon.kinds import Key
from daemon.lifecycle import DEFAULT_ROLES, ENDED, PARKED
from daemon.places import Places
from daemon.yamltext import WRONG, Placed

MOVES = ("claims", "holds", "on_success", "on_rejected", "on_exhausted")
UNKNOWN = ""
HINT = f"use file: and a path, or {uri.EXAMPLE}"
EVIDENCE_ROLES = frozenset({"builder", "refiner"})
MERGE_ROLE = "integrator"


def read_config(path: str, *, workspace: str | None = None, queue: str | None = None) -> Config:
    """The config of one file. ``workspace`` and ``queue`` are the command line's."""
    problems: list[Problem] = []
    placed = yamltext.read(os.path.expanduser(path), problems)
    if placed is None:
        raise ConfigError.of(problems)
    checked = check(placed, problems)
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    return build(checked, folder, problems, workspace=workspace, queue=queue)


def build(  # noqa: PLR0913  # the command line's words, each by its name
    placed: Placed,
    folder: str,
    problems: list[Problem],
    *,
    workspace: str | None = None,
    queue: str | None = None,
    home: str | None = None,
) -> Config:
    """The Config of checked values; a ConfigError of ``problems`` and what does not go together.

    ``folder`` is where a relative workspace counts from. ``home`` is what ``~`` stands for on a
    host that is not this machine ("~" until that is known); there the workspace must be named, and
    be absolute.
    """
    builder = _Builder(placed.data, placed.where, problems, home)
    config = builder.config(folder, workspace, queue)
    raise_all(problems)
    return config


class _Builder:
    def __init__(
        self, top: dict[str, Placed], where: str, problems: list[Problem], home: str | None
    ) -> None:
        self.top = top
        self.where = where
        self.problems = problems
        self.places = Places(home, problems)

    def problem(self, where: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(where, what, hint))

    def config(self, folder: str, workspace: str | None, queue: str | None) -> Config:
        values = _defaults(schema.TOP.keys, self.top)
        if workspace is not None:
            root = os.path.abspath(os.path.expanduser(workspace))
        else:
            root = self.places.workspace(self.top.get("workspace"), self.where, folder)
        written = _inside(self.top, "paths")
        places = {
            key: self.places.absolute(root, path, written[key].where if key in written else "")
            for key, path in _defaults(schema.PATHS.keys, written).items()
        }
        roles = self.roles(root)
        self.clashes(roles)
        return Config(
            workspace=root,
            queue=self.queue(root, values["queue"], queue),
            supervisor=values["supervisor"],
            unit_prefix=values["unit_prefix"],
            run=self.run(roles),
            roles=roles,
            paths=self.distinct(Paths(**places)),
            max_adaptations=values["max_adaptations"],
            unblock=values["unblock"],
            close_stories=values["close_stories"],
            budget=budget_from(_budget(schema.BUDGET.keys, _inside(self.top, "budget"))),
        )

    def queue(self, root: str, written: str, given: str | None) -> str:
        where = "--queue" if given is not None else ""
        where = where or (self.top["queue"].where if "queue" in self.top else "")
        url = given if given is not None else written
        scheme = url.partition(":")[0].lower() if ":" in url else ""
        if scheme in uri.SCHEMES:
            for what, hint in uri.wrong(url):
                self.problem(where, what, hint)
            return url
        if "@" in url and ":" in url.partition("://")[2].rpartition("@")[0]:
            self.problem(where, "queue holds a password", "leave it out of the URL")
        elif scheme != "file":
            hint = f'did you mean "file:{url}"?' if not scheme else HINT
            self.problem(where, f'queue: "{url[:80]}" is no URL of a queue', hint)
        else:
            path = url[len(FILE) :]
            if path.startswith("//"):
                host = path[2:].partition("/")[0]
                if host not in {"", "localhost"}:
                    hint = "write file: and a path, with no host"
                    self.problem(where, f"queue: a file of another host ({host})", hint)
                path = path[2:].removeprefix("localhost")
            if not path or path.endswith("/"):
                self.problem(where, "queue: the URL names no file", f"such as file:{schema.QUEUE}")
            return FILE + self.places.absolute(root, path, where)
        return FILE

    def distinct(self, paths: Paths) -> Paths:
        seen: dict[str, str] = {}
        for name, path in paths._asdict().items():
            if path in seen:
                own = _inside(self.top, "paths")
                where = own[name if name in own else seen[path]].where
                self.problem(where, f"paths.{name} is the same folder as paths.{seen[path]}")
            seen[path] = name
        return paths

    def roles(self, root: str) -> dict[str, Role]:
        found = _inside(self.top, "roles")
        if not found and not self.problems:  # else those may be why
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
        if missing:  # nothing more is said of a role that is not whole
            moves.update(dict.fromkeys(MOVES, UNKNOWN), claims=[])
        if missing := [key for key in missing if key not in wrong]:
            near = close(name, DEFAULT_ROLES)
            hint = f'did you mean "{near}"? ' if near else ""
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
        elif values["command"] and values["agent"] in agents.NAMES:
            what = f"roles.{name}: a command beside agent: {values['agent']}"
            self.problem(
                where("command"), what, "use agent: command, or args: for the preset's own"
            )
        if values["agent"] == "llm" and wire_of(values["model"]) is None and "model" not in wrong:
            what = f"roles.{name}: agent: llm wants a model that names its wire"
            hint = f"write model: PREFIX:NAME, with {', '.join(WIRES)} as PREFIX"
            self.problem(where("model"), what, hint)
        _preset_defaults(values)
        if values["evidence"] is None:
            values["evidence"] = values["worktree"] and name in EVIDENCE_ROLES
        self.merging(values, name, where("merge"))
        if values["lease_ttl"] <= values["heartbeat"] and not wrong & {"lease_ttl", "heartbeat"}:
            key = "lease_ttl" if "lease_ttl" in own else "heartbeat"
            what = f"roles.{name}: lease_ttl ({values['lease_ttl']:g}) is not above heartbeat"
            hint = "a lease must outlive its renewal; three heartbeats are usual"
            self.problem(where(key), f"{what} ({values['heartbeat']:g})", hint)
        self.nested(values, own, name)
        self.paths(values, root, own)
        times = ["interval", "lease_ttl", "heartbeat", "timeout", "stop_budget", "kill_grace"]
        times += ["stall_after"] * (values["stall_after"] is not None)
        return role_from(name, _floats(values, *times))

    def merging(self, values: dict[str, Any], name: str, where: str) -> None:
        if values["merge"] is None:
            values["merge"] = values["worktree"] and name == MERGE_ROLE
        elif values["merge"] and not values["worktree"]:
            what = f"roles.{name}: merge without a worktree"
            self.problem(where, what, "add worktree: true")

    def nested(self, values: dict[str, Any], own: dict[str, Placed], name: str) -> None:
        for key, keys, more in (
            ("backoff", schema.BACKOFF.keys, ()),
            ("breaker", schema.BREAKER.keys, ("seconds",)),
        ):
            inner = _inside(own, key)
            found = _floats(_defaults(keys, inner), "base", "cap", *more)
            right = all(each.data is not WRONG for each in inner.values())
            if found["cap"] < found["base"] and right:
                self.problem(own[key].where, f"roles.{name}.{key}: cap is below base")
            values[key] = found
        llm = _defaults(schema.LLM.keys, _inside(own, "llm"))
        values["llm"] = _floats(llm, "command_timeout", "request_timeout")
        if values["credential"] is None and values["agent"] == "llm":
            values["credential"] = provider_of(values["model"], llm["base_url"])
        values["limits"] = _defaults(schema.LIMITS.keys, _inside(own, "limits"))
        values["budget"] = _budget(schema.ROLE_BUDGET.keys, _inside(own, "budget"))
        if values["price"] is not None:
            self.price(values, own["price"], name)

    def price(self, values: dict[str, Any], placed: Placed, name: str) -> None:
        inner = _data(placed)
        values["price"] = _defaults(schema.PRICE.keys, inner)
        missing = [key for key, value in values["price"].items() if value is None]
        if missing and placed.data is not WRONG:
            if not any(each.data is WRONG for each in inner.values()):
                what = f"roles.{name}.price lacks {', '.join(missing)}"
                self.problem(placed.where, what, "such as: price: {input: 1.25, output: 10}")
            values["price"] = None

    def paths(self, values: dict[str, Any], root: str, own: Mapping[str, Placed]) -> None:
        for key in ("prompt", "env_file"):
            if values[key] is not None:
                values[key] = self.places.absolute(root, values[key], own[key].where)
        listed = own["write_paths"].where if "write_paths" in own else ""
        paths = dict.fromkeys(
            self.places.absolute(root, path, listed) for path in values["write_paths"]
        )
        values["write_paths"] = list(paths)

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

    def clashes(self, roles: Mapping[str, Role]) -> None:
        placed = _inside(self.top, "roles")
        for name, key, what in clashes([role for role in roles.values() if role.holds != UNKNOWN]):
            own = _data(placed[name])
            at = own[key].where if key in own else placed[name].key or placed[name].where
            self.problem(at, f"roles.{name}.{key}: {what}")


def clashes(roles: Iterable[Role]) -> Iterator[tuple[str, str, str]]:
    """What keeps the roles from being one state machine: role, key, what is wrong with it."""
    roles = list(roles)
    claimers: dict[str, str] = {}
    holders: dict[str, str] = {}
    for role in roles:
        for status in role.claims:
            if claimers.setdefault(status, role.name) != role.name:
                yield role.name, "claims", f'"{status}" is claimed by {claimers[status]} already'
        if holders.setdefault(role.holds, role.name) != role.name:
            yield role.name, "holds", f'"{role.holds}" is held by {holders[role.holds]} already'
    for role in roles:
        if role.holds in claimers:
            yield role.name, "holds", f'"{role.holds}" is claimed by {claimers[role.holds]}'
        elif role.holds in ENDED | PARKED:
            yield role.name, "holds", f'"{role.holds}" is no status of a task in work'
        yield from _lost(role, holders)


def _lost(role: Role, holders: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for key in ("on_success", "on_rejected", "on_exhausted"):
        status = getattr(role, key)
        if status in holders:
            yield role.name, key, f'"{status}" is the status that {holders[status]} holds'
        elif status in role.claims and key != "on_rejected":
            yield role.name, key, f'"{status}" is claimed by {role.name} itself, without end'


def _preset_defaults(values: dict[str, Any]) -> None:
    """What depends on the agent: unset values of a preset's role, and its CLI's own folders."""
    preset = agents.find(values["agent"])
    if values["worktree"] is None:
        values["worktree"] = preset is not None
    if values["prompt_via"] is None:
        values["prompt_via"] = preset.prompt_via if preset else "stdin"
    if values["credential"] is None and preset and values["agent"] != "llm":
        values["credential"] = preset.provider
    if preset:
        both = (*preset.write_paths, *values["write_paths"])
        values["write_paths"] = list(dict.fromkeys(both))


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


def _budget(keys: Iterable[Key], data: Mapping[str, Placed]) -> dict[str, Any]:
    return {key.name: _defaults(schema.AMOUNTS.keys, _inside(data, key.name)) for key in keys}


def _floats(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: float(value) if key in names else value for key, value in values.items()}
