"""aider: it prints text alone, and exits 0 whatever happened."""

from __future__ import annotations

import re

from daemon.agents.preset import Preset, Record, Traces
from daemon.agents.wording import failed
from daemon.model import Outcome

# As in: Tokens: 1.9k sent, 20 received. Cost: $0.0012 message, $0.02 session.
TOKENS = re.compile(r"Tokens: ([\d.,]+[kM]?) sent.*?([\d.,]+[kM]?) received")
COST = re.compile(r"\$([\d.,]+) session")
ERROR = re.compile(r"litellm\.(\w+(?:Error|Exception|Timeout)\b.*)|^(\w+Error: .*)")
FACTOR = {"k": 1e3, "M": 1e6}


def read(traces: Traces) -> Record:
    """A line of used tokens is the only sign of an answer; an error behind it undoes it."""
    answered, telling, words = False, False, ""
    usage: dict[str, float] = {}
    for line in traces.lines():
        if found := TOKENS.search(line):
            answered, telling, words = True, False, ""
            for name, number in zip(("input_tokens", "output_tokens"), found.groups(), strict=True):
                usage[name] = usage.get(name, 0) + _number(number)
            if cost := COST.search(line):
                usage["cost_usd"] = _number(cost[1])
        elif found := ERROR.search(line):
            answered, telling, words = False, True, found[0]
        else:
            telling = telling and bool(line)
            words = f"{words} {line}" if telling else words  # it folds its lines
    if answered:
        return Record(Outcome.SUCCESS, usage=usage)
    told = words or traces.tail() or traces.tail("stdout.log") or "it printed no answer"
    return failed(told, traces.now)._replace(usage=usage or None)


def _number(text: str) -> float:
    factor = FACTOR.get(text[-1], 1.0)
    try:
        return float(text.rstrip("kM.").replace(",", "")) * factor
    except ValueError:
        return 0.0


PRESET = Preset(
    name="aider",
    title="aider",
    argv=(
        "aider",
        "--yes-always",
        "--no-auto-commits",
        "--no-dirty-commits",
        "--no-gitignore",
        "--no-check-update",
        "--no-show-release-notes",
        "--no-show-model-warnings",
        "--no-suggest-shell-commands",
        "--no-detect-urls",
        "--analytics-disable",
        "--no-pretty",
        "--chat-history-file",
        "{run_folder}/aider.chat.md",
        "--input-history-file",
        "/dev/null",
        "--message-file",
        "{prompt_file}",
    ),
    read=read,
    provider="litellm",
    model=("--model", "{model}"),
    prompt_via="file",
    env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it is fetched, at each start
    pass_env=("ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
    write_paths=("~/.aider",),
    tried="0.86.2",
    version=("aider", "--version"),
    install="pip install aider-chat",
    login="name the API key in an env_file",
)
