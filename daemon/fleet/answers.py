"""What a host answers: plain values that its own code and the operator's both know."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeVar

from daemon.errors import EXIT_ERROR, Problem, RolecallError

#: What a deploy came to on a host: "put back" and "broken" are failures.
UNCHANGED, WOULD, DEPLOYED = "nothing to do", "would deploy", "deployed"
PUT_BACK, BROKEN = "put back", "broken"
STATES = {UNCHANGED, WOULD, DEPLOYED, PUT_BACK, BROKEN}
KINDS = {"create", "change", "remove", "action"}  # of changes
EXIT_STATUSES = range(1, 256)

#: As annotations name them; JSON has lists for tuples.
PLAIN: dict[str, Any] = {
    "str": str,
    "int": int,
    "bool": bool,
    "float": int | float,
    "dict": dict,
    "tuple": list | tuple,
    "None": type(None),
}
MOST = 2**63  # a number that nothing of ours reaches
T = TypeVar("T")
N = TypeVar("N", bound=tuple[Any, ...])


class Change(NamedTuple):
    """One thing that was, or would be, done. ``kind``: create, change, remove, action."""

    host: str
    path: str
    kind: str
    text: str = ""
    diff: str = ""

    @classmethod
    def of(cls, facts: Any) -> Change:
        """What a host said of one."""
        found = known(cls, facts)
        return found if found.kind in KINDS else _no()


class Installed(NamedTuple):
    """What became of one host. ``notes``: what a person has to do. ``home``: its account's."""

    host: str
    supervisor: str
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    home: str = ""

    def facts(self) -> dict[str, Any]:
        """The same for a program."""
        changes = [change._asdict() for change in self.changes]
        return {**self._asdict(), "changes": changes, "notes": list(self.notes)}

    @classmethod
    def of(cls, facts: Any) -> Installed:
        """What a host said of itself."""
        found = known(cls, facts)
        changes = tuple(many(Change.of, found.changes))
        return found._replace(changes=changes, notes=tuple(many(text, found.notes)))


class Done(NamedTuple):
    """What came of a command for one worker. ``note``: why not, in several lines.

    ``exit_code`` is the exit status that it deserves where it is not ``ok``.
    """

    host: str
    role: str
    did: str
    ok: bool = True
    note: str = ""
    exit_code: int = EXIT_ERROR

    @classmethod
    def of(cls, facts: Any) -> Done:
        """What a host said of one of its workers."""
        found = known(cls, facts)
        return found if found.exit_code in EXIT_STATUSES else found._replace(exit_code=EXIT_ERROR)


class Switched(NamedTuple):
    """What became of a host that was to be deployed to. ``notes``: what a person has to do.

    ``state``: "deployed", "nothing to do", "would deploy" (a check), "put back" (it failed, and
    what was there runs again) or "broken" (it failed, and so did going back). ``release`` is the id
    of the one that runs now, ``before`` of the one that ran before; None where there is none, as
    on a host that runs its checkout. ``problems`` say why it failed, and why going back did.
    """

    host: str
    supervisor: str
    state: str
    release: str | None = None
    before: str | None = None
    changes: tuple[Change, ...] = ()
    workers: tuple[Done, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    home: str = ""

    def facts(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            **self._asdict(),
            "changes": [each._asdict() for each in self.changes],
            "workers": [
                {**each._asdict(), "exit_code": 0 if each.ok else each.exit_code}
                for each in self.workers
            ],
            "notes": list(self.notes),
            "problems": [each._asdict() for each in self.problems],
        }

    @classmethod
    def of(cls, facts: Any) -> Switched:
        """What a host said of itself."""
        found = known(cls, facts)
        problems = tuple(many(partial(known, Problem), found.problems))
        if found.state in {PUT_BACK, BROKEN} and not problems:
            problems = (Problem("", "it failed, and does not say why"),)
        return (found if found.state in STATES else _no())._replace(
            changes=tuple(many(Change.of, found.changes)),
            workers=tuple(many(Done.of, found.workers)),
            notes=tuple(many(text, found.notes)),
            problems=problems,
        )


class Attempt(NamedTuple):
    """What a worker is working on. ``seconds``: for how long."""

    task_id: str
    attempt: int
    seconds: float
    pid: int


class Row(NamedTuple):
    """One worker's status. Times are RFC 3339 in UTC.

    ``paused_until``: until when the role claims nothing; null also where a person is waited for.
    ``worktrees``: those of the host's workspace (number, bytes, and whether that is all), None
    without any. ``config_is_older``: install would change what the host's workers read.
    ``deploy_cut_short``: when a deploy began that neither ended nor was put back, None without one.
    ``release``: the id of the one that was copied to the host, None where its checkout runs.
    ``outdated``: the worker was started before its config, release or code was last changed.
    ``parked``: how many tasks of the host's queue wait for a person.
    """

    host: str
    role: str
    supervisor: str
    state: str
    pid: int | None = None
    since: str | None = None
    working_on: tuple[Attempt, ...] = ()
    restarts: int = 0
    text: str = ""
    paused_until: str | None = None
    worktrees: dict[str, Any] | None = None
    config_is_older: bool = False
    deploy_cut_short: str | None = None
    release: str | None = None
    outdated: bool = False
    parked: int = 0

    def facts(self) -> dict[str, Any]:
        """The row for a program."""
        return {**self._asdict(), "working_on": [each._asdict() for each in self.working_on]}

    @classmethod
    def of(cls, facts: Any) -> Row:
        """What a host said of one of its workers."""
        from daemon.fleet.worktrees import Usage  # noqa: PLC0415  # a host's side needs it not

        found = known(cls, facts)
        used = found.worktrees
        return found._replace(
            working_on=tuple(many(partial(known, Attempt), found.working_on)),
            worktrees=None if used is None else known(Usage, used)._asdict(),
        )


def known(kind: type[N], facts: Any) -> N:
    """What a host said, as the value that it is; its release may tell more than we know, or less.

    Raises RolecallError for what makes no sense.
    """
    types = kind.__annotations__
    try:
        values = {key: facts[key] for key in types if key in facts}
        if not all(_fits(value, types[key]) for key, value in values.items()):
            raise _nonsense()
        return kind(**values)
    except TypeError as error:
        raise _nonsense() from error


def many(of: Callable[[Any], T], facts: Any) -> list[T]:
    """Each of several things that a host said. Raises RolecallError for what makes no sense."""
    if not isinstance(facts, list | tuple):
        raise _nonsense()
    return [of(each) for each in facts]


def text(facts: Any) -> str:
    """One line that a host said. Raises RolecallError for what is none."""
    return facts if isinstance(facts, str) else _no()


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is one of what stands behind a name: "int | None", "tuple[Done, ...]"."""
    annotation = getattr(annotation, "__forward_arg__", annotation)  # as NamedTuple keeps it
    if isinstance(value, int | float) and not abs(value) < MOST:  # NaN, too
        return False
    names = (name.partition("[")[0] for name in annotation.split(" | "))
    return any(isinstance(value, PLAIN[name]) for name in names)


def _no() -> NoReturn:
    raise _nonsense()


def _nonsense() -> RolecallError:
    return RolecallError("its answer makes no sense here", hint="invoke deploy")
