"""Google's Gemini CLI. It tells no cost."""

from __future__ import annotations

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.agents.wording import failed
from daemon.model import Outcome

EXIT_NO_LOGIN = 41  # FatalAuthenticationError of its source
EXIT_TURNS = 53  # "Turn limit exceeded": geminicli.com/docs/cli/headless


def read(traces: Traces) -> Record:
    """The ``result`` event counts; an event of type error may be a mere warning."""
    session = words = warning = ""
    result = None
    for event in traces.events():
        match event.get("type"):
            case "init":
                session = str(event.get("session_id") or "")
            case "message" if event.get("role") == "assistant":
                text = str(event.get("content") or "")
                words = f"{words}{text}"[-1000:] if event.get("delta") else text
            case "tool_use":
                words = ""
            case "error":
                warning = str(event.get("message") or "")
            case "result":
                result = event
    if result is None:
        status = 401 if traces.status == EXIT_NO_LOGIN else None
        words = traces.tail() or "it ended without a result"
        return failed(words, traces.now, status=status, session=session)
    stats = result.get("stats") or {}
    usage = {name: amount(stats.get(name)) for name in ("input_tokens", "output_tokens")}
    if result.get("status") == "success":
        return Record(Outcome.SUCCESS, words, usage=usage, session=session)
    error = result.get("error") or {}
    message = str(error.get("message") or warning or "it failed")
    return failed(message, traces.now, session=session)._replace(usage=usage)


PRESET = Preset(
    name="gemini",
    title="Gemini CLI",
    argv=(
        "gemini",
        "--output-format",
        "stream-json",
        "--yolo",
        "--skip-trust",
        "--include-directories",  # its own tools write nowhere else: the result file is there
        "{run_folder}",
    ),
    read=read,
    provider="google",
    tells=("tokens",),
    model=("--model", "{model}"),
    env={"GEMINI_TELEMETRY_ENABLED": "false"},
    pass_env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    write_paths=("~/.gemini", "~/.cache"),
    tried="0.61.0",
    version=("gemini", "--version"),
    install="npm install --global @google/gemini-cli",
    login="gemini, then /auth; or set GEMINI_API_KEY",
)
