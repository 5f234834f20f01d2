"""goose: its guides "Running tasks" and "CLI commands". No test of ours has run it.

With ``--output-format stream-json`` it prints message, notification, error and, where no error
ended the run, complete. What a provider refuses stands in a message of the assistant's.
"""

from __future__ import annotations

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.agents.wording import failed
from daemon.model import Outcome

CAUGHT = "Ran into this error"  # how such a message of its own begins


def read(traces: Traces) -> Record:
    """``complete`` is success, unless what was said last is an error that it caught."""
    words = error = ""
    complete = None
    for event in traces.events():
        match event.get("type"):
            case "message":
                message = event.get("message") or {}
                parts = [part for part in message.get("content") or [] if part.get("text")]
                if message.get("role") == "assistant" and parts:
                    words = " ".join(str(part["text"]) for part in parts)
            case "error":
                error = str(event.get("error") or event.get("message") or "error")
            case "complete":
                complete = event
    if complete is None or error or words.startswith(CAUGHT):
        told = error or (words if words.startswith(CAUGHT) else "")
        return failed(told or traces.tail() or "it ended without a result", traces.now)
    names = {"input_tokens": "input_tokens", "output_tokens": "output_tokens", "cost": "cost_usd"}
    usage = {ours: amount(complete[key]) for key, ours in names.items() if key in complete}
    return Record(Outcome.SUCCESS, words, usage=usage or None)


PRESET = Preset(
    name="goose",
    title="goose",
    argv=("goose", "run", "--no-session", "--quiet", "--output-format", "stream-json", "-i", "-"),
    read=read,
    provider="goose",
    model=("--model", "{model}"),
    env={"GOOSE_MODE": "auto", "GOOSE_TELEMETRY_ENABLED": "false"},
    pass_env=("ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
    write_paths=("~/.config/goose", "~/.local/share/goose", "~/.local/state/goose"),
    version=("goose", "--version"),
    install="see the installation guide of goose",
    login="goose configure",
)
