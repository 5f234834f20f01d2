"""An inventory's folder: hosts.yml, group_vars/ and host_vars/, read as Ansible reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from daemon import hostkeys, varsfiles, yamltext
from daemon.checking import check, raise_all, suggest
from daemon.errors import ConfigError, Problem
from daemon.groups import ALL, Group, Groups, Variables
from daemon.yamltext import Placed

FILES = ("hosts.yml", "hosts.yaml")
SECTIONS = ("hosts", "children", "vars")
GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
PRIORITY = "ansible_group_priority"
#: What Ansible sets itself, whatever an inventory says: INTERNAL_STATIC_VARS of ansible-core 2.19.
ITS_OWN = {
    *("ansible_async_path", "ansible_collection_name", "ansible_config_file", "ansible_diff_mode"),
    *("ansible_dependent_role_names", "ansible_facts", "ansible_forks", "ansible_limit"),
    *("ansible_inventory_sources", "ansible_play_batch", "ansible_play_hosts"),
    *("ansible_play_hosts_all", "ansible_play_role_names", "ansible_playbook_python"),
    *("ansible_role_name", "ansible_role_names", "ansible_run_tags", "ansible_skip_tags"),
    *("ansible_verbosity", "ansible_version"),
}
MAX_HOSTS = 20_000
TEMPLATE = re.compile(r"\{[{%#]")
BRACES = {("command",), ("args",), ("gates",)}  # braces of other programs stand in these


class Named:
    """A host while the inventory is read: its own variables, and the place of its first key."""

    def __init__(self, key: str, port: int | None) -> None:
        self.key = key
        self.port = port
        self.vars: Variables = {} if port is None else {"ansible_port": Placed(port, key, key)}


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
    """One folder, read: its hosts and groups. ``problems`` is what is wrong with it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.groups = Groups()
        self.hosts: dict[str, Named] = {}
        self._layers: dict[str, dict[str, Variables]] = {}

    def _problem(self, where: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(where, what, hint))

    def read(self) -> None:
        """Read all of it. Raises ConfigError where hosts and groups themselves are not sound."""
        placed = yamltext.read(self._hosts_file(), self.problems)
        if placed is not None:
            self._top(placed)
        raise_all(self.problems)
        self.problems += self.groups.settle(self.hosts)
        raise_all(self.problems)  # the rest of it needs hosts and groups that are sound
        for kind, names in (("group_vars", self.groups.by_name), ("host_vars", self.hosts)):
            self._layers[kind] = self._read_layers(kind, names)

    def variables(self, name: str, groups: Iterable[str]) -> Variables:
        """All layers of a host's variables, the weakest first: Ansible's order."""
        inner = [group for group in groups if group != ALL]
        inline, files = self.groups.by_name, self._layers["group_vars"]
        found: Variables = {}
        for layer in (
            *(inline[group].vars for group in (ALL, *inner)),
            *(files.get(group, {}) for group in (ALL, *inner)),
            self.hosts[name].vars,
            self._layers["host_vars"].get(name, {}),
        ):
            found = merge(found, layer)
        return found

    def _hosts_file(self) -> str:
        shown = yamltext.shown(self.folder)
        try:
            names = sorted(os.listdir(self.folder))
        except OSError as error:
            hint = "name a folder that holds hosts.yml: --inventory DIR"
            raise ConfigError(
                f"the inventory cannot be read: {error.strerror}", where=shown, hint=hint
            ) from error
        found = [name for name in names if name in FILES]
        for name in names:
            if name in {*found, "group_vars", "host_vars"} or name.startswith("."):
                continue
            if not name.endswith(varsfiles.IGNORED):
                hint = "hosts go into hosts.yml, variables into group_vars/ and host_vars/"
                self._problem(f"{shown}/{name}", "is not read: not a YAML inventory of ours", hint)
        if not found:
            self._problem(shown, "there is no hosts.yml", "write one: all: {hosts: {localhost: }}")
        elif len(found) > 1:
            self._problem(shown, "there are both hosts.yml and hosts.yaml", "remove one")
        raise_all(self.problems)
        return os.path.join(self.folder, found[0])

    def _top(self, placed: Placed) -> None:
        if not isinstance(placed.data, dict):
            hint = "start with all:, and hosts: below it"
            if isinstance(placed.data, str) and placed.data.lstrip().startswith("["):
                hint = "INI inventories are not supported: " + hint
            self._problem(placed.where, "is no YAML inventory", hint)
            return
        if not placed.data:
            self._problem(placed.where, "is empty", "write: all: {hosts: {localhost: }}")
        if "plugin" in placed.data:
            where = placed.data["plugin"].key
            self._problem(where, "inventory plugins are not supported", "list the hosts")
            return
        for name, each in placed.data.items():
            self._read_group(name, each)
        for name, host in self.hosts.items():
            if name in self.groups.by_name and host.vars:
                what = f'"{name}" is a host with variables, and a group: Ansible mixes them up'
                self._problem(host.key, what, "rename one")

    def _read_group(self, name: str, placed: Placed) -> None:
        """One mention of a group. Its sections are taken in their order: a later one wins."""
        if not GROUP_NAME.fullmatch(name):
            self._problem(placed.key, f'"{name[:60]}" is not a name of a group')
        group = self.groups.add(name, placed.key)
        for section, each in self._mapping(placed, f"group {name}").items():
            if section == "hosts":
                self._each(each, section, lambda key, host: self._read_host(group, key, host))
            elif section == "children":
                self._each(each, section, lambda key, child: self._read_child(group, key, child))
            elif section == "vars":
                group.vars = merge(group.vars, self._of_group(group, self._variables(each)))
            else:
                hint = suggest(section, SECTIONS)
                self._problem(each.key, f'unknown key "{section[:60]}" in group {name}', hint)

    def _each(self, placed: Placed, what: str, do: Callable[[str, Placed], None]) -> None:
        if isinstance(placed.data, str):  # the one name, as Ansible takes it
            do(placed.data, Placed(None, placed.where, placed.where))
        for name, each in self._mapping(placed, what).items():
            do(name, each)

    def _read_child(self, group: Group, name: str, placed: Placed) -> None:
        group.children.setdefault(name, placed.key)
        self._read_group(name, placed)

    def _read_host(self, group: Group, key: str, placed: Placed) -> None:
        try:
            names, port = hostkeys.expand(key)
        except hostkeys.BadKey as error:
            (problem,) = error.problems
            self.problems.append(problem._replace(where=placed.key))
            return
        if len(self.hosts) + len(names) > MAX_HOSTS:
            self._problem(placed.key, f"there are more than {MAX_HOSTS} hosts")
            return
        variables = self._variables(placed)
        for name in names:
            group.hosts.setdefault(name, placed.key)
            host = self.hosts.setdefault(name, Named(placed.key, port))
            if port not in {None, host.port}:
                what = f"{name} is mentioned without port {port} before: Ansible passes it over"
                self._problem(placed.key, what, "set ansible_port instead")
            host.vars = merge(host.vars, variables)

    def _mapping(self, placed: Placed, what: str) -> Variables:
        if placed.data is None or placed.data is yamltext.WRONG:
            return {}
        if not isinstance(placed.data, dict):
            if what not in SECTIONS or not isinstance(placed.data, str):
                hint = "end each name with a colon" if what in SECTIONS else ""
                self._problem(placed.where, f"{what} must be a mapping", hint)
            return {}
        return placed.data

    def _of_group(self, group: Group, variables: Variables) -> Variables:
        """The variables of a mention of a group less its priority, which is no variable."""
        placed = variables.pop(PRIORITY, None)
        if placed is not None:
            written = str(placed.data)
            if isinstance(placed.data, bool) or not re.fullmatch(r"-?[0-9]{1,9}", written):
                self._problem(placed.where, f"{PRIORITY} must be a whole number")
            else:
                group.priority = int(written)
        return variables

    def _variables(self, placed: Placed) -> Variables:
        """One layer of variables, checked."""
        self._templates(placed)
        for name in ITS_OWN & {*(placed.data if isinstance(placed.data, dict) else ())}:
            self._problem(placed.data[name].key, f"{name} is set by Ansible itself", "remove it")
        data: Variables = check(placed, self.problems).data
        return data

    def _templates(self, placed: Placed, path: tuple[str, ...] = ()) -> None:
        if isinstance(placed.data, str) and TEMPLATE.search(placed.data):
            self._problem(placed.where, *yamltext.TEMPLATE)
        elif isinstance(placed.data, list):
            if path[-1:] not in BRACES:
                for each in placed.data:
                    self._templates(each, path)
        elif isinstance(placed.data, dict):
            for key, each in placed.data.items():
                self._templates(each, (*path, key))

    def _read_layers(self, kind: str, names: Iterable[str]) -> dict[str, Variables]:
        """The variables of group_vars/ or host_vars/ by name."""
        found: dict[str, Variables] = {}
        folder = os.path.join(self.folder, kind)
        for name, files in varsfiles.find(folder, list(names), self.problems):
            for file in files:
                placed = yamltext.read(file, self.problems)
                if placed is not None:
                    found[name] = merge(found.get(name, {}), self._variables(placed))
        return found
