"""What real CLIs printed, one recording for each scenario of the scripted LLM, as presets read it.

Each file holds the CLI's version, its exit status, the logs of its run, and when that was. Session
ids, paths and long lists in the output are made plain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import agents
from daemon.agents import preset as presets
from daemon.agents.preset import Record, Traces
from daemon.model import Outcome
from tests.fakellm import RESETS_IN

FOLDER = Path(__file__).parent.parent / "recordings"
RECORDINGS = sorted(FOLDER.glob("*/*.json"))
EXPECTED = {
    "badargs": Outcome.SUCCESS,
    "drop": Outcome.ERROR,
    "e401": Outcome.BLOCKED,
    "e429": Outcome.THROTTLED,
    "e500": Outcome.ERROR,
    "edit": Outcome.SUCCESS,
    "flaky": Outcome.SUCCESS,
    "limit": Outcome.THROTTLED,
    "nologin": Outcome.BLOCKED,
    "refuse": Outcome.SUCCESS,  # of the CLI's: it is the evidence that is missing
}
EXCEPTIONS = {
    "aider/drop": Outcome.SUCCESS,  # the half that came was a whole edit
    "claude/drop": Outcome.SUCCESS,  # it asks again, without streaming
    "mini/drop": Outcome.SUCCESS,  # it does not stream
    "mini/refuse": Outcome.ERROR,  # it insists on a tool call, and gives up
}
RESETS = ("aider", "claude", "codex", "gemini", "mini", "opencode")
TURN = {"input_tokens": 1000, "output_tokens": 50}  # what the scripted LLM tells of each turn


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Codex tells local times; these are of a machine in UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def replayed(path: Path, folder: Path) -> Record:
    """The record that the preset reads from a recording."""
    told: dict[str, Any] = json.loads(path.read_text())
    for name, content in told["files"].items():
        text = json.dumps(content) if isinstance(content, dict) else "\n".join(content) + "\n"
        (folder / name).write_text(text)
    preset = agents.find(path.parent.name)
    assert preset
    assert preset.tried == told["version"], "say which version was recorded"
    return presets.read(preset, Traces(told["status"], str(folder), told["at"]))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", RECORDINGS, ids=name_of)
def test_what_a_real_cli_printed_is_understood(path: Path, tmp_path: Path) -> None:
    """Each scenario comes to what is known of it; a failure is told in the CLI's own words."""
    record = replayed(path, tmp_path)
    expected = EXCEPTIONS.get(name_of(path), EXPECTED[path.stem])
    assert record.outcome is expected, record
    assert record.note or record.outcome is Outcome.SUCCESS
    assert (record.retry_after is None) or record.outcome is Outcome.THROTTLED


@pytest.mark.parametrize("cli", sorted({path.parent.name for path in RECORDINGS}))
def test_usage_is_counted(cli: str, tmp_path: Path) -> None:
    """Two turns of the scripted LLM: with what was read from the cache, and each but once."""
    record = replayed(FOLDER / cli / "edit.json", tmp_path)
    usage = dict(record.usage or {})
    cost = usage.pop("cost_usd", None)
    assert (cost is not None) == (cli in {"claude", "opencode"})
    if cli == "aider":  # by its own count of the one turn that it takes
        assert usage == {"input_tokens": 1900, "output_tokens": 20}
    elif cli == "claude":  # Anthropic tells of cached tokens apart
        assert usage == {"input_tokens": 2400, "output_tokens": 100}
    else:
        assert usage == {name: 2 * count for name, count in TURN.items()}
    assert bool(record.session) == (cli not in {"aider", "mini"})


def test_claude_counts_what_no_stream_came_of(tmp_path: Path) -> None:
    """It asked again without streaming, and its own ``usage`` does not know of that."""
    record = replayed(FOLDER / "claude" / "drop.json", tmp_path)
    usage = dict(record.usage or {})
    assert usage.pop("cost_usd") > 0
    assert usage == {"input_tokens": 2400, "output_tokens": 100}


@pytest.mark.parametrize("cli", RESETS)
def test_a_usage_limit_tells_its_reset(cli: str, tmp_path: Path) -> None:
    """The scripted limit is over after two hours; a time of day is told to the minute."""
    wait = replayed(FOLDER / cli / "limit.json", tmp_path).retry_after
    assert wait is not None
    assert abs(wait - RESETS_IN) <= 60, wait


def test_the_clis_that_are_used_most_are_recorded_in_full() -> None:
    """Nothing that was learned of them is lost unnoticed."""
    wanted = {"e401", "e429", "e500", "edit", "flaky", "refuse"}
    for cli in ("claude", "codex", "opencode"):
        assert wanted <= {path.stem for path in RECORDINGS if path.parent.name == cli}, cli
