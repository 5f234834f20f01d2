"""What a command speaks of: the hosts of an inventory, or the one of them that this machine is."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from daemon.errors import EXIT_USAGE, RolecallError

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.inventory import Host, Inventory


STATE = ".local/state/rolecall"  # in HOME: what a machine keeps that is no host


class UsageError(RolecallError):
    """What was typed cannot be meant."""

    exit_code = EXIT_USAGE


def one_of(what: str, name: str, known: Iterable[str]) -> str:
    """The name, if it is one of those known; else UsageError with what was probably meant."""
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f"known: {', '.join(names[:20])}" if names else ""
    raise UsageError(
        f'unknown {what} "{name}"', hint=f'did you mean "{near[0]}"?' if near else hint
    )


class Fleet(NamedTuple):
    """An inventory and the hosts of it that were asked for."""

    inventory: Inventory
    hosts: list[Host]

    def here(self) -> Host:
        """The one host that is this machine. Raises UsageError where that is left open."""
        local = [each for each in self.hosts if each.connection == "local"]
        if len(local) == 1:
            return local[0]
        if len(self.hosts) == len(self.inventory.every):
            return self.inventory.local_host()
        names = ", ".join(each.name for each in local or self.hosts)
        verb = "is" if len(self.hosts) == 1 else "are"
        hint = "this command looks at the machine it runs on: "
        raise UsageError(
            f"several hosts are this machine: {names}"
            if local
            else f"{names} {verb} not this machine",
            where=self.inventory.folder,
            hint=hint + ("--limit HOST" if local else self._there(self.hosts[0])),
        )

    def _there(self, host: Host) -> str:
        """How a person gets to the queue of a host, a file that may be edited or a database."""
        import shlex  # noqa: PLC0415  # only an error says it

        from daemon.fleet import ssh  # noqa: PLC0415  # as above

        config = self.inventory.config(host)
        there = ssh.typed(host).replace("ssh ", "ssh -t ", 1)
        if config.on_postgres:
            typed = f"psql {shlex.quote(config.queue)}"
            return f"what is there is a database: {there} {shlex.quote(typed)}"
        home, slash, rest = config.queue_file.partition("/")
        path = f"{home}{slash}{shlex.quote(rest)}"
        what = "what is there is a file, which may be edited at any time"
        return f"{what}: {there} {shlex.quote('vi ' + path)}"

    def config(self, workspace: str | None = None) -> Config:
        """This machine's effective config, for another workspace where one is named."""
        home = os.path.expanduser("~")  # of a host that is this machine by its name alone
        return self.inventory.config(self.here(), workspace=workspace, home=home)

    def queue_config(self, workspace: str | None = None) -> Config:
        """The config by which this machine looks at the queue: its own.

        Where it is none of the hosts: that of those which share a queue in a database, with all the
        roles that they run. What is told of a person's changes is kept in HOME then.
        """
        try:
            return self.config(workspace)
        except RolecallError:
            configs = [] if workspace else [*self.inventory.configs(self.hosts).values()]
            if len({config.queue for config in configs}) != 1 or not configs[0].on_postgres:
                raise
        home = os.path.expanduser("~")
        state = os.path.join(home, STATE, configs[0].unit_prefix)
        first = self.inventory.config(self.hosts[0], workspace=state, home=home)
        roles = {name: role for each in (*configs, first) for name, role in each.roles.items()}
        run = tuple(dict.fromkeys(name for each in configs for name in each.run))
        return first._replace(run=run, roles=roles)


def fleet(inventory: str | None = None, limit: str | None = None) -> Fleet:
    """The hosts that ``--inventory`` and ``--limit`` name."""
    from daemon.inventory import Inventory, inventory_dir  # noqa: PLC0415  # yaml, when needed

    loaded = Inventory.load(inventory or inventory_dir())
    return Fleet(loaded, loaded.hosts(limit))


def of_role(
    fleet: Fleet, role: str | None, workspace: str | None = None
) -> tuple[list[Host], dict[str, Config]]:
    """The hosts that a command looks at closely, those with the role; and their configs.

    Another workspace than the inventory's can only be meant on this machine.
    """
    hosts = [fleet.here()] if workspace else fleet.hosts
    if workspace:
        configs = {hosts[0].name: fleet.config(workspace)}
    else:
        configs = fleet.inventory.configs(hosts)
    if role:
        one_of("role", role, dict.fromkeys(each for c in configs.values() for each in c.roles))
    return [each for each in hosts if role in (None, *configs[each.name].roles)], configs
