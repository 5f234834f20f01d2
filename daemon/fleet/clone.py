"""The workspace of a host: a repository with a queue, that its roles can work on."""

from __future__ import annotations

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator

from daemon import mounts, worktree
from daemon.config import Config
from daemon.errors import RolecallError
from daemon.fleet import mergedriver, runs, server, worktrees
from daemon.fleet.connection import Local
from daemon.fleet.finding import FAIL, OK, WARN, Finding
from daemon.index import Tasks, status_of
from daemon.queue.file import FileQueue
from daemon.transient import ROOT

OTHER = "invoke init --workspace DIR; or run: [] for this host"
NONE = "without status"


def workspace(config: Config, connection: Local) -> Iterator[Finding]:
    """Whether there is git, and a repository that worktrees can be made of."""
    if shutil.which("git") is None:
        yield Finding("git", FAIL, "git is not on PATH", "as root: apt-get install git")
        return
    workspace = config.workspace
    if not os.path.isdir(workspace):
        hint = connection.typed(f"git clone URL {shlex.quote(workspace)}")
        hint = hint if connection.releases else "invoke init --workspace DIR"
        yield Finding("workspace", FAIL, f"there is no {workspace}", hint)
        return
    try:
        worktree.git(workspace, "rev-parse", "--show-toplevel")
    except worktree.GitError as error:
        what = f"{workspace}: {error.problems[0].what}"
        hint = connection.typed(f"git init {shlex.quote(workspace)}")
        hint = hint if connection.releases else f"{hint} && {init_hint(config, connection)}"
        yield Finding("workspace", FAIL, what, hint)
        return
    version = worktree.git(workspace, "version").removeprefix("git version ").strip()
    yield Finding("git", OK, version)
    try:
        worktree.git(workspace, "rev-parse", "--verify", "--quiet", "HEAD")
    except worktree.GitError:
        needs = any(config.roles[name].worktree for name in config.run)
        what = f"{workspace} has no commit: no worktree can be made of it"
        hint = f"git -C {shlex.quote(workspace)} commit --allow-empty -m 'First commit'"
        hint = connection.typed(hint)
        yield Finding("workspace", FAIL if needs else WARN, what, hint)
    else:
        yield from worktrees.findings(config)
        if is_own(config):
            what = f"{workspace} is Rolecall's own checkout: agents would work on that"
            yield Finding("workspace", WARN, what, OTHER)
        else:
            yield Finding("workspace", OK, workspace)
    gone = mergedriver.missing(mergedriver.configured(workspace))
    if gone:
        what = f"its program is gone ({gone[0]}): git merges the queue line by line"
        yield Finding("merge driver", WARN, what, "invoke init --merge-driver")


def is_own(config: Config) -> bool:
    """Whether roles are to work on Rolecall's own checkout: hardly what is meant."""
    return bool(config.run) and os.path.realpath(config.workspace) == os.path.realpath(ROOT)


def init_hint(config: Config, connection: Local) -> str:
    """What to type for what ``invoke init`` makes: on a host without a checkout, git brings it."""
    workspace = shlex.quote(config.workspace)
    if connection.releases:
        pull = connection.typed(f"git -C {workspace} pull")
        return f"invoke init in a clone of yours, commit and push what it makes, then: {pull}"
    return f"invoke init --workspace {workspace}"


def _count(statuses: Counter[str], path: str) -> str:
    """How many tasks there are, and in which statuses; the most first."""
    told = ", ".join(f"{number} {each or NONE}" for each, number in statuses.most_common())
    noun = "task" if statuses.total() == 1 else "tasks"
    return f"{statuses.total()} {noun} in {path}" + f": {told}" * bool(told)


def _untaken(config: Config, tasks: Tasks) -> Iterator[Finding]:
    """Tasks that no role of this host will ever take, and nobody else: the queue is this host's."""
    roles = config.machine.roles
    ours = {status for name in config.run for status in roles[name].claims}
    of = {status: name for name, rules in roles.items() for status in rules.claims}
    for status, name in of.items():
        if status not in ours and (left := len(tasks.in_status(status))):
            noun = "task" if left == 1 else "tasks"
            what = f"nothing on this host takes {status} ({left} {noun}): {name} does not run here"
            yield Finding("queue", WARN, what, f"put {name} into run of this host")


def queue(config: Config, connection: Local, mountinfo: str) -> Iterator[Finding]:
    """Whether there is a queue that a worker here can read and write."""
    if config.on_postgres:
        yield from server.findings(config, connection, _count)
    else:
        yield from _file(config, connection, mountinfo)


def _file(config: Config, connection: Local, mountinfo: str) -> Iterator[Finding]:
    path = config.queue_file
    if not os.path.exists(path) and runs.are_left(config.paths.runs):
        yield Finding("queue", FAIL, f"{path}: {runs.TAKEN}", runs.LOOK_FOR_IT)
    elif not os.path.exists(path):
        yield Finding("queue", WARN, f"there is no {path}", init_hint(config, connection))
    else:
        try:
            snapshot = FileQueue(config).snapshot()
        except RolecallError as error:
            problem = error.problems[0]
            what = f"{problem.where or path}: {problem.what}"
            yield Finding("queue", FAIL, what, problem.hint or "mend the file by hand")
        else:
            problems = snapshot.tasks.problems
            statuses = Counter(status_of(entry.task) for entry in snapshot.tasks.entries)
            count = _count(statuses, path)
            if problems:
                what = f"{count}, and {len(problems)} that are skipped: {problems[0]}"
                yield Finding("queue", WARN, what, "invoke queue.check")
            else:
                yield Finding("queue", OK, count)
            yield from _untaken(config, snapshot.tasks)
        if not os.access(path, os.W_OK) or not os.access(os.path.dirname(path), os.W_OK):
            hint = f"chmod u+w {shlex.quote(os.path.dirname(path))} {shlex.quote(path)}"
            hint = connection.typed(hint)
            yield Finding("queue", FAIL, f"{path} or its folder is not writable", hint)
    for what, where in (("queue", path), ("leases", config.paths.leases)):
        kind = mounts.kind(where, mountinfo)
        if mounts.is_network(kind):
            found = f"the {what} is on a network file system ({kind}): it serves one host only"
            yield Finding("file system", WARN, found, "move the workspace to a local disk")
