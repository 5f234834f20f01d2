"""Hosts, groups, variables and limits: as the real ansible-core has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import realansible
from tests.realansible import Ansible

LIMITS = ("all", "*", "ungrouped", "all[0]", "!all")
INVENTORIES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "one host": (
        {"hosts.yml": "all: {hosts: {web1: }}"},
        ("web1", "web*", "~web", "!web1", "web2"),
    ),
    "names in place of mappings": (
        {"hosts.yml": "web: {hosts: web1, children: db}\ndb: {hosts: db1}\n"},
        ("web", "db"),
    ),
    "ranges": (
        {
            "hosts.yml": """\
web: {hosts: {"web[01:12]": {ansible_x: 1}, web03: {ansible_x: 3}}}
db: {hosts: {"db-[a:f:2].x": , "[:2]": , "r[1:3]-[X:Z]": , "n[8:11]": }}
up: {hosts: {"m[y:B]": , "e[000:100:50]": }}
"""
        },
        (
            "web[0:2]",
            "web[-1]",
            "web[3:]",
            "db[1]",
            "web0*:&web[1:3]",
            "web0[1-3]",
            "web[1:0]",
            "[rn]*",
            "n*[1]",
        ),
    ),
    "ports": (
        {
            "hosts.yml": """\
all:
  hosts:
    web1:2222:
    "web[2:3].x:22": {ansible_port: 23}
    192.0.2.1:5:
    "[192.0.2.2]:6":
    "[fe80::1]:7":
    "[web9]:8":
    fe80::2:
    "2001:db8::[1:3]":
    "64:ff9b::192.0.2.33":
"""
        },
        ("web1", "fe80::1", "fe80::2", "fe80::2,web1", "*:*", "192.*", "web1:2222", "web1:fe80::2"),
    ),
    "a port that stands at each mention": (
        {"hosts.yml": "a: {hosts: {w:1: }}\nb: {hosts: {w:1: {ansible_port: 2}, w: }}"},
        ("a:&b",),
    ),
    "precedence": (
        {
            "hosts.yml": """\
all:
  vars: {ansible_a: all, ansible_b: all, ansible_c: all, ansible_d: all, ansible_e: all}
  hosts: {lone: {ansible_a: inline}}
  children:
    outer:
      vars: {ansible_b: outer, ansible_c: outer}
      children:
        inner: {vars: {ansible_c: inner}, hosts: {h: {ansible_d: inline, ansible_e: inline}}}
        alpha: {vars: {ansible_c: alpha, ansible_b: alpha}, hosts: {h: }}
    deep: {children: {deeper: {children: {deepest: {hosts: {h: }, vars: {ansible_b: deepest}}}}}}
""",
            "group_vars/all.yml": "{ansible_a: file-all, ansible_f: file-all, ansible_g: file-all}",
            "group_vars/outer.yml": "{ansible_f: file-outer, ansible_g: file-outer}",
            "group_vars/alpha.yml": "ansible_g: file-alpha",
            "host_vars/h.yml": "ansible_e: file-host",
        },
        ("outer", "deep", "outer:!alpha", "h", "al*", "*e*", "~.*er$"),
    ),
    "the order of sections": (
        {
            "hosts.yml": """\
a:
  children: {b: {hosts: {h: {ansible_x: b}}, vars: {ansible_y: 1, ansible_z: 1}}}
  hosts: {h: {ansible_x: a}}
c:
  hosts: {i: {ansible_x: c}}
  children: {b: {hosts: {i: {ansible_x: b}}, vars: {ansible_y: 2}}}
"""
        },
        (),
    ),
    "priority": (
        {
            "hosts.yml": """\
a: {hosts: {h: }, vars: {ansible_group_priority: 9, ansible_x: a}}
b: {hosts: {h: {ansible_group_priority: 3}}, vars: {ansible_group_priority: "8", ansible_x: b}}
c: {hosts: {h: }, vars: {ansible_group_priority: -1, ansible_x: c, ansible_y: c}}
d: {hosts: {h: , i: }, vars: {ansible_y: d}}
""",
            "group_vars/d.yml": "{ansible_group_priority: 99, ansible_x: d}",
        },
        ("a", "d:!a"),
    ),
    "files, folders and their suffixes": (
        {
            "hosts.yml": "web: {hosts: {a.x: , b: }}\nungrouped: {hosts: {c: }}",
            "group_vars/all": "ansible_1: all",
            "group_vars/web/10": "ansible_2: ten",
            "group_vars/web/20.yml": "{ansible_2: twenty, ansible_3: twenty}",
            "group_vars/web/15/deep/x.yaml": "{ansible_2: fifteen, ansible_4: fifteen}",
            "group_vars/web/30.json": '{"ansible_3": 1e2,\t"ansible_5": "\\/"}',
            "group_vars/web/notes.md": "not: [read",
            "group_vars/web/.hidden.yml": "not: [read",
            "group_vars/web/old.yml~": "not: [read",
            "group_vars/web/some.d/x.yml": "not: [read",
            "group_vars/ungrouped.yaml": "ansible_2: loose",
            "host_vars/a.x.json": '{"ansible_2": "host"}',
            "host_vars/b/1.yml": "ansible_2: b",
            "host_vars/c.yml": "",
            "README.md": "hello",
            "ansible.cfg": "[defaults]",
        },
        ("a.x", "a*", "web", "ungrouped:web[0]"),
    ),
    "scalars": (
        {
            "hosts.yml": "all: {hosts: {h: }}",
            "host_vars/h.yml": """\
ansible_a: [yes, No, on, off, y, n, ~, null, Null, "", '', "~"]
ansible_b: [010, 0x1F, 0b11, 1_000, 0o17, +5, -0, 08, 1., .5]
ansible_h: [1e3, 1.0e3, 1.0e+3, .inf, -.INF, .nan]
ansible_c: [2026-01-01, a:b, 1.2.3, 192.0.2.1, "1:30", '2026-01-01 10:00', 12e03, 1__0, "\\u00e9"]
ansible_d: [!!str 5, !!int "5", !!float 5, !!bool "yes", !!null "", !!str yes]
ansible_e: {a: &x {b: 1, c: [1, 2]}, d: *x, e: {<<: *x, b: 2}}
ansible_f: >-
  folded
  text
ansible_g: |
  kept
    as it is
""",
        },
        (),
    ),
    "JSON that is no YAML": (
        {
            "hosts.yml": '{"all":{"hosts":\n\t{"h":{}}}}',
            "host_vars/h.json": """\
{"ansible_a": ["\\ud83d\\ude00", "\\\\ud83d", "\\/", "a\u2028b\x85\x7f \\t", 1E2, -0.0, 1e400],
\t"ansible_\\ud83d\\ude00": {"on": "10:30", "1": 2}}
""",
        },
        (),
    ),
    "merge keys": (
        {
            "hosts.yml": """\
all:
  hosts:
    h:
      ansible_a: &a {x: 1, y: 1}
      ansible_b: &b {x: 2, z: 2}
      ansible_c: {<<: [*a, *b], y: 3}
      ansible_d: {<<: [*b, *a]}
    i: {<<: {ansible_e: {<<: {f: 1}}}}
"""
        },
        (),
    ),
    "values are replaced as a whole": (
        {
            "hosts.yml": """\
g: {hosts: {h: {ansible_x: {a: 1}}}, vars: {ansible_x: {b: 1}, run: [a]}}
""",
            "group_vars/all.yml": """\
{ansible_x: {c: 1}, run: [b, c], unit_prefix: all, paths: {logs: l}}
""",
            "group_vars/g.yml": "{paths: {pids: p}, unit_prefix: }",
        },
        (),
    ),
    "a group of many parents": (
        {
            "hosts.yml": """\
one: {children: {leaf: }}
two: {children: {three: {children: {leaf: {hosts: {h: }}}}}}
four: {children: {two: , one: }, vars: {ansible_x: four}}
three: {vars: {ansible_x: three, ansible_y: three}}
leaf: {vars: {ansible_y: leaf}}
one: {vars: {ansible_x: one}}
""".replace("one: {vars: {ansible_x: one}}\n", "")
        },
        ("one:&two", "four[0]", "three"),
    ),
    "the longest way down is the depth": (
        {
            "hosts.yml": """\
first: {children: {leaf: {hosts: {h: }, vars: {ansible_x: leaf}}}}
chain: {children: {more: {children: {leaf: }}}}
last: {children: {leaf: , zmid: {hosts: {h: }, vars: {ansible_x: zmid}}}}
"""
        },
        ("first", "chain[0]"),
    ),
    "hosts of all and of nothing else": (
        {
            "hosts.yml": """\
all: {hosts: {a: , b: }}
g: {hosts: {b: }}
ungrouped: {hosts: {c: , b: }}
"""
        },
        ("ungrouped", "all[1]", "*[2]", "g"),
    ),
    "a group and a host of one name": (
        {"hosts.yml": "web: {hosts: {web: , web2: }}\nweb2: {hosts: {db: }}"},
        ("web", "web2", "!web2", "&web2", "web*", "web[1]"),
    ),
    "empty groups": (
        {"hosts.yml": "a: \nb: {children: {c: }}\nd: {hosts: {h: }}"},
        ("b", "d", "c[0]"),
    ),
    "connections": (
        {
            "hosts.yml": """\
all:
  hosts:
    localhost: {ansible_connection: local}
    far: {ansible_host: far.example.com, ansible_user: deploy, ansible_port: 2222}
  vars:
    ansible_ssh_common_args: -J jump.example.com
    ansible_ssh_private_key_file: ~/.ssh/fleet
"""
        },
        ("localhost", "127.0.0.1", "far"),
    ),
}


@pytest.mark.parametrize("case", INVENTORIES)
def test_what_ansible_makes_of_it(ansible: Ansible, tmp_path: Path, case: str) -> None:
    """Each of these is read, and comes out as from ``ansible-inventory --list [--limit ...]``."""
    files, limits = INVENTORIES[case]
    folder = realansible.write(tmp_path / "inventory", files)
    limits = (*LIMITS, *limits)
    theirs, mine = ansible.read(folder, limits), realansible.ours(folder, limits)
    assert realansible.text(mine.get("list", mine)) == realansible.text(theirs.get("list", theirs))
    for limit in limits:
        realansible.same_hosts(limit, mine["limits"][limit], theirs["limits"][limit])


def test_the_command_says_the_same(ansible: Ansible, tmp_path: Path) -> None:
    """What this suite compares with is what a person sees who types ansible-inventory."""
    files, _ = INVENTORIES["precedence"]
    folder = realansible.write(tmp_path / "inventory", files)
    program = Path(sys.executable).with_name("ansible-inventory")
    done = subprocess.run(
        [sys.executable, program, "--inventory", folder, "--list"],
        env=realansible.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        json.loads(done.stdout) == ansible.read(folder)["list"] == realansible.ours(folder)["list"]
    )
