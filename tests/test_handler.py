"""The handler, driven by real LangChain over real HTTP; the provider's own bill is the witness."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphBubbleUp
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from sound import assert_sound, usd

from maestro_core import Cap, CapExceeded, PriceNotFound, attribution
from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler

BURST = 64
PROMPT = "How do batteries age? " * 200  # no provider counts 1,000 tokens in less than 1,000 bytes
DIMENSIONS = ("team", "feature", "customer", "agent", "tool", "model", "provider", "run")


def bill_of_one(provider, model) -> int:
    model.invoke(PROMPT)
    nanos = provider.bill_nanos
    provider.reset()
    return nanos


def ledger_total(maestro) -> int:
    return sum(s.cost_nanos for s in maestro.ledger.sums(()))


# -- one call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openai", "openai-responses", "anthropic"])
@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
async def test_one_call_is_priced_as_the_provider_bills_it(
    kind, mode, provider, openai, anthropic, make_maestro
):
    model = {
        "openai": lambda: openai(),
        "openai-responses": lambda: openai(use_responses_api=True),
        "anthropic": lambda: anthropic(),
    }[kind]()
    maestro = make_maestro(caps=[Cap("1")])
    provider.reply = Reply(
        text="fine", input_tokens=1_000, output_tokens=90, cache_read_tokens=200, reasoning_tokens=40
    )
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    await run(model, mode, config)
    assert len(provider.requests) == 1
    assert_sound(maestro, provider)
    (record,) = maestro.ledger.records()
    assert record.kind == "settled"
    assert record.estimated_nanos == 0
    assert record.usage["input_tokens"] == 1_000
    assert record.usage["cache_read_tokens"] == 200
    assert record.usage["output_tokens"] == 90


async def run(model, mode: str, config=None, prompt: object = PROMPT):
    if mode == "invoke":
        return model.invoke(prompt, config=config)
    if mode == "ainvoke":
        return await model.ainvoke(prompt, config=config)
    if mode == "stream":
        return list(model.stream(prompt, config=config))
    if mode == "astream":
        return [chunk async for chunk in model.astream(prompt, config=config)]
    if mode == "batch":
        return model.batch([prompt], config=config)
    return await model.abatch([prompt], config=config)


def test_two_handlers_of_one_maestro_count_a_call_once(provider, openai, make_maestro):
    maestro = make_maestro()
    model = openai(callbacks=[MaestroCallbackHandler(maestro)])
    model.invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    assert_sound(maestro, provider)
    assert maestro.report("model", since="all").rows[0].calls == 1


def test_a_cached_answer_costs_nothing(provider, openai, make_maestro):
    maestro = make_maestro()
    model = openai(cache=InMemoryCache())
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    first, second = model.invoke(PROMPT, config=config), model.invoke(PROMPT, config=config)
    assert first.content == second.content
    assert len(provider.requests) == 1
    assert_sound(maestro, provider)
    assert Counter(record.kind for record in maestro.ledger.records()) == {"settled": 1, "released": 1}


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_a_failed_request_is_released(status, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    provider.reply = Reply(status=status)
    with pytest.raises(Exception, match=str(status)):
        openai().invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    assert_sound(maestro, provider)
    assert [record.kind for record in maestro.ledger.records()] == ["released"]


def test_a_refused_connection_is_released(openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    model = ChatOpenAI(
        model="gpt-5-mini", base_url="http://127.0.0.1:9/v1", api_key="none", max_tokens=9, max_retries=0
    )
    with pytest.raises(Exception, match="onnection"):
        model.invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    assert [record.kind for record in maestro.ledger.records()] == ["released"]


@pytest.mark.parametrize(
    "reply", [Reply(hang_s=3), Reply(text="word " * 80, cut_after=3)], ids=["timeout", "cut"]
)
def test_a_call_whose_end_nobody_saw_counts_at_its_hold(reply, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    provider.reply = reply
    model = openai(timeout=0.5)
    with pytest.raises(Exception, match=r".*"):
        list(model.stream(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]}))
    (record,) = maestro.ledger.records()
    assert record.kind == "settled"
    assert record.estimated_nanos == record.cost_nanos == record.held_nanos > 0
    provider.wait_idle()
    assert provider.bill_nanos <= ledger_total(maestro)


def test_an_abandoned_stream_counts_at_its_hold(provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    provider.reply = Reply(text="word " * 80, chunk_delay_s=0.01)
    stream = openai().stream(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    next(stream)
    stream.close()
    (record,) = maestro.ledger.records()
    assert record.estimated_nanos == record.held_nanos > 0
    provider.wait_idle()
    assert 0 < provider.bill_nanos <= ledger_total(maestro)


def test_a_stream_without_usage_counts_at_its_hold(provider, openai, make_maestro):
    maestro = make_maestro()
    list(openai(stream_usage=False).stream(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]}))
    (record,) = maestro.ledger.records()
    assert record.estimated_nanos == record.cost_nanos > 0
    assert provider.bill_nanos <= ledger_total(maestro)


def test_a_call_is_not_forgotten_while_thousands_of_steps_beside_it_end(provider, openai, make_maestro):
    maestro, model, step = make_maestro(), openai(), RunnableLambda(abs)

    def fn(prompt):
        chunks = model.stream(prompt)
        next(chunks)
        step.batch([-1] * 4_100, config={"max_concurrency": 1})
        list(chunks)

    RunnableLambda(fn).invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    assert_sound(maestro, provider)
    (record,) = maestro.ledger.records()
    assert record.estimated_nanos == 0


# -- caps -------------------------------------------------------------------------------------------------------------


def test_a_model_without_limit_is_told_which_to_set(provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0.05", per="run")])
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    with pytest.raises(
        CapExceeded, match=r"ChatOpenAI gpt-5-mini sets no output limit.*Set max_tokens=\d+ or less"
    ) as caught:
        openai(max_tokens=None).invoke(PROMPT, config=config)
    assert caught.value.reason == "ceiling"
    assert provider.requests == []
    limit = int(str(caught.value).split("max_tokens=")[1].split()[0])
    openai(max_tokens=limit).invoke(PROMPT, config=config)  # the named fix works
    assert_sound(maestro, provider)


def test_retries_inside_the_client_are_held_for(provider, openai, make_maestro):
    held = {}
    for retries in (0, 2):
        maestro = make_maestro()
        openai(max_retries=retries).invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro)]})
        (held[retries],) = (record.held_nanos for record in maestro.ledger.records())
    assert held[2] == 3 * held[0]


class SelfHosted(ChatOpenAI):
    """A model behind an OpenAI-compatible server of one's own, which no price book knows."""

    def _get_ls_params(self, *args, **kwargs):
        return {**super()._get_ls_params(*args, **kwargs), "ls_provider": "my-vllm"}


def test_an_unknown_model_is_refused_under_a_cap_and_counted_without_one(provider, make_maestro):
    capped, free = make_maestro(caps=[Cap("1")]), make_maestro()
    model = SelfHosted(model="gpt-5-mini", base_url=provider.openai_url, api_key="none", max_tokens=100)
    with pytest.raises(PriceNotFound, match="my-vllm"):
        model.invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(capped)]})
    assert provider.requests == []
    model.invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(free)]})
    (row,) = free.report("provider", since="all").rows
    assert (row.key["provider"], row.calls, row.unpriced_calls, row.input_tokens) == ("my-vllm", 1, 1, 1_000)


def test_the_refusal_carries_every_number_and_pickles(provider, openai, make_maestro):
    one = bill_of_one(provider, openai())
    maestro = make_maestro(caps=[Cap(usd(one * 6), per="customer", every="day")])
    config = {"callbacks": [MaestroCallbackHandler(maestro)], "metadata": {"customer": "acme"}}
    with pytest.raises(
        CapExceeded, match=r"^cap exceeded \(spent\): customer=acme every day: spent \$"
    ) as caught:
        for _ in range(9):
            openai().invoke(PROMPT, config=config)
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, GraphBubbleUp)
    assert error.bucket == "customer=acme every day"
    assert error.spent + error.held + error.needed > error.cap.limit
    assert error.headroom == error.cap.limit - error.spent
    assert error.resets_at is not None
    assert error.attribution.dimensions["customer"] == "acme"
    assert_sound(maestro, provider, one * 6)


async def burst_ainvoke(call):
    return await asyncio.gather(
        *(call.ainvoke(f"{PROMPT} {i}") for i in range(BURST)), return_exceptions=True
    )


async def burst_threads(call):
    def one(i):
        try:
            return call.invoke(f"{PROMPT} {i}")
        except Exception as error:  # noqa: BLE001 - counted by the test
            return error

    with ThreadPoolExecutor(BURST) as pool:
        return list(pool.map(one, range(BURST)))


async def burst_stream(call):
    return await burst_threads(RunnableLambda(lambda q, config: list(call.stream(q, config=config))))


async def burst_astream(call):
    async def one(i):
        return [chunk async for chunk in call.astream(f"{PROMPT} {i}")]

    return await asyncio.gather(*(one(i) for i in range(BURST)), return_exceptions=True)


async def burst_batch(call):
    return call.batch([f"{PROMPT} {i}" for i in range(BURST)], return_exceptions=True)


async def burst_abatch(call):
    return await call.abatch([f"{PROMPT} {i}" for i in range(BURST)], return_exceptions=True)


BURSTS = [burst_ainvoke, burst_threads, burst_stream, burst_astream, burst_batch, burst_abatch]


@pytest.mark.parametrize("ledger", ["memory:", "sqlite:///burst.db"])
@pytest.mark.parametrize("burst", BURSTS, ids=lambda burst: burst.__name__)
async def test_a_burst_stays_under_its_cap(burst, ledger, provider, openai, make_maestro):
    cap = 10 * bill_of_one(provider, openai())
    maestro = make_maestro(ledger=ledger, caps=[Cap(usd(cap))])
    provider.reply = Reply(text="fine", input_tokens=1_000, output_tokens=100, delay_s=0.05)
    outcomes = await burst(openai().with_config(callbacks=[MaestroCallbackHandler(maestro)]))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, CapExceeded)]
    assert [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, CapExceeded)] == []
    assert len(provider.requests) + len(refusals) == BURST
    assert 0 < len(provider.requests) <= 10
    assert_sound(maestro, provider, cap)


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("wrap", ["plain", "with_retry", "with_fallbacks"])
async def test_refused_attempts_make_no_request(mode, wrap, provider, openai, anthropic, make_maestro):
    cap = 4 * bill_of_one(provider, openai())
    maestro = make_maestro(caps=[Cap(usd(cap))])
    model = openai()
    wrapped = {
        "plain": lambda: model,
        "with_retry": lambda: model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False),
        "with_fallbacks": lambda: model.with_fallbacks([anthropic()]),
    }[wrap]()
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    with pytest.raises(CapExceeded):
        for _ in range(20):
            await run(wrapped, mode, config)
    before = len(provider.requests)
    with pytest.raises(CapExceeded):
        await run(wrapped, mode, config)
    assert len(provider.requests) == before
    assert_sound(maestro, provider, cap)


# -- agents -----------------------------------------------------------------------------------------------------------


def fan_out_agent(model, *, handle_tool_errors=None):
    """Build an agent whose model asks for many tool calls at once, each of which asks a model."""

    @tool
    def ask(question: str) -> str:
        """Ask another model."""
        return str(model.invoke(question).content)

    if handle_tool_errors is None:
        return create_agent(model, [ask], name="boss")
    # A graph of one's own: create_agent does not let its tool node swallow errors.
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.bind_tools([ask]).invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([ask], handle_tool_errors=handle_tool_errors))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(name="boss")


def fan_out_script(width: int):
    def reply(request):
        if request.tools and not request.tool_results:
            calls = [("ask", {"question": f"{PROMPT} {i}"}) for i in range(width)]
            return Reply(tool_calls=calls, input_tokens=1_000, output_tokens=100)
        return Reply(text="done", input_tokens=1_000, output_tokens=100, delay_s=0.02)

    return reply


@pytest.mark.parametrize("handle_tool_errors", [None, True, "sorry"])
@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
async def test_an_agents_fan_out_stays_under_its_cap(
    mode, handle_tool_errors, provider, openai, make_maestro
):
    one = bill_of_one(provider, openai())
    cap = 10 * one
    maestro = make_maestro(caps=[Cap(usd(cap), per="run")])
    provider.reply = fan_out_script(BURST)
    agent = fan_out_agent(openai(), handle_tool_errors=handle_tool_errors)
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    with pytest.raises(CapExceeded):
        await run(agent, mode, config, {"messages": [("user", PROMPT)]})
    assert_sound(maestro, provider, cap)
    assert 2 <= len(provider.requests) <= 10


def test_agents_and_tools_are_charged_once_each_and_reported_at_the_innermost(provider, openai, make_maestro):
    """A sub-agent inside a tool: its calls are its own in reports, and count for its parents in caps."""
    maestro = make_maestro(caps=[Cap("1", per="agent"), Cap("1", per="tool")])
    sub = create_agent(openai(), [], name="helper")

    @tool
    def delegate(task: str) -> str:
        """Give a task to the helper."""
        return str(sub.invoke({"messages": [("user", task)]})["messages"][-1].content)

    def reply(request):
        if request.tools and not request.tool_results:
            return Reply(tool_calls=[("delegate", {"task": PROMPT})], input_tokens=1_000, output_tokens=100)
        return Reply(text="done", input_tokens=1_000, output_tokens=100)

    provider.reply = reply
    boss = create_agent(openai(), [delegate], name="boss")
    with attribution(team="growth", customer="acme"):
        boss.invoke({"messages": [("user", PROMPT)]}, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    one = provider.charges[0].nanos
    assert_sound(maestro, provider, 3 * one)
    by_agent = {row.key["agent"]: row.cost for row in maestro.report("agent", since="all").rows}
    by_tool = {row.key["tool"]: row.calls for row in maestro.report("tool", since="all").rows}
    assert by_agent["boss"] == 2 * by_agent["helper"]
    assert by_tool == {"(unattributed)": 2, "delegate": 1}
    spent = {status.bucket: status.spent for status in maestro.status()}
    assert spent["agent=boss"] == 3 * by_agent["helper"]
    assert spent["agent=helper"] == spent["tool=delegate"] == by_agent["helper"]
    (run_id,) = {record.run for record in maestro.ledger.records()}
    tree = maestro.tree(run_id)
    assert tree.total == maestro.report("team", since="all").total
    assert "tool delegate" in str(tree)
    assert tree.children[0].name == "boss"


def test_rows_add_up_in_every_slice(provider, openai, anthropic, make_maestro):
    maestro = make_maestro()
    handler = MaestroCallbackHandler(maestro)
    agent = create_agent(anthropic(), [], name="writer")
    for team, customer in [("growth", "acme"), ("core", "globex"), ("growth", None)]:
        with attribution(team=team, customer=customer):
            openai().invoke(PROMPT, config={"callbacks": [handler], "metadata": {"feature": "search"}})
            agent.invoke({"messages": [("user", PROMPT)]}, config={"callbacks": [handler]})
    openai().invoke(PROMPT, config={"callbacks": [handler]})
    assert_sound(maestro, provider)
    for by in [(d,) for d in DIMENSIONS] + list(combinations(DIMENSIONS, 2)):
        report = maestro.report(by, since="all")
        assert sum(row.cost for row in report.rows) == report.total == provider.bill
        assert sum(row.calls for row in report.rows) == len(provider.requests)
    unattributed = {row.key["customer"]: row.calls for row in maestro.report("customer", since="all").rows}
    assert unattributed["(unattributed)"] == 3


def test_a_handler_that_fails_after_ours_leaks_no_money(provider, openai, make_maestro):
    """Another handler raises at the start: LangChain sends nothing and tells nobody. It is presumed spent."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Broken(BaseCallbackHandler):
        raise_error = True

        def on_chat_model_start(self, *args, **kwargs):
            raise RuntimeError("broken")

    maestro = make_maestro(caps=[Cap("1")])
    chain = RunnableLambda(lambda q: q) | openai()
    with pytest.raises(RuntimeError, match="broken"):
        chain.invoke(PROMPT, config={"callbacks": [MaestroCallbackHandler(maestro), Broken()]})
    assert [hold.state for hold in maestro.ledger.holds()] == ["presumed"]
    (record,) = maestro.ledger.records()
    assert record.estimated_nanos == record.cost_nanos > 0


def test_no_content_enters_the_ledger(provider, openai, make_maestro, tmp_path):
    maestro = make_maestro(ledger="sqlite:///content.db")
    provider.reply = Reply(text="the answer is mellon", input_tokens=10, output_tokens=5)
    openai().invoke("speak, friend", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    maestro.close()
    written = b"".join(path.read_bytes() for path in tmp_path.glob("content.db*"))
    assert b"mellon" not in written
    assert b"friend" not in written
    assert b"gpt-5-mini" in written
