"""What has to be known of a LangChain chat model to govern it: its limits, its retries, its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_core.types import Attribution, Call

from ._convert import LIMITS, base_url, provider_id, retries_of, to_input
from ._retries import NO_RETRIES, silence_clients

if TYPE_CHECKING:
    from langchain.agents.middleware.types import ModelRequest
    from langchain_core.language_models import BaseChatModel

__all__ = [
    "SLACK",
    "attempts_below",
    "carried",
    "least_output",
    "limit_settings",
    "model_key",
    "own_limit",
    "request_call",
    "without_sdk_retries",
]

# The package that a model's class comes from, and the call arguments that set its output limit for certain.
# ChatOpenAI needs both names: either one alone loses to the constructor's or to a bound one, in one API or the other.
_LIMIT_KEYS = {
    "langchain_openai": ("max_tokens", "max_completion_tokens"),
    "langchain_anthropic": ("max_tokens",),
    "langchain_aws": ("max_tokens",),
    "langchain_google_genai": ("max_output_tokens",),
    "langchain_google_vertexai": ("max_output_tokens",),
    "langchain_cohere": ("max_tokens",),
    "langchain_fireworks": ("max_tokens",),
    "langchain_groq": ("max_tokens",),
    "langchain_mistralai": ("max_tokens",),
    "langchain_openrouter": ("max_tokens",),
}
# A reasoning model thinks before it answers, and inside the limit.
_REASONING_TOKENS = 4_096
# What a model's constructor puts into each request that the handler will count like a tool: it cannot know better.
_CARRIED = ("extra_body", "model_kwargs", "reasoning", "thinking", "stop", "stop_sequences")
# What an integration may add to a request beyond the messages and tools: names, markers, an empty system block.
SLACK = " " * 256


def model_key(model: BaseChatModel) -> tuple[str, str]:
    """Return provider id and model name, as LangChain reports them in a run's metadata."""
    params = model._get_ls_params()  # noqa: SLF001 - what LangChain itself puts into every run's metadata
    kind = model._llm_type  # noqa: SLF001
    name = params.get("ls_model_name") or getattr(model, "model_name", None) or getattr(model, "model", None)
    return provider_id(params.get("ls_provider"), kind), str(name or "unknown")


def limit_settings(model: BaseChatModel, tokens: int) -> dict[str, int] | None:
    """Return the call arguments that limit the output to so many tokens, or None for a class that is not known."""
    for cls in type(model).__mro__:
        keys = _LIMIT_KEYS.get(cls.__module__.partition(".")[0])
        if keys:
            return dict.fromkeys(keys, tokens)
    return None


def own_limit(model: BaseChatModel, settings: dict[str, Any]) -> int | None:
    """Return the output limit that a request carries by itself; the largest, where several are set."""
    places = [settings, {name: getattr(model, name, None) for name in LIMITS}]
    places += [getattr(model, name, None) or {} for name in ("model_kwargs", "extra_body")]
    found = [place[name] for place in places for name in LIMITS if isinstance(place.get(name), int)]
    return max(found) if found else None


def without_sdk_retries(model: BaseChatModel) -> tuple[BaseChatModel, int]:
    """Return a copy of the model whose client never sends a request again by itself, and how often it would have.

    The copy also asks for usage in streams, where the model does not say whether to: ChatOpenAI leaves it out for any
    `base_url` but OpenAI's own, and a stream without usage can only be settled at its hold. The user's model is left as it
    is: it may be changed between two calls, so the copy is made anew for each. It shares the client, which keeps its own
    number of retries, so that is replaced too; the names are the integrations' private ones, and a test holds them.
    """
    retries = _retries(model) if hasattr(model, "max_retries") else 0
    silent = getattr(model, "stream_usage", True) is None
    return (_copy_without_retries(model) if silent or retries else model), retries


def attempts_below(model: BaseChatModel) -> int:
    """Return how often a request may be sent by a client whose own retries cannot be switched off; else 1."""
    return 1 if hasattr(model, "max_retries") else 1 + _retries(model)


def _retries(model: BaseChatModel) -> int:
    return retries_of(model_key(model)[0], {"max_retries": getattr(model, "max_retries", None)}, {})


def _copy_without_retries(model: Any) -> Any:
    none = NO_RETRIES.get(type(model).__module__.partition(".")[0], 0)
    update = {"max_retries": none} if hasattr(model, "max_retries") else {}
    if getattr(model, "stream_usage", True) is None:
        update["stream_usage"] = True
    copy = model.model_copy(update=update)
    copy.__dict__.pop("_serialized", None)  # LangChain's cache of what the model says of itself to handlers
    silence_clients(copy)
    return copy


def request_call(request: ModelRequest[Any], own: dict[str, str]) -> Call:
    """Return the call that an agent's model request will become."""
    from langchain_core.utils.function_calling import convert_to_openai_tool

    model = request.model
    provider, name = model_key(model)
    messages = [request.system_message, *request.messages] if request.system_message else request.messages
    tools = [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in request.tools]
    shape: Any = getattr(request.response_format, "schema", request.response_format)
    parts = [
        *tools,
        convert_to_openai_tool(shape) if shape is not None else None,
        request.model_settings,
        *carried(model),
    ]
    return Call(
        provider=provider,
        model=name,
        input=SLACK,
        history=to_input(messages),
        max_output_tokens=own_limit(model, request.model_settings),
        tools=[part for part in parts if part],
        least_output_tokens=least_output(model, provider),
        max_tool_calls=next(
            (part["max_tool_calls"] for part in parts if isinstance(part, dict) and "max_tool_calls" in part),
            None,
        ),
        n=int(getattr(model, "n", None) or 1),
        attempts=attempts_below(model),
        tier=getattr(model, "service_tier", None),
        attribution=Attribution(own),
        base_url=base_url(provider, model.__dict__),
        name=f"{type(model).__name__} {name}",
    )


def carried(model: BaseChatModel) -> list[Any]:
    """Return what a model's constructor puts into each request besides what is asked."""
    return [part for name in _CARRIED if (part := getattr(model, name, None))]


def least_output(model: BaseChatModel, provider: str) -> int:
    """Return the output tokens below which a thinking model gives no answer."""
    thinking = getattr(model, "thinking", None)
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(budget, int):
        return budget + 256
    reasons = (getattr(model, "profile", None) or {}).get("reasoning_output")
    # Claude thinks only where it is told to; the others do by themselves.
    return _REASONING_TOKENS if reasons and provider != "anthropic" else 1
