"""The keys of ``hosts:`` as names of hosts: ranges (``web[01:20]``) and ports (``web1:2222``).

What is taken is what Ansible takes as well. Where it would make something odd of a key (a host
whose name is ``web_:22``), ours is an error.
"""

from __future__ import annotations

import re
import string

from daemon.errors import RolecallError

MAX_HOSTS = 10_000  # of one key; nobody means more
MAX_PORT = 65535
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]*[A-Za-z0-9]")  # between the dots of a name with a port
RANGE = re.compile(r"\[([^\[\]]*)\]")
NUMBERS = re.compile(r"([0-9]{0,9}):([0-9]{1,9})(?::([0-9]{1,9}))?")
LETTERS = re.compile(r"([A-Za-z]):([A-Za-z])(?::([0-9]{1,9}))?")
PORT = re.compile(r"((?:[^:\[\]]|\[[^\[\]]*\])+):([0-9]{1,9})")
BRACKETED = re.compile(r"\[([^\[\]]+)\]:([0-9]{1,9})")


class BadKey(RolecallError):
    """A key that names no host."""


def expand(key: str) -> tuple[list[str], int | None]:
    """The names that the key stands for, and the port behind them. Raises BadKey."""
    name, port = _without_port(key)
    names = _names(name)
    for each in names:
        if not (NAME.fullmatch(each) or _is_ipv6(each)):
            hint = "give it a plain name, and its address as ansible_host"
            raise BadKey(f'"{each[:60]}" is not a name of a host', hint=hint)
        if port is not None and ":" not in each and not _may_have_port(each):
            raise BadKey(f'"{key[:60]}": such a name takes no port', hint="set ansible_port")
    return names, port


def is_whole(pattern: str) -> bool:
    """Whether a pattern is one address, so that its colons separate nothing."""
    try:
        expand(pattern)
    except BadKey:
        return False
    return True


def _without_port(key: str) -> tuple[str, int | None]:
    if found := BRACKETED.fullmatch(key):
        name = found[1]
        if not (":" not in name or (_is_ipv6(name) and _takes_port(name))):
            raise BadKey(f'"{key[:60]}" is not an address and a port')
    elif found := PORT.fullmatch(key):
        name = found[1]
        if "[:" in name or (name[0] == "[" and name[-1] == "]"):
            raise BadKey(f'"{key[:60]}": this range takes no port', hint="set ansible_port")
    else:
        return key, None
    port = int(found[2])
    if not 0 < port <= MAX_PORT:
        raise BadKey(f'"{key[:60]}": {port} is no port', hint=f"1 to {MAX_PORT}")
    return name, port


def _may_have_port(name: str) -> bool:
    return all(LABEL.fullmatch(label) for label in name.split("."))


def _takes_port(address: str) -> bool:
    """Whether Ansible sees this IPv6 address behind brackets: it does not know each that is one."""
    groups = [each for each in address.split(":") if each]
    outside = address.startswith("::") or address.endswith("::")
    return "." not in address and len(groups) <= (6 if outside else 8)


def _is_ipv6(name: str) -> bool:
    if ":" not in name or "%" in name:
        return False
    import ipaddress  # noqa: PLC0415  # few inventories need it

    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True


def _names(name: str) -> list[str]:
    """The name with its ranges replaced, the first of them turning slowest."""
    names, rest = [""], name
    while found := RANGE.search(rest):
        head, values, rest = rest[: found.start()], _values(found[1], name), rest[found.end() :]
        if len(names) * len(values) > MAX_HOSTS:
            raise _bad(name, f"stands for more than {MAX_HOSTS} hosts")
        names = [f"{before}{head}{value}" for before in names for value in values]
    return [f"{before}{rest}" for before in names]


def _values(text: str, name: str) -> list[str]:
    """What a range stands for: ``begin:end`` or ``begin:end:step``, of numbers or of letters."""
    found = NUMBERS.fullmatch(text) or LETTERS.fullmatch(text)
    if found is None:
        raise _bad(name, f"[{text}] is not a range of hosts")
    begin, end, step = found[1], found[2], int(found[3] or 1)
    if not step:
        raise _bad(name, f"[{text}] has steps of 0")
    if begin.isalpha():
        letters = string.ascii_letters
        values = list(letters[letters.index(begin) : letters.index(end) + 1 : step])
    else:
        width = len(begin) if begin.startswith("0") and len(begin) > 1 else 0
        if width and width != len(end):
            raise _bad(name, f"begin and end of [{text}] differ in length")
        numbers = range(int(begin or 0), int(end) + 1, step)
        if len(numbers) > MAX_HOSTS:
            raise _bad(name, f"stands for more than {MAX_HOSTS} hosts")
        values = [str(number).zfill(width) for number in numbers]
    if not values:
        raise _bad(name, f"[{text}] ends before it begins")
    return values


def _bad(name: str, what: str) -> BadKey:
    return BadKey(f'"{name[:60]}": {what}', hint="such as web[1:9], web[01:20], db-[a:f], x[0:8:2]")
