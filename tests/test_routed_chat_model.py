"""Routed models over real HTTP: the provider's own bill is the witness."""

from __future__ import annotations

import asyncio

import pytest
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from maestro_core import SLA, Cap, CapExceeded, Endpoint, NoEndpoint, attribution, sla
from maestro_core.errors import EndpointsExhausted
from maestro_core.testing import FakeProvider, Reply
from maestro_core.types import Decision
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware, RoutedChatModel

FINE = Reply(text="fine", input_tokens=40, output_tokens=20)
DOWN = Reply(status=500)
ASK = {"messages": [("user", "How do batteries age?")]}


@pytest.fixture
def west():
    """A provider whose models are cheap."""
    with FakeProvider(FINE, keep_alive=False) as running:
        yield running


@pytest.fixture
def east():
    """A provider whose models are dear."""
    with FakeProvider(FINE, keep_alive=False) as running:
        yield running


def chat(provider, model="gpt-5-mini", **kwargs) -> ChatOpenAI:
    kwargs = {"max_tokens": 100, "max_retries": 0, **kwargs}
    return ChatOpenAI(model=model, base_url=provider.openai_url, api_key="none", **kwargs)


def claude(provider, model="claude-sonnet-5", **kwargs) -> ChatAnthropic:
    kwargs = {"max_tokens": 100, "max_retries": 0, **kwargs}
    return ChatAnthropic(model=model, base_url=provider.anthropic_url, api_key="none", **kwargs)


@pytest.fixture
def routed(west, east, make_maestro):
    """Make a routed model: a dear endpoint, declared first, and a cheap one."""

    def make(*endpoints, caps=(), **kwargs):
        chosen = endpoints or (claude(east), chat(west))
        maestro = kwargs.pop("maestro", None) or make_maestro(caps=list(caps))
        return RoutedChatModel(endpoints=list(chosen), maestro=maestro, **kwargs)

    return make


def told(message) -> dict:
    return message.response_metadata["maestro"]


def assert_sound(maestro, *providers):
    """Nothing is held, and the ledger says what the providers bill."""
    for provider in providers:
        provider.wait_idle()
    assert maestro.ledger.holds() == []
    assert maestro.ledger.check() == []
    bills = sum(provider.bill_nanos for provider in providers)
    assert sum(s.cost_nanos for s in maestro.ledger.sums(())) == bills


class Runs(BaseCallbackHandler):
    """Notes which model runs a user's own handler sees."""

    def __init__(self):
        self.started, self.ended, self.failed = [], [], []

    def on_chat_model_start(self, serialized, messages, *, run_id, metadata=None, **kwargs):
        self.started.append(metadata["ls_model_name"])

    def on_llm_end(self, response, **kwargs):
        self.ended.append(response.generations[0][0].message.usage_metadata["total_tokens"])

    def on_llm_error(self, error, **kwargs):
        self.failed.append(type(error).__name__)


class City(BaseModel):
    """A city."""

    name: str


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def run(model, mode, ask="Hello", config=None):
    """Call a model in one of LangChain's ways; return its whole answer."""
    if mode == "invoke":
        return await asyncio.to_thread(model.invoke, ask, config)
    if mode == "ainvoke":
        return await model.ainvoke(ask, config)
    if mode == "batch":
        return (await asyncio.to_thread(model.batch, [ask], config))[0]
    if mode == "abatch":
        return (await model.abatch([ask], config))[0]
    if mode == "stream":
        chunks = await asyncio.to_thread(lambda: list(model.stream(ask, config)))
    else:
        chunks = [chunk async for chunk in model.astream(ask, config)]
    return sum(chunks[1:], start=chunks[0])


MODES = ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"]

# -- choosing and failing over ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_each_call_goes_to_the_cheapest(mode, routed, west, east):
    model = routed()
    answer = await run(model, mode)
    assert (answer.text, len(west.requests), len(east.requests)) == ("fine", 1, 0)
    assert told(answer)["chosen"] == "gpt-5-mini"
    assert told(answer)["cost_nanos"] == west.bill_nanos > 0
    assert_sound(model.maestro, west, east)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [429, 500, 503, 401, 404])
async def test_a_failure_goes_on_to_the_next(mode, status, routed, west, east):
    west.reply = Reply(status=status)
    model, seen = routed(), Runs()
    answer = await run(model, mode, config={"callbacks": [seen]})
    assert (answer.text, len(west.requests), len(east.requests)) == ("fine", 1, 1)
    assert told(answer)["chosen"] == "claude-sonnet-5"
    assert [each["endpoint"] for each in told(answer)["attempts"]] == ["gpt-5-mini"]
    assert seen.started == ["gpt-5-mini", "claude-sonnet-5"]  # one run for each attempt, under its true name
    assert (seen.ended, len(seen.failed)) == ([60], 1)
    kinds = [record.kind for record in model.maestro.ledger.records()]
    assert kinds == ["released", "settled"]
    assert_sound(model.maestro, west, east)


def test_a_bad_request_is_the_callers_and_goes_nowhere_else(routed, west, east):
    west.reply = Reply(status=400)
    with pytest.raises(Exception, match="400") as raised:
        routed().invoke("Hello")
    assert not isinstance(raised.value, EndpointsExhausted)
    assert (len(west.requests), len(east.requests)) == (1, 0)


def test_when_all_fail_every_attempt_is_told(routed, west, east):
    west.reply = east.reply = DOWN
    model = routed()
    with pytest.raises(EndpointsExhausted) as raised:
        model.invoke("Hello")
    assert [name for name, _ in raised.value.attempts] == ["gpt-5-mini", "claude-sonnet-5"]
    assert isinstance(raised.value.__cause__, ExceptionGroup)
    assert [record.kind for record in model.maestro.ledger.records()] == ["released", "released"]
    assert_sound(model.maestro, west, east)


async def test_an_agent_uses_it_as_any_model(routed, west, east):
    calls = iter(
        [Reply(tool_calls=[("add", {"a": 1, "b": 2})], input_tokens=50, output_tokens=9), DOWN, DOWN]
    )
    west.reply = lambda request: next(calls)
    model = routed()
    agent = create_agent(model, [add], middleware=[MaestroMiddleware(model.maestro)], name="boss")
    found = await agent.ainvoke(ASK)
    assert found["messages"][-1].text == "fine"
    assert found["messages"][-2].content == "3"
    assert (len(west.requests), len(east.requests)) == (2, 1)
    assert east.requests[0].tool_names == ["add"]  # in its own dialect
    kinds = [record.kind for record in model.maestro.ledger.records()]
    assert kinds == ["settled", "released", "settled"]  # the middleware held nothing beside it
    assert [row.key for row in model.maestro.report("agent", since="all").rows] == [{"agent": "boss"}]
    assert_sound(model.maestro, west, east)


@pytest.mark.parametrize("attached", ["alone", "config", "constructor", "middleware"])
def test_doors_that_are_stacked_count_a_call_once(attached, routed, west, east, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    handler = MaestroCallbackHandler(maestro)
    model = routed(maestro=maestro, **({"callbacks": [handler]} if attached == "constructor" else {}))
    config = {"callbacks": [handler]} if attached != "alone" else None
    if attached == "middleware":
        create_agent(model, [], middleware=[MaestroMiddleware(maestro)]).invoke(ASK, config)
    else:
        model.invoke("Hello", config)
    (record,) = maestro.ledger.records()
    assert record.kind == "settled"
    assert record.detail["decision"]["chosen"] == "gpt-5-mini"
    assert_sound(maestro, west, east)


def test_a_structured_answer_comes_from_whoever_serves(routed, west, east):
    west.reply, east.reply = DOWN, None
    model = routed()
    found = model.with_structured_output(City).invoke("Which city?")
    assert isinstance(found, City)
    assert (len(west.requests), len(east.requests)) == (1, 1)


def test_the_decision_in_the_record_can_be_made_again(routed, west, east):
    from maestro_core.routing import decide

    model = routed()
    model.invoke("Hello")
    (record,) = model.maestro.ledger.records()
    read = Decision.from_dict(record.detail["decision"])
    assert decide(read.candidates, read.sla, explore=read.explore) == read


def test_without_a_qualifying_endpoint_each_reason_is_told(routed, west, east):
    model = routed(Endpoint(chat(west), quality=0.5), chat(east, "gpt-5"), sla=SLA(quality_min=0.9))
    with pytest.raises(NoEndpoint) as raised:
        model.invoke("Hello")
    assert raised.value.rejected == {"gpt-5-mini": "quality:0.50<0.90", "gpt-5": "quality:undeclared<0.90"}
    assert (len(west.requests), len(east.requests)) == (0, 0)


def test_what_is_asked_may_differ_by_call(routed, west, east):
    model = routed(Endpoint(chat(west), quality=0.5), Endpoint(claude(east), quality=0.9))
    model.invoke("Hello")
    with sla(quality_min=0.8):
        model.invoke("Hello")
    model.bind(sla=SLA(quality_min=0.8)).invoke("Hello")
    assert (len(west.requests), len(east.requests)) == (1, 2)


# -- caps -------------------------------------------------------------------------------------------------------------


def test_a_refusal_says_which_cap_and_sends_nothing(routed, west, east):
    model = routed(caps=[Cap("0.000001")])
    with pytest.raises(CapExceeded):
        model.invoke("Hello")
    assert (len(west.requests), len(east.requests)) == (0, 0)
    assert [record.kind for record in model.maestro.ledger.records()] == ["refused"]


def test_all_attempts_of_a_call_belong_to_one_run(routed, west, east):
    west.reply = DOWN
    model = routed(caps=[Cap("1", per="run")])
    with attribution(team="growth"):
        answer = model.invoke("Hello")
    runs = {record.run for record in model.maestro.ledger.records()}
    assert runs == {told(answer)["run"]}
    assert model.maestro.report("team", since="all").rows[0].key == {"team": "growth"}
