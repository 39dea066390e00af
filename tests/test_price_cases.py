"""Recorded responses of many providers: what they report, and what it costs."""

from __future__ import annotations

import json
import random
from collections import ChainMap, UserDict
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers

from maestro_core.errors import PriceNotFound
from maestro_core.prices import price, worst_case
from maestro_core.prices.names import entries, find
from maestro_core.prices.tiers import CONTEXTS
from maestro_core.usage import Usage

_LINES = (Path(__file__).parent / "data" / "price_cases_dev.jsonl").read_text().splitlines()
_HEADER = json.loads(_LINES[0])["header"]
CASES = [json.loads(line) for line in _LINES[1:]]
AT = datetime.fromisoformat(_HEADER["priced_at"])

PRICED = [case for case in CASES if case["price"]]
UNPRICED = [case for case in CASES if not case["price"]]
# genai-prices does not know the path that the Gemini API puts in front of a model's name; the model is the same.
KNOWN_HERE = {"models/gemini-2.5-pro"}


def name(case: dict[str, Any]) -> str:
    return f"{case['provider']}-{case['api']}-{case['id']}"


def parsed(case: dict[str, Any]) -> Usage:
    return Usage.parse(case["provider"], case["body"], api=case["api"])


def test_the_data_is_complete():
    assert len(CASES) == _HEADER["cases"]
    assert len(PRICED) == _HEADER["priced"]


@pytest.mark.parametrize("case", CASES, ids=name)
def test_usage(case):
    usage = parsed(case)
    assert {kind: getattr(usage, kind) for kind in case["usage"]} == case["usage"]
    assert usage.tier == case.get("tier")


def wrapped(value: Any) -> Any:
    """Return the same with no plain dict in it, as some clients hand it over."""
    if isinstance(value, dict):
        return UserDict({key: wrapped(part) for key, part in value.items()})
    return [wrapped(part) for part in value] if isinstance(value, list) else value


def test_a_plain_dict_and_any_other_mapping_say_the_same():
    for case in CASES:
        plain, other = (
            Usage.parse(case["provider"], body, api=case["api"])
            for body in (case["body"], wrapped(case["body"]))
        )
        assert (plain, dict(plain.counts), plain.plain) == (other, dict(other.counts), other.plain), name(
            case
        )


@pytest.mark.parametrize("case", PRICED, ids=name)
def test_price(case):
    cost = price(case["provider"], case["model"], parsed(case), at=AT)
    picos = case.get("price_all_iterations", case["price"])["pico"]
    assert sum(Fraction(line.picos) for line in cost.lines) == picos
    assert cost.nanos == round(Fraction(picos, 1000))


def test_agrees_with_the_books_own_calculator_on_every_model():
    """An independent oracle, wherever it does not fall back to a rate of another kind."""
    rng = random.Random(3)
    agreed = 0
    for entry in entries():
        provider = next(p for p in providers if p.id == entry.provider)
        for tier in ("standard", *CONTEXTS) if entry.model.price_variants else ("standard",) * 2:
            counts = random_counts(rng)
            at = AT + timedelta(minutes=rng.randrange(-400_000, 400_000))
            context = dict(ChainMap(*CONTEXTS.get(tier, ())))
            try:
                if find(entry.provider, entry.model.id).model is not entry.model:
                    continue  # an id that is no name
                cost = price(entry.provider, entry.model.id, Usage(**counts), at=at, tier=tier)
            except PriceNotFound:
                continue
            if not cost.unpriced:
                theirs = entry.model.calc_price(
                    genai_prices.Usage(**counts), provider, genai_request_timestamp=at, price_context=context
                )
                assert cost.nanos == round(Fraction(theirs.total_price) * 10**9), (
                    entry.model.id,
                    tier,
                    counts,
                    at,
                )
                agreed += 1
    assert agreed > 2_000


def random_counts(rng: random.Random) -> dict[str, int]:
    total = rng.choice((10, 50_000, 100_000, 100_001, 199_999, 200_000, 200_001, 272_001, 600_000))
    read = rng.randint(0, total)
    written = rng.choice((0, 0, rng.randint(0, total - read)))
    output = rng.randint(0, 9_000)
    return {
        "input_tokens": total,
        "cache_read_tokens": read,
        "cache_write_tokens": written,
        "cache_write_5m_tokens": written,
        "output_tokens": output,
        "output_reasoning_tokens": rng.randint(0, output),
        "web_searches": rng.choice((0, 0, 2)),
    }


@pytest.mark.parametrize("case", UNPRICED, ids=name)
def test_no_price(case):
    if case["model"] in KNOWN_HERE:
        assert price(case["provider"], case["model"], parsed(case), at=AT).nanos > 0
        return
    with pytest.raises(PriceNotFound):
        price(case["provider"], case["model"], parsed(case), at=AT)


@pytest.mark.parametrize("case", PRICED, ids=name)
def test_the_bound_covers_the_price(case):
    usage = parsed(case).total
    cost = price(case["provider"], case["model"], parsed(case), at=AT)
    if cost.unpriced:
        return  # a lower bound
    modalities = frozenset(m for m in ("audio", "image", "video") if getattr(usage, f"input_{m}_tokens") or
                           getattr(usage, f"output_{m}_tokens"))  # fmt: skip
    bound = worst_case(
        case["provider"],
        case["model"],
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        at=AT,
        fees={"web_searches": usage.web_searches} if usage.web_searches else None,
        modalities=modalities | {"text"},
    )
    assert bound.nanos >= cost.nanos
