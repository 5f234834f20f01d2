"""The model behind each wire, and what a failure on it means for the attempt."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from pydantic_ai import exceptions
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings

from daemon.agents import wording
from daemon.agents.preset import Record
from daemon.llm.settings import Settings
from daemon.model import Outcome

OPENAI = "api.openai.com"
NOTE = 400  # characters of what a provider says


def model(settings: Settings) -> Model:
    """The model on its wire; only that wire's client is loaded. No request is made yet."""
    behaviour = ModelSettings(
        timeout=settings.llm.request_timeout,
        max_retries=settings.llm.retries,
        parallel_tool_calls=True,
        cache=True,  # where the provider has a cache of prompts to be asked for
    )
    if settings.llm.output_tokens is not None:
        behaviour["max_tokens"] = settings.llm.output_tokens
    make = _anthropic if settings.wire == "anthropic" else _openai
    return make(settings, behaviour)


def _anthropic(settings: Settings, behaviour: ModelSettings) -> Model:
    from pydantic_ai.models.anthropic import AnthropicModel  # noqa: PLC0415  # a second to load
    from pydantic_ai.providers.anthropic import AnthropicProvider  # noqa: PLC0415  # the same

    provider = AnthropicProvider(api_key=settings.key, base_url=settings.base_url or None)
    return AnthropicModel(settings.model, provider=provider, settings=behaviour)


def _openai(settings: Settings, behaviour: ModelSettings) -> Model:
    from pydantic_ai.models import openai  # noqa: PLC0415  # a second to load
    from pydantic_ai.profiles.openai import OpenAIModelProfile  # noqa: PLC0415  # the same
    from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415  # the same
    from pydantic_ai.providers.openai_compatible import (  # noqa: PLC0415  # the same
        OpenAICompatibleProvider,
    )

    provider: OpenAIProvider | OpenAICompatibleProvider
    if not settings.base_url or urlsplit(settings.base_url).hostname == OPENAI:
        provider = OpenAIProvider(api_key=settings.key, base_url=settings.base_url or None)
    else:  # what only OpenAI's own servers take is not asked of others
        provider = OpenAICompatibleProvider(
            "openai-compatible", base_url=settings.base_url, api_key=settings.key or None
        )
    if settings.wire == "openai-responses":
        return openai.OpenAIResponsesModel(settings.model, provider=provider, settings=behaviour)
    # Without it a stream that is cut between two chunks passes for a whole answer.
    whole = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
    return openai.OpenAIChatModel(
        settings.model, provider=provider, profile=whole, settings=behaviour
    )


def failure(error: exceptions.AgentRunError | exceptions.UserError, key_env: str) -> Record:
    """What the error means. Retries are behind it: the clients make them."""
    said = _said(error)
    match error:
        case exceptions.ModelAuthenticationError():
            what = f"the provider refuses the key: {said}: look at {key_env}"
            return Record(Outcome.BLOCKED, what)
        case exceptions.ModelNotFoundError():
            what = f"the provider does not know the model: {said}"
            return Record(Outcome.BLOCKED, what, denied=False)
        case exceptions.ModelHTTPError(status_code=wording.TOO_MANY):
            what = f"the provider's limit is reached: {said}"
            return Record(Outcome.THROTTLED, what, _wait(error, said))
        case exceptions.ModelQuotaExceededError():
            return Record(Outcome.BLOCKED, f"the provider wants to be paid: {said}")
        case exceptions.UserError():
            what = f"the loop cannot be set up: {said}"
            return Record(Outcome.BLOCKED, what, denied=False)
        case exceptions.ModelAPIError():
            return Record(Outcome.ERROR, f"the provider failed: {said}")
    return Record(Outcome.ERROR, f"the model's answer cannot be used: {said}")


def _wait(error: exceptions.ModelHTTPError, said: str) -> float | None:
    """Seconds until the limit is over: by Retry-After, by a time of reset, or by the words."""
    if error.retry_after is not None:
        return error.retry_after
    now, body = time.time(), error.body
    inner = body.get("error", body) if isinstance(body, dict) else None
    told = inner.get("resets_at") if isinstance(inner, dict) else None
    told = (error.headers or {}).get("anthropic-ratelimit-unified-reset", told)
    resets_at = float(told) if told is not None and str(told).isdecimal() else None
    failed = wording.failed(said, now, status=wording.TOO_MANY, resets_at=resets_at)
    return failed.retry_after


def _said(error: exceptions.AgentRunError | exceptions.UserError) -> str:
    """The provider's own words, where it has some."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    words = body.get("message") if isinstance(body, dict) else None
    status = getattr(error, "status_code", None)
    text = f"{words} (HTTP {status})" if words and status else error.message
    return " ".join(text.split())[:NOTE]
