"""Claude Code: one JSON object in a line for each event, the last one is the result."""

from __future__ import annotations

from typing import Any

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.model import Outcome

COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def read(traces: Traces) -> Record:
    """Its last ``result`` event counts; ``is_error`` is true with ``subtype: success`` too."""
    session, result = "", None
    for event in traces.events():
        session = str(event.get("session_id") or session)
        if event.get("type") == "result":
            result = event
    if result is None:
        return Record(Outcome.ERROR, traces.tail() or "no result in its output", session=session)
    note = str(result.get("result") or result.get("subtype") or "")
    outcome = Outcome.ERROR if result.get("is_error") else Outcome.SUCCESS
    return Record(outcome, note, usage=_usage(result), session=session)


def _usage(result: dict[str, Any]) -> dict[str, float]:
    counts = result.get("usage") or {}
    return {
        "input_tokens": sum(amount(counts.get(name)) for name in COUNTS),
        "output_tokens": amount(counts.get("output_tokens")),
        "cost_usd": amount(result.get("total_cost_usd")),
    }


PRESET = Preset(
    name="claude",
    title="Claude Code",
    # As root it refuses --dangerously-skip-permissions; this needs no asking as any user.
    # --allowedTools takes many values: an option has to follow it.
    argv=(
        "claude",
        "-p",
        "--allowedTools",
        "Bash",
        "--permission-mode",
        "acceptEdits",
        "--output-format",
        "stream-json",
        "--verbose",
    ),
    read=read,
    provider="anthropic",
    model=("--model", "{model}"),
    env={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"},
    pass_env=("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    write_paths=("~/.claude", "~/.claude.json", "~/.cache"),
    tried="2.1.197",
    version=("claude", "--version"),
    install="npm install --global @anthropic-ai/claude-code",
    login="claude, then /login; or set ANTHROPIC_API_KEY",
    cost_limit=("--max-budget-usd", "{cost_usd}"),
)
