"""The scripted LLM itself: what tests with real CLIs rest on."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests import fakewires
from tests.fakellm import FILE, MARK, served

SCHEMA = {
    "type": "object",
    "properties": {"command": {"type": "string"}},
    "required": ["command"],
}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (
        "v1/chat/completions",
        {"tools": [{"type": "function", "function": {"name": "bash", "parameters": SCHEMA}}]},
    ),
    "responses": (
        "v1/responses",
        {"tools": [{"type": "function", "name": "bash", "parameters": SCHEMA}]},
    ),
    "messages": ("v1/messages", {"tools": [{"name": "bash", "input_schema": SCHEMA}]}),
    "gemini": (
        "v1beta/models/m:generateContent",
        {"tools": [{"functionDeclarations": [{"name": "bash", "parametersJsonSchema": SCHEMA}]}]},
    ),
}
ANSWERED: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "tool", "content": "done"}]},
    "responses": {"input": [{"type": "function_call_output", "output": "done"}]},
    "messages": {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"functionResponse": {"name": "bash"}}]}]},
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served() as url:
        yield int(url.rpartition(":")[2])


def post(port: int, path: str, body: dict[str, Any]) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("wire", CALLS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_edit_is_one_command_and_then_the_end(port: int, wire: str, *, stream: bool) -> None:
    """On each wire, in one piece or as a stream, with the tokens that it claims to have used."""
    path, body = CALLS[wire]
    if stream and wire == "gemini":
        path = path.replace("generate", "streamGenerate")
    body = {**body, "stream": stream}
    status, first = post(port, f"/edit/{path}", body)
    assert status == 200
    assert first.startswith(("data: ", "event: ") if stream else "{")
    assert '"bash"' in first
    assert stream or f"echo {MARK} >> {FILE}" in first
    assert str(fakewires.IN_TOKENS) in first
    status, second = post(port, f"/edit/{path}", {**body, **ANSWERED[wire]})
    assert "done" in second
    assert "bash" not in second


@pytest.mark.parametrize("wire", CALLS)
def test_errors_come_on_each_wire(port: int, wire: str) -> None:
    """A status that the scenario names; twice a 429 for each conversation; a limit with its end."""
    path, body = CALLS[wire]
    assert post(port, f"/e401/{path}", body)[0] == 401
    told = {**body, "messages": [{"role": "user", "content": wire}]}
    assert [post(port, f"/flaky/{path}", told)[0] for _ in range(4)] == [429, 429, 200, 429]
    assert post(port, f"/limit/{path}", body)[0] == 429
    assert post(port, "/edit/v1/unknown", body)[0] == 404


def test_a_dropped_stream_has_no_end(port: int) -> None:
    """Half of it comes, and no word of the wire's that it is over."""
    path, body = CALLS["messages"]
    whole = post(port, f"/edit/{path}", {**body, "stream": True})[1]
    half = post(port, f"/drop/{path}", {**body, "stream": True})[1]
    assert "message_stop" in whole
    assert half
    assert "message_stop" not in half


def test_a_refusal_and_a_loop_differ_in_their_turns(port: int) -> None:
    """The one never calls a tool, the other always does."""
    path, body = CALLS["chat"]
    later = {**body, **ANSWERED["chat"]}
    assert "bash" not in post(port, f"/refuse/{path}", body)[1]
    assert "bash" in post(port, f"/loop/{path}", later)[1]
    assert "not json" in post(port, f"/badargs/{path}", body)[1]
