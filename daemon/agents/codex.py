"""OpenAI's Codex CLI. It tells no cost."""

from __future__ import annotations

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.agents.wording import failed
from daemon.model import Outcome


def read(traces: Traces) -> Record:
    """The last ``turn`` event counts: an item of type error may be a mere warning."""
    session, words, end = "", "", ""
    read_tokens = written = 0.0
    for event in traces.events():
        match event.get("type"):
            case "thread.started":
                session = str(event.get("thread_id") or "")
            case "item.completed":
                item = event.get("item") or {}
                words = str(item["text"]) if item.get("type") == "agent_message" else words
            case "error":
                words, end = str(event.get("message")), "failed"
            case "turn.failed":
                words, end = str((event.get("error") or {}).get("message")), "failed"
            case "turn.completed":
                end, usage = "completed", event.get("usage") or {}
                read_tokens += amount(usage.get("input_tokens"))  # cached ones included
                written += amount(usage.get("output_tokens"))
    told = {"input_tokens": read_tokens, "output_tokens": written} if read_tokens else None
    if end == "completed":
        return Record(Outcome.SUCCESS, words, usage=told, session=session)
    if not end:
        words = traces.tail() or "it ended without a result"
    return failed(words, traces.now, session=session)._replace(usage=told)


PRESET = Preset(
    name="codex",
    title="Codex",
    # Its own sandbox wants rights that a unit does not have; the attempt's unit is the sandbox.
    argv=(
        "codex",
        "exec",
        "--json",
        "--dangerously-bypass-approvals-and-sandbox",
        "--skip-git-repo-check",
        "--color",
        "never",
        "--config",
        "analytics.enabled=false",
    ),
    read=read,
    provider="openai",
    tells=("tokens",),
    model=("--model", "{model}"),
    pass_env=("CODEX_API_KEY", "OPENAI_API_KEY"),
    write_paths=("~/.codex", "~/.cache"),
    tried="0.169.0",
    version=("codex", "--version"),
    install="npm install --global @openai/codex",
    login="codex login; or set CODEX_API_KEY",
)
