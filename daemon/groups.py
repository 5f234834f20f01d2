"""The groups of an inventory: who is in whom, how deep each lies, and in which order they count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from daemon.errors import Problem
from daemon.yamltext import Placed

ALL, UNGROUPED = "all", "ungrouped"
Variables = dict[str, Placed]


class Group:
    """A group: names of hosts and of child groups, in order, each to the place of its key."""

    def __init__(self, name: str, key: str) -> None:
        self.name = name
        self.key = key
        self.hosts: dict[str, str] = {}
        self.children: dict[str, str] = {}
        self.vars: Variables = {}
        self.priority = 1
        self.depth = 0


class Groups:
    """All groups, in their order of mention; ``all`` and ``ungrouped`` are always there."""

    def __init__(self) -> None:
        self.by_name = {name: Group(name, "") for name in (ALL, UNGROUPED)}
        self.by_name[ALL].children[UNGROUPED] = ""
        self._parents: dict[str, list[str]] = {}
        self._of_host: dict[str, list[str]] = {}  # those that name it themselves

    def add(self, name: str, key: str) -> Group:
        """The group of that name, made where there is none."""
        return self.by_name.setdefault(name, Group(name, key))

    def settle(self, hosts: Iterable[str]) -> Iterator[Problem]:
        """Put all groups below ``all``, and each host that is in none into ``ungrouped``.

        What is wrong with the tree comes back; then the rest of this class cannot be used.
        """
        below = {name for group in self.by_name.values() for name in group.children}
        everything, ungrouped = self.by_name[ALL], self.by_name[UNGROUPED]
        for name, group in self.by_name.items():
            if name not in {ALL, *below}:
                everything.children[name] = group.key
            if name != ALL and UNGROUPED in group.children:
                yield Problem(group.children[UNGROUPED], _RESERVED.format(UNGROUPED))
        for key in ungrouped.children.values():
            yield Problem(key, _RESERVED.format(UNGROUPED))
        yield from self._depths()
        for name, group in self.by_name.items():
            for child in group.children:
                self._parents.setdefault(child, []).append(name)
            for host in group.hosts if name not in {ALL, UNGROUPED} else ():
                self._of_host.setdefault(host, []).append(name)
        places = {**everything.hosts, **ungrouped.hosts}
        loose = [host for host in (*ungrouped.hosts, *hosts) if host not in self._of_host]
        ungrouped.hosts = {host: places[host] for host in loose}

    def _depths(self) -> Iterator[Problem]:
        """How deep each group lies: the longest way down to it. A loop is a problem."""
        waiting = dict.fromkeys(self.by_name, 0)  # how many parents of each are not done yet
        for group in self.by_name.values():
            for child in group.children:
                waiting[child] += 1
        ready = [name for name, count in waiting.items() if not count]
        while ready:
            group = self.by_name[ready.pop()]
            del waiting[group.name]
            for child in group.children:
                waiting[child] -= 1
                self.by_name[child].depth = max(self.by_name[child].depth, group.depth + 1)
                if not waiting[child]:
                    ready.append(child)
        if waiting:
            name = self._in_a_loop(set(waiting))
            key = next(
                group.children[name]
                for group in self.by_name.values()
                if group.name in waiting and name in group.children
            )
            yield Problem(key, f"group {name} is a child of itself")

    def _in_a_loop(self, waiting: set[str]) -> str:
        """One of the groups that are part of a loop, and do not only hang from one."""
        seen: list[str] = []
        name = next(name for name in self.by_name if name in waiting)
        while name not in seen:
            seen.append(name)
            name = next(
                parent.name
                for parent in self.by_name.values()
                if parent.name in waiting and name in parent.children
            )
        return name

    def of_host(self, host: str) -> tuple[str, ...]:
        """The groups that the host is in, the outermost first: in the order in which they count."""
        found = {*self._of_host.get(host, (UNGROUPED,))}
        return self._sorted(found | self._above(found) | {ALL})

    def _above(self, names: set[str]) -> set[str]:
        found, more = set[str](), set(names)
        while more:
            more = {parent for name in more for parent in self._parents.get(name, ())} - found
            found |= more
        return found

    def _sorted(self, names: Iterable[str]) -> tuple[str, ...]:
        groups = [self.by_name[name] for name in names]
        groups.sort(key=lambda group: (group.depth, group.priority, group.name))
        return tuple(group.name for group in groups)

    def members(self, name: str) -> list[str]:
        """The hosts of the group and of all below it: its own first, then level by level."""
        found: dict[str, None] = {}
        level, seen = [name], {name}
        while level:
            for each in level:
                found.update(dict.fromkeys(self.by_name[each].hosts))
            below = dict.fromkeys(child for each in level for child in self.by_name[each].children)
            level = [child for child in below if child not in seen]
            seen.update(level)
        return list(found)


_RESERVED = "group {} holds the hosts that no other group has: it has no parent and no child groups"
