"""What a call costs its user: own rates, the provider's figure, contracts, the book, and what is assumed."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage, SystemMessage

from maestro_core import Cap, MaestroError, PriceNotFound, Usage
from maestro_core.errors import SettingsError
from maestro_core.plugins import load
from maestro_core.prices.caching import asked_writes
from maestro_core.prices.entries import endpoint_price
from maestro_core.prices.layers import Layers, Spent, Worst
from maestro_core.quote import Quotes
from maestro_core.settings import Settings
from maestro_core.types import Call
from maestro_langchain import MaestroCallbackHandler

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
TEN_ONE = Usage(input_tokens=10_000, output_tokens=1_000)
# 0.057 on the sheet: research case 1
THINKING = Usage(
    input_tokens=12_000, cache_read_tokens=8_000, output_tokens=3_000, output_reasoning_tokens=2_400
)
SONNET = Usage(
    input_tokens=61_000, cache_read_tokens=50_000, cache_write_tokens=10_000, cache_write_5m_tokens=4_000,
    cache_write_1h_tokens=6_000, output_tokens=1_500, web_searches=3,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def layers(*entries):
    return Layers(Settings(prices=entries).prices)


def priced(entries, model, usage, *, at=AT, **more):
    provider, _, name = model.partition(":")
    return layers(*entries).price(Spent(provider=provider, model=name, usage=usage, at=at, **more))


def bound(entries, model, *, at=AT, input_tokens=10_000, output_tokens=1_000, **more):
    provider, _, name = model.partition(":")
    worst = Worst(
        provider=provider, model=name, input_tokens=input_tokens, output_tokens=output_tokens, at=at
    )
    return layers(*entries).bound(replace(worst, **more))


AZURE = {"provider": "azure", "model": "gpt-5.4"}


@pytest.mark.parametrize(
    ("entry", "model", "usage", "dollars", "price_id"),
    [
        # research cases 1 and 29: 15 % off, in any way to write it
        ({"discount": 0.15}, "openai:gpt-5.4", THINKING, "0.04845", "discount 0.15 of openai:gpt-5.4"),
        ({"discount": "0.15"}, "openai:gpt-5.4", THINKING, "0.04845", "discount 0.15 of openai:gpt-5.4"),
        ({"discount": Decimal("0.15")}, "openai:gpt-5.4", THINKING, "0.04845", "discount 0.15 of openai:gpt-5.4"),
        # 18: an EU data zone, which no response tells
        ({"multiplier": "1.1"}, "azure:gpt-5.4", TEN_ONE, "0.044", "multiplier 1.1 of azure:gpt-5.4"),
        ({"multiplier": "1.1", "discount": "0.5"}, "azure:gpt-5.4", TEN_ONE, "0.022",
         "multiplier 1.1 discount 0.5 of azure:gpt-5.4"),
        # 19: OpenAI's regional endpoints
        ({"multiplier": "1.1", "region": "eu"}, "openai:gpt-5.4", Usage(input_tokens=1_000_000, region="eu"), "5.5",
         "multiplier 1.1 of openai:gpt-5.4"),
        # 8: tokens 1.1 times, searches not
        ({"multiplier": "1.1", "region": "us"}, "anthropic:claude-sonnet-5",
         Usage(**SONNET.counts, region="us"), "0.0971", "multiplier 1.1 of anthropic:claude-sonnet-5"),
        ({"multiplier": "1.1", "region": "us", "fees": True}, "anthropic:claude-sonnet-5",
         Usage(**SONNET.counts, region="US"), "0.1001", "multiplier 1.1 of anthropic:claude-sonnet-5"),
        # 17: the book has only standard rates
        ({"multiplier": "1.75", "tier": "priority"}, "aws:amazon.nova-pro-v1:0",
         Usage(**TEN_ONE.counts, tier="priority"), "0.0196", "multiplier 1.75 of aws:amazon.nova-pro-v1:0"),
        ({"multiplier": "0.5", "tier": "flex"}, "aws:amazon.nova-pro-v1:0",
         Usage(**TEN_ONE.counts, tier="flex"), "0.0056", "multiplier 0.5 of aws:amazon.nova-pro-v1:0"),
        # own rates, for a model that the book has and for one that it has not
        ({"input": "2", "output": "8", "cached": "0.2"}, "openai:gpt-5.4", THINKING, "0.0336", "user:openai:gpt-5.4"),
        ({"input": "2", "output": "8", "reasoning": "10"}, "openai:gpt-5.4", THINKING, "0.0528", "user:openai:gpt-5.4"),
        ({"input": 1, "output": 1}, "vllm:llama-70b", TEN_ONE, "0.011", "user:vllm:llama-70b"),
        ({"input": 1, "output": 1, "per_request": "0.5"}, "vllm:llama-70b", TEN_ONE, "0.511", "user:vllm:llama-70b"),
        ({"per_request": "0.5"}, "vllm:llama-70b", TEN_ONE, "0.5", "user:vllm:llama-70b"),
        ({"input": "2", "output": "10", "cached": "0", "cache_write": "2.5", "cache_write_1h": "4", "per_search": "0.02"},
         "anthropic:claude-sonnet-5", SONNET, "0.111", "user:anthropic:claude-sonnet-5"),
        ({"free": True}, "ollama:llama3", SONNET, "0", "user:ollama:llama3"),
    ],
)  # fmt: skip
def test_worked_prices(entry, model, usage, dollars, price_id):
    provider, _, name = model.partition(":")
    found = priced([{"provider": provider, "model": name, **entry}], model, usage)
    assert (found.cost.usd, found.cost.unpriced) == (Decimal(dollars), ())
    assert found.cost.price_id.startswith(price_id)
    assert sum(line.picos for line in found.cost.lines) == found.cost.nanos * 1_000


def test_a_machine_by_the_hour_is_shared_by_the_calls_on_it():
    gpus = {"provider": "vllm", "model": "llama", "per_hour": "20", "concurrency": 16, "timeout_s": 60}
    found = priced([gpus], "vllm:llama", TEN_ONE, latency_ms=12_000)  # research case 28
    assert (found.cost.nanos, found.estimated, found.sheet_nanos) == (4_166_667, False, None)
    assert bound([gpus], "vllm:llama").nanos == 20_833_334  # a minute
    assert (
        bound([gpus], "vllm:llama").nanos
        > priced([gpus], "vllm:llama", TEN_ONE, latency_ms=60_000).cost.nanos
    )
    unknown = priced([gpus], "vllm:llama", TEN_ONE)
    assert (unknown.cost.nanos, unknown.estimated) == (20_833_333, True)


def test_kinds_without_a_declared_rate_are_unpriced():
    own = {"provider": "openai", "model": "gpt-5.4", "input": "2", "output": "8"}
    assert priced([own], "openai:gpt-5.4", THINKING).cost.unpriced == ()  # a cached token is billed as input
    searched = Usage(**TEN_ONE.counts, web_searches=2, cache_write_tokens=5)
    assert set(priced([own], "openai:gpt-5.4", searched).cost.unpriced) == {"web_searches", "cache_write"}


# -- which layer wins


def test_the_first_layer_that_says_something_wins():
    own = {"provider": "openrouter", "model": "openai/gpt-5-mini", "input": "9", "output": "9"}
    off = {"provider": "openrouter", "discount": "0.5"}
    assumed = {"model": "*", "input": "50", "output": "50"}
    reported = Usage(**TEN_ONE.counts, provider_cost=Decimal("0.0123"))
    asked = "openrouter:openai/gpt-5-mini"
    sheet = priced([], asked, TEN_ONE).cost
    found = [
        priced(entries, asked, usage)
        for entries, usage in (
            ([assumed, off, own], reported), ([assumed, off], reported), ([assumed, off], TEN_ONE), ([assumed], TEN_ONE),
        )
    ]  # fmt: skip
    assert [each.layer for each in found] == ["user", "provider", "contract", "book"]
    assert [each.cost.usd for each in found] == [
        Decimal("0.099"), Decimal("0.0123"), sheet.usd / 2, sheet.usd,
    ]  # fmt: skip
    assert {each.sheet_nanos for each in found} == {sheet.nanos}
    unknown = priced([off, assumed], "openrouter:nobody/knows", TEN_ONE)
    assert (unknown.layer, unknown.cost.usd, unknown.estimated) == ("assumed", Decimal("0.55"), True)
    assert unknown.sheet_nanos is None


def test_what_openrouter_billed_counts_and_its_upstream_with_your_own_key():
    body = {"usage": {"prompt_tokens": 100, "completion_tokens": 10, "cost": 0.0160614}}
    usage = Usage.parse("openrouter", body)
    found = priced([], "openrouter:openai/gpt-5-mini", usage)
    assert (found.cost.usd, found.cost.price_id, found.layer) == (
        Decimal("0.0160614"),
        "provider",
        "provider",
    )
    assert found.sheet_nanos == 45_000
    body["usage"] |= {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}}
    upstream = Usage.parse("openrouter", body)
    assert priced([], "openrouter:openai/gpt-5-mini", upstream).cost.usd == Decimal("0.002")


def test_a_reported_zero_is_not_free_unless_the_book_says_so():
    zero = Usage(**TEN_ONE.counts, provider_cost=Decimal(0))
    assert priced([], "openrouter:openai/gpt-5-mini", zero).layer == "book"
    with pytest.raises(PriceNotFound):
        priced([], "openrouter:nobody/knows", zero)


def test_only_openrouter_is_trusted_with_its_own_figure():
    claimed = Usage(**TEN_ONE.counts, provider_cost=Decimal("0.000001"))
    assert priced([], "openai:gpt-5.4", claimed).cost.usd == Decimal("0.04")


def test_the_first_entry_that_fits_holds_and_other_names_of_a_model_fit():
    first = {**AZURE, "multiplier": "2"}
    rest = {"provider": "azure", "discount": "0.5"}
    assert priced([first, rest], "azure:gpt-5.4", TEN_ONE).cost.usd == Decimal("0.08")
    assert priced([rest, first], "azure:gpt-5.4", TEN_ONE).cost.usd == Decimal("0.02")
    mini = {"provider": "azure", "model": "gpt-5-mini", "multiplier": "2"}
    twice = priced([mini], "azure:gpt-5-mini-2025-08-07", TEN_ONE).cost.nanos
    assert twice == 2 * priced([], "azure:gpt-5-mini", TEN_ONE).cost.nanos
    assert priced([mini], "azure:gpt-5.4", TEN_ONE).layer == "book"
    assert priced([mini], "openai:gpt-5-mini", TEN_ONE).layer == "book"


def test_spellings_of_a_provider_are_one():
    entry = {"provider": "azure_openai", "multiplier": "2"}
    assert priced([entry], "azure:gpt-5.4", TEN_ONE).layer == "contract"


def test_dates_include_the_first_and_the_last_day():
    entry = {**AZURE, "discount": "0.5", "from": "2026-11-20", "until": "2026-11-21"}
    hours = {-13: "book", -12: "contract", 35: "contract", 36: "book"}
    for hour, layer in hours.items():
        assert priced([entry], "azure:gpt-5.4", TEN_ONE, at=AT + timedelta(hours=hour)).layer == layer


def test_a_tier_or_a_region_of_its_own_leaves_other_calls_alone():
    entry = {"provider": "anthropic", "region": "us", "multiplier": "1.1"}
    assert priced([entry], "anthropic:claude-sonnet-5", TEN_ONE).layer == "book"
    with pytest.raises(PriceNotFound, match="region"):
        priced([entry], "anthropic:claude-sonnet-5", Usage(**TEN_ONE.counts, region="eu"))
    flex = {"provider": "openai", "tier": "flex", "multiplier": "0.9"}
    assert priced([flex], "openai:gpt-5.4", TEN_ONE).layer == "book"
    assert priced([flex], "openai:gpt-5.4", TEN_ONE, tier="flex").cost.usd == Decimal("0.036")
    served = Usage(**TEN_ONE.counts, tier="default")
    assert priced([flex], "openai:gpt-5.4", served, tier="flex").layer == "book"


def test_an_advisors_steps_are_priced_at_their_own_rates():
    steps = [
        (None, Usage(input_tokens=1_000, output_tokens=0)),
        ("claude-opus-4-8", Usage(input_tokens=1_000, output_tokens=0)),
    ]
    usage = Usage(lines=steps, input_tokens=1_000)
    own = {"provider": "anthropic", "model": "claude-sonnet-5", "input": "1", "output": "1"}
    assert priced([own], "anthropic:claude-sonnet-5", usage).cost.usd == Decimal("0.006")
    advisor = {"provider": "anthropic", "model": "claude-opus-4-8", "input": "2", "output": "1"}
    assert priced([own, advisor], "anthropic:claude-sonnet-5", usage).cost.usd == Decimal("0.003")


# -- bounds


def test_bounds_follow_the_layers():
    plain = bound([], "openai:gpt-5.4").usd
    assert bound([{"provider": "openai", "discount": "0.5"}], "openai:gpt-5.4").usd == plain / 2
    own = {"provider": "openai", "model": "gpt-5.4", "input": "2", "output": "8"}
    assert bound([own], "openai:gpt-5.4").usd == Decimal("0.028")
    assert bound([own], "openai:gpt-5.4", n=3).usd == Decimal("0.044")
    # a region is known only afterwards, so the dearest counts
    us = {"provider": "openai", "region": "us", "multiplier": "1.1"}
    assert bound([us], "openai:gpt-5.4").usd == plain * Decimal("1.1")
    assert bound([{**us, "multiplier": "0.9"}], "openai:gpt-5.4").usd == plain


def test_a_discount_that_ends_within_the_hour_is_not_relied_on():
    entry = {**AZURE, "discount": "0.5", "until": "2026-11-20"}
    at = {11: 2, 23: 1}
    whole = bound([], "azure:gpt-5.4").nanos
    for hour, part in at.items():
        assert bound([entry], "azure:gpt-5.4", at=AT.replace(hour=hour, minute=30)).nanos * part == whole


def test_a_providers_own_figure_is_bounded_by_the_whole_price():
    off = {"provider": "openrouter", "discount": "0.5"}
    assert bound([off], "openrouter:openai/gpt-5-mini") == bound([], "openrouter:openai/gpt-5-mini")


def test_models_without_a_price_are_bounded_by_what_is_assumed():
    off, assumed = {"provider": "azure", "discount": "0.5"}, {"model": "*", "input": "50", "output": "100"}
    for entries in ([assumed], [off, assumed]):
        assert bound(entries, "azure:nobody-knows").usd == Decimal("0.6")
    with pytest.raises(PriceNotFound):
        bound([off], "azure:nobody-knows")
    with pytest.raises(PriceNotFound):
        bound([{**assumed, "provider": "openai"}], "azure:nobody-knows")


def test_auto_is_bounded_by_the_dearer_of_both_tiers():
    tier = {"provider": "aws", "tier": "priority", "multiplier": "1.75"}
    standard = bound([tier], "aws:amazon.nova-pro-v1:0").nanos
    assert bound([tier], "aws:amazon.nova-pro-v1:0", tier="priority").nanos * 4 == standard * 7
    assert bound([tier], "aws:amazon.nova-pro-v1:0", tier="auto").nanos * 4 == standard * 7


def test_what_auto_may_turn_out_to_be_is_assumed_where_the_book_has_no_such_tier():
    assumed = {"model": "*", "input": "50", "output": "100"}
    mini, auto = "openrouter:openai/gpt-5-mini", {"tier": "auto"}
    served = Usage(**TEN_ONE.counts, tier="priority")
    assert (
        priced([assumed], mini, served, **auto).cost.usd
        == bound([assumed], mini, **auto).usd
        == Decimal("0.6")
    )
    assert bound([], mini, **auto) == bound([], mini)


RATES = st.integers(1, 10**8).map(lambda n: f"{n / 10**4:.4f}")
PLACES = st.fixed_dictionaries(
    {"provider": st.sampled_from(["openai", "anthropic", "openrouter", "vllm"])},
    optional={
        "model": st.sampled_from(["gpt-5.4", "claude-sonnet-5", "openai/gpt-5-mini", "llama"]),
        "tier": st.sampled_from(["flex", "priority", "default"]),
        "region": st.sampled_from(["us", "eu"]),
        "from": st.sampled_from(["2026-11-20", "2026-11-21"]),
        "until": st.sampled_from(["2026-11-21", "2026-12-31"]),
    },
)
WAYS = st.one_of(
    st.fixed_dictionaries(
        {"input": RATES, "output": RATES},
        optional={"cached": RATES, "cache_write": RATES, "cache_write_1h": RATES, "reasoning": RATES, "per_request": RATES},
    ),
    st.fixed_dictionaries({"discount": st.sampled_from(["0.15", 0.999, "0"]), "fees": st.booleans()}),
    st.fixed_dictionaries({"multiplier": st.sampled_from(["1.1", "0.3", 7])}),
    st.just({"free": True}),
    st.fixed_dictionaries({"per_hour": RATES, "concurrency": st.integers(1, 99), "timeout_s": st.just(30)}),
)  # fmt: skip
ENTRIES = st.lists(
    st.one_of(
        st.builds(lambda place, way: {**place, **way}, PLACES, WAYS),
        st.builds(lambda one, two: {"model": "*", "input": one, "output": two}, RATES, RATES),
    ),
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), entries=ENTRIES)
def test_whatever_is_configured_no_call_costs_more_than_its_bound(data, entries):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    entries = [e for e in entries if e.get("until", "2027") >= e.get("from", "2026")]
    provider, model = data.draw(
        st.sampled_from([
            ("openai", "gpt-5.4"), ("anthropic", "claude-sonnet-5"), ("openrouter", "openai/gpt-5-mini"), ("vllm", "llama"),
        ])
    )  # fmt: skip
    tier = data.draw(st.sampled_from([None, "flex", "priority", "auto"]))
    at = AT + timedelta(hours=data.draw(st.sampled_from([0, 11, 12, 35])), minutes=30)
    most_in, most_out = draw(0, 400_000), draw(0, 50_000)
    stack = layers(*entries)
    try:
        limit = stack.bound(Worst(provider=provider, model=model, input_tokens=most_in, output_tokens=most_out,
                                  at=at, tier=tier))  # fmt: skip
    except PriceNotFound:
        return
    total = draw(0, most_in)
    read = draw(0, total)
    written = draw(0, total - read)
    hour, out = draw(0, written), draw(0, most_out)
    regions = [None, *(e["region"] for e in entries if "region" in e and "multiplier" in e)]
    served = {"auto": ["default", "priority"]}.get(tier, [tier, None])
    usage = Usage(
        input_tokens=total, cache_read_tokens=read, cache_write_tokens=written, cache_write_5m_tokens=written - hour,
        cache_write_1h_tokens=hour, output_tokens=out, output_reasoning_tokens=draw(0, out),
        tier=data.draw(st.sampled_from(served)), region=data.draw(st.sampled_from(regions)),
    )  # fmt: skip
    spent = Spent(provider=provider, model=model, usage=usage, at=at + timedelta(minutes=draw(-20, 20)), tier=tier,
                  latency_ms=draw(0, 30_000))  # fmt: skip
    try:
        found = stack.price(spent)
    except PriceNotFound:  # it is unpriced, and settles at its hold
        return
    if not found.cost.unpriced:
        assert found.cost.nanos <= limit.nanos, (found, limit)


# -- the setting


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"provider": "azure"}, "it says no price"),
        ({"discount": "0.1"}, "no provider or model"),
        ({**AZURE, "discount": 1}, "free = true"),
        ({**AZURE, "multiplier": 0}, "free = true"),
        ({**AZURE, "input": "0", "output": 0}, "free = true"),
        ({**AZURE, "per_hour": "0"}, "free = true"),
        ({**AZURE, "input": 0.1}, "in quotes"),
        ({**AZURE, "input": "cheap"}, "not a number"),
        ({**AZURE, "input": "-1"}, "zero or more"),
        ({**AZURE, "discount": "nan"}, "zero or more"),
        ({**AZURE, "discount": "0.1", "input": "1"}, "one of them"),
        ({**AZURE, "free": True, "per_request": "1"}, "one of them"),
        ({**AZURE, "tier": "express", "input": "1"}, "express"),
        ({**AZURE, "concurrency": 4, "input": "1"}, "per_hour"),
        ({**AZURE, "fees": True, "input": "1"}, "discount or multiplier"),
        ({**AZURE, "discount": "0.1", "from": "2026-12-01", "until": "2026-11-01"}, "until is before from"),
        ({**AZURE, "discount": "0.1", "from": datetime(2026, 1, 1, 9, tzinfo=UTC)}, "the day alone"),
        ({"model": "*", "discount": "0.1"}, "nothing to discount"),
        ({"tool": "web_search"}, "per_call"),
        ({**AZURE, "per_call": "1"}, "per_call"),
        ({**AZURE, "discont": "0.1"}, "unknown key 'discont'"),
        ({"base_url": "gpu:8000/v1", "input": "1"}, "http://gpu:8000/v1"),
        ({"base_url": "http://gpu:port/v1", "input": "1"}, "base_url"),
        ({"endpoint": " ", "input": "1"}, "not a name"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_in_one_line(entry, says):
    with pytest.raises(SettingsError, match=says) as caught:
        Settings(prices=[entry])
    assert "\n" not in str(caught.value)
    assert "prices.0" in str(caught.value)


def test_entries_come_from_files_and_the_environment(tmp_path, monkeypatch):
    (tmp_path / "maestro.toml").write_text(
        '[[prices]]\nprovider = "azure"\nmodel = "gpt-5-mini"\ndiscount = 0.15\nfrom = 2026-01-01\n'
        '[[prices]]\ntool = "web_search"\nper_call = "0.05"\n',
        encoding="utf-8",
    )
    contract, tool = Settings().prices
    assert (contract.label, contract.holds(AT.date())) == ("discount 0.15", True)
    assert (tool.kind, tool.tool, tool.per_call) == ("tool", "web_search", Decimal("0.05"))
    assert layers(tool.model_dump(include={"tool"}) | {"per_call": "0.05"}).price(
        Spent(provider="openai", model="gpt-5.4", usage=TEN_ONE, at=AT)
    ).layer == "book"  # fmt: skip
    monkeypatch.setenv("MAESTRO_PRICES", '[{"provider": "azure", "multiplier": 1.1}]')
    assert [entry.label for entry in Settings().prices] == ["multiplier 1.1"]


# -- through the core


def run(make_maestro, usage, *, caps=(), provider="openai", model="gpt-5.4", prices=(), **more):
    maestro = make_maestro(caps=caps, prices=prices)
    call = Call(provider=provider, model=model, input="x" * 9_000, max_output_tokens=1_000, at=AT, **more)
    reservation = maestro.reserve(call)
    return reservation, maestro.settle(reservation, usage)


def test_a_record_keeps_what_the_book_says_beside_what_was_paid(make_maestro):
    prices = [{"provider": "openai", "discount": "0.5"}]
    reservation, record = run(make_maestro, TEN_ONE, prices=prices)
    assert (record.cost_nanos, record.sheet_nanos, record.estimated_nanos) == (20_000_000, 40_000_000, 0)
    assert record.price_id.startswith("discount 0.5 of openai:gpt-5.4")
    assert record.detail["layer"] == "contract"
    assert reservation.held_nanos == Quotes(make_maestro().plugins).bound(reservation.call).nanos / 2


def test_under_a_cap_an_unknown_model_is_refused_unless_something_is_assumed(make_maestro):
    capped = {"caps": [Cap(5)], "model": "nobody-knows"}
    with pytest.raises(MaestroError):
        run(make_maestro, TEN_ONE, **capped)
    prices = [{"model": "*", "input": "10", "output": "40"}]
    _, record = run(make_maestro, TEN_ONE, prices=prices, **capped)
    assert (record.cost, record.estimated_nanos) == (Decimal("0.14"), 140_000_000)
    assert (record.price_id, record.unpriced) == ("fallback:*:*", ())


def test_a_kind_that_the_user_did_not_price_settles_at_the_hold(make_maestro):
    prices = [{"provider": "openai", "input": "1", "output": "1"}]
    reservation, record = run(
        make_maestro, Usage(input_tokens=10, output_tokens=1, web_searches=1), caps=[Cap(5)], prices=prices
    )
    assert (record.cost_nanos, record.unpriced) == (reservation.held_nanos, ("web_searches",))


def test_free_has_to_be_said_and_is_then_free(make_maestro):
    prices = [{"provider": "ollama", "free": True}]
    reservation, record = run(
        make_maestro, TEN_ONE, caps=[Cap(1)], prices=prices, provider="ollama", model="llama3"
    )
    assert (reservation.held_nanos, record.cost_nanos, record.unpriced) == (0, 0, ())


def test_a_request_that_asks_for_a_tier_is_priced_at_it_where_the_response_is_silent(make_maestro):
    _, record = run(make_maestro, TEN_ONE, tier="priority")
    assert record.cost == Decimal("0.08")


# -- what a request lets its provider keep

LONG = "A text that is long enough to keep. " * 300
HOUR = {"type": "ephemeral", "ttl": "1h"}
FIVE = {"type": "ephemeral"}


def marked(control):
    return [{"type": "text", "text": LONG, "cache_control": control}]


def tool(**more):
    return {
        "name": "look_up",
        "description": "x",
        "input_schema": {"type": "object", "properties": {}},
        **more,
    }


WAYS_TO_MARK = {
    "not at all": ("none", lambda model: model, [HumanMessage(LONG)]),
    "a system block": ("5m", lambda model: model, [SystemMessage(marked(FIVE)), HumanMessage("hi")]),
    "a system block for an hour": ("1h", lambda model: model, [SystemMessage(marked(HOUR)), HumanMessage("hi")]),
    "a message's block": ("5m", lambda model: model, [HumanMessage(marked(FIVE))]),
    "a message's block for an hour": ("1h", lambda model: model, [HumanMessage([*marked(FIVE), *marked(HOUR)])]),
    "a tool": ("5m", lambda model: model.bind(tools=[tool(cache_control=FIVE)]), [HumanMessage(LONG)]),
    "a tool for an hour": ("1h", lambda model: model.bind(tools=[tool(cache_control=HOUR)]), [HumanMessage(LONG)]),
    "an argument": ("5m", lambda model: model.bind(cache_control=FIVE), [HumanMessage(LONG)]),
    "an argument for an hour": ("1h", lambda model: model.bind(cache_control=HOUR), [HumanMessage(LONG)]),
    "a tool without": ("none", lambda model: model.bind(tools=[tool()]), [HumanMessage(LONG)]),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_TO_MARK, ids=str)
def test_cache_marks_of_real_requests_are_seen(way, make_maestro, anthropic, provider):
    """The same mark stands in the request on the wire; without one, none does."""
    expected, prepare, messages = WAYS_TO_MARK[way]
    provider.reply = None  # it counts and bills what the request has
    maestro = make_maestro()
    seen = []
    quotes = Quotes(maestro.plugins)
    original = quotes.bound
    quotes.bound = lambda call: seen.append(call) or original(call)
    maestro.admission.quotes = quotes
    prepare(anthropic()).invoke(messages, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    assert [asked_writes(call) for call in seen] == [expected]
    sent = json.dumps(provider.requests[-1].body)
    assert ("cache_control" in sent, '"1h"' in sent) == (expected != "none", expected == "1h")
    record = next(iter(maestro.ledger.records()))
    assert record.cost_nanos <= record.held_nanos


def test_the_documented_tables_are_settings(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "prices.md").read_text(encoding="utf-8")
    (tmp_path / "maestro.toml").write_text(
        text.partition("```toml\n")[2].partition("```")[0], encoding="utf-8"
    )
    assert [entry.kind for entry in Settings().prices] == [
        "factor", "factor", "factor", "factor", "rates", "hourly", "rates", "factor", "rates", "rates", "tool",
    ]  # fmt: skip


class Marked:
    """A tool or a block of some framework, with its mark beside what it sends."""

    def __init__(self, **parts):
        self.__dict__ |= parts
        self.content = self  # some refer to themselves


@pytest.mark.parametrize(
    ("provider", "model", "input_", "tools", "expected"),
    [
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", [{"text": "x"}], [], "none"),
        (
            "aws",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            [{"cachePoint": {"type": "default"}}],
            [],
            "5m",
        ),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", [{"cachePoint": {"ttl": "1h"}}], [], "1h"),
        ("aws", "amazon.nova-pro-v1:0", "x", [], "1h"),  # may write unasked
        ("anthropic", "claude-sonnet-5", "cache_control", ["cache_control"], "none"),
        ("anthropic", "claude-sonnet-5", "x", [Marked(extras={"cache_control": FIVE})], "5m"),
        ("anthropic", "claude-sonnet-5", (Marked(cache_control=Marked(ttl="1h")),), [], "1h"),
        ("anthropic", "claude-sonnet-5", [[{"a": [{"b": ({"cache_control": HOUR},)}]}]], [], "1h"),
        ("google", "claude-sonnet-4-6@default", "x", [], "none"),
        ("openrouter", "anthropic/claude-sonnet-4.5", "x", [], "1h"),  # a gateway may add marks
        ("openai", "gpt-5.4", "x", [], "1h"),
    ],
)
def test_marks_of_any_shape_are_seen(provider, model, input_, tools, expected):
    call = Call(provider=provider, model=model, input=input_, tools=tools)
    assert asked_writes(call) == expected


# -- what a decision asks ---------------------------------------------------------------------------------------------

TOKENS = st.one_of(st.just(0), st.integers(0, 1_000), st.integers(50_000, 400_000))
WAYS_TO_PRICE = {
    "the book": {},
    "what was declared": {"declared": {"input": "0.15", "output": "0.615"}},
    "rates of one's own": {"prices": [{"model": "gpt-*", "input": "0.333", "output": "7.7"}]},
    "a discount": {"prices": [{"provider": "openai", "discount": "0.37"}]},
    "an assumption": {"prices": [{"model": "*", "input": 1, "output": 2}]},
}
# Three whose rates depend on the prompt's length, one with rates below a nano-dollar, one without a cache's, two unknown.
ASKED = [
    "openai:gpt-5.4", "google:gemini-2.5-pro", "anthropic:claude-sonnet-4-5", "avian:deepseek/deepseek-v4-pro", "openai:gpt-4",
    "openai:nobody-knows", "nobody:at-all",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS_TO_PRICE)
@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from(ASKED),
    counts=st.tuples(TOKENS, TOKENS, TOKENS, TOKENS, TOKENS),
    tier=st.sampled_from([None, "default", "priority", "scale"]),
    hours=st.integers(0, 24 * 500),
)
@example(model="avian:deepseek/deepseek-v4-pro", counts=(0, 1, 0, 0, 0), tier=None, hours=0)
def test_what_a_decision_expects_is_what_the_same_usage_costs(way, model, counts, tier, hours):
    entries = Settings(prices=WAYS_TO_PRICE[way].get("prices", ())).prices
    provider, _, name = model.partition(":")
    declared = WAYS_TO_PRICE[way].get("declared")
    own = endpoint_price(declared) if declared else None
    at, (new, read, written, hour, output) = AT - timedelta(hours=hours), counts
    usage = Usage(
        input_tokens=new + read + written + hour,
        cache_read_tokens=read,
        cache_write_tokens=written + hour,
        cache_write_1h_tokens=hour,
        output_tokens=output,
    )
    try:
        spent = Spent(provider=provider, model=name, usage=usage, at=at, tier=tier, declared=own)
        costs = Layers(entries).price(spent).cost.nanos
    except PriceNotFound:
        costs = None
    call = Call(provider=provider, model=name, tier=tier, price=own)
    assert Quotes(load(), entries).expected(call, counts, at) == costs


@pytest.mark.parametrize("way", WAYS_TO_PRICE)
@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from(ASKED),
    counts=st.fixed_dictionaries(
        {"input_tokens": TOKENS, "output_tokens": TOKENS},
        optional=dict.fromkeys(
            ("cache_read_tokens", "output_reasoning_tokens", "input_audio_tokens"), TOKENS
        ),
    ),
    asked=st.sampled_from([None, "default", "priority", "scale"]),
    served=st.fixed_dictionaries(
        {},
        optional={
            "tier": st.sampled_from(["default", "priority"]),
            "model": st.sampled_from(["gpt-5.4-mini", "gpt-5.4-2026-03-05", "nobody-knows"]),
            "region": st.sampled_from(["us", "global", "mars"]),
            "provider_cost": st.sampled_from([Decimal(0), Decimal("0.5")]),
        },
    ),
    hours=st.integers(0, 24 * 500),
)
@example("openai:gpt-5.4", {"input_tokens": 9, "output_tokens": 9}, None, {"tier": "priority"}, 0)
@example("openai:gpt-5.4", {"input_tokens": 9, "output_tokens": 9}, "priority", {"model": "gpt-5.4-mini"}, 0)
def test_the_short_way_to_settle_an_ordinary_call_agrees_with_the_long_one(
    way, model, counts, asked, served, hours
):
    entries = Settings(prices=WAYS_TO_PRICE[way].get("prices", ())).prices
    provider, _, name = model.partition(":")
    declared = WAYS_TO_PRICE[way].get("declared")
    own = endpoint_price(declared) if declared else None
    usage, at = Usage(**served, **counts), AT - timedelta(hours=hours)
    found = Layers(entries).plain(Call(provider=provider, model=name, tier=asked, price=own), usage, at)
    if found is not None:
        spent = Spent(provider=provider, model=name, usage=usage, at=at, tier=asked, declared=own)
        long = Layers(entries).price(spent)
        assert (found.nanos, found.price_id, found.unpriced) == (long.sheet_nanos, long.cost.price_id, ())
        assert (long.layer, long.estimated, long.cost.nanos) == ("book", False, found.nanos)


def test_an_ordinary_call_is_settled_the_short_way():
    call = Call(provider="openai", model="gpt-5.4")
    assert Layers().plain(call, TEN_ONE, AT).nanos == priced([], "openai:gpt-5.4", TEN_ONE).cost.nanos > 0
