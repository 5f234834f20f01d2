"""``invoke init``: give a repository its queue, its prompts and its inventory entry."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from typing import Any, NamedTuple

from daemon import varsfiles, worktree
from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet import here, mergedriver
from daemon.model import format_time
from daemon.prompt import TEMPLATES, default_path
from daemon.queue.opening import how_to_make

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SPECIAL = re.compile(r"([\\*?\[\]!# ])")  # to a pattern of .git/info/exclude
QUOTED = re.compile(r'[\x00-\x20"\\]')  # what a pattern of .git/info/attributes cannot hold bare
PLAIN_SCALAR = re.compile(r"[A-Za-z0-9/_~.][A-Za-z0-9/_~.+@-]*")


class Step(NamedTuple):
    """One thing that init looked at: what it did, and to which file."""

    did: str  # made, changed, kept, none; commit: what is left to a person
    path: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.did:<8} {self.path}" + f" ({self.note})" * bool(self.note)


def init(
    workspace: str | None,
    inventory: str | None = None,
    limit: str | None = None,
    *,
    merge_driver: bool = False,
) -> list[Step]:
    """Do all of it; what stands there already is kept. Returns a step for each thing.

    A merge driver is only offered, unless it is asked for: it is a program that git then runs.
    """
    fleet = here.fleet(inventory, limit)  # a broken inventory is said before anything is made
    folder, host = fleet.inventory.folder, fleet.here()
    if workspace is None and "workspace" not in host.vars:
        raise here.UsageError("which repository?", hint="invoke init --workspace DIR")
    steps = []
    if workspace is not None:
        top = repository(workspace)
        entry = varsfiles.entry(os.path.join(folder, "host_vars"), host.name)
        if os.path.isdir(entry):
            hint = f"write workspace: {top} into a file there, then type invoke init"
            raise RolecallError("is a folder of variables", where=entry, hint=hint)
        steps.append(set_workspace(entry, top))
    config = here.fleet(folder, limit).config()
    if workspace is None:
        if os.path.realpath(config.workspace) == os.path.realpath(CHECKOUT):
            raise here.UsageError(
                "the inventory names no repository yet, but Rolecall's own checkout",
                hint="invoke init --workspace DIR",
            )
        repository(config.workspace)
    elif os.path.realpath(config.workspace) != os.path.realpath(top):
        raise RolecallError(f"the inventory still says workspace: {config.workspace}", where=folder)
    steps.append(make_queue(config))
    steps += make_prompts(config)
    steps.append(exclude(config))
    steps += set_merge_driver(config) if merge_driver else offer_merge_driver(config)
    steps += offer_commit(config)
    return steps


def repository(folder: str) -> str:
    """The top of the git repository that the folder is. Raises RolecallError with what to type."""
    folder = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(folder):
        raise RolecallError(
            "there is no such folder", where=folder, hint=f"git init {_shell(folder)}"
        )
    try:
        top = worktree.git(folder, "rev-parse", "--show-toplevel").rstrip("\n")
    except worktree.GitError as error:
        raise RolecallError(
            f"it is not a git repository ({error.problems[0].what})",
            where=folder,
            hint=f"git init {_shell(folder)}",
        ) from error
    if os.path.realpath(folder) != os.path.realpath(top):
        raise RolecallError(
            f"it is a folder inside the git repository {top}",
            where=folder,
            hint=f"invoke init --workspace {_shell(top)}",
        )
    return folder


def _shell(path: str) -> str:
    import shlex  # noqa: PLC0415  # only errors need it

    return shlex.quote(path)


def set_workspace(path: str, workspace: str) -> Step:
    """Write ``workspace:`` into a host's variables; every other byte of the file stays."""
    import yaml  # noqa: PLC0415  # expensive

    if not workspace.isprintable():
        raise RolecallError("its name holds control characters", where=workspace)
    scalar = (
        workspace
        if PLAIN_SCALAR.fullmatch(workspace)
        else json.dumps(workspace, ensure_ascii=False)
    )
    line = f"workspace: {scalar}\n"
    text = ""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        raise RolecallError(f"it is not YAML: {error.problem}", where=where) from error
    found = None
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        found = next((value for key, value in node.value if key.value == "workspace"), None)
    elif node is not None:
        raise RolecallError(
            "workspace cannot be added to what stands there",
            where=f"{path}:{node.start_mark.line + 1}",
            hint=f"write {line.strip()} there",
        )
    if found is not None:
        old = str(found.value)
        inventory = os.path.dirname(os.path.dirname(path))  # a relative one counts from beside it
        there = os.path.join(os.path.dirname(inventory), os.path.expanduser(old))
        if old and os.path.realpath(there) == os.path.realpath(workspace):
            return Step("kept", path, f"workspace: {old}")
        if old:
            raise _other_workspace(path, old, workspace)
        start, end = found.start_mark.index, found.end_mark.index
        gap = "" if text[start - 1 : start].isspace() else " "
        text = text[:start] + gap + scalar + text[end:]
    elif node is None:
        text = text + "\n" * bool(text and not text.endswith("\n")) + line
    else:
        at = node.start_mark.index
        text = text[:at] + line + text[at:]
    if (yaml.safe_load(text) or {}).get("workspace") != workspace:
        raise RolecallError(
            "workspace cannot be set", where=path, hint=f"write {line.strip()} there"
        )
    did = "changed" if os.path.exists(path) else "made"
    _replace(path, text)
    return Step(did, path, f"workspace: {workspace}")


def _other_workspace(path: str, old: str, new: str) -> RolecallError:
    """Two repositories are two inventories: what is installed for the first one would stay."""
    inventory = os.path.dirname(os.path.dirname(path))
    name = "".join(each if each.isalnum() else "-" for each in os.path.basename(new).lower())
    copy, entry = f"{inventory}-{name}", os.path.join("host_vars", os.path.basename(path))
    return RolecallError(
        f"this inventory is of another workspace: {old}",
        where=path,
        hint="a second repository has an inventory and a unit_prefix of its own:\n"
        f"  cp -r {_shell(inventory)} {_shell(copy)}\n"
        f"  echo 'unit_prefix: {name}' > {_shell(os.path.join(copy, entry))}\n"
        f"  invoke init --inventory {_shell(copy)} --workspace {_shell(new)}\n"
        f"  export ROLECALL_INVENTORY={_shell(copy)}    # for the commands that follow\n"
        "To move this inventory to the other one: invoke uninstall, then edit that line.",
    )


def _replace(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    path = os.path.realpath(path)
    aside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def _make(path: str, text: str) -> bool:
    """Put a new file there, whole or not at all; False where something stands there already."""
    if os.path.lexists(path):
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(aside, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # unlike a rename it never takes another's place
        except FileExistsError:
            return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
    return True


def make_queue(config: Config) -> Step:
    """An empty queue, where there is none; a database is made apart, once for all hosts."""
    if config.on_postgres:
        return Step("none", config.queue, f"a database: {how_to_make(config)}")
    document: dict[str, Any] = {
        "tasks": [],
        "wip_limits": {name: role.wip_limit for name, role in config.roles.items()},
        "metadata": {"created_at": format_time(time.time())},
    }
    made = _make(config.queue_file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return Step("made" if made else "kept", config.queue_file)


def make_prompts(config: Config) -> list[Step]:
    """A default prompt for each role that has none."""
    steps = []
    for name, role in config.roles.items():
        path = role.prompt or default_path(config.paths.prompts, name)
        try:
            with open(os.path.join(TEMPLATES, f"{name}.md.j2"), encoding="utf-8") as file:
                text = file.read()
        except FileNotFoundError:
            if not os.path.lexists(path):
                steps.append(
                    Step("none", path, f"a general prompt serves {name} until you write one")
                )
                continue
            text = ""
        steps.append(Step("made" if _make(path, text) else "kept", path))
    return steps


def our_patterns(config: Config) -> list[str]:
    """What git is to leave alone: our paths below the workspace that are nobody's work."""
    paths = config.paths
    ours = (paths.leases, paths.locks, paths.runs, paths.logs, paths.pids, paths.worktrees)
    relative = [os.path.relpath(path, config.workspace) for path in ours]
    return [
        f"/{SPECIAL.sub(_escaped, path)}/"
        for path in relative
        if path != "." and not path.startswith("..")
    ]


def _escaped(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def exclude(config: Config) -> Step:
    """Add our paths to the repository's .git/info/exclude."""
    return _tell_git(config, "exclude", our_patterns(config))


def not_excluded(config: Config) -> tuple[str, list[str]]:
    """The path of the repository's .git/info/exclude, and which of our paths it lacks."""
    path, _, missing = _untold(config, "exclude", our_patterns(config))
    return path, missing


def _tell_git(config: Config, name: str, lines: list[str]) -> Step:
    """Add what is missing of the lines to a file of the repository's .git/info."""
    path, text, missing = _untold(config, name, lines)
    if not missing:
        return Step("kept", path)
    did = "changed" if os.path.exists(path) else "made"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n" * bool(text and not text.endswith("\n")))
        file.write("".join(f"{line}\n" for line in missing))
    return Step(did, path, f"added {' '.join(missing)}")


def _untold(config: Config, name: str, lines: list[str]) -> tuple[str, str, list[str]]:
    """A file of the repository's .git/info: its path, its text, and which of the lines it lacks."""
    told = worktree.git(config.workspace, "rev-parse", "--git-path", f"info/{name}").rstrip("\n")
    path, text = os.path.join(config.workspace, told), ""
    with (
        contextlib.suppress(FileNotFoundError),
        open(path, encoding="utf-8", errors="surrogateescape") as file,
    ):
        text = file.read()
    return path, text, [line for line in lines if line not in text.splitlines()]


def queue_attribute(config: Config) -> str | None:
    """What gives the queue its driver in .git/info/attributes; None for a queue that is outside."""
    if config.on_postgres:
        return None
    path = os.path.relpath(config.queue_file, config.workspace)
    if path.split(os.sep)[0] == os.pardir:
        return None
    pattern = "/" + re.sub(r"([\\*?\[])", r"\\\1", path)
    if QUOTED.search(pattern):
        pattern = '"' + QUOTED.sub(lambda found: f"\\{ord(found[0]):03o}", pattern) + '"'
    return f"{pattern} merge=rolecall"


def set_merge_driver(config: Config) -> list[Step]:
    """Have this clone's git merge the queue task by task; its worktrees share that."""
    line = queue_attribute(config)
    if line is None:
        note = "outside of the workspace's repository: git merges it elsewhere, or never"
        return [Step("none", config.queue_name, note)]
    did = "kept"
    for key, value in mergedriver.settings(sys.executable, CHECKOUT).items():
        old = worktree.git(config.workspace, "config", "--local", "--default", "", "--get", key)
        if old.removesuffix("\n") != value:
            worktree.git(config.workspace, "config", "--local", key, value)
            did = "changed"
    path = worktree.git(config.workspace, "rev-parse", "--git-path", "config").rstrip("\n")
    where = os.path.join(config.workspace, path)
    return [Step(did, where, "merge.rolecall.driver"), _tell_git(config, "attributes", [line])]


def offer_merge_driver(config: Config) -> list[Step]:
    """Say what to type, where no driver is set up."""
    if queue_attribute(config) is None or mergedriver.configured(config.workspace):
        return []
    note = "git merges the queue line by line; task by task: invoke init --merge-driver"
    return [Step("none", "merge driver", note)]


def offer_commit(config: Config) -> list[Step]:
    """Say what to commit: git takes an untracked queue away from under its workers."""
    if config.on_postgres:
        return []
    path = os.path.relpath(config.queue_file, config.workspace)
    top = path.split(os.sep)[0]
    untracked = ("ls-files", "--others", "--exclude-standard", "--", path)
    if top == os.pardir or not worktree.git(config.workspace, *untracked):
        return []
    note = "what is untracked, git stash -u and git clean take away"
    return [Step("commit", os.path.join(config.workspace, top), note)]
