"""Finding the LLMs and embedding models that an object is made of."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.prompts.mixin import PromptMixin

__all__ = ["members"]

_FAMILY = "llama_index"
# What holds data, not models, and may be large.
_DATA = (
    "llama_index.core.schema", "llama_index.core.storage", "llama_index.core.vector_stores",
    "llama_index.core.graph_stores", "llama_index.core.data_structs", "llama_index.core.callbacks",
    "llama_index.core.instrumentation", "llama_index.core.prompts", "llama_index.core.memory",
    "llama_index.core.base.llms.types",
)  # fmt: skip
_MOST = 256


def members(thing: Any) -> list[Any]:
    """Return the LLMs and embedding models that an object is, or is made of, each once."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting: list[Any] = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, BaseLLM | BaseEmbedding) and not isinstance(
            inner := getattr(one, "llm", None), BaseLLM
        ):
            found.append(one)
        elif isinstance(one, BaseLLM):  # one that only translates for another
            waiting.append(inner)
        elif isinstance(one, dict):
            waiting += list(one.values())[:_MOST]
        elif isinstance(one, list | tuple | set):
            waiting += list(one)[:_MOST]
        elif one is thing or _is_family(one):
            waiting += vars(one).values() if hasattr(one, "__dict__") else ()
            waiting += (getattr(one, "__pydantic_private__", None) or {}).values()
    return found


def _is_family(one: Any) -> bool:
    # Agents and query engines are data of that kind only as far as they have prompts.
    homes = [cls.__module__ for cls in type(one).__mro__ if cls is not PromptMixin]
    return any(home.partition(".")[0] == _FAMILY for home in homes) and not any(
        home.startswith(_DATA) for home in homes
    )
