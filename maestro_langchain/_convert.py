"""LangChain's events as Maestro's calls and usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_core import Usage
from maestro_core.types import Attribution, Call

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

__all__ = ["dimensions", "failed_unbilled", "is_cache_hit", "to_call", "to_input", "to_usage"]

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

# How often a provider's client library sends a request again by itself, where the model does not say.
_DEFAULT_RETRIES = {
    "openai": 2,
    "azure": 2,
    "anthropic": 2,
    "google": 6,
    "mistral": 5,
    "groq": 2,
    "x-ai": 2,
    "deepseek": 2,
}

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample", "num_predict")
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


def to_call(
    serialized: Mapping[str, Any] | None,
    payload: object,
    metadata: Mapping[str, Any] | None,
    params: Mapping[str, Any],
    own: Mapping[str, str],
) -> Call:
    """Return the call that a start event announces.

    Args:
        serialized: The model as LangChain serialises it; `kwargs` are its constructor's.
        payload: Its input, from `to_input`.
        metadata: The run's metadata (`ls_provider`, `ls_model_name`, ...).
        params: The event's `invocation_params`: constructor and call arguments, merged.
        own: The dimensions of the call.
    """
    meta = metadata or {}
    built = (serialized or {}).get("kwargs") or {}
    kind = str(params.get("_type") or "")
    provider = str(meta.get("ls_provider") or kind or "unknown")
    provider = _PROVIDERS.get(provider, provider)
    model = str(meta.get("ls_model_name") or params.get("model") or params.get("model_name") or "unknown")
    names = (serialized or {}).get("id") or (serialized or {}).get("name") or kind
    return Call(
        provider=provider,
        model=model,
        input=[payload, {name: params[name] for name in _REFERENCES if params.get(name)}],
        max_output_tokens=_limit(meta, params, built),
        tools=[
            value
            for name, value in params.items()
            if name not in _REFERENCES and isinstance(value, dict | list)
        ],
        n=int(params.get("n") or 1),
        attempts=1 + _retries(provider, params, built),
        tier=params.get("service_tier"),
        attribution=Attribution(own),
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
        place[name] for place in places for name in _LIMITS if isinstance(place, dict) and place.get(name)
    ]
    found += [meta["ls_max_tokens"]] if meta.get("ls_max_tokens") else []
    limits = [value for value in found if isinstance(value, int) and value > 0]
    return max(limits) if limits else None


def _retries(provider: str, params: Mapping[str, Any], built: Mapping[str, Any]) -> int:
    for place in (params, built):
        retries = place.get("max_retries")
        if isinstance(retries, int):
            return max(0, retries)
    return _DEFAULT_RETRIES.get(provider, 0)


def to_input(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages as plain data that holds everything a provider is sent of them; only measured."""
    return [
        {
            "role": message.type,
            "content": message.content,
            "name": message.name,
            "tool_calls": getattr(message, "tool_calls", None),
            "tool_call_id": getattr(message, "tool_call_id", None),
            "more": message.additional_kwargs,
        }
        for message in messages
    ]


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
    return usage if usage.input_tokens else None


def _message(response: LLMResult) -> Any:
    first = response.generations[0][0] if response.generations and response.generations[0] else None
    return getattr(first, "message", None)


def is_cache_hit(response: LLMResult) -> bool:
    """Return whether LangChain answered from its own cache: it then reports a total cost of 0 and no provider output."""
    totals = getattr(_message(response), "usage_metadata", None) or {}
    return response.llm_output is None and totals.get("total_cost") == 0


# HTTP statuses that a provider answers before or instead of inference, and does not bill. A gateway's timeout
# (408, 504) is not among them: the model may have run.
_UNBILLED = frozenset({400, 401, 402, 403, 404, 405, 409, 413, 415, 422, 429, 500, 501, 502, 503, 529})
_REFUSED = ("ConnectionRefusedError", "ConnectError", "gaierror")


def failed_unbilled(error: BaseException, *, streamed: bool) -> str | None:
    """Return why a failed call was provably not billed, or None if it may have been.

    Args:
        error: What the model raised.
        streamed: Whether any output had arrived.
    """
    if streamed:
        return None
    status = getattr(error, "status_code", None) or getattr(
        getattr(error, "response", None), "status_code", None
    )
    if isinstance(status, int) and status in _UNBILLED:
        return f"HTTP {status}"
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _REFUSED:
            return "connection refused"
        cause = cause.__cause__ or cause.__context__
    return None
