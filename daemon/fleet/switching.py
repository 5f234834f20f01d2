"""A host switched to new code and config: all of it, or what was there before runs again.

One call in one process on the host. It needs nobody to listen to go on, or to go back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

from daemon.config import Config
from daemon.errors import Problem, RolecallError
from daemon.fleet import copied, effective, install, place, plan, releases, snapshot, workers
from daemon.fleet.alone import alone
from daemon.fleet.answers import (
    BROKEN,
    DEPLOYED,
    PUT_BACK,
    UNCHANGED,
    WOULD,
    Change,
    Done,
    Switched,
)
from daemon.fleet.connection import Local
from daemon.fleet.copied import Sent
from daemon.fleet.plan import Plan
from daemon.fleet.releases import Links
from daemon.fleet.snapshot import RUNNING
from daemon.fleet.supervisor import State, Supervisor, Told, supervisor

SETTLE = 5.0  # seconds that a worker must stay up after it said READY
POLL = 0.25
LOG_LINES = 10

Tell = Callable[[str], None]


class Failed(RolecallError):
    """Workers that are not what they should be, each with what it said."""

    def __init__(self, bad: list[Done]) -> None:
        super().__init__("")
        self.problems = tuple(
            Problem("", "\n  ".join([f"{each.role}: {each.did}", *each.note.splitlines()]))
            for each in bad
        )


def deploy(  # noqa: PLR0913  # what the host is to be, and how it gets there
    connection: Local,
    config: Config,
    *,
    sent: Sent | None = None,
    settle: float = SETTLE,
    check: bool = False,
    tell: Tell,
) -> Switched:
    """Switch the host to the config, and to the release that was sent where it has no checkout.

    Returns what became of it, also where it failed: only what kept it from beginning is raised.
    """
    found = supervisor(connection, config)
    if check:
        copied.check_room(connection, sent)
        return _would(connection, found, plan.of(connection, config, found, sent, check=True))
    with alone(connection, config):
        todo = plan.of(connection, config, found, sent, check=False)
        if todo.empty:
            snapshot.forget(connection, config)
            return _switched(connection, found, todo, UNCHANGED)
        return _do(_Switch(connection, config, found, todo, settle, _deaf(tell)))


def _do(switch: _Switch) -> Switched:
    """Forwards; and back, where that fails, or is interrupted."""
    connection, config, todo = switch.connection, switch.config, switch.plan
    snapshot.keep(connection, config, todo.before)
    try:
        switch.forwards()
    except BaseException as error:
        why = _problems(error)
        worse = switch.back(why)
        if not isinstance(error, Exception):
            raise
        return _switched(
            connection,
            switch.found,
            todo,
            BROKEN if worse else PUT_BACK,
            release=snapshot.links(connection).current,
            workers=tuple(switch.workers),
            problems=(*why, *worse),
        )
    snapshot.forget(connection, config)
    if where := connection.releases:
        with contextlib.suppress(OSError):  # room is made next time
            releases.prune(where)
    return _switched(
        connection,
        switch.found,
        todo,
        DEPLOYED,
        changes=tuple(plan.changes(connection, todo)),
        workers=tuple(switch.workers),
    )


class _Switch:
    """The steps, forwards and back. ``workers``: what was done to each, in the end."""

    def __init__(  # noqa: PLR0913, PLR0917  # what it acts on
        self,
        connection: Local,
        config: Config,
        found: Supervisor,
        todo: Plan,
        settle: float,
        tell: Tell,
    ) -> None:
        self.connection, self.config, self.found = connection, config, found
        self.plan, self.settle, self.tell = todo, settle, tell
        self.config_file = effective.path(connection, config)
        before = effective.parsed(todo.before.files.get(self.config_file))
        self.was_run = before.run if before else ()
        self.old_config = before or config
        self.old = supervisor(connection, self.old_config)
        self.workers: list[Done] = []
        self.begun: list[str] = []  # roles whose workers may have been told to hand over

    # --- forwards ----------------------------------------------------------------------------

    def forwards(self) -> None:
        """Everything that the plan says. Raises what went wrong first."""
        connection, found, todo = self.connection, self.found, self.plan
        for step in install.in_order(
            connection.read(self.config_file),
            lambda: self._point(todo.links),
            lambda: install.put(connection, self.config_file, todo.differs.write),
        ):
            step()
        found.refresh(self._units(todo.differs.write))
        if connection.releases:
            copied.excluded(connection, self.config, check=False)
        if todo.restart or todo.start:
            new = todo.links.current if todo.links.current != todo.before.links.current else None
            self.tell("hands over" + f" to release {new}" * bool(new))
        # One after another: where the first fails, the others have never been touched.
        first: dict[str, State] = {}
        for role in (*todo.restart, *todo.start):
            begin = found.restart if role in todo.restart else found.start
            self.begun.append(role)
            self._note(begin([role]))
            first |= found.states([role])
        if first:
            found.start([*first])  # which are all: so that their target is, too
        self._steady(found, first, self.settle)
        self._drop()

    def _note(self, told: dict[str, Told]) -> None:
        done = [Done(self.connection.name, role, *each) for role, each in told.items()]
        self.workers += done
        if bad := [each for each in done if not each.ok]:
            raise Failed(bad)

    def _steady(self, found: Supervisor, first: dict[str, State], seconds: float) -> None:
        """See that the workers stay what they were at first, for so long."""
        if not first:
            return
        roles = [*first]
        self.tell(f"watches {', '.join(roles)} for {seconds:g} s")
        until = time.monotonic() + seconds
        while True:
            now = found.states(roles)
            if bad := [role for role in roles if not _stays(first[role], now[role])]:
                raise Failed([self._died(found, role, now[role]) for role in bad])
            if time.monotonic() >= until:
                return
            time.sleep(min(POLL, max(0.0, until - time.monotonic())))

    def _died(self, found: Supervisor, role: str, now: State) -> Done:
        again = ", and was started again" if now.state == "running" else ""
        said = list(found.logs([role], LOG_LINES, follow=False))[-LOG_LINES:]
        note = "\n".join([*([now.text] if now.text else []), *said])
        did = f"died after it was ready{again}"
        return Done(self.connection.name, role, did, ok=False, note=note)

    def _drop(self) -> None:
        """Roles that run here no more: last of all, for attempts that end so do not come back."""
        todo = self.plan
        if todo.dropped:
            self.tell(f"stops {', '.join(todo.dropped)}, not to run here any more")
            dropped = list(todo.dropped)
            self._note(workers.stop_here(self.connection, self.old_config, self.old, dropped))
        if todo.differs.remove:
            self.found.forget(todo.differs.remove)
            for each in todo.differs.remove:
                self.connection.remove(each)
            self.found.refresh(todo.differs.remove)

    # --- back --------------------------------------------------------------------------------

    def back(self, why: Sequence[Problem]) -> tuple[Problem, ...]:
        """Put everything back; returns what could not be. Each step is worth trying."""
        before = self.plan.before
        was = f"release {before.links.current}" if before.links.current else "what was there"
        self.tell(f"{why[0].what.splitlines()[0]}: puts {was} back")
        self.workers = []
        problems: list[Problem] = []
        point, was_config = lambda: self._point(before.links), before.files.get(self.config_file)
        steps: list[Callable[[], object]] = [
            *reversed(install.in_order(was_config, point, self._write_back)),
            self._hand_back,
            self._take_away,
            lambda: self.old.disable(before.disabled),
            lambda: self._steady(self.old, self.old.states(before.ran), min(self.settle, SETTLE)),
        ]
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001  # told, whatever it is
                problems += [each for each in _problems(error) if each not in problems]
        if not problems:
            snapshot.forget(self.connection, self.config)
        return tuple(problems)

    def _write_back(self) -> None:
        """The files as they were; what is new stays until its workers have ended."""
        was = self.plan.before.files
        changed = {path: text for path, text in was.items() if self.connection.read(path) != text}
        install.put(self.connection, self.config_file, changed)
        units = self._units([*changed, *self._created()])
        self.old.refresh(units, enable=bool(self.was_run))

    def _hand_back(self) -> None:
        """Have the old code take over from whatever runs now, one that heeds nothing included."""
        old, before = self.old, self.plan.before
        # What had failed before is tried as well: its new worker may have taken attempts over.
        tried = [role for role in self.plan.start if role in self.was_run]
        now = old.states([*before.ran, *tried])
        # Who runs still may be about to leave: it was told to just when we were interrupted.
        again = [
            role
            for role in before.ran
            if role in self.begun or not _is(now[role], before.pids.get(role))
        ]
        again += [role for role in tried if role not in again and now[role].state in RUNNING]
        told = old.restart(again) if again else {}
        if stubborn := [role for role in again if told[role].did == "not restarted"]:
            old.kill(stubborn)
            told |= old.start(stubborn)
        self._note({role: each for role, each in told.items() if role in before.ran})

    def _take_away(self) -> None:
        """What was not there before: its workers drain."""
        if new := [role for role in self.plan.start if role not in self.was_run]:
            workers.stop_here(self.connection, self.config, self.found, new)
        created = self._created()
        units = self._units(created)
        self.found.forget(units)
        for each in created:
            self.connection.remove(each)
        if units:
            self.old.refresh(units, enable=False)

    def _created(self) -> list[str]:
        now = install.files_of(self.connection, self.found, self.config_file)
        return [path for path in now if path not in self.plan.before.files]

    def _point(self, to: Links) -> None:
        if where := self.connection.releases:
            releases.point(where, to)

    def _units(self, files: Iterable[str]) -> list[str]:
        return [path for path in files if path != self.config_file]


def _is(state: State, pid: int | None) -> bool:
    return state.state == "running" and pid is not None and state.pid == pid


def _stays(first: State, now: State) -> bool:
    return _is(now, first.pid) and now.restarts == first.restarts


def _would(connection: Local, found: Supervisor, todo: Plan) -> Switched:
    changes = plan.changes(connection, todo)
    for verb, roles in (
        ("restart", todo.restart),
        ("start", todo.start),
        ("stop", todo.dropped),
    ):
        changes += [Change(connection.name, "", "action", f"{verb} {role}") for role in roles]
    state = UNCHANGED if todo.empty else WOULD
    return _switched(connection, found, todo, state, changes=tuple(changes))


def _switched(  # noqa: PLR0913  # what there is to say of it
    connection: Local,
    found: Supervisor,
    todo: Plan,
    state: str,
    *,
    release: str | None = None,
    changes: tuple[Change, ...] = (),
    workers: tuple[Done, ...] = (),
    problems: tuple[Problem, ...] = (),
) -> Switched:
    return Switched(
        connection.name,
        found.name,
        state,
        release if problems else todo.links.current,
        todo.before.links.current,
        changes,
        workers,
        plan.notes(todo, back=state == PUT_BACK),
        problems,
        connection.home,
    )


def _problems(error: BaseException) -> tuple[Problem, ...]:
    if isinstance(error, RolecallError):
        return error.problems
    if isinstance(error, OSError):
        return place.failure(error).problems
    if isinstance(error, KeyboardInterrupt):
        return (Problem("", "interrupted"),)
    return (Problem("", f"{type(error).__name__}: {error}"),)


def _deaf(tell: Tell) -> Tell:
    """Say it to whoever still listens."""

    def say(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            tell(line)

    return say
