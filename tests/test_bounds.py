"""The bound before a call covers its price after it, for every model and any usage within what was reserved."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_core.errors import PriceNotFound
from maestro_core.prices import price, worst_case
from maestro_core.prices.names import entries
from maestro_core.prices.tiers import TIERS
from maestro_core.usage import Usage

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
# Lengths around every threshold of the price book.
LENGTHS = (
    0,
    1,
    1_000,
    32_001,
    100_000,
    100_001,
    128_001,
    199_999,
    200_000,
    200_001,
    256_001,
    272_000,
    272_001,
    600_000,
)


def any_text_usage(draw_int, input_tokens: int, output_tokens: int) -> Usage:
    """Draw usage that a text call with this reservation can report."""
    total = draw_int(0, input_tokens)
    read = draw_int(0, total)
    written = draw_int(0, total - read)
    hour = draw_int(0, written)
    out = draw_int(0, output_tokens)
    flags = ("cache_ttl_unknown",) if draw_int(0, 3) == 0 else ()
    return Usage(
        input_tokens=total,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_5m_tokens=0 if flags else written - hour,
        cache_write_1h_tokens=0 if flags else hour,
        output_tokens=out,
        output_reasoning_tokens=draw_int(0, out),
        flags=flags,
    )


def without_writes(usage: Usage) -> Usage:
    kept = {kind: count for kind, count in usage.counts.items() if not kind.startswith("cache_write")}
    return Usage(**kept)


def bounded(provider, model, usage, *, input_tokens, output_tokens, at, later, tier=None) -> bool:
    """Check one pair; False if the book has no bound for it, or the usage no full price."""
    try:
        bound = worst_case(
            provider, model, input_tokens=input_tokens, output_tokens=output_tokens, at=at, tier=tier
        )
    except PriceNotFound:
        return False
    cost = price(provider, model, usage, at=at + later, tier=tier)
    if cost.unpriced and set(cost.unpriced) <= {"cache_write", "cache_write_1h"}:  # it settles at its hold
        cost = price(provider, model, without_writes(usage), at=at + later, tier=tier)
    if cost.unpriced:
        return False
    assert cost.nanos <= bound.nanos, (provider, model, usage, cost, bound)
    return True


def test_every_model_of_the_book_at_every_length():
    rng = random.Random(20261123)
    checked = set()
    for entry in entries():
        for length in LENGTHS:
            output = rng.choice((0, 1, 700, 128_000))
            usage = any_text_usage(rng.randint, length, output)
            at = AT + timedelta(minutes=rng.randrange(60 * 24 * 500)) - timedelta(days=250)
            later = timedelta(seconds=rng.uniform(0, 3_600))
            if bounded(
                entry.provider,
                entry.model.id,
                usage,
                input_tokens=length,
                output_tokens=output,
                at=at,
                later=later,
            ):
                checked.add((entry.provider, entry.model.id))
    assert len(checked) > 2_000


def test_every_tier_of_every_model_that_has_variants():
    rng = random.Random(7)
    checked = 0
    for entry in entries():
        for tier in TIERS if entry.model.price_variants else ():
            for length in LENGTHS:
                usage = any_text_usage(rng.randint, length, 5_000)
                checked += bounded(entry.provider, entry.model.id, usage, input_tokens=length, output_tokens=5_000,
                                   at=AT, later=timedelta(0), tier=tier)  # fmt: skip
    assert checked > 2_000


KNOWN = [
    (e.provider, e.model.id) for e in entries() if e.provider in {"openai", "anthropic", "google", "deepseek"}
]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), pair=st.sampled_from(KNOWN), hours=st.floats(-5_000, 5_000), wait=st.floats(0, 3_600))
def test_any_usage_within_the_reservation(data, pair, hours, wait):
    reserved_in, reserved_out = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 10**5))
    usage = any_text_usage(lambda low, high: data.draw(st.integers(low, high)), reserved_in, reserved_out)
    at = AT + timedelta(hours=hours)
    bounded(
        *pair,
        usage,
        input_tokens=reserved_in,
        output_tokens=reserved_out,
        at=at,
        later=timedelta(seconds=wait),
    )


@pytest.mark.parametrize(
    ("model", "arguments", "dollars"),
    [
        # implicit writes at 1.25 times input, beyond 272k and at priority
        ("openai:gpt-6-astra", {"input_tokens": 300_000, "output_tokens": 1_000, "tier": "priority"}, "15.15"),
        ("openai:gpt-5.4", {"input_tokens": 10_000, "output_tokens": 1_000}, "0.04"),
        ("openai:gpt-5.4", {"input_tokens": 10_000, "output_tokens": 1_000, "n": 3}, "0.07"),
        ("openai:gpt-5.4", {"input_tokens": 10_000, "output_tokens": 1_000, "tier": "auto"}, "0.08"),
        # "auto" of a model that has no priority rates
        ("openai:gpt-4", {"input_tokens": 10_000, "output_tokens": 1_000, "tier": "auto"}, "0.36"),
        # Claude writes only when asked: 2 x, 1.25 x or 1 x of input
        ("anthropic:claude-sonnet-5", {"input_tokens": 10_000, "output_tokens": 1_000}, "0.05"),
        ("anthropic:claude-sonnet-5", {"input_tokens": 10_000, "output_tokens": 1_000, "cache_writes": "5m"}, "0.035"),
        ("anthropic:claude-sonnet-5", {"input_tokens": 10_000, "output_tokens": 1_000, "cache_writes": "none"}, "0.03"),
        ("anthropic:claude-sonnet-5", {"input_tokens": 0, "output_tokens": 0, "fees": {"web_searches": 4}}, "0.04"),
        ("openai:gpt-audio", {"input_tokens": 1_000, "output_tokens": 0}, "0.0025"),
        ("openai:gpt-audio", {"input_tokens": 1_000, "output_tokens": 0, "modalities": frozenset({"text", "audio"})}, "0.032"),
        ("perplexity:sonar-pro", {"input_tokens": 1_000, "output_tokens": 1_000}, "0.032"),
        ("google:gemini-2.5-pro", {"input_tokens": 200_000, "output_tokens": 1_000}, "0.26"),
        ("google:gemini-2.5-pro", {"input_tokens": 200_001, "output_tokens": 0}, "0.5000025"),
    ],
)  # fmt: skip
def test_worked_bounds(model, arguments, dollars):
    provider, _, name = model.partition(":")
    assert worst_case(provider, name, at=AT, **arguments).usd == Decimal(dollars)


def test_the_hour_ahead_counts():
    def bound(hour: int, minute: int) -> Decimal:
        at = AT.replace(hour=hour, minute=minute)
        return worst_case("deepseek", "deepseek-v4-pro", input_tokens=10**6, output_tokens=0, at=at).usd

    normal, peak = Decimal("0.66"), Decimal("1.32")
    assert [bound(12, 0), bound(4, 59), bound(5, 0), bound(9, 59), bound(10, 0)] == [
        normal,
        normal,
        peak,
        peak,
        normal,
    ]
    # the same again, out of order: what is kept must not leak into other times
    assert [bound(5, 0), bound(12, 0), bound(3, 59), bound(4, 0)] == [peak, normal, peak, normal]


def test_rounds_up():
    # 1 token at 12,500 picos is 12.5 nanos
    cost = worst_case("openai", "gpt-5-mini", input_tokens=1, output_tokens=0, at=AT, tier="flex")
    assert (cost.lines[0].picos, cost.nanos) == (125_000, 125)
    cost = worst_case(
        "anthropic",
        "claude-haiku-5-5",
        input_tokens=1,
        output_tokens=0,
        at=AT,
        tier="batch",
        cache_writes="5m",
    )
    assert (cost.lines[0].picos, cost.nanos) == (62_500, 63)


def test_lines_add_up():
    cost = worst_case("perplexity", "sonar-pro", input_tokens=1_000, output_tokens=1_000, at=AT)
    assert sum(line.picos for line in cost.lines) == cost.nanos * 1_000
    assert [line.kind for line in cost.lines] == ["input", "output", "requests"]


@pytest.mark.parametrize(
    ("model", "arguments", "says"),
    [
        ("openai:gpt-4", {"fees": {"code_executions": 1}}, "code_executions"),
        ("openai:gpt-4", {"fees": {"no_such_fee": 1}}, "no_such_fee"),
        ("openai:whisper-1", {}, "input"),
        ("openai:text-embedding-3-small", {"output_tokens": 5}, "output"),
        ("openai:gpt-5.4", {"tier": "express"}, "express"),
    ],
)
def test_what_has_no_price_has_no_bound(model, arguments, says):
    provider, _, name = model.partition(":")
    with pytest.raises(PriceNotFound, match=says):
        worst_case(provider, name, at=AT, **{"input_tokens": 1, "output_tokens": 0, **arguments})


def test_a_modality_without_a_rate_is_named():
    modalities = frozenset({"text", "audio"})
    cost = worst_case("openai", "gpt-5-mini", input_tokens=1, output_tokens=1, at=AT, modalities=modalities)
    assert "input_audio" in cost.unpriced


@pytest.mark.parametrize("arguments", [{"input_tokens": -1}, {"output_tokens": -1}, {"n": 0}])
def test_counts_must_make_sense(arguments):
    with pytest.raises(ValueError, match="zero or more"):
        worst_case("openai", "gpt-4", **{"input_tokens": 1, "output_tokens": 1, **arguments})
