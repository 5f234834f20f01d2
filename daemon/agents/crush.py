"""Crush: the README and `crush run --help` of charmbracelet/crush. No test of ours has run it.

It prints its answer as text and nothing else: no usage, no cost, no session.
"""

from __future__ import annotations

from daemon.agents.preset import Preset, Record, Traces
from daemon.agents.wording import failed
from daemon.model import Outcome


def read(traces: Traces) -> Record:
    """An answer and exit status 0 are all the record there is."""
    words = traces.tail("stdout.log")
    if traces.status == 0 and words:
        return Record(Outcome.SUCCESS, words)
    return failed(traces.tail() or words or "it printed no answer", traces.now)


PRESET = Preset(
    name="crush",
    title="Crush",
    argv=("crush", "run", "--quiet"),  # `run` asks for no permission
    read=read,
    provider="crush",
    tells=(),
    model=("--model", "{model}"),
    env={"CRUSH_DISABLE_METRICS": "1", "CRUSH_DISABLE_PROVIDER_AUTO_UPDATE": "1"},
    prompt_via="argument",
    pass_env=("ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
    write_paths=("~/.config/crush", "~/.local/share/crush", "~/.cache"),
    version=("crush", "--version"),
    install="npm install --global @charmland/crush",
    login="crush, and follow its first screen; or set an API key",
)
