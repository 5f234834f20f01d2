"""The loop itself: ask the model, do what it calls for, until it reports or a limit ends it."""

from __future__ import annotations

import asyncio
from decimal import Decimal
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


class BrokenOff(Exception):
    """The model's answer ended in the middle."""


def run(settings: Settings, prompt: str, tools: Tools, transcript: Transcript) -> Record:
    """The whole run; its record. Nothing that a provider or a model does raises."""
    try:
        model = wires.model(settings)
    except exceptions.UserError as error:
        return wires.failure(error, settings.key_env)
    return asyncio.run(_run(model, settings, prompt, tools, transcript))


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
    limits = UsageLimits(
        request_limit=settings.llm.turns,
        total_tokens_limit=settings.tokens,
        cost_limit=None if settings.cost_usd is None else Decimal(str(settings.cost_usd)),
    )
    ours = asyncio.current_task()
    stop = tools.commands.stop
    if stop.fd >= 0 and ours is not None:
        asyncio.get_running_loop().add_reader(stop.fd, lambda: stop.asked() and ours.cancel())
    async with model, agent.iter(prompt, usage_limits=limits) as conversation:
        written = _Written(transcript)
        try:
            await _converse(conversation, written)
            record = _end(conversation)
        except (Stopped, asyncio.CancelledError):
            record = Record(Outcome.ERROR, "the run was stopped")
        except BrokenOff:
            record = Record(Outcome.ERROR, "the provider failed: its answer broke off")
        except exceptions.UsageLimitExceeded:
            record = Record(Outcome.ERROR, _limit(conversation.usage, settings))
        except (exceptions.AgentRunError, exceptions.UserError) as error:
            record = wires.failure(error, settings.key_env)
        written.rest(conversation.all_messages())
        return record._replace(usage=_usage(conversation.usage), session=NAME)


async def _converse(conversation: AgentRun[object, Any], written: _Written) -> None:
    async for node in conversation:
        if Agent.is_model_request_node(node):
            written.add(node.request)
            async with node.stream(conversation.ctx) as stream:
                async for _ in stream:
                    continue
        elif Agent.is_call_tools_node(node):
            written.add(node.model_response)
            if node.model_response.finish_reason is None:
                raise BrokenOff


def _end(conversation: AgentRun[object, Any]) -> Record:
    """What the end of the conversation says: a verdict, or mere text that evidence has to bear."""
    said = conversation.result.output if conversation.result else ""
    if isinstance(said, Verdict):  # a rejection stands in the result file: the run went well
        fine = said.outcome in {Outcome.SUCCESS, Outcome.REJECTED}
        return Record(Outcome.SUCCESS if fine else said.outcome, said.note)
    return Record(Outcome.SUCCESS, str(said))


def _limit(usage: RunUsage, settings: Settings) -> str:
    """Which limit ended it."""
    if settings.tokens is not None and usage.total_tokens > settings.tokens:
        return f"the limit of {settings.tokens} tokens is reached ({usage.total_tokens})"
    cost = usage.cost
    if (
        settings.cost_usd is not None
        and cost is not None
        and cost > Decimal(str(settings.cost_usd))
    ):
        return f"the limit of {settings.cost_usd:g} US dollars is reached ({cost:.4f})"
    return f"the limit of {settings.llm.turns} turns is reached"


def _usage(usage: RunUsage) -> dict[str, float]:
    """Tokens, and the cost in US dollars where the price of the model is known."""
    found: dict[str, float] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.cost is not None:
        found["cost_usd"] = round(float(usage.cost), 6)
    return found


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
        if messages and isinstance(messages[-1], ModelResponse) and messages[-1] != self.last:
            self.add(messages[-1])
