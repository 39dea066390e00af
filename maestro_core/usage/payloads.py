"""Reading usage out of what providers, their SDKs and LangChain hand over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, NamedTuple

from .shapes import (
    ANTHROPIC,
    BESIDE_COMPLETION,
    CHAT,
    LANGCHAIN,
    MARKS,
    OCR_ANNOTATED,
    REALTIME,
    RESPONSES,
    ROOTS,
    Shape,
)  # fmt: skip

__all__ = ["Reading", "read", "searches_in"]

_Said = Callable[[str], Any]  # finds what stands at a key of a block or a response

# LangChain spells details of these tiers with the tier in front: {"flex_cache_read": 300, "flex": 700}.
_TIER_PREFIXES = ("priority", "flex")
# Where a usage block may begin; a dict without them need not be searched.
_FIRST = frozenset(root.partition(".")[0] for root in ROOTS)
_MARKED = tuple((key, shape) for keys, shape in MARKS for key in keys)
# How OpenAI's Realtime API, and only it, spells details under LangChain's `input_token_details`.
_REALTIME_DETAILS = ("cached_tokens", "text_tokens", "audio_tokens", "image_tokens")


class Reading(NamedTuple):
    """What a payload says; the fields are those of `Usage`, and of each line its model, counts and flags."""

    counts: dict[str, int]
    tier: str | None
    region: str | None
    model: str | None
    provider_cost: Decimal | None
    lines: tuple[tuple[str | None, dict[str, int], tuple[str, ...]], ...]
    flags: tuple[str, ...]


def read(provider: str, payload: object, api: str) -> Reading:
    """Read usage; `Usage.parse` describes it."""
    block, response = _find_block(payload)
    # A dict answers for itself: every call asks some fifty times, for what most blocks lack.
    said = block.get if type(block) is dict else partial(_at, block)
    around = response.get if type(response) is dict else partial(_at, response)
    shape = _shape(said, provider, api)
    details = said("input_token_details")
    prefix = None if details is None else _first(details, _TIER_PREFIXES)
    counts = _counts(block, shape, provider, prefix if shape is LANGCHAIN else None)
    if not counts:
        raise ValueError(
            f"no usage in the payload of {provider}: looked for token counts at {', '.join(ROOTS)} and in the payload "
            "itself"
        )
    # The uses of tools that OpenAI ran itself stand in the answer, not in the usage.
    if isinstance(output := around("output"), list):
        counts |= searches_in(output)
    region, cost = said("inference_geo"), said("cost")
    return Reading(
        counts,
        _tier(said, around) or prefix,
        region if isinstance(region, str) and region else None,
        _model(around),
        None if cost is None else _provider_cost(cost, block),
        _lines(block, counts) if shape is ANTHROPIC and said("iterations") is not None else (),
        _flags(said, shape, counts),
    )


def _find_block(payload: object) -> tuple[Any, Any]:
    """Return the usage block and the response around it; both are the payload if it is a bare block."""
    if type(payload) is dict:
        if type(block := payload.get(ROOTS[0])) is dict:
            return block, payload
        if _FIRST.isdisjoint(payload):
            return payload, payload
    for root in ROOTS:
        block = _at(payload, root)
        if block is not None and not isinstance(block, str | int | float):
            parent, _, _ = root.rpartition(".")
            return block, _at(payload, parent) if parent and parent != "meta" else payload
    return payload, payload


def _shape(said: _Said, provider: str, api: str) -> Shape:
    """Tell the format of a block by its keys."""
    if api == "ocr_annotated":
        return OCR_ANNOTATED
    details = said("input_token_details") or said("output_token_details")
    if details is not None:
        realtime = api == "realtime" or _first(details, _REALTIME_DETAILS) is not None
        return REALTIME if realtime else LANGCHAIN
    for key, shape in _MARKED:
        if said(key) is not None:
            return shape
    # Only Anthropic reports bare input and output tokens without their sum.
    bare = provider == "anthropic" and said("total_tokens") is None
    return ANTHROPIC if bare else RESPONSES


def _counts(block: Any, shape: Shape, provider: str, prefix: str | None = None) -> dict[str, int]:
    counts: dict[str, int] = {}
    said = block.get if type(block) is dict else partial(_at, block)
    for first, rest, rows in shape.groups:
        holder = said(first) if first else block
        if holder is not None and rest:
            holder = _at(holder, rest)
        if holder is None:
            continue
        find = holder.get if type(holder) is dict else partial(_at, holder)
        for kind, path, name in rows:
            value = find(name)
            if value is None and prefix and first:
                value = find(f"{prefix}_{name}")
            if value is not None:
                number = value if type(value) is int and value >= 0 else _count(path, value)
                counts[kind] = counts.get(kind, 0) + number
    if provider in BESIDE_COMPLETION and shape is CHAT:
        _add_beside(block, counts, BESIDE_COMPLETION[provider])
    if provider == "perplexity" and (searches := _at(block, "num_search_queries")) is not None:
        counts["web_searches"] = _count("num_search_queries", searches)
    return counts


def _add_beside(block: object, counts: dict[str, int], paths: Sequence[str]) -> None:
    """Add what a provider counts beside the completion, which everyone else counts inside."""
    for path in paths:
        extra = _count(path, _at(block, path) or 0)
        counts["output_tokens"] = counts.get("output_tokens", 0) + extra
        name = "output_citation_tokens" if path == "citation_tokens" else "output_reasoning_tokens"
        counts[name] = extra


def searches_in(items: Sequence[object]) -> dict[str, int]:
    """Return the billed searches among the parts of an OpenAI answer, by kind of usage.

    Only searches are billed, opening a page that was found is not (OpenAI, guide "Web search").
    """
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


def _first(holder: Any, names: Sequence[str]) -> str | None:
    """Return the first of these names at which something stands."""
    find = holder.get if type(holder) is dict else partial(_at, holder)
    for name in names:
        if find(name) is not None:
            return name
    return None


def _label(item: Any) -> str | None:
    find = item.get if type(item) is dict else partial(_at, item)
    return _spelled(find("modality") or find("ttl"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _model(around: _Said) -> str | None:
    for name in ("model", "modelVersion", "model_version"):
        if isinstance(value := around(name), str) and value:
            return value
    metadata = around("response_metadata")
    return None if metadata is None else _text(_at(metadata, "model_name")) or _text(_at(metadata, "model"))


def _tier(said: _Said, around: _Said) -> str | None:
    """Return the tier that served the call, as the provider spells it."""
    if said("speed") == "fast":  # Anthropic's fast mode has prices of its own
        return "fast"
    for name in ("service_tier", "serviceTier", "trafficType", "traffic_type"):
        if (value := said(name)) is not None and (tier := _spelled(value)):
            return tier
    if (value := around("service_tier")) is not None and (tier := _spelled(value)):
        return tier
    for holder, name in (("serviceTier", "type"), ("response_metadata", "service_tier")):
        if (found := around(holder)) is not None and (tier := _spelled(_at(found, name))):
            return tier
    return None


def _spelled(value: object) -> str | None:
    if type(value) is str:
        return value or None
    return _text(getattr(value, "value", value))  # SDKs have enums here


def _provider_cost(said: object, block: object) -> Decimal | None:
    """Return what OpenRouter says it billed; with the user's own key, what the upstream provider bills is on top."""
    cost = _dollars(said)
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


def _flags(said: _Said, shape: Shape, counts: Mapping[str, int]) -> tuple[str, ...]:
    flags: tuple[str, ...] = ()
    inputs, outputs = counts.get("input_tokens", 0), counts.get("output_tokens", 0)
    total = said(shape.total) if shape.total else None
    if isinstance(total, int) and total != inputs + outputs:
        flags += ("total_mismatch",)
    if outputs and not inputs:
        flags += ("input_missing",)
    if shape.unsplit_writes and (written := counts.get("cache_write_tokens", 0)):
        split = counts.get("cache_write_5m_tokens", 0) + counts.get("cache_write_1h_tokens", 0)
        if written > split:
            flags += ("cache_ttl_unknown",)
    return flags


def _lines(
    block: object, counts: dict[str, int]
) -> tuple[tuple[str | None, dict[str, int], tuple[str, ...]], ...]:
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
        extra.append((_text(_at(step, "model")), parts, _flags(partial(_at, step), ANTHROPIC, parts)))
    if not extra:
        return ()
    return (None, dict(counts), _flags(partial(_at, block), ANTHROPIC, counts)), *extra
