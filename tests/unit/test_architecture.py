"""The rules that the code's own shape keeps: who imports whom, and what an idle worker holds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from tests.workspace import PATIENCE, ROOT, Workspace

#: From the bottom up; a module imports only from lines above its own.
LAYERS = (
    {"errors", "packages", "spawn"},
    {"model", "process", "capture", "git", "wake"},
    {"index", "repository"},
    {"conflicts", "hindrance", "lifecycle", "state"},
    {"agents", "byhand", "config", "mounts"},
    {
        *("checking", "groups", "hostkeys", "hostsfolder", "inventory", "kinds", "limit"),
        *("places", "reading", "reference", "schema", "uri", "varsfiles", "way", "yamltext"),
    },
    {"queue"},
    {"environment", "evidence", "log", "prompt", "service", "verdict"},
    {"brief", "history", "transient", "tree", "worktree"},
    {"background", "fingerprint", "landing", "reclaim"},
    {"values", "workbench"},
    {"executor"},
    {"launch", "llm"},
    {"attending"},
    {"attempt", "worker"},
    {"trial"},
    {"__main__"},
    {"fleet"},
)
#: One noun in several modules: they are free among themselves.
TOGETHER = ({"agents"}, {"llm"}, {"queue"}, {"fleet"}, LAYERS[5])
#: What an idle worker must not hold in memory.
HEAVY = {
    "asyncio",
    "concurrent",
    "dataclasses",
    "fabric",
    "inspect",
    "jinja2",
    "paramiko",
    "psycopg",
    "urllib",
    "yaml",
}
#: And what each attempt would pay for at its start. (A worker gets these with inotify_simple.)
SLOW = {*HEAVY, "shutil", "subprocess", "tempfile", "threading"}
IDLE = """
import json, runpy, sys
sys.argv = ["daemon", *sys.argv[1:]]
try:
    runpy.run_module("daemon", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    print(json.dumps([ended.code, sorted(sys.modules)]))
"""


def sources() -> Iterator[tuple[str, str, ast.Module]]:
    """Each module of daemon: its noun (the package's name for one of a package), path, tree."""
    for path in sorted((ROOT / "daemon").rglob("*.py")):
        inside = path.relative_to(ROOT / "daemon").with_suffix("")
        if str(inside) != "__init__":
            yield inside.parts[0], str(path.relative_to(ROOT)), ast.parse(path.read_text())


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """The nouns of ours that import statements among the nodes name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("daemon.")}
    return found


def layer(noun: str) -> int:
    known = [number for number, nouns in enumerate(LAYERS) if noun in nouns]
    assert known, f"say in LAYERS where daemon.{noun} belongs"
    return known[0]


def test_imports_point_one_way() -> None:
    """A module imports what lies below it; what a function imports late is looked at below."""
    for noun, path, tree in sources():
        for other in imported(iter(tree.body)):
            together = any({noun, other} <= nouns for nouns in TOGETHER)
            assert together or layer(other) < layer(noun), f"{path} imports daemon.{other}"


def test_the_core_knows_no_fleet_and_a_worker_no_attempt() -> None:
    """Not even late, inside a function."""
    for noun, path, tree in sources():
        found = imported(ast.walk(tree))
        assert noun == "fleet" or "fleet" not in found, path
        assert noun == "llm" or "llm" not in found, path
        assert not (noun == "worker" and "attempt" in found), path
        assert not (noun == "attempt" and found & {"worker", "attending"}), path
        assert not (noun == "executor" and found & {"queue", "config"}), path
        assert not (noun == "queue" and found & {"executor", "launch", "transient"}), path


def test_an_idle_worker_is_small(ws: Workspace) -> None:
    """It sleeps on an empty queue without the modules that it needs for nothing there."""
    ws.write_config(builder={"script": "true"})
    ws.write_queue()
    command = [sys.executable, "-c", IDLE, "--role", "builder", "--config", str(ws.config)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        assert worker.stdout
        assert worker.stderr
        first = worker.stderr.readline()
        worker.terminate()
        said, errors = worker.communicate(timeout=PATIENCE)
    assert "started" in first, errors
    status, modules = json.loads(said)
    assert status == 0, errors
    assert "daemon.worker" in modules
    assert HEAVY & {name.split(".")[0] for name in modules} == set()


def test_an_attempt_starts_with_little() -> None:
    """What its first instructions import is what every attempt waits for."""
    code = "import json, sys, daemon.attempt; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-S", "-c", code]  # -S: no site-packages, hence only our own doing
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert SLOW & {name.split(".")[0] for name in json.loads(done.stdout)} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda p: p.name)
def test_each_test_states_the_fact_that_it_proves(path: Path) -> None:
    """In its docstring."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if is_test(node)]
    silent = [node.name for node in found if not ast.get_docstring(node)]
    assert silent == []


def is_test(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
