"""The loop against a scripted provider, on each wire: how runs end, and what is refused to it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.models import function
from pydantic_ai.models.function import DeltaToolCall

from daemon.agents import llm as preset
from daemon.agents.preset import Record
from daemon.config import Llm
from daemon.executor import Stop
from daemon.llm import __main__ as program
from daemon.llm import settings, wires
from daemon.llm.loop import limit_of
from daemon.model import Outcome
from tests import fakellm, fakewires
from tests.fakellm import DONE, MARK, REFUSAL, script
from tests.fakewires import Json

MODELS = {
    "openai": "openai:gpt-5-mini",
    "openai-responses": "openai-responses:gpt-5-mini",
    "anthropic": "anthropic:claude-sonnet-5-5",
}
KEY = "sk-do-not-tell-123"
SETTINGS = {"model": MODELS["openai"], "llm": Llm()._asdict(), "env": []}
SHELL = (("bash", "-lc"),)
every_wire = pytest.mark.parametrize("wire", MODELS)


class Never:
    """No stop is asked."""

    fd = -1

    def asked(self) -> bool:
        return False


class Early:
    """A stop was asked before the run began; ``fd`` says so to whoever polls."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()
        os.write(self._write, b"x")

    def asked(self) -> bool:
        return True

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._write)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with fakellm.served() as url:
        yield url


class Loop:
    """One run of the loop, in this process."""

    def __init__(self, path: Path, server: str) -> None:
        self.work, self.folder, self.server = path / "work", path / "run", server
        self.stop: Stop = Never()
        self.work.mkdir()
        self.folder.mkdir(mode=0o700)

    def run(self, wire: str, scenario: str, **more: Any) -> Record:
        names = ("tokens", "cost_usd", "price")
        limits: dict[str, Any] = {key: more.pop(key) for key in names if key in more}
        url = f"{self.server}/{scenario}{'' if wire == 'anthropic' else '/v1'}"
        llm = Llm(url, commands=SHELL, turns=6, retries=2, request_timeout=20)._replace(**more)
        said: dict[str, Any] = {"model": MODELS[wire], "llm": llm._asdict(), "env": [], **limits}
        environ = {
            "PATH": os.environ["PATH"],
            "ROLECALL_RESULT_FILE": str(self.folder / "result.json"),
            preset.SETTINGS: json.dumps(said),
            "OPENAI_API_KEY": KEY,
            "ANTHROPIC_API_KEY": KEY,
        }
        return program.work(environ, "Add a line.", str(self.work), self.stop)

    def transcript(self) -> list[dict[str, Any]]:
        lines = (self.folder / "transcript.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def answers(self) -> list[str]:
        """What the model was told by its tools, in order."""
        parts = [p for e in self.transcript() for p in e.get("message", {}).get("parts", [])]
        kinds = {"tool-return", "retry-prompt", "retry-feedback"}
        return [str(part.get("content")) for part in parts if part["part_kind"] in kinds]

    def result(self) -> Json:
        found: Json = json.loads((self.folder / "result.json").read_text())
        return found


@pytest.fixture
def loop(tmp_path: Path, server: str) -> Loop:
    return Loop(tmp_path, server)


@every_wire
@pytest.mark.parametrize("scenario", ["edit", "badargs", "flaky"])
def test_a_task_is_done(loop: Loop, wire: str, scenario: str) -> None:
    """Also when the model's first call is broken, and when the provider turns it away twice."""
    record = loop.run(wire, scenario)
    assert (record.outcome, record.note) == (Outcome.SUCCESS, DONE)
    assert (loop.work / fakellm.FILE).read_text() == f"{MARK}\n"
    assert record.usage
    assert record.usage["input_tokens"] >= 2000
    assert record.usage["output_tokens"] == (150 if scenario == "badargs" else 100)
    assert record.usage["cost_usd"] > 0
    assert record.session == "transcript.jsonl"
    assert loop.transcript()[-1]["record"]["outcome"] == "success"
    assert not (loop.folder / "result.json").exists(), "mere text is no verdict"


@every_wire
@pytest.mark.parametrize(
    ("scenario", "outcome", "note"),
    [
        ("e401", Outcome.BLOCKED, "refuses the key"),
        ("e429", Outcome.THROTTLED, "limit is reached: fake 429 (HTTP 429)"),
        ("e500", Outcome.ERROR, "the provider failed: fake 500 (HTTP 500)"),
        ("drop", Outcome.ERROR, "the provider failed"),
        ("e404", Outcome.BLOCKED, "does not know the model"),
    ],
)
def test_a_failing_provider(
    loop: Loop, wire: str, scenario: str, outcome: Outcome, note: str
) -> None:
    """A 401 needs a person, a 429 waits for its reset, the rest is an error; nothing is done."""
    record = loop.run(wire, scenario, retries=0)
    assert record.outcome is outcome
    assert note in record.note
    assert record.denied == (scenario != "e404"), "that is one role's model, not the account"
    assert record.retry_after == (1.0 if scenario == "e429" else None)
    assert os.listdir(loop.work) == []


@every_wire
def test_an_endless_loop_ends_by_its_turns(loop: Loop, wire: str) -> None:
    """With an error that names the limit; what was used is told, and the transcript is whole."""
    record = loop.run(wire, "loop", turns=3)
    assert (record.outcome, record.note) == (Outcome.ERROR, "the limit of 3 turns is reached")
    assert record.usage
    assert record.usage["output_tokens"] == 150
    assert (loop.work / "loop.txt").read_text() == "turn-0\nturn-1\nturn-2\n"
    kinds = [entry["message"]["kind"] for entry in loop.transcript() if "message" in entry]
    assert kinds == ["request", "response"] * 3 + ["request"]


@every_wire
def test_tokens_and_money_are_limits(loop: Loop, wire: str) -> None:
    """A request that would probably exceed one is not made; the limit is named, usage is told."""
    record = loop.run(wire, "loop", tokens=3000)
    assert record.outcome is Outcome.ERROR
    assert record.note.startswith("the limit of 3000 tokens is reached (2")
    assert record.usage
    assert record.usage["output_tokens"] == 100
    record = loop.run(wire, "loop", cost_usd=0.0001)
    assert record.note.startswith("the limit of 0.0001 US dollars is reached (0.00")
    record = loop.run(wire, "loop", cost_usd=3, price=(1000, 2000))
    assert record.note.startswith("the limit of 3 US dollars is reached (2.")


def test_a_limit_is_what_the_next_request_would_exceed() -> None:
    """It takes at least what the last one took; before the first one nothing is known."""
    read = settings.read({preset.SETTINGS: json.dumps(SETTINGS), "OPENAI_API_KEY": KEY})
    limited = read._replace(tokens=100)
    assert limit_of({}, {}, limited) == ""
    assert limit_of({}, {"input_tokens": 50}, limited) == ""
    assert limit_of({}, {"input_tokens": 40, "output_tokens": 11}, limited) != ""
    assert limit_of({"input_tokens": 80}, {"input_tokens": 90}, limited) == ""
    assert limit_of({}, {"input_tokens": 1000}, read) == ""


def test_a_refusal_is_mere_text(loop: Loop) -> None:
    """The run went well, and whether anything was done is for evidence to say."""
    record = loop.run("openai", "refuse")
    assert (record.outcome, record.note) == (Outcome.SUCCESS, REFUSAL)
    assert os.listdir(loop.work) == []


def test_a_provider_that_is_silent_is_given_up(loop: Loop) -> None:
    """After the request's own time, where the attempt has more of it."""
    record = loop.run("openai", "stall", request_timeout=0.3, retries=0)
    assert record.outcome is Outcome.ERROR
    assert "timed out" in record.note


@every_wire
def test_what_is_refused_is_told_to_the_model_and_the_run_goes_on(loop: Loop, wire: str) -> None:
    """Paths outside, links, commands off the list, broken calls; then it does its work."""
    secret = loop.work.parent / "secret"
    secret.write_text("kept")
    (loop.work / "link").symlink_to(secret)
    calls: list[tuple[str, Json | str, str]] = [
        ("read_file", {"path": "../secret"}, "'..' is not taken"),
        ("read_file", {"path": str(secret)}, "outside the working folder"),
        ("write_file", {"path": "link", "content": "x"}, "symbolic link"),
        ("write_file", {"path": ".git/hooks/x", "content": "x"}, "what git keeps"),
        ("run_command", {"command": ["rm", "-rf", "/"]}, "a command begins with: bash -lc"),
        ("run_command", "{broken", ""),
        ("read_file", {"file": "a"}, ""),
        ("no_such_tool", {}, "no_such_tool"),
        ("search", {"pattern": "("}, "not understood"),
        ("write_file", {"path": "a.txt", "content": "one\n"}, "wrote a.txt"),
        ("edit_file", {"path": "a.txt", "old": "two", "new": "x"}, "does not hold"),
        ("edit_file", {"path": "a.txt", "old": "one", "new": "two"}, "edited a.txt at line 1"),
        ("list_files", {}, "a.txt\nlink@"),
        ("search", {"pattern": "t.o"}, "a.txt:1: two"),
        (
            "run_command",
            {"command": ["bash", "-lc", "cat a.txt; exit 3"]},
            "two\n\n[exit status 3]",
        ),
        ("report_result", {"outcome": "splendid", "note": ""}, ""),
    ]
    last = ("report_result", {"outcome": "success", "note": "Done.", "artifacts": ["a.txt"]})
    scenario = script(*(call[:2] for call in calls), last)
    record = loop.run(wire, scenario, turns=30)
    assert (record.outcome, record.note) == (Outcome.SUCCESS, "Done.")
    assert loop.result() == {**last[1], "add_tasks": []}
    answers = loop.answers()
    assert len(answers) == len(calls)
    for answer, (tool, _, wanted) in zip(answers, calls, strict=True):
        assert wanted in answer, tool
    assert secret.read_text() == "kept"
    assert (loop.work / "a.txt").read_text() == "two\n"


def test_a_verdict_ends_the_run(loop: Loop) -> None:
    """It stands in the result file, with tasks to add; what a command wrote there is void."""
    forged = 'echo "{}" > "$ROLECALL_RESULT_FILE"'
    task = {"id": "T2", "title": "More", "type": "Build"}
    said = {"outcome": "rejected", "note": "Not yet.", "add_tasks": [task]}
    calls = (("run_command", {"command": ["bash", "-lc", forged]}), ("report_result", said))
    record = loop.run("openai", script(*calls))
    assert record.outcome is Outcome.SUCCESS, "the run itself went well"
    assert loop.result() == {**said, "artifacts": []}
    record = loop.run("openai", script(("report_result", {"outcome": "blocked", "note": "Who?"})))
    assert (record.outcome, record.note) == (Outcome.BLOCKED, "Who?")


Call = tuple[str, Json]
REPORT: Call = ("report_result", {"outcome": "success", "note": "Done."})


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the model give these answers, one after the other: calls together, or mere text."""

    def scripted(*answers: list[Call] | str) -> None:
        left = iter(answers)

        async def stream(_messages: object, _info: object) -> AsyncIterator[Any]:
            said = next(left)
            if isinstance(said, str):
                yield said
                return
            for number, (name, given) in enumerate(said):
                call = DeltaToolCall(name, json.dumps(given), tool_call_id=f"{id(said)}-{number}")
                yield {number: call}

        monkeypatch.setattr(function.FunctionStreamedResponse, "finish_reason", "stop")
        model = function.FunctionModel(stream_function=stream)
        monkeypatch.setattr(wires, "model", lambda _settings: model)

    return scripted


@pytest.mark.parametrize(
    "refused",
    [
        ("write_file", {"path": "/etc/x", "content": "x"}),
        ("run_command", {"command": ["rm", "x"]}),
        ("write_file", {"bogus": 1}),
    ],
)
def test_a_success_beside_a_refused_call_is_not_taken(
    loop: Loop, answer: Callable[..., None], refused: Call
) -> None:
    """The model could not know; it reports again, or leaves no verdict at all.

    Broken once by taking it, and once by writing the result file before it was accepted.
    """
    later: Call = ("report_result", {"outcome": "error", "note": "It was refused."})
    answer([refused, REPORT], [later])
    assert loop.run("openai", "").outcome is Outcome.ERROR
    assert loop.result()["outcome"] == "error"
    (loop.folder / "result.json").unlink()
    answer([refused], [REPORT])
    assert loop.run("openai", "").note == "Done."
    (loop.folder / "result.json").unlink()
    answer([refused, REPORT], "Sorry, that did not work.")
    assert loop.run("openai", "").note == "Sorry, that did not work."
    assert not (loop.folder / "result.json").exists()


def test_a_server_that_tells_no_usage_is_not_free(loop: Loop) -> None:
    """An answer was given, so nothing is known; where there was none, nothing was spent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakewires, "IN_TOKENS", 0)
        patch.setattr(fakewires, "CACHED_TOKENS", 0)
        patch.setattr(fakewires, "OUT_TOKENS", 0)
        assert loop.run("openai", "edit", price=(1, 1)).usage is None
    refused = loop.run("openai", "e401", retries=0)
    assert refused.usage == {"input_tokens": 0, "output_tokens": 0}


def test_a_stop_that_came_early_ends_the_run(loop: Loop) -> None:
    """While packages were loaded, say; there is a record all the same."""
    loop.stop = early = Early()
    record = loop.run("openai", "stall")
    early.close()
    assert (record.outcome, record.note) == (Outcome.ERROR, "the run was stopped")
    assert loop.transcript()[-1]["record"]["note"] == record.note


@every_wire
def test_a_limit_that_resets_later_is_told(loop: Loop, wire: str) -> None:
    """Each provider says it in its own way: in a header, in the body, in words."""
    record = loop.run(wire, "limit", retries=0)
    assert record.outcome is Outcome.THROTTLED
    assert record.retry_after == pytest.approx(fakellm.RESETS_IN, abs=60)


def test_the_program_says_what_it_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    """For the doctor; an option that it does not know is a usage error."""
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pydantic-ai 2.")
    with pytest.raises(SystemExit, match="2"):
        program.main(["--no-such-option"])


def test_without_commands_there_is_no_such_tool(loop: Loop) -> None:
    """The server then has to take write_file: nothing else that it knows is offered."""
    assert loop.run("openai", "edit", commands=()).outcome is Outcome.SUCCESS
    assert (loop.work / fakellm.FILE).read_text() == f"{MARK}\n"
    assert loop.answers() == ["wrote AGENT.txt: 1 lines, a new file"]


def test_no_key_is_in_a_transcript_or_a_command(loop: Loop) -> None:
    """A command does not find it; a model that says it is masked."""
    look = {"command": ["bash", "-lc", f"env; echo {KEY}"]}
    assert loop.run("openai", script(("run_command", look))).outcome is Outcome.SUCCESS
    text = (loop.folder / "transcript.jsonl").read_text()
    assert KEY not in text
    assert "***" in text
    assert "API_KEY" not in loop.answers()[0]


def test_what_is_not_set_up_is_blocked(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, no key, no packages: each with what to do about it."""
    environ = {"ROLECALL_RESULT_FILE": str(loop.folder / "result.json")}
    for said, hint in (({}, "agent: llm"), ({"model": MODELS["openai"]}, "pass_env")):
        told = json.dumps({"llm": Llm()._asdict(), "env": [], **said})
        settings = {preset.SETTINGS: told} if said else {}
        record = program.work({**environ, **settings}, "", str(loop.work), Never())
        assert record.outcome is Outcome.BLOCKED
        assert hint in record.note
    monkeypatch.setitem(__import__("sys").modules, "pydantic_ai", None)
    for name in ("loop", "tools", "wires"):
        monkeypatch.delitem(__import__("sys").modules, f"daemon.llm.{name}", raising=False)
    assert "make llm" in loop.run("openai", "edit").note
