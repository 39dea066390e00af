"""Tools that the provider runs itself within a call: what they may add to it, seen from the request alone.

Their fees are billed per use, and Anthropic and OpenAI bill what a search finds as input of the model's next look at it.
(Anthropic, "Web search tool"; OpenAI, "Pricing: built-in tools"; Google, "Grounding with Google Search".)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeGuard

from maestro_core.errors import PriceNotFound

if TYPE_CHECKING:
    from maestro_core.types import Call

__all__ = ["FEES", "Served", "searches_always", "served"]

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
# Models that search in every call, whatever its tools, for a fee that neither their usage nor the price book tells.
# (OpenAI, "Web search": "Using gpt-4o-search-preview".)
_SEARCHING = ("-search-preview", "-search-api")
_BILLED_PER_PROMPT = ("gemini-1", "gemini-2")  # since Gemini 3, each query is billed


@dataclass(frozen=True, slots=True)
class Served:
    """What a provider's own tools may add to a call.

    Args:
        uses: The most uses of each fee, e.g. `{"web_searches": 3}`; several, where one limit holds for all tools together.
            The dearest of them is the bound.
        looks: How often the model may read its whole context; 1 if what the tools find is not billed as input.
        unknown: Whether what they find has no size that is known, so that the context may be full at every look.
    """

    uses: tuple[Mapping[str, int], ...] = ({},)
    looks: int = 1
    unknown: bool = False


def served(call: Call) -> Served | None:
    """Return what the provider's own tools may add to a call, or None if it declares none.

    Raises:
        PriceNotFound: If their uses have no limit; the message names the one to set.
    """
    fixed: dict[str, int] = {}
    limited: list[tuple[str | None, int]] = []
    for name, tool, fee in _declared(call):
        if fee == "web_searches" and name in _GOOGLE:
            fixed[fee] = fixed.get(fee, 0) + _google_uses(call, name)
        else:
            limited.append((fee, _most_uses(call, name, tool)))
    if not fixed and not limited:
        return None
    together = sum(most for _, most in limited)
    if len(limited) > 1 and _is_count(call.max_tool_calls):
        together = min(together, call.max_tool_calls)
    return Served(tuple(_shared(fixed, limited, together)), 1 + together, bool(limited))


@lru_cache(maxsize=4096)
def searches_always(model: str) -> bool:
    """Return whether a model searches the web in every call, for a fee that nobody reports."""
    return any(part in model for part in _SEARCHING)


def _shared(
    fixed: Mapping[str, int], limited: Sequence[tuple[str | None, int]], together: int
) -> Iterator[Mapping[str, int]]:
    """Yield the uses of each fee if one tool after the other takes what it can of all uses; the dearest is among them."""
    most: dict[str, int] = {}
    for fee, uses in limited:
        if fee is not None:
            most[fee] = most.get(fee, 0) + uses
    if sum(most.values()) <= together:
        yield _added(fixed, most)
        return
    for order in permutations(most):
        left, taken = together, dict[str, int]()
        for fee in order:
            taken[fee] = min(most[fee], left)
            left -= taken[fee]
        yield _added(fixed, {fee: uses for fee, uses in taken.items() if uses})


def _added(fixed: Mapping[str, int], uses: Mapping[str, int]) -> Mapping[str, int]:
    return {fee: fixed.get(fee, 0) + uses.get(fee, 0) for fee in (*fixed, *uses)}


def _is_count(limit: object) -> TypeGuard[int]:
    return isinstance(limit, int) and not isinstance(limit, bool)


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
    known = [limit for limit in limits if _is_count(limit)]
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
