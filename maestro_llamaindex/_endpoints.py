"""LlamaIndex's LLMs as endpoints: what is known of each, and how a neutral request is put to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM

from maestro_core.endpoints import Facts, named

from ._classes import silent
from ._models import (
    LIMITS,
    base_url,
    can_limit,
    least_output_tokens,
    limit_kwargs,
    model_name,
    own_limit,
    packages,
    provider_of,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from maestro_core import Endpoint

__all__ = ["LAST_TOOLS", "Served", "serve"]

# The tools of a conversation whose last call has none: Claude's API wants them named all the same.
LAST_TOOLS = "maestro_last_tools"
_CHOICE = ("allow_parallel_tool_calls", "tool_required", "tool_choice", "verbose")
_WORDS = {"required": "any", "any": "any", "auto": "auto", "none": "none"}


@dataclass(frozen=True, slots=True)
class Served:
    """One endpoint, ready to be called: its LLM without the client's own retries, and its facts."""

    facts: Facts
    llm: Any

    def request(
        self, messages: Sequence[ChatMessage], asked: Mapping[str, Any], fitted: int | None
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """Return messages and arguments as this LLM takes them: its own dialect of tools, and the fitted output limit."""
        arguments, history = dict(asked), [_neutral(each) for each in messages]
        claude = "anthropic" in packages(self.llm)
        options = {name: arguments.pop(name) for name in _CHOICE if name in arguments}
        tools, last = arguments.pop("tools", None), arguments.pop(LAST_TOOLS, None)
        if not tools and last and claude:
            tools, options = last, {"tool_choice": "none"}
        if tools and isinstance(tools[0], dict):  # in the endpoint's own dialect already
            arguments |= {"tools": tools, **options}
        elif tools:
            if options.get("tool_choice") is None:
                options.pop("tool_choice", None)
            elif claude:
                options["tool_choice"] = _claudes(options["tool_choice"])
            prepared = self.llm._prepare_chat_with_tools_compat(  # noqa: SLF001 - what agents call it by, too
                tools, chat_history=history, **options
            )
            history = prepared.pop("messages")
            arguments = {**prepared, **arguments}
        if fitted is not None:
            arguments = {name: value for name, value in arguments.items() if name not in LIMITS}
            arguments |= limit_kwargs(self.llm, fitted) or {}
        return history, arguments


def serve(endpoints: Sequence[Endpoint]) -> list[Served]:
    """Return the endpoints, ready to be called.

    Raises:
        TypeError: If one is no LLM.
        ValueError: If two have the same name.
    """
    for each in endpoints:
        if not isinstance(each.model, BaseLLM) or hasattr(each.model, "endpoints"):
            raise TypeError(f"{type(each.model).__name__} is no endpoint: an endpoint is an LLM, as OpenAI")
    names = named(endpoints, [model_name(each.model) for each in endpoints])
    return [_served(endpoint, name) for endpoint, name in zip(endpoints, names, strict=True)]


def _served(endpoint: Endpoint, name: str) -> Served:
    llm, retries = silent(endpoint.model)
    facts = Facts(
        endpoint=endpoint,
        name=name,
        provider=provider_of(llm),
        model=model_name(llm),
        label=f"{type(llm).__name__} {model_name(llm)}",
        identity=_identity(llm),
        base_url=base_url(llm),
        max_output_tokens=own_limit(llm, {}, governed=True),
        least_output_tokens=least_output_tokens(llm),
        tier=getattr(llm, "service_tier", None),
        fits=can_limit(llm),
        retries=retries,
        lacks=frozenset() if isinstance(llm, FunctionCallingLLM) else frozenset({"tools"}),
        carried=tuple(_carried(llm)),
    )
    return Served(facts, llm)


def _carried(llm: Any) -> Iterator[Any]:
    yield from (part for key in ("additional_kwargs", "tools") if (part := getattr(llm, key, None)))
    if said := getattr(llm, "instructions", None):
        yield {"instructions": said}


def _identity(llm: Any) -> Hashable:
    """Return what tells an endpoint from another one of the same model at the same address: whose key it uses."""
    return type(llm).__name__, hash(str(getattr(llm, "api_key", None)))


def _neutral(message: ChatMessage) -> ChatMessage:
    """Return a message as every integration understands it: tools' arguments as data, no other maker's objects."""
    if not any(isinstance(block, ToolCallBlock) for block in message.blocks):
        return message
    blocks = [
        block.model_copy(update={"tool_kwargs": _parsed(block.tool_kwargs)})
        if isinstance(block, ToolCallBlock)
        else block
        for block in message.blocks
    ]
    extra = {name: value for name, value in message.additional_kwargs.items() if name != "tool_calls"}
    return message.model_copy(update={"blocks": blocks, "additional_kwargs": extra})


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments or "{}")
    except ValueError:  # what a model has written need not be JSON
        return {}
    return found if isinstance(found, dict) else {}


def _claudes(choice: Any) -> Any:
    if isinstance(choice, str):
        return {"type": _WORDS[choice]} if choice in _WORDS else {"type": "tool", "name": choice}
    if isinstance(choice, dict) and "function" in choice:
        return {"type": "tool", "name": choice["function"]["name"]}
    return choice
