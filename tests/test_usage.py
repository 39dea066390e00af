"""What usage is, and how it is read from payloads of every shape."""

from __future__ import annotations

import copy
import pickle
from decimal import Decimal
from types import SimpleNamespace

import pytest
from genai_prices.data_units import unit_data

from maestro_core.usage import KINDS, Usage

CHAT = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def test_the_vocabulary_is_the_price_books():
    assert set(unit_data) == KINDS


def test_counts_read_as_attributes():
    usage = Usage(input_tokens=12, output_tokens=0, cache_read_tokens=None)
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (12, 0, 0)
    assert dict(usage.counts) == {"input_tokens": 12, "output_tokens": 0}
    with pytest.raises(AttributeError):
        usage.input_token  # noqa: B018 - a misspelt kind is an error, not 0


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ({"input_tokens": -1}, ValueError),
        ({"input_tokens": 1.0}, TypeError),
        ({"input_tokens": True}, TypeError),
        ({"input_tokens": "7"}, TypeError),
        ({"prompt_tokens": 7}, TypeError),
    ],
)
def test_bad_counts_are_refused(counts, error):
    with pytest.raises(error, match=next(iter(counts))):
        Usage(**counts)


def test_immutable_comparable_copyable():
    usage = Usage(
        input_tokens=3, tier="flex", flags=["total_mismatch"], lines=[(None, Usage(input_tokens=3))]
    )
    with pytest.raises(AttributeError):
        usage.tier = "batch"
    with pytest.raises(AttributeError):
        del usage.tier
    with pytest.raises(TypeError):
        usage.counts["input_tokens"] = 4
    assert pickle.loads(pickle.dumps(usage)) == copy.deepcopy(usage) == copy.copy(usage) == usage
    assert hash(copy.copy(usage)) == hash(usage)
    assert usage != Usage(input_tokens=3)
    assert Usage(input_tokens=3) == Usage(input_tokens=3, output_tokens=0)
    assert "input_tokens=3" in repr(usage)


def test_adds_chunks():
    first = Usage(input_tokens=10, cache_read_tokens=4, provider_cost=Decimal("0.1"))
    second = Usage(input_tokens=1, output_tokens=5, provider_cost=Decimal("0.2"))
    both = first + second
    assert dict(both.counts) == {"input_tokens": 11, "cache_read_tokens": 4, "output_tokens": 5}
    assert both.provider_cost == Decimal("0.3")
    assert (first + Usage(output_tokens=1)).provider_cost is None
    with pytest.raises(ValueError, match="price them separately"):
        first + Usage(input_tokens=1, tier="batch")
    with pytest.raises(TypeError):
        first + 1


def test_adding_keeps_lines():
    advised = Usage(input_tokens=10, lines=[(None, Usage(input_tokens=10)), ("b", Usage(input_tokens=5))])
    both = advised + Usage(input_tokens=2, web_searches=1)
    assert Usage(web_searches=2, lines=[(None, Usage(input_tokens=1))]).total.web_searches == 2
    assert both.input_tokens == 12
    assert both.total.input_tokens == 17


def test_flags_parts_that_exceed_their_total():
    assert Usage(input_tokens=10, cache_read_tokens=8, cache_write_tokens=3).flags == ("parts_exceed_total",)
    assert Usage(output_tokens=10, output_reasoning_tokens=11).flags == ("parts_exceed_total",)
    assert Usage(output_image_tokens=1).flags == ("parts_exceed_total",)
    assert Usage(input_tokens=10, cache_read_tokens=8, input_audio_tokens=9).flags == ()


def test_a_cache_write_by_lifetime_is_part_of_what_was_written():
    assert Usage(input_tokens=9, cache_write_5m_tokens=4).flags == ("parts_exceed_total",)
    known = Usage(input_tokens=9, cache_write_tokens=5, cache_write_1h_tokens=4, output_tokens=2)
    assert known.flags == ()
    assert known.plain == (4, 0, 1, 4, 2)
    unknown = Usage(input_tokens=9, cache_write_tokens=5, flags=("cache_ttl_unknown",))
    assert unknown.plain == (4, 0, 0, 5, 0)


def test_only_an_ordinary_call_is_plain():
    assert Usage(input_tokens=9, input_audio_tokens=0, web_searches=0, output_tokens=1).plain == (
        9,
        0,
        0,
        0,
        1,
    )
    assert Usage(input_tokens=9, web_searches=1).plain is None
    assert Usage(input_tokens=9, lines=[(None, Usage(input_tokens=9))]).plain is None
    assert Usage(input_tokens=9, cache_read_tokens=10).plain is None


def test_what_is_null_was_not_reported():
    nothing = {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}
    other = {"input_tokens": None, "inputTokens": None, "total_tokens": None, "cost": None}
    usage = Usage.parse(
        "openai", {"usage": {**other, **CHAT, **nothing}, "service_tier": None, "model": None}
    )
    assert usage.counts == {"input_tokens": 12, "output_tokens": 5}
    assert (usage.tier, usage.model, usage.provider_cost, usage.flags) == (None, None, None, ())


@pytest.mark.parametrize(
    ("provider", "payload", "counts"),
    [
        ("openai", {"model": "gpt-5", "usage": CHAT}, {"input_tokens": 12, "cache_read_tokens": 8, "output_tokens": 5, "output_reasoning_tokens": 2}),
        ("openai-compatible", CHAT, {"input_tokens": 12, "cache_read_tokens": 8, "output_tokens": 5}),
        ("openai", {"usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 13}}, {"input_tokens": 9, "cache_read_tokens": 2, "output_reasoning_tokens": 1}),
        # the last event of a stream of the Responses API
        ("openai", {"type": "response.completed", "response": {"model": "gpt-5", "usage": {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}}}, {"input_tokens": 9, "output_tokens": 4}),
        ("openai", {"type": "response.done", "response": {"usage": {"input_tokens": 20, "output_tokens": 4, "total_tokens": 24, "input_token_details": {"cached_tokens": 5, "audio_tokens": 9, "cached_tokens_details": {"audio_tokens": 3}}}}}, {"cache_read_tokens": 5, "input_audio_tokens": 9, "cache_audio_read_tokens": 3}),
        # Anthropic reports cached tokens beside the input
        ("anthropic", {"usage": {"input_tokens": 3, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 5, "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 4}, "output_tokens": 2}}, {"input_tokens": 18, "cache_read_tokens": 10, "cache_write_tokens": 5, "cache_write_5m_tokens": 1, "cache_write_1h_tokens": 4}),
        ("anthropic", {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}, {"input_tokens": 3, "output_tokens": 1}),
        # thoughts stand beside the candidates, tool prompts beside the prompt
        ("google", {"usageMetadata": {"promptTokenCount": 10, "toolUsePromptTokenCount": 3, "candidatesTokenCount": 4, "thoughtsTokenCount": 6, "totalTokenCount": 23}}, {"input_tokens": 13, "output_tokens": 10, "output_reasoning_tokens": 6, "input_tool_tokens": 3}),
        ("google", {"usage_metadata": {"prompt_token_count": 10, "candidates_token_count": 4, "prompt_tokens_details": [{"modality": "AUDIO", "token_count": 7}]}}, {"input_tokens": 10, "output_tokens": 4, "input_audio_tokens": 7}),
        ("aws", {"usage": {"inputTokens": 2, "cacheReadInputTokens": 7, "cacheWriteInputTokens": 3, "cacheDetails": [{"ttl": "1h", "inputTokens": 3}], "outputTokens": 5, "totalTokens": 17}}, {"input_tokens": 12, "cache_read_tokens": 7, "cache_write_1h_tokens": 3}),
        ("cohere", {"usage": {"billed_units": {"input_tokens": 91.0, "output_tokens": 31.0}, "tokens": {"input_tokens": 1_622.0}}}, {"input_tokens": 91, "output_tokens": 31}),
        ("cohere", {"meta": {"billed_units": {"search_units": 3}}}, {"rerank_searches": 3}),
        # xAI and Perplexity count reasoning beside the completion
        ("x-ai", {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 7}, "total_tokens": 22}}, {"output_tokens": 12, "output_reasoning_tokens": 7}),
        ("perplexity", {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "reasoning_tokens": 7, "citation_tokens": 1, "num_search_queries": 2}}, {"output_tokens": 13, "output_citation_tokens": 1, "web_searches": 2}),
        ("mistral", {"usage_info": {"pages_processed": 4}}, {"input_document_pages": 4}),
        ("openai", {"usage": {"type": "duration", "seconds": 2.5}}, {"audio_seconds": 3}),
    ],
)  # fmt: skip
def test_reads_every_shape(provider, payload, counts):
    usage = Usage.parse(provider, payload)
    assert {kind: usage.counts[kind] for kind in counts} == counts
    assert usage.flags == ()


def test_reads_sdk_objects():
    details = SimpleNamespace(cached_tokens=8)
    block = SimpleNamespace(
        prompt_tokens=12, completion_tokens=5, total_tokens=17, prompt_tokens_details=details
    )
    response = SimpleNamespace(model="gpt-5-2025-08-07", service_tier="priority", usage=block)
    usage = Usage.parse("openai", response)
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (12, 8, 5)
    assert (usage.model, usage.tier) == ("gpt-5-2025-08-07", "priority")


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "whoever"])
def test_reads_langchain(provider):
    block = {
        "input_tokens": 1_000,
        "output_tokens": 200,
        "total_tokens": 1_200,
        "input_token_details": {"cache_read": 300, "cache_creation": 0, "ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 50},
        "output_token_details": {"reasoning": 64},
    }  # fmt: skip
    usage = Usage.parse(provider, block)
    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (1_000, 300, 150)
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == (100, 50)
    assert (usage.output_tokens, usage.output_reasoning_tokens) == (200, 64)
    assert usage.flags == ()


def test_langchain_streams_do_not_tell_the_caches_lifetime():
    details = {"cache_read": 300, "cache_creation": 500}
    block = {"input_tokens": 1_000, "output_tokens": 2, "total_tokens": 1_002, "input_token_details": details}
    assert Usage.parse("anthropic", block).flags == ("cache_ttl_unknown",)


def test_langchain_spells_details_with_the_tier():
    details = {"flex_cache_read": 300, "flex": 700}
    out = {"flex_reasoning": 5}
    block = {"input_tokens": 1_000, "output_tokens": 9, "total_tokens": 1_009, "input_token_details": details,
             "output_token_details": out}  # fmt: skip
    usage = Usage.parse("openai", block)
    assert (usage.cache_read_tokens, usage.output_reasoning_tokens, usage.tier) == (300, 5, "flex")


def test_reads_langchain_messages():
    messages = pytest.importorskip("langchain_core.messages")
    message = messages.AIMessage(
        "hi",
        usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
        response_metadata={"model_name": "gpt-5", "service_tier": "default"},
    )
    usage = Usage.parse("openai", message)
    assert (usage.input_tokens, usage.output_tokens, usage.model, usage.tier) == (3, 2, "gpt-5", "default")


def test_reads_tier_region_model_and_fast_mode():
    body = {
        "model": "claude-opus-5",
        "usage": {"input_tokens": 1, "output_tokens": 1, "service_tier": "batch", "inference_geo": "us"},
    }
    usage = Usage.parse("anthropic", body)
    assert (usage.model, usage.tier, usage.region) == ("claude-opus-5", "batch", "us")
    fast = Usage.parse(
        "anthropic",
        {"usage": {"input_tokens": 1, "output_tokens": 1, "speed": "fast", "service_tier": "standard"}},
    )
    assert fast.tier == "fast"
    vertex = {
        "usageMetadata": {"promptTokenCount": 1, "trafficType": "ON_DEMAND"},
        "modelVersion": "gemini-2.5-pro",
    }
    assert Usage.parse("google", vertex).tier == "ON_DEMAND"
    assert (
        Usage.parse(
            "aws", {"usage": {"inputTokens": 1, "outputTokens": 1}, "serviceTier": {"type": "flex"}}
        ).tier
        == "flex"
    )


@pytest.mark.parametrize(
    ("cost", "dollars"),
    [
        ({"cost": 0.0160614}, "0.0160614"),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.000924}}, "0.000924"),
        ({"cost": 0.01, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.02}}, "0.01"),
    ],
)
def test_reads_what_openrouter_billed(cost, dollars):
    usage = Usage.parse("openrouter", {"usage": {"prompt_tokens": 900, "completion_tokens": 69, **cost}})
    assert usage.provider_cost == Decimal(dollars)


def test_flags_totals_that_do_not_add_up():
    usage = Usage.parse("openai", {"usage": {**CHAT, "total_tokens": 99}})
    assert usage.flags == ("total_mismatch",)
    assert usage.input_tokens == 12


def test_flags_output_without_input():
    assert Usage.parse("anthropic", {"output_tokens": 7}).flags == ("input_missing",)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {},
        {"usage": None},
        {"usage": {}},
        {"model": "gpt-5"},
        "text",
        [],
        {"usage": {"total_tokens": 5}},
        object(),
    ],
)
def test_missing_usage_is_an_error(payload):
    with pytest.raises(ValueError, match="no usage in the payload of openai"):
        Usage.parse("openai", payload)


@pytest.mark.parametrize("value", [-1, True, "12", float("nan"), [3]])
def test_impossible_counts_are_errors(value):
    with pytest.raises(ValueError, match="prompt_tokens"):
        Usage.parse("openai", {"usage": {"prompt_tokens": value, "completion_tokens": 1}})


@pytest.mark.parametrize(
    ("model", "searches"),
    [("gemini-2.5-pro", 1), ("models/gemini-2.5-flash", 1), ("gemini-3-pro-preview", 3)],
)
def test_grounded_answers_say_in_their_metadata_how_often_they_searched(model, searches):
    from langchain_core.messages import AIMessage
    from langchain_core.outputs import ChatGeneration, LLMResult

    from maestro_langchain._convert import to_usage

    grounded = {"web_search_queries": ["price of cobalt", "of nickel", "of lithium"]}
    message = AIMessage(
        "fine",
        usage_metadata={"input_tokens": 10, "output_tokens": 2, "total_tokens": 12},
        response_metadata={"model_name": model, "grounding_metadata": grounded},
    )
    usage = to_usage("google", LLMResult(generations=[[ChatGeneration(message=message)]]))
    assert (usage.input_tokens, usage.web_searches, usage.model) == (10, searches, model)
    message.response_metadata["grounding_metadata"] = {"web_search_queries": []}
    assert to_usage("google", LLMResult(generations=[[ChatGeneration(message=message)]])).web_searches == 0
