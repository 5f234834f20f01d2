"""The stream of JSON that Claude Code prints, and that other CLIs have taken over from it.

One event in a line; each names its session, the last one is the ``result``: ``is_error`` (true with
``subtype: success``, too), ``api_error_status``, ``usage``, ``total_cost_usd``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from daemon.agents.preset import Record, Traces, amount
from daemon.agents.wording import failed
from daemon.model import Outcome

INPUTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def read(traces: Traces, inputs: Iterable[str] = INPUTS) -> Record:
    """What the run came to. ``inputs``: the counts that together are all that the model read."""
    session, resets_at = "", None
    result: dict[str, Any] = {}
    turns: dict[str, dict[str, Any]] = {}
    for event in traces.events():
        session = str(event.get("session_id") or session)
        if event.get("type") == "result":
            result = event
        elif event.get("type") == "assistant":  # a message may come in pieces of one id
            message = event.get("message") or {}
            turns[str(message.get("id"))] = message.get("usage") or {}
        elif event.get("type") == "rate_limit_event":
            info = event.get("rate_limit_info") or {}
            resets_at = info.get("resetsAt") if info.get("status") == "rejected" else None
    if not result:
        words = traces.tail() or "it ended without a result"
        partial = _total(turns.values(), inputs)
        return failed(words, traces.now, session=session)._replace(usage=partial)
    note = _words(result)
    if result.get("is_error") is not False or result.get("subtype") != "success":
        status = result.get("api_error_status")
        record = failed(note, traces.now, status=status, resets_at=resets_at, session=session)
    else:
        record = Record(Outcome.SUCCESS, note, session=session)
    return record._replace(usage=_usage(result, inputs))


def _words(result: dict[str, Any]) -> str:
    """The answer, or else what went wrong."""
    told = result.get("errors") or result.get("error") or []
    errors = [
        str(each.get("message") if isinstance(each, dict) else each)
        for each in (told if isinstance(told, list) else [told])
    ]
    return ": ".join([str(result.get("result") or result.get("subtype") or ""), *errors])


def _usage(result: dict[str, Any], inputs: Iterable[str]) -> dict[str, float] | None:
    """All models' counts where they are told apart: ``usage`` lacks what no stream came of."""
    models = [each for each in (result.get("modelUsage") or {}).values() if isinstance(each, dict)]
    kinds = ("inputTokens", "cacheCreationInputTokens", "cacheReadInputTokens")
    if models:
        usage: dict[str, float] | None = {
            "input_tokens": sum(amount(each.get(kind)) for each in models for kind in kinds),
            "output_tokens": sum(amount(each.get("outputTokens")) for each in models),
        }
    else:
        usage = _total([result.get("usage") or {}], inputs)
    if "total_cost_usd" in result:
        usage = {**(usage or {}), "cost_usd": amount(result["total_cost_usd"])}
    return usage


def _total(counts: Iterable[dict[str, Any]], inputs: Iterable[str]) -> dict[str, float] | None:
    told = [each for each in counts if each]
    if not told:
        return None
    return {
        "input_tokens": sum(amount(each.get(name)) for each in told for name in inputs),
        "output_tokens": sum(amount(each.get("output_tokens")) for each in told),
    }
