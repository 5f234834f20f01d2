"""The inventory: who is in it, which variables win, and what is said of bad ones."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from daemon.config import load, load_apart
from daemon.errors import EXIT_USAGE, ConfigError, Problem
from daemon.inventory import CHECKOUT, Host, Inventory, inventory_dir

Write = Callable[[Mapping[str, str]], Inventory]
ROLES = "roles: {builder: {command: [a]}}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def into(files: Mapping[str, str]) -> Inventory:
        for name, text in files.items():
            path = tmp_path / "inventory" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return Inventory.load("inventory")

    return into


def problems(write: Write, files: Mapping[str, str]) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        write(files)
    return list(caught.value.problems)


def one(inventory: Inventory, name: str) -> Host:
    return inventory.hosts(name)[0]


def test_the_shipped_inventory_is_ready_to_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A fresh clone holds localhost with the five roles; its workspace is the checkout."""
    monkeypatch.delenv("ROLECALL_INVENTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    inventory = Inventory.load(inventory_dir())
    shipped = one(inventory, "localhost")
    config = Inventory.load(f"{CHECKOUT}/inventory").config(shipped, workspace=CHECKOUT)
    assert shipped.connection == "local"
    assert list(config.roles) == ["planner", "builder", "tester", "refiner", "integrator"]
    assert config.run == tuple(config.roles)
    assert [role.wip_limit for role in config.roles.values()] == [1, 3, 2, 1, 1]
    agents = {name: role.agent for name, role in config.roles.items()}
    assert agents.pop("integrator") is None  # Rolecall merges by itself
    assert set(agents.values()) == {"claude"}
    assert {role.prompt_via for role in config.roles.values()} == {"stdin"}
    assert load(workspace=CHECKOUT) == load_apart(workspace=CHECKOUT) == config


@pytest.mark.parametrize("document", ["README.md", "docs/fleet.md"])
def test_the_examples_load_beside_what_is_shipped(document: str, tmp_path: Path) -> None:
    """Typed over the shipped hosts.yml: each SSH host has its workspace, this machine no role."""
    text = Path(CHECKOUT, document).read_text(encoding="utf-8")
    (hosts,) = (
        each for each in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "hosts:" in each
    )
    group_vars = "inventory/group_vars"  # host_vars/ is the person's own
    shutil.copytree(Path(CHECKOUT, group_vars), tmp_path / group_vars)
    (tmp_path / "inventory" / "hosts.yml").write_text(hosts, encoding="utf-8")
    configs = Inventory.load(str(tmp_path / "inventory")).configs()
    assert {name: bool(config.run) for name, config in configs.items()} == {
        "localhost": False,
        **dict.fromkeys(("web1", "web2", "web3"), True),
    }
    assert {config.workspace for name, config in configs.items() if name != "localhost"} == {
        "~/src/shop"
    }


def test_a_relative_workspace_counts_from_the_checkout(write: Write, tmp_path: Path) -> None:
    """`workspace: .` is the folder that holds the inventory, wherever we are."""
    inventory = write(
        {"hosts.yml": "all: {hosts: {localhost: }}", "group_vars/all.yml": f"workspace: .\n{ROLES}"}
    )
    os.chdir("/")
    assert inventory.config(one(inventory, "localhost")).workspace == str(tmp_path)


TREE = """\
all:
  hosts:
    lone:
  vars: {unit_prefix: inline-all}
  children:
    outer:
      vars: {unit_prefix: inline-outer}
      children:
        inner: {vars: {unit_prefix: inline-inner}, hosts: {h: }}
        other: {hosts: {h: }}
"""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "inline-inner"),
        ({"group_vars/all.yml": "unit_prefix: all"}, "all"),
        (
            {"group_vars/outer.yml": "unit_prefix: outer", "group_vars/all.yml": "unit_prefix: a"},
            "outer",
        ),
        (
            {"group_vars/inner.yml": "unit_prefix: i", "group_vars/outer.yml": "unit_prefix: o"},
            "i",
        ),
        (
            {"group_vars/inner.yml": "unit_prefix: i", "group_vars/other.yml": "unit_prefix: o"},
            "o",
        ),
        (
            {"group_vars/inner.yml": "unit_prefix: i", "host_vars/h.yaml": "unit_prefix: host"},
            "host",
        ),
        ({"group_vars/inner/b.yml": "unit_prefix: b", "group_vars/inner/a.yml": "unblock: 1"}, ""),
        ({"group_vars/inner/b.yml": "unit_prefix: b", "group_vars/inner/a.yml": "run: []"}, "b"),
    ],
)
def test_precedence(write: Write, files: Mapping[str, str], expected: str) -> None:
    """Host over child group over parent group over all; files over what stands in hosts.yml."""
    if not expected:
        assert problems(write, {"hosts.yml": TREE, **files})[0].where.endswith("inner/a.yml:1")
        return
    assert one(write({"hosts.yml": TREE, **files}), "h").vars["unit_prefix"] == expected


def test_host_variables(write: Write) -> None:
    """A host's own line in hosts.yml wins over groups, and loses to its file."""
    files = {
        "hosts.yml": "all: {hosts: {a: {unit_prefix: line}, b: {unit_prefix: line}}}",
        "group_vars/all.yml": "unit_prefix: all",
        "host_vars/b.yml": "unit_prefix: file",
    }
    inventory = write(files)
    assert [host.vars["unit_prefix"] for host in inventory.hosts()] == ["line", "file"]


def test_group_priority(write: Write) -> None:
    """Of two groups of one depth the one of higher ansible_group_priority wins."""
    inventory = write(
        {
            "hosts.yml": """\
a: {hosts: {h: }, vars: {ansible_group_priority: 9, unit_prefix: of-a}}
b: {hosts: {h: }, vars: {unit_prefix: of-b}}
"""
        }
    )
    host = one(inventory, "h")
    assert host.vars == {"unit_prefix": "of-a"}
    assert host.groups == ("all", "b", "a")


def test_only_roles_merges_key_by_key(write: Write) -> None:
    """Keys of a role come from different layers, an empty one is unset; the rest is replaced."""
    inventory = write(
        {
            "hosts.yml": "all: {hosts: {h: {workspace: /w}}}",
            "group_vars/all.yml": """\
paths: {leases: a, locks: b}
roles:
  builder: {command: [a], timeout: 7, slots: 4, env: {A: "1", B: "2"}, args: [x, y]}
  tester: {command: [t]}
""",
            "host_vars/h.yml": """\
paths: {leases: c}
roles:
  builder: {wip_limit: 3, slots: , env: {B: "3"}, args: [z]}
  tester:
""",
        }
    )
    host = one(inventory, "h")
    config = inventory.config(host)
    builder = config.roles["builder"]
    assert (builder.command, builder.timeout, builder.wip_limit) == (("a",), 7, 3)
    assert builder.slots is None
    assert builder.env == {"A": "1", "B": "3"}
    assert builder.args == ("z",)
    assert config.roles["tester"].command == ("t",)
    assert host.vars["paths"] == {"leases": "c"}
    assert host.origins["roles.builder.timeout"] == "inventory/group_vars/all.yml:3"
    assert host.origins["roles.builder.wip_limit"] == "inventory/host_vars/h.yml:3"


def test_run_says_what_a_group_runs(write: Write) -> None:
    """A role that a host does not run is still part of its state machine."""
    inventory = write(
        {
            "hosts.yml": "all: {children: {builders: {hosts: {b: }}}, hosts: {c: }}",
            "group_vars/all.yml": "{workspace: ~/w, roles: {planner: , builder: , tester: }}",
            "group_vars/builders.yml": "run: [tester, builder]",
        }
    )
    configs = inventory.configs()
    assert configs["b"].run == ("builder", "tester")
    assert configs["c"].run == ("planner", "builder", "tester")
    assert list(configs["b"].machine.roles) == ["planner", "builder", "tester"]


PATTERNS = {
    "all": "abcd",
    "*": "abcd",
    "g": "cd",
    "d, a": "ad",
    "g,b,c": "bcd",
    "a:d": "ad",
    "ungrouped": "ab",
    "[bc]": "bc",
    "!g": "ab",
    "!g,b": "b",
    "&g": "cd",
    "all:&g:!c": "d",
    "~[ad]$": "ad",
    "g[0]": "c",
    "g[-1]": "d",
    "all[1:2]": "bc",
    "all[2:]": "cd",
    "g[0:0]": "c",
    "g[1:0]": "d",  # as in Ansible, if for no good reason
}


@pytest.mark.parametrize("limit", PATTERNS)
def test_limit(write: Write, limit: str) -> None:
    """Ansible's patterns of hosts and groups; what they leave is in the inventory's order."""
    inventory = write({"hosts.yml": "all: {hosts: {a: , b: }, children: {g: {hosts: {c: , d: }}}}"})
    assert "".join(host.name for host in inventory.hosts(limit)) == PATTERNS[limit]


@pytest.mark.parametrize(
    ("limit", "what", "hint"),
    [
        ("webb", 'no host or group "webb"', 'did you mean "web"?'),
        ("web,dbx", 'no host or group "dbx"', 'did you mean "db"?'),
        ("!wbe", 'no host or group "wbe"', 'did you mean "web"?'),
        ("x*", 'no host or group "x*"', "known: "),
        (",", 'no host or group ","', "such as"),
        ("web:!web", '"web:!web" leaves no host', ""),
        ("empty", '"empty" leaves no host', ""),
        ("web[2]", 'no host at "web[2]"', "there are 2, counted from 0"),
        ("@failed", "files of hosts (@) are not read", "$(paste -sd, failed)"),
        ("~(", "is not a regular expression", ""),
        ("web,!", '"!" names nothing', "behind it"),
    ],
)
def test_limits_that_name_nothing(write: Write, limit: str, what: str, hint: str) -> None:
    """Are a usage error that says what was probably meant; none is passed over in silence."""
    inventory = write({"hosts.yml": "web: {hosts: {w1: , w2: }}\nall: {hosts: {db: }}\nempty:\n"})
    with pytest.raises(ConfigError) as caught:
        inventory.hosts(limit)
    (problem,) = caught.value.problems
    assert (what in problem.what, hint in problem.hint) == (True, True), problem
    assert caught.value.exit_code == EXIT_USAGE


def test_connection_and_the_local_host(write: Write) -> None:
    """Localhost and hosts of a local connection are this machine; others are reached by ssh."""
    inventory = write(
        {"hosts.yml": "all: {hosts: {far: {ansible_host: x, ansible_port: 22}, localhost: }}"}
    )
    assert [host.connection for host in inventory.hosts()] == ["ssh", "local"]
    assert inventory.local_host().name == "localhost"
    inventory = write({"hosts.yml": "all: {hosts: {far: , near: {ansible_connection: local}}}"})
    assert inventory.local_host().name == "near"
    for hosts, told in (
        ("far: ", "no host"),
        (
            "a: {ansible_connection: local}, b: {ansible_connection: local}",
            "several hosts",
        ),
    ):
        with pytest.raises(ConfigError, match=told):
            write({"hosts.yml": f"all: {{hosts: {{{hosts}}}}}"}).local_host()


def test_the_inventory_of_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ROLECALL_INVENTORY names the inventory that `load` reads where no file is named."""
    write({"hosts.yml": "all: {hosts: {localhost: }}", "group_vars/all.yml": ROLES})
    monkeypatch.setenv("ROLECALL_INVENTORY", "inventory")
    assert inventory_dir() == str(tmp_path / "inventory")
    assert list(load().roles) == ["builder"]


def test_describe(write: Write) -> None:
    """Each effective value stands on one line, with the line it came from or "default"."""
    inventory = write(
        {"hosts.yml": "all: {hosts: {localhost: }}", "group_vars/all.yml": f"workspace: .\n{ROLES}"}
    )
    lines = inventory.describe(inventory.hosts())
    told = {line.split(":")[0].strip(): line.split()[-1] for line in lines}
    assert lines[0] == "localhost"
    assert told["roles.builder.command"] == "inventory/group_vars/all.yml:2"
    assert told["roles.builder.timeout"] == "default"
    assert inventory.variables(inventory.hosts()) == {
        "localhost": {"workspace": ".", "roles": {"builder": {"command": ["a"]}}}
    }


HOSTS = "all: {hosts: {h: }}"
BAD: dict[str, tuple[dict[str, str], str, str]] = {
    "no hosts.yml": ({"group_vars/all.yml": ROLES}, "inventory", "no hosts.yml"),
    "two of them": ({"hosts.yml": HOSTS, "hosts.yaml": HOSTS}, "inventory", "both hosts.yml"),
    "an INI file": ({"hosts.yml": HOSTS, "hosts": "[a]\nb"}, "inventory/hosts", "is not read"),
    "INI text": ({"hosts.yml": "[web]\na\n"}, "inventory/hosts.yml:2", "is not YAML"),
    "an empty file": ({"hosts.yml": "# no hosts\n"}, "inventory/hosts.yml:1", "is empty"),
    "a list": ({"hosts.yml": "- a\n"}, "inventory/hosts.yml:1", "is no YAML inventory"),
    "a plugin": ({"hosts.yml": "plugin: aws_ec2\n"}, "inventory/hosts.yml:1", "plugins"),
    "unknown section": ({"hosts.yml": "all:\n  host: {a: }"}, "inventory/hosts.yml:2", '"host"'),
    "hosts is a list": ({"hosts.yml": "all:\n  hosts: [a]"}, "inventory/hosts.yml:2", "mapping"),
    "no range": ({"hosts.yml": 'all: {hosts: {"w[1]": }}'}, "inventory/hosts.yml:1", "not a range"),
    "a key that is no range": (
        {"hosts.yml": "web:\n  hosts:\n    web[1-3]:\n"},
        "inventory/hosts.yml:3",
        "[1-3] is not a range of hosts",
    ),
    "too many hosts": (
        {"hosts.yml": "web:\n  hosts:\n    w[1:999]-[1:999]:\n"},
        "inventory/hosts.yml:3",
        "stands for more than 10000 hosts",
    ),
    "too many keys of hosts": (
        {"hosts.yml": "web:\n  hosts:\n    a[1:9999]:\n    b[1:9999]:\n    c[1:9]:\n"},
        "inventory/hosts.yml:5",
        "more than 20000 hosts",
    ),
    "a port that would be passed over": (
        {"hosts.yml": "a: {hosts: {w: }}\nb:\n  hosts:\n    w:22:\n"},
        "inventory/hosts.yml:4",
        "w is mentioned without port 22 before",
    ),
    "a host and a group of one name": (
        {"hosts.yml": "w:\n  hosts:\n    w: {ansible_host: x}\n"},
        "inventory/hosts.yml:3",
        '"w" is a host with variables, and a group',
    ),
    "hosts that others have": (
        {"hosts.yml": "a:\n  children:\n    ungrouped:\n"},
        "inventory/hosts.yml:3",
        "has no parent",
    ),
    "children of ungrouped": (
        {"hosts.yml": "ungrouped:\n  children:\n    a:\n"},
        "inventory/hosts.yml:3",
        "no child groups",
    ),
    "all within a group": (
        {"hosts.yml": "a:\n  children:\n    all: {hosts: {h: }}\n"},
        "inventory/hosts.yml:3",
        "group all is a child of itself",
    ),
    "a group within itself": (
        {"hosts.yml": "x: {hosts: {h: }}\na:\n  children:\n    b: {children: {c: , a: }}\n"},
        "inventory/hosts.yml:4",
        "group a is a child of itself",
    ),
    "a priority": (
        {"hosts.yml": "a:\n  vars:\n    ansible_group_priority: high\n"},
        "inventory/hosts.yml:3",
        "must be a whole number",
    ),
    "a variable of Ansible's own": (
        {"hosts.yml": HOSTS, "host_vars/h.yml": "run: []\nansible_version: 2\n"},
        "inventory/host_vars/h.yml:2",
        "ansible_version is set by Ansible itself",
    ),
    "a file that Ansible passes over": (
        {"hosts.yml": HOSTS, "group_vars/all/x.yml": "run: []", "group_vars/all.yml": "run: [a]"},
        "inventory/group_vars/all.yml",
        "is not read, for all is there as well",
    ),
    "a file for a folder": (
        {"hosts.yml": HOSTS, "host_vars": "run: []"},
        "inventory/host_vars",
        "is not a folder",
    ),
    "a vault inside": (
        {
            "hosts.yml": HOSTS,
            "host_vars/h.yml": "ansible_x:\n  a: !vault |\n    $ANSIBLE_VAULT;1.1\n",
        },
        "inventory/host_vars/h.yml:2",
        "Vault",
    ),
    "a template's comment": (
        {"hosts.yml": HOSTS, "host_vars/h.yml": "ansible_x: '{# no #}'"},
        "inventory/host_vars/h.yml:1",
        "templates",
    ),
    "a clock time": (
        {"hosts.yml": HOSTS, "host_vars/h.yml": "ansible_x: 10:30"},
        "inventory/host_vars/h.yml:1",
        "to the base of 60",
    ),
    "a slash": ({"hosts.yml": "all: {hosts: {../x: }}"}, "inventory/hosts.yml:1", "a host"),
    "a group's name": ({"hosts.yml": "a b: {hosts: {h: }}"}, "inventory/hosts.yml:1", "a group"),
    "a loop": (
        {"hosts.yml": "a: {children: {b: }}\nb: {children: {a: }}"},
        "inventory/hosts.yml:2",
        "child of itself",
    ),
    "a loop below all": (
        {"hosts.yml": "all: {children: {a: {children: {b: {children: {a: }}}}}}"},
        "inventory/hosts.yml:1",
        "child of itself",
    ),
    "duplicate host": (
        {"hosts.yml": "all:\n  hosts:\n    a:\n    a:\n"},
        "inventory/hosts.yml:4",
        "duplicate",
    ),
    "variables of nobody": (
        {"hosts.yml": HOSTS, "group_vars/builders.yml": "run: [builder]"},
        "inventory/group_vars/builders.yml",
        'no group "builders"',
    ),
    "variables of no host": (
        {"hosts.yml": HOSTS, "host_vars/g.yml": "run: [builder]"},
        "inventory/host_vars/g.yml",
        'no host "g"',
    ),
    "unknown variable": (
        {"hosts.yml": "all: {hosts: {h: {\n wrkspace: x}}}"},
        "inventory/hosts.yml:2",
        '"wrkspace"',
    ),
    "a vault": (
        {"hosts.yml": HOSTS, "group_vars/all.yml": "$ANSIBLE_VAULT;1.1;AES256\n61"},
        "inventory/group_vars/all.yml:1",
        "Vault",
    ),
    "a template": (
        {"hosts.yml": HOSTS, "group_vars/all.yml": 'workspace: "{{ home }}/x"'},
        "inventory/group_vars/all.yml:1",
        "templates",
    ),
    "a connection": (
        {"hosts.yml": "all: {hosts: {h: {ansible_connection: docker}}}"},
        "inventory/hosts.yml:1",
        "local, ssh",
    ),
    "a port that is none": (
        {"hosts.yml": "all: {hosts: {h: {ansible_port: 99999}}}"},
        "inventory/hosts.yml:1",
        "65535",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inventories_are_told(write: Write, case: str) -> None:
    """Every kind of bad inventory gets an error with its file, and its line where it has one."""
    files, where, what = BAD[case]
    found = problems(write, files)
    assert [each for each in found if each.where == where and what in each.what], found


def test_problems_of_all_files_and_hosts_come_at_once(write: Write) -> None:
    """Bad values of every layer, and what does not go together, in one error; each once."""
    found = problems(
        write,
        {
            "hosts.yml": "all: {hosts: {a: , b: }, vars: {workspace: /w}}",
            "group_vars/all.yml": "roles: {builder: {slots: x, lease_ttl: 1}}\nrun: [tester]",
            "host_vars/a.yml": "unblock: 7",
        },
    )
    assert len(found) == len(set(found)) == 4
    inventory = write(
        {
            "group_vars/all.yml": "roles: {builder: {lease_ttl: 1}}",
            "host_vars/a.yml": "run: [x]",
        }
    )
    with pytest.raises(ConfigError) as caught:
        inventory.configs()
    assert [each.where for each in caught.value.problems] == [
        "inventory/group_vars/all.yml:1",
        "inventory/host_vars/a.yml:1",
    ]


def test_braces_of_commands_are_no_templates(write: Write) -> None:
    """Other programs' braces stand in commands, as they do without an inventory."""
    inventory = write(
        {
            "hosts.yml": HOSTS,
            "group_vars/all.yml": """\
workspace: /w
roles: {builder: {command: [x, "{{.State}}"], gates: [["{{a}}"]]}}
""",
        }
    )
    assert inventory.config(one(inventory, "h")).roles["builder"].command == ("x", "{{.State}}")


def test_other_ansible_variables(write: Write) -> None:
    """What starts with ansible_ and is not ours to know is no problem."""
    inventory = write({"hosts.yml": "all: {hosts: {h: {ansible_pipelining: true}}}"})
    assert one(inventory, "h").vars == {"ansible_pipelining": True}


def test_paths_of_another_machine(write: Write, home: Path) -> None:
    """On an SSH host ``~`` stays until its home is known, and is never this machine's own."""
    files = {
        "hosts.yml": "all: {hosts: {far: , near: {ansible_connection: local}}}",
        "group_vars/all.yml": """\
workspace: ~/src/shop
queue: file:~/queue.json
paths: {logs: ~/, locks: /var/lock/x}
roles:
  builder: {command: [a], prompt: p.md, env_file: ~/.env, write_paths: [~/.cache, out]}
""",
    }
    inventory = write(files)
    far, near = inventory.hosts()
    for config, at in (
        (inventory.config(far), "~"),
        (inventory.config(far, home="/home/deploy"), "/home/deploy"),
        (inventory.config(near, home="/nowhere"), str(home)),
    ):
        builder = config.roles["builder"]
        assert config.workspace == f"{at}/src/shop"
        assert config.queue == f"file:{at}/queue.json"
        assert (config.paths.logs, config.paths.locks) == (at, "/var/lock/x")
        assert config.paths.runs == f"{at}/src/shop/.agent-runs"
        assert (builder.prompt, builder.env_file) == (f"{at}/src/shop/p.md", f"{at}/.env")
        assert builder.write_paths == (f"{at}/.cache", f"{at}/src/shop/out")
    told = {line.split()[0]: line.split()[1] for line in inventory.describe([far])[1:]}
    assert told["workspace:"] == "~/src/shop"


@pytest.mark.parametrize(
    ("workspace", "where", "what"),
    [
        (None, "inventory/hosts.yml:3", "workspace is not set"),
        ("", "inventory/group_vars/all.yml:2", "workspace is not set"),
        ("src/shop", "inventory/group_vars/all.yml:2", '"src/shop" is relative'),
        (".", "inventory/group_vars/all.yml:2", '"." is relative'),
        ("~other/shop", "inventory/group_vars/all.yml:2", "home folder of other"),
    ],
)
def test_the_workspace_of_another_machine(
    write: Write, workspace: str | None, where: str, what: str
) -> None:
    """Nothing of this machine can stand for it: it has to be there, and whole; told once."""
    line = "" if workspace is None else f"workspace: {workspace}"
    inventory = write(
        {"hosts.yml": "all:\n  hosts:\n    far:\n", "group_vars/all.yml": f"{ROLES}{line}\n"}
    )
    with pytest.raises(ConfigError) as caught:
        inventory.configs()
    (problem,) = caught.value.problems
    assert problem.where == where
    assert what in problem.what
    assert problem.hint


def test_how_a_host_is_reached(write: Write, home: Path) -> None:
    """By its own name and what ssh itself knows, unless Ansible's variables say more."""
    inventory = write(
        {
            "hosts.yml": """\
all:
  hosts:
    plain:
    whole:
      ansible_host: 192.0.2.7
      ansible_port: 2222
      ansible_user: deploy
      ansible_private_key_file: ~/.ssh/fleet
      ansible_ssh_common_args: -J "jump host"
      ansible_ssh_extra_args: -o Compression=yes
      ansible_python_interpreter: /opt/python3.12/bin/python3
    older:
      ansible_host: a
      ansible_ssh_host: b
      ansible_ssh_port: 1
      ansible_ssh_user: c
      ansible_ssh_private_key_file: /k
      ansible_python_interpreter: auto_silent
      ansible_connection: ansible.builtin.ssh
    localhost:
"""
        }
    )
    plain, whole, older, local = inventory.hosts()
    assert plain.way == ("ssh", "plain", None, None, None, (), None)
    assert (whole.address, whole.port, whole.user) == ("192.0.2.7", 2222, "deploy")
    assert whole.key_file == f"{home}/.ssh/fleet"
    assert whole.ssh_args == ["-J", "jump host", "-o", "Compression=yes"]
    assert whole.python == "/opt/python3.12/bin/python3"
    assert older.way == ("ssh", "b", 1, "c", "/k", (), None)
    assert local.connection == "local"


@pytest.mark.parametrize(
    ("variable", "what"),
    [
        ("ansible_password: x", "ansible_password is not supported"),
        ("ansible_ssh_private_key: x", "ansible_ssh_private_key is not supported"),
        ("ansible_become: true", "ansible_become: true is not supported"),
        ("ansible_become: 'yes'", "ansible_become: true is not supported"),
        ("ansible_host_key_checking: false", "false is not supported"),
        ("ansible_ssh_common_args: '-J \"x'", "No closing quotation"),
        ("ansible_host: -oProxyCommand=x", "is not one that ssh takes"),
        ("ansible_user: -x", "is not one that ssh takes"),
        ("ansible_python_interpreter: /usr/bin/env python3", "names one program"),
    ],
)
def test_ways_that_are_not_taken(write: Write, variable: str, what: str) -> None:
    """What would lead Ansible to a connection that we do not make is told, with its line."""
    told = problems(write, {"hosts.yml": f"all:\n  hosts:\n    h:\n      {variable}\n"})
    problem = next(each for each in told if "workspace" not in each.what)
    assert problem.where == "inventory/hosts.yml:4"
    assert what in problem.what


def test_no_such_folder() -> None:
    """A folder that is not there is told, with how to name another."""
    with pytest.raises(ConfigError, match="cannot be read"):
        Inventory.load("nowhere")
