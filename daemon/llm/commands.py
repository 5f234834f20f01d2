"""Commands that the model may run: those of the list, without a shell, without credentials."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from daemon import environment, executor
from daemon.errors import RolecallError
from daemon.llm.files import Refused

GRACE = 2.0  # seconds between TERM and KILL
MARKER = "ROLECALL_LLM_COMMAND"
#: What an attempt tells of itself; whatever else is called ROLECALL_ may be a key.
TOLD = frozenset(
    f"ROLECALL_{name}"
    for name in (
        *("TASK_ID", "ROLE", "ATTEMPT", "TOKEN"),
        *("TASK_FILE", "RESULT_FILE", "QUEUE", "WORKSPACE"),
    )
)
IDENTITY = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def without_credentials(environ: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """What gates get, too: the common variables, git's identity, the role's ``env``, ours.

    Whatever else stands in ``environ`` came by ``pass_env``, ``env_file`` or the preset.
    """
    kept = {key: value for key, value in environ.items() if key in {*IDENTITY, *TOLD, *names}}
    return {**environment.base(environ), **kept}


def is_allowed(argv: list[str], allowed: Collection[tuple[str, ...]]) -> bool:
    """Whether it begins, argument by argument, with one of these."""
    return any(tuple(argv[: len(each)]) == each for each in allowed if each)


class Output(NamedTuple):
    """What a program printed, and how it ended, in words ("" for exit status 0)."""

    text: str
    ended: str


class Commands:
    """Runs programs in ``cwd``; their whole tree is dead when a call returns.

    ``folder`` keeps their output while they run, ``most`` is how many bytes of it are given back:
    the beginning and the end.
    """

    def __init__(
        self,
        cwd: str,
        folder: str,
        env: Mapping[str, str],
        stop: executor.Stop,
        most: int,
    ) -> None:
        self.cwd, self.env, self.stop, self.most = cwd, dict(env), stop, most
        self._log = os.path.join(folder, f"command-{os.getpid()}.log")
        self._count = 0

    def run(
        self, argv: list[str], seconds: float, stdin: bytes = b"", cwd: str = "", **env: str
    ) -> Output:
        """Run one for at most so long. Refused where it cannot be started."""
        self._count += 1
        mark = f"{os.getpid()}-{self._count}-{time.monotonic_ns()}"
        run = executor.Run(
            argv=tuple(argv),
            env={**self.env, **env, MARKER: mark},
            cwd=cwd or self.cwd,
            stdin=stdin,
            stdout=self._log,
            stderr=self._log,
            secrets=(),
            deadline=time.monotonic() + seconds,
            kill_grace=GRACE,
            marker=f"{MARKER}={mark}",
        )
        try:
            ended = executor.execute(run, lambda: seconds + GRACE, self.stop)
            text = self._output()
        except (RolecallError, OSError) as error:
            raise Refused(f"it cannot be run: {error}") from error
        finally:
            try:
                os.unlink(self._log)
            except FileNotFoundError:
                pass
        return Output(text, _told(ended, seconds))

    def search(self, request: str, seconds: float, root: int) -> Output:
        """Run our own search with this request, in the folder of this descriptor."""
        argv = [sys.executable, "-P", "-S", "-m", "daemon.llm.search"]
        # By its path a command of the model's could have put another folder there.
        cwd = f"/proc/{os.getpid()}/fd/{root}"
        return self.run(argv, seconds, request.encode(errors="replace"), cwd, PYTHONPATH=OURS)

    def _output(self) -> str:
        with open(self._log, "rb") as log:
            size = os.fstat(log.fileno()).st_size
            if size <= self.most:
                return log.read().decode(errors="replace")
            head = log.read(self.most // 2).decode(errors="replace")
            log.seek(size - self.most // 2)
            tail = log.read().decode(errors="replace")
        return f"{head}\n[{size - self.most} bytes are left out]\n{tail}"


def _told(ended: executor.Ended, seconds: float) -> str:
    if ended.why == "not started":
        raise Refused(f"it cannot be started: {ended.note}")
    if ended.why == "timeout":
        return f"ended after {seconds:g} s: it took too long"
    if ended.why == "stopped":
        return "ended: the attempt is being stopped"
    if ended.status:
        return f"exit status {ended.status}" if ended.status > 0 else f"signal {-ended.status}"
    return ""


def listed(allowed: Collection[tuple[str, ...]]) -> str:
    """The list as the model is told it."""
    return "; ".join(shlex.join(each) for each in allowed) or "none"
