"""The agent's door, driven by real `create_agent` over real HTTP; the provider's own bill is the witness."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from sound import assert_sound, usd

from maestro_core import Cap, CapExceeded, Endpoint, attribution
from maestro_core.errors import LedgerUnavailable
from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware, RoutedChatModel
from maestro_langchain._models import as_sent

BURST = 64
PROMPT = "How do batteries age? " * 200
ASK = {"messages": [("user", PROMPT)]}
BRIEF = {"messages": [("user", "How do batteries age?")]}  # its output is what costs


async def until(condition) -> None:
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


def bill_of_one(provider, model) -> int:
    model.invoke(BRIEF["messages"])
    nanos = provider.bill_nanos
    provider.reset()
    return nanos


def settled(maestro) -> int:
    return sum(record.kind == "settled" for record in maestro.ledger.records())


async def run(agent, mode: str, config=None):
    if mode == "invoke":
        return await asyncio.to_thread(agent.invoke, ASK, config)
    if mode == "ainvoke":
        return await agent.ainvoke(ASK, config)
    if mode == "stream":
        return await asyncio.to_thread(lambda: list(agent.stream(ASK, config, stream_mode="messages")))
    return [chunk async for chunk in agent.astream(ASK, config, stream_mode="messages")]


# -- one key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("attached", ["alone", "config", "constructor"])
@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
async def test_stacked_doors_count_a_call_once(
    mode, attached, api, provider, openai, anthropic, make_maestro
):
    maestro = make_maestro(caps=[Cap("1", per="run")])
    handler = MaestroCallbackHandler(maestro)
    extra = {"callbacks": [handler]} if attached == "constructor" else {}
    model = {
        "chat": lambda: openai(**extra),
        "responses": lambda: openai(use_responses_api=True, **extra),
        "anthropic": lambda: anthropic(**extra),
    }[api]()
    agent = create_agent(model, [], middleware=[MaestroMiddleware(maestro)], name="boss")
    await run(agent, mode, {"callbacks": [handler]} if attached == "config" else None)
    assert len(provider.requests) == 1
    assert_sound(maestro, provider)
    (record,) = maestro.ledger.records()  # one reservation, adopted; nothing was released
    assert record.kind == "settled"
    assert record.estimated_nanos == 0
    assert maestro.report("agent", since="all").rows[0].key == {"agent": "boss"}


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("where", ["outside", "inside"])
async def test_retry_middleware_around_or_inside(mode, where, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    statuses = iter([500, 429, 200])
    provider.reply = lambda r: Reply(status=s) if (s := next(statuses)) != 200 else Reply(text="fine")
    ours = MaestroMiddleware(maestro)
    retry = ModelRetryMiddleware(max_retries=3, initial_delay=0.01, jitter=False)
    agent = create_agent(openai(), [], middleware=[ours, retry] if where == "inside" else [retry, ours])
    await run(agent, mode)
    assert len(provider.requests) == 3
    assert_sound(maestro, provider)
    assert [record.kind for record in maestro.ledger.records()] == ["released", "released", "settled"]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("model_kind", ["openai", "anthropic"])
async def test_the_clients_own_retries_are_made_here_each_with_its_own_hold(
    mode, model_kind, provider, openai, anthropic, make_maestro
):
    maestro = make_maestro(caps=[Cap("1")])
    provider.reply = lambda r: Reply(status=503) if r.number < 3 else Reply(text="fine")
    model = (openai if model_kind == "openai" else anthropic)(max_retries=2)
    agent = create_agent(model, [], middleware=[MaestroMiddleware(maestro)])
    await run(agent, mode)
    assert len(provider.requests) == 3
    assert model.max_retries == 2  # the user's model is as it was
    kinds = [record.kind for record in maestro.ledger.records()]
    assert kinds == ["released", "released", "settled"]
    assert_sound(maestro, provider)


async def test_a_fallback_model_is_held_for_on_its_own(provider, openai, anthropic, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    provider.reply = lambda r: Reply(status=500) if r.model == "gpt-5-mini" else Reply(text="fine")
    fallback = ModelFallbackMiddleware(anthropic())
    agent = create_agent(openai(), [], middleware=[MaestroMiddleware(maestro), fallback])
    await run(agent, "ainvoke")
    assert len(provider.requests) == 2
    assert_sound(maestro, provider)
    assert maestro.report("model", since="all").rows[0].key == {"model": "claude-sonnet-5"}


class Answers(AgentMiddleware):
    """Answers by itself, as a semantic cache would."""

    def wrap_model_call(self, request, handler):
        return AIMessage("from memory")


class Breaks(AgentMiddleware):
    """Fails before anything is sent."""

    def wrap_model_call(self, request, handler):
        raise RuntimeError("broken")


@pytest.mark.parametrize("inner", [Answers, Breaks])
def test_what_is_held_for_a_call_that_nobody_sends_is_released(inner, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    agent = create_agent(openai(), [], middleware=[MaestroMiddleware(maestro), inner()])
    with suppress(RuntimeError):
        agent.invoke(ASK)
    assert provider.requests == []
    (record,) = maestro.ledger.records()
    assert (record.kind, record.detail["reason"]) == ("released", "not sent")
    assert_sound(maestro, provider)


class Gateway(BaseChatModel):
    """A company's own model class: what it sends, and how often, is inside it."""

    inner: BaseChatModel
    max_tokens: int = 100

    @property
    def _llm_type(self):
        return "gateway"

    def _get_ls_params(self, stop=None, **kwargs):
        return self.inner._get_ls_params(stop, **kwargs)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return self.inner._generate(messages, stop, run_manager, **kwargs)


def governed_by_middleware(model, maestro):
    return create_agent(model, [], middleware=[MaestroMiddleware(maestro)])


def governed_by_routing(model, maestro):
    return create_agent(RoutedChatModel(endpoints=[Endpoint(model)], maestro=maestro), [])


@pytest.mark.parametrize("governed", [governed_by_middleware, governed_by_routing])
def test_retries_that_cannot_be_switched_off_are_held_for(governed, provider, openai, make_maestro):
    """Once: a hold for one attempt would not cover what the handler sees, and be released for a second, larger one."""
    maestro = make_maestro(caps=[Cap("1")])
    governed(Gateway(inner=openai(max_retries=2)), maestro).invoke(ASK)
    (record,) = maestro.ledger.records()
    assert record.kind == "settled"
    assert record.held_nanos > 3 * 200_000  # three answers of 100 tokens, at 2 US dollars a million
    assert_sound(maestro, provider)


class Switches(AgentMiddleware):
    """Sends every request to another model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def wrap_model_call(self, request, handler):
        return handler(request.override(model=self.model))


def test_another_model_is_booked_under_its_own_name(provider, openai, make_maestro):
    """What is held for the first model would cover the cheaper one; but it is another model's money."""
    maestro = make_maestro(caps=[Cap("1")])
    middleware = [MaestroMiddleware(maestro), Switches(openai(model="gpt-5-nano"))]
    create_agent(openai(), [], middleware=middleware).invoke(ASK)
    assert_sound(maestro, provider)
    booked = {record.model: record.kind for record in maestro.ledger.records()}
    assert booked == {"gpt-5-mini": "released", "gpt-5-nano": "settled"}


class Judges(AgentMiddleware):
    """Asks the agent's own model for a second opinion, without any limit, before the request is sent."""

    def wrap_model_call(self, request, handler):
        self.opinion = request.model.invoke(request.messages)
        return handler(request)


def test_a_judge_on_the_way_does_not_take_what_was_fitted_for_the_agent(provider, openai, make_maestro):
    """It asks the same model for the same messages, but without the limit that makes the hold suffice."""
    provider.reply = Reply(output_tokens=16_000)  # what it says without a limit
    model = openai(model="gpt-4o-mini", max_tokens=None)
    maestro = make_maestro(caps=[Cap("0.009")])
    agent = create_agent(model, [], middleware=[MaestroMiddleware(maestro), Judges()])
    with pytest.raises(CapExceeded):  # the judge's call has no limit, and its ceiling does not fit
        for _ in range(9):
            agent.invoke(BRIEF)
    assert_sound(maestro, provider, 9_000_000)


def test_a_judge_with_a_limit_of_its_own_is_admitted(provider, openai, make_maestro):
    provider.reply = Reply(output_tokens=100)
    maestro = make_maestro(caps=[Cap("0.1")])
    agent = create_agent(openai(), [], middleware=[MaestroMiddleware(maestro), Judges()])
    agent.invoke(BRIEF)
    assert len(provider.requests) == 2
    assert_sound(maestro, provider)


# -- fitting and waiting ----------------------------------------------------------------------------------------------


def burst_agent(model, maestro, **kwargs):
    return create_agent(model, [], middleware=[MaestroMiddleware(maestro, **kwargs)], name="burst")


async def burst_tasks(agent):
    return await asyncio.gather(*(agent.ainvoke(BRIEF) for _ in range(BURST)), return_exceptions=True)


async def burst_threads(agent):
    def one(_):
        try:
            return agent.invoke(BRIEF)
        except CapExceeded as error:
            return error

    def all_of_them():
        with ThreadPoolExecutor(BURST) as pool:
            return list(pool.map(one, range(BURST)))

    return await asyncio.to_thread(all_of_them)


@pytest.mark.parametrize("limited", [True, False], ids=["max_tokens", "no_limit"])
@pytest.mark.parametrize("ledger", ["memory:", "sqlite:///burst.db"])
@pytest.mark.parametrize("burst", [burst_tasks, burst_threads], ids=["asyncio", "threads"])
async def test_a_burst_is_served_while_money_is_there(burst, ledger, limited, provider, openai, make_maestro):
    """64 calls at once, a cap worth 10, ceilings ten times the true cost."""
    provider.reply = Reply(output_tokens=1_000, delay_s=0.03)
    # gpt-4o-mini answers at most 16,384 tokens, 16 times what it does here.
    model = openai(model="gpt-4o-mini", max_tokens=10_000 if limited else None)
    cap = 10 * bill_of_one(provider, model)
    maestro = make_maestro(ledger=ledger, caps=[Cap(usd(cap))])
    outcomes = await burst(burst_agent(model, maestro))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, CapExceeded)]
    served = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    assert len(served) + len(refusals) == BURST == len(outcomes)
    assert_sound(maestro, provider, cap)
    assert len(served) >= 9
    assert {error.reason for error in refusals} == {"spent"}


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
@pytest.mark.parametrize("built", [None, 9_000])
def test_the_fitted_limit_is_on_the_wire(api, built, provider, openai, anthropic, make_maestro):
    provider.reply = Reply(text="fine", output_tokens=50)
    model = {
        "chat": lambda: openai(model="gpt-4o-mini", max_tokens=built),
        "responses": lambda: openai(model="gpt-4o-mini", max_tokens=built, use_responses_api=True),
        "anthropic": lambda: anthropic(max_tokens=built),
    }[api]()
    maestro = make_maestro(caps=[Cap("0.02" if api == "anthropic" else "0.004", per="run")])
    result = burst_agent(model, maestro).invoke(BRIEF)
    (request,) = provider.requests
    fitted = result["messages"][-1].response_metadata["maestro"]["fitted_output_tokens"]
    assert request.max_output_tokens == fitted
    assert 256 <= fitted < 9_000
    (record,) = maestro.ledger.records()
    assert record.kind == "settled"
    assert_sound(maestro, provider)


def test_an_answer_that_was_cut_has_reached_the_cap(provider, openai, make_maestro):
    provider.reply = Reply(output_tokens=9_000)
    maestro = make_maestro(caps=[Cap("0.004", per="run")])
    with pytest.raises(CapExceeded, match=r"the last answer was cut at [\d,]+ tokens") as caught:
        burst_agent(openai(model="gpt-4o-mini", max_tokens=None), maestro).invoke(BRIEF)
    assert caught.value.reason == "spent"
    assert caught.value.partial
    assert_sound(maestro, provider, 4_000_000)


def test_a_nested_call_does_not_wait_for_its_own_money(provider, openai, make_maestro):
    """A stream is open, and its consumer calls another agent: both need the same cap."""
    provider.reply = Reply(output_tokens=600, chunk_delay_s=0.001)
    maestro = make_maestro(caps=[Cap("0.004")], wait_s=60)
    agent = burst_agent(openai(model="gpt-4o-mini", max_tokens=4_000), maestro)
    began = time.monotonic()
    for _ in agent.stream(BRIEF, stream_mode="messages"):
        agent.invoke(BRIEF)
        break
    assert time.monotonic() - began < 30  # not wait_s: this would be a deadlock, not slowness
    assert provider.bill_nanos <= 4_000_000


async def test_sync_code_on_the_event_loop_never_waits(provider, openai, make_maestro):
    provider.reply = Reply(output_tokens=250, delay_s=0.2)
    model = openai(model="gpt-4o-mini", max_tokens=256)
    cap = 300_000  # room for one
    maestro = make_maestro(caps=[Cap(usd(cap))], wait_s=60)
    agent = burst_agent(model, maestro)
    first = asyncio.create_task(agent.ainvoke(BRIEF))
    await until(lambda: provider.requests)
    with pytest.raises(CapExceeded) as caught:
        agent.invoke(BRIEF)
    assert caught.value.reason == "held"
    await first
    assert_sound(maestro, provider, cap)


async def test_a_waiter_gives_up_after_wait_s_as_held(provider, openai, make_maestro):
    provider.reply = Reply(output_tokens=250, delay_s=1)
    model = openai(model="gpt-4o-mini", max_tokens=256)
    cap = 300_000  # room for one
    maestro = make_maestro(caps=[Cap(usd(cap))], wait_s=0.1)
    agent = burst_agent(model, maestro)
    first = asyncio.create_task(agent.ainvoke(BRIEF))
    await until(lambda: provider.requests)
    with pytest.raises(CapExceeded) as caught:
        await agent.ainvoke(BRIEF)
    assert caught.value.reason == "held"
    await first


async def test_a_cancelled_waiter_leaves_the_line(provider, openai, make_maestro):
    provider.reply = Reply(output_tokens=250, delay_s=0.3)
    model = openai(model="gpt-4o-mini", max_tokens=256)
    cap = 500_000  # room for two
    maestro = make_maestro(caps=[Cap(usd(cap))])
    agent = burst_agent(model, maestro)
    names = [f"How does battery {number} age?" for number in range(4)]
    tasks = [asyncio.create_task(agent.ainvoke({"messages": [("user", name)]})) for name in names]
    await until(lambda: len(provider.requests) >= 2)
    sent = {request.prompt for request in provider.requests}  # which are first is for the event loop to say
    waiter = next(number for number, name in enumerate(names) if name not in sent)
    tasks[waiter].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[waiter], asyncio.CancelledError)
    assert maestro.admission.line.ahead(frozenset({("all", ())}), None) is None
    assert_sound(maestro, provider, cap)


@pytest.mark.parametrize("mode", ["ainvoke", "astream"])
async def test_a_cancelled_call_is_presumed_spent(mode, provider, openai, make_maestro):
    """LangChain tells no handler of it, and the provider may bill it."""
    provider.reply = Reply(output_tokens=250, delay_s=0.5)
    maestro = make_maestro(caps=[Cap("1")])
    task = asyncio.create_task(run(burst_agent(openai(), maestro), mode))
    await until(lambda: provider.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    provider.wait_idle()
    assert [hold for hold in maestro.ledger.holds() if hold.state == "held"] == []
    (row,) = maestro.report("model", since="all").rows
    assert row.estimated == row.cost >= provider.bill
    assert maestro.ledger.check() == []


async def test_a_ledger_that_fails_at_a_cancellation_does_not_replace_it(
    provider, openai, make_maestro, monkeypatch
):
    """The caller sees its own cancellation; the call's money stays held until it is presumed spent."""
    provider.reply = Reply(output_tokens=250, delay_s=0.5)
    maestro = make_maestro(caps=[Cap("1")])
    task = asyncio.create_task(burst_agent(openai(), maestro).ainvoke(BRIEF))
    await until(lambda: provider.requests)

    def gone(**_):
        raise LedgerUnavailable("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(maestro.ledger, "presume", gone)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [hold.state for hold in maestro.ledger.holds()] == ["held"]
    assert maestro.runs._calls == {}


# -- leaving ----------------------------------------------------------------------------------------------------------


@tool
def search(query: str) -> str:
    """Search."""
    return f"Nothing about {query}. " * 20


def looping(request):
    """Search for ever; answer when there are no tools."""
    if request.tools:
        return Reply(text="Hm. ", tool_calls=[("search", {"query": "x"})], output_tokens=100)
    return Reply(text="This is what I know.", output_tokens=60)


def loop_agent(model, maestro, exit_behavior, *more):
    return create_agent(
        model, [search], middleware=[MaestroMiddleware(maestro, exit_behavior=exit_behavior), *more]
    )


OBSTACLES = {
    "none": [],
    "model_retry": [ModelRetryMiddleware(max_retries=2, on_failure="continue", initial_delay=0.01)],
    "tool_retry": [ToolRetryMiddleware(max_retries=2, on_failure="continue", initial_delay=0.01)],
}


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("exit_behavior", ["error", "end", "wrap_up", "interrupt"])
async def test_an_agent_leaves_at_its_cap(mode, obstacle, exit_behavior, provider, openai, make_maestro):
    provider.reply = looping
    cap = 8_000_000
    maestro = make_maestro(caps=[Cap(usd(cap), per="run")])
    agent = loop_agent(openai(max_tokens=300), maestro, exit_behavior, *OBSTACLES[obstacle])
    config = {"recursion_limit": 200}
    if exit_behavior in ("error", "interrupt"):  # without a checkpointer, nobody could resume
        with pytest.raises(CapExceeded):
            await run(agent, mode, config)
    else:
        await run(agent, mode, config)
    assert_sound(maestro, provider, cap)
    assert settled(maestro) == len(provider.requests) > 2
    last = provider.requests[-1]
    assert bool(last.tools) is (exit_behavior != "wrap_up")


@pytest.mark.parametrize("model_kind", ["openai", "anthropic"])
def test_wrap_up_ends_with_a_real_answer_and_a_valid_history(
    model_kind, provider, openai, anthropic, make_maestro
):
    provider.reply = looping
    maestro = make_maestro(caps=[Cap("0.06" if model_kind == "anthropic" else "0.006", per="run")])
    model = (openai if model_kind == "openai" else anthropic)(max_tokens=300)
    result = loop_agent(model, maestro, "wrap_up").invoke(ASK, {"recursion_limit": 200})
    last = result["messages"][-1]
    assert isinstance(last, AIMessage)
    assert last.text == "This is what I know."
    assert last.tool_calls == []
    asked = [call["id"] for m in result["messages"] if isinstance(m, AIMessage) for call in m.tool_calls]
    answered = [m.tool_call_id for m in result["messages"] if isinstance(m, ToolMessage)]
    assert asked == answered
    assert_sound(maestro, provider)


def test_a_last_answer_has_no_tool_calls_whatever_the_model_says(provider, openai, make_maestro):
    provider.reply = lambda r: Reply(
        text="I must search.", tool_calls=[("search", {"query": "x"})], output_tokens=100
    )
    maestro = make_maestro(caps=[Cap("0.006", per="run")])
    result = loop_agent(openai(max_tokens=300), maestro, "wrap_up").invoke(ASK, {"recursion_limit": 200})
    assert result["messages"][-1].text == "I must search."
    assert result["messages"][-1].tool_calls == []
    assert provider.requests[-1].tools == []
    assert_sound(maestro, provider, 6_000_000)


def test_end_says_why(provider, openai, make_maestro):
    provider.reply = looping
    maestro = make_maestro(caps=[Cap("0.005", per="run")])
    result = loop_agent(openai(max_tokens=300), maestro, "end").invoke(ASK, {"recursion_limit": 200})
    assert re.match(r"Stopped: cap exceeded \(spent\): run=\S+: spent \$", result["messages"][-1].text)
    assert_sound(maestro, provider, 5_000_000)


def test_a_run_that_was_refused_is_latched_and_others_go_on(provider, openai, make_maestro):
    provider.reply = looping
    maestro = make_maestro(caps=[Cap("0.005", per="run")])
    handler = MaestroCallbackHandler(maestro)
    agent = loop_agent(openai(max_tokens=300), maestro, "error")
    with attribution(run="first"):
        with pytest.raises(CapExceeded) as caught:
            agent.invoke(ASK, {"recursion_limit": 200})
        assert caught.value.reason == "spent"
        before = len(provider.requests)
        with pytest.raises(CapExceeded) as caught:
            openai(max_tokens=1).invoke("tiny", {"callbacks": [handler]})
        assert caught.value.reason == "latched"
        assert len(provider.requests) == before
    openai(max_tokens=1).invoke("tiny", {"callbacks": [handler]})
    assert len(provider.requests) == before + 1


@pytest.mark.parametrize("attach_handler", [True, False])
@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
async def test_agents_inside_tools_charge_their_parents(mode, attach_handler, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1", per="agent"), Cap("1", per="tool"), Cap("1", per="run")])
    sub = create_agent(openai(), [], middleware=[MaestroMiddleware(maestro)], name="helper")

    @tool
    async def delegate(task: str) -> str:
        """Give a task to the helper."""
        return str((await sub.ainvoke({"messages": [("user", PROMPT)]}))["messages"][-1].text)

    @tool("delegate")
    def delegate_sync(task: str) -> str:
        """Give a task to the helper."""
        return str(sub.invoke({"messages": [("user", PROMPT)]})["messages"][-1].text)

    def reply(request):
        if request.tools and not request.tool_results:
            return Reply(tool_calls=[("delegate", {"task": "dig"})], input_tokens=1_000, output_tokens=100)
        return Reply(text="done", input_tokens=1_000, output_tokens=100)

    provider.reply = reply
    tools = [delegate if mode == "ainvoke" else delegate_sync]
    boss = create_agent(openai(), tools, middleware=[MaestroMiddleware(maestro)], name="boss")
    await run(boss, mode, {"callbacks": [MaestroCallbackHandler(maestro)]} if attach_handler else None)
    assert_sound(maestro, provider)
    one = maestro.report("agent", since="all").rows[-1].cost
    spent = {
        status.bucket.split("=")[0] + "=" + status.bucket.split("=")[1][:8]: status.spent
        for status in maestro.status()
    }
    assert spent["agent=boss"] == 3 * one
    assert spent["agent=helper"] == spent["tool=delegate"] == one
    assert len({record.run for record in maestro.ledger.records()}) == 1


async def test_a_fan_out_inside_one_agent_is_served(provider, openai, make_maestro):
    model = openai(model="gpt-4o-mini", max_tokens=5_000)
    provider.reply = Reply(output_tokens=500)
    one = bill_of_one(provider, model)
    maestro = make_maestro(caps=[Cap(usd(14 * one), per="run")])
    sub = create_agent(model, [], middleware=[MaestroMiddleware(maestro)], name="helper")

    @tool
    async def ask(question: str) -> str:
        """Ask a helper."""
        return str((await sub.ainvoke(BRIEF))["messages"][-1].text)

    def reply(request):
        if request.tools and not request.tool_results:
            return Reply(tool_calls=[("ask", {"question": str(i)}) for i in range(16)], output_tokens=500)
        return Reply(output_tokens=500, delay_s=0.02)

    provider.reply = reply
    boss = create_agent(model, [ask], middleware=[MaestroMiddleware(maestro)], name="boss")
    with pytest.raises(CapExceeded):
        await boss.ainvoke(BRIEF)
    assert_sound(maestro, provider, 14 * one)
    assert len(provider.requests) >= 12


# -- a person decides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("ledger", ["memory:", "sqlite:///pause.db"])
async def test_interrupt_pauses_and_goes_on_with_its_spend(mode, ledger, provider, openai, make_maestro):
    provider.reply = looping
    maestro = make_maestro(ledger=ledger, caps=[Cap("0.005", per="run"), Cap("1")])
    middleware = [MaestroMiddleware(maestro, exit_behavior="interrupt")]
    agent = create_agent(
        openai(max_tokens=300), [search], middleware=middleware, checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "t"}, "recursion_limit": 200}

    async def go(value):
        return agent.invoke(value, config) if mode == "invoke" else await agent.ainvoke(value, config)

    paused = await go(ASK)
    (question,) = paused["__interrupt__"]
    assert question.value["reason"].startswith("cap exceeded (spent): run=")
    before = len(provider.requests)
    paused = await go(Command(resume={"add": 0}))  # nothing granted: it asks again
    assert len(provider.requests) == before
    paused = await go(Command(resume={"add": "0.002", "by": "ann", "reason": "worth it"}))
    assert paused["__interrupt__"]
    assert len(provider.requests) > before
    assert_sound(maestro, provider, 7_000_000)
    assert len({record.run for record in maestro.ledger.records()}) == 1
    granted = [record.detail for record in maestro.ledger.records() if record.kind == "granted"]
    assert [detail["add_nanos"] for detail in granted] == [0, 2_000_000]
    after = len(provider.requests)
    done = await go(Command(resume="end"))
    assert done["messages"][-1].text.startswith("Stopped: cap exceeded")
    assert len(provider.requests) == after


async def test_a_bad_answer_names_the_good_ones(provider, openai, make_maestro):
    provider.reply = looping
    maestro = make_maestro(caps=[Cap("0.004", per="run")])
    middleware = [MaestroMiddleware(maestro, exit_behavior="interrupt")]
    agent = create_agent(
        openai(max_tokens=300), [search], middleware=middleware, checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "t"}, "recursion_limit": 200}
    agent.invoke(ASK, config)
    with pytest.raises(ValueError, match=re.escape('answer {"add": "0.50"}')):
        agent.invoke(Command(resume="go on"), config)


def test_resume_lifts_the_latch_and_raises_only_that_runs_caps(provider, openai, make_maestro, tmp_path):
    """Granted in one process, obeyed in another: the grant is in the journal."""
    provider.reply = looping
    url = f"sqlite:///{tmp_path}/resume.db"
    maestro, other = (make_maestro(ledger=url, caps=[Cap("0.005", per="run")]) for _ in range(2))
    agent = loop_agent(openai(max_tokens=300), maestro, "error")
    with attribution(run="r1"), pytest.raises(CapExceeded):
        agent.invoke(ASK, {"recursion_limit": 200})
    before = len(provider.requests)
    other.resume("r1", add="0.003", by="ann")
    with attribution(run="r1"), pytest.raises(CapExceeded) as caught:
        agent.invoke(ASK, {"recursion_limit": 200})
    assert "> $0.008" in str(caught.value)
    assert len(provider.requests) > before
    assert_sound(maestro, provider, 8_000_000)


@pytest.mark.parametrize("model_kind", ["openai", "anthropic"])
def test_a_sequential_agent_spends_its_cap_before_it_is_told_no(
    model_kind, provider, openai, anthropic, make_maestro
):
    """Its context grows with every turn; what cannot be spent is less than one call."""
    provider.reply = lambda r: Reply(text="Hm. ", tool_calls=[("search", {"query": "x"})], output_tokens=300)
    cap = 40_000_000 if model_kind == "openai" else 400_000_000
    maestro = make_maestro(caps=[Cap(usd(cap), per="run")])
    model = (openai if model_kind == "openai" else anthropic)(max_tokens=1_000)
    with pytest.raises(CapExceeded) as caught:
        loop_agent(model, maestro, "error").invoke(BRIEF, {"recursion_limit": 1_000})
    assert caught.value.reason == "spent"
    assert_sound(maestro, provider, cap)
    assert provider.bill_nanos >= 0.95 * cap


# -- what is measured of a request --------------------------------------------------------------------------------------


def test_a_tool_that_has_changed_is_measured_as_it_is_now():
    @tool
    def look(place: str) -> str:
        """Look somewhere."""
        return place

    for description in ("Look somewhere.", "Look somewhere. " * 50):
        look.description = description
        for _ in range(2):
            assert as_sent(look) == convert_to_openai_tool(look)
    again = look.model_copy(update={"name": "glance"})
    assert as_sent(again)["function"]["name"] == "glance"
    plain = {"type": "web_search"}
    assert as_sent(plain) is plain
