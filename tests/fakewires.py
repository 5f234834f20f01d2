"""The four wire formats of LLM providers, as far as agent CLIs read them: one turn, two forms.

Each function gives ``(document, events)``: the answer as one JSON object, or what is streamed, as
pairs of an event's name ("" for none) and its data. The other one is None.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, NamedTuple

IN_TOKENS, CACHED_TOKENS, OUT_TOKENS = 1000, 200, 50  # what each turn claims to have used
Json = dict[str, Any]
Answer = tuple[Json | None, list[tuple[str, Json | str]] | None]


class Turn(NamedTuple):
    """What the model says: a text, or one call of a tool. ``arguments`` as text are broken JSON."""

    text: str = ""
    tool: str = ""
    arguments: Json | str = ""

    @property
    def arguments_text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)

    @property
    def arguments_object(self) -> Json:
        return self.arguments if isinstance(self.arguments, dict) else {}


def _id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex[:16]}"


def chat(turn: Turn, body: Json) -> Answer:
    """OpenAI Chat Completions."""
    usage = {
        "prompt_tokens": IN_TOKENS,
        "completion_tokens": OUT_TOKENS,
        "total_tokens": IN_TOKENS + OUT_TOKENS,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
    }
    whole = {"id": _id("chatcmpl-"), "created": int(time.time()), "model": body.get("model", "m")}
    message: Json = {"role": "assistant", "content": turn.text or None}
    end, arguments = "stop", turn.arguments_text
    call = {
        "id": _id("call_"),
        "type": "function",
        "function": {"name": turn.tool, "arguments": arguments},
    }
    if turn.tool:
        message["tool_calls"], end = [call], "tool_calls"
    if not body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": end}
        return {**whole, "object": "chat.completion", "choices": [choice], "usage": usage}, None

    def chunk(delta: Json, finish: str | None = None) -> tuple[str, Json]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return "", {**whole, "object": "chat.completion.chunk", "choices": [choice]}

    events: list[tuple[str, Json | str]] = [chunk({"role": "assistant", "content": ""})]
    if turn.tool:
        half = len(arguments) // 2
        first = {**call, "index": 0, "function": {"name": turn.tool, "arguments": arguments[:half]}}
        events += [
            chunk({"tool_calls": [first]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments[half:]}}]}),
        ]
    else:
        half = len(turn.text) // 2
        events += [chunk({"content": turn.text[:half]}), chunk({"content": turn.text[half:]})]
    last = {**whole, "object": "chat.completion.chunk", "choices": [], "usage": usage}
    return None, [*events, chunk({}, end), ("", last), ("", "[DONE]")]


def responses(turn: Turn, body: Json) -> Answer:
    """OpenAI Responses."""
    name = _id("")
    text = {"type": "output_text", "text": turn.text, "annotations": []}
    item: Json = {
        "type": "message",
        "id": f"msg_{name}",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    if turn.tool:
        item = {
            "type": "function_call",
            "id": f"fc_{name}",
            "call_id": f"call_{name}",
            "name": turn.tool,
            "arguments": turn.arguments_text,
            "status": "completed",
        }
    whole = {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(time.time()),
        "model": body.get("model", "m"),
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "status": "completed",
        "output": [item],
        "usage": {
            "input_tokens": IN_TOKENS,
            "input_tokens_details": {"cached_tokens": CACHED_TOKENS},
            "output_tokens": OUT_TOKENS,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": IN_TOKENS + OUT_TOKENS,
        },
    }
    if not body.get("stream"):
        return whole, None
    events: list[tuple[str, Json | str]] = []

    def tell(kind: str, **more: Any) -> None:
        events.append((kind, {"type": kind, "sequence_number": len(events), **more}))

    start = {**whole, "status": "in_progress", "output": [], "usage": None}
    inside = {"item_id": item["id"], "output_index": 0}
    tell("response.created", response=start)
    if turn.tool:
        begun = {**item, "arguments": "", "status": "in_progress"}
        tell("response.output_item.added", output_index=0, item=begun)
        kind = "response.function_call_arguments"
        tell(f"{kind}.delta", **inside, delta=item["arguments"])
        tell(f"{kind}.done", **inside, name=turn.tool, arguments=item["arguments"])
    else:
        begun = {**item, "content": [], "status": "in_progress"}
        inside["content_index"] = 0
        tell("response.output_item.added", output_index=0, item=begun)
        tell("response.content_part.added", **inside, part={**text, "text": ""})
        tell("response.output_text.delta", **inside, delta=turn.text, logprobs=[])
        tell("response.output_text.done", **inside, text=turn.text, logprobs=[])
        tell("response.content_part.done", **inside, part=text)
    tell("response.output_item.done", output_index=0, item=item)
    tell("response.completed", response=whole)
    return None, events


def anthropic(turn: Turn, body: Json) -> Answer:
    """Anthropic Messages."""
    name = _id("")
    usage = {
        "input_tokens": IN_TOKENS,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHED_TOKENS,
        "output_tokens": OUT_TOKENS,
    }
    block: Json = {"type": "text", "text": turn.text}
    empty: Json = {"type": "text", "text": ""}
    delta: Json = {"type": "text_delta", "text": turn.text}
    stop = "end_turn"
    if turn.tool:
        block = {"type": "tool_use", "id": f"toolu_{name}", "name": turn.tool}
        empty, block = {**block, "input": {}}, {**block, "input": turn.arguments_object}
        delta = {"type": "input_json_delta", "partial_json": turn.arguments_text}
        stop = "tool_use"
    message: Json = {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "m"),
        "content": [block],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage,
    }
    if not body.get("stream"):
        return message, None
    first = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    end = {"stop_reason": stop, "stop_sequence": None}
    events: list[Json] = [
        {"type": "message_start", "message": first},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": usage},
        {"type": "message_stop"},
    ]
    return None, [(event["type"], event) for event in events]


def gemini(turn: Turn, body: Json) -> Answer:
    """Google Gemini; ``body`` has ``stream`` set where the path asks for it."""
    call = {"functionCall": {"name": turn.tool, "args": turn.arguments_object}}
    content = {"role": "model", "parts": [call if turn.tool else {"text": turn.text}]}
    answer: Json = {
        "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": IN_TOKENS,
            "cachedContentTokenCount": CACHED_TOKENS,
            "candidatesTokenCount": OUT_TOKENS,
            "totalTokenCount": IN_TOKENS + OUT_TOKENS,
        },
        "modelVersion": "fake",
        "responseId": _id(""),
    }
    return (None, [("", answer)]) if body.get("stream") else (answer, None)
