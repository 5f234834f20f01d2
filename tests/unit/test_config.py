"""Role configs: what is accepted, what is made of it, and what is said of everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import reference
from daemon.config import (
    Amounts,
    Backoff,
    Budget,
    Config,
    Limits,
    Price,
    from_json,
    load,
    load_apart,
    to_json,
)
from daemon.errors import ConfigError, Problem
from daemon.lifecycle import DEFAULT_ROLES

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def into(text: str) -> str:
        (tmp_path / "rc.yml").write_text(text, encoding="utf-8")
        return "rc.yml"

    return into


def problems(path: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code == 78
    return list(caught.value.problems)


EVERYTHING = """\
workspace: shop
queue: file:work/queue.json
supervisor: pidfile
unit_prefix: shop
run: [reviewer, builder]
max_adaptations: 0
unblock: false
close_stories: false
paths: {leases: held, logs: /var/log/shop}
budget: {day: {cost_usd: 50}, task: {tokens: 9}}
roles:
  reviewer:
    claims: [to_review, again]
    holds: reviewing
    on_success: done
    on_rejected: again
    on_exhausted: needs_manual
  builder:
    agent: command
    command: [sh, -c, "echo '{{ x }}' {task_id}"]
    args: ["7"]
    model: some
    prompt: p/b.md
    prompt_via: file
    gates: [["pytest", "-q"], ["ruff", "check"]]
    worktree: true
    wip_limit: 0
    slots: 2
    interval: 0.5
    lease_ttl: 3
    heartbeat: 1
    timeout: 10
    stop_budget: 0
    kill_grace: 0
    max_attempts: 1
    backoff: {base: 0, cap: 0}
    credential: acme.org
    budget: {attempt: {cost_usd: 0.5, tokens: 100}, total: {cost_usd: 9}, day: }
    price: {input: 1.25, output: 10}
    env: {CI: "1", EMPTY: ""}
    pass_env: [TOKEN]
    env_file: ~/secret.env
    write_paths: [~/.cache/uv, out]
    limits: {memory_max: 4G, cpu_quota: 200%, tasks_max: 512}
"""


def test_every_key_is_taken(write: Write, tmp_path: Path) -> None:
    """Each key ends in the Config, its paths absolute, roles in the order of the state machine."""
    config = load(write(EVERYTHING))
    shop = str(tmp_path / "shop")
    builder = config.roles["builder"]
    assert config.workspace == shop
    assert config.queue == f"file:{shop}/work/queue.json"
    assert config.queue_file == f"{shop}/work/queue.json"
    assert (config.supervisor, config.unit_prefix) == ("pidfile", "shop")
    assert list(config.roles) == ["builder", "reviewer"]
    assert config.run == ("builder", "reviewer")
    assert (config.max_adaptations, config.unblock, config.close_stories) == (0, False, False)
    assert (config.paths.leases, config.paths.logs) == (f"{shop}/held", "/var/log/shop")
    assert config.paths.runs == f"{shop}/.agent-runs"
    assert builder.command == ("sh", "-c", "echo '{{ x }}' {task_id}")
    assert builder.gates == (("pytest", "-q"), ("ruff", "check"))
    assert (builder.prompt, builder.prompt_via) == (f"{shop}/p/b.md", "file")
    assert builder.evidence is True
    assert (builder.interval, builder.wip_limit, builder.slots) == (0.5, 0, 2)
    assert builder.env == {"CI": "1", "EMPTY": ""}
    assert builder.env_file == os.path.expanduser("~/secret.env")
    assert builder.write_paths == (os.path.expanduser("~/.cache/uv"), f"{shop}/out")
    assert builder.limits == Limits("4G", "200%", 512)
    assert config.roles["reviewer"].claims == ("to_review", "again")
    assert config.budget == Budget(day=Amounts(cost_usd=50), task=Amounts(tokens=9))
    assert builder.credential == "acme.org"
    assert builder.budget == Budget(attempt=Amounts(100, 0.5), total=Amounts(cost_usd=9))
    assert builder.price == Price(1.25, 10)


def test_the_defaults(write: Write) -> None:
    """An empty role has the documented defaults, and no agent."""
    config = load(write("workspace: .\nroles: {refiner: , builder: {command: [a]}}\n"))
    refiner, builder = config.roles["refiner"], config.roles["builder"]
    assert list(config.roles) == ["builder", "refiner"] == list(config.run)
    assert (refiner.agent or "none", builder.agent) == ("none", "command")
    assert not builder.worktree
    assert not builder.evidence
    assert builder.slots is None
    assert (builder.lease_ttl, builder.heartbeat, builder.timeout) == (180, 60, 3600)
    assert builder.backoff == Backoff(30.0, 3600.0)
    for key, value in DEFAULT_ROLES["refiner"].items():
        assert getattr(refiner, key) == (tuple(value) if isinstance(value, list) else value)
    assert (config.supervisor, config.unit_prefix) == ("auto", "agent")
    assert config.machine.roles["builder"].on_rejected == "needs_adapt"
    assert config.budget == builder.budget == Budget()
    assert (builder.credential, builder.price) == (None, None)


def test_a_credential_is_the_presets_provider(write: Write) -> None:
    """Unless the role names another account."""
    own = "refiner: {agent: claude, credential: work}"
    config = load(write(f"roles: {{builder: {{agent: claude}}, {own}}}\n"))
    assert [role.credential for role in config.roles.values()] == ["anthropic", "work"]


def test_the_loop_spends_from_its_wires_account(write: Write) -> None:
    """As the CLI of that provider does; what a server elsewhere limits is another matter."""
    elsewhere = "llm: {base_url: 'http://localhost:8000/v1'}"
    config = load(
        write(
            "roles:\n"
            "  builder: {agent: llm, model: 'anthropic:m'}\n"
            "  tester: {agent: llm, model: 'openai-responses:m'}\n"
            f"  refiner: {{agent: llm, model: 'openai:m', {elsewhere}}}\n"
        )
    )
    found = {name: role.credential for name, role in config.roles.items()}
    assert found == {"builder": "anthropic", "tester": "openai", "refiner": "llm"}


def test_an_integrator_with_a_worktree_merges(write: Write) -> None:
    """By default; who wants an agent to merge says merge: false, or gives it no worktree."""
    roles = ", ".join(f"{name}: {{worktree: true}}" for name in DEFAULT_ROLES)
    config = load(write(f"roles: {{{roles}}}\n"))
    assert [name for name, role in config.roles.items() if role.merge] == ["integrator"]
    config = load(write("roles: {integrator: {worktree: true, merge: false}, tester: {}}\n"))
    assert not any(role.merge for role in config.roles.values())
    config = load(write("roles: {tester: {worktree: true, merge: true}}\n"))
    assert from_json(to_json(config)).roles["tester"].merge


def test_evidence_is_only_asked_of_those_who_change_code(write: Write) -> None:
    """A worktree makes evidence the default of builder and refiner, of nobody else."""
    roles = ", ".join(f"{name}: {{worktree: true}}" for name in DEFAULT_ROLES)
    config = load(write(f"roles: {{{roles}}}\n"))
    asked = [name for name, role in config.roles.items() if role.evidence]
    assert asked == ["builder", "refiner"]


def test_json_round_trip(write: Write, tmp_path: Path) -> None:
    """A config survives its JSON, which is a role config itself."""
    config = load(write(EVERYTHING))
    assert from_json(to_json(config)) == config
    (tmp_path / "again.yml").write_text(to_json(config, indent=2), encoding="utf-8")
    assert load("again.yml") == config


def test_load_apart_is_load(write: Write) -> None:
    """The child hands over the same config, and the same problems."""
    assert load_apart(write(EVERYTHING)) == load("rc.yml")
    write("roles: {builder: {wip_limt: 3}}\nrn: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_apart("rc.yml")
    assert list(caught.value.problems) == problems("rc.yml")
    assert len(caught.value.problems) == 2


def test_yaml_stays_out_of_the_process(write: Write) -> None:
    """What holds a Config has not loaded a YAML parser, even after reading one apart."""
    code = (
        "import sys; from daemon.config import load_apart; load_apart('rc.yml');"
        "print([name for name in ('yaml', 'dataclasses', 'inspect') if name in sys.modules])"
    )
    write(EVERYTHING)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(reference.DOCS)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, check=True
    )
    assert done.stdout == b"[]\n"


def test_the_command_line_wins(write: Write, tmp_path: Path) -> None:
    """--workspace and --queue replace what the file says; a relative queue is the workspace's."""
    config = load(write(EVERYTHING), workspace="other", queue="file:q.json")
    assert config.workspace == str(tmp_path / "other")
    assert config.queue_file == str(tmp_path / "other" / "q.json")
    assert config.paths.leases == str(tmp_path / "other" / "held")
    assert load("rc.yml", queue="postgresql://h/d").queue == "postgresql://h/d"
    with pytest.raises(ConfigError, match="queue holds a password") as caught:
        load("rc.yml", queue="postgresql://u:p@h/d")
    assert [problem.where for problem in caught.value.problems] == ["--queue"]


def test_the_workspace_where_none_is_named(write: Write, tmp_path: Path) -> None:
    """It is the git repository around the current directory, else that directory."""
    path = os.path.abspath(write("roles: {builder: }\n"))
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    os.chdir(inner)
    assert load(path).workspace == os.getcwd()
    (tmp_path / "a" / ".git").mkdir()
    assert load(path).workspace == str(tmp_path / "a")


@pytest.mark.parametrize("url", ["file:/q/x.json", "file:///q/x.json", "file://localhost/q/x.json"])
def test_forms_of_a_file_url(write: Write, url: str) -> None:
    """A file: URL may have no authority, an empty one, or localhost."""
    assert load(write(f"queue: {url}\nroles: {{builder: }}\n")).queue == "file:/q/x.json"


def test_anchors_and_merge_keys(write: Write) -> None:
    """Aliases repeat values; of a merge the mapping's own keys win, then the earlier mapping."""
    config = load(
        write(
            """\
roles:
  planner: &one {command: [a], slots: 1, timeout: 5}
  builder: {slots: 2, <<: *one}
  tester: {<<: [{timeout: 7}, *one]}
"""
        )
    )
    roles = config.roles
    assert roles["builder"].command == ("a",)
    assert (roles["builder"].slots, roles["builder"].timeout) == (2, 5)
    assert (roles["tester"].slots, roles["tester"].timeout) == (1, 7)


def test_the_form_of_a_problem(write: Write) -> None:
    """File, line, what and hint stand exactly where they are documented to stand."""
    path = write("workspace: .\nroles:\n  builder:\n    wip_limt: 3\n")
    assert problems(path) == [
        Problem("rc.yml:4", 'unknown key "wip_limt" in roles.builder', 'did you mean "wip_limit"?')
    ]


def test_all_problems_at_once(write: Write) -> None:
    """Problems of keys, of values and between values come in one error, in the file's order."""
    path = write(
        """\
run: [bilder]
queue: postgresql://host
roles:
  builder: {slots: true, tiemout: 1}
  tester: {lease_ttl: 10}
  reviewer: {claims: [x]}
"""
    )
    found = problems(path)
    assert [problem.where for problem in found] == [f"rc.yml:{line}" for line in (1, 2, 4, 4, 5, 6)]


def role(text: str) -> str:
    return f"roles:\n  builder: {{{text}}}\n"


MINE = "claims: [x], holds: y, on_success: done, on_rejected: needs_adapt, on_exhausted: blocked"

BAD = {
    "unknown key": ("worksapce: .\nroles: {builder: }", 1, '"worksapce"', '"workspace"?'),
    "unknown key of limits": (role("limits: {disk: 1G}"), 2, "roles.builder.limits", "known: "),
    "unknown key of backoff": (role("backoff: {bas: 1}"), 2, '"bas"', '"base"?'),
    "unknown key of paths": ("paths:\n  lease: x\nroles: {builder: }", 2, "paths", '"leases"?'),
    "duplicate key": ("unblock: true\nroles: {builder: }\nunblock: 1", 3, "duplicate", "line 1"),
    "no mapping": ("- a\n- b", 1, "a mapping", ""),
    "empty file": ("", 1, "no role is declared", "planner: {}"),
    "no roles": ("unblock: true", 1, "no role is declared", ""),
    "roles is a list": ("roles: [builder]", 1, "roles must be a mapping", ""),
    "role is a string": ("roles:\n  builder: claude", 2, "roles.builder must be a mapping", ""),
    "bad role name": ("roles:\n  Builder: {}", 2, '"Builder" in roles', "small letters"),
    "long role name": (f"roles:\n  {'x' * 33}: {{{MINE}}}", 2, "is not a name", ""),
    "misspelt role": ("roles:\n  bulider: {}", 2, "lacks claims, holds", '"builder"?'),
    "own role, incomplete": ("roles:\n  x: {claims: [a], holds: b}", 2, "lacks on_success", ""),
    "unknown role in run": ("run: [x]\nroles: {builder: }", 1, 'unknown role "x" in run', "known"),
    "run is a word": ("run: builder\nroles: {builder: }", 1, "run must be a list", ""),
    "bool is no number": (role("wip_limit: true"), 2, "a whole number, 0 or more, not true", ""),
    "negative count": (role("slots: -1"), 2, "not -1", ""),
    "float is no count": (role("max_attempts: 1.5"), 2, "not 1.5", ""),
    "no attempts": (role("max_attempts: 0"), 2, "1 or more", ""),
    "huge count": (role(f"slots: {'9' * 30}"), 2, "at most 1000000", ""),
    "string for a number": (role('wip_limit: "3"'), 2, 'not "3"', ""),
    "negative time": (role("timeout: -5"), 2, "seconds above 0, not -5", ""),
    "zero interval": (role("interval: 0"), 2, "above 0", ""),
    "endless time": (role("timeout: .inf"), 2, "timeout must be", ""),
    "no number": (role("timeout: .nan"), 2, "timeout must be", ""),
    "clock notation": (
        role("timeout: 1:30"),
        2,
        "1:30 is read as a number",
        'write "1:30" if that text is meant',
    ),
    "word for a flag": (role("worktree: maybe"), 2, "true or false", ""),
    "merge without a worktree": (role("merge: true"), 2, "merge without a worktree", ""),
    "ttl below heartbeat": (role("lease_ttl: 60"), 2, "lease_ttl (60) is not above", "outlive"),
    "cap below base": (role("backoff: {base: 9, cap: 8}"), 2, "cap is below base", ""),
    "command is a string": (role("command: a b"), 2, "command must be a list", "no shell"),
    "command is empty": (role("command: []"), 2, "not an empty list", ""),
    "agent without command": (role("agent: command"), 2, "without a command", "add command"),
    "agent that nobody knows": (
        role("agent: hal9000"),
        2,
        "one of command, claude",
        "agent: command",
    ),
    "a command beside a preset": (
        role("agent: claude\n    , command: [x]"),
        3,
        "a command beside agent: claude",
        "use agent: command",
    ),
    "unknown agent": (role("agent: comand"), 2, "one of command", '"command"?'),
    "number in a command": (role("command: [sleep, 5]"), 2, "command[2]", '"5"'),
    "empty entry": (role("command: [a, ]\n    , args: [~]"), 3, "empty entry", ""),
    "gates are strings": (role('gates: ["pytest -q"]'), 2, "gates[1]", '[["pytest", "-q"]]'),
    "gates are one command": (role("gates: [pytest, -q]"), 2, "gates[1]", '[["pytest", "-q"]]'),
    "credential is a path": (role("credential: a/b"), 2, "a plain word", ""),
    "budget is a number": (role("budget: 5"), 2, "a mapping of attempt, task, day and", ""),
    "budget of no unit": (role("budget: {day: 5}"), 2, "a mapping of tokens and cost_usd", ""),
    "unit of a budget": (role("budget: {day: {cost: 5}}"), 2, '"cost"', '"cost_usd"?'),
    "nothing to spend": (role("budget: {day: {cost_usd: 0}}"), 2, "above 0, not 0", ""),
    "no whole tokens": (role("budget: {task: {tokens: 1.5}}"), 2, "a whole number", ""),
    "span of a budget": (role("budget: {month: {}}"), 2, '"month"', "known: attempt"),
    "attempt of all roles": ("budget: {attempt: {}}\nroles: {builder: }", 1, '"attempt"', "known"),
    "half a price": (role("price: {input: 1}"), 2, "price lacks output", "such as"),
    "negative price": (role("price: {input: -1, output: 1}"), 2, "0 or more", ""),
    "prompt_via": (role("prompt_via: arg"), 2, "one of stdin, argument, file", ""),
    "claims is a word": (role("claims: ready"), 2, "claims must be a list", "[status]"),
    "claims is empty": (role("claims: []"), 2, "claims must be a list", ""),
    "status of several words": (role("holds: in progress"), 2, "a plain word", ""),
    "status is read as a flag": (role("on_success: yes"), 2, "a plain word, not true", "quotes"),
    "number in env": (role("env: {CI: 1}"), 2, "env.CI must be a string", "in quotes"),
    "nothing in env": (role("env: {CI: }"), 2, "env.CI has no value", '""'),
    "bad name in env": (role('env: {"A-B": x}'), 2, '"A-B"', "letters, digits and _"),
    "our name in env": (role("env: {ROLECALL_ROLE: x}"), 2, '"ROLECALL_ROLE"', "set by us"),
    "bad name in pass_env": (role('pass_env: ["A=b"]'), 2, "pass_env[1]", "letters, digits"),
    "size": (role("limits: {memory_max: lots}"), 2, "a size such as 4G", ""),
    "size is a number": (role("limits: {memory_max: 4096}"), 2, "a size", '"4096"'),
    "quota": (role("limits: {cpu_quota: 2}"), 2, "a percentage", ""),
    "supervisor of a later version": (
        "supervisor: launchd\nroles: {builder: }",
        1,
        "launchd is not in this version",
        "systemd or pidfile",
    ),
    "unknown supervisor": ("supervisor: sytemd\nroles: {builder: }", 1, "one of", '"systemd"?'),
    "unit_prefix": ("unit_prefix: a/b\nroles: {builder: }", 1, "unit_prefix must be", ""),
    "a bare path": ("queue: q.json\nroles: {builder: }", 1, "no URL of", '"file:q.json"?'),
    "another database": ("queue: mysql://h/d\nroles: {builder: }", 1, "no URL of", "postgresql:"),
    **{
        f"queue {url}": (f'queue: "{url}"\nroles: {{builder: }}', 1, what, hint)
        for url, what, hint in (
            ("postgresql:h/d", "no libpq URI", "such as postgresql://"),
            ("PostgreSQL://h/d", "no libpq URI", "such as postgresql://"),
            ("postgresql://h", "no database, and no service", "such as postgresql://"),
            ("postgres:///?sslmode=require", "no database, and no service", "such as"),
            ("postgresql://h:abc/d", "a host and port", "such as"),
            ("postgresql://[::1/d", "a host and port", "such as"),
            ("postgresql://h/a%zz", "a % that begins no escape", "%25"),
            ("postgresql://h/a%00b", "a % that begins no escape", "%25"),
            ("postgresql://h/a b", "a blank", "%20"),
            ("postgresql://h/d?sslmode", "not name=value", "%3D"),
            ("postgresql://h/d?sslmode=a=b", "not name=value", "%3D"),
            ("postgresql://h/d?sslmod=require", 'no parameter "sslmod"', '"sslmode"?'),
        )
    },
    "no file": ("queue: 'file:'\nroles: {builder: }", 1, "names no file", ""),
    "another host": ("queue: file://nas/q\nroles: {builder: }", 1, "another host (nas)", ""),
    "control character": ('workspace: "a\\nb"\nroles: {builder: }', 1, "a path", ""),
    "claimed twice": (
        f"roles:\n  builder: \n  x: {{{MINE.replace('[x]', '[ready]')}}}",
        3,
        '"ready" is claimed by builder already',
        "",
    ),
    "held twice": (
        f"roles:\n  builder: \n  x: {{{MINE.replace('holds: y', 'holds: in_progress')}}}",
        3,
        '"in_progress" is held by builder already',
        "",
    ),
    "held and claimed": (role("holds: ready"), 2, '"ready" is claimed by builder', ""),
    "held when ended": (role("holds: done"), 2, "no status of a task in work", ""),
    "success without end": (role("on_success: ready"), 2, "without end", ""),
    "moved to a held status": (role("on_rejected: in_progress"), 2, "that builder holds", ""),
    "one folder for two": (
        "paths: {leases: x, locks: ./x}\nroles: {builder: }",
        1,
        "paths.locks is the same folder as paths.leases",
        "",
    ),
    "misspelt variable": ("ansible_hosts: x\nroles: {builder: }", 1, '"ansible_hosts"', "_host"),
    "tab": ("roles:\n\tbuilder: {}", 2, "is not YAML", "spaces"),
    "syntax": ("roles: {builder: {\n", 2, "is not YAML", ""),
    "conflict markers": ("a: 1\n<<<<<<< HEAD\nb: 2\n", 2, "git conflict", "resolve"),
    "two documents": ("roles: {builder: }\n---\nroles: {}", 2, "is not YAML", ""),
    "unknown alias": ("roles: *no", 1, "is not YAML", ""),
    "control byte": ("a: 1\nb: \x01\n", 2, "is not allowed", ""),
    "half a character": ('workspace: "\\ud800"\nroles: {builder: }', 1, "lone surrogate", ""),
    "no such number": ("max_adaptations: !!int x\nroles: {builder: }", 1, "cannot be read", ""),
    "hardly a number": ("max_adaptations: !!int +\nroles: {builder: }", 1, "cannot be read", ""),
    "hardly a date": ("workspace: !!timestamp x\nroles: {builder: }", 1, "point in time", ""),
    "no such day": ("workspace: 2026-02-30\nroles: {builder: }", 1, "cannot be read", ""),
    "merged twice": (
        "x: &x {env: {A: b}}\nroles: {builder: {<<: *x, <<: *x}}",
        2,
        "a second merge key",
        "<<: [",
    ),
    "custom tag": ("roles: !ruby/object {}", 1, "the tag !ruby/object", "plain value"),
    "python tag": ("roles: !!python/object/apply:os.system [id]", 1, "the tag", ""),
    "set": ("roles: !!set {builder}", 1, "the tag !!set", ""),
    "vault": ("workspace: !vault |\n  x\nroles: {builder: }", 1, "Vault", "env_file"),
    "whole vault": ("$ANSIBLE_VAULT;1.1;AES256\n6162\n", 1, "Vault", "env_file"),
    "unquoted template": ("workspace: {{ home }}\nroles: {builder: }", 1, "templates", ""),
    "key is a flag": ("roles: {builder: }\nyes: 1", 2, "is read as a YAML bool", '"yes"'),
    "key is a list": ("? [a]\n: 1\n", 1, "a key must be a plain word", ""),
    "merge of a word": ("<<: x\nroles: {builder: }", 1, "a merge key", ""),
    "endless alias": ("a: &a [*a]\n", 1, "endless", ""),
    "deep": ("[" * 5000, 1, "levels deep", ""),
    "laughs": (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n"
            for a, b in zip("abcdef", "bcdefg", strict=True)
        ),
        1,
        "more than 50000 values",
        "",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(write: Write, case: str) -> None:
    """Every kind of bad input is told once, with its line, and what to do where we know."""
    text, line, what, hint = BAD[case]
    found = problems(write(text))
    matching = [each for each in found if what in each.what and hint in each.hint]
    assert matching, found
    assert matching[0].where == f"rc.yml:{line}"
    others = [each for each in found if each not in matching and "unknown key" not in each.what]
    assert not others or case in {"duplicate key", "merge of a word"}, others
    assert all("\n" not in f"{each.what}{each.hint}" for each in found)


SECRETS = [
    "postgresql://u:s3cret@h/d",
    "postgres://u:s3cret@h",
    "postgresql://u:s3c/ret@h/d",
    "postgresql://u:s3c?ret@h/d",
    "postgresql://u:s3c@ret@h/d",
    "postgresql://u:@h/d",
    "postgresql://u@h/d?password=s3cret",
    "postgresql://h/d?sslmode=require&p%61ssword=s3cret",
    "postgresql://h/d?password=s3=cret",
    "postgresql://h/d?sslkey=k&sslpassword=s3cret",
    "https://u:s3cret@h/d",
    r"postgresql://u:s3cret@h/d\x07",
]


@pytest.mark.parametrize("url", SECRETS)
def test_secrets_are_not_repeated(write: Write, url: str) -> None:
    """Neither a password in a URL, however it got there, nor a value in env is shown."""
    path = write(f'queue: "{url}"\n{role("env: {KEY: 53131}")}')
    told = "\n".join(str(problem) for problem in problems(path))
    assert "password" in told or "queue must be" in told
    assert "s3c" not in told
    assert "53131" not in told


URIS = [
    "postgresql://h/d",
    "postgres://h/d",
    "postgresql:///d",
    "postgresql://u@/d?host=/run/postgresql",
    "postgresql://%2Frun%2Fpostgresql/d",
    "postgresql://u@h:5432/d?sslmode=verify-full&passfile=/home/u/.pgpass",
    "postgresql://a:5432,b:5433,[2001:db8::1]:5434/d?target_session_attrs=read-write",
    "postgresql://h:5432/a@b",
    "postgresql://h/d?options=-c%20statement_timeout%3D5s&from_a_newer_libpq=1",
    "postgresql:///?service=shop",
    "postgresql://h?dbname=d",
    "postgresql://u%3Av%40w@h/d%20e",
]


@pytest.mark.parametrize("url", URIS)
def test_a_queue_on_postgresql(write: Write, url: str) -> None:
    """What libpq takes is taken and kept as it was typed: its parameters are libpq's own."""
    config = load(write(f'queue: "{url}"\nroles: {{builder: }}\n'))
    assert config.queue == url
    assert config.on_postgres
    assert not config._replace(queue="file:/q.json").on_postgres


def test_libpq_reads_what_we_take() -> None:
    """The library parses each of them, and finds a database or a service and no password."""
    conninfo = pytest.importorskip("psycopg.conninfo")
    for url in URIS:
        known = url.replace("&from_a_newer_libpq=1", "")
        assert {"dbname", "service"} & set(conninfo.conninfo_to_dict(known)), url
        assert "password" not in conninfo.conninfo_to_dict(known), url


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    """Missing, huge, binary and special files are told with their name, without hanging."""
    assert problems("none.yml")[0] == Problem(
        "none.yml", "cannot be read: No such file or directory"
    )
    path = write("#" + "x" * 1024 * 1024)
    assert "larger than 1 MiB" in problems(path)[0].what
    (tmp_path / path).write_bytes(b"a: 1\nb: \xff\n")
    assert problems(path) == [Problem("rc.yml:2", "is not UTF-8 text")]
    os.mkfifo("fifo.yml")
    assert "not a regular file" in problems("fifo.yml")[0].what
    assert problems(str(tmp_path / "none.yml"))[0].where == "none.yml"


def test_generated_files_are_current() -> None:
    """docs/ holds what the declaration gives now: run `python -m daemon.schema` after a change."""
    for path, text in reference.files().items():
        assert Path(path).read_text(encoding="utf-8") == text


def test_the_json_schema_knows_every_key(write: Write) -> None:
    """Each key of a config is in the schema, with a description and no room for others."""
    schema = reference.json_schema()
    config: Config = load(write(EVERYTHING))
    document = json.loads(to_json(config))
    builder = schema["properties"]["roles"]["properties"]["builder"]
    assert set(document) <= set(schema["properties"])
    assert set(document["roles"]["builder"]) == set(builder["properties"])
    assert schema["additionalProperties"] is builder["additionalProperties"] is False
    assert builder["properties"]["claims"]["default"] == ["ready"]
    assert all(each["description"] for each in builder["properties"].values())
