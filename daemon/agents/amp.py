"""Amp: ampcode.com/manual, and its appendix on stream JSON. No test of ours has run it."""

from __future__ import annotations

from daemon.agents import streamjson
from daemon.agents.preset import Preset

PRESET = Preset(
    name="amp",
    title="Amp",
    argv=("amp", "--execute", "--stream-json", "--dangerously-allow-all"),
    read=streamjson.read,
    provider="amp",
    tells=("tokens",),
    pass_env=("AMP_API_KEY",),
    write_paths=("~/.amp", "~/.config/amp", "~/.local/share/amp", "~/.cache"),
    version=("amp", "--version"),
    install="see ampcode.com/manual",
    login="amp login; or set AMP_API_KEY",
)
