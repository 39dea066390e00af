"""Tools that the provider runs itself: their fees and what they find are in the bound, and their uses in the bill."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from maestro_core import Cap, PriceNotFound, Usage, price
from maestro_core.estimate import context_window
from maestro_core.types import Call
from maestro_langchain import MaestroCallbackHandler
from maestro_langchain._convert import to_usage

SEARCH = {"type": "web_search_20250305", "name": "web_search"}


@pytest.fixture
def bound(make_maestro):
    def of(provider, model, *tools, **more):
        call = Call(provider=provider, model=model, input="hi", tools=tools, max_output_tokens=500, **more)
        return make_maestro().admission.quotes.bound(call)

    return of


def uses(cost):
    return {line.kind: line.count for line in cost.lines if "search" in line.kind}


@pytest.mark.parametrize(
    ("provider", "model", "tool", "more"),
    [
        ("anthropic", "claude-sonnet-5", {**SEARCH, "max_uses": 3}, {}),
        ("openai", "gpt-5-mini", {"type": "web_search"}, {"max_tool_calls": 3}),
    ],
)
def test_searches_and_what_they_find_fit_into_the_bound(bound, provider, model, tool, more):
    worst = bound(provider, model, tool, **more)
    window = context_window(provider, model)
    assert uses(worst) == {"web_searches": 3}
    # Three searches, and the model looks four times at a context that they may have filled.
    usage = Usage(input_tokens=4 * window, output_tokens=500, web_searches=3)
    assert price(provider, model, usage).nanos <= worst.nanos
    assert worst.nanos > 50 * bound(provider, model).nanos


@pytest.mark.parametrize(
    ("provider", "model", "tool", "fix"),
    [
        ("anthropic", "claude-sonnet-5", SEARCH, "set max_uses on the tool"),
        ("openai", "gpt-5-mini", {"type": "web_search_preview"}, "set max_tool_calls"),
        ("openai", "gpt-5-mini", {"type": "mcp", "server_url": "https://x"}, "set max_tool_calls"),
        ("google", "gemini-3-flash-preview", {"google_search": {}}, "maestro_estimate"),
    ],
)
def test_without_a_limit_the_error_names_the_one_to_set(bound, provider, model, tool, fix):
    with pytest.raises(PriceNotFound, match=fix):
        bound(provider, model, tool)


def test_tools_that_share_a_limit_are_held_at_the_dearest_uses_of_it(bound):
    web, files = {"type": "web_search"}, {"type": "file_search"}
    worst = bound("openai", "gpt-5-mini", web, files, max_tool_calls=5)
    window = context_window("openai", "gpt-5-mini")
    assert uses(worst) == {"web_searches": 5}, "a search of the web costs more than one of files"
    for searches in range(6):
        fees = {"web_searches": searches, "storage_searches": 5 - searches}
        usage = Usage(input_tokens=6 * window, output_tokens=500, **fees)
        assert price("openai", "gpt-5-mini", usage).nanos <= worst.nanos
    assert uses(bound("openai", "gpt-5-mini", {**web, "max_uses": 2}, files, max_tool_calls=5)) == {
        "web_searches": 2,
        "storage_searches": 3,
    }
    assert worst.nanos == bound("openai", "gpt-5-mini", web, max_tool_calls=5).nanos


@pytest.mark.parametrize("model", ["gpt-4o-search-preview", "gpt-4o-mini-search-preview-2025-03-11"])
def test_a_model_that_always_searches_needs_its_fee_declared(bound, make_maestro, model):
    with pytest.raises(PriceNotFound, match="per_request = the fee"):
        bound("openai", model)
    free = make_maestro()
    with free.call(provider="openai", model=model, input="hi", max_output_tokens=500) as call:
        record = call.settle(Usage(input_tokens=10, output_tokens=5))
    assert record.unpriced == ("web_searches",)
    rates = {"provider": "openai", "model": model, "input": "2.50", "output": "10", "per_request": "0.025"}
    capped = make_maestro(caps=[Cap("1")], prices=[rates])
    with capped.call(provider="openai", model=model, input="hi", max_output_tokens=500) as call:
        record = call.settle(Usage(input_tokens=10, output_tokens=5))
    assert record.cost_nanos == 25_000_000 + 10 * 2_500 + 5 * 10_000
    assert record.unpriced == ()


def test_a_tool_without_a_known_fee_has_no_bound(bound):
    with pytest.raises(PriceNotFound, match="code_executions"):
        bound("openai", "gpt-5-mini", {"type": "code_interpreter"}, max_tool_calls=1)


def test_grounding_is_one_fee_for_a_prompt_before_gemini_3_and_adds_no_input(bound):
    plain, grounded = (
        bound("google", "gemini-2.5-flash"),
        bound("google", "gemini-2.5-flash", {"google_search": {}}),
    )
    assert uses(grounded) == {"web_searches": 1}
    assert grounded.nanos - plain.nanos < 100_000_000


def test_a_choice_of_a_tool_is_no_second_tool(bound):
    tool = {**SEARCH, "max_uses": 2}
    assert uses(bound("anthropic", "claude-sonnet-5", [tool], {"type": SEARCH["type"]})) == {
        "web_searches": 2
    }


@pytest.mark.parametrize(
    "tool",
    [{"type": "function", "function": {"name": "web_search"}}, {"type": "bash_20250124", "name": "bash"}],
)
def test_tools_that_the_client_runs_cost_their_definition_only(bound, tool):
    assert bound("openai", "gpt-5-mini", tool).nanos < 2 * bound("openai", "gpt-5-mini").nanos + 1_000_000


def test_a_models_own_search_without_a_limit_is_refused_under_a_cap_before_it_is_sent(
    provider, openai, make_maestro
):
    model = openai(use_responses_api=True, max_tokens=100).bind_tools([{"type": "web_search"}])
    handler = MaestroCallbackHandler(make_maestro(caps=[Cap("100")]))
    with pytest.raises(PriceNotFound, match="max_tool_calls"):
        model.invoke("hi", config={"callbacks": [handler]})
    assert provider.requests == []
    model.invoke("hi", max_tool_calls=2, config={"callbacks": [handler]})
    assert len(provider.requests) == 1


ITEMS = [
    {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
    {"type": "web_search_call", "action": {"type": "open_page"}},
    {"type": "web_search_call"},
    {"type": "file_search_call"},
    {"type": "message"},
]


def test_searches_are_read_from_an_openai_response():
    usage = Usage.parse(
        "openai",
        {
            "model": "gpt-5-mini",
            "output": ITEMS,
            "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
        },
    )
    assert (usage.counts["web_searches"], usage.counts["storage_searches"]) == (2, 1)
    assert (
        price("openai", "gpt-5-mini", usage).usd
        > price("openai", "gpt-5-mini", Usage(input_tokens=10, output_tokens=5)).usd
    )


def test_searches_are_read_from_langchains_message():
    message = SimpleNamespace(
        content=ITEMS,
        additional_kwargs={},
        response_metadata={"model_name": "gpt-5-mini"},
        usage_metadata={"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
    )
    response = SimpleNamespace(generations=[[SimpleNamespace(message=message)]], llm_output=None)
    assert to_usage("openai", response).counts["web_searches"] == 2
