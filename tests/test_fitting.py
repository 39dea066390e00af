"""How much a fitted call holds, and the output limit that the amount buys."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_core import Cap, Maestro
from maestro_core.errors import PriceNotFound
from maestro_core.fitting import Outputs, fit, tokens_for
from maestro_core.ledger._rules import Place, admit
from maestro_core.types import Attribution, Call, Fit, Hold, Meter, Refused

SOME = settings(max_examples=300, deadline=None)
METERS = [Meter((name,)) for name in ("customer", "team", "run")]

# One or two of each price shape in the book: flat, dearer above a context length, with reasoning, with cache writes.
MODELS = [
    ("openai", "gpt-4o-mini"), ("openai", "gpt-5"), ("openai", "gpt-5-mini"), ("openai", "o3"), ("openai", "gpt-4.1"),
    ("anthropic", "claude-sonnet-5"), ("anthropic", "claude-sonnet-4-5"), ("anthropic", "claude-haiku-4-5"),
    ("google", "gemini-2.5-pro"), ("google", "gemini-2.5-flash"), ("mistral", "mistral-large-latest"),
    ("groq", "llama-3.3-70b-versatile"), ("x-ai", "grok-4"), ("deepseek", "deepseek-chat"),
]  # fmt: skip

amounts = st.integers(0, 10_000)


@st.composite
def fits(draw):
    ceiling = draw(st.integers(1, 10_000))
    least = draw(st.integers(1, ceiling))
    comfort = draw(st.integers(least, ceiling))
    return Fit(draw(amounts), ceiling, comfort, least, draw(st.booleans()))


buckets = st.lists(st.tuples(st.integers(0, 100_000), amounts, amounts, amounts), min_size=1, max_size=3)


def decide(shape, rows):
    """Return what the ledgers' rule says: an amount, or the refusal; and what is free at the tightest bucket."""
    hold = Hold(
        "key", shape.fixed_nanos + shape.ceiling_nanos, "openai", "m", Attribution(),
        tuple((meter, limit) for meter, (limit, *_) in zip(METERS, rows, strict=False)), shape,
    )  # fmt: skip
    places = [
        (Place(meter, ("x",), None, (meter.id, ("x",), 0)), counter)
        for meter, (_, *counter) in zip(METERS, rows, strict=False)
    ]
    return admit(hold, places, 0), min(limit - sum(counter) for limit, *counter in rows)


@SOME
@given(fits(), buckets)
def test_a_hold_is_between_the_least_and_the_ceiling_and_never_above_what_is_free(shape, rows):
    amount, free = decide(shape, rows)
    if not isinstance(amount, Refused):
        assert shape.fixed_nanos + shape.least_nanos <= amount <= shape.fixed_nanos + shape.ceiling_nanos
        assert amount <= free


@SOME
@given(fits(), st.integers(0, 200_000))
def test_a_call_that_is_alone_takes_what_is_comfortable_and_at_the_end_what_is_left(shape, free):
    amount, _ = decide(replace(shape, rest=False), [(free, 0, 0, 0)])
    least, most = shape.fixed_nanos + shape.least_nanos, shape.fixed_nanos + shape.ceiling_nanos
    comfortable = shape.fixed_nanos + shape.comfort_nanos
    if free < least:
        assert isinstance(amount, Refused)
        assert amount.spent
    elif free < comfortable:
        assert amount == free
    elif free - shape.fixed_nanos >= 8 * shape.ceiling_nanos:
        assert amount == most  # the request's own limit is left alone
    else:
        assert comfortable <= amount <= most
        assert amount == comfortable or amount - shape.fixed_nanos <= (free - shape.fixed_nanos) // 8


@SOME
@given(fits(), st.integers(0, 200_000), st.integers(1, 10_000))
def test_a_call_waits_for_its_comfort_while_others_hold_unless_it_is_told_to_take_the_rest(shape, free, held):
    rows = [(free + held, 0, held, 0)]
    patient, _ = decide(replace(shape, rest=False), rows)
    hurried, _ = decide(replace(shape, rest=True), rows)
    alone, _ = decide(replace(shape, rest=False), [(free, 0, 0, 0)])
    assert isinstance(patient, Refused) == (free < shape.fixed_nanos + shape.comfort_nanos)
    if isinstance(alone, Refused):
        assert isinstance(hurried, Refused)
    else:
        assert hurried == alone
    if not isinstance(patient, Refused):
        assert patient == alone


@SOME
@given(fits(), st.integers(0, 200_000), st.integers(0, 200_000))
def test_more_money_never_buys_less(shape, some, more):
    first, _ = decide(shape, [(some, 0, 0, 0)])
    second, _ = decide(shape, [(some + more, 0, 0, 0)])
    if not isinstance(first, Refused):
        assert second >= first


@SOME
@given(fits(), buckets)
def test_a_refusal_is_spent_if_any_bucket_is_and_held_only_while_others_hold(shape, rows):
    refused, _ = decide(shape, rows)
    if isinstance(refused, Refused):
        needed = shape.fixed_nanos + shape.least_nanos
        assert refused.needed_nanos == needed
        assert refused.spent == any(spent + presumed + needed > limit for limit, spent, _, presumed in rows)
        assert refused.spent or refused.bucket.held > 0


# -- what models answer -----------------------------------------------------------------------------------------------


@SOME
@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=450), st.integers(1, 30_000))
def test_comfort_is_one_and_a_half_times_what_99_of_100_answers_stay_below(lengths, ceiling):
    outputs, call = Outputs(), Call(provider="openai", model="gpt-5-mini")
    for length in lengths:
        outputs.add(call, length)
    kept = sorted(lengths[-200:])
    if len(kept) < 50:
        assert outputs.comfort(call, ceiling) == math.ceil(ceiling / 2)
    else:
        p99 = kept[math.ceil(len(kept) * 99 / 100) - 1]
        assert outputs.comfort(call, ceiling) == min(ceiling, math.floor(1.5 * p99) + 1)


def test_every_model_and_agent_has_answers_of_its_own():
    outputs = Outputs()
    of = {
        (model, agent): Call(provider="openai", model=model, attribution=Attribution({}, (("agent", agent),)))
        for model in ("gpt-5", "gpt-5-mini")
        for agent in ("boss", "helper")
    }
    for number, call in enumerate(of.values(), start=1):
        for _ in range(50):
            outputs.add(call, 100 * number)
    assert [outputs.comfort(call, 8_000) for call in of.values()] == [151, 301, 451, 601]
    assert outputs.comfort(replace(of["gpt-5", "boss"], model="o3"), 8_000) == 4_000


# -- from dollars to tokens -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maestro():
    running = Maestro(ledger="memory:", caps=[Cap("1000000")])
    yield running
    running.close()


@pytest.mark.parametrize(("provider_id", "model"), MODELS, ids=lambda value: value)
def test_a_fitted_limit_costs_at_most_what_is_held(provider_id, model, maestro):
    chance = Random(model)
    quotes = maestro.admission.quotes
    for _ in range(60):
        call = Call(
            provider=provider_id,
            model=model,
            input="x" * chance.choice((0, 10, 3_000, 250_000, 900_000)),
            max_output_tokens=chance.randint(1, 30_000),
            n=chance.choice((1, 1, 3)),
            attempts=chance.choice((1, 1, 3)),
            least_output_tokens=chance.choice((1, 4_096)),
        )
        bound = quotes.bound(call)
        shape = fit(call, bound, call.max_output_tokens, 256, Outputs())
        assert shape.fixed_nanos + shape.ceiling_nanos == bound.nanos
        assert 0 < shape.least_nanos <= shape.comfort_nanos <= shape.ceiling_nanos
        output_nanos = chance.randint(shape.least_nanos, shape.ceiling_nanos)
        tokens = tokens_for(call, bound, output_nanos)
        least = min(call.max_output_tokens, 256)
        assert least <= tokens <= call.max_output_tokens + 1
        if tokens <= call.max_output_tokens:
            fitted = quotes.bound(replace(call, max_output_tokens=tokens))
            assert fitted.nanos <= shape.fixed_nanos + output_nanos
            more = quotes.bound(replace(call, max_output_tokens=tokens + 1))
            assert (
                more.nanos > shape.fixed_nanos + output_nanos - 2
            )  # two roundings: not a token is given away


def test_a_model_without_a_price_has_no_fit(maestro):
    with pytest.raises(PriceNotFound):
        maestro.admission.quotes.bound(Call(provider="openai", model="no-such-model", max_output_tokens=10))


# -- answers stay whole -----------------------------------------------------------------------------------------------


async def test_answers_stay_whole_under_a_cap(monkeypatch):
    """The short version of the benchmark: 96 calls, a cap worth 15."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    bench = importlib.import_module("bench_answers")
    result = await bench.serve(fit, calls=96, worth=15, seed=5)
    assert result.bill_nanos <= result.cap_nanos
    assert result.check == []
    assert result.held == 0
    assert result.refused_early == 0
    assert result.cut <= 1
    assert result.whole_share >= 0.8
