"""How workers are, from what ``systemctl show`` says of their units."""

from __future__ import annotations

from daemon.errors import EXIT_CONFIG
from daemon.fleet.supervisor import State

#: The properties that ``read`` wants to see, with ``--timestamp=unix``.
SHOWN = (
    "Id,LoadState,ActiveState,SubState,MainPID,ActiveEnterTimestamp,StateChangeTimestamp,"
    "NRestarts,StatusText,Result,ExecMainStatus"
)
STATES = {
    "active": "running",
    "reloading": "running",
    "activating": "starting",
    "deactivating": "stopping",
    "failed": "failed",
}
WHY = {
    "start-limit-hit": "started too often in too short a time",
    "watchdog": "gave no sign of life, and was killed",
    "timeout": "did not start or stop in time",
    "oom-kill": "killed: out of memory",
}
SAID = "error: "  # how a worker's last status begins, where it tells why it ends
#: The state of a unit that is not there.
MISSING = State("not installed", text="invoke install")


def read(text: str) -> dict[str, State]:
    """The states of all units that were shown, by the units' names."""
    blocks = (block.splitlines() for block in text.split("\n\n") if block.strip())
    every = (dict(line.split("=", 1) for line in lines if "=" in line) for lines in blocks)
    return {facts["Id"]: _state(facts) for facts in every}


def _state(facts: dict[str, str]) -> State:
    if facts["LoadState"] == "not-found":
        return MISSING
    active = facts["ActiveState"]
    state = STATES.get(active, "stopped")
    stamp = facts["ActiveEnterTimestamp" if active == "active" else "StateChangeTimestamp"]
    text = facts.get("StatusText", "") if state in {"running", "stopping"} else ""
    if state == "failed" or facts["SubState"] == "auto-restart":
        text = _why(facts)
    return State(
        state,
        int(facts["MainPID"]) or None,
        float(stamp[1:]) if stamp.startswith("@") else None,
        int(facts["NRestarts"]),
        text,
    )


def _why(facts: dict[str, str]) -> str:
    result, status = facts["Result"], facts["ExecMainStatus"]
    said = facts.get("StatusText", "")
    words = [said.removeprefix(SAID)] if said.startswith(SAID) else []
    if result in WHY:
        return "; ".join([WHY[result], *words])
    if words:
        return words[0]
    if status == str(EXIT_CONFIG):
        return "exit status 78: its configuration, or its queue, cannot be used"
    word = "signal" if result in {"signal", "core-dump"} else "exit status"
    return f"ended with {word} {status}"
