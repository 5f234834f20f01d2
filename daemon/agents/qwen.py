"""Qwen Code. It tells no cost, and calls an error of its provider a success."""

from __future__ import annotations

from daemon.agents import streamjson
from daemon.agents.preset import Preset, Record, Traces
from daemon.agents.wording import failed
from daemon.model import Outcome

API_ERROR = "[API Error:"


def read(traces: Traces) -> Record:
    """As Claude Code's, but what the model read includes what was cached."""
    record = streamjson.read(traces, inputs=("input_tokens",))
    if record.outcome is Outcome.SUCCESS and record.note.startswith(API_ERROR):
        told = failed(record.note, traces.now, session=record.session)
        return told._replace(usage=record.usage)
    return record


PRESET = Preset(
    name="qwen",
    title="Qwen Code",
    argv=("qwen", "--output-format", "stream-json", "--yolo"),
    read=read,
    provider="qwen",
    tells=("tokens",),
    model=("--model", "{model}"),
    pass_env=("DASHSCOPE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    write_paths=("~/.qwen", "~/.cache"),
    tried="0.15.10",
    version=("qwen", "--version"),
    install="npm install --global @qwen-code/qwen-code",
    login="qwen, then /auth; or set OPENAI_API_KEY and args: [--auth-type, openai]",
)
