"""``invoke doctor``: is this host ready? One finding for each thing, with what to type."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from daemon import agents, environment
from daemon.agents.preset import Preset
from daemon.config import Config, Role
from daemon.errors import RolecallError
from daemon.fleet import alone, clone, copied, effective, upkeep
from daemon.fleet.connection import Local
from daemon.fleet.finding import FAIL, OK, WARN, Finding, failed, report, together
from daemon.fleet.here import one_of
from daemon.fleet.supervisor import SYSTEMD, supervisor_name
from daemon.prompt import DEFAULT, default, default_path
from daemon.transient import ROOT

OLDEST_PYTHON = (3, 11)
NOT_FOUND = "is not on the PATH that workers have ("
INSTALL = "install it, name it by its full path, or set PATH where workers get theirs"
OWN_PROGRAM = "name your project's program by its full path, or: [uv, run, ...], [sh, -c, ...]"
INVENTORY_HINT = "edit inventory/group_vars/all.yml"

__all__ = ["Finding", "Place", "examine", "failed", "report"]


class Place(NamedTuple):
    """Where the doctor looks; a test builds one of its own."""

    environ: Mapping[str, str]
    journal: str = "/var/log/journal"
    mountinfo: str = "/proc/self/mountinfo"


def examine(
    config: Config,
    place: Place | None = None,
    role: str | None = None,
    connection: Local | None = None,
    sent: copied.Sent | None = None,
) -> list[Finding]:
    """Look at everything that the roles of this host need.

    ``sent``: the release of who asks, for a host that has a copied one.
    """
    place, connection = place or Place(os.environ), connection or Local()
    units = place.environ
    findings = [_python(connection), *copied.examine(connection, sent)]
    if supervisor_name(connection, config) == SYSTEMD:
        manager = upkeep.ask_manager(connection)
        findings += upkeep.systemd(connection, manager, place.environ, place.journal)
        units = units if manager.problem else manager.environ
    else:
        findings += upkeep.pidfile(connection, config)
    findings += [
        *_installed(connection, config),
        *clone.workspace(config, connection),
        *clone.queue(config, connection, place.mountinfo),
    ]
    if not config.on_postgres:  # whose server tells of changes
        findings.append(_inotify())
    roles = (
        [config.roles[one_of("role", role, config.roles)]]
        if role
        else [config.roles[name] for name in config.run]
    )
    findings += together([each for one in roles for each in _role(config, one, units, connection)])
    return findings


def _installed(connection: Local, config: Config) -> Iterator[Finding]:
    if foreign := effective.foreign(connection, config):
        yield Finding("config", WARN, foreign.problems[0].what, foreign.problems[0].hint)
    elif effective.is_older(connection, config):
        yield Finding("config", WARN, effective.OLDER, effective.RENEW)
    if began := alone.cut_short(connection, config):
        yield Finding("deploy", WARN, effective.CUT.format(began), effective.GO_ON)


def _python(connection: Local) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return Finding("python", FAIL, version, f"install Python {wanted}, then: make setup")
    return Finding("python", OK, f"{version}, {connection.python}")


def _inotify() -> Finding:
    slow = "the interval alone wakes workers"
    try:
        from inotify_simple import INotify  # noqa: PLC0415  # Linux only
    except ImportError:
        return Finding("inotify", WARN, f"inotify_simple is missing: {slow}", "make setup")
    try:
        INotify().close()
    except OSError as error:
        hint = "as root: sysctl fs.inotify.max_user_instances=512"
        return Finding("inotify", WARN, f"{error.strerror}: {slow}", hint)
    return Finding("inotify", OK, "workers are woken by changes")


def _role(
    config: Config, role: Role, units: Mapping[str, str], connection: Local
) -> Iterator[Finding]:
    secrets: Mapping[str, str] = {}
    if role.env_file:
        try:
            secrets = environment.read_env_file(role.env_file)
        except RolecallError as error:
            problem = error.problems[0]
            hint = problem.hint or f"edit {role.env_file}"
            what = f"{problem.where}: {problem.what}"
            yield Finding("secrets", FAIL, what, hint, role.name)
        else:
            yield Finding(
                "secrets", OK, f"{role.env_file}, {len(secrets)} variables", "", role.name
            )
    path = {"PATH": os.defpath, **units, **role.env}["PATH"]  # of the gates, too
    yield _agent(config, role, {"PATH": path, **secrets, **role.env}["PATH"])
    for gate in role.gates:
        found = _find(config, gate[0], path)
        if found is None:
            yield Finding("gate", FAIL, f"{gate[0]} {NOT_FOUND}{path})", INSTALL, role.name)
        elif _is_ours(found, config):
            what = f"{gate[0]} is {found}, Rolecall's own: it knows nothing of your project"
            yield Finding("gate", WARN, what, OWN_PROGRAM, role.name)
    if role.agent or not role.merge:
        yield _prompt(config, role, connection)
    yield from budget(config, role, agents.find(role.agent))
    for name in role.pass_env:
        if name not in units and name not in secrets and name not in role.env:
            what = f"{name} (pass_env) is not set where workers start"
            yield Finding(
                "secrets", WARN, what, "name it in an env_file, if it is needed", role.name
            )


def _agent(config: Config, role: Role, path: str) -> Finding:
    if role.merge and not role.agent:
        if role.gates:
            return Finding("agent", OK, "none: Rolecall merges what its gates pass", "", role.name)
        what = "it has neither agent nor gates: what merges without a conflict is merged unseen"
        return Finding("agent", WARN, what, f"{INVENTORY_HINT}: give the role gates", role.name)
    if not role.agent:
        what = f"there is no agent: tasks would go to {role.on_exhausted}"
        hint = f"{INVENTORY_HINT}: give the role an agent"
        return Finding("agent", FAIL, what, hint, role.name)
    preset = agents.find(role.agent)
    program = preset.argv[0] if preset else role.command[0]
    found = _find(config, program, path)
    if found is None:
        hint = f"{preset.install}; or set PATH where workers get theirs" if preset else INSTALL
        hint = elsewhere(program, path) or hint
        return Finding("agent", FAIL, f"{program} {NOT_FOUND}{path})", hint, role.name)
    if preset and not preset.tried:
        what = f"{found}: how it is run is from its vendor's documents, not run by us"
        hint = f"try one task first: python -m daemon --role {role.name} --once"
        return Finding("agent", WARN, what, hint, role.name)
    return Finding("agent", OK, found, "", role.name)


def budget(config: Config, role: Role, preset: Preset | None) -> Iterator[Finding]:
    """Whether the role's budgets can be kept: what its agent does not tell cannot be counted."""
    limits = (*role.budget, *config.budget)
    known = ("cost_usd",) if preset and role.price and "tokens" in preset.tells else ()
    for key, unit in (("tokens", "tokens"), ("cost_usd", "cost")):
        limited = any(getattr(limit, key) is not None for limit in limits)
        if preset is None or not limited or key in (*preset.tells, *known):
            continue
        what = f"{preset.title} tells no {unit}: each attempt counts as what it has reserved"
        price = " a price, or" if key == "cost_usd" and "tokens" in preset.tells else ""
        hint = f"{INVENTORY_HINT}: give the role{price} budget: {{attempt: {{{key}: N}}}}"
        if getattr(role.budget.attempt, key) is None or price:
            yield Finding("budget", WARN, what, hint, role.name)


def elsewhere(program: str, path: str) -> str:
    """What to type where a person's shell has the program, and the PATH of workers has it not."""
    found = shutil.which(program)
    folder = os.path.dirname(found) if found and "/" not in program else ""
    return f'it is in {folder}; give the role env: {{PATH: "{folder}:{path}"}}' if folder else ""


def _prompt(config: Config, role: Role, connection: Local) -> Finding:
    init = clone.init_hint(config, connection)
    path = role.prompt or default_path(config.paths.prompts, role.name)
    if os.access(path, os.R_OK):
        return Finding("prompt", OK, os.path.dirname(path), "", role.name)
    if role.prompt is None:  # one that nobody named has a built-in stand-in
        own = default(role.name) != DEFAULT
        what = (
            f"there is none in {config.paths.prompts}: {'the default' if own else 'a general one'}"
        )
        return Finding("prompt", OK if own else WARN, what, "" if own else init, role.name)
    return Finding("prompt", FAIL, f"{path} is missing, or cannot be read", init, role.name)


def _is_ours(program: str, config: Config) -> bool:
    """Whether it is of the virtual environment that Rolecall itself runs in."""
    folder = os.path.realpath(os.path.dirname(program))
    venv = os.path.realpath(os.path.join(ROOT, ".venv", "bin"))
    return folder == venv and os.path.realpath(config.workspace) != os.path.realpath(ROOT)


def _find(config: Config, program: str, path: str) -> str | None:
    """The program as an attempt would find it; a relative path counts from the workspace."""
    program = program.replace("{workspace}", config.workspace)
    if "/" in program:
        program = os.path.join(config.workspace, program)
    return shutil.which(program, path=path)
