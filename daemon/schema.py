"""Every key of a role config: its kind, its default, its meaning. One declaration.

From it come the validation (``daemon.reading``), the JSON Schema for editors and the reference in
docs/configuration.md; ``python -m daemon.schema`` writes the last two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

YEAR = 31_536_000  # seconds; no time of a config is longer
NAME = "[a-z][a-z0-9-]{0,31}"  # of roles and of unit prefixes: they become parts of unit names


class Kind(NamedTuple):
    """What values a key takes.

    ``words`` says it to a person, ``schema`` to a program (JSON Schema). A mapping has either
    ``keys``, the declared ones, or ``values``, the kind under any name that matches ``names``; a
    list has ``items``. ``later`` are values that a coming version takes.
    """

    words: str
    schema: dict[str, Any]
    keys: tuple[Key, ...] = ()
    values: Kind | None = None
    names: str = ""
    items: Kind | None = None
    later: tuple[str, ...] = ()
    hint: str = ""
    secret: bool = False  # never shown in messages


class Key(NamedTuple):
    """One key. ``default`` None is unset; ``shown`` is how the reference words the default."""

    name: str
    kind: Kind
    default: Any
    meaning: str
    shown: str = ""


def _text(words: str, pattern: str = r"[^\u0000-\u001f\u007f]+", **more: Any) -> Kind:
    return Kind(words, {"type": "string", "pattern": f"^(?:{pattern})$"}, **more)


def _number(words: str, kind: str, **bounds: float) -> Kind:
    return Kind(words, {"type": kind, **bounds})


def _list(words: str, items: Kind, least: int = 0, hint: str = "") -> Kind:
    return Kind(words, {"type": "array", "minItems": least}, items=items, hint=hint)


def _choice(*values: str, later: tuple[str, ...] = (), hint: str = "") -> Kind:
    return Kind(f"one of {', '.join(values)}", {"enum": list(values)}, later=later, hint=hint)


def _mapping(words: str, *keys: Key) -> Kind:
    return Kind(words, {"type": "object"}, keys=keys)


QUOTE = "write it in quotes"
FLAG = Kind("true or false", {"type": "boolean"})
PATH = _text("a path")
WORD = _text("a plain word", "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", hint=QUOTE)
COUNT = _number("a whole number, 0 or more", "integer", minimum=0, maximum=1_000_000)
POSITIVE = _number("a whole number, 1 or more", "integer", minimum=1, maximum=1_000_000)
SECONDS = _number("a number of seconds, 0 or more", "number", minimum=0, maximum=YEAR)
DURATION = _number("a number of seconds above 0", "number", exclusiveMinimum=0, maximum=YEAR)
ARGUMENT = _text("a string", r"[^\u0000]*", hint=QUOTE)
ARGUMENTS = _list("a list of strings", ARGUMENT)
COMMAND = _list(
    "a list of a program and its arguments",
    ARGUMENT,
    1,
    "no shell is involved: write [program, argument, ...], or [sh, -c, '...']",
)
GATES_HINT = 'write each gate as a list: [["pytest", "-q"]]'
GATE = _list("a list of a program and its arguments", ARGUMENT, 1, GATES_HINT)
VARIABLE = "(?!ROLECALL_)[A-Za-z_][A-Za-z0-9_]*"
VARIABLE_WORDS = "the name of an environment variable"
VARIABLE_HINT = "letters, digits and _, no digit first; ROLECALL_* are set by us"

AGENTS_LATER = (
    "claude",
    "codex",
    "gemini",
    "opencode",
    "aider",
    "goose",
    "copilot",
    "cursor",
    "amp",
    "qwen",
    "llm",
)

BACKOFF = _mapping(
    "a mapping of base and cap",
    Key("base", SECONDS, 30, "The longest wait after a first error. It doubles with each further one; the wait itself is a random part of it."),
    Key("cap", SECONDS, 3600, "The longest wait there ever is. Not below `base`."),
)  # fmt: skip

LIMITS = _mapping(
    "a mapping of memory_max, cpu_quota and tasks_max",
    Key("memory_max", _text("a size such as 4G", r"[1-9][0-9]*(?:\.[0-9]+)?[KMGT]?|infinity", hint=QUOTE), None, "Memory of an attempt: `MemoryMax=` of its unit."),
    Key("cpu_quota", _text("a percentage of one CPU such as 200%", "[1-9][0-9]*%"), None, "CPU time of an attempt, 100% for each CPU: `CPUQuota=` of its unit."),
    Key("tasks_max", POSITIVE, None, "Processes and threads of an attempt: `TasksMax=` of its unit."),
)  # fmt: skip

ROLE = _mapping(
    "a mapping of the role's keys",
    Key("claims", _list("a list of statuses", WORD, 1, "write [status]"), None, "The statuses in which the role claims a task.", "of the role"),
    Key("holds", WORD, None, "The status of a task while an attempt of the role is on it. No other role holds it or claims it.", "of the role"),
    Key("on_success", WORD, None, "The status after success.", "of the role"),
    Key("on_rejected", WORD, None, "The status after a failed gate, or when the agent rejects the task.", "of the role"),
    Key("on_exhausted", WORD, None, "The status when attempts are spent, or the task needs a person.", "of the role"),
    Key("wip_limit", COUNT, 1, "How many tasks may be in the held status at once, over all hosts. The queue's own `wip_limits` wins."),
    Key("slots", COUNT, None, "Attempts at once on one host.", "the WIP limit"),
    Key("agent", _choice("command", later=AGENTS_LATER, hint="use `agent: command` with `command: [program, argument, ...]`"), None, "What does the work. Attempts of a role without one end blocked.", "`command` where a command is given"),
    Key("command", COMMAND, None, "The program of `agent: command` and its arguments. `{task_id}`, `{role}`, `{attempt}`, `{prompt}`, `{prompt_file}`, `{result_file}`, `{worktree}` and `{workspace}` stand for their values; other braces stand as they are. No shell is involved."),
    Key("model", _text("a model's name"), None, "The model of an agent preset; without effect for `agent: command`."),
    Key("args", ARGUMENTS, (), "Further arguments, behind the command's own; braces as in `command`."),
    Key("prompt", PATH, None, "The prompt's template (Jinja2).", "`<role>.md` under `paths.prompts`"),
    Key("prompt_via", _choice("stdin", "argument", "file"), "stdin", "How the agent gets its prompt: on standard input, as its last argument, or as the path of a file as its last argument (where the command does not name `{prompt}` or `{prompt_file}` itself)."),
    Key("gates", _list("a list of commands, each a list of strings", GATE, 0, GATES_HINT), (), "Commands that must pass after the agent, in its directory, before success counts."),
    Key("worktree", FLAG, None, "Whether each task gets a git worktree and a branch of its own.", "false for `agent: command`"),
    Key("evidence", FLAG, None, "Whether success needs a changed worktree or a commit.", "as `worktree` for builder and refiner, else false"),
    Key("interval", DURATION, 60, "The longest sleep between two looks at the queue, where nothing wakes the worker sooner."),
    Key("lease_ttl", DURATION, 180, "How long a lease lives without being renewed. Above `heartbeat`."),
    Key("heartbeat", DURATION, 60, "How often an attempt renews its lease."),
    Key("timeout", DURATION, 3600, "The longest that an attempt may take, its gates included."),
    Key("stop_budget", SECONDS, 60, "How long a stopping worker lets its attempts run on."),
    Key("kill_grace", SECONDS, 10, "The time between TERM and KILL."),
    Key("max_attempts", POSITIVE, 3, "How many attempts may end in error before the task goes to `on_exhausted`."),
    Key("backoff", BACKOFF, {}, "The wait after an error."),
    Key("env", Kind("a mapping of names to strings", {"type": "object"}, values=_text("a string", r"[^\u0000]*", hint=QUOTE, secret=True), names=VARIABLE, hint=VARIABLE_HINT), {}, "Environment variables of the agent and of gates. Secrets belong into `env_file`."),
    Key("pass_env", _list("a list of names of environment variables", _text(VARIABLE_WORDS, VARIABLE, hint=VARIABLE_HINT)), (), "Environment variables that the agent gets from the worker's own environment, where they are set there."),
    Key("env_file", PATH, None, "A file of `NAME=value` lines for the agent's environment, for secrets. Only its owner may have any permission on it."),
    Key("write_paths", _list("a list of paths", PATH), (), "What an attempt may write under systemd, beside the workspace and a /tmp of its own."),
    Key("limits", LIMITS, {}, "What an attempt may use, under systemd."),
)  # fmt: skip

PATHS = _mapping(
    "a mapping of paths",
    Key("leases", PATH, ".leases", "The live leases."),
    Key("locks", PATH, ".locks", "The lock files."),
    Key("prompts", PATH, ".oodatcaa/prompts", "The prompts, `<role>.md`."),
    Key("logs", PATH, ".agent-daemon-logs", "State changes, where no journal keeps them."),
    Key("pids", PATH, ".agent-daemon-pids", "PID files of the pidfile supervisor."),
    Key("runs", PATH, ".agent-runs", "Prompt, output and result of each attempt."),
    Key("worktrees", PATH, ".worktrees", "The git worktrees of tasks."),
)

QUEUE = ".oodatcaa/work/SPRINT_QUEUE.json"

TOP = _mapping(
    "a mapping of keys",
    Key("workspace", PATH, None, "The git repository that agents work on. A relative path counts from the folder that holds the inventory folder, or from the folder of the `--config` file.", "the git repository around the current directory, else that directory"),
    Key("queue", _text("a URL such as file:queue.json"), f"file:{QUEUE}", "Where the tasks live: `file:` and a path."),
    Key("supervisor", _choice("auto", "systemd", "pidfile", later=("launchd", "windows"), hint="use systemd or pidfile, or leave it out"), "auto", "What keeps workers running. `auto` is systemd where `/run/systemd/system` exists, else pidfile."),
    Key("unit_prefix", _text("small letters, digits and dashes, at most 32, a letter first", NAME), "agent", "What the names of units start with, so that two workspaces of one account can live side by side."),
    Key("run", _list("a list of roles", _text("a role's name", NAME)), None, "The roles that this host, or the hosts of this group, run.", "all roles"),
    Key("roles", Kind("a mapping of roles", {"type": "object"}, values=ROLE, names=NAME, hint="a role's name is small letters, digits and dashes, at most 32, a letter first"), None, "The roles. Only this key merges key by key across the layers of an inventory."),
    Key("paths", PATHS, {}, "Where our files are."),
    Key("max_adaptations", COUNT, 3, "How often a task may be rejected into another round of work before it goes to `on_exhausted`."),
    Key("unblock", FLAG, True, "Whether a blocked task starts by itself once its dependencies are satisfied."),
    Key("close_stories", FLAG, True, "Whether a planned story is done by itself once its children have ended."),
)  # fmt: skip

_ANY = _text("a string", hint=QUOTE)
ANSIBLE = (
    Key("ansible_host", _ANY, None, "The address to connect to.", "the host's name"),
    Key("ansible_port", _number("a port's number", "integer", minimum=1, maximum=65535), None, "The port of the SSH server."),
    Key("ansible_user", _ANY, None, "The account on the host."),
    Key("ansible_connection", _choice("local", "ssh"), None, "How the host is reached: `local` is this machine.", "`local` for localhost, else `ssh`"),
    Key("ansible_ssh_private_key_file", PATH, None, "The private key to log in with."),
    Key("ansible_ssh_common_args", _ANY, None, "Further arguments of ssh."),
    Key("ansible_python_interpreter", _ANY, None, "The Python of the host."),
)  # fmt: skip


if __name__ == "__main__":
    import sys

    from daemon.reference import main

    sys.exit(main(sys.argv[1:]))
