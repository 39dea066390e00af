"""LangChain's events as Maestro's calls and usage."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from langchain_core.messages import ToolMessage

from maestro_core import Usage
from maestro_core.prices.places import place_of
from maestro_core.types import Attribution, Call
from maestro_core.usage.payloads import searches_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

__all__ = [
    "LIMITS",
    "ROUTED",
    "base_url",
    "dimensions",
    "is_cache_hit",
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

# Metadata keys that are dimensions without being declared.
_DIMENSIONS = frozenset({"team", "feature", "customer", "user", "environment", "service", "conversation"})


def dimensions(metadata: Mapping[str, Any] | None, more: Collection[str]) -> dict[str, str]:
    """Return the dimensions in a run's metadata; a graph's `thread_id` is the conversation."""
    found = {}
    for key, value in (metadata or {}).items():
        if (key in _DIMENSIONS or key in more) and isinstance(value, str | int) and value != "":
            found[key] = str(value)
    if "conversation" not in found and (thread := (metadata or {}).get("thread_id")):
        found["conversation"] = str(thread)
    return found


def base_url(provider: str, fields: Mapping[str, Any]) -> str:
    """Return where a model's requests go, if that is not its provider's own place; never with credentials.

    Args:
        provider: The price book's id.
        fields: The model's attributes, or what LangChain serialised of its constructor's arguments.
    """
    own = next((fields[name] for name in _URLS if fields.get(name)), None)
    if own is None and provider == "openai":
        own = os.environ.get("OPENAI_BASE_URL")  # which only the SDK reads, when the model is made
    return place_of(own)


def to_call(  # noqa: PLR0917 - the parts of one event
    serialized: Mapping[str, Any] | None,
    payload: object,
    history: Sequence[Mapping[str, object]],
    metadata: Mapping[str, Any] | None,
    params: Mapping[str, Any],
    own: Mapping[str, str],
) -> Call:
    """Return the call that a start event announces.

    Args:
        serialized: The model as LangChain serialises it; `kwargs` are its constructor's.
        payload: What is sent besides the messages.
        history: Its messages, from `to_input`.
        metadata: The run's metadata (`ls_provider`, `ls_model_name`, ...).
        params: The event's `invocation_params`: constructor and call arguments, merged.
        own: The dimensions of the call.
    """
    meta = metadata or {}
    built = (serialized or {}).get("kwargs") or {}
    kind = str(params.get("_type") or "")
    provider = provider_id(meta.get("ls_provider"), kind)
    model = str(meta.get("ls_model_name") or params.get("model") or params.get("model_name") or "unknown")
    names = (serialized or {}).get("id") or (serialized or {}).get("name") or kind
    return Call(
        provider=provider,
        model=model,
        history=history,
        input=[payload, {name: params[name] for name in _REFERENCES if params.get(name)}],
        max_output_tokens=_limit(meta, params, built),
        tools=[
            value
            for name, value in params.items()
            if value and name not in _REFERENCES and isinstance(value, dict | list)
        ],
        max_tool_calls=params.get("max_tool_calls"),
        n=int(params.get("n") or 1),
        attempts=1 + retries_of(provider, params, built),
        tier=params.get("service_tier"),
        attribution=Attribution(own),
        base_url=base_url(provider, built),
        name=f"{names[-1] if isinstance(names, list) else names} {model}".strip(),
    )


def _limit(meta: Mapping[str, Any], params: Mapping[str, Any], built: Mapping[str, Any]) -> int | None:
    # Which of several limits wins differs by integration and API, and the event shows them side by side;
    # the largest is the only one that cannot be too small.
    places = (
        params,
        built,
        *(params.get(key) or {} for key in ("model_kwargs", "extra_body", "generation_config")),
    )
    found = [
        place[name] for place in places for name in LIMITS if isinstance(place, dict) and place.get(name)
    ]
    found += [meta["ls_max_tokens"]] if meta.get("ls_max_tokens") else []
    limits = [value for value in found if isinstance(value, int) and value > 0]
    return max(limits) if limits else None


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


def to_input(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages as plain data that holds everything a provider is sent of them; only measured."""
    return [_plain(message.__dict__) for message in messages]


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    # From the fields: asking a message for one that it does not have takes microseconds, times a whole history.
    role = fields["type"].removesuffix("MessageChunk").lower()
    return {
        "role": role,
        "content": fields["content"],
        # Agents put their own name on a reply after it was given; no provider counts it.
        "name": None if role == "ai" else fields.get("name"),
        "tool_calls": fields.get("tool_calls"),
        "tool_call_id": fields.get("tool_call_id"),
        "more": fields.get("additional_kwargs"),
    }


def to_reply(response: LLMResult) -> dict[str, Any] | None:
    """Return what the model answered, as it will stand in the next call's messages."""
    message = _message(response)
    return to_input([message])[0] if message is not None else None


def to_result(output: object) -> tuple[object, bool]:
    """Return what a tool answered, without what differs between two calls, and whether it says that it failed."""
    if isinstance(output, ToolMessage):
        return output.content, output.status == "error"
    return output, False


def to_usage(provider: str, response: LLMResult) -> Usage | None:
    """Return what the provider reported, or None if it reported nothing that can be trusted."""
    message = _message(response)
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
    queries = len(said.get("web_search_queries") or said.get("webSearchQueries") or ())
    content = getattr(message, "content", None)
    parts = [*(content if isinstance(content, list) else ())]
    parts += (getattr(message, "additional_kwargs", None) or {}).get("tool_outputs") or ()
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


def _message(response: LLMResult) -> Any:
    first = response.generations[0][0] if response.generations and response.generations[0] else None
    return getattr(first, "message", None)


def is_cache_hit(response: LLMResult) -> bool:
    """Return whether LangChain answered from its own cache: it then reports a total cost of 0 and no provider output."""
    totals = getattr(_message(response), "usage_metadata", None) or {}
    return response.llm_output is None and totals.get("total_cost") == 0
