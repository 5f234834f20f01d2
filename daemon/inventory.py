"""The inventory: hosts and groups as Ansible's YAML inventories write them, and their variables.

``hosts.yml`` (or hosts.yaml), ``group_vars/`` and ``host_vars/`` of one folder, with Ansible's
precedence. Only ``roles`` merges key by key; any other variable is the last layer's as a whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from daemon import reading, yamltext
from daemon.config import Config, to_json
from daemon.errors import ConfigError, Problem
from daemon.reading import raise_all, suggest
from daemon.yamltext import Placed

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
SUFFIXES = ("", ".yml", ".yaml", ".json")
IGNORED = (".md", ".txt", ".rst", ".orig", ".bak", ".swp", ".rpmsave", ".retry", "~")  # by Ansible
Variables = dict[str, Placed]


class Host(NamedTuple):
    """A host: its merged variables, and ``file:line`` of each (``roles.builder.slots``)."""

    name: str
    vars: dict[str, Any]
    origins: dict[str, str]
    groups: tuple[str, ...] = ()
    placed: Variables = {}

    @property
    def connection(self) -> str:
        """How it is reached: "local" or "ssh"."""
        default = "local" if self.name == "localhost" else "ssh"
        return str(self.vars.get("ansible_connection") or default)


class Group:
    """A group while the inventory is read."""

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self.hosts: dict[str, str] = {}  # to the place of its key
        self.children: dict[str, str] = {}
        self.vars: Variables = {}
        self.depth = 0


def inventory_dir() -> str:
    """The inventory that counts where none is named: ROLECALL_INVENTORY, or the checkout's own."""
    named = os.environ.get("ROLECALL_INVENTORY")
    return os.path.abspath(os.path.expanduser(named)) if named else f"{CHECKOUT}/inventory"


def local_config(*, workspace: str | None = None, queue: str | None = None) -> Config:
    """What the inventory says of the host that we are on."""
    inventory = Inventory.load(inventory_dir())
    return inventory.config(inventory.local_host(), workspace=workspace, queue=queue)


class Inventory:
    """An inventory that was read whole. ``load`` makes one."""

    def __init__(self, folder: str, groups: dict[str, Group], hosts: list[Host]) -> None:
        self.folder = folder
        self.groups = groups
        self.every = hosts

    @classmethod
    def load(cls, folder: str) -> Inventory:
        """Reads the folder. Raises ConfigError with every problem of its files."""
        folder = os.path.abspath(os.path.expanduser(folder))
        return _Reader(folder).inventory()

    def hosts(self, limit: str | None = None) -> list[Host]:
        """All hosts, or those that ``limit`` names: hosts and groups, with commas between."""
        if limit is None:
            return list(self.every)
        known = {host.name: {host.name} for host in self.every}
        known |= {
            group: {host.name for host in self.every if group in host.groups}
            for group in self.groups
        }
        names = [name.strip() for name in limit.split(",") if name.strip()]
        problems = [
            Problem("--limit", f'no host or group "{name}"', suggest(name, known))
            for name in names or [limit]
            if name not in known
        ]
        raise_all(problems)
        chosen = set().union(*(known[name] for name in names))
        return [host for host in self.every if host.name in chosen]

    def config(
        self,
        host: Host,
        *,
        workspace: str | None = None,
        queue: str | None = None,
        problems: list[Problem] | None = None,
    ) -> Config:
        """What the host runs. Raises ConfigError with every problem of it.

        ``problems`` are those found so far; what is found here is added to them.
        """
        placed = Placed(host.placed, yamltext.shown(self.folder))
        own = {key: each for key, each in host.placed.items() if not key.startswith("ansible_")}
        base = os.path.dirname(self.folder)
        return reading.build(
            placed._replace(data=own),
            base,
            [] if problems is None else problems,
            workspace=workspace,
            queue=queue,
        )

    def configs(self, limit: str | None = None) -> dict[str, Config]:
        """The config of each host. Raises ConfigError with the problems of all of them."""
        found, problems = {}, list[Problem]()
        for host in self.hosts(limit):
            try:
                found[host.name] = self.config(host)
            except ConfigError as error:
                problems += error.problems
        raise_all(problems)
        return found

    def local_host(self) -> Host:
        """The host that we are on: its connection is local, or it is named as this machine."""
        here = socket.gethostname()
        local = [host for host in self.every if host.connection == "local"]
        named = [host for host in self.every if host.name in {here, here.partition(".")[0]}]
        localhost = [host for host in local if host.name == "localhost"]
        for found in (localhost, [host for host in named if host in local], local, named):
            if len(found) == 1:
                return found[0]
        where = yamltext.shown(self.folder)
        if local:
            names = ", ".join(host.name for host in local)
            what = f"several hosts are this machine: {names}"
            raise ConfigError(what, where=where, hint="name a file: --config FILE")
        raise ConfigError(
            "no host is this machine",
            where=where,
            hint="give one ansible_connection: local, or name a file: --config FILE",
        )

    def describe(self, hosts: Iterable[Host]) -> list[str]:
        """Lines for a person: each host's effective values, and where each came from."""
        lines: list[str] = []
        for host in hosts:
            lines += [""] * bool(lines) + [host.name]
            rows = [*self._effective(host)]
            width = max(len(f"{key}: {text}") for key, text, _ in rows)
            width = min(width, 60)
            lines += [f"  {f'{key}: {text}':<{width}}  {origin}" for key, text, origin in rows]
        return lines

    def _effective(self, host: Host) -> Iterator[tuple[str, str, str]]:
        import json  # noqa: PLC0415  # only here

        for key, value in host.vars.items():
            if key.startswith("ansible_"):
                yield key, json.dumps(value, ensure_ascii=False), host.origins.get(key, "")
        effective = json.loads(to_json(self.config(host)))
        for key, value in leaves(effective):
            if value is not None:
                origin = host.origins.get(key, "default")
                yield key, json.dumps(value, ensure_ascii=False), origin


def leaves(data: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no mapping, under its dotted name; lists are whole."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _origins(variables: Variables, path: str = "") -> Iterator[tuple[str, str]]:
    for key, placed in variables.items():
        if isinstance(placed.data, dict):
            yield from _origins(placed.data, f"{path}{key}.")
        else:
            yield f"{path}{key}", placed.key or placed.where


def merge(lower: Variables, upper: Variables) -> Variables:
    """Two layers of variables: ``roles`` key by key, anything else replaced."""
    found = {**lower, **upper}
    if "roles" in lower and "roles" in upper:
        found["roles"] = _deep(lower["roles"], upper["roles"])
    return found


def _deep(lower: Placed, upper: Placed) -> Placed:
    if not isinstance(lower.data, dict) or not isinstance(upper.data, dict):
        # An empty `roles:` or `builder:` says nothing; an empty value below them is unset.
        keep = isinstance(lower.data, dict) and upper.data is None
        return lower if keep else upper
    both = {
        key: _deep(lower.data[key], each) if key in lower.data else each
        for key, each in upper.data.items()
    }
    return upper._replace(data={**lower.data, **both})


class _Reader:
    """Reads one folder; gathers what is wrong in it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.groups: dict[str, Group] = {}
        self.inline: dict[str, Variables] = {}  # host variables of hosts.yml
        self.host_keys: dict[str, str] = {}

    def problem(self, where: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(where, what, hint))

    def inventory(self) -> Inventory:
        path = self.hosts_file()
        self.group("all", "")
        placed = yamltext.read(path, self.problems)
        if placed is not None:
            self.top(placed)
        raise_all(self.problems)
        self.depths()
        raise_all(self.problems)  # the rest of it needs hosts and groups that are sound
        layers = self.layers("group_vars", self.groups)
        own = self.layers("host_vars", self.inline)
        hosts = [self.host(name, layers, own) for name in self.inline]
        inventory = Inventory(self.folder, self.groups, hosts)
        if self.problems:  # say at once what more is wrong with the hosts' configs
            for host in hosts:
                with contextlib.suppress(ConfigError):
                    inventory.config(host, problems=self.problems)
        raise_all(self.problems)
        return inventory

    def hosts_file(self) -> str:
        shown = yamltext.shown(self.folder)
        try:
            names = sorted(os.listdir(self.folder))
        except OSError as error:
            hint = "name a folder that holds hosts.yml: --inventory DIR"
            raise ConfigError(
                f"the inventory cannot be read: {error.strerror}", where=shown, hint=hint
            ) from error
        found = [name for name in names if name in {"hosts.yml", "hosts.yaml"}]
        for name in names:
            if name in {*found, "group_vars", "host_vars"} or name.startswith("."):
                continue
            if not name.endswith(IGNORED):
                hint = "hosts and groups belong into hosts.yml, variables into group_vars/ and host_vars/"
                self.problem(f"{shown}/{name}", "is not read: not a YAML inventory of ours", hint)
        if not found:
            self.problem(shown, "there is no hosts.yml", "write one: all: {hosts: {localhost: }}")
        elif len(found) > 1:
            self.problem(shown, "there are both hosts.yml and hosts.yaml", "remove one")
        raise_all(self.problems)
        return os.path.join(self.folder, found[0])

    def group(self, name: str, key: str) -> Group:
        if not NAME.fullmatch(name):
            self.problem(key, f'"{name[:60]}" is not a name of a group')
        return self.groups.setdefault(name, Group(name, key))

    def top(self, placed: Placed) -> None:
        if not isinstance(placed.data, dict):
            hint = "start with all:, and hosts: below it"
            if isinstance(placed.data, str) and placed.data.lstrip().startswith("["):
                hint = "INI inventories are not supported: " + hint
            self.problem(placed.where, "is no YAML inventory", hint)
            return
        if "plugin" in placed.data:
            where = placed.data["plugin"].key
            self.problem(where, "inventory plugins are not supported", "list the hosts")
            return
        for name, each in placed.data.items():
            self.read_group(self.group(name, each.key), each)

    def read_group(self, group: Group, placed: Placed) -> None:
        sections = self.mapping(placed, f"group {group.name}")
        for name, each in sections.items():
            if name not in {"hosts", "children", "vars"}:
                hint = suggest(name, ("hosts", "children", "vars"))
                self.problem(each.key, f'unknown key "{name[:60]}" in group {group.name}', hint)
        for name, each in self.mapping(sections.get("hosts"), "hosts").items():
            self.read_host(group, name, each)
        for name, each in self.mapping(sections.get("children"), "children").items():
            group.children.setdefault(name, each.key)
            self.read_group(self.group(name, each.key), each)
        group.vars = merge(group.vars, self.variables(sections.get("vars")))

    def read_host(self, group: Group, name: str, placed: Placed) -> None:
        if "[" in name:
            self.problem(placed.key, f'host ranges are not supported: "{name[:60]}"', "list them")
        elif not NAME.fullmatch(name):
            hint = "set ansible_port instead" if re.search(r":\d+$", name) else ""
            self.problem(placed.key, f'"{name[:60]}" is not a name of a host', hint)
        else:
            group.hosts.setdefault(name, placed.key)
            self.host_keys.setdefault(name, placed.key)
            before = self.inline.setdefault(name, {})
            self.inline[name] = merge(before, self.variables(placed))

    def mapping(self, placed: Placed | None, what: str) -> Variables:
        if placed is None or placed.data is None:
            return {}
        if not isinstance(placed.data, dict):
            hint = "end each name with a colon" if what in {"hosts", "children"} else ""
            self.problem(placed.where, f"{what} must be a mapping", hint)
            return {}
        return placed.data

    def variables(self, placed: Placed | None) -> Variables:
        """One layer of variables, checked."""
        if placed is None:
            return {}
        self.templates(placed)
        data: Variables = reading.check(placed, self.problems).data
        return data

    def templates(self, placed: Placed, path: tuple[str, ...] = ()) -> None:
        if isinstance(placed.data, str) and re.search(r"\{\{|\{%", placed.data):
            self.problem(placed.where, *yamltext.TEMPLATE)
        elif isinstance(placed.data, list):
            if path[-1:] not in {("command",), ("args",), ("gates",)}:  # their braces stand
                for each in placed.data:
                    self.templates(each, path)
        elif isinstance(placed.data, dict):
            for key, each in placed.data.items():
                self.templates(each, (*path, key))

    def depths(self) -> None:
        """How deep each group lies, as Ansible counts; a group within itself is a problem."""
        everything = self.groups["all"]
        below = {name for group in self.groups.values() for name in group.children}
        for name, group in self.groups.items():
            if name != "all" and name not in below:
                everything.children.setdefault(name, group.key)

        def descend(group: Group, path: tuple[str, ...]) -> None:
            for name, key in group.children.items():
                child = self.groups[name]
                if name in path or name == group.name:
                    self.problem(key, f"group {name} is a child of itself")
                elif child.depth < len(path) + 1:
                    child.depth = len(path) + 1
                    descend(child, (*path, group.name))

        descend(everything, ())
        for name, group in self.groups.items():
            if name != "all" and not group.depth:
                self.problem(group.key, f"group {name} is a child of itself")

    def layers(self, kind: str, known: Iterable[str]) -> dict[str, Variables]:
        """The variables of group_vars/ or host_vars/ by name."""
        folder, what = os.path.join(self.folder, kind), kind.removesuffix("_vars")
        known = {*known, "ungrouped"} if what == "group" else set(known)
        found: dict[str, Variables] = {}
        entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for entry in entries:
            if entry.startswith(".") or entry.endswith(IGNORED):
                continue
            path = os.path.join(folder, entry)
            name, suffix = os.path.splitext(entry)
            if entry in known:
                name = entry
            elif suffix not in SUFFIXES or not suffix:
                name = entry
            if name not in known:
                self.problem(yamltext.shown(path), f'no {what} "{name}"', suggest(name, known))
                continue
            for file in self.files(path):
                placed = yamltext.read(file, self.problems)
                if placed is not None:
                    found[name] = merge(found.get(name, {}), self.variables(placed))
        return found

    def files(self, path: str) -> list[str]:
        """The file, or those of a folder, in order."""
        if not os.path.isdir(path):
            return [path]
        return [
            os.path.join(path, name)
            for name in sorted(os.listdir(path))
            if os.path.splitext(name)[1] in SUFFIXES and not name.startswith(".")
        ]

    def of_host(self, name: str) -> list[Group]:
        """The groups that the host is in, from the outermost in, as Ansible sorts them."""
        found = {each.name for each in self.groups.values() if name in each.hosts}
        grown = True
        while grown:
            more = {each.name for each in self.groups.values() if found & set(each.children)}
            grown = not more <= found
            found |= more
        groups = [self.groups[each] for each in found | {"all"}]
        return sorted(groups, key=lambda group: (group.depth, self.priority(group), group.name))

    def priority(self, group: Group) -> int:
        placed = group.vars.get("ansible_group_priority")
        return placed.data if placed and isinstance(placed.data, int) else 1

    def host(self, name: str, layers: dict[str, Variables], own: dict[str, Variables]) -> Host:
        groups = [group.name for group in self.of_host(name)]
        if groups == ["all"]:
            groups.append("ungrouped")
        inner = [group for group in groups if group != "all"]
        variables: Variables = {}
        for layer in (
            self.groups["all"].vars,
            *(self.groups[group].vars for group in inner if group in self.groups),
            layers.get("all", {}),
            *(layers.get(group, {}) for group in inner),
            self.inline[name],
            own.get(name, {}),
        ):
            variables = merge(variables, layer)
        variables.pop("ansible_group_priority", None)
        values = {key: yamltext.plain(each) for key, each in variables.items()}
        return Host(name, values, dict(_origins(variables)), tuple(groups), variables)
