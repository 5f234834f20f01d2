"""The files of group_vars/ and host_vars/ that Ansible reads for a name."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from daemon import yamltext
from daemon.checking import suggest
from daemon.errors import Problem

SUFFIXES = ("", ".yml", ".yaml", ".json")  # in this order; the first that is there counts
IGNORED = (  # Ansible's INVENTORY_IGNORE_EXTS
    *(".pyc", ".pyo", ".swp", ".bak", "~", ".rpm", ".md", ".txt", ".rst", ".orig", ".cfg"),
    ".retry",
)
MAX_DEPTH = 32


def find(
    folder: str, names: Collection[str], problems: list[Problem]
) -> Iterator[tuple[str, list[str]]]:
    """Each of the names for which there is something in the folder, and its files in order.

    What is there for none of them, and what Ansible would pass over in silence, is a problem.
    """
    if not os.path.isdir(folder):
        if os.path.lexists(folder):
            problems.append(Problem(yamltext.shown(folder), "is not a folder"))
        return
    entries = {
        entry
        for entry in os.listdir(folder)
        if not entry.startswith(".") and not entry.endswith(IGNORED)
    }
    strange = set(entries)
    for name in names:
        found = [f"{name}{suffix}" for suffix in SUFFIXES if f"{name}{suffix}" in entries]
        strange.difference_update(found)
        if found:
            path = os.path.join(folder, found[0])
            yield name, [*_files(path, problems)] if os.path.isdir(path) else [path]
        for more in found[1:]:
            what = f"is not read, for {found[0]} is there as well"
            hint = f"make them one: move it into {os.path.basename(folder)}/{name}/"
            problems.append(Problem(yamltext.shown(os.path.join(folder, more)), what, hint))
    what = os.path.basename(folder).removesuffix("_vars")
    for entry in sorted(strange):
        name, suffix = os.path.splitext(entry)
        name = name if suffix in SUFFIXES else entry
        where = yamltext.shown(os.path.join(folder, entry))
        problems.append(Problem(where, f'no {what} "{name}"', suggest(name, names)))


def entry(folder: str, name: str) -> str:
    """What Ansible reads for the name, or where to write it while there is nothing."""
    for suffix in SUFFIXES:
        if os.path.exists(path := os.path.join(folder, f"{name}{suffix}")):
            return path
    return os.path.join(folder, f"{name}.yml")


def _files(folder: str, problems: list[Problem], depth: int = 0) -> Iterator[str]:
    """Those of a folder: by name, and of folders in it, where these stand among them."""
    if depth > MAX_DEPTH:
        problems.append(Problem(yamltext.shown(folder), "is nested too deep"))
        return
    for name in sorted(os.listdir(folder)):
        path, suffix = os.path.join(folder, name), os.path.splitext(name)[1]
        if name.startswith(".") or name.endswith("~") or suffix not in SUFFIXES:
            continue
        if not os.path.isdir(path):
            yield path
        elif not suffix:
            yield from _files(path, problems, depth + 1)
