"""The loop itself: ask the model, do what it calls for, until it reports or a limit ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic_ai import Agent, ToolOutput, exceptions
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.run import AgentRun
from pydantic_ai.usage import RunUsage, UsageLimits

from daemon.agents.preset import Record
from daemon.llm import wires
from daemon.llm.settings import Settings
from daemon.llm.tools import Stopped, Tools, Verdict
from daemon.llm.transcript import NAME, Transcript
from daemon.model import Outcome

INSTRUCTIONS = """\
You work on one task, unattended: nobody reads along, and nobody answers questions. Work only with
your tools; they reach one folder, which is {cwd}, and name its files relative to it. Look before
you change, change no more than the task needs, and check what you did as far as your tools let you.
What a tool refuses stays refused: find another way, or report that it cannot be done.
When you are done, or cannot go on, call report_result, once. Where the task speaks of a result file
to be written, that is what report_result does."""


STOPPED = Record(Outcome.ERROR, "the run was stopped")


class BrokenOff(Exception):
    """The model's answer ended in the middle."""


class LimitReached(Exception):
    """One more request would spend more than the attempt may; which limit, in words."""


def run(settings: Settings, prompt: str, tools: Tools, transcript: Transcript) -> Record:
    """The whole run; its record. Nothing that a provider or a model does raises."""
    try:
        model = wires.model(settings)
    except exceptions.UserError as error:
        return wires.failure(error, settings.key_env)
    try:
        return asyncio.run(_run(model, settings, prompt, tools, transcript))
    except asyncio.CancelledError:  # before the conversation had begun
        return STOPPED


async def _run(
    model: Model, settings: Settings, prompt: str, tools: Tools, transcript: Transcript
) -> Record:
    instructions = INSTRUCTIONS.format(cwd=tools.files.root)
    transcript.add("instructions", instructions)
    outputs: Any = [ToolOutput(tools.report_result, name="report_result"), str]
    agent: Agent[object, Verdict | str] = Agent(
        model,
        output_type=outputs,
        instructions=instructions,
        tools=tools.all(),
        # Turns are what bounds a model that calls its tools wrongly again and again.
        retries=settings.llm.turns,
    )
    limits = UsageLimits(request_limit=settings.llm.turns)
    ours = asyncio.current_task()
    stop = tools.commands.stop
    if stop.fd >= 0 and ours is not None:
        asyncio.get_running_loop().add_reader(stop.fd, lambda: stop.asked() and ours.cancel())
    async with model, agent.iter(prompt, usage_limits=limits) as conversation:
        written = _Written(transcript)
        try:
            await _converse(conversation, written, settings, tools)
            record = _end(conversation, tools)
        except (Stopped, asyncio.CancelledError):
            record = STOPPED
        except BrokenOff:
            record = Record(Outcome.ERROR, "the provider failed: its answer broke off")
        except LimitReached as limit:
            record = Record(Outcome.ERROR, str(limit))
        except exceptions.UsageLimitExceeded:
            record = Record(Outcome.ERROR, f"the limit of {settings.llm.turns} turns is reached")
        except (exceptions.AgentRunError, exceptions.UserError) as error:
            record = wires.failure(error, settings.key_env)
        except Exception as error:  # noqa: BLE001  # what was used is told, whatever broke
            record = Record(Outcome.ERROR, f"the loop failed: {type(error).__name__}: {error}")
        messages = conversation.all_messages()
        written.rest(messages)
        usage = _usage(conversation.usage, settings)
        answers = [each for each in messages if _is_answer(each) and each.parts]
        untold = not _tokens(usage) and bool(answers)  # by the server
        return record._replace(usage=None if untold else usage, session=NAME)


async def _converse(
    conversation: AgentRun[object, Any], written: _Written, settings: Settings, tools: Tools
) -> None:
    spent: dict[str, float] = {}
    async for node in conversation:
        if Agent.is_model_request_node(node):
            written.add(node.request)
            before, spent = spent, _usage(conversation.usage, settings)
            if limit := limit_of(before, spent, settings):
                raise LimitReached(limit)
            async with node.stream(conversation.ctx) as stream:
                async for _ in stream:
                    continue
        elif Agent.is_call_tools_node(node):
            written.add(node.model_response)
            tools.refused = False
            if node.model_response.finish_reason is None:
                raise BrokenOff


def limit_of(before: Mapping[str, float], spent: Mapping[str, float], settings: Settings) -> str:
    """Which limit one more request would exceed, in words; "" for none.

    ``before`` and ``spent`` are the usage before the last request and after it: the next one sends
    all that this one did and its answer, and so will take as much again at the least.
    """
    limits = (
        ("tokens", settings.tokens, _tokens(spent), _tokens(before)),
        ("US dollars", settings.cost_usd, spent.get("cost_usd", 0), before.get("cost_usd", 0)),
    )
    for unit, limit, now, then in limits:
        if limit is not None and now and now + (now - then) > limit:
            return f"the limit of {limit:g} {unit} is reached ({now:g} are spent)"
    return ""


def _tokens(usage: Mapping[str, float]) -> float:
    return usage.get("input_tokens", 0) + usage.get("output_tokens", 0)


def _end(conversation: AgentRun[object, Any], tools: Tools) -> Record:
    """What the end of the conversation says: a verdict, or mere text that evidence has to bear."""
    said = conversation.result.output if conversation.result else ""
    if isinstance(said, Verdict):  # a rejection stands in the result file: the run went well
        tools.keep(said.text)
        fine = said.outcome in {Outcome.SUCCESS, Outcome.REJECTED}
        return Record(Outcome.SUCCESS if fine else said.outcome, said.note)
    return Record(Outcome.SUCCESS, str(said))


def _usage(usage: RunUsage, settings: Settings) -> dict[str, float]:
    """Tokens, and the cost in US dollars: by the role's price, else where the model's is known."""
    found: dict[str, float] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if settings.price is not None:
        cost = usage.input_tokens * settings.price[0] + usage.output_tokens * settings.price[1]
        found["cost_usd"] = round(cost / 1e6, 6)
    elif usage.cost is not None:
        found["cost_usd"] = round(float(usage.cost), 6)
    return found


def _is_answer(message: ModelMessage) -> bool:
    return isinstance(message, ModelResponse)


class _Written:
    """The messages of the transcript, each once."""

    def __init__(self, transcript: Transcript) -> None:
        self.transcript = transcript
        self.last: ModelMessage | None = None

    def add(self, message: ModelMessage) -> None:
        self.last = message
        self.transcript.add(
            "message", ModelMessagesTypeAdapter.dump_python([message], mode="json")[0]
        )

    def rest(self, messages: list[ModelMessage]) -> None:
        """The answer that a limit or a failure left behind."""
        if messages and _is_answer(messages[-1]) and messages[-1] != self.last:
            self.add(messages[-1])
