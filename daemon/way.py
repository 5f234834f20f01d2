"""The way to a host: Ansible's connection variables of it, as OpenSSH's own client takes them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from daemon import yamltext
from daemon.errors import Problem
from daemon.yamltext import Placed

#: Of several names of one thing the last one that is set counts, as in Ansible's ssh plugin.
ADDRESS = ("ansible_host", "ansible_ssh_host")
PORT = ("ansible_port", "ansible_ssh_port")
USER = ("ansible_user", "ansible_ssh_user")
KEY = ("ansible_private_key_file", "ansible_ssh_private_key_file")
PYTHON = ("ansible_python_interpreter",)
#: Each adds to ssh's arguments, in this order.
ARGS = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args")
CONNECTIONS = {
    f"{prefix}{name}": name for prefix in ("", "ansible.builtin.") for name in ("local", "ssh")
}
AUTO = re.compile("auto(_legacy)?(_silent)?")  # Ansible looks for a Python itself, and so do we

_KEYS = "log in with a key: ssh-copy-id puts yours on the host"
_AGENT = "add the key to your ssh-agent: ssh-add FILE"
_CONFIG = "say it in ~/.ssh/config, which counts here too"
#: What leads Ansible to another connection than we would make, and what to do instead.
REFUSED = {
    "ansible_password": _KEYS,
    "ansible_ssh_pass": _KEYS,
    "ansible_ssh_password": _KEYS,
    "ansible_private_key": _AGENT,
    "ansible_ssh_private_key": _AGENT,
    "ansible_private_key_passphrase": _AGENT,
    "ansible_ssh_private_key_passphrase": _AGENT,
    "ansible_ssh_pkcs11_provider": _CONFIG,
    "ansible_ssh_executable": "the ssh of PATH is run: remove it",
}
CHECKING = ("ansible_host_key_checking", "ansible_ssh_host_key_checking")
TRUE = {"1", "on", "t", "true", "y", "yes"}  # what Ansible takes for true, in small letters


class Way(NamedTuple):
    """How a host is reached. None is left to ssh and its own configuration.

    ``connection`` is "local" or "ssh"; ``ssh_args`` are arguments of ssh, as they are.
    """

    connection: str
    address: str
    port: int | None = None
    user: str | None = None
    key_file: str | None = None
    ssh_args: tuple[str, ...] = ()
    python: str | None = None

    @classmethod
    def of(cls, name: str, variables: Mapping[str, Any]) -> Way:
        """What the variables of a host say. They are sound where ``problems`` found none."""
        key, python = _last(variables, KEY), _last(variables, PYTHON)
        return cls(
            connection=connection(name, variables),
            address=_last(variables, ADDRESS) or name,
            port=_last(variables, PORT),
            user=_last(variables, USER) or None,
            key_file=os.path.expanduser(key) if key else None,
            ssh_args=tuple(each for arg in ARGS for each in shlex.split(variables.get(arg) or "")),
            python=None if not python or AUTO.fullmatch(python) else python,
        )


def connection(name: str, variables: Mapping[str, Any]) -> str:
    """How the host of that name is reached: "local" or "ssh"."""
    default = "local" if name == "localhost" else "ssh"
    written = str(variables.get("ansible_connection") or default)
    return CONNECTIONS.get(written, written)


def _last(variables: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    found = [variables[name] for name in names if variables.get(name) is not None]
    return found[-1] if found else None


def problems(variables: Mapping[str, Placed]) -> Iterator[Problem]:
    """What in them asks for a connection that is not made; each value alone was checked before."""
    for name, placed in variables.items():
        if placed.data is None or placed.data is yamltext.WRONG:
            continue
        what = f"{name} is not supported"
        if name in REFUSED:
            yield Problem(placed.where, what, REFUSED[name])
        elif name == "ansible_become" and _true(placed):
            hint = "workers run as the account that logs in: set ansible_user to theirs"
            yield Problem(placed.where, f"{name}: true is not supported", hint)
        elif name in CHECKING and not _true(placed):
            hint = "unknown host keys are refused: add it to ~/.ssh/known_hosts after a look at it"
            yield Problem(placed.where, f"{name}: false is not supported", hint)
        elif name in ARGS:
            try:
                shlex.split(placed.data)
            except ValueError as error:
                yield Problem(placed.where, f"{name}: {error}", "quote as in a shell")
        elif name in (*ADDRESS, *USER) and re.search(
            r"^-|[\s@]" if name in ADDRESS else r"^-|\s", placed.data
        ):
            yield Problem(placed.where, f'{name}: "{placed.data[:60]}" is not one that ssh takes')
        elif name in PYTHON and len(placed.data.split()) != 1:
            yield Problem(placed.where, f"{name} names one program, without arguments")


def _true(placed: Placed) -> bool:
    return str(placed.data).lower() in TRUE
