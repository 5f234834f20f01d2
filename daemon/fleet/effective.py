"""The config that install has put on a host: whose it is, and whether it is the inventory's."""

from __future__ import annotations

import os
from collections.abc import Mapping

from daemon.config import Config, from_json, to_json
from daemon.errors import ConfigError
from daemon.fleet import units
from daemon.fleet.connection import Local

OLDER = "its config is older than the inventory"
RENEW = "invoke deploy"
CUT, GO_ON = "the deploy of {} was cut short", "invoke deploy goes on with it"


def path(connection: Local, config: Config) -> str:
    """Where it is."""
    return units.config_file(connection.home, config.unit_prefix)


def deploying(connection: Local, config: Config) -> str:
    """Beside it, what a deploy has found: while it is at work, and after one that was cut short."""
    return path(connection, config).removesuffix("yml") + "deploying"


def text(config: Config) -> str:
    """What install writes there."""
    return (
        f"{units.header(config, 'invoke install').partition(chr(10))[0]}\n"
        "# and written anew by the next one. Edit the inventory instead.\n"
        f"{to_json(config, indent=2)}\n"
    )


def parsed(text: str | None) -> Config | None:
    """The config that an effective config's text holds, as far as this code knows it.

    None where it is none: newer code may have written it, with settings of which we know nothing.
    """
    return _read(text, newer=True)


def is_newer(text: str | None) -> bool:
    """Whether the text has settings that this code does not know: its workers would not start."""
    return parsed(text) is not None and _read(text, newer=False) is None


def _read(text: str | None, *, newer: bool) -> Config | None:
    if text is None:
        return None
    document = "\n".join(each for each in text.splitlines() if not each.startswith("#"))
    try:
        return from_json(document, newer=newer)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def is_older(connection: Local, config: Config) -> bool:
    """Whether there is one, and install would change it."""
    present = connection.read(path(connection, config))
    return present is not None and present != text(config)


def foreign(connection: Local, config: Config) -> ConfigError | None:
    """Why the workers of this prefix are not this workspace's; None where they are."""
    where = path(connection, config)
    present = connection.read(where)
    return None if present is None else problem(config, {where: present})


def problem(config: Config, present: Mapping[str, str]) -> ConfigError | None:
    """The same of any files that install writes: path to text."""
    for where, found in present.items():
        workspace = units.workspace_of(found)
        if workspace == config.workspace:
            continue
        if workspace is None:
            return ConfigError(
                "there is a file of that name that invoke install has not made",
                where=where,
                hint="move it away, or set another unit_prefix",
            )
        if not os.path.isdir(config.workspace):
            return ConfigError(
                f"this host has no {config.workspace}, and works on another workspace: {workspace}",
                where=where,
                hint="is that a slip? Else clone it there, and give it a unit_prefix of its own",
            )
        return ConfigError(
            f'unit_prefix "{config.unit_prefix}" is used by another workspace: {workspace}',
            where=where,
            hint="give this one another unit_prefix in its inventory's host_vars; or remove the "
            "other one's: invoke uninstall --inventory DIR, with an inventory that says "
            f"workspace: {workspace}",
        )
    return None
