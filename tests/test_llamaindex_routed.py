"""Routed LLMs over real HTTP: the provider's own bill is the witness."""

from __future__ import annotations

import asyncio
import math

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel
from sound import usd

from maestro_core import SLA, Cap, CapExceeded, Endpoint, NoEndpoint, attribution, sla
from maestro_core.testing import Reply
from maestro_llamaindex import MaestroCallbackHandler, RoutedLLM, attach, install, installation

FINE = Reply(text="fine", input_tokens=40, output_tokens=20)
DOWN = Reply(status=500)
ASK = [ChatMessage("How do batteries age?")]


def gpt(provider, **kwargs):
    kwargs = {"model": "gpt-4o-mini", "max_tokens": 100, "max_retries": 0, **kwargs}
    return OpenAI(api_base=provider.openai_url, api_key="none", **kwargs)


def claude(provider, **kwargs):
    kwargs = {"model": "claude-sonnet-4-5", "max_tokens": 100, "max_retries": 0, **kwargs}
    return Anthropic(base_url=provider.anthropic_url, api_key="none", **kwargs)


@pytest.fixture
def routed(west, east, make_maestro):
    """Make a routed LLM: a dear endpoint, declared first, and a cheap one."""

    def make(*endpoints, caps=(), **kwargs):
        chosen = endpoints or (claude(east), gpt(west))
        return RoutedLLM(endpoints=list(chosen), maestro=make_maestro(caps=list(caps)), **kwargs)

    return make


def assert_sound(llm, *providers, cap_nanos=None):
    for each in providers:
        each.wait_idle()
    ledger, bill = llm.maestro.ledger, sum(each.bill_nanos for each in providers)
    assert ledger.check() == []
    assert ledger.holds() == []
    assert sum(s.cost_nanos for s in ledger.sums(())) == bill
    if cap_nanos is not None:
        assert bill <= cap_nanos


async def listen(llm):
    return [chunk async for chunk in await llm.astream_chat(ASK)][-1]


async def listen_to_text(llm):
    return [chunk async for chunk in await llm.astream_complete("q")][-1]


async def now(value):
    return value


WAYS = {
    "chat": lambda llm: asyncio.to_thread(llm.chat, ASK),
    "achat": lambda llm: llm.achat(ASK),
    "stream_chat": lambda llm: asyncio.to_thread(lambda: list(llm.stream_chat(ASK))[-1]),
    "astream_chat": listen,
    "complete": lambda llm: asyncio.to_thread(llm.complete, "q"),
    "acomplete": lambda llm: llm.acomplete("q"),
    "stream_complete": lambda llm: asyncio.to_thread(lambda: list(llm.stream_complete("q"))[-1]),
    "astream_complete": listen_to_text,
}


@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_who_hangs_is_left_in_time_and_counted_at_its_hold(way, routed, west, east):
    west.reply, llm = Reply(hang_s=math.inf), routed(sla=SLA(latency_ms_p95=300))
    async with asyncio.timeout(30):  # its client would wait for minutes
        answer = await WAYS[way](llm)
    (failed,) = answer.additional_kwargs["maestro"]["attempts"]
    assert (failed["endpoint"], failed["failed"]) == ("gpt-4o-mini", "timeout")
    ledger = llm.maestro.ledger
    assert ledger.check() == []
    counted = sum(each.cost_nanos for each in ledger.sums(()))
    assert counted >= 100 * 600 + east.bill_nanos, "100 output tokens at 0.60 dollars per million"


@pytest.mark.parametrize("way", WAYS)
async def test_the_cheapest_endpoint_serves_and_the_next_one_takes_over(way, routed, west, east):
    llm = routed()
    answer = await WAYS[way](llm)
    assert (len(west.requests), len(east.requests)) == (1, 0)
    assert answer.additional_kwargs["maestro"]["chosen"] == "gpt-4o-mini"
    assert answer.additional_kwargs["maestro"]["cost_nanos"] == west.bill_nanos
    west.reply = DOWN
    answer = await WAYS[way](llm)
    assert (len(west.requests), len(east.requests)) == (2, 1)
    assert answer.additional_kwargs["maestro"]["chosen"] == "claude-sonnet-4-5"
    assert [each["endpoint"] for each in answer.additional_kwargs["maestro"]["attempts"]] == ["gpt-4o-mini"]
    assert_sound(llm, west, east)
    records = [record for record in llm.maestro.ledger.records() if record.kind == "settled"]
    assert [record.model for record in records] == ["gpt-4o-mini", "claude-sonnet-4-5"]


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_goes_on_elsewhere_in_the_middle_of_its_work(streaming, routed, west, east):
    """The second half of a conversation with tools goes to another maker, who is told of them in its own dialect."""

    def work(question: str) -> str:
        """Find something out."""
        return f"{question}: nothing"

    west.reply = [Reply(tool_calls=[("work", {"question": "x"})], output_tokens=30), *[DOWN] * 5]
    east.reply = [Reply(tool_calls=[("work", {"question": "y"})], output_tokens=30), FINE]
    llm = routed()
    agent = FunctionAgent(name="boss", tools=[work], llm=llm, streaming=streaming)
    with attribution(team="growth"):
        assert str(await agent.run(user_msg="Go")) == "fine"
    assert [block["input"] for block in east.requests[0].body["messages"][1]["content"]] == [
        {"question": "x"}
    ]
    assert_sound(llm, west, east)
    records = [record for record in llm.maestro.ledger.records() if record.kind == "settled"]
    assert len(records) == 3
    assert {record.attribution.dimensions["team"] for record in records} == {"growth"}
    assert len({record.attribution.dimensions["run"] for record in records}) == 1


@pytest.mark.parametrize(
    ("exit_behavior", "answer"), [("error", None), ("end", "Stopped"), ("wrap_up", "I know")]
)
async def test_an_attached_agent_leaves_as_it_was_told(exit_behavior, answer, routed, west, east):
    def work(question: str) -> str:
        """Find something out."""
        return f"{question}: nothing"

    def loops(request):
        if request.tools:
            return Reply(tool_calls=[("work", {"question": "x"})], output_tokens=30)
        return Reply(text="I know enough.", output_tokens=30)

    west.reply = loops
    llm = routed(gpt(west), gpt(east, model="gpt-4.1-mini"), caps=[Cap("0.001", per="run")])
    agent = FunctionAgent(name="boss", tools=[work], llm=llm)
    assert attach(agent, llm.maestro, exit_behavior=exit_behavior) is agent
    if answer is None:
        with pytest.raises(CapExceeded):
            await agent.run(user_msg="Go", max_iterations=500)
    else:
        assert str(await agent.run(user_msg="Go", max_iterations=500)).startswith(answer)
    assert_sound(llm, west, east, cap_nanos=1_000_000)


@pytest.mark.parametrize("way", WAYS)
async def test_a_burst_is_served_while_money_is_there(way, routed, west):
    west.reply = Reply(output_tokens=1_000, delay_s=0.03)
    price = gpt(west, max_tokens=None)
    price.chat(ASK)
    west.wait_idle()
    cap, _ = 10 * west.bill_nanos, west.reset()
    llm = routed(gpt(west, max_tokens=None), caps=[Cap(usd(cap))])
    outcomes = await asyncio.gather(*(WAYS[way](llm) for _ in range(64)), return_exceptions=True)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, CapExceeded)]
    served = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(served) + len(refusals) == 64
    assert_sound(llm, west, cap_nanos=cap)
    assert len(served) >= 9


def test_handlers_beside_it_count_nothing_twice(routed, west, east, monkeypatch):
    monkeypatch.setattr(installation._everywhere, "handler", None)
    monkeypatch.setattr(installation._everywhere, "given", None)
    llm = routed(caps=[Cap("1")])
    install(llm.maestro)
    llm.chat(ASK)
    assert_sound(llm, west, east)
    assert len(west.requests) == 1
    assert MaestroCallbackHandler(llm.maestro).maestro is llm.maestro


def test_structured_answers(routed, west, east):
    class City(BaseModel):
        name: str

    west.reply = Reply(tool_calls=[("City", {"name": "Bern"})], output_tokens=20)
    llm = routed()
    assert llm.structured_predict(City, PromptTemplate("Name one")).name == "Bern"
    assert_sound(llm, west, east)


def test_what_is_asked_of_the_endpoints(routed, west, east):
    llm = routed(Endpoint(gpt(west), quality=0.5), Endpoint(claude(east), quality=0.9))
    with sla(quality_min=0.8):
        assert llm.chat(ASK).additional_kwargs["maestro"]["chosen"] == "claude-sonnet-4-5"
    assert (
        llm.chat(ASK, sla=SLA(quality_min=0.8)).additional_kwargs["maestro"]["chosen"] == "claude-sonnet-4-5"
    )
    assert (
        llm.chat(ASK, model="claude-sonnet-4-5").additional_kwargs["maestro"]["chosen"] == "claude-sonnet-4-5"
    )
    assert llm.chat(ASK).additional_kwargs["maestro"]["chosen"] == "gpt-4o-mini"
    with pytest.raises(NoEndpoint), sla(quality_min=0.99):
        llm.chat(ASK)
    assert llm.metadata.context_window == min(
        gpt(west).metadata.context_window, claude(east).metadata.context_window
    )
    assert_sound(llm, west, east)
