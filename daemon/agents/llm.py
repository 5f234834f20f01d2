"""Rolecall's own LLM loop, a program like any other: the last line that it prints is its record."""

from __future__ import annotations

import os
import sys

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.model import Outcome

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
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
        None if wait is None else amount(wait),
        {key: amount(value) for key, value in usage.items()},
        str(said.get("session") or ""),
    )


PRESET = Preset(
    name="llm",
    title="Rolecall's LLM loop",
    # -P: no module of the worktree may stand in for one of ours.
    argv=(sys.executable, "-P", "-m", "daemon.llm"),
    read=read,
    provider="llm",
    model=("--model", "{model}"),
    env={"PYTHONPATH": ROOT},
    pass_env=("ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
    tried="it is part of Rolecall",
    version=(sys.executable, "-P", "-m", "daemon.llm", "--version"),
    install="make setup EXTRA=llm",
)
