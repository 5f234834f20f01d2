"""Rolecall's own LLM loop, a program like any other: the last line that it prints is its record."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.model import Outcome

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SETTINGS = "ROLECALL_LLM"  # the variable that holds what the loop is told: none of it is secret
#: The prefix of a model names the wire: the variables of its key and of its address.
WIRES = {
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "openai-responses": ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
}
LONGEST = 366 * 86400.0  # seconds; no limit resets later
SAYABLE = {each.value for each in Outcome} - {Outcome.LOST, Outcome.RELEASED}


def read(traces: Traces) -> Record:
    """``{"outcome", "note", "retry_after", "usage", "session"}``, each but the first optional."""
    said = None
    for event in traces.events():
        said = event
    if said is None or said.get("outcome") not in SAYABLE:
        return Record(Outcome.ERROR, traces.tail() or "no record in its output")
    wait, usage = said.get("retry_after"), said.get("usage") or {}
    return Record(
        Outcome(said["outcome"]),
        str(said.get("note") or ""),
        None if wait is None else min(amount(wait), LONGEST),
        {key: amount(value) for key, value in usage.items()},
        str(said.get("session") or ""),
        said.get("denied") is not False,
    )


def wire_of(model: str | None) -> tuple[str, str] | None:
    """The wire and the model's own name; None where it names no wire."""
    wire, _, name = (model or "").partition(":")
    return (wire, name) if wire in WIRES and name else None


def provider_of(model: str | None, base_url: str | None) -> str:
    """Whose account the loop spends from: that of the wire's own CLI, or of a server elsewhere."""
    wire = wire_of(model)
    return "llm" if base_url or wire is None else wire[0].partition("-")[0]


def settings(role: Any) -> dict[str, str]:
    """What the loop is told of its role, as JSON."""
    limit, price = role.budget.attempt, role.price
    told = {
        "model": role.model,
        "llm": role.llm._asdict(),
        "env": list(role.env),
        "tokens": limit.tokens,
        "cost_usd": limit.cost_usd,
        "price": price and (price.input, price.output),
    }
    return {SETTINGS: json.dumps(told)}


PRESET = Preset(
    name="llm",
    title="Rolecall's LLM loop",
    # -P: no module of the worktree may stand in for one of ours.
    argv=(sys.executable, "-P", "-m", "daemon.llm"),
    read=read,
    provider="llm",
    env={"PYTHONPATH": ROOT},
    pass_env=tuple(dict.fromkeys(name for names in WIRES.values() for name in names)),
    tried="it is part of Rolecall",
    version=(sys.executable, "-P", "-m", "daemon.llm", "--version"),
    install="make llm",
    login="set OPENAI_API_KEY or ANTHROPIC_API_KEY, by pass_env or in the role's env_file",
    cost_limit=("--max-cost-usd", "{cost_usd}"),
    settings=settings,
)
