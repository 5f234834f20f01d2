"""A trial: what a role's agent CLI says when it is run as in an attempt, without a task.

Only the doctor starts it, in the environment that it is about; its brief, one JSON object, comes on
standard input, and it prints one JSON object. Nothing of it stays but what the CLI itself keeps.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon import evidence, executor, worktree
from daemon.agents.preset import Traces
from daemon.attempt import Attempt
from daemon.brief import Brief, Stop
from daemon.config import Config, Role, from_json
from daemon.errors import RolecallError
from daemon.launch import DEFERRED
from daemon.log import Log
from daemon.model import Lease, Outcome
from daemon.queue.opening import open_queue
from daemon.wake import Signals

VERSION_SECONDS = 30.0  # a CLI that needs longer to say its version has a problem
VERSION = re.compile(r"\d+(?:\.\d+)+")
PROMPT = """\
This only checks that you can be reached. Change no file, run nothing, use no tool.
Answer with the one word: ready
"""


class Reply(NamedTuple):
    """What was found. ``program`` is the agent's own path, "" where ``path`` has none.

    ``version`` is "" where none was printed, and ``trouble`` says why. ``present`` and ``absent``
    name variables that may hold a credential, ``closed`` folders of state that cannot be written.
    ``outcome`` is None where no prompt was given; else ``note``, ``seconds``, ``retry_after``
    (seconds) and ``usage`` belong to it.
    """

    program: str = ""
    path: str = ""
    version: str = ""
    trouble: str = ""
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    outcome: str | None = None
    note: str = ""
    seconds: float = 0.0
    retry_after: float | None = None
    usage: Mapping[str, float] | None = None


class Trial(Attempt):
    """One run of a role's agent, in a scratch repository; no lease to renew, nothing to settle."""

    def __init__(self, config: Config, role: Role, folder: str, stop: Stop) -> None:
        run_dir = os.path.join(folder, "run")
        os.mkdir(run_dir, 0o700)
        owner = f"doctor:{role.name}"
        lease = Lease("trial", role.name, owner, "", 0.0, "")
        config = config._replace(roles={**config.roles, role.name: role})
        brief = Brief(config, lease, {}, run_dir, dict(os.environ), "", "")
        log = Log(folder, role.name, owner, form="none")
        super().__init__(brief, open_queue(config), log, stop)
        self.cwd = os.path.join(folder, "work")
        os.mkdir(self.cwd, 0o700)
        worktree.git(self.cwd, "init", "--quiet")

    def tick(self) -> float:
        """Nothing is due, ever."""
        return math.inf


def of(config: Config, role: Role, seconds: float, folder: str, stop: Stop) -> Reply:
    """Try the role's agent in the folder. Raises RolecallError and OSError."""
    # What it did is not asked for, so that a silent model is as good as another.
    quiet = role._replace(evidence=True, gates=(), stall_after=None, timeout=seconds)
    trial = Trial(config, quiet, _made(folder, "prompt"), stop)
    environ, preset = trial.agent_environment(), trial.preset
    argv = trial.arguments(PROMPT)
    path = environ.get("PATH", os.defpath)
    # As an attempt finds it: a path that is relative counts from where the agent runs.
    program = os.path.join(config.workspace, argv[0]) if "/" in argv[0] else argv[0]
    names = sorted({*role.pass_env, *(preset.pass_env if preset else ())})
    reply = Reply(
        program=shutil.which(program, path=path) or "",
        path=path,
        present=tuple(name for name in names if name in environ),
        absent=tuple(name for name in names if name not in environ),
    )
    if preset is None or not reply.program:
        return reply
    folders = [os.path.expanduser(each) for each in preset.write_paths]
    reply = reply._replace(closed=tuple(each for each in folders if not _is_open(each)))
    if preset.version:
        reply = _version(reply, trial, folder)
    evidence.write_new(trial.brief.run_dir, "prompt.md", PROMPT)
    began = time.monotonic()
    result = trial.run_agent(PROMPT)
    return reply._replace(
        outcome=result.outcome.value,
        note=result.note,
        seconds=time.monotonic() - began,
        retry_after=result.retry_after,
        usage=result.usage and dict(result.usage),
    )


def _version(reply: Reply, trial: Trial, folder: str) -> Reply:
    """What the CLI says of its version: a run like any other, of another command."""
    preset, role = trial.preset, trial.role
    assert preset is not None  # noqa: S101  # for the type checker
    asking = role._replace(
        agent="command",
        command=preset.version,
        args=(),
        prompt_via="stdin",
        env={**preset.env, **role.env},
        pass_env=(*preset.pass_env, *role.pass_env),
        timeout=VERSION_SECONDS,
    )
    asked = Trial(trial.config, asking, _made(folder, "version"), trial.stop)
    result = asked.run_agent("")
    with open(asked.file("stdout.log"), encoding="utf-8", errors="replace") as log:
        found = VERSION.search(log.read(1 << 16))
    if result.outcome is Outcome.SUCCESS and found:
        return reply._replace(version=found[0])
    last = Traces(0, asked.brief.run_dir, time.time()).tail().splitlines()[-1:]
    return reply._replace(trouble=": ".join([result.note or "it prints none", *last]))


def _is_open(folder: str) -> bool:
    """Whether the folder can be written, or made."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK)


def _made(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    os.mkdir(path, 0o700)
    return path


def main() -> int:
    """Read the brief, try, print the reply; exit status 1 where there is none."""
    signals = Signals(*DEFERRED)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEFERRED)
    facts: dict[str, Any] = json.load(sys.stdin)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    executor.become_subreaper()
    config = from_json(facts["config"])
    with tempfile.TemporaryDirectory(prefix="rolecall-trial-") as folder:
        try:
            role = config.roles[facts["role"]]
            reply = of(config, role, facts["seconds"], folder, Stop(signals))
        except (RolecallError, OSError) as error:
            sys.stderr.write(str(error).removeprefix("error: ") + "\n")
            return 1
    sys.stdout.write(json.dumps(reply._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
