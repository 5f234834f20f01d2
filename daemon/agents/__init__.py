"""What we know of each agent CLI, as data: one module each, loaded when it is asked for."""

from __future__ import annotations

from daemon.agents.preset import Preset

__all__ = ["NAMES", "find"]

#: What `agent:` may name beside `command`; each is a module here that holds a PRESET.
NAMES = (
    "claude",
    "codex",
    "opencode",
    "gemini",
    "qwen",
    "aider",
    "mini",
    "cursor",
    "copilot",
    "goose",
    "amp",
    "crush",
    "llm",
)


def find(name: str | None) -> Preset | None:
    """The preset of that name; None for `command`, and where a role has no agent."""
    if name not in NAMES:
        return None
    import importlib  # noqa: PLC0415  # an attempt of `command` starts without it

    preset: Preset = importlib.import_module(f"daemon.agents.{name}").PRESET
    return preset
