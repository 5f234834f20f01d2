"""The one voice in which Rolecall says what went wrong."""

from __future__ import annotations

from typing import NamedTuple, Self

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h; units carry RestartPreventExitStatus=78


class Problem(NamedTuple):
    """One thing that is wrong: where (``file:line`` or empty), what, and what to do."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"error: {self.where}: {self.what}" if self.where else f"error: {self.what}"
        return f"{text}\nhint:  {self.hint}" if self.hint else text


class RolecallError(Exception):
    """What happened, where, what to type next, and the exit status it deserves.

    ``str()`` of it is ready for a person to read. Several problems may travel in one error.
    """

    exit_code = EXIT_ERROR

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(where, what, hint),)
        super().__init__(what)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    @property
    def short(self) -> str:
        """What happened, in one line."""
        return "; ".join(problem.what for problem in self.problems)


class ConfigError(RolecallError):
    """A configuration that cannot be used; every problem of it at once."""

    exit_code = EXIT_CONFIG

    @classmethod
    def of(cls, problems: list[Problem]) -> Self:
        """One error out of one or more problems."""
        error = cls(problems[0].what)
        error.problems = tuple(problems)
        return error


class QueueUnreadable(RolecallError):
    """The queue's text cannot be understood now; nothing of it was changed."""

    exit_code = EXIT_CONFIG


class QueueUnreachable(QueueUnreadable):
    """The server that keeps the queue cannot be asked now; it is asked again before long.

    ``again``: the seconds until asking is of use; 0 where nobody knows.
    """

    again = 0.0


class LeaseLost(RolecallError):
    """The lease is no longer ours: whatever was to be written under it must not be."""


class LockTimeout(RolecallError):
    """A lock was not to be had in time; the message names who holds it."""


class Interrupted(RolecallError):
    """What we did ourselves for an attempt was cut short.

    ``why``: "stopped", "timeout" or "unrenewed" (nobody could be asked to renew its lease).
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)
