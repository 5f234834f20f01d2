"""The inventory: hosts and groups as Ansible's YAML inventories write them, and their variables.

``hosts.yml`` (or hosts.yaml), ``group_vars/`` and ``host_vars/`` of one folder, with Ansible's
precedence. Only ``roles`` merges key by key; any other variable is the last layer's as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from daemon import reading, way, yamltext
from daemon.checking import raise_all
from daemon.config import Config, to_json
from daemon.errors import ConfigError, Problem
from daemon.groups import Groups, Variables
from daemon.hostsfolder import HostsFolder
from daemon.limit import Limit
from daemon.places import HOME
from daemon.way import Way
from daemon.yamltext import Placed

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Host(NamedTuple):
    """A host: its merged variables, and ``file:line`` of each (``roles.builder.slots``)."""

    name: str
    vars: dict[str, Any]
    origins: dict[str, str]
    groups: tuple[str, ...] = ()
    placed: Mapping[str, Placed] = MappingProxyType({})
    where: str = ""  # ``file:line`` of its first mention

    @classmethod
    def of(cls, name: str, placed: Variables, groups: tuple[str, ...], where: str) -> Host:
        """A host out of its merged variables."""
        values = {key: yamltext.plain(each) for key, each in placed.items()}
        return cls(name, values, dict(_origins(placed)), groups, placed, where)

    @property
    def way(self) -> Way:
        """How it is reached."""
        return Way.of(self.name, self.vars)

    @property
    def connection(self) -> str:
        """How it is reached: "local" or "ssh"."""
        return way.connection(self.name, self.vars)

    @property
    def address(self) -> str:
        """What ssh connects to: ansible_host, or its name."""
        return self.way.address

    @property
    def port(self) -> int | None:
        """The port of its SSH server; None leaves that to ssh."""
        return self.way.port

    @property
    def user(self) -> str | None:
        """The account to log in as; None leaves that to ssh."""
        return self.way.user

    @property
    def key_file(self) -> str | None:
        """The private key to log in with, its ``~`` replaced; None leaves that to ssh."""
        return self.way.key_file

    @property
    def ssh_args(self) -> list[str]:
        """Further arguments of ssh, such as those that name a jump host."""
        return list(self.way.ssh_args)

    @property
    def python(self) -> str | None:
        """The Python of the host; None where it is to be looked for."""
        return self.way.python


def inventory_dir() -> str:
    """The inventory that counts where none is named: ROLECALL_INVENTORY, or the checkout's own."""
    named = os.environ.get("ROLECALL_INVENTORY")
    return os.path.abspath(os.path.expanduser(named)) if named else f"{CHECKOUT}/inventory"


def local_config(*, workspace: str | None = None, queue: str | None = None) -> Config:
    """What the inventory says of the host that we are on."""
    inventory = Inventory.load(inventory_dir())
    home = os.path.expanduser("~")  # of a host that is this machine by its name alone
    return inventory.config(inventory.local_host(), workspace=workspace, queue=queue, home=home)


class Inventory:
    """An inventory that was read whole. ``load`` makes one."""

    def __init__(self, folder: str, groups: Groups, hosts: list[Host]) -> None:
        self.folder = folder
        self.groups = groups
        self.every = hosts

    @classmethod
    def load(cls, folder: str) -> Inventory:
        """Reads the folder. Raises ConfigError with every problem of its files."""
        folder = os.path.abspath(os.path.expanduser(folder))
        read = HostsFolder(folder)
        read.read()
        hosts = []
        for name, each in read.hosts.items():
            groups = read.groups.of_host(name)
            hosts.append(Host.of(name, read.variables(name, groups), groups, each.key))
            read.problems += way.problems(hosts[-1].placed)
        inventory = cls(folder, read.groups, hosts)
        if read.problems:  # say at once what more is wrong with the hosts' configs
            for host in hosts:
                with contextlib.suppress(ConfigError):
                    inventory.config(host, problems=read.problems)
        raise_all(read.problems)
        return inventory

    def hosts(self, limit: str | None = None) -> list[Host]:
        """All hosts, or those that ``limit`` leaves (Ansible's patterns), in order of mention.

        Raises UnknownHost, whose exit status is that of a usage error.
        """
        if limit is None:
            return list(self.every)
        names = {host.name: None for host in self.every}
        chosen = Limit(names, self.groups.by_name, self.groups.members).choose(limit)
        return [host for host in self.every if host.name in chosen]

    def config(
        self,
        host: Host,
        *,
        workspace: str | None = None,
        queue: str | None = None,
        home: str | None = None,
        problems: list[Problem] | None = None,
    ) -> Config:
        """What the host runs. Raises ConfigError with every problem of it.

        ``home`` is the home folder of the account on a host that is reached by ssh; where it is not
        given, paths keep their ``~``. ``problems`` are those found so far; what is found here is
        added to them.
        """
        placed = Placed(host.placed, host.where)
        own = {key: each for key, each in host.placed.items() if not key.startswith("ansible_")}
        base = os.path.dirname(self.folder)
        return reading.build(
            placed._replace(data=own),
            base,
            [] if problems is None else problems,
            workspace=workspace,
            queue=queue,
            home=None if host.connection == "local" else home or HOME,
        )

    def configs(self, hosts: Sequence[Host] | None = None) -> dict[str, Config]:
        """The config of each host, or of these. Raises ConfigError with the problems of all."""
        found, problems = {}, list[Problem]()
        for host in self.every if hosts is None else hosts:
            try:
                found[host.name] = self.config(host)
            except ConfigError as error:
                problems += error.problems
        raise_all(problems)
        return found

    def local_host(self) -> Host:
        """The host that we are on: its connection is local, or it is named as this machine."""
        here = os.uname().nodename
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

    def variables(self, hosts: Iterable[Host]) -> dict[str, dict[str, Any]]:
        """Each host's name to its merged variables, ready for JSON."""
        return {host.name: host.vars for host in hosts}

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
        for key, value in host.vars.items():
            if key.startswith("ansible_"):
                yield key, _said(value), host.origins.get(key, "")
        for key, value in leaves(json.loads(to_json(self.config(host)))):
            origin = host.origins.get(key)
            if origin or value not in (None, []):
                yield key, _said(value), origin or "default"


def _said(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return (
        value
        if isinstance(value, str) and value.isprintable()
        else json.dumps(int(value) if whole else value, ensure_ascii=True)
    )


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
