"""The ssh call to a host: OpenSSH's own program, with the user's own configuration of it.

What ssh_config, known_hosts, the agent and ProxyJump say counts here as anywhere; we only see to it
that nothing is asked (there may be no terminal), that an unknown host is refused, and that a
silence ends. What a failed call means for a person is told in :mod:`daemon.fleet.refusal`.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from typing import TYPE_CHECKING

from daemon.errors import ConfigError

if TYPE_CHECKING:
    from daemon.inventory import Host

OLDEST, NEWEST = 11, 14  # of the python3.N that are looked for by name
NO_PYTHON = "rolecall: no python3"  # what the far shell says where it finds none
NO_PYTHON_STATUS = 127

#: Before the user's own arguments, for ssh takes the first value that it is given: nobody is there
#: to be asked; unknown and changed host keys are refused, whatever inventories copy from others; no
#: call becomes the master that others go through, and end with (one that is there is used).
FIRST = (
    "-T",
    *("-o", "BatchMode=yes"),
    *("-o", "StrictHostKeyChecking=yes"),
    *("-o", "ControlMaster=no"),
)
#: Behind them, so that theirs win: failures are said even where ssh_config silences them; a host's
#: forwards and RemoteCommand of ssh_config are for its owner's sessions, and in the way of ours.
LAST = (
    "LogLevel=INFO",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "RemoteCommand=none",
)
#: A lost peer is noticed by OpenSSH after three of its questions, too, should we be gone.
ALIVE_COUNT = 3

# Every login shell reads the command line first: sh, bash, zsh, csh and fish agree on what stands
# in single quotes without any "'", "!" or backslash. Inside, /bin/sh reads double quotes.
PLAIN = re.compile(r"[A-Za-z0-9_./~+@%:=,-]+")
# Reads exactly as many bytes as stage 0 has, and never one of what follows it, then runs it.
# -I: neither the home folder nor PYTHON* variables may put a module in the place of Python's own.
BOOT = (
    "import os,zlib;r=lambda n:(lambda b:b+r(n-len(b))if b and len(b)<n else b)(os.read(0,n));"
    "exec(zlib.decompress(r({size})))"
)
START = '-I -X utf8 -c "{boot}"'
# What stands in a folder of shims (pyenv's, asdf's) may have no such Python behind it.
FIND = (
    'for p in {names}; do w=$(command -v "$p") || continue; '
    'case $w in */shims/*) "$p" -c "" 2>/dev/null || continue;; esac; exec "$p" {start}; done'
)


def argv(host: Host, command: str, timeout: float) -> list[str]:
    """The argument list of the ssh call that runs ``command`` on the host.

    ``timeout``: seconds to connect in, and the longest silence. Raises ConfigError for an address
    that ssh would take for an option.
    """
    address = _address(host)
    seconds = max(1, math.ceil(timeout))
    options = [
        f"ConnectTimeout={seconds}",
        f"ServerAliveInterval={max(1, seconds // ALIVE_COUNT)}",
        f"ServerAliveCountMax={ALIVE_COUNT}",
        *LAST,
    ]
    line = ["ssh", *FIRST, *host.ssh_args]
    for each in options:
        line += ["-o", each]
    return [*line, *_way(host), "--", address, command]


def typed(host: Host) -> str:
    """The same call as a person would type it to look closer."""
    told = " ".join(host.ssh_args).lower()
    # Typed to compare a host key, it must not accept that one by itself.
    ask = ["-o", "StrictHostKeyChecking=ask"] if "stricthostkeychecking" in told else []
    return shlex.join(["ssh", *ask, *host.ssh_args, *_way(host), host.address])


def remote_command(host: Host, size: int) -> str:
    """The command line that finds a Python on the host and has it run the ``size`` bytes it reads.

    The first of: the inventory's ``ansible_python_interpreter`` alone; else the Python of our own
    minor (its release is the likeliest to fit), newer and older ones down to 3.11, in PATH or in
    ``~/.local/bin``; else any ``python3``, which then says how old it is.
    """
    start = START.format(boot=BOOT.format(size=size))
    find = _one(host, start) if host.python else _any(start)
    return f"exec /bin/sh -c '{find}; echo {NO_PYTHON}; exit {NO_PYTHON_STATUS}'"


def _any(start: str) -> str:
    minors = dict.fromkeys([sys.version_info.minor, *range(NEWEST, OLDEST - 1, -1)])
    names = " ".join(f'python3.{each} "$HOME/.local/bin/python3.{each}"' for each in minors)
    return FIND.format(names=f"{names} python3", start=start)


def _one(host: Host, start: str) -> str:
    if not PLAIN.fullmatch(host.python or ""):
        raise ConfigError(
            f"ansible_python_interpreter: {host.python}: a shell would change that path",
            where=host.origins.get("ansible_python_interpreter", host.name),
            hint="a path of letters, digits and ./_-+ only: a symlink can give it one",
        )
    # Unquoted, for ~ is the host's home; nothing else in it means anything to a shell.
    return f"command -v {host.python} >/dev/null 2>&1 && exec {host.python} {start}"


def _address(host: Host) -> str:
    if host.address.startswith("-") or not host.address:
        raise ConfigError(
            f'"{host.address}" is no address of a host',
            where=host.origins.get("ansible_host", host.name),
            hint="ansible_host: a name or an IP address",
        )
    return host.address


def _way(host: Host) -> list[str]:
    words = []
    if host.port is not None:
        words += ["-p", str(host.port)]
    if host.user is not None:
        words += ["-l", host.user]
    if host.key_file is not None:
        words += ["-i", host.key_file, "-o", "IdentitiesOnly=yes"]
    return words
