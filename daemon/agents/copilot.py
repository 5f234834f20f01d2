"""GitHub Copilot CLI: docs.github.com, "CLI programmatic reference". No test of ours has run it.

It tells no tokens and no cost, but premium requests, which are neither.
"""

from __future__ import annotations

from daemon.agents.preset import Preset, Record, Traces
from daemon.agents.wording import failed
from daemon.model import Outcome


def read(traces: Traces) -> Record:
    """The ``result`` event counts: its process exits 0 after a turn that failed, too."""
    words = error = ""
    result = None
    for event in traces.events():
        data = event.get("data") or {}
        match event.get("type"):
            case "assistant.message":
                words = str(data.get("content") or words)
            case "session.error":
                error = str(data.get("message") or "error")
            case "result":
                result = event
    session = str((result or {}).get("sessionId") or "")
    if result and result.get("exitCode") == 0 and not error:
        return Record(Outcome.SUCCESS, words, session=session)
    told = error or traces.tail() or "it ended without a result"
    return failed(told, traces.now, session=session)


PRESET = Preset(
    name="copilot",
    title="GitHub Copilot CLI",
    argv=(
        "copilot",
        "--allow-all",
        "--no-ask-user",
        "--output-format",
        "json",
        "-p",
        "{prompt}",
    ),
    read=read,
    provider="github",
    tells=(),
    model=("--model", "{model}"),
    prompt_via="argument",
    env={"COPILOT_AUTO_UPDATE": "false"},
    pass_env=("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"),
    write_paths=("~/.copilot", "~/.cache"),
    version=("copilot", "--version"),
    install="npm install --global @github/copilot",
    login="copilot, then /login; or set COPILOT_GITHUB_TOKEN",
)
