"""Routed LLMs of LlamaIndex, over real HTTP to stand-ins that keep the true bill."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel
from sound import assert_sound

from maestro_core import SLA, Cap, CapExceeded, Endpoint, sla
from maestro_core.errors import EndpointsExhausted, NoEndpoint
from maestro_core.testing import Reply
from maestro_llamaindex import RoutedLLM, attach, detach

SAID = [ChatMessage("How do batteries age?")]
LONG = Reply(text="fine " * 400, input_tokens=20, output_tokens=1_000)  # its output is what costs
BURST = 64
WAYS = [
    "chat",
    "achat",
    "stream_chat",
    "astream_chat",
    "complete",
    "acomplete",
    "stream_complete",
    "astream_complete",
]


@pytest.fixture
def cheap(provider):
    return OpenAI(model="gpt-4o-mini", max_tokens=100, api_base=provider.openai_url, api_key="none")


@pytest.fixture
def dear(provider):
    return OpenAI(model="gpt-4.1-mini", max_tokens=100, api_base=provider.openai_url, api_key="none")


@pytest.fixture
def claude(provider):
    return Anthropic(
        model="claude-sonnet-4-5", max_tokens=100, base_url=provider.anthropic_url, api_key="none"
    )


def work(question: str) -> str:
    """Find something out."""
    return f"{question}: nothing"


async def ask(llm, way, said=SAID):
    """Ask in one of the eight ways; return the last of what came back."""
    payload = said if "chat" in way else said[0].content
    found = getattr(llm, way)(payload)
    if way.startswith("a"):
        found = await found
    if way.startswith("stream"):
        return list(found)[-1]
    if way.startswith("astream"):
        return [chunk async for chunk in found][-1]
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_the_cheapest_answers_and_the_decision_is_on_the_answer(
    way, provider, cheap, dear, make_maestro
):
    maestro = make_maestro(caps=[Cap("1", per="run")])
    answer = await ask(RoutedLLM(endpoints=[dear, cheap], maestro=maestro), way)
    assert [request.model for request in provider.requests] == ["gpt-4o-mini"]
    told = answer.additional_kwargs["maestro"]
    assert told["chosen"] == "gpt-4o-mini"
    assert told["cost_nanos"] == provider.bill_nanos
    assert_sound(maestro, provider)
    (record,) = maestro.ledger.records()
    assert (record.kind, record.estimated_nanos) == ("settled", 0)


@pytest.mark.parametrize("way", WAYS)
async def test_the_next_one_answers_when_the_first_fails(way, provider, cheap, dear, make_maestro):
    maestro = make_maestro()
    provider.reply = lambda r: Reply(status=500) if r.model == "gpt-4o-mini" else Reply(text="fine")
    answer = await ask(RoutedLLM(endpoints=[cheap, dear], maestro=maestro), way)
    assert [request.model for request in provider.requests] == ["gpt-4o-mini", "gpt-4.1-mini"]
    told = answer.additional_kwargs["maestro"]
    assert told["chosen"] == "gpt-4.1-mini"
    assert [each["failed"] for each in told["attempts"]] == ["server_error"]
    assert [record.kind for record in maestro.ledger.records()] == ["released", "settled"]
    assert_sound(maestro, provider)


@pytest.mark.parametrize("way", ["stream_chat", "astream_chat"])
async def test_a_stream_that_has_begun_fails_as_it_is_and_is_paid_for(
    way, provider, cheap, dear, make_maestro
):
    maestro = make_maestro()
    provider.reply = lambda r: Reply(text="a long answer " * 20, cut_after=6)
    with pytest.raises(Exception, match=r"(?i)peer closed|connection|incomplete"):
        await ask(RoutedLLM(endpoints=[cheap, dear], maestro=maestro), way)
    assert len(provider.requests) == 1
    provider.wait_idle()
    (record,) = maestro.ledger.records()
    assert record.estimated_nanos == record.cost_nanos >= provider.bill_nanos > 0


async def test_all_fail_or_none_may_serve(provider, cheap, dear, make_maestro):
    maestro = make_maestro()
    provider.reply = Reply(status=404)
    with pytest.raises(EndpointsExhausted) as failed:
        await RoutedLLM(endpoints=[cheap, dear], maestro=maestro).achat(SAID)
    assert len(failed.value.attempts) == 2
    llm = RoutedLLM(endpoints=[Endpoint(cheap, quality=0.5)], maestro=maestro)
    with sla(quality_min=0.9), pytest.raises(NoEndpoint, match="quality"):
        llm.chat(SAID)
    assert_sound(maestro, provider)


async def test_what_is_asked_decides(provider, cheap, dear, make_maestro):
    llm = RoutedLLM(
        endpoints=[Endpoint(cheap, quality=0.5), Endpoint(dear, quality=0.9)],
        sla=SLA(latency_ms_p95=60_000),
        maestro=make_maestro(),
    )
    await llm.achat(SAID)
    with sla(quality_min=0.8):
        await llm.achat(SAID)
    await llm.achat(SAID, sla=SLA(quality_min=0.8))
    assert [request.model for request in provider.requests] == ["gpt-4o-mini", "gpt-4.1-mini", "gpt-4.1-mini"]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("first", ["openai", "anthropic"])
async def test_an_agents_tools_are_told_to_each_in_its_own_dialect(
    first, streaming, provider, cheap, claude, make_maestro
):
    maestro = make_maestro(caps=[Cap("1", per="run")])
    order = {"openai": [cheap, claude], "anthropic": [claude, cheap]}[first]

    def reply(request):
        if request.number == 2:  # the first endpoint is gone in the middle of the conversation
            return Reply(status=503)
        return "done" if request.tool_results else Reply(tool_calls=[("work", {"question": "x"})])

    provider.reply = reply
    prices = [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}]
    endpoints = [Endpoint(llm, price=price) for llm, price in zip(order, prices, strict=True)]
    agent = FunctionAgent(
        name="boss", tools=[work], llm=RoutedLLM(endpoints=endpoints, maestro=maestro), streaming=streaming
    )
    assert str(await agent.run(user_msg="Go")) == "done"
    protocols = [request.protocol for request in provider.requests]
    assert len(set(protocols)) == 2
    assert protocols[0] == protocols[1] != protocols[2]
    last = provider.requests[-1]
    assert last.tool_results == ["x: nothing"]
    assert last.tool_names == ["work"]
    calls = [
        block
        for message in last.messages
        for block in message.get("content") or []
        if isinstance(block, dict)
    ]
    assert all(isinstance(call["input"], dict) for call in calls if call.get("type") == "tool_use")
    provider.wait_idle()
    assert maestro.ledger.holds() == []
    assert [record.kind for record in maestro.ledger.records()] == ["settled", "released", "settled"]


async def test_structured_output(provider, cheap, dear, make_maestro):
    class Answer(BaseModel):
        """What is known."""

        text: str

    maestro = make_maestro()
    provider.reply = lambda r: Reply(tool_calls=[("Answer", {"text": "fine"})])
    llm = RoutedLLM(endpoints=[cheap, dear], maestro=maestro)
    prompt = PromptTemplate("How do {what} age?")
    assert llm.structured_predict(Answer, prompt, what="batteries").text == "fine"
    assert (await llm.astructured_predict(Answer, prompt, what="batteries")).text == "fine"
    assert {request.model for request in provider.requests} == {"gpt-4o-mini"}
    assert_sound(maestro, provider)


async def test_the_endpoints_stay_as_they_are_and_retry_nothing_by_themselves(provider, cheap, make_maestro):
    maestro = make_maestro()
    provider.reply = lambda r: Reply(status=500, retry_after=0) if r.number < 3 else Reply(text="fine")
    await RoutedLLM(endpoints=[cheap], maestro=maestro).achat(SAID)
    assert len(provider.requests) == 3
    assert [record.kind for record in maestro.ledger.records()] == ["released", "released", "settled"]
    assert type(cheap) is OpenAI
    assert cheap.max_retries == 3


async def test_an_endpoint_that_is_attached_by_itself_counts_once(provider, cheap, dear, make_maestro):
    maestro = make_maestro(caps=[Cap("1", per="run")])
    attach(cheap, maestro)
    await RoutedLLM(endpoints=[cheap, dear], maestro=maestro).achat(SAID)
    assert len(provider.requests) == len(list(maestro.ledger.records())) == 1
    assert_sound(maestro, provider)


def test_it_says_what_every_endpoint_can_do(cheap, claude):
    llm = RoutedLLM(endpoints=[cheap, claude])
    assert llm.metadata.context_window == min(cheap.metadata.context_window, claude.metadata.context_window)
    assert llm.metadata.is_function_calling_model
    with pytest.raises(TypeError, match="no endpoint"):
        RoutedLLM(endpoints=[llm])
    with pytest.raises(TypeError, match="no endpoint"):
        RoutedLLM(endpoints=["gpt-4.1-mini"])


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("exit_behavior", "answer"),
    [("error", None), ("end", "Stopped: cap"), ("wrap_up", "This is what I know.")],
)
async def test_an_attached_agent_leaves_as_it_was_told_and_only_the_routed_model_reserves(
    exit_behavior, answer, streaming, provider, cheap, dear, make_maestro
):
    maestro = make_maestro(caps=[Cap("0.0008", per="run")])

    def reply(request):
        if not request.tools or request.body.get("tool_choice") == "none":
            return Reply(text="This is what I know.", output_tokens=30)
        return Reply(tool_calls=[("work", {"question": "x"})], output_tokens=30)

    provider.reply = reply
    llm = RoutedLLM(endpoints=[cheap, dear])
    agent = FunctionAgent(name="boss", tools=[work], llm=llm, streaming=streaming)
    attach(agent, maestro, exit_behavior=exit_behavior)
    if answer is None:
        with pytest.raises(CapExceeded):
            await agent.run(user_msg="Go", max_iterations=100)
    else:
        assert str(await agent.run(user_msg="Go", max_iterations=100)).startswith(answer)
    assert_sound(maestro, provider, 800_000)
    records = [record for record in maestro.ledger.records() if record.kind == "settled"]
    assert len(records) == len(provider.requests) > 3
    assert {record.attribution.value("agent") for record in records} == {"boss"}
    detach(agent)
    assert type(llm) is RoutedLLM


# -- bursts -----------------------------------------------------------------------------------------------------------


def cost_of_one(provider, cheap):
    cheap.chat(SAID)
    nanos = provider.bill_nanos
    provider.reset()
    return nanos


@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_a_burst_under_a_cap_worth_ten(way, provider, cheap, make_maestro):
    cheap.max_tokens, provider.reply = 2_000, LONG
    one = cost_of_one(provider, cheap)
    cap_nanos = one * 10 + one // 2
    maestro = make_maestro(caps=[Cap(f"{cap_nanos / 1e9:.9f}")])
    llm = RoutedLLM(endpoints=[cheap], maestro=maestro)
    refused = 0

    if way.startswith("a"):
        found = await asyncio.gather(*(ask(llm, way) for _ in range(BURST)), return_exceptions=True)
    else:

        def once(_):
            try:
                return asyncio.run(in_thread(llm, way))
            except Exception as error:  # noqa: BLE001 - looked at below
                return error

        with ThreadPoolExecutor(BURST) as threads:
            found = await asyncio.to_thread(lambda: list(threads.map(once, range(BURST))))
    refused = sum(isinstance(each, CapExceeded) for each in found)
    assert [each for each in found if isinstance(each, Exception) and not isinstance(each, CapExceeded)] == []
    assert len(provider.requests) + refused == BURST
    assert len(provider.requests) >= 9
    assert_sound(maestro, provider, cap_nanos)


async def in_thread(llm, way):
    # A thread that runs no event loop of its own while it asks, so that it may wait.
    return await asyncio.to_thread(
        lambda: llm.chat(SAID) if way == "chat" else list(llm.stream_chat(SAID))[-1]
    )


async def test_a_fan_out_of_agents_under_a_cap_worth_ten(provider, cheap, make_maestro):
    cheap.max_tokens, provider.reply = 2_000, LONG
    one = cost_of_one(provider, cheap)
    cap_nanos = one * 10 + one // 2
    maestro = make_maestro(caps=[Cap(f"{cap_nanos / 1e9:.9f}")])
    llm = RoutedLLM(endpoints=[cheap], maestro=maestro)
    flow = AgentWorkflow(agents=[FunctionAgent(name="boss", description="b", tools=[], llm=llm)])
    found = await asyncio.gather(*(flow.run(user_msg="Go") for _ in range(BURST)), return_exceptions=True)
    refused = [each for each in found if isinstance(each, CapExceeded)]
    # The rest of the cap may buy a short answer: that agent's call was sent, and what it got is cut.
    unsent = [error for error in refused if not getattr(error, "partial", "")]
    assert len(refused) - len(unsent) <= 1
    assert len(provider.requests) + len(unsent) == BURST
    assert len(provider.requests) >= 9
    assert_sound(maestro, provider, cap_nanos)
