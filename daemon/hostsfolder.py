"""An inventory's folder: hosts.yml, group_vars/ and host_vars/, read as Ansible reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from daemon import yamltext
from daemon.checking import check, raise_all, suggest
from daemon.errors import ConfigError, Problem
from daemon.yamltext import Placed

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
SUFFIXES = ("", ".yml", ".yaml", ".json")
IGNORED = (".md", ".txt", ".rst", ".orig", ".bak", ".swp", ".rpmsave", ".retry", "~")  # by Ansible
Variables = dict[str, Placed]


class Group:
    """A group while the inventory is read."""

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self.hosts: dict[str, str] = {}  # to the place of its key
        self.children: dict[str, str] = {}
        self.vars: Variables = {}
        self.depth = 0


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


class HostsFolder:
    """One folder, read: ``hosts`` to their variables and groups. ``problems`` is what is wrong."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.groups: dict[str, Group] = {}
        self.inline: dict[str, Variables] = {}  # host variables of hosts.yml
        self.hosts: dict[str, tuple[Variables, tuple[str, ...], str]] = {}

    def _problem(self, where: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(where, what, hint))

    def read(self) -> None:
        """Fill ``hosts``. Raises ConfigError where hosts and groups themselves are not sound."""
        path = self._hosts_file()
        self._group("all", "")
        placed = yamltext.read(path, self.problems)
        if placed is not None:
            self._top(placed)
        raise_all(self.problems)
        self._depths()
        raise_all(self.problems)  # the rest of it needs hosts and groups that are sound
        layers = self._layers("group_vars", self.groups)
        own = self._layers("host_vars", self.inline)
        for name in self.inline:
            groups = self._of_host(name)
            where = next(group.hosts[name] for group in self.groups.values() if name in group.hosts)
            self.hosts[name] = self._merged(name, groups, layers, own), groups, where

    def _hosts_file(self) -> str:
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
                hint = "hosts go into hosts.yml, variables into group_vars/ and host_vars/"
                self._problem(f"{shown}/{name}", "is not read: not a YAML inventory of ours", hint)
        if not found:
            self._problem(shown, "there is no hosts.yml", "write one: all: {hosts: {localhost: }}")
        elif len(found) > 1:
            self._problem(shown, "there are both hosts.yml and hosts.yaml", "remove one")
        raise_all(self.problems)
        return os.path.join(self.folder, found[0])

    def _group(self, name: str, key: str) -> Group:
        if not NAME.fullmatch(name):
            self._problem(key, f'"{name[:60]}" is not a name of a group')
        return self.groups.setdefault(name, Group(name, key))

    def _top(self, placed: Placed) -> None:
        if not isinstance(placed.data, dict):
            hint = "start with all:, and hosts: below it"
            if isinstance(placed.data, str) and placed.data.lstrip().startswith("["):
                hint = "INI inventories are not supported: " + hint
            self._problem(placed.where, "is no YAML inventory", hint)
            return
        if "plugin" in placed.data:
            where = placed.data["plugin"].key
            self._problem(where, "inventory plugins are not supported", "list the hosts")
            return
        for name, each in placed.data.items():
            self._read_group(self._group(name, each.key), each)

    def _read_group(self, group: Group, placed: Placed) -> None:
        sections = self._mapping(placed, f"group {group.name}")
        for name, each in sections.items():
            if name not in {"hosts", "children", "vars"}:
                hint = suggest(name, ("hosts", "children", "vars"))
                self._problem(each.key, f'unknown key "{name[:60]}" in group {group.name}', hint)
        for name, each in self._mapping(sections.get("hosts"), "hosts").items():
            self._read_host(group, name, each)
        for name, each in self._mapping(sections.get("children"), "children").items():
            group.children.setdefault(name, each.key)
            self._read_group(self._group(name, each.key), each)
        group.vars = merge(group.vars, self._variables(sections.get("vars")))

    def _read_host(self, group: Group, name: str, placed: Placed) -> None:
        if "[" in name:
            self._problem(placed.key, f'host ranges are not supported: "{name[:60]}"', "list them")
        elif not NAME.fullmatch(name):
            hint = "set ansible_port instead" if re.search(r":\d+$", name) else ""
            self._problem(placed.key, f'"{name[:60]}" is not a name of a host', hint)
        else:
            group.hosts.setdefault(name, placed.key)
            before = self.inline.setdefault(name, {})
            self.inline[name] = merge(before, self._variables(placed))

    def _mapping(self, placed: Placed | None, what: str) -> Variables:
        if placed is None or placed.data is None:
            return {}
        if not isinstance(placed.data, dict):
            hint = "end each name with a colon" if what in {"hosts", "children"} else ""
            self._problem(placed.where, f"{what} must be a mapping", hint)
            return {}
        return placed.data

    def _variables(self, placed: Placed | None) -> Variables:
        """One layer of variables, checked."""
        if placed is None:
            return {}
        self._templates(placed)
        data: Variables = check(placed, self.problems).data
        return data

    def _templates(self, placed: Placed, path: tuple[str, ...] = ()) -> None:
        if isinstance(placed.data, str) and re.search(r"\{\{|\{%", placed.data):
            self._problem(placed.where, *yamltext.TEMPLATE)
        elif isinstance(placed.data, list):
            if path[-1:] not in {("command",), ("args",), ("gates",)}:  # their braces stand
                for each in placed.data:
                    self._templates(each, path)
        elif isinstance(placed.data, dict):
            for key, each in placed.data.items():
                self._templates(each, (*path, key))

    def _depths(self) -> None:
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
                    self._problem(key, f"group {name} is a child of itself")
                elif child.depth < len(path) + 1:
                    child.depth = len(path) + 1
                    descend(child, (*path, group.name))

        descend(everything, ())
        for name, group in self.groups.items():
            if name != "all" and not group.depth:
                self._problem(group.key, f"group {name} is a child of itself")

    def _layers(self, kind: str, known: Iterable[str]) -> dict[str, Variables]:
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
            if entry in known or suffix not in SUFFIXES:
                name = entry
            if name not in known:
                self._problem(yamltext.shown(path), f'no {what} "{name}"', suggest(name, known))
                continue
            for file in self._files(path):
                placed = yamltext.read(file, self.problems)
                if placed is not None:
                    found[name] = merge(found.get(name, {}), self._variables(placed))
        return found

    def _files(self, path: str) -> list[str]:
        """The file, or those of a folder, in order."""
        if not os.path.isdir(path):
            return [path]
        return [
            os.path.join(path, name)
            for name in sorted(os.listdir(path))
            if os.path.splitext(name)[1] in SUFFIXES and not name.startswith(".")
        ]

    def _of_host(self, name: str) -> tuple[str, ...]:
        """The groups that the host is in, from the outermost in, as Ansible sorts them."""
        found = {each.name for each in self.groups.values() if name in each.hosts}
        grown = True
        while grown:
            more = {each.name for each in self.groups.values() if found & set(each.children)}
            grown = not more <= found
            found |= more
        groups = [self.groups[each] for each in found | {"all"}]
        groups.sort(key=lambda group: (group.depth, self._priority(group), group.name))
        names = tuple(group.name for group in groups)
        return names if len(names) > 1 else ("all", "ungrouped")

    def _priority(self, group: Group) -> int:
        placed = group.vars.get("ansible_group_priority")
        return placed.data if placed and isinstance(placed.data, int) else 1

    def _merged(
        self,
        name: str,
        groups: tuple[str, ...],
        layers: dict[str, Variables],
        own: dict[str, Variables],
    ) -> Variables:
        """All layers of a host's variables, the weakest first: Ansible's order."""
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
        return variables
