"""Any inventory, host key, value or limit: what ours reads comes out as the real Ansible has it.

``ROLECALL_EXAMPLES=1000`` runs that many examples, other ones each time; a failure prints the blob
that runs it again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from daemon.inventory import Inventory
from tests import realansible
from tests.realansible import Ansible

EXAMPLES = os.environ.get("ROLECALL_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 60),
    derandomize=not EXAMPLES,
    print_blob=True,
    database=None,  # nothing is left behind; the blob runs a failure again
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

NAMES = ["g", "a1", "web", "b-2", "Z", "db"]
HOSTS = ["h1", "h2", "h3", "web1.x", "h[1:3]", "h[0:4:2]", "k[a:c]", "r[08:11]-[x:y]", "10.0.0.1"]
VARIABLES = ["ansible_a", "ansible_b", "ansible_c", "ansible_group_priority"]
Files = dict[str, str]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.floats(width=16),
    st.text("aé😀:#'\" \\", max_size=4),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)
    ),
    max_leaves=3,
)


@st.composite
def variables(draw: st.DrawFn) -> dict[str, Any]:
    """A layer of variables: names that collide, and some that ours check."""
    found: dict[str, Any] = draw(st.dictionaries(st.sampled_from(VARIABLES), values, max_size=3))
    if "ansible_group_priority" in found:
        found["ansible_group_priority"] = draw(st.integers(-2, 3))
    if draw(st.booleans()):
        found["unit_prefix"] = draw(st.sampled_from(["p", "q"]))
    return found


@st.composite
def groups(draw: st.DrawFn, names: Sequence[str], depth: int = 0) -> dict[str, Any] | None:
    """A mention of a group, its sections in any order; its children are among the names."""
    found: dict[str, Any] = {}
    for section in draw(st.permutations(["hosts", "children", "vars"])):
        if not draw(st.booleans()):
            continue
        if section == "hosts":
            found[section] = draw(
                st.dictionaries(st.sampled_from(HOSTS), st.none() | variables(), max_size=3)
            )
        elif section == "vars":
            found[section] = draw(variables())
        elif depth < 3:
            found[section] = draw(below(names, depth + 1))
    return found or None


@st.composite
def below(draw: st.DrawFn, names: Sequence[str], depth: int) -> dict[str, Any]:
    chosen = draw(st.lists(st.integers(0, max(len(names) - 1, 0)), max_size=3, unique=True))
    return {names[at]: draw(groups(names[at + 1 :], depth)) for at in chosen if names}


@st.composite
def inventories(draw: st.DrawFn) -> Files:
    """The files of an inventory without loops: each group's children come later in some order."""
    names = draw(st.permutations(NAMES))
    top = draw(below(names, 0))
    for name in draw(st.lists(st.sampled_from(["all", "ungrouped"]), unique=True)):
        found = draw(groups(names if name == "all" else [])) or {}
        if name == "ungrouped":
            found.pop("children", None)
        top[name] = found
    order = draw(st.permutations(list(top)))
    top = {name: top[name] for name in order} or {"all": {"hosts": {"h1": None}}}
    files = {"hosts.yml": json.dumps(top) if draw(st.booleans()) else as_yaml(top)}
    hosts = {host for each in mentioned(top, "hosts") for host in each if "[" not in host}
    known = {"all", "ungrouped", *top}.union(*mentioned(top, "children"))
    for folder, of in (("group_vars", known), ("host_vars", hosts)):
        for name in sorted(of):
            files.update(draw(layers(f"{folder}/{name}")) if draw(st.booleans()) else {})
    return files


@st.composite
def layers(draw: st.DrawFn, path: str) -> Files:
    suffix = st.sampled_from(["", ".yml", ".yaml", ".json"])
    if draw(st.booleans()):
        return {f"{path}{draw(suffix)}": json.dumps(draw(variables()))}
    inside = draw(st.lists(st.sampled_from(["1", "2", "sub/1", "sub/2"]), max_size=3, unique=True))
    return {f"{path}/{name}{draw(suffix)}": as_yaml(draw(variables())) for name in inside}


def as_yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n# which JSON has no comments for"


def mentioned(tree: dict[str, Any], section: str) -> Iterator[dict[str, Any]]:
    for each in tree.values():
        yield (each or {}).get(section) or {}
        yield from mentioned((each or {}).get("children") or {}, section)


atoms = st.sampled_from(
    [
        *(*NAMES, "all", "ungrouped", "h1", "h2", "h3", "ka", "web1.x", "10.0.0.1", "nobody"),
        *("h*", "*", "?", "w*b", "[hk]*", "~h[12]", "~.*b", "web*", "*.x", "10.*"),
        *("all[0]", "web[0]", "db[-1]", "g[0:1]", "Z[1:]", "a1[0:0]", "h*[1]", "*[2:3]", "web[7]"),
    ]
)
limits = st.builds(
    lambda parts, by: by.join(parts),
    st.lists(
        st.builds(str.__add__, st.sampled_from(["", "", "!", "&"]), atoms), min_size=1, max_size=3
    ),
    st.sampled_from([",", ":", ", "]),
)


@SETTINGS
@given(files=inventories(), asked=st.lists(limits, max_size=5))
def test_any_inventory(ansible: Ansible, files: Files, asked: list[str]) -> None:
    """Hosts, groups and variables are Ansible's, and so are the hosts that a limit leaves."""
    with tempfile.TemporaryDirectory() as top:
        folder = realansible.write(Path(top, "inventory"), files)
        theirs, mine = ansible.read(folder, asked), realansible.ours(folder, asked)
        assert realansible.text(mine.get("list", mine)) == realansible.text(
            theirs.get("list", theirs)
        )
        forked = is_forked(Inventory.load(str(folder)))
    for limit in asked:
        if not (forked and "[" in limit):  # Ansible's order of the hosts is any one then
            realansible.same_hosts(limit, mine["limits"][limit], theirs["limits"][limit])


def is_forked(inventory: Inventory) -> bool:
    """Whether several groups of one level have children: Ansible walks these as a set."""
    known = inventory.groups.by_name
    for name in known:
        level = [name]
        while level := [child for each in level for child in known[each].children]:
            if len({each for each in level if known[each].children}) > 1:
                return True
    return False


def same_or_refused(ansible: Ansible, hosts: str, or_theirs: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as top:
        folder = realansible.write(Path(top, "inventory"), {"hosts.yml": hosts})
        mine = realansible.ours(folder)
        if "error" in mine:
            return
        theirs = ansible.read(folder)
    if or_theirs is None or or_theirs not in theirs.get("error", ""):
        assert realansible.text(mine["list"]) == realansible.text(theirs.get("list", theirs))


plain = st.text(
    "0123456789:.-+_eExXobtTyYnNaAflOs~<=/ #'\"{}[],&*!|>%@`\\é", min_size=1, max_size=9
)
dated = st.from_regex(
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][0-9]{1,2}:[0-9]{2}:[0-9]{2})?", fullmatch=True
)
numeric = st.from_regex(
    r"[-+]?(0[box])?[0-9a-f_]{0,4}([.:][0-9_]{0,3})?(e[-+]?[0-9])?", fullmatch=True
)


@settings(SETTINGS, max_examples=int(EXAMPLES or 200))
@given(
    value=plain | dated | numeric,
    where=st.sampled_from(["{}", "[{}]", "{{a: {}}}", "!!int {}", "!!timestamp {}"]),
)
@example(value="1:30", where="{}")
@example(value="2026-02-30", where="{}")
@example(value="1e3", where="[{}]")
def test_any_value(ansible: Ansible, value: str, where: str) -> None:
    """Whatever is written as a value: it is what it is for Ansible, or an error."""
    hosts = f"all:\n  hosts:\n    h:\n      ansible_a: {where.format(value)}\n"
    same_or_refused(ansible, hosts, or_theirs="Completely failed to parse")  # libyaml reads less


key = st.text("ab01[]:-_.", min_size=1, max_size=12) | st.lists(
    st.sampled_from(
        [
            *("web", "-", ".", "_", ":22", ":", "[", "]", "::", "fe80", "1", "[1:3]", "[01:03]"),
            *("[a:c]", "[X:b]", "[0:8:4]", "[:2]", "[2:]", "[3:1]", "[1:a]", "[ab:ad]", "[1-3]"),
        ]
    ),
    min_size=1,
    max_size=5,
).map("".join)


@settings(SETTINGS, max_examples=int(EXAMPLES or 200))
@given(key=key)
@example(key="[::1]:22")
@example(key="web_:22")
@example(key="[1:3]:22")
@example(key="[1:3][1:3]:22")
def test_any_host_key(ansible: Ansible, key: str) -> None:
    """Whatever stands as a host: it names those that it does for Ansible, or is an error."""
    same_or_refused(ansible, f"all: {{hosts: {{{json.dumps(key)}: }}}}\n")


TREE = """\
web: {hosts: {"web[1:4]": }}
db: {hosts: {db1: , web2: }, children: {old: {hosts: {"db[7:9]": }}}}
all: {hosts: {lone: , fe80::1: }}
"""
pattern = st.lists(
    st.sampled_from(
        [
            *("web", "db", "old", "all", "web2", "lone", "ungrouped", "fe80::1", "1", "*", "?"),
            *("!", "&", "~", ":", ",", " ", "^", "$", "."),
            *("[1]", "[-1]", "[0:2]", "[1:]", "[9]", "[3:0]", "[12]"),
        ]
    ),
    min_size=1,
    max_size=6,
).map("".join)


@SETTINGS
@given(asked=st.lists(pattern, min_size=20, max_size=20, unique=True))
def test_any_limit(ansible: Ansible, asked: list[str], tmp_path: Path) -> None:
    """Whatever is typed as a limit leaves the hosts that Ansible's leaves, or is an error."""
    folder = realansible.write(tmp_path / "inventory", {"hosts.yml": TREE})
    theirs, mine = ansible.read(folder, asked), realansible.ours(folder, asked)
    for limit in asked:
        if isinstance(mine["limits"][limit], list):
            assert set(mine["limits"][limit]) == set(theirs["limits"][limit]), limit
