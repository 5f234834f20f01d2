"""What no recording shows: forms that a CLI's documents tell of, and runs that broke off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon import agents
from daemon.agents import preset as presets
from daemon.agents.preset import Record, Traces
from daemon.model import Outcome

S, E, T, B = Outcome.SUCCESS, Outcome.ERROR, Outcome.THROTTLED, Outcome.BLOCKED
NOW = 1_795_643_000.0


def record(folder: Path, cli: str, *lines: object, status: int = 0, stderr: str = "") -> Record:
    """What the preset reads from a run that printed these lines: JSON, but for text."""
    text = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    (folder / "stdout.log").write_text("".join(f"{line}\n" for line in text))
    (folder / "stderr.log").write_text(stderr)
    preset = agents.find(cli)
    assert preset
    return presets.read(preset, Traces(status, str(folder), NOW))


def result(**more: object) -> dict[str, object]:
    return {"type": "result", "subtype": "success", "is_error": False, "result": "Done.", **more}


FAILED = {"type": "turn.failed", "error": {"message": "unexpected status 500"}}
RECONNECT = {"type": "error", "message": "Reconnecting... 1/5"}
COMPLETED = {"type": "turn.completed", "usage": {"input_tokens": 7, "output_tokens": 1}}
STOP = {"type": "step_finish", "part": {"reason": "stop"}}
UNAUTHORIZED = {"type": "error", "error": {"name": "ProviderAuthError", "data": {}}}
LATER = {"statusCode": 429, "message": "slow", "responseHeaders": {"retry-after": "90"}}
SAID = {"type": "message", "message": {"role": "assistant", "content": [{"text": "Done."}]}}
CAUGHT = "Ran into this error: Rate limit exceeded. Please try again in 5 minutes."
REFUSED = {"type": "message", "message": {"role": "assistant", "content": [{"text": CAUGHT}]}}
SHAPES: dict[str, tuple[str, list[Any], int, str, Outcome]] = {
    "claude: turns are spent": (
        "claude",
        [result(subtype="error_max_turns", result=None)],
        1,
        "",
        E,
    ),
    "claude: money is spent": ("claude", [result(subtype="error_max_budget_usd")], 0, "", E),
    "claude: an odd result": ("claude", [{"type": "result"}], 0, "", E),
    "claude: no result": ("claude", [{"type": "assistant", "message": {}}], 0, "", E),
    "codex: a warning": ("codex", [RECONNECT, COMPLETED], 0, "", S),
    "codex: it fails in the end": ("codex", [COMPLETED, FAILED], 0, "", E),
    "codex: no end": ("codex", [{"type": "turn.started"}], 0, "Not logged in", B),
    "opencode: an error that passed": ("opencode", [UNAUTHORIZED, STOP], 0, "", S),
    "opencode: no login": ("opencode", [STOP, UNAUTHORIZED], 0, "", B),
    "opencode: cut off": ("opencode", [{**STOP, "part": {"reason": "length"}}], 0, "", E),
    "opencode: a limit": (
        "opencode",
        [{"type": "error", "error": {"data": LATER}}],
        1,
        "",
        T,
    ),
    "gemini: no login": ("gemini", [], 41, "Invalid auth method selected.", B),
    "cursor: done": ("cursor", [result(session_id="c")], 0, "", S),
    "cursor: it says why on stderr": ("cursor", [], 1, "Error: not logged in", B),
    "amp: done": ("amp", [result(session_id="T-1")], 0, "", S),
    "amp: an error": ("amp", [result(subtype="error_during_execution", is_error=True)], 1, "", E),
    "goose: done": ("goose", [SAID, {"type": "complete", "total_tokens": 9}], 0, "", S),
    "goose: an error that it caught": ("goose", [REFUSED, {"type": "complete"}], 0, "", T),
    "goose: an error": ("goose", [SAID, {"type": "error", "error": "boom"}], 1, "", E),
    "goose: no end": ("goose", [SAID], 0, "", E),
    "copilot: done": ("copilot", [{"type": "result", "exitCode": 0}], 0, "", S),
    "copilot: its process is content": ("copilot", [{"type": "result", "exitCode": 1}], 0, "", E),
    "copilot: no end": ("copilot", [], 0, "Error: No authentication information found.", B),
    "crush: done": ("crush", ["All done."], 0, "", S),
    "crush: nothing said": ("crush", [], 0, "", E),
    "crush: an error": ("crush", ["half"], 1, "429 Too Many Requests", T),
    "mini: no trajectory": ("mini", [], 1, "ModuleNotFoundError: mcp", E),
    "aider: a limit, after an answer": (
        "aider",
        ["Tokens: 1k sent, 2 received.", "litellm.RateLimitError: Please try again in 2s."],
        0,
        "",
        T,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_form_of_output_is_understood(shape: str, tmp_path: Path) -> None:
    """A run that is told as a success ends as one; each other one says why."""
    cli, lines, status, stderr, expected = SHAPES[shape]
    found = record(tmp_path, cli, *lines, status=status, stderr=stderr)
    assert found.outcome is expected, found
    assert found.note or expected is S


def test_the_end_of_a_limit_comes_from_where_the_cli_tells_it(tmp_path: Path) -> None:
    """A header of its provider's, an event of its own, or words."""
    header = record(tmp_path, "opencode", {"type": "error", "error": {"data": LATER}})
    assert header.retry_after == 90
    told = {"status": "rejected", "resetsAt": NOW + 60}
    event = {"type": "rate_limit_event", "rate_limit_info": told}
    failed = result(is_error=True, api_error_status=429, result="You've hit your limit")
    assert record(tmp_path, "claude", event, failed).retry_after == 60
    assert record(tmp_path, "goose", REFUSED).retry_after == 300


def test_a_run_that_broke_off_tells_what_it_used(tmp_path: Path) -> None:
    """Each message once, though it comes in pieces; the session for those who look into it."""
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}
    piece = {"type": "assistant", "session_id": "s", "message": {"id": "m1", "usage": usage}}
    other = {"type": "assistant", "session_id": "s", "message": {"id": "m2", "usage": usage}}
    found = record(tmp_path, "claude", piece, piece, other, '{"type": "resu', status=-15)
    assert found.session == "s"
    assert found.usage == {"input_tokens": 30, "output_tokens": 2}


def test_usage_that_is_no_number_counts_nothing(tmp_path: Path) -> None:
    """Nor does a negative one, or what JSON cannot hold: a ledger adds it up."""
    odd = {"input_tokens": -5, "output_tokens": "many", "cache_read_input_tokens": True}
    line = json.dumps(result(usage=odd, total_cost_usd=1)).replace(": 1}", ": NaN}")
    assert set((record(tmp_path, "claude", line).usage or {}).values()) == {0}
