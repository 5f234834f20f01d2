"""Cursor's CLI: cursor.com/docs/cli (headless, output format). No test of ours has run it."""

from __future__ import annotations

from daemon.agents import streamjson
from daemon.agents.preset import Preset

PRESET = Preset(
    name="cursor",
    title="Cursor CLI",
    argv=("cursor-agent", "--print", "--force", "--output-format", "stream-json"),
    read=streamjson.read,  # on failure it has no result event, and says why on stderr
    provider="cursor",
    tells=(),
    model=("--model", "{model}"),
    prompt_via="argument",
    pass_env=("CURSOR_API_KEY",),
    write_paths=("~/.cursor", "~/.config/cursor", "~/.cache"),
    version=("cursor-agent", "--version"),
    install="see cursor.com/docs/cli/installation (on npm that name is another program)",
    login="cursor-agent login; or set CURSOR_API_KEY",
)
