"""Real agent CLIs, talking to the scripted LLM: where they are, and a role's config for each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from daemon import agents
from tests.workspace import ROOT

# A folder of programs, looked at before PATH; read before a test's own environment forgets it.
GIVEN = os.environ.get("ROLECALL_TEST_CLIS", "")
INSTALLED = ROOT / ".clis" / "node_modules" / ".bin"  # of `make clis`
KEY = "sk-fake-0123456789"
MODEL = "fake-model"


def path() -> str:
    """The PATH that CLIs are looked for on."""
    folders = (GIVEN, str(INSTALLED), os.environ["PATH"])
    return os.pathsep.join(filter(None, folders))


def missing(name: str) -> str:
    """Why the preset's CLI cannot be run here; "" where it can."""
    preset = agents.find(name)
    assert preset
    if shutil.which(preset.argv[0], path=path()):
        return ""
    return f"{preset.argv[0]} is not installed: make clis, or {preset.install}"


def role(name: str, url: str) -> dict[str, Any]:
    """A role's keys for that preset, so that its CLI talks to the LLM at the URL of a scenario."""
    openai = {"OPENAI_API_KEY": KEY}
    chat = {**openai, "OPENAI_API_BASE": f"{url}/v1", "OPENAI_BASE_URL": f"{url}/v1"}
    found: dict[str, dict[str, Any]] = {
        "claude": {"env": {"CLAUDE_CODE_OAUTH_TOKEN": KEY, "ANTHROPIC_BASE_URL": url}},
        "codex": {"model": MODEL, "args": _codex(url), "env": openai},
        "opencode": {"model": f"fake/{MODEL}", "env": _opencode(url)},
        "gemini": {
            "model": "gemini-2.5-pro",
            "env": {"GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": url},
        },
        "qwen": {"model": MODEL, "args": ["--auth-type", "openai"], "env": chat},
        "mini": {"model": f"openai/{MODEL}", "env": chat},
        "aider": {
            "model": f"openai/{MODEL}",
            "args": ["--edit-format", "diff", "--map-tokens", "0"],
            "env": chat,
        },
    }
    return {"agent": name, **found[name]}


def _codex(url: str) -> list[str]:
    place = f'base_url="{url}/v1", env_key="OPENAI_API_KEY", wire_api="responses"'
    provider = f'model_providers.fake={{name="fake", {place}}}'
    return ["--config", 'model_provider="fake"', "--config", provider]


def _opencode(url: str) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "fake",
        "options": {"baseURL": f"{url}/v1", "apiKey": KEY},
        "models": {MODEL: {"name": "fake", "cost": {"input": 1, "output": 2}}},
    }
    config = json.dumps({"provider": {"fake": provider}})
    return {"OPENCODE_CONFIG_CONTENT": config, "OPENCODE_DISABLE_MODELS_FETCH": "1"}


def prepare_home(home: Path) -> None:
    """What a CLI wants to find in the HOME of its account, and no variable can say."""
    settings = {"security": {"auth": {"selectedType": "gemini-api-key"}}}
    (home / ".gemini").mkdir(parents=True, exist_ok=True)
    (home / ".gemini" / "settings.json").write_text(json.dumps(settings))
