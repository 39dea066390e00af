"""What has to be known of a LangChain chat model to govern it: its limits, its retries, its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from maestro_core.types import Attribution, Call

from ._convert import LIMITS, base_url, provider_id, retries_of, to_input
from ._retries import NO_RETRIES, silence_clients

if TYPE_CHECKING:
    from langchain.agents.middleware.types import ModelRequest
    from langchain_core.language_models import BaseChatModel

__all__ = [
    "SLACK",
    "as_sent",
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


_asks: dict[tuple[type, str], bool] = {}


def _read(model: BaseChatModel, name: str) -> Any:
    """Return a field of a model, or None. To ask pydantic for what a class does not have takes longer than the rest."""
    fields = model.__dict__
    if name in fields:
        return fields[name]
    kind = type(model)
    asks = _asks.get((kind, name))
    if asks is None:
        # A class that takes any field, or speaks for another model, may have what it does not declare.
        plain = getattr(kind, "__getattr__", None) is vars(BaseModel).get("__getattr__")
        closed = plain and kind.model_config.get("extra") != "allow"
        asks = _asks[kind, name] = hasattr(kind, name) or not closed
    return getattr(model, name, None) if asks else None


# By the identity of a tool: the tool, what it said of itself, and how it is sent. The handler sees what is really sent, and
# a hold that does not cover it is not used.
_sent: dict[int, tuple[ref[BaseTool], tuple[Any, ...], dict[str, Any]]] = {}
_MOST_TOOLS = 1_000


def as_sent(tool: Any) -> dict[str, Any]:
    """Return a tool as providers are sent it, which takes long to make: its schema is the same at every turn."""
    if isinstance(tool, dict):
        return tool
    if not isinstance(tool, BaseTool):
        return convert_to_openai_tool(tool)
    says = (tool.name, tool.description, tool.args_schema, tool.metadata)
    known = _sent.get(id(tool))
    if known is not None and known[0]() is tool and known[1] == says:
        return known[2]
    if len(_sent) >= _MOST_TOOLS:
        _sent.clear()
    made = convert_to_openai_tool(tool)
    _sent[id(tool)] = ref(tool), says, made
    return made


def model_key(model: BaseChatModel) -> tuple[str, str]:
    """Return provider id and model name, as LangChain reports them in a run's metadata."""
    params = model._get_ls_params()  # noqa: SLF001 - what LangChain itself puts into every run's metadata
    kind = model._llm_type  # noqa: SLF001
    name = params.get("ls_model_name") or getattr(model, "model_name", None) or getattr(model, "model", None)
    return provider_id(params.get("ls_provider"), kind), str(name or "unknown")


_class_keys: dict[type, tuple[str, ...]] = {}


def limit_settings(model: BaseChatModel, tokens: int) -> dict[str, int] | None:
    """Return the call arguments that limit the output to so many tokens, or None for a class that is not known."""
    kind = type(model)
    if kind not in _class_keys:
        homes = [cls.__module__.partition(".")[0] for cls in kind.__mro__]
        _class_keys[kind] = next((_LIMIT_KEYS[home] for home in homes if home in _LIMIT_KEYS), ())
    keys = _class_keys[kind]
    return dict.fromkeys(keys, tokens) if keys else None


def own_limit(model: BaseChatModel, settings: dict[str, Any]) -> int | None:
    """Return the output limit that a request carries by itself; the largest, where several are set."""
    places = [settings, *(_read(model, name) or {} for name in ("model_kwargs", "extra_body"))]
    found = [place[name] for place in places if place for name in LIMITS if isinstance(place.get(name), int)]
    found += [value for name in LIMITS if isinstance(value := _read(model, name), int)]
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


def request_call(request: ModelRequest[Any], where: Attribution) -> Call:
    """Return the call that an agent's model request will become."""
    model = request.model
    provider, name = model_key(model)
    messages = [request.system_message, *request.messages] if request.system_message else request.messages
    tools = [as_sent(tool) for tool in request.tools]
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
        attribution=where,
        base_url=base_url(provider, model.__dict__),
        name=f"{type(model).__name__} {name}",
    )


def carried(model: BaseChatModel) -> list[Any]:
    """Return what a model's constructor puts into each request besides what is asked."""
    return [part for name in _CARRIED if (part := _read(model, name))]


def least_output(model: BaseChatModel, provider: str) -> int:
    """Return the output tokens below which a thinking model gives no answer."""
    thinking = _read(model, "thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(budget, int):
        return budget + 256
    reasons = (getattr(model, "profile", None) or {}).get("reasoning_output")
    # Claude thinks only where it is told to; the others do by themselves.
    return _REASONING_TOKENS if reasons and provider != "anthropic" else 1
