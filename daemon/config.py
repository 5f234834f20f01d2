"""What one host runs, as frozen values. Made from YAML by ``load``; travels as JSON.

This module knows no YAML: workers and attempts hold a Config for as long as they live, and what
reads YAML (``daemon.reading``, ``daemon.yamltext``) is loaded only where a file is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from daemon.errors import EXIT_CONFIG, ConfigError, Problem, RolecallError
from daemon.lifecycle import Machine, Rules

FILE = "file:"


class Backoff(NamedTuple):
    """Seconds: the wait after a first error at the most, and the longest there ever is."""

    base: float = 30.0
    cap: float = 3600.0


class Breaker(NamedTuple):
    """The circuit breaker of a role: when its claims pause. Times are seconds.

    ``failures`` attempts in a row that fail within ``seconds`` of their claim open it (0: nothing
    does); the pause is ``base`` at first and doubles, up to ``cap``, with each further one.
    """

    failures: int = 5
    seconds: float = 10.0
    base: float = 60.0
    cap: float = 3600.0


class Amounts(NamedTuple):
    """A limit of what may be spent, in tokens (input and output together) and US dollars."""

    tokens: int | None = None
    cost_usd: float | None = None


class Budget(NamedTuple):
    """What may be spent: by one attempt, on one task, in a day (UTC), and in all."""

    attempt: Amounts = Amounts()
    task: Amounts = Amounts()
    day: Amounts = Amounts()
    total: Amounts = Amounts()


class Price(NamedTuple):
    """What a million tokens cost, in US dollars."""

    input: float
    output: float


class Limits(NamedTuple):
    """What one attempt may use, in systemd's own notation; None where it is not limited."""

    memory_max: str | None = None
    cpu_quota: str | None = None
    tasks_max: int | None = None


class Llm(NamedTuple):
    """The LLM loop of a role. Times are seconds; None where the provider's own counts.

    ``commands`` are beginnings of argument lists, ``turns`` requests to the model, ``retries``
    those of one request, ``read_bytes`` what one call of a tool may show.
    """

    base_url: str | None = None
    key_env: str | None = None
    commands: tuple[tuple[str, ...], ...] = ()
    command_timeout: float = 300.0
    turns: int = 100
    request_timeout: float = 300.0
    retries: int = 3
    output_tokens: int | None = None
    read_bytes: int = 65536


class Role(NamedTuple):
    """One role, all defaults applied. Times are seconds, paths absolute.

    ``slots`` is None where the WIP limit counts, ``agent`` None where the role has none (its
    attempts end blocked), ``prompt`` None where the default path is to be looked at,
    ``stall_after`` None where an agent may be silent for as long as it likes, ``credential`` None
    where the agent shares no account with others, ``price`` None where only the agent knows.
    """

    name: str
    claims: tuple[str, ...]
    holds: str
    on_success: str
    on_rejected: str
    on_exhausted: str
    wip_limit: int = 1
    slots: int | None = None
    agent: str | None = None
    command: tuple[str, ...] = ()
    model: str | None = None
    args: tuple[str, ...] = ()
    prompt: str | None = None
    prompt_via: str = "stdin"
    gates: tuple[tuple[str, ...], ...] = ()
    worktree: bool = False
    evidence: bool = False
    merge: bool = False
    interval: float = 60.0
    lease_ttl: float = 180.0
    heartbeat: float = 60.0
    timeout: float = 3600.0
    stall_after: float | None = None
    stop_budget: float = 60.0
    kill_grace: float = 10.0
    max_attempts: int = 3
    backoff: Backoff = Backoff()
    breaker: Breaker = Breaker()
    credential: str | None = None
    budget: Budget = Budget()
    price: Price | None = None
    env: Mapping[str, str] = MappingProxyType({})
    pass_env: tuple[str, ...] = ()
    env_file: str | None = None
    write_paths: tuple[str, ...] = ()
    limits: Limits = Limits()
    llm: Llm = Llm()

    @property
    def rules(self) -> Rules:
        """What the state machine needs to know of it."""
        return Rules(
            self.name,
            self.claims,
            self.holds,
            self.on_success,
            self.on_rejected,
            self.on_exhausted,
            self.wip_limit,
            self.max_attempts,
            self.backoff.base,
            self.backoff.cap,
        )


class Paths(NamedTuple):
    """Where our files are, absolute."""

    leases: str
    locks: str
    prompts: str
    logs: str
    pids: str
    runs: str
    worktrees: str


class Config(NamedTuple):
    """Everything one host needs to know. ``run`` names the roles that it runs."""

    workspace: str
    queue: str
    supervisor: str
    unit_prefix: str
    run: tuple[str, ...]
    roles: dict[str, Role]
    paths: Paths
    max_adaptations: int = 3
    unblock: bool = True
    close_stories: bool = True
    budget: Budget = Budget()  # of all roles together; none of its attempts

    @property
    def queue_name(self) -> str:
        """The queue for a person: the path of a file, else the URL."""
        return self.queue if self.on_postgres else self.queue_file

    @property
    def machine(self) -> Machine:
        """The state machine of every role, those of other hosts too."""
        return Machine(
            {name: role.rules for name, role in self.roles.items()},
            self.max_adaptations,
            self.unblock,
            self.close_stories,
        )

    @property
    def on_postgres(self) -> bool:
        """Whether the queue is a database's: PostgreSQL, which many hosts may share."""
        return not self.queue.startswith(FILE)

    @property
    def queue_file(self) -> str:
        """The absolute path of a queue that is a file."""
        return self.queue.removeprefix(FILE)


def to_json(config: Config, *, indent: int | None = None) -> str:
    """The config in the form of a role config file: ``load`` reads it as well as ``from_json``."""
    roles = {}
    for name, role in config.roles.items():
        document = {
            **role._asdict(),
            "command": role.command or None,
            "backoff": role.backoff._asdict(),
            "breaker": role.breaker._asdict(),
            "budget": _budget_document(role.budget),
            "price": role.price and role.price._asdict(),
            "env": dict(role.env),
            "limits": role.limits._asdict(),
            "llm": role.llm._asdict(),
        }
        del document["name"]
        roles[name] = document
    budget = _budget_document(config.budget)
    del budget["attempt"]
    whole = {**config._asdict(), "paths": config.paths._asdict(), "roles": roles, "budget": budget}
    return json.dumps(whole, indent=indent, ensure_ascii=False)


def _budget_document(budget: Budget) -> dict[str, Any]:
    return {name: limit._asdict() for name, limit in budget._asdict().items()}


def from_json(text: str | bytes, *, newer: bool = False) -> Config:
    """The config that ``to_json`` wrote. What it holds was validated then.

    ``newer``: newer code may have written it; settings that this code does not know are left out.
    """
    whole: dict[str, Any] = json.loads(text)
    if newer:
        whole = _known(Config, whole)
        whole["roles"] = {name: _known(Role, each) for name, each in whole["roles"].items()}
    roles = {name: role_from(name, document) for name, document in whole.pop("roles").items()}
    paths, run = Paths(**whole.pop("paths")), tuple(whole.pop("run"))
    budget = budget_from(whole.pop("budget", {}))
    return Config(**whole, run=run, roles=roles, paths=paths, budget=budget)


def _known(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """What this code knows of a document, and of those inside it."""
    inside: dict[str, type[Any]] = {"paths": Paths, "price": Price}
    inside |= {name: type(value) for name, value in kind._field_defaults.items()}
    return {
        name: _known(inside[name], value)
        if isinstance(value, dict) and hasattr(inside.get(name), "_fields")
        else value
        for name, value in document.items()
        if name in kind._fields
    }


def llm_from(document: Mapping[str, Any]) -> Llm:
    """The settings of the LLM loop out of plain values."""
    commands = tuple(tuple(each) for each in document.get("commands", ()))
    return Llm(**{**document, "commands": commands})


def role_from(name: str, document: Mapping[str, Any]) -> Role:
    """A role out of plain values of the right types: lists become tuples."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    values["backoff"] = Backoff(**values.get("backoff", {}))
    values["breaker"] = Breaker(**values.get("breaker", {}))
    values["budget"] = budget_from(values.get("budget", {}))
    values["price"] = Price(**values["price"]) if values.get("price") else None
    values["limits"] = Limits(**values.get("limits", {}))
    values["llm"] = llm_from(values.get("llm", {}))
    values["command"] = values.get("command") or ()
    values["gates"] = tuple(tuple(gate) for gate in values.get("gates", ()))
    return Role(name, **values)


def budget_from(document: Mapping[str, Any]) -> Budget:
    """A budget out of plain values."""
    return Budget(**{name: Amounts(**limit) for name, limit in document.items()})


def load(
    path: str | None = None, *, workspace: str | None = None, queue: str | None = None
) -> Config:
    """The config of one YAML file, or where None is named what the inventory says of this host.

    ``workspace`` and ``queue`` are the command line's, and win. Raises ConfigError with every
    problem of it.
    """
    if path is None:
        from daemon.inventory import local_config  # noqa: PLC0415  # imports yaml

        return local_config(workspace=workspace, queue=queue)
    from daemon.reading import read_config  # noqa: PLC0415  # imports yaml

    return read_config(path, workspace=workspace, queue=queue)


def load_apart(
    path: str | None = None, *, workspace: str | None = None, queue: str | None = None
) -> Config:
    """What ``load`` gives, read in a short-lived child: a YAML parser would stay in our memory.

    Raises what ``load`` raises.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            with os.fdopen(theirs, "w", encoding="utf-8") as pipe:
                pipe.write(_answer(path, workspace, queue))
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    try:
        with os.fdopen(ours, encoding="utf-8") as pipe:
            text = pipe.read()
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise RolecallError(f"the process that reads the config ended with status {status}")
    kind, found = json.loads(text)
    if kind == "config":
        return from_json(found)
    problems = [Problem(*problem) for problem in found]
    if kind == EXIT_CONFIG:
        raise ConfigError.of(problems)
    raise RolecallError(problems[0].what, where=problems[0].where, hint=problems[0].hint)


def _answer(path: str | None, workspace: str | None, queue: str | None) -> str:
    try:
        return json.dumps(["config", to_json(load(path, workspace=workspace, queue=queue))])
    except RolecallError as error:
        return json.dumps([error.exit_code, error.problems])
    except Exception as error:  # noqa: BLE001  # the parent tells it
        return json.dumps([1, [("", f"{type(error).__name__}: {error}", "")]])
