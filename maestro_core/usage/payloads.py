"""Reading usage out of what providers, their SDKs and LangChain hand over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from ._usage import Usage
from .shapes import (
    ANTHROPIC,
    BESIDE_COMPLETION,
    LANGCHAIN,
    MARKS,
    OCR_ANNOTATED,
    REALTIME,
    RESPONSES,
    ROOTS,
    Shape,
)  # fmt: skip

__all__ = ["parse", "searches_in"]

# LangChain spells details of these tiers with the tier in front: {"flex_cache_read": 300, "flex": 700}.
_TIER_PREFIXES = ("priority", "flex")
# Where a usage block, or the tier that served the call, may begin; a dict without them need not be searched.
_FIRST = frozenset(root.partition(".")[0] for root in ROOTS)
_TIERED = frozenset(
    {"speed", "service_tier", "serviceTier", "trafficType", "traffic_type", "response_metadata"}
)
# How OpenAI's Realtime API, and only it, spells details under LangChain's `input_token_details`.
_REALTIME_DETAILS = ("cached_tokens", "text_tokens", "audio_tokens", "image_tokens")


def parse(provider: str, payload: object, *, api: str = "default") -> Usage:
    """Read usage; `Usage.parse` describes it."""
    block, response = _find_block(payload)
    shape = _shape(block, provider, api)
    counts = _counts(block, shape, provider)
    if not counts:
        raise ValueError(
            f"no usage in the payload of {provider}: looked for token counts at {', '.join(ROOTS)} and in the payload "
            "itself"
        )
    counts |= _served(response)
    tier = _tier(block, response)
    lines = _lines(block, counts) if shape is ANTHROPIC else ()
    return Usage(
        tier=tier,
        region=_text(_at(block, "inference_geo")),
        model=_model(response),
        provider_cost=_provider_cost(block),
        lines=lines,
        flags=_flags(block, shape, counts),
        **dict[str, Any](counts),
    )


def _find_block(payload: object) -> tuple[Any, Any]:
    """Return the usage block and the response around it; both are the payload if it is a bare block."""
    if type(payload) is dict and _FIRST.isdisjoint(payload):
        return payload, payload
    for root in ROOTS:
        block = _at(payload, root)
        if block is not None and not isinstance(block, str | int | float):
            parent, _, _ = root.rpartition(".")
            return block, _at(payload, parent) if parent and parent != "meta" else payload
    return payload, payload


def _shape(block: object, provider: str, api: str) -> Shape:
    """Tell the format of a block by its keys."""
    if api == "ocr_annotated":
        return OCR_ANNOTATED
    details = _at(block, "input_token_details") or _at(block, "output_token_details")
    if details is not None:
        realtime = any(_at(details, key) is not None for key in _REALTIME_DETAILS)
        return REALTIME if realtime or api == "realtime" else LANGCHAIN
    for keys, shape in MARKS:
        for key in keys:
            if _at(block, key) is not None:
                return shape
    # Only Anthropic reports bare input and output tokens without their sum.
    bare = provider == "anthropic" and _at(block, "total_tokens") is None
    return ANTHROPIC if bare else RESPONSES


def _counts(block: object, shape: Shape, provider: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    prefix = _langchain_tier(block) if shape is LANGCHAIN else None
    holders: dict[str, Any] = {"": block}  # most blocks lack most details: each part is looked up once
    for kind, path, parent, name in _split(shape):
        if parent not in holders:
            holders[parent] = _at(block, parent)
        holder = holders[parent]
        if holder is None:
            continue
        value = _at(holder, name)
        if value is None and prefix and parent:
            value = _at(holder, f"{prefix}_{name}")
        if value is not None:
            counts[kind] = counts.get(kind, 0) + _count(path, value)
    beside = BESIDE_COMPLETION.get(provider, ())
    for path in beside if beside and "prompt_tokens" in dict(shape.table).values() else ():
        extra = _count(path, _at(block, path) or 0)
        counts["output_tokens"] = counts.get("output_tokens", 0) + extra
        name = "output_citation_tokens" if path == "citation_tokens" else "output_reasoning_tokens"
        counts[name] = extra
    if provider == "perplexity" and (searches := _at(block, "num_search_queries")) is not None:
        counts["web_searches"] = _count("num_search_queries", searches)
    return counts


@cache
def _split(shape: Shape) -> tuple[tuple[str, str, str, str], ...]:
    """Return the table as (kind, path, path of what holds it, name in it)."""
    rows = []
    for kind, path in shape.table:
        parent, _, name = path.rpartition(".")
        rows.append((kind, path, parent, name))
    return tuple(rows)


def _served(response: object) -> dict[str, int]:
    """Return the uses of tools that OpenAI ran itself: they stand in the answer, not in the usage.

    Only searches are billed, opening a page that was found is not (OpenAI, guide "Web search").
    """
    output = response.get("output") if isinstance(response, dict) else getattr(response, "output", None)
    if not isinstance(output, list):
        return {}
    return searches_in(output)


def searches_in(items: Sequence[object]) -> dict[str, int]:
    """Return the billed searches among the parts of an OpenAI answer, by kind of usage."""
    found: dict[str, int] = {}
    for item in items:
        kind, action = _at(item, "type"), _at(item, "action.type")
        name = {"web_search_call": "web_searches", "file_search_call": "storage_searches"}.get(kind)
        if name is not None and action in {None, "search"}:
            found[name] = found.get(name, 0) + 1
    return found


def _count(path: str, value: object) -> int:
    """Return a reported number as a count; Cohere reports floats, and seconds may be fractions (rounded up)."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{path} is {value!r}, which is no count")  # noqa: TRY004 - a payload, not an argument
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{path} is {value!r}; counts are zero or more")
    return math.ceil(value)


def _at(obj: object, path: str) -> Any:
    """Follow a dotted path through mappings, SDK objects and lists of `{"modality" | "ttl": name, ...}`."""
    if (
        type(obj) is dict and "." not in path
    ):  # some thirty times for every call; abstract classes are slow to check
        return obj.get(path)
    for name in path.split("."):
        if type(obj) is dict or isinstance(obj, Mapping):
            obj = obj.get(name)
        elif isinstance(obj, Sequence) and not isinstance(obj, str):
            obj = next((item for item in obj if _label(item) == name), None)
        else:
            obj = getattr(obj, name, None)
        if obj is None:
            return None
    return obj


def _label(item: object) -> str | None:
    label = _at(item, "modality") or _at(item, "ttl")
    return _text(getattr(label, "value", label))  # SDKs have enums here


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _model(response: object) -> str | None:
    for path in (
        "model",
        "modelVersion",
        "model_version",
        "response_metadata.model_name",
        "response_metadata.model",
    ):
        if name := _text(_at(response, path)):
            return name
    return None


def _tier(block: object, response: object) -> str | None:
    """Return the tier that served the call, as the provider spells it."""
    if type(block) is dict and block is response and _TIERED.isdisjoint(block):
        return _langchain_tier(block)
    if _at(block, "speed") == "fast":  # Anthropic's fast mode has prices of its own
        return "fast"
    for holder, path in (
        (block, "service_tier"),
        (block, "serviceTier"),
        (block, "trafficType"),
        (block, "traffic_type"),
        (response, "service_tier"),
        (response, "serviceTier.type"),
        (response, "response_metadata.service_tier"),
    ):
        value = _at(holder, path)
        if tier := _text(getattr(value, "value", value)):
            return tier
    return _langchain_tier(block)


def _langchain_tier(block: object) -> str | None:
    details = _at(block, "input_token_details")
    return next((tier for tier in _TIER_PREFIXES if _at(details, tier) is not None), None)


def _provider_cost(block: object) -> Decimal | None:
    """Return what OpenRouter says it billed; with the user's own key, what the upstream provider bills is on top."""
    cost = _dollars(_at(block, "cost"))
    if cost is not None and _at(block, "is_byok") is True:
        cost += _dollars(_at(block, "cost_details.upstream_inference_cost")) or Decimal(0)
    return cost


def _dollars(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount >= 0 else None


def _flags(block: object, shape: Shape, counts: Mapping[str, int]) -> tuple[str, ...]:
    flags = []
    total = _at(block, shape.total) if shape.total else None
    ours = counts.get("input_tokens", 0) + counts.get("output_tokens", 0)
    if isinstance(total, int) and total != ours:
        flags.append("total_mismatch")
    if counts.get("output_tokens") and not counts.get("input_tokens"):
        flags.append("input_missing")
    split = counts.get("cache_write_5m_tokens", 0) + counts.get("cache_write_1h_tokens", 0)
    if shape.unsplit_writes and counts.get("cache_write_tokens", 0) > split:
        flags.append("cache_ttl_unknown")
    return tuple(flags)


def _lines(block: object, counts: Mapping[str, int]) -> tuple[tuple[str | None, Usage], ...]:
    """Return Anthropic's iterations as lines if the top level leaves some out (compaction, advisor).

    The top level repeats the messages only; the other steps are billed on top, an advisor at its own model's rates.
    """
    steps = _at(block, "iterations")
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        return ()
    extra = []
    for step in steps:
        if _at(step, "type") in {None, "message"}:
            continue
        parts = _counts(step, ANTHROPIC, "anthropic")
        extra.append(
            (_text(_at(step, "model")), Usage(flags=_flags(step, ANTHROPIC, parts), **dict[str, Any](parts)))
        )
    if not extra:
        return ()
    return (None, Usage(flags=_flags(block, ANTHROPIC, counts), **dict[str, Any](counts))), *extra
