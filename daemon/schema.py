"""Every key of a role config: its kind, its default, its meaning. One declaration.

From it come the validation (``daemon.checking``), the JSON Schema for editors and the reference in
docs/configuration.md; ``python -m daemon.schema`` writes the last two.
"""

from __future__ import annotations

from daemon import agents
from daemon.kinds import (
    ARGUMENT,
    ARGUMENTS,
    COMMAND,
    COUNT,
    DURATION,
    FLAG,
    GATE,
    GATES_HINT,
    NAME,
    PATH,
    POSITIVE,
    QUOTE,
    SECONDS,
    VARIABLE,
    VARIABLE_HINT,
    VARIABLE_WORDS,
    WORD,
    Key,
    Kind,
    choice,
    list_of,
    mapping,
    number,
    text,
)

AGENT = choice(
    "command",
    *agents.NAMES,
    hint="another program is `agent: command` with `command: [program, argument, ...]`",
)
SUPERVISOR = choice(
    "auto",
    "systemd",
    "pidfile",
    later=("launchd", "windows"),
    hint="use systemd or pidfile, or leave it out",
)
ENVIRONMENT = Kind(
    "a mapping of names to strings",
    {"type": "object"},
    values=ARGUMENT._replace(secret=True),
    names=VARIABLE,
    hint=VARIABLE_HINT,
)

BACKOFF = mapping(
    "a mapping of base and cap",
    Key(
        "base",
        SECONDS,
        30,
        "The longest wait after a first error. It doubles with each further one; the "
        "wait itself is a random part of it.",
    ),
    Key("cap", SECONDS, 3600, "The longest wait there ever is. Not below `base`."),
)

BREAKER = mapping(
    "a mapping of failures, seconds, base and cap",
    Key(
        "failures",
        COUNT,
        5,
        "How many attempts in a row have to fail quickly before the role's claims pause. 0: they "
        "never do.",
    ),
    Key("seconds", DURATION, 10, "What quickly is: so soon after the claim, or sooner."),
    Key(
        "base",
        DURATION,
        60,
        "The first pause. One attempt follows it; if that fails quickly too, the next pause is "
        "twice as long.",
    ),
    Key(
        "cap",
        DURATION,
        3600,
        "The longest pause; and how long the role must be quiet after one for all to be forgotten. "
        "Not below `base`.",
    ),
)

TOKENS = number("a whole number, 1 or more", "integer", minimum=1, maximum=10**15)
DOLLARS = number("a number above 0", "number", exclusiveMinimum=0, maximum=10**9)
PRICES = number("a number, 0 or more", "number", minimum=0, maximum=10**6)
AMOUNTS = mapping(
    "a mapping of tokens and cost_usd",
    Key("tokens", TOKENS, None, "Tokens, of input and output together.", "no limit"),
    Key("cost_usd", DOLLARS, None, "US dollars.", "no limit"),
)
TASK = Key("task", AMOUNTS, {}, "On one task. One that has spent it waits for a person.")
DAY = Key(
    "day", AMOUNTS, {}, "In one day, UTC. Once it is spent nothing is claimed until the next one."
)
TOTAL = Key("total", AMOUNTS, {}, "In all. Once it is spent nothing is claimed until it is raised.")
BUDGET = mapping("a mapping of task, day and total", TASK, DAY, TOTAL)
ROLE_BUDGET = mapping(
    "a mapping of attempt, task, day and total",
    Key(
        "attempt",
        AMOUNTS,
        {},
        "By one attempt: what a claim reserves. Once one has spent more than twice that, or three "
        "in a row have spent more, the role claims nothing until a person acts.",
    ),
    TASK,
    DAY,
    TOTAL,
)
PRICE = mapping(
    "a mapping of input and output",
    Key("input", PRICES, None, "US dollars for a million tokens of input. Has to be given."),
    Key("output", PRICES, None, "US dollars for a million tokens of output. Has to be given."),
)

LIMITS = mapping(
    "a mapping of memory_max, cpu_quota and tasks_max",
    Key(
        "memory_max",
        text("a size such as 4G", r"[1-9][0-9]*(?:\.[0-9]+)?[KMGT]?|infinity", hint=QUOTE),
        None,
        "Memory of an attempt: `MemoryMax=` of its unit.",
    ),
    Key(
        "cpu_quota",
        text("a percentage of one CPU such as 200%", "[1-9][0-9]*%"),
        None,
        "CPU time of an attempt, 100% for each CPU: `CPUQuota=` of its unit.",
    ),
    Key(
        "tasks_max", POSITIVE, None, "Processes and threads of an attempt: `TasksMax=` of its unit."
    ),
)

LLM_COMMANDS_HINT = 'write each as a list: [["pytest"], ["git", "diff"]]'
LLM = mapping(
    "a mapping of the loop's keys",
    Key(
        "base_url",
        # No name and password, which would be shown; no query.
        text(
            "an address such as https://host/v1, without a name or a password in it",
            r"https?://[^\s@/?#]+(?:/[^\s@?#]*)?",
            secret=True,
            hint="keys come by pass_env or env_file",
        ),
        None,
        "Where the provider, or a server that speaks like it, is reached.",
        "the provider's own, or `OPENAI_BASE_URL` or `ANTHROPIC_BASE_URL`",
    ),
    Key(
        "key_env",
        text(VARIABLE_WORDS, VARIABLE, hint=VARIABLE_HINT),
        None,
        "The environment variable that holds the key: name it in `pass_env`, or set it in "
        "`env_file`.",
        "`OPENAI_API_KEY` or `ANTHROPIC_API_KEY`",
    ),
    Key(
        "commands",
        list_of(
            "a list of commands, each a list of strings",
            GATE._replace(hint=LLM_COMMANDS_HINT),
            0,
            LLM_COMMANDS_HINT,
        ),
        (),
        "What the model may run, in its worktree, without a shell and without credentials: each "
        "is the beginning of an argument list. None: it has no such tool.",
    ),
    Key("command_timeout", DURATION, 300, "The longest that one command may take."),
    Key("turns", POSITIVE, 100, "How often the model is asked at the most."),
    Key(
        "request_timeout",
        DURATION,
        300,
        "How long the provider may be silent while an answer is waited for.",
    ),
    Key(
        "retries",
        COUNT,
        3,
        "How often a request is made again after a 429, a 5xx or a lost connection, before an "
        "answer has begun. A 401 is final at once.",
    ),
    Key(
        "output_tokens",
        POSITIVE,
        None,
        "How long one answer of the model may be, in tokens.",
        "the provider's own",
    ),
    Key(
        "read_bytes",
        number("a whole number of bytes, 1024 or more", "integer", minimum=1024, maximum=1 << 20),
        65536,
        "What one call of a tool shows at the most, of a file or of a command's output.",
    ),
)

ROLE = mapping(
    "a mapping of the role's keys",
    Key(
        "claims",
        list_of("a list of statuses", WORD, 1, "write [status]"),
        None,
        "The statuses in which the role claims a task.",
        "of the role",
    ),
    Key(
        "holds",
        WORD,
        None,
        "The status of a task while an attempt of the role is on it. No other role "
        "holds it or claims it.",
        "of the role",
    ),
    Key("on_success", WORD, None, "The status after success.", "of the role"),
    Key(
        "on_rejected",
        WORD,
        None,
        "The status after a failed gate, or when the agent rejects the task.",
        "of the role",
    ),
    Key(
        "on_exhausted",
        WORD,
        None,
        "The status when attempts are spent, or the task needs a person.",
        "of the role",
    ),
    Key(
        "wip_limit",
        COUNT,
        1,
        "How many tasks may be in the held status at once, over all hosts. The "
        "queue's own `wip_limits` wins.",
    ),
    Key("slots", COUNT, None, "Attempts at once on one host.", "the WIP limit"),
    Key(
        "agent",
        AGENT,
        None,
        "What does the work. Attempts of a role without one end blocked.",
        "`command` where a command is given",
    ),
    Key(
        "command",
        COMMAND,
        None,
        "The program of `agent: command` and its arguments. `{task_id}`, `{role}`, "
        "`{attempt}`, `{prompt}`, `{prompt_file}`, `{result_file}`, `{worktree}` and "
        "`{workspace}` stand for their values; other braces stand as they are. No "
        "shell is involved.",
    ),
    Key(
        "model",
        text("a model's name"),
        None,
        "The model of an agent preset; without effect for `agent: command`.",
        "the CLI's own",
    ),
    Key(
        "args",
        ARGUMENTS,
        (),
        "Further arguments, behind those of the command or the preset; braces as in `command`.",
    ),
    Key(
        "prompt", PATH, None, "The prompt's template (Jinja2).", "`<role>.md` under `paths.prompts`"
    ),
    Key(
        "prompt_via",
        choice("stdin", "argument", "file"),
        None,
        "How the agent gets its prompt: on standard input, as its last argument, or "
        "as the path of a file as its last argument (where the command does not name "
        "`{prompt}` or `{prompt_file}` itself).",
        "`stdin` for `agent: command`, else as the preset's CLI wants it",
    ),
    Key(
        "gates",
        list_of("a list of commands, each a list of strings", GATE, 0, GATES_HINT),
        (),
        "Commands that must pass after the agent, in its directory, before success counts.",
    ),
    Key(
        "worktree",
        FLAG,
        None,
        "Whether each task gets a git worktree and a branch of its own.",
        "true for presets and `llm`, false for `agent: command`",
    ),
    Key(
        "evidence",
        FLAG,
        None,
        "Whether success needs a change that this attempt has made: to the worktree, or a commit.",
        "as `worktree` for builder and refiner, else false",
    ),
    Key(
        "merge",
        FLAG,
        None,
        "Whether Rolecall merges the task's branch into the branch that the workspace is on. The"
        " role's agent, if it has one, and its gates see the merged result before. Wants"
        " `worktree`.",
        "as `worktree` for integrator, else false",
    ),
    Key(
        "interval",
        DURATION,
        60,
        "The longest sleep between two looks at the queue, where nothing wakes the worker sooner.",
    ),
    Key(
        "lease_ttl",
        DURATION,
        180,
        "How long a lease lives without being renewed. Above `heartbeat`.",
    ),
    Key("heartbeat", DURATION, 60, "How often an attempt renews its lease."),
    Key("timeout", DURATION, 3600, "The longest that an attempt may take, its gates included."),
    Key(
        "stall_after",
        DURATION,
        None,
        "How long an agent, or a gate, may print nothing before it is ended as stalled. Many "
        "agents print nothing until they are done.",
        "for ever",
    ),
    Key("stop_budget", SECONDS, 60, "How long a stopping worker lets its attempts run on."),
    Key("kill_grace", SECONDS, 10, "The time between TERM and KILL."),
    Key(
        "max_attempts",
        POSITIVE,
        3,
        "How many attempts may end in error before the task goes to `on_exhausted`.",
    ),
    Key("backoff", BACKOFF, {}, "The wait after an error."),
    Key("breaker", BREAKER, {}, "The pause of a role whose every attempt fails quickly."),
    Key(
        "credential",
        WORD,
        None,
        "The name of the account that the agent spends from. When it meets that account's limit, "
        "every role of that credential waits for the reset.",
        "the preset's provider; none for `agent: command`: only its own task waits",
    ),
    Key("budget", ROLE_BUDGET, {}, "What the role may spend."),
    Key(
        "price",
        PRICE,
        None,
        "What tokens cost, for an agent that tells tokens and no cost.",
    ),
    Key(
        "env",
        ENVIRONMENT,
        {},
        "Environment variables of the agent and of gates. Secrets belong into `env_file`.",
    ),
    Key(
        "pass_env",
        list_of(
            "a list of names of environment variables",
            text(VARIABLE_WORDS, VARIABLE, hint=VARIABLE_HINT),
        ),
        (),
        "Environment variables that the agent gets from the worker's own environment,"
        " where they are set there.",
    ),
    Key(
        "env_file",
        PATH,
        None,
        "A file of `NAME=value` lines for the agent's environment, for secrets. Only "
        "its owner may have any permission on it.",
    ),
    Key(
        "write_paths",
        list_of("a list of paths", PATH),
        (),
        "What an attempt may write under systemd, beside the workspace, a /tmp of its own and the "
        "folders where a preset's CLI keeps its state.",
    ),
    Key("limits", LIMITS, {}, "What an attempt may use, under systemd."),
    Key("llm", LLM, {}, "The LLM loop; without effect for other agents than `llm`."),
)

ROLES = Kind(
    "a mapping of roles",
    {"type": "object"},
    values=ROLE,
    names=NAME,
    hint="a role's name is small letters, digits and dashes, at most 32, a letter first",
)

PATHS = mapping(
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

TOP = mapping(
    "a mapping of keys",
    Key(
        "workspace",
        PATH,
        None,
        "The git repository that agents work on. A relative path counts from the "
        "folder that holds the inventory folder, or from the folder of the `--config`"
        " file. A host that is not this machine needs one from `/` or `~`.",
        "the git repository around the current directory, else that directory",
    ),
    Key(
        "queue",
        text("a URL such as file:queue.json", secret=True),
        f"file:{QUEUE}",
        "Where the tasks live: `file:` and a path, or a `postgresql://` URI of libpq with no "
        "password in it.",
    ),
    Key(
        "supervisor",
        SUPERVISOR,
        "auto",
        "What keeps workers running. `auto` is systemd where `/run/systemd/system` "
        "exists, else pidfile.",
    ),
    Key(
        "unit_prefix",
        text("small letters, digits and dashes, at most 32, a letter first", NAME),
        "agent",
        "What the names of units start with, so that two workspaces of one account "
        "can live side by side.",
    ),
    Key(
        "run",
        list_of("a list of roles", text("a role's name", NAME)),
        None,
        "The roles that this host, or the hosts of this group, run. `[]`: none; the machine that "
        "you type on is such a host, where agents work on others only.",
        "all roles",
    ),
    Key(
        "roles",
        ROLES,
        None,
        "The roles. Only this key merges key by key across the layers of an inventory.",
    ),
    Key("paths", PATHS, {}, "Where our files are."),
    Key(
        "max_adaptations",
        COUNT,
        3,
        "How often a task may be rejected into another round of work before it goes "
        "to `on_exhausted`.",
    ),
    Key(
        "unblock",
        FLAG,
        default=True,
        meaning="Whether a blocked task starts by itself once its dependencies are satisfied.",
    ),
    Key(
        "close_stories",
        FLAG,
        default=True,
        meaning="Whether a planned story is done by itself once its children have ended.",
    ),
    Key("budget", BUDGET, {}, "What all roles may spend together."),
)

_ANY = text("a string", hint=QUOTE)
_PORT = number("a number from 1 to 65535", "integer", minimum=1, maximum=65535)
ANSIBLE = (
    Key("ansible_host", _ANY, None, "The address to connect to.", "the host's name"),
    Key("ansible_port", _PORT, None, "The port of the SSH server.", "ssh's own"),
    Key("ansible_user", _ANY, None, "The account on the host.", "ssh's own"),
    Key(
        "ansible_connection",
        choice("local", "ssh", "ansible.builtin.local", "ansible.builtin.ssh"),
        None,
        "How the host is reached: `local` is this machine.",
        "`local` for localhost, else `ssh`",
    ),
    Key("ansible_private_key_file", PATH, None, "The private key to log in with.", "ssh's own"),
    Key("ansible_ssh_args", _ANY, None, "Further arguments of ssh, split as a shell does."),
    Key("ansible_ssh_common_args", _ANY, None, "Arguments behind those, such as `-J jump`."),
    Key("ansible_ssh_extra_args", _ANY, None, "Arguments behind those."),
    Key(
        "ansible_python_interpreter",
        _ANY,
        None,
        "The Python of the host, 3.11 or newer; one that starts with `auto` is looked for.",
        "the first that is found there",
    ),
    Key("ansible_ssh_host", _ANY, None, "As `ansible_host`, and wins over it."),
    Key("ansible_ssh_port", _PORT, None, "As `ansible_port`, and wins over it."),
    Key("ansible_ssh_user", _ANY, None, "As `ansible_user`, and wins over it."),
    Key(
        "ansible_ssh_private_key_file",
        PATH,
        None,
        "As `ansible_private_key_file`, and wins over it.",
    ),
)


if __name__ == "__main__":
    import sys

    from daemon.reference import main

    sys.exit(main(sys.argv[1:]))
