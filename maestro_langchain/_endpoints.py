"""LangChain's chat models as endpoints: what is known of each, and how a neutral request is put to it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableBinding

from maestro_core.endpoints import Facts, named

from ._convert import ROUTED, base_url
from ._models import (
    attempts_below,
    carried,
    least_output,
    limit_settings,
    model_key,
    own_limit,
    without_sdk_retries,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from langchain_core.runnables import RunnableConfig

    from maestro_core import Endpoint

__all__ = ["Served", "makers_of", "serve"]

# What a request needs, and the entries of a model's profile that say whether it has it.
_CAPABILITIES = {"tools": "tool_calling", "images": "image_inputs", "structured_output": "structured_output"}
# What a model is asked by `bind_tools`, not by the call itself.
_TOOL_OPTIONS = ("tool_choice", "strict", "parallel_tool_calls", "response_format")
# Tools that run at their maker's, and the packages whose models can have them.
_NATIVE = {
    "anthropic_tools": "langchain_anthropic",
    "google_tools": "langchain_google",
    "openai_tools": "langchain_openai",
}
_OPENAI_TOOLS = frozenset({
    "code_interpreter", "computer_use_preview", "custom", "file_search", "image_generation", "local_shell", "mcp",
    "web_search", "web_search_preview",
})  # fmt: skip
_NEVER_TOLD = frozenset({"strict", "parallel_tool_calls"})  # not every `bind_tools` knows them


@dataclass(frozen=True, slots=True)
class Served:
    """One endpoint, ready to be called: its model without the client's own retries, what was bound to it, its facts."""

    facts: Facts
    model: BaseChatModel
    bound: Mapping[str, Any] = field(default_factory=dict)
    config: RunnableConfig | None = None

    def arguments(self, asked: Mapping[str, Any], fitted: int | None) -> dict[str, Any]:
        """Return the call's arguments as this model takes them: its own dialect of tools, and the fitted output limit."""
        arguments = {**self.bound, **asked}
        if arguments.get("tools"):
            options = {name: arguments.pop(name) for name in _TOOL_OPTIONS if name in arguments}
            arguments |= _tools(self.model, arguments.pop("tools"), options)
        return {**arguments, **self.limit(fitted)}

    def limit(self, fitted: int | None) -> dict[str, int]:
        """Return the arguments that set a fitted output limit."""
        return {} if fitted is None else limit_settings(self.model, fitted) or {}


def serve(endpoints: Sequence[Endpoint]) -> list[Served]:
    """Return the endpoints, ready to be called.

    Raises:
        TypeError: If one is no chat model.
        ValueError: If two have the same name.
    """
    parts = [_unwrapped(each.model) for each in endpoints]
    names = named(endpoints, [model_key(model)[1] for model, _, _ in parts])
    return [
        _served(endpoint, name, *part) for endpoint, name, part in zip(endpoints, names, parts, strict=True)
    ]


def makers_of(tools: Sequence[Any]) -> set[str]:
    """Return what tools need beside an endpoint that calls tools: that it is of the maker who runs them."""
    found = set()
    for tool in tools:
        kind = tool.get("type") if isinstance(tool, dict) else "function"
        if isinstance(kind, str) and re.search(r"_\d{8}$", kind):  # "web_search_20250305"
            found.add("anthropic_tools")
        elif kind in _OPENAI_TOOLS:
            found.add("openai_tools")
        elif kind is None and not {"name", "title", "function"} & tool.keys():  # {"google_search": {}}
            found.add("google_tools")
    return found


def _lacks(model: BaseChatModel, profile: Mapping[str, Any]) -> frozenset[str]:
    packages = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    found = {need for need, entry in _CAPABILITIES.items() if profile.get(entry) is False}
    found |= {
        need for need, maker in _NATIVE.items() if not any(package.startswith(maker) for package in packages)
    }
    return frozenset(found)


def _unwrapped(model: object) -> tuple[BaseChatModel, dict[str, Any], RunnableConfig | None]:
    """Return a chat model, and what `.bind()` and `.with_config()` have put around it."""
    bound: dict[str, Any] = {}
    config: RunnableConfig | None = None
    while isinstance(model, RunnableBinding):
        bound = {**model.kwargs, **bound}
        config = model.config or config
        model = model.bound
    if not isinstance(model, BaseChatModel):
        raise TypeError(
            f"{type(model).__name__} is no chat model: an endpoint is a BaseChatModel, as ChatOpenAI"
        )
    if model._llm_type == ROUTED:  # noqa: SLF001 - a model's own name for its kind
        raise TypeError("a RoutedChatModel is no endpoint of another one: list its endpoints")
    return model, bound, config


def _served(
    endpoint: Endpoint,
    name: str,
    model: BaseChatModel,
    bound: dict[str, Any],
    config: RunnableConfig | None,
) -> Served:
    silent, retries = without_sdk_retries(model)
    provider, model_name = model_key(model)
    profile = getattr(model, "profile", None) or {}
    facts = Facts(
        endpoint=endpoint,
        name=name,
        provider=provider,
        model=model_name,
        label=f"{type(model).__name__} {model_name}",
        identity=_identity(model),
        base_url=base_url(provider, model.__dict__),
        max_output_tokens=own_limit(model, bound),
        least_output_tokens=least_output(model, provider),
        n=int(getattr(model, "n", None) or 1),
        attempts=attempts_below(model),
        tier=getattr(model, "service_tier", None),
        fits=limit_settings(model, 1) is not None,
        retries=retries,
        context_tokens=profile.get("max_input_tokens"),
        lacks=_lacks(model, profile),
        carried=tuple(carried(model)),
    )
    return Served(facts, silent, bound, config)


def _identity(model: BaseChatModel) -> Hashable:
    """Return what tells an endpoint from another one of the same model at the same address: whose key it uses."""
    secrets = [getattr(value, "get_secret_value", None) for value in model.__dict__.values()]
    return type(model).__name__, hash(tuple(str(secret()) for secret in secrets if callable(secret)))


def _tools(model: BaseChatModel, tools: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(model.bind_tools).parameters
    told = {name: value for name, value in options.items() if name not in _NEVER_TOLD or name in known}
    if told.get("tool_choice") is None:
        told.pop("tool_choice", None)
    else:
        told["tool_choice"] = _choice(model, told["tool_choice"])
    binding = model.bind_tools(tools, **told)
    return dict(getattr(binding, "kwargs", {}))


def _choice(model: BaseChatModel, choice: Any) -> Any:
    """Return a choice of tools as the model's `bind_tools` takes it."""
    if choice == "none" and type(model).__module__.startswith(_NATIVE["anthropic_tools"]):
        return {"type": "none"}  # the word would be taken for the name of a tool
    if choice in ("required", True):
        return "any"
    if isinstance(choice, dict) and "function" in choice:
        return choice["function"]["name"]
    return choice
