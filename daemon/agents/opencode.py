"""opencode: any provider, by its own configuration."""

from __future__ import annotations

from typing import Any

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.agents.wording import failed
from daemon.model import Outcome


def read(traces: Traces) -> Record:
    """It came to its end where the last step stopped by itself and no error followed."""
    session = words = end = ""
    error: dict[str, Any] = {}
    sums = {"input_tokens": 0.0, "output_tokens": 0.0, "cost_usd": 0.0}
    for event in traces.events():
        session = str(event.get("sessionID") or session)
        part = event.get("part") or {}
        match event.get("type"):
            case "text":
                words = str(part.get("text") or "")
            case "step_finish":
                end, error = str(part.get("reason")), {}
                _add(sums, part)
            case "error":
                error = event.get("error") or {"name": "unknown error"}
    usage = sums if any(sums.values()) else None
    if error:
        record = _failed(error, traces.now)
    elif end == "stop":
        record = Record(Outcome.SUCCESS, words)
    else:
        ended = f"its last step ended for the reason {end!r}" if end else "it ended without a step"
        record = failed(traces.tail() or ended, traces.now)
    return record._replace(usage=usage, session=session)


def _add(sums: dict[str, float], step: dict[str, Any]) -> None:
    tokens = step.get("tokens") or {}
    cache = tokens.get("cache") or {}
    read_tokens = (tokens.get("input"), cache.get("read"), cache.get("write"))
    sums["input_tokens"] += sum(map(amount, read_tokens))
    sums["output_tokens"] += amount(tokens.get("output")) + amount(tokens.get("reasoning"))
    sums["cost_usd"] += amount(step.get("cost"))


def _failed(error: dict[str, Any], now: float) -> Record:
    data = error.get("data") or {}
    name, words = str(error.get("name") or ""), str(data.get("message") or "")
    resets_at = None
    wait = (data.get("responseHeaders") or {}).get("retry-after")
    if isinstance(wait, str) and wait.isdigit():
        resets_at = now + int(wait)
    status = data.get("statusCode") or (401 if name == "ProviderAuthError" else None)
    told = ": ".join(filter(None, (name, words)))
    return failed(told, now, status=status, resets_at=resets_at)


PRESET = Preset(
    name="opencode",
    title="opencode",
    argv=("opencode", "run", "--format", "json", "--auto", "--title", "{task_id}"),
    read=read,
    provider="opencode",
    model=("--model", "{model}"),
    env={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
    pass_env=("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY", "OPENCODE_API_KEY"),
    write_paths=(
        "~/.config/opencode",
        "~/.local/share/opencode",
        "~/.local/state/opencode",
        "~/.cache",
    ),
    tried="1.18.33",
    version=("opencode", "--version"),
    install="npm install --global opencode-ai",
    login="opencode auth login",
)
