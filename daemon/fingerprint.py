"""What of a repository's own git folder makes git run code: seen before and after an attempt.

An agent may write there (it is the workspace's), and what it writes would be run by the next git
that a person or another role types: a hook, a filter, a merge driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from typing import NamedTuple

from daemon.git import Git
from daemon.repository import listed, names

# Settings that can run no code and that agents and git itself write all the time. A branch's
# mergeOptions are none of them: they choose a merge's strategy.
HARMLESS = re.compile(r"user\.|lfs\.repositoryformatversion$|branch\.(?!.*\.mergeoptions$)")
MOST = 1 << 20  # bytes of a hook, or of info/attributes, that are read

Fingerprint = dict[str, str]


def take(git: Git, common: str, *folders: str) -> Fingerprint:
    """What stands there now: a digest by what a person calls it.

    ``common``: the git folder that worktrees share; ``folders``: those of single worktrees.
    """
    found: Fingerprint = {}
    configs = [os.path.join(common, "config")]
    configs += (os.path.join(folder, "config.worktree") for folder in (common, *folders))
    for path in configs:
        if os.path.isfile(path):
            _settings(git, path, found)
    for name in ("attributes", "grafts"):
        _file(os.path.join(common, "info", name), f"info/{name}", found)
    hooks = os.path.join(common, "hooks")
    if os.path.islink(hooks):
        found["hooks"] = os.readlink(hooks)
    try:
        inside = sorted(os.listdir(hooks))
    except OSError:
        inside = []
    for name in inside:
        if not name.endswith(".sample"):
            _file(os.path.join(hooks, name), f"hooks/{name}", found)
    return found


def changed(before: Fingerprint, after: Fingerprint) -> str:
    """What differs, in words; "" for nothing."""
    return listed(sorted(_differing(before, after)))


def _differing(before: Fingerprint, after: Fingerprint) -> list[str]:
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


class Noted(NamedTuple):
    """What attempts have changed of it, for all tasks of the workspace: its git runs it for all.

    ``now``: the digest by name, None for what was removed; ``by``: the tasks whose attempts it was;
    ``seen``: those whose merge was refused for it, so that a person has sent them who come again.
    """

    now: dict[str, str | None]
    by: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()

    def still(self, found: Fingerprint) -> list[str]:
        """What of it is there as an attempt left it."""
        return sorted(key for key, digest in self.now.items() if found.get(key) == digest)

    def more(self, task_id: str, before: Fingerprint, after: Fingerprint) -> Noted:
        """With what another attempt has changed; nobody has seen that."""
        now = {key: after.get(key) for key in _differing(before, after)}
        return Noted({**self.now, **now}, tuple(dict.fromkeys((*self.by, task_id))))


def noted(path: str) -> Noted:
    """What is noted in that file; nothing where it is not there."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return Noted(dict(found["now"]), tuple(found["by"]), tuple(found["seen"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Noted({})


def note(path: str, what: Noted) -> None:
    """Write it there, whole or not at all. Raises OSError."""
    aside = f"{path}.new"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(what._asdict(), file)
    os.replace(aside, path)


def _settings(git: Git, path: str, found: Fingerprint) -> None:
    said = git.run(os.path.dirname(path), "config", "--file", path, "--includes", "--list", "-z")
    if said.status:
        found[f"{os.path.basename(path)} (unreadable)"] = said.last
        return
    values: dict[str, list[str]] = {}
    for each in names(said.out):
        key, _, value = each.partition("\n")
        if not HARMLESS.match(key):
            values.setdefault(key, []).append(value)
    for key, several in values.items():
        data = "\0".join(several).encode(errors="replace")
        found[f"{_shown(key)} in {os.path.basename(path)}"] = _digest(data)


def _file(path: str, name: str, found: Fingerprint) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    link = os.readlink(path) if stat.S_ISLNK(mode) else ""
    data = b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                data = file.read(MOST)
    except OSError:
        pass
    found[_shown(name)] = _digest(f"{mode} {link}\0".encode(errors="replace") + data)


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
