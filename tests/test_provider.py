"""The stand-in provider, driven by the real clients over HTTP, and its bill, checked against another price book."""

import asyncio
import gc
import json
import math
import os
import random
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import anthropic
import genai_prices
import httpx
import openai
import pytest
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

import maestro_core
from maestro_core.testing import Charge, FakeClock, FakeProvider, Reply
from maestro_core.testing import _bill as bill
from maestro_core.testing._schema import example
from maestro_core.testing._tokens import count_tokens, cut_tokens, filler, split_tokens

pytest_plugins = ["pytester"]

KINDS = ("chat", "responses", "messages")
AT = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def provider():
    # ChatAnthropic caches its HTTP clients for good; without keep-alive they leave no open sockets behind.
    with FakeProvider(keep_alive=False) as provider:
        yield provider


def model_for(kind, provider, **options):
    """Return LangChain's own client for one of the protocols."""
    common = {"api_key": "test", "max_retries": 0} | options
    if kind == "messages":
        return ChatAnthropic(model="claude-sonnet-5", base_url=provider.anthropic_url, **common)
    return ChatOpenAI(
        model="gpt-5-mini",
        base_url=provider.openai_url,
        stream_usage=True,
        use_responses_api=kind == "responses",
        **common,
    )


def post(provider, path="/v1/chat/completions", **body):
    usual = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]}
    return httpx.post(provider.url + path, json=usual | body, timeout=30)


def merged(chunks):
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


class Person(BaseModel):
    name: str
    age: int
    tags: list[str]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def shout(text: str) -> str:
    """Say it loudly."""
    return text.upper()


# --- the clients understand it -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_every_way_to_call_gives_the_same_answer_and_the_same_bill(provider, kind):
    model = model_for(kind, provider)
    answers = [
        model.invoke("hello world"),
        await model.ainvoke("hello world"),
        merged(list(model.stream("hello world"))),
        merged([chunk async for chunk in model.astream("hello world")]),
    ]
    assert {answer.text for answer in answers} == {"You said: hello world"}
    usages = [(a.usage_metadata["input_tokens"], a.usage_metadata["output_tokens"]) for a in answers]
    assert len(set(usages)) == 1
    assert [(c.input_tokens, c.output_tokens, c.protocol, c.status) for c in provider.charges] == [
        (*usages[0], kind, "complete")
    ] * 4
    assert provider.bill_nanos == 4 * provider.charges[0].nanos > 0
    assert provider.bill == Decimal(provider.bill_nanos) / 10**9
    assert [(r.status, r.stream) for r in provider.requests] == [
        (200, False), (200, False), (200, True), (200, True),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_parallel_tool_calls_arrive_whole(provider, kind, streaming):
    wanted = [("add", {"a": 1, "b": 2}), ("shout", {"text": "schön, " * 40})]
    provider.reply = Reply(text="I call.", tool_calls=wanted)
    model = model_for(kind, provider).bind_tools([add, shout])
    answer = merged(list(model.stream("go"))) if streaming else model.invoke("go")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == wanted
    assert answer.text == "I call."
    assert provider.requests[0].tool_names == ["add", "shout"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_tools_without_arguments_arrive(provider, kind, streaming):
    provider.reply = Reply(tool_calls=[("add", {}), ("shout", {})])
    model = model_for(kind, provider).bind_tools([add, shout])
    answer = merged(list(model.stream("go"))) if streaming else model.invoke("go")
    assert [call["name"] for call in answer.tool_calls] == ["add", "shout"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_agent_runs_through_two_parallel_tools(provider, kind):
    def script(request):
        if request.tool_results:
            return f"It is {' and '.join(request.tool_results)}."
        return Reply(tool_calls=[("add", {"a": 1, "b": 2}), ("shout", {"text": request.prompt})])

    provider.reply = script
    agent = create_agent(model_for(kind, provider), [add, shout])
    question = {"messages": [("user", "hey")]}
    for state in (agent.invoke(question), await agent.ainvoke(question)):
        assert state["messages"][-1].text == "It is 3 and HEY."
    assert len(provider.requests) == len(provider.charges) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_fits_the_schema(provider, kind, method):
    model = model_for(kind, provider).with_structured_output(Person, method=method)
    assert isinstance(model.invoke("who?"), Person)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_output_is_cut_at_the_limit_and_says_so(provider, kind, streaming):
    provider.reply = Reply(text="word " * 100, reasoning_tokens=3)
    name = "max_tokens" if kind == "messages" else "max_completion_tokens"
    model = model_for(kind, provider).bind(**{name: 10})
    answer = merged(list(model.stream("go"))) if streaming else model.invoke("go")
    assert answer.text == ("word " * 100)[: 7 * 4]
    assert answer.usage_metadata["output_tokens"] == 10 == provider.charges[0].output_tokens
    assert answer.usage_metadata["output_token_details"]["reasoning"] == 3
    assert provider.requests[0].max_output_tokens == 10
    facts = answer.response_metadata
    assert "length" in str(facts) or "max_tokens" in str(facts) or "max_output_tokens" in str(facts)


@pytest.mark.parametrize("streaming", [False, True])
def test_reasoning_can_eat_the_whole_limit(provider, streaming):
    provider.reply = Reply(text="never said", reasoning_tokens=500)
    model = model_for("chat", provider).bind(max_completion_tokens=100)
    answer = merged(list(model.stream("go"))) if streaming else model.invoke("go")
    assert (answer.text, answer.response_metadata["finish_reason"]) == ("", "length")
    assert provider.charges[0].status == "complete"
    assert provider.charges[0].reasoning_tokens == provider.charges[0].output_tokens == 100


def test_every_completion_of_n_is_billed(provider):
    provider.reply = Reply(text="x" * 40)
    choices = model_for("chat", provider, n=3).generate([[HumanMessage("hi")]]).generations[0]
    assert [choice.text for choice in choices] == ["x" * 40] * 3
    assert provider.charges[0].output_tokens == 30


def test_usage_comes_in_a_stream_only_where_it_is_asked_for(provider):
    silent = model_for("chat", provider).model_copy(update={"stream_usage": False})
    assert merged(list(silent.stream("hi"))).usage_metadata is None
    assert provider.bill_nanos > 0


@pytest.mark.parametrize("length", [1, 12])
def test_embeddings_are_unit_vectors_and_billed(provider, length):
    model = OpenAIEmbeddings(
        model="text-embedding-3-small", base_url=provider.openai_url, api_key="test",
        check_embedding_ctx_length=False, max_retries=0,
    )  # fmt: skip
    vectors = model.embed_documents(["abcd" * 1000] * length)
    assert {len(vector) for vector in vectors} == {1536}
    assert sum(x * x for x in vectors[0]) == pytest.approx(1)
    assert [(c.input_tokens, c.nanos) for c in provider.charges] == [(1000 * length, 20_000 * length)]


def test_a_continued_response_bills_the_conversation_again(provider):
    model = model_for("responses", provider, use_previous_response_id=True)
    first = model.invoke([HumanMessage("abcd" * 100)])
    model.invoke([HumanMessage("abcd" * 100), first, HumanMessage("abcd" * 10)])
    one, two = provider.charges
    assert len(provider.requests[1].messages) == 1
    assert two.input_tokens == one.input_tokens + one.output_tokens + 10
    with pytest.raises(openai.BadRequestError, match="not found"):
        model.invoke("hi", previous_response_id="resp_unknown")


def test_anthropic_counts_tokens_for_free(provider):
    model = model_for("messages", provider)
    assert model.get_num_tokens_from_messages([HumanMessage("abcd" * 25)]) == 25
    assert provider.charges == []


# --- caches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_a_marked_prefix_is_written_once_and_then_read(provider, ttl):
    mark = {"type": "ephemeral", "ttl": ttl}
    system = ("system", [{"type": "text", "text": "abcd" * 2000, "cache_control": mark}])
    model = model_for("messages", provider)
    first, second = (model.invoke([system, ("user", words)]) for words in ("one.", "two and more"))
    written = first.usage_metadata["input_token_details"]
    assert written[f"ephemeral_{ttl}_input_tokens"] == 2000
    assert second.usage_metadata["input_token_details"]["cache_read"] == 2000
    one, two = provider.charges
    assert (one.input_tokens, one.cache_write_tokens, one.cache_read_tokens) == (2001, 2000, 0)
    assert one.cache_write_1h_tokens == (2000 if ttl == "1h" else 0)
    assert (two.input_tokens, two.cache_write_tokens, two.cache_read_tokens) == (2003, 0, 2000)
    assert one.nanos > two.nanos


def test_a_mark_within_a_known_prefix_writes_nothing(provider):
    def blocks(*marked):
        mark = {"cache_control": {"type": "ephemeral"}}
        return [{"type": "text", "text": c * 40} | (mark if c in marked else {}) for c in "abc"]

    model = model_for("messages", provider)
    for marked in ("b", "ab", "abc"):
        model.invoke([("system", blocks(*marked)), ("user", "hi")])
    assert [(c.cache_write_tokens, c.cache_read_tokens) for c in provider.charges] == [
        (20, 0), (0, 20), (10, 20),
    ]  # fmt: skip


def test_a_streamed_cache_write_has_no_times_as_with_the_provider(provider):
    provider.reply = Reply(cache_write_1h_tokens=500, input_tokens=600)
    answer = merged(list(model_for("messages", provider).stream("hi")))
    assert answer.usage_metadata["input_tokens"] == 600
    assert answer.usage_metadata["input_token_details"]["cache_creation"] == 500
    assert provider.charges[0].cache_write_1h_tokens == 500


@pytest.mark.parametrize("kind", KINDS)
def test_scripted_usage_arrives_as_it_is_billed(provider, kind):
    provider.reply = Reply(input_tokens=1000, cache_read_tokens=300, output_tokens=200, reasoning_tokens=64)
    usage = model_for(kind, provider).invoke("hi").usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"]) == (1000, 200)
    assert usage["input_token_details"]["cache_read"] == 300
    assert usage["output_token_details"]["reasoning"] == 64
    charge = provider.charges[0]
    assert isinstance(charge, Charge)
    rates = (250, 25, 2000) if kind != "messages" else (2000, 200, 10_000)
    assert charge.nanos == 700 * rates[0] + 300 * rates[1] + 200 * rates[2]


# --- failures ----------------------------------------------------------------------------------

FAILURES = [
    (400, "BadRequestError"),
    (401, "AuthenticationError"),
    (403, "PermissionDeniedError"),
    (404, "NotFoundError"),
    (429, "RateLimitError"),
    (500, "InternalServerError"),
    (503, "InternalServerError"),
]


@pytest.mark.parametrize(("status", "name"), FAILURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_failures_are_the_sdks_own_errors_and_cost_nothing(provider, kind, status, name, streaming):
    provider.reply = Reply(status=status, error="no luck", retry_after=7)
    model = model_for(kind, provider)
    sdk = anthropic if kind == "messages" else openai
    # Anthropic's SDK has classes of its own for 503 and 529.
    with pytest.raises(getattr(sdk, {503: "APIStatusError"}.get(status, name)), match="no luck") as caught:
        list(model.stream("hi")) if streaming else model.invoke("hi")
    assert caught.value.response.headers["retry-after"] == "7"
    assert provider.requests[0].status == status
    assert provider.charges == []


def test_anthropic_can_be_overloaded(provider):
    provider.reply = Reply(status=529)
    with pytest.raises(anthropic.OverloadedError, match="overloaded_error"):
        model_for("messages", provider).invoke("hi")


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_malformed_arguments_reach_the_client_as_they_are(provider, kind):
    provider.reply = Reply(tool_calls=[("add", '{"a": ')])
    answer = model_for(kind, provider).bind_tools([add]).invoke("go")
    assert [call["args"] for call in answer.invalid_tool_calls] == ['{"a": ']


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_model_is_not_found(provider, kind):
    model = model_for(kind, provider).bind(model="gpt-99")
    with pytest.raises((openai.NotFoundError, anthropic.NotFoundError), match="gpt-99"):
        model.invoke("hi")
    assert provider.charges == []


def test_an_outage_can_be_written_as_a_rule(provider):
    provider.reply = lambda request: Reply(status=503) if 3 <= request.number <= 5 else None
    assert [post(provider).status_code for _ in range(7)] == [200, 200, 503, 503, 503, 200, 200]
    assert len(provider.charges) == 4


def test_a_list_answers_in_turn_and_then_echoes(provider):
    provider.reply = [Reply(status=429), "second"]
    answers = [post(provider) for _ in range(3)]
    assert answers[0].status_code == 429
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers[1:]]
    assert texts == ["second", "You said: hi"]
    provider.reset()
    assert (post(provider).status_code, provider.requests[0].number, provider.bill) == (429, 1, 0)


def test_a_script_that_raises_is_named_to_the_client(provider):
    provider.reply = lambda request: 1 / 0
    answer = post(provider)
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"messages": "text" * 3, "tools": [1]}, 400),
        ("/v1/chat/completions", {"model": ""}, 400),
        ("/v1/messages", {"model": "claude-sonnet-5"}, 400),
        ("/v1/responses", {"messages": None, "input": ""}, 400),
        ("/v1/embeddings", {"model": "text-embedding-3-small"}, 400),
        ("/v1/nowhere", {}, 404),
    ],
)
def test_malformed_requests_are_refused_and_cost_nothing(provider, path, body, status):
    answer = post(provider, path, **body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert provider.charges == []


def test_a_body_that_is_no_json_is_refused(provider):
    answer = httpx.post(f"{provider.openai_url}/chat/completions", content=b"{nonsense")
    assert answer.status_code == 400


def test_sdk_retries_are_visible_as_requests(provider):
    provider.reply = [Reply(status=429, retry_after=0.01), Reply(status=500, retry_after=0.01), "at last"]
    assert model_for("chat", provider, max_retries=2).invoke("hi").text == "at last"
    assert [request.status for request in provider.requests] == [429, 500, 200]
    assert len(provider.charges) == 1


# --- what a lost connection costs ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_call_whose_client_timed_out_is_billed_in_full(provider, kind, streaming):
    provider.reply = Reply(hang_s=60, text="x" * 400)
    model = model_for(kind, provider, timeout=0.4)
    with pytest.raises((openai.APITimeoutError, anthropic.APITimeoutError)):
        list(model.stream("hi")) if streaming else model.invoke("hi")
    provider.wait_idle()
    assert [(c.output_tokens, c.status) for c in provider.charges] == [(100, "undelivered")]
    assert provider.requests[0].status == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_dropped_connection_never_reached_a_model(provider, kind, streaming):
    provider.reply = Reply(drop=True)
    model = model_for(kind, provider)
    with pytest.raises((openai.APIConnectionError, anthropic.APIConnectionError)):
        list(model.stream("hi")) if streaming else model.invoke("hi")
    provider.wait_idle()
    assert (provider.charges, provider.requests[0].status) == ([], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_trouble_can_begin_and_end_at_run_time(provider, kind):
    model = model_for(kind, provider, timeout=1.5)
    seen = []
    for reply in (
        None,
        Reply(status=500),
        Reply(hang_s=math.inf),
        Reply(drop=True),
        Reply(cut_after=1),
        None,
    ):
        provider.reply = reply
        try:
            seen.append("".join(chunk.text for chunk in model.stream("hi")))
        except Exception:  # noqa: BLE001 - which, others test
            seen.append("failed")
    provider.wait_idle()
    assert seen == ["You said: hi", *["failed"] * 4, "You said: hi"]
    assert sorted(charge.status for charge in provider.charges) == [
        "complete",
        "complete",
        "cut",
        "undelivered",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_can_carry_any_header(provider, kind):
    provider.reply = Reply(status=429, headers={"retry-after-ms": "250", "x-should-retry": "false"})
    with pytest.raises((openai.RateLimitError, anthropic.RateLimitError)) as caught:
        model_for(kind, provider).invoke("hi")
    assert caught.value.response.headers["retry-after-ms"] == "250"
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_the_client_closes_is_billed_until_then(provider, kind):
    provider.reply = Reply(text="x" * 400, chunks=100, chunk_delay_s=0.05)
    stream = model_for(kind, provider).stream("hi")
    for chunk in stream:
        if chunk.text:
            break
    stream.close()
    # ChatAnthropic's generator leaves the connection to the garbage collector.
    gc.collect()
    provider.wait_idle()
    (charge,) = provider.charges
    assert charge.status == "abandoned"
    assert 1 <= charge.output_tokens < 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_is_cut_is_billed_for_its_chunks(provider, kind):
    provider.reply = Reply(text="x" * 400, chunks=100, cut_after=25, reasoning_tokens=10)
    seen = []
    with pytest.raises(Exception, match=r"closed|Connection error"):
        seen.extend(chunk.text for chunk in model_for(kind, provider).stream("hi"))
    assert "".join(seen) == "x" * 100
    assert [(c.output_tokens, c.status) for c in provider.charges] == [(35, "cut")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_may_end_in_an_error_event(provider, kind):
    provider.reply = Reply(text="x" * 400, chunks=100, cut_after=25, status=500, error="the model broke")
    seen = []
    # langchain-openai turns the event of the Responses API into a ValueError.
    with pytest.raises((openai.APIError, anthropic.APIStatusError, ValueError), match="the model broke"):
        seen.extend(chunk.text for chunk in model_for(kind, provider).stream("hi"))
    assert "".join(seen) == "x" * 100
    assert [(c.output_tokens, c.status) for c in provider.charges] == [(25, "cut")]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_connection_lost_before_the_headers(provider, streaming):
    provider.reply = Reply(text="x" * 400, cut_after=0)
    with pytest.raises(httpx.RemoteProtocolError):
        post(provider, stream=streaming)
    provider.wait_idle()
    assert [(c.output_tokens, c.status) for c in provider.charges] == [(0 if streaming else 100, "cut")]
    assert provider.requests[0].status == 0


def test_stopping_ends_what_hangs_and_leaves_no_thread():
    before = set(threading.enumerate())
    with FakeProvider(Reply(hang_s=600)) as provider:
        url, model = provider.url, model_for("chat", provider)
        waiting = threading.Thread(target=pytest.raises, args=(openai.APIConnectionError, model.invoke, "hi"))
        waiting.start()
        while not provider.requests:
            waiting.join(0.01)
    waiting.join()
    assert set(threading.enumerate()) == before
    assert [charge.status for charge in provider.charges] == ["undelivered"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with pytest.raises(RuntimeError, match="inside"):
        _ = provider.url


async def test_two_hundred_requests_at_once(provider):
    provider.reply = Reply(delay_s=0.2, input_tokens=1000, output_tokens=10)
    body = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}]}
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        calls = [client.post(f"{provider.openai_url}/chat/completions", json=body) for _ in range(200)]
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(request.number for request in provider.requests) == list(range(1, 201))
    assert provider.bill_nanos == 200 * (1000 * 1250 + 10 * 10_000)


def test_connections_are_kept_alive():
    with FakeProvider() as provider, httpx.Client() as client:
        body = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        for streaming in (True, False, True):
            client.post(f"{provider.openai_url}/chat/completions", json=body | {"stream": streaming})
        assert len(provider._server._sockets) == 1


# --- the bill is right --------------------------------------------------------------------------


def counts_at_random(rng):
    scale = rng.choice([10, 10_000, 150_000])
    read, short, long, plain = (rng.randrange(scale) for _ in range(4))
    return bill.Counts(
        input=plain + read + short + long,
        output=rng.randrange(scale),
        cache_read=read,
        cache_write_5m=short,
        cache_write_1h=long,
    )


@pytest.mark.parametrize("model", sorted(bill._TABLE))
def test_the_bill_agrees_with_genai_prices(model):
    rng = random.Random(model)
    for _ in range(60):
        counts = counts_at_random(rng)
        usage = {"input_tokens": counts.input, "cache_read_tokens": counts.cache_read}
        if "embedding" not in model:
            usage["output_tokens"] = counts.output
        if model.startswith("claude"):
            usage["cache_write_tokens"] = counts.cache_write
            usage["cache_write_1h_tokens"] = counts.cache_write_1h
        else:
            usage["cache_write_tokens"] = counts.cache_write
        provider_id = "anthropic" if model.startswith("claude") else "openai"
        price = genai_prices.calc_price(
            genai_prices.Usage(**usage), model, provider_id=provider_id, genai_request_timestamp=AT
        )
        exact = price.total_price.quantize(Decimal("1e-9"), rounding="ROUND_HALF_EVEN")
        assert bill.nanos(bill.rates_of(model), counts) == exact * 10**9, counts


def test_one_token_more_doubles_a_long_call():
    rates = bill.rates_of("gpt-5.4-2026-03-05")
    assert bill.nanos(rates, bill.Counts(input=272_000)) == 680_000_000
    assert bill.nanos(rates, bill.Counts(input=272_001)) == 1_360_005_000


def test_a_sum_is_rounded_once_half_even():
    # Half a nano-dollar per token; every rate in the table is a whole number of them.
    rates = bill._rates("0.0005", "0.0005")
    assert [bill.nanos(rates, bill.Counts(input=n)) for n in (1, 2, 3, 5, 7)] == [0, 1, 2, 2, 4]
    assert bill.nanos(rates, bill.Counts(input=1, output=1)) == 1


def test_a_kind_without_a_price_of_its_own_costs_as_input():
    rates = bill._rates("2", "8")
    kinds = ("cache_read", "cache_write_5m", "cache_write_1h")
    assert {bill.nanos(rates, bill.Counts(input=1, **{kind: 1})) for kind in kinds} == {2000}
    written = bill._rates("2", "8", "1", "3")
    assert bill.nanos(written, bill.Counts(input=1, cache_write_1h=1)) == 3000


def test_a_model_that_is_not_offered_has_no_rates():
    assert bill.rates_of("gpt-99") is None
    assert bill.rates_of("gpt-5-mini-2025-08-07") == bill.rates_of("gpt-5-mini")


@pytest.mark.parametrize(
    "text", ["", "a", "hello world", "schöne Grüße", "日本語のテキスト", "🎉" * 9, "\n\t "]
)
def test_tokens_are_about_four_characters_and_never_more_than_bytes(text):
    assert count_tokens(text) <= len(text.encode())
    assert "".join(split_tokens(text, 3)) == text
    assert len(split_tokens(text, 3)) <= 3
    for most in range(10):
        assert text.startswith(cut_tokens(text, most))
        assert count_tokens(cut_tokens(text, most)) <= most
        assert count_tokens(filler(most)) == most


def test_input_counts_what_the_model_reads(provider):
    body = {"messages": [{"role": "system", "content": "abcd"}, {"role": "user", "content": "abcd" * 9}]}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    bare = post(provider, **body).json()["usage"]["prompt_tokens"]
    armed = post(provider, **body, tools=[tool]).json()["usage"]["prompt_tokens"]
    assert bare == 10
    assert armed == count_tokens("abcd" * 10 + json.dumps(tool, separators=(",", ":")))


# --- scripting, schemas, fixtures ---------------------------------------------------------------


def test_contradictory_scripts_are_errors():
    with pytest.raises(ValueError, match="cached tokens"):
        Reply(input_tokens=10, cache_read_tokens=11)
    with pytest.raises(ValueError, match="reasoning_tokens"):
        Reply(output_tokens=10, reasoning_tokens=11)
    with pytest.raises(ValueError, match="chunks"):
        Reply(chunks=0)


def test_requests_keep_what_was_sent_but_no_credentials(provider):
    provider.reply = Reply(model="gpt-5-nano")
    answer = model_for("chat", provider, api_key="very-secret").invoke("hello")
    (request,) = provider.requests
    assert (request.model, request.prompt, request.protocol) == ("gpt-5-mini", "hello", "chat")
    assert "very-secret" not in str(request)
    assert request.headers["content-type"] == "application/json"
    assert answer.response_metadata["model_name"] == provider.charges[0].model == "gpt-5-nano"


def test_a_scripted_length_makes_a_text_of_that_length(provider):
    provider.reply = Reply(output_tokens=50, reasoning_tokens=10)
    text = post(provider).json()["choices"][0]["message"]["content"]
    assert count_tokens(text) == 40


def test_recursive_schemas_end():
    node = {
        "type": "object",
        "properties": {
            "value": {"type": "number", "exclusiveMinimum": 0},
            "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
        },
        "required": ["value", "next", "children"],
    }
    value = example({"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    depth = 0
    while value:
        assert value["value"] > 0
        value, depth = value["next"], depth + 1
    assert 1 < depth < 20


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": ["red", "blue"]}, "red"),
        ({"const": 7}, 7),
        ({"type": ["null", "boolean"]}, True),
        ({"type": "integer", "minimum": 10, "multipleOf": 4}, 12),
        ({"type": "integer", "exclusiveMinimum": 5}, 6),
        ({"type": "integer", "maximum": -3}, -3),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, 0.5),
        ({"type": "string", "minLength": 6}, "texttt"),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "array", "minItems": 2, "items": {"type": "null"}}, [None, None]),
        ({"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}}]}, {"a": True}),
    ],
)
def test_examples_fit_their_schema(schema, value):
    assert example(schema) == value


def test_a_fake_clock_moves_only_forward_and_only_when_told():
    clock = FakeClock(AT)
    assert clock.now == AT
    assert clock.advance(90, days=1) == AT + timedelta(days=1, seconds=90) == clock.now
    assert clock.now_us() == int(clock.now.timestamp()) * 10**6
    assert clock.advance(0.000001) - AT == timedelta(days=1, seconds=90, microseconds=1)
    with pytest.raises(ValueError, match="go back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="time zone"):
        FakeClock(datetime(2026, 1, 1))  # noqa: DTZ001 -- the mistake that is tested


def test_requests_carry_the_clocks_time():
    clock = FakeClock(AT)
    with FakeProvider(clock=clock) as provider:
        post(provider)
        clock.advance(hours=3)
        post(provider)
        assert [request.at for request in provider.requests] == [AT, AT + timedelta(hours=3)]


def test_the_fixtures_work_without_imports(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        import urllib.request

        def test_both(fake_provider, fake_clock):
            assert fake_provider.requests == []
            assert fake_provider.url.startswith("http://127.0.0.1:")
            before = fake_clock.now
            assert fake_clock.advance(60) > before
        """
    )
    pytester.runpytest_inprocess("-p", "maestro_core.testing.plugin").assert_outcomes(passed=1)


def test_the_plugin_loads_no_server_and_no_client():
    heavy = ("http.server", "openai", "langchain_core", "genai_prices", "maestro_core.testing.provider")
    code = f"import maestro_core.testing.plugin, sys; print([m for m in {heavy!r} if m in sys.modules])"
    root = str(Path(maestro_core.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
