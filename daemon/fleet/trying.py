"""``invoke doctor --in-unit``: each agent is tried where its attempts will run.

Under systemd that is a transient unit with an attempt's own properties, elsewhere a process as the
PID-file supervisor starts one. Nothing needs to be installed for it, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from daemon import agents, transient
from daemon.agents.preset import Preset
from daemon.config import Config, Role, to_json
from daemon.fleet import units
from daemon.fleet.connection import Local
from daemon.fleet.doctor import elsewhere
from daemon.fleet.finding import FAIL, OK, WARN, Finding
from daemon.fleet.manager import bus_problem, manager_problem
from daemon.fleet.supervisor import SYSTEMD, supervisor_name
from daemon.trial import VERSION_SECONDS, Reply

SECONDS = 120.0  # a model that is slow today still answers one word in that
MARGIN = 15.0  # seconds beyond the trial's own limits, for its start and its end
LINES = 4  # of what a trial says that fails
AGAIN = "mend it, then: invoke doctor --in-unit"


Trial = subprocess.Popen[str]


class Broken(NamedTuple):
    """A trial that gave no reply, and why."""

    what: str


def examine(
    config: Config,
    roles: Sequence[Role],
    seconds: float = SECONDS,
    tell: Callable[[str], None] = lambda _line: None,
) -> Iterator[Finding]:
    """Try the agents of the roles; what is the same for several of them is tried once.

    ``seconds`` is what each prompt may take; ``tell`` is told what is tried, before it is.
    """
    connection = Local()
    in_unit = supervisor_name(connection, config) == SYSTEMD
    trouble = _unreachable(connection, config, in_unit=in_unit)
    if trouble:
        yield Finding("trial", FAIL, f"no agent was tried: {trouble}", AGAIN)
        return
    for same in alike(roles):
        names, role = ", ".join(each.name for each in same), same[0]
        tell(f"trying {role.agent} as {names}" + ("" if _is_command(role) else ": a few tokens"))
        reply = run(connection, config, role, seconds, in_unit=in_unit)
        for finding in words(role, reply):
            yield finding._replace(role=names)


def _unreachable(connection: Local, config: Config, *, in_unit: bool) -> str:
    if not os.path.isdir(config.workspace):
        return f"there is no {config.workspace}"
    if in_unit:
        if problem := manager_problem(connection):
            return problem.problems[0].what
        if missing := bus_problem(connection):
            return "; ".join(missing)
    return ""


def _is_command(role: Role) -> bool:
    return agents.find(role.agent) is None


def alike(roles: Sequence[Role]) -> list[list[Role]]:
    """The roles that have an agent, those together whose trial would be the same."""
    groups: dict[object, list[Role]] = {}
    for role in roles:
        if role.agent:
            key = (
                *(role.agent, role.command, role.model, role.args, role.prompt_via, role.worktree),
                *(tuple(sorted(role.env.items())), frozenset(role.pass_env), role.env_file),
                *(frozenset(role.write_paths), role.limits, role.kill_grace, repr(role.llm)),
            )
            groups.setdefault(key, []).append(role)
    return list(groups.values())


def run(
    connection: Local, config: Config, role: Role, seconds: float, *, in_unit: bool
) -> Reply | Broken:
    """One trial, from its start until nothing of it is left."""
    python = [connection.python, "-P", "-m", "daemon.trial"]
    command = ["/usr/bin/env", f"PYTHONPATH={transient.ROOT}", *python]
    unit = ""
    if in_unit:
        unit = f"rolecall-trial-{role.name}-{os.getpid()}.service"
        command = transient.start_argv(
            unit, role, config, command, config.workspace, what="trial of an agent"
        )
        if not _is_active(connection, units.slice_(config.unit_prefix)):
            # A slice that nobody has started would stay when the unit has gone.
            command = [each for each in command if not each.startswith("--slice=")]
    missing = _missing(transient.missing_state(role)) if in_unit else []
    brief = {"config": to_json(config), "role": role.name, "seconds": seconds}
    grace = 2 * role.kill_grace + MARGIN

    def end(trial: Trial) -> None:
        if unit:
            transient.kill(unit, grace)
        else:
            trial.send_signal(signal.SIGTERM)
        try:
            trial.wait(grace)
        except subprocess.TimeoutExpired:
            trial.kill()

    limit = VERSION_SECONDS + seconds + 2 * grace
    try:
        return _answer(command, connection.environ, json.dumps(brief), limit, end)
    finally:
        for path in missing:  # those that the unit made and the CLI had no use for
            with contextlib.suppress(OSError):
                os.rmdir(path)


def _answer(
    command: list[str],
    environ: Mapping[str, str],
    brief: str,
    seconds: float,
    end: Callable[[Trial], None],
) -> Reply | Broken:
    """What the command says to the brief. ``end`` ends one that nobody waits for any longer."""
    try:
        trial = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environ,
            start_new_session=True,  # Ctrl-C is for us; we end it
        )
    except OSError as error:
        return Broken(f"{command[0]} cannot be run: {error.strerror}")
    with trial:
        try:
            out, err = trial.communicate(brief, timeout=seconds)
        except BaseException as error:
            end(trial)
            if isinstance(error, subprocess.TimeoutExpired):
                return Broken(f"no end within {seconds:g} s")
            raise
    if trial.returncode:
        said = "; ".join(line for line in err.splitlines()[-LINES:] if line)
        return Broken(said or f"it ended with exit status {trial.returncode}")
    facts = json.loads(out)
    lists = ("present", "absent", "closed")
    return Reply(**{**facts, **{key: tuple(facts[key]) for key in lists}})


def _is_active(connection: Local, unit: str) -> bool:
    return connection.run(["systemctl", "--user", "is-active", "--quiet", unit]).status == 0


def _missing(paths: Sequence[str]) -> list[str]:
    """These folders and those around them that are not there, the innermost first."""
    found = set()
    for path in paths:
        at = path
        while not os.path.lexists(at):
            found.add(at)
            at = os.path.dirname(at)
    return sorted(found, reverse=True)


def words(role: Role, reply: Reply | Broken) -> Iterator[Finding]:
    """What a trial found, in findings."""
    if isinstance(reply, Broken):
        yield Finding("trial", FAIL, f"it could not be made: {reply.what}", AGAIN)
        return
    preset = agents.find(role.agent)
    if not reply.program:
        name = (preset.argv if preset else (*role.command, ""))[0]
        hint = preset.install if preset else "install it, or name it by its full path"
        hint = elsewhere(name, reply.path) or hint
        yield Finding(
            "cli", FAIL, f"{name} is not on the PATH that attempts have ({reply.path})", hint
        )
        return
    if preset is None:
        what = f"{reply.program}; not tried: what a command does without a task is unknown here"
        yield Finding("cli", OK, what)
        return
    yield _cli(preset, reply)
    if reply.closed:
        what = f"{', '.join(reply.closed)} cannot be written by attempts"
        yield Finding(
            "state", FAIL, what, "chown them to this account, or name them in write_paths"
        )
    elif preset.write_paths:
        yield Finding("state", OK, f"{', '.join(preset.write_paths)}: can be written")
    if reply.present:
        yield Finding("credentials", OK, f"set: {', '.join(reply.present)}")
    elif reply.absent:
        names = ", ".join(reply.absent)
        yield Finding("credentials", OK, f"not set: {names}; the CLI's own login counts")
    yield _said(preset, reply)


def _cli(preset: Preset, reply: Reply) -> Finding:
    where = f"{preset.title} {reply.version}, {reply.program}"
    if not reply.version:
        what = f"{reply.program} does not tell its version: {reply.trouble}"
        return Finding("cli", WARN, what, preset.install)
    if not preset.tried:
        what = f"{where}: its preset is from the vendor's documents, and was never tried"
        return Finding("cli", WARN, what, "look closely at its first attempts")
    known = preset.tried.partition(".")[0]
    if known.isdigit() and known != reply.version.partition(".")[0]:
        what = f"{where}: its preset was tried with {preset.tried}"
        return Finding("cli", WARN, what, "look closely at its first attempts")
    return Finding("cli", OK, where)


def _said(preset: Preset, reply: Reply) -> Finding:
    if reply.outcome == "success":
        return Finding(
            "answer", OK, ", ".join([f"answered in {reply.seconds:.1f} s", *spent(reply)])
        )
    if reply.outcome == "throttled":
        wait = f" in {reply.retry_after:.0f} s" if reply.retry_after else ""
        return Finding("answer", WARN, f"its limit is reached: {reply.note}", f"try again{wait}")
    hint = f"log in: {preset.login}" if reply.outcome == "blocked" and preset.login else AGAIN
    return Finding("answer", FAIL, reply.note or f"no answer ({reply.outcome})", hint)


def spent(reply: Reply) -> list[str]:
    """What the answer has cost, as far as the CLI tells it."""
    usage = reply.usage or {}
    tokens = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
    found = [f"{tokens:,.0f} tokens"] if tokens else []
    return found + ([f"USD {usage['cost_usd']:.3f}"] if usage.get("cost_usd") else [])
