"""What ``--limit`` names: Ansible's patterns of hosts and groups."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable

from daemon import hostkeys
from daemon.checking import suggest
from daemon.errors import EXIT_USAGE, ConfigError, Problem

WHERE = "--limit"
LOCALHOST = ("127.0.0.1", "localhost", "::1")  # each is the host of that kind that there is
SUBSCRIPT = re.compile(r"(.+)\[(?:(-?[0-9]{1,9})|([0-9]{1,9})[:-]([0-9]{0,9}))\]")
PARTS = re.compile(r"(?:[^\s:\[\]]|\[[^\]]*\])+")


class UnknownHost(ConfigError):
    """A limit that names no host and no group."""

    exit_code = EXIT_USAGE


class Limit:
    """The hosts of an inventory, in order of mention, and of each group, as patterns see them."""

    def __init__(
        self, hosts: Collection[str], groups: Iterable[str], members: Callable[[str], list[str]]
    ) -> None:
        self.hosts = hosts
        self.groups = list(groups)
        self.members = members

    def choose(self, text: str) -> set[str]:
        """The names of the hosts that the limit leaves. Raises UnknownHost."""
        patterns = split(text)
        plain = [each for each in patterns if each[0] not in "!&"]
        ordered = plain or ["all"]
        ordered += [each for each in patterns if each[0] == "&"]
        ordered += [each for each in patterns if each[0] == "!"]
        chosen, problems = set[str](), list[Problem]()
        for pattern in ordered:
            try:
                found = set(self._matched(pattern))
            except UnknownHost as error:
                problems += error.problems
                continue
            if pattern[0] == "!":
                chosen -= found
            elif pattern[0] == "&":
                chosen &= found
            else:
                chosen |= found
        if not (problems or chosen):
            problems.append(Problem(WHERE, f'"{text[:80]}" leaves no host'))
        if problems:
            raise UnknownHost.of(problems)
        return chosen

    def _matched(self, pattern: str) -> list[str]:
        if pattern in self.hosts:
            return [pattern]
        pattern = pattern[1:] if pattern[0] in "!&" else pattern
        if pattern.startswith("@"):
            hint = f'name them: --limit "$(paste -sd, {pattern[1:60] or "FILE"})"'
            raise _unknown("files of hosts (@) are not read", hint)
        expression, subscript = pattern, None
        if not pattern.startswith("~") and (subscript := SUBSCRIPT.fullmatch(pattern)):
            expression = subscript[1]
        found = self._named(expression)
        return found if subscript is None else self._part(found, subscript, pattern)

    def _named(self, expression: str) -> list[str]:
        """Hosts of the groups that it matches, then the hosts that it matches themselves."""
        matches = _matcher(expression)
        groups = [name for name in self.groups if matches(name)]
        found = [host for name in groups for host in self.members(name)]
        if not groups or expression.startswith("~") or re.search(r"[.?*\[]", expression):
            hosts = [host for host in self.hosts if matches(host)]
            found += hosts
            if not found and expression in LOCALHOST:
                found = [host for host in self.hosts if host in LOCALHOST][:1]
            if not (groups or found):
                known = dict.fromkeys((*self.hosts, *self.groups))
                what = f'no host or group "{expression[:80]}"'
                raise _unknown(what, suggest(expression.lstrip("~"), known))
        return found

    def _part(self, found: list[str], subscript: re.Match[str], pattern: str) -> list[str]:
        """One of them, or those from one to another, both included."""
        _, one, first, last = subscript.groups()
        if not found:
            return found
        if one is None and last != "0":
            return found[int(first) : int(last) + 1 if last else None]
        index = int(first if one is None else one)
        if not -len(found) <= index < len(found):
            hint = (
                f"there are {len(found)}, counted from 0" if len(found) > 1 else "there is 1: [0]"
            )
            raise _unknown(f'no host at "{pattern[:80]}"', hint)
        return [found[index]]


def split(text: str) -> list[str]:
    """The patterns of a limit: between commas; between colons, where it has no comma."""
    if "," in text:
        parts = text.split(",")
    else:
        parts = [text] if hostkeys.is_whole(text) else PARTS.findall(text)
    found = [part.strip() for part in parts if part.strip()]
    for pattern in found:
        if pattern in {"!", "&", "~"}:
            raise _unknown(f'"{pattern}" names nothing', "put a host or a group behind it")
    if not found:
        raise _unknown(f'no host or group "{text[:80]}"', "such as --limit web1,db")
    return found


def _matcher(expression: str) -> Callable[[str], object]:
    if not expression.startswith("~"):
        return re.compile(fnmatch.translate(expression)).match
    try:
        return re.compile(expression[1:]).match
    except re.error as error:
        raise _unknown(f'"{expression[:80]}" is not a regular expression: {error}', "") from error


def _unknown(what: str, hint: str) -> UnknownHost:
    return UnknownHost.of([Problem(WHERE, what, hint)])
