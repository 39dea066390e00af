"""Recorded responses of many providers: what they report, and what it costs."""

from __future__ import annotations

import json
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from maestro_core.errors import PriceNotFound
from maestro_core.prices import price, worst_case
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


@pytest.mark.parametrize("case", PRICED, ids=name)
def test_price(case):
    cost = price(case["provider"], case["model"], parsed(case), at=AT)
    picos = case.get("price_all_iterations", case["price"])["pico"]
    assert sum(Fraction(line.picos) for line in cost.lines) == picos
    assert cost.nanos == round(Fraction(picos, 1000))


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
