"""mini-swe-agent: what it did stands in a trajectory file, which it writes when it ends."""

from __future__ import annotations

from typing import Any

from daemon.agents.preset import Preset, Record, Traces, amount
from daemon.agents.wording import failed
from daemon.model import Outcome

TRAJECTORY = "traj.json"
SUBMITTED = "Submitted"


def read(traces: Traces) -> Record:
    """Its exit status in words counts: ``Submitted`` alone is success."""
    trajectory = traces.document(TRAJECTORY)
    info = trajectory.get("info") or {}
    messages = [each for each in trajectory.get("messages") or [] if isinstance(each, dict)]
    usage = _usage(messages)
    if cost := amount((info.get("model_stats") or {}).get("instance_cost")):  # 0 is unknown
        usage["cost_usd"] = cost
    ended = str(info.get("exit_status") or "")
    if ended == SUBMITTED:
        return Record(Outcome.SUCCESS, str(info.get("submission") or ""), usage=usage or None)
    last = (messages[-1].get("extra") or {}) if messages else {}
    words = str(last.get("exception_str") or "")
    told = ": ".join(filter(None, (ended, words))) or traces.tail() or "it left no trajectory"
    return failed(told, traces.now)._replace(usage=usage or None)


def _usage(messages: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for message in messages:
        told = ((message.get("extra") or {}).get("response") or {}).get("usage") or {}
        for ours, theirs in (("input_tokens", "prompt"), ("output_tokens", "completion")):
            if count := amount(told.get(f"{theirs}_tokens")):
                found[ours] = found.get(ours, 0) + count
    return found


PRESET = Preset(
    name="mini",
    title="mini-swe-agent",
    argv=(
        "mini",
        "--yolo",
        "--exit-immediately",
        "--output",
        f"{{run_folder}}/{TRAJECTORY}",
        "--task",
        "{prompt}",
    ),
    read=read,
    provider="litellm",
    model=("--model", "{model}"),
    prompt_via="argument",
    env={
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it is fetched, at each start
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",  # else a model without a price is an error
        "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": "5",  # of its own accord 10, which take minutes
        "MSWEA_SILENT_STARTUP": "1",
    },
    pass_env=("ANTHROPIC_API_KEY", "OPENAI_API_KEY"),
    write_paths=("~/.config/mini-swe-agent",),
    tried="2.4.6",
    version=("mini", "--help"),
    install="pip install mini-swe-agent mcp",
    login="mini-extra config setup",
    cost_limit=("--cost-limit", "{cost_usd}"),
)
