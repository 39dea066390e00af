"""Tools that the provider runs itself within a call: what they may add to it, seen from the request alone.

Their fees are billed per use, and Anthropic and OpenAI bill what a search finds as input of the model's next look at it.
(Anthropic, "Web search tool"; OpenAI, "Pricing: built-in tools"; Google, "Grounding with Google Search".)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maestro_core.errors import PriceNotFound

if TYPE_CHECKING:
    from maestro_core.types import Call

__all__ = ["FEES", "Served", "served"]

# Kinds of usage that are billed per use.
FEES = ("web_searches", "storage_searches", "code_executions", "social_searches", "rerank_searches")

# How a tool's type begins, and the fee of one use; the first that fits. None: it has no fee of its own.
_ANTHROPIC = (
    ("web_search_", "web_searches"),
    ("web_fetch_", None),
    ("code_execution_", "code_executions"),
    ("mcp", None),
)
_OPENAI = (
    ("web_search", "web_searches"),
    ("file_search", "storage_searches"),
    ("code_interpreter", "code_executions"),
    ("image_generation", "image generations"),
    ("mcp", None),
)
_GOOGLE = {
    "google_search": "web_searches",
    "googleSearch": "web_searches",
    "google_search_retrieval": "web_searches",
    "googleSearchRetrieval": "web_searches",
    "url_context": None,
    "urlContext": None,
}
_BILLED_PER_PROMPT = ("gemini-1", "gemini-2")  # since Gemini 3, each query is billed


@dataclass(frozen=True, slots=True)
class Served:
    """What a provider's own tools may add to a call.

    Args:
        uses: The most uses of each fee, e.g. `{"web_searches": 3}`.
        looks: How often the model may read its whole context; 1 if what the tools find is not billed as input.
        unknown: Whether what they find has no size that is known, so that the context may be full at every look.
    """

    uses: Mapping[str, int] = field(default_factory=dict)
    looks: int = 1
    unknown: bool = False


def served(call: Call) -> Served | None:
    """Return what the provider's own tools may add to a call, or None if it declares none.

    Raises:
        PriceNotFound: If their uses have no limit; the message names the one to set.
    """
    uses: dict[str, int] = {}
    looks, unknown, any_of_them = 1, False, False
    for name, tool, fee in _declared(call):
        any_of_them = True
        if fee == "web_searches" and name in _GOOGLE:
            uses[fee] = uses.get(fee, 0) + _google_uses(call, name)
            continue
        most = _most_uses(call, name, tool)
        looks, unknown = looks + most, True
        if fee is not None:
            uses[fee] = uses.get(fee, 0) + most
    return Served(uses, looks, unknown) if any_of_them else None


def _declared(call: Call) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Yield name, declaration and fee of each tool that the provider runs."""
    kinds = _ANTHROPIC if call.provider == "anthropic" or "claude" in call.model else _OPENAI
    found: dict[str, tuple[Mapping[str, Any], str | None]] = {}
    for tool in _flat(call.tools):
        kind = str(tool.get("type") or "")
        fees = [fee for start, fee in kinds if kind.startswith(start)]
        if fees and len(tool) >= len(found.get(kind, ({}, None))[0]):  # a tool_choice names the type alone
            found[kind] = tool, fees[0]
        found |= {key: (tool, _GOOGLE[key]) for key in _GOOGLE.keys() & tool.keys()}
    for name, (tool, fee) in found.items():
        yield name, tool, fee


def _flat(tools: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(tools, Mapping):
        yield tools
    elif isinstance(tools, Sequence) and not isinstance(tools, str | bytes):
        for tool in tools:
            yield from _flat(tool)


def _most_uses(call: Call, name: str, tool: Mapping[str, Any]) -> int:
    if name in _GOOGLE:  # url_context: at most 20 addresses, by Google's page
        return 20
    limits = [tool.get("max_uses"), call.max_tool_calls]
    known = [limit for limit in limits if isinstance(limit, int) and not isinstance(limit, bool)]
    if not known:
        limit = (
            "max_uses on the tool" if "max_uses" in tool or call.provider == "anthropic" else "max_tool_calls"
        )
        raise PriceNotFound(
            f"{call.name or call.model} lets the provider run {name} as often as it likes, so the call has no bound;"
            f" set {limit}, or say what it may use with a maestro_estimate plugin"
        )
    return min(known)


def _google_uses(call: Call, name: str) -> int:
    if any(start in call.model for start in _BILLED_PER_PROMPT):
        return 1
    raise PriceNotFound(
        f"{call.name or call.model} lets the provider run {name} as often as it likes, each query is billed, and the"
        " request cannot limit them, so the call has no bound; say what it may use with a maestro_estimate plugin"
    )
