"""Workspaces to measure in: their queues and their configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daemon import lifecycle
from tests.bench.timing import ROOT


def make_workspace(folder: Path, command: list[str]) -> Path:
    """A workspace with an empty queue, and its config: five roles that run the command."""
    write_queue(folder, [])
    # JSON is YAML. The prompt is one of ours, as invoke init puts it there.
    prompts = folder / ".oodatcaa" / "prompts"
    prompts.mkdir()
    for role in lifecycle.DEFAULT_ROLES:
        template = (ROOT / "templates" / "prompts" / f"{role}.md.j2").read_text()
        (prompts / f"{role}.md").write_text(template)
    config = folder / "rolecall.yml"
    config.write_text(json.dumps({"workspace": str(folder), "roles": five_roles(command)}))
    return config


def five_roles(command: list[str]) -> dict[str, Any]:
    return {name: {"agent": "command", "command": command} for name in lifecycle.DEFAULT_ROLES}


def a_task(name: str) -> dict[str, Any]:
    """A task of some 500 bytes, as real ones are."""
    return {
        "id": name,
        "title": "Refuse an order whose total is negative",
        "type": "Build",
        "status": "ready",
        "priority": 2,
        "agent": None,
        "lease": None,
        "dependencies": [],
        "description": "The total of an order is the sum of its lines. " * 4,
        "acceptance": ["a negative total is refused", "the refusal names the order"],
    }


def write_queue(folder: Path, tasks: list[dict[str, Any]]) -> None:
    queue = folder / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"
    queue.parent.mkdir(parents=True, exist_ok=True)
    aside = queue.with_suffix(".new")
    aside.write_text(json.dumps({"tasks": tasks, "wip_limits": {}}, indent=2) + "\n")
    aside.rename(queue)
