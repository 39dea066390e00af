"""LangChain's events as Maestro's calls and usage."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from langchain_core.messages import ToolMessage

from maestro_core import Usage
from maestro_core.prefixes import History
from maestro_core.prices.places import place_of
from maestro_core.types import Call
from maestro_core.usage.payloads import searches_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

    from maestro_core.types import Attribution

__all__ = [
    "LIMITS",
    "ROUTED",
    "base_url",
    "dimensions",
    "is_cache_hit",
    "message_of",
    "provider_id",
    "retries_of",
    "to_call",
    "to_input",
    "to_reply",
    "to_result",
    "to_usage",
]

# LangChain's `ls_provider` (or the class's `_type`) and the provider ids of the price book.
_PROVIDERS = {
    "amazon_bedrock": "aws",
    "anthropic-chat": "anthropic",
    "azure-openai-chat": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "google_anthropic_vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistralai": "mistral",
    "openai-chat": "openai",
    "openai-chat-responses": "openai",
    "xai": "x-ai",
}

# The integrations' names for it.
_URLS = (
    "azure_endpoint",
    "anthropic_api_url",
    "groq_api_base",
    "xai_api_base",
    "together_api_base",
    "fireworks_api_base",
    "openrouter_api_base",
    "api_base",
    "endpoint_url",
    "endpoint",
    "base_url",
    "openai_api_base",
)

# How often a provider's client library sends a request again by itself, where the model does not say.
_DEFAULT_RETRIES = {
    "openai": 2,
    "azure": 2,
    "anthropic": 2,
    "aws": 4,
    "cohere": 2,
    "fireworks": 2,
    "google": 6,
    "mistral": 5,
    "groq": 2,
    "openrouter": 2,
    "together": 2,
    "x-ai": 2,
    "deepseek": 2,
}

# What a routed model calls its own kind; the calls are those of its endpoints.
ROUTED = "maestro-routed"

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample", "num_predict")
_REFERENCES = ("previous_response_id", "conversation", "prompt")
_NESTED = (dict, list)
# Where a request's further parameters may stand.
_PLACES = ("model_kwargs", "extra_body", "generation_config")
# Asked first, of what rarely has any of them: one look at a dict's keys.
_ANY_LIMIT, _ANY_REFERENCE = frozenset(LIMITS), frozenset(_REFERENCES)
_ANY_URL, _ANY_PLACE = frozenset(_URLS), frozenset(_PLACES)

# Of messages, by their types.
_ROLES = {"ai": "ai", "AIMessageChunk": "ai", "human": "human", "system": "system", "tool": "tool"}

# Metadata keys that are dimensions without being declared.
_DIMENSIONS = frozenset({"team", "feature", "customer", "user", "environment", "service", "conversation"})


def dimensions(metadata: Mapping[str, Any] | None, more: Collection[str]) -> dict[str, str]:
    """Return the dimensions in a run's metadata; a graph's `thread_id` is the conversation."""
    found: dict[str, str] = {}
    if not metadata:
        return found
    if more or not _DIMENSIONS.isdisjoint(metadata):
        for key, value in metadata.items():
            if (key in _DIMENSIONS or key in more) and isinstance(value, (str, int)) and value != "":
                found[key] = str(value)
    if "conversation" not in found and (thread := metadata.get("thread_id")):
        found["conversation"] = str(thread)
    return found


def base_url(provider: str, fields: Mapping[str, Any]) -> str:
    """Return where a model's requests go, if that is not its provider's own place; never with credentials.

    Args:
        provider: The price book's id.
        fields: The model's attributes, or what LangChain serialised of its constructor's arguments.
    """
    own = None
    if not _ANY_URL.isdisjoint(fields):
        own = next((fields[name] for name in _URLS if fields.get(name)), None)
    if own is None and provider == "openai":
        own = os.environ.get("OPENAI_BASE_URL")  # which only the SDK reads, when the model is made
    return place_of(own)


@dataclass(frozen=True, slots=True)
class _Model:
    """What is known of a model from its constructor's arguments, which LangChain serialises once for each object."""

    serialized: Mapping[str, Any]
    built: Mapping[str, Any]
    name: str
    limits: tuple[int, ...]
    base_urls: dict[str, str]  # by provider, which other data says


# By the identity of what LangChain serialised; each holds on to it, so that no other can have that identity.
_models: dict[int, _Model] = {}
_MOST_MODELS = 500


def _model(serialized: Mapping[str, Any] | None) -> _Model:
    found = _models.get(id(serialized))
    if found is None or found.serialized is not serialized:
        said = serialized or {}
        built = said.get("kwargs") or {}
        names = said.get("id") or said.get("name") or ""
        found = _Model(said, built, str(names[-1] if isinstance(names, list) else names), _limits(built), {})
        if said:
            if len(_models) >= _MOST_MODELS:
                _models.clear()
            _models[id(said)] = found
    return found


def to_call(  # noqa: PLR0917 - the parts of one event
    serialized: Mapping[str, Any] | None,
    payload: object,
    history: Sequence[Mapping[str, object]],
    metadata: Mapping[str, Any] | None,
    params: Mapping[str, Any],
    where: Attribution,
) -> Call:
    """Return the call that a start event announces.

    Args:
        serialized: The model as LangChain serialises it; `kwargs` are its constructor's.
        payload: What is sent besides the messages.
        history: Its messages, from `to_input`.
        metadata: The run's metadata (`ls_provider`, `ls_model_name`, ...).
        params: The event's `invocation_params`: constructor and call arguments, merged.
        where: Whom it is for.
    """
    meta = metadata or {}
    made = _model(serialized)
    kind = str(params.get("_type") or "")
    provider = provider_id(meta.get("ls_provider"), kind)
    model = str(meta.get("ls_model_name") or params.get("model") or params.get("model_name") or "unknown")
    base_urls = made.base_urls
    if provider not in base_urls:
        base_urls[provider] = base_url(provider, made.built)
    references = {}
    if not _ANY_REFERENCE.isdisjoint(params):
        references = {name: params[name] for name in _REFERENCES if params.get(name)}
    return Call(
        provider=provider,
        model=model,
        history=history,
        input=[payload, references],
        max_output_tokens=_limit(meta, params, made),
        tools=[
            value
            for name, value in params.items()
            if value and isinstance(value, _NESTED) and name not in _ANY_REFERENCE
        ],
        max_tool_calls=params.get("max_tool_calls"),
        n=int(params.get("n") or 1),
        attempts=1 + retries_of(provider, params, made.built),
        tier=params.get("service_tier"),
        attribution=where,
        base_url=base_urls[provider],
        name=f"{made.name or kind} {model}".strip(),
    )


def _limit(meta: Mapping[str, Any], params: Mapping[str, Any], made: _Model) -> int | None:
    # Which of several limits wins differs by integration and API, and the event shows them side by side;
    # the largest is the only one that cannot be too small.
    limits = [*made.limits, *_limits(params)]
    if not _ANY_PLACE.isdisjoint(params):
        for key in _PLACES:
            if isinstance(place := params.get(key), dict):
                limits += _limits(place)
    if _is_limit(named := meta.get("ls_max_tokens")):
        limits.append(named)
    return max(limits) if limits else None


def _limits(place: Mapping[str, Any]) -> tuple[int, ...]:
    if _ANY_LIMIT.isdisjoint(place):
        return ()
    return tuple([place[name] for name in LIMITS if _is_limit(place.get(name))])


def _is_limit(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and value > 0


def provider_id(ls_provider: object, kind: str) -> str:
    """Return the price book's id for LangChain's `ls_provider`, or for a model's `_llm_type` where that is missing."""
    name = str(ls_provider or kind or "unknown")
    return _PROVIDERS.get(name, name)


def retries_of(provider: str, params: Mapping[str, Any], built: Mapping[str, Any]) -> int:
    """Return how often a model's client sends a failed request again by itself."""
    for place in (params, built):
        retries = place.get("max_retries")
        if isinstance(retries, int):
            return max(0, retries)
    return _DEFAULT_RETRIES.get(provider, 0)


def to_input(messages: Sequence[BaseMessage]) -> History:
    """Return messages as plain data that holds everything a provider is sent of them; only measured."""
    return History([_plain(message.__dict__) for message in messages])


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    # From the fields: asking a message for one that it does not have takes microseconds, times a whole history.
    kind = fields["type"]
    role = _ROLES.get(kind) or kind.removesuffix("MessageChunk").lower()
    return {
        "role": role,
        "content": fields["content"],
        # Agents put their own name on a reply after it was given; no provider counts it.
        "name": None if role == "ai" else fields.get("name"),
        "tool_calls": fields.get("tool_calls"),
        "tool_call_id": fields.get("tool_call_id"),
        "more": fields.get("additional_kwargs"),
    }


def message_of(response: LLMResult) -> Any:
    """Return the message that a chat model answered, or None."""
    first = response.generations[0][0] if response.generations and response.generations[0] else None
    return getattr(first, "message", None)


def to_reply(message: BaseMessage | None) -> dict[str, Any] | None:
    """Return what the model answered, as it will stand in the next call's messages."""
    return _plain(message.__dict__) if message is not None else None


def to_result(output: object) -> tuple[object, bool]:
    """Return what a tool answered, without what differs between two calls, and whether it says that it failed."""
    if isinstance(output, ToolMessage):
        return output.content, output.status == "error"
    return output, False


def to_usage(provider: str, response: LLMResult) -> Usage | None:
    """Return what the provider reported, or None if it reported nothing that can be trusted."""
    message = message_of(response)
    answered = message.response_metadata if message is not None else (response.llm_output or {})
    # The provider's own block says more than LangChain's totals (searches, iterations, cache lifetimes).
    block = answered.get("token_usage") or answered.get("usage") or getattr(message, "usage_metadata", None)
    model = answered.get("model_name") or answered.get("model")
    try:
        usage = Usage.parse(
            provider, {"model": model, "usage": block, "service_tier": answered.get("service_tier")}
        )
    except ValueError:
        return None
    # Some streams report zeros where they mean "unknown"; no call has an empty input.
    return _searched(usage, answered, message) if usage.input_tokens else None


def _searched(usage: Usage, answered: Mapping[str, Any], message: Any) -> Usage:
    """Return usage with the searches that the provider ran itself, where its token counts leave them out.

    OpenAI's stand among the parts of the answer, Gemini's grounding in its metadata. Before Gemini 3 a grounded prompt is billed once, since then each query (https://ai.google.dev/gemini-api/docs/pricing).
    """
    said = answered.get("grounding_metadata") or {}
    content = getattr(message, "content", None)
    parts = [*(content if isinstance(content, list) else ())]
    parts += (getattr(message, "additional_kwargs", None) or {}).get("tool_outputs") or ()
    if not said and not parts:
        return usage
    queries = len(said.get("web_search_queries") or said.get("webSearchQueries") or ())
    searches = searches_in(parts)
    if queries:
        model = usage.model or ""
        searches["web_searches"] = 1 if "gemini-2" in model or "gemini-1" in model else queries
    if not searches:
        return usage
    counts = dict[str, Any](usage.counts) | searches
    return Usage(
        tier=usage.tier,
        region=usage.region,
        model=usage.model,
        provider_cost=usage.provider_cost,
        lines=usage.lines,
        flags=usage.flags,
        **counts,
    )


def is_cache_hit(response: LLMResult, message: BaseMessage | None) -> bool:
    """Return whether LangChain answered from its own cache: it then reports a total cost of 0 and no provider output."""
    if response.llm_output is not None:
        return False
    totals = getattr(message, "usage_metadata", None) or {}
    return bool(totals.get("total_cost") == 0)
