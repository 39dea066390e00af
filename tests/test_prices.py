"""Worked bills, and everything that has to be refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from maestro_core.errors import PriceNotFound
from maestro_core.prices import closest, describe, price, price_book, worst_case
from maestro_core.prices.names import entries
from maestro_core.usage import Usage

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
CACHED_CLAUDE = Usage(
    input_tokens=61_000,
    cache_read_tokens=50_000,
    cache_write_tokens=10_000,
    cache_write_5m_tokens=4_000,
    cache_write_1h_tokens=6_000,
    output_tokens=1_500,
    web_searches=3,
)
TEN_ONE = Usage(input_tokens=10_000, output_tokens=1_000)


@pytest.mark.parametrize(
    ("provider", "model", "usage", "tier", "at", "dollars"),
    [
        # The comments give the numbers of the worked cases; those of layers are in test_layers.py.
        # 1: reasoning is inside the output
        ("openai", "gpt-5.4", Usage(input_tokens=12_000, cache_read_tokens=8_000, output_tokens=3_000, output_reasoning_tokens=2_400), None, AT, "0.057"),
        # 2: beyond 272k every token costs more, cached ones count towards the length
        ("openai", "gpt-5.4", Usage(input_tokens=300_000, cache_read_tokens=200_000, output_tokens=2_000), None, AT, "0.645"),
        ("openai", "gpt-5.4", Usage(input_tokens=272_000), None, AT, "0.68"),
        ("openai", "gpt-5.4", Usage(input_tokens=272_001), None, AT, "1.360005"),
        # 3, 4: audio
        ("openai", "gpt-audio", Usage(input_tokens=1_500, input_audio_tokens=500, output_tokens=500, output_audio_tokens=300), None, AT, "0.0397"),
        ("openai", "gpt-realtime", Usage(input_tokens=8_000, input_audio_tokens=6_000, cache_read_tokens=5_500, cache_audio_read_tokens=4_000, output_tokens=1_500, output_audio_tokens=1_200), None, AT, "0.1498"),
        # 5: written to the cache unasked, at priority, beyond 272k
        ("openai", "gpt-6-astra", Usage(input_tokens=300_000, cache_write_tokens=300_000, output_tokens=1_000), "priority", AT, "15.15"),
        # 6
        ("anthropic", "claude-sonnet-5", CACHED_CLAUDE, None, AT, "0.091"),
        # 7: batch halves tokens, not searches
        ("anthropic", "claude-sonnet-5", CACHED_CLAUDE, "batch", AT, "0.0605"),
        # 9, 10
        ("anthropic", "claude-sonnet-4-5", Usage(input_tokens=250_000, output_tokens=2_000), None, datetime(2026, 4, 1, tzinfo=UTC), "1.545"),
        ("anthropic", "claude-haiku-5-5", Usage(input_tokens=120_000, output_tokens=1_000), None, AT, "0.0625"),
        ("anthropic", "claude-haiku-5-5", Usage(input_tokens=100_000, output_tokens=1_000), None, AT, "0.0105"),
        # 13
        ("google", "gemini-2.5-pro", Usage(input_tokens=250_000, cache_read_tokens=100_000, output_tokens=5_000, output_reasoning_tokens=4_000), None, AT, "0.475"),
        # 15: grounding, by the prompt before Gemini 3, by the query since
        ("google", "gemini-2.5-pro", Usage(web_searches=1), None, AT, "0.035"),
        ("google", "gemini-3-pro-preview", Usage(web_searches=5), None, AT, "0.07"),
        # 16: Bedrock's geographies
        ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", TEN_ONE, None, AT, "0.045"),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", TEN_ONE, None, AT, "0.0495"),
        # 20: half price outside the peak hours of 01-04 and 06-10 UTC
        ("deepseek", "deepseek-v4-pro", Usage(input_tokens=100_000, cache_read_tokens=60_000, output_tokens=5_000), None, AT, "0.03762"),
        ("deepseek", "deepseek-v4-pro", Usage(input_tokens=100_000, cache_read_tokens=60_000, output_tokens=5_000), None, AT.replace(hour=3), "0.07524"),
        ("deepseek", "deepseek-v4-pro", Usage(input_tokens=100_000, cache_read_tokens=60_000, output_tokens=5_000), None, AT.replace(hour=4), "0.03762"),
        # 21
        ("openai", "gpt-5.4", TEN_ONE, "standard", AT, "0.04"),
        ("openai", "gpt-5.4", TEN_ONE, "batch", AT, "0.02"),
        ("openai", "gpt-5.4", TEN_ONE, "flex", AT, "0.02"),
        ("openai", "gpt-5.4", TEN_ONE, "priority", AT, "0.08"),
        # the discounted cache rate is rounded on the sheet: 0.13, not 0.125
        ("openai", "gpt-5.4", Usage(input_tokens=1_000_000, cache_read_tokens=1_000_000), "batch", AT, "0.25"),
        # 22, 23, 24
        ("openai", "text-embedding-3-small", Usage(input_tokens=1_000_000), None, AT, "0.02"),
        ("openai", "gpt-image-1", Usage(input_tokens=100, output_tokens=4_160, output_image_tokens=4_160), None, AT, "0.1669"),
        ("google", "gemini-2.5-flash-image", Usage(input_tokens=100, output_tokens=1_290, output_image_tokens=1_290), None, AT, "0.03873"),
        # 27: xAI's threshold includes the number itself
        ("x-ai", "grok-4.5", Usage(input_tokens=199_999), None, AT, "0.399998"),
        ("x-ai", "grok-4.5", Usage(input_tokens=200_000), None, AT, "0.8"),
        # 30: a promotion with a known end
        ("google", "gemini-3.8-flash", Usage(input_tokens=1_000_000), None, datetime(2026, 12, 31, 23, 59, tzinfo=UTC), "0.75"),
        ("google", "gemini-3.8-flash", Usage(input_tokens=1_000_000), None, datetime(2027, 1, 1, tzinfo=UTC), "1.5"),
        ("mistral", "mistral-large-4", Usage(input_tokens=1_000_000), None, datetime(2026, 10, 25, tzinfo=UTC), "1.36"),
        # a fee for each request
        ("perplexity", "sonar-pro", Usage(input_tokens=1_000, output_tokens=1_000), None, AT, "0.032"),
    ],
)  # fmt: skip
def test_worked_bills(provider, model, usage, tier, at, dollars):
    cost = price(provider, model, usage, tier=tier, at=at)
    assert cost.usd == Decimal(dollars)
    assert cost.unpriced == ()
    assert (
        sum(line.count for line in cost.lines if line.kind.startswith(("input", "cache")))
        == usage.input_tokens
    )


def test_advisor_is_billed_at_its_own_model():  # case 11
    payload = {
        "model": "claude-sonnet-5",
        "usage": {
            "input_tokens": 2_417,
            "output_tokens": 133,
            "iterations": [
                {"type": "message", "input_tokens": 2_417, "output_tokens": 133},
                {
                    "type": "advisor_message",
                    "model": "claude-opus-4-8",
                    "input_tokens": 2_529,
                    "output_tokens": 38,
                },
            ],
        },
    }
    usage = Usage.parse("anthropic", payload)
    cost = price("anthropic", "claude-sonnet-5", usage, at=AT)
    assert cost.usd == Decimal("0.019759")
    assert {line.model for line in cost.lines} == {"claude-sonnet-5", "claude-opus-4-8"}
    assert (usage.input_tokens, usage.total.input_tokens) == (2_417, 4_946)


def test_compaction_is_billed_on_top():  # case 12
    step = {"type": "compaction", "input_tokens": 100, "cache_creation_input_tokens": 55_096, "output_tokens": 82,
            "cache_creation": {"ephemeral_5m_input_tokens": 55_096, "ephemeral_1h_input_tokens": 0}}  # fmt: skip
    message = {"type": "message", "input_tokens": 180, "output_tokens": 8}
    searches = {"server_tool_use": {"web_search_requests": 2}}
    block = {"input_tokens": 180, "output_tokens": 8, "iterations": [step, message]}
    assert price("anthropic", "claude-sonnet-4-6", Usage.parse("anthropic", block), at=AT).usd == Decimal(
        "0.2088"
    )
    with_searches = Usage.parse("anthropic", block | searches)
    assert price("anthropic", "claude-sonnet-4-6", with_searches, at=AT).usd == Decimal("0.2288")


@pytest.mark.parametrize(
    ("model", "queries", "dollars"), [("gemini-2.5-pro", 3, "0.035"), ("gemini-3-pro-preview", 5, "0.07")]
)
def test_grounding_is_bounded_by_its_searches(model, queries, dollars):  # case 15
    searches = 1 if "2.5" in model else queries
    bound = worst_case(
        "google", model, input_tokens=0, output_tokens=0, at=AT, fees={"web_searches": searches}
    )
    assert bound.usd == Decimal(dollars)


def test_rerank_has_no_rate_and_is_never_free():  # case 25
    with pytest.raises(PriceNotFound):
        price("cohere", "rerank-v4.0", Usage(rerank_searches=3), at=AT)


def test_unsplit_streamed_write_costs_as_the_dearer():
    block = {"input_tokens": 0, "cache_creation_input_tokens": 1_000_000, "output_tokens": 0}
    usage = Usage.parse("anthropic", block)
    assert "cache_ttl_unknown" in usage.flags
    assert price("anthropic", "claude-sonnet-5", usage, at=AT).usd == 4
    known = Usage.parse("anthropic", block | {"cache_creation": {"ephemeral_5m_input_tokens": 1_000_000}})
    assert price("anthropic", "claude-sonnet-5", known, at=AT).usd == Decimal("2.5")


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-sonnet-9-9"),
        ("anthropic", "claude-opus-4-12"),
        ("openai", "gpt-5.4-superultra"),
        ("openai", "gpt-4o-audio-preview-ultra"),
        ("google", "gemini-9-pro"),
        ("google", "gemini-3.8-flash-cyber"),
        ("google", "gemini-3.5-flash-9"),
        ("google", "gemini-3.5-flash-9-ultra"),
        ("google", "gemini-3.1-pro-preview-customtools"),
        ("anthropic", "claude-sonnet-4-5-thinking"),
        ("openrouter", "openai/gpt-5-mini:online"),
        ("google", "my-claude-sonnet-4-5"),
        ("openai-compatible", "gpt-5"),
        ("my-openai-proxy", "gpt-5"),
        ("vllm", "llama-3.3-70b"),
        ("aws", "us-gov.amazon.nova-lite-v1:0"),
        ("openai", ""),
        ("openai", None),
    ],
)
def test_unknown_models_have_no_price(provider, model):
    with pytest.raises(PriceNotFound):
        price(provider, model, TEN_ONE, at=AT)
    with pytest.raises(PriceNotFound):
        worst_case(provider, model, input_tokens=10, output_tokens=10, at=AT)


@pytest.mark.parametrize(
    ("provider", "model", "book"),
    [
        ("anthropic", "claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("openai", "gpt-4o-2024-11-20", "gpt-4o"),
        ("openai", "GPT-4o", "gpt-4o"),
        ("openai", "gpt-5-20250807", "gpt-5"),
        ("openai", "gpt-5-mini-2027-01-01", "gpt-5-mini"),
        ("openai", "ft:gpt-4o-2024-08-06:acme::A1b2", "ft:gpt-4o"),
        ("google", "models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("google", "publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("google", "gemini-2.5-flash-preview-09-2025", "gemini-2.5-flash"),
        ("google", "gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("google", "gemini-3.5-flash-002", "gemini-3.5-flash"),
        ("google", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("google", "claude-sonnet-4-6@default", "claude-sonnet-4-6"),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "regional.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("aws", "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
        ("openrouter", "anthropic/claude-4.5-sonnet-20250929", "anthropic/claude-sonnet-4.5"),
        ("azure", "gpt-5.4", "gpt-5.4"),
        ("bedrock", "us.amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
    ],
)  # fmt: skip
def test_aliases_and_dates_resolve(provider, model, book):
    cost = price(provider, model, TEN_ONE, at=AT)
    assert cost.price_id.partition(":")[2] == book


def test_every_name_that_the_book_lists_is_that_model():
    for entry in entries():
        # Some ids of the book are no names that a provider takes; none may be another model's.
        found = price(entry.provider, entry.model.id, Usage(), at=AT).price_id
        assert found.startswith(f"{entry.provider}:")


def test_near_names_are_offered():
    with pytest.raises(
        PriceNotFound, match=r"no model 'gpt-5-minj' of openai; closest are .*gpt-5-mini"
    ) as raised:
        price("openai", "gpt-5-minj", TEN_ONE, at=AT)
    assert "gpt-5-mini" in raised.value.closest
    assert closest("nobody", "x") == ()


@pytest.mark.parametrize(
    "spelling", ["default", "on_demand", "ON_DEMAND", "Standard", "standard_only", "auto"]
)
def test_spellings_of_the_standard_tier(spelling):
    assert price("openai", "gpt-5.4", TEN_ONE, tier=spelling, at=AT).usd == Decimal("0.04")


@pytest.mark.parametrize(
    ("spelling", "dollars"),
    [("ON_DEMAND_FLEX", "0.02"), ("FLEX", "0.02"), ("on_demand_priority", "0.08"), ("Priority", "0.08")],
)
def test_spellings_of_other_tiers(spelling, dollars):
    assert price("openai", "gpt-5.4", TEN_ONE, tier=spelling, at=AT).usd == Decimal(dollars)


@pytest.mark.parametrize(
    ("provider", "model", "tier"),
    [
        ("openai", "gpt-5.4", "bogus"),
        ("openai", "gpt-5.4", "scale"),
        ("openai", "gpt-4", "priority"),
        ("azure", "gpt-5.4", "priority"),  # OpenAI's price, which says nothing about Azure's tiers
        ("google", "gemini-2.5-flash", "priority"),
    ],
)
def test_tiers_without_rates_are_refused(provider, model, tier):
    with pytest.raises(PriceNotFound):
        price(provider, model, TEN_ONE, tier=tier, at=AT)
    with pytest.raises(PriceNotFound):
        price(provider, model, Usage(input_tokens=1, tier=tier), at=AT)
    with pytest.raises(PriceNotFound):
        worst_case(provider, model, input_tokens=1, output_tokens=1, tier=tier, at=AT)


def test_tier_before_its_rates_are_known_is_refused():
    with pytest.raises(PriceNotFound, match="2026-10-01"):
        price("openai", "gpt-5.4", TEN_ONE, tier="batch", at=datetime(2026, 10, 1, tzinfo=UTC))


def test_tier_of_the_usage_is_used():
    served = Usage(input_tokens=10_000, output_tokens=1_000, tier="priority")
    assert price("openai", "gpt-5.4", served, at=AT).usd == Decimal("0.08")
    assert price("openai", "gpt-5.4", served, tier="standard", at=AT).usd == Decimal("0.04")


@pytest.mark.parametrize("region", ["global", "not_available", None, "Global"])
def test_home_regions(region):
    assert price("anthropic", "claude-sonnet-5", TEN_ONE, region=region, at=AT).usd == Decimal("0.03")


def test_other_regions_are_refused():
    with pytest.raises(PriceNotFound, match="us"):
        price("anthropic", "claude-sonnet-5", TEN_ONE, region="us", at=AT)
    with pytest.raises(PriceNotFound):
        price("anthropic", "claude-sonnet-5", Usage(input_tokens=1, region="us"), at=AT)


@pytest.mark.parametrize(
    ("provider", "model", "usage", "unpriced"),
    [
        ("openai", "gpt-5-mini", Usage(input_tokens=100, input_audio_tokens=60), ("input_audio",)),
        ("openai", "gpt-5-mini", Usage(output_tokens=100, output_image_tokens=60), ("output_image",)),
        ("openai", "gpt-4o", Usage(input_tokens=100, code_executions=1), ("code_executions",)),
        ("openai", "gpt-5.4", Usage(input_tokens=100, cache_write_tokens=60), ("cache_write",)),
        ("openai", "text-embedding-3-small", Usage(input_tokens=100, output_tokens=5), ("output",)),
        ("mistral", "mistral-large-latest", Usage(input_tokens=100, web_searches=2), ("web_searches",)),
        ("cerebras", "qwen-3-coder-480b", TEN_ONE, ("input", "output")),
    ],
)
def test_kinds_without_a_rate_are_unpriced(provider, model, usage, unpriced):
    assert price(provider, model, usage, at=AT).unpriced == unpriced


def test_unpriced_tokens_count_at_least_as_what_includes_them():
    plain = price("openai", "gpt-5-mini", Usage(input_tokens=100), at=AT)
    audio = price("openai", "gpt-5-mini", Usage(input_tokens=100, input_audio_tokens=60), at=AT)
    assert audio.nanos == plain.nanos


def test_only_the_reviewed_list_is_free():
    free = price("openrouter", "google/gemini-2.0-flash-exp:free", TEN_ONE, at=AT)
    assert (free.nanos, free.unpriced) == (0, ())
    assert worst_case("google", "gemma-3-27b-it", input_tokens=10, output_tokens=10, at=AT).nanos == 0
    with pytest.raises(PriceNotFound):
        worst_case("cerebras", "qwen-3-coder-480b", input_tokens=10, output_tokens=10, at=AT)


def test_parts_that_exceed_their_total_are_charged_in_full():
    odd = Usage(input_tokens=10, cache_read_tokens=1_000_000, output_tokens=0)
    assert odd.flags == ("parts_exceed_total",)
    assert price("openai", "gpt-5.4", odd, at=AT).usd == Decimal("0.5")  # beyond 272k, as the parts say
    lost = Usage(output_image_tokens=1_290)
    assert price("google", "gemini-2.5-flash-image", lost, at=AT).usd == Decimal("0.0387")


def test_rounds_once_half_even():
    # 3 tokens at 62,500 picos are 187,500 picos; 1 is 62,500: both half a nano.
    assert (
        price(
            "anthropic", "claude-haiku-5-5", Usage(cache_write_tokens=3, input_tokens=3), at=AT, tier="batch"
        ).nanos
        == 188
    )
    assert (
        price(
            "anthropic", "claude-haiku-5-5", Usage(cache_write_tokens=1, input_tokens=1), at=AT, tier="batch"
        ).nanos
        == 62
    )


def test_naive_time_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        price("openai", "gpt-5.4", TEN_ONE, at=datetime(2026, 11, 20))  # noqa: DTZ001


def test_now_is_the_default():
    assert price("openai", "gpt-4", TEN_ONE).usd == Decimal("0.36")


def test_price_ids_tell_tier_and_interval():
    assert price("openai", "gpt-5.4", TEN_ONE, at=AT, tier="flex").price_id == "openai:gpt-5.4/flex"
    assert (
        price("mistral", "mistral-large-4", TEN_ONE, at=AT).price_id == "mistral:mistral-large-4@2026-10-29"
    )
    assert price("deepseek", "deepseek-v4-pro", TEN_ONE, at=AT.replace(hour=2)).price_id.endswith(
        "@01:00-04:00Z"
    )
    assert price_book().startswith("genai-prices 0.2.")


def test_description_lists_every_rate():
    rows = describe("openai", "gpt-5.4", at=AT)
    rates = {(row.kind, row.from_tokens): row.usd_per_million for row in rows}
    expected = {
        ("input", 0): Decimal("2.5"),
        ("input", 272_001): Decimal(5),
        ("cache_read", 0): Decimal("0.25"),
        ("output", 272_001): Decimal("22.5"),
    }
    assert rates.items() >= expected.items()
    assert {row.usd_each for row in rows if row.kind == "web_searches"} == {Decimal("0.01")}


def test_the_price_book_is_not_read_before_the_first_price():
    code = (
        "import sys, maestro_core.usage, maestro_core.prices, maestro_core.estimate;"
        "sys.exit('genai_prices' in sys.modules or 'pydantic' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env).returncode == 0


def test_the_example_of_the_documentation_runs():
    text = (Path(__file__).parents[1] / "docs" / "prices.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "prices.md", "exec"), {})  # noqa: S102 - that is the test
