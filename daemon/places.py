"""Paths of a config made absolute: on this machine, or on a host whose home is not known yet."""

from __future__ import annotations

import os

from daemon.errors import Problem
from daemon.yamltext import WRONG, Placed

HOME = "~"  # the home of a host that has not been asked yet
HINT = "write where the repository is on that host, such as workspace: ~/src/shop"
WINS = "{}, in its place or in host_vars/, which wins over it (hosts.yml's group vars do not)"


class Places:
    """What ``~`` and relative paths stand for. ``home`` None is this machine's own account."""

    def __init__(self, home: str | None, problems: list[Problem]) -> None:
        self.home = home
        self.problems = problems

    def absolute(self, root: str, path: str, where: str) -> str:
        """The path; a relative one counts from ``root``. ``where`` it is written is for problems.

        On a host whose home is HOME, what lies in it keeps its ``~``.
        """
        path = self._expanded(path, where)
        return os.path.normpath(path if self._whole(path) else os.path.join(root, path))

    def workspace(self, placed: Placed | None, where: str, folder: str) -> str:
        """The workspace that is written: None, where this machine's is not.

        ``where`` is what lacks it; a relative one counts from ``folder``, and cannot stand for
        another machine. What is wrong is added to ``problems``.
        """
        written = None if placed is None or placed.data is WRONG else placed.data
        if self.home is None:
            return self._own(written, placed, folder)
        if written is None:
            if placed is None or placed.data is not WRONG:  # else it is told
                self._problem(placed.where if placed else where, "workspace is not set", HINT)
        elif written.startswith(HOME) or self._whole(written):
            return self.absolute("/", written, placed.where if placed else where)
        else:
            what = f'workspace: "{written[:80]}" is relative, on a host that is not this machine'
            self._problem(placed.where if placed else where, what, WINS.format(HINT))
        return "/"

    def _own(self, written: str | None, placed: Placed | None, folder: str) -> str:
        if written is None or placed is None:
            return git_top(os.getcwd())
        expanded = os.path.expanduser(written)
        if expanded.startswith("~"):
            self._problem(placed.where, f"there is no home folder of {expanded}")
        return os.path.normpath(os.path.join(folder, expanded))

    def _expanded(self, path: str, where: str) -> str:
        if self.home is None:
            return os.path.expanduser(path)
        name, slash, rest = path.partition("/")
        if name == HOME:
            return f"{self.home}{slash}{rest}"
        if name.startswith("~"):
            what = f"where the home folder of {name[1:]} is on that host is not known here"
            self._problem(where, what, "write the whole path; ~ is the home of its own account")
        return path

    def _whole(self, path: str) -> bool:
        home = self.home or "/"
        return os.path.isabs(path) or path == home or path.startswith(f"{home}/")

    def _problem(self, where: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(where, what, hint))


def git_top(folder: str) -> str:
    """The git repository that the folder is in, or the folder itself."""
    at = os.path.abspath(folder)
    while at != os.path.dirname(at):
        if os.path.exists(os.path.join(at, ".git")):
            return at
        at = os.path.dirname(at)
    return os.path.abspath(folder)
