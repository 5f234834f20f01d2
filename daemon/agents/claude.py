"""Claude Code, without a terminal."""

from __future__ import annotations

from daemon.agents import streamjson
from daemon.agents.preset import Preset

PRESET = Preset(
    name="claude",
    title="Claude Code",
    # As root it refuses --dangerously-skip-permissions and bypassPermissions; this asks nothing as
    # any user. --allowedTools takes many values: an option has to follow it.
    argv=(
        "claude",
        "-p",
        "--allowedTools",
        "Bash,Edit,Write,NotebookEdit,WebFetch,WebSearch",
        "--permission-mode",
        "acceptEdits",
        "--output-format",
        "stream-json",  # it tells of a run that is cut short, too, which json does not
        "--verbose",  # stream-json wants it
    ),
    read=streamjson.read,
    provider="anthropic",
    model=("--model", "{model}"),
    env={
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "3",  # of its own accord it holds a 401 for over a minute
        "DISABLE_AUTOUPDATER": "1",
    },
    pass_env=(
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_BASE_URL",
        "CLAUDE_CODE_OAUTH_TOKEN",
    ),
    # Not ~/.claude.json: it is replaced by a rename, which no unit can open; unwritten, it is read.
    write_paths=("~/.claude", "~/.cache"),
    tried="2.1.197",
    version=("claude", "--version"),
    install="npm install --global @anthropic-ai/claude-code",
    login="claude, then /login; or claude setup-token and CLAUDE_CODE_OAUTH_TOKEN",
    cost_limit=("--max-budget-usd", "{cost_usd}"),
)
