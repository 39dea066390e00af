"""Routed models over real HTTP: the provider's own bill is the witness."""

from __future__ import annotations

import asyncio
import threading
from itertools import chain, repeat

import pytest
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from maestro_core import SLA, Cap, CapExceeded, Endpoint, NoEndpoint, attribution, sla
from maestro_core.errors import EndpointsExhausted
from maestro_core.testing import Reply
from maestro_core.types import Decision
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware, RoutedChatModel

FINE = Reply(text="fine", input_tokens=40, output_tokens=20)
DOWN = Reply(status=500)
ASK = {"messages": [("user", "How do batteries age?")]}


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


def slow_and_quick(west, east) -> list[Endpoint]:
    """A cheap endpoint that is said to be slow, and a dear one that is quick."""
    return [
        Endpoint(chat(west, "gpt-5-nano"), latency_ms_p95=60_000),
        Endpoint(chat(east, "gpt-5"), latency_ms_p95=50),
    ]


QUICKLY = SLA(latency_ms_p95=30_000)


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
async def test_a_cheaper_endpoint_is_taken_before_anything_is_refused(mode, routed, west, east):
    west.reply = east.reply = "fine"
    model, chosen = routed(*slow_and_quick(west, east), sla=QUICKLY, caps=[Cap("0.003")]), []
    with pytest.raises(CapExceeded) as refused:
        for _ in range(300):
            answer = await run(model, mode, "How do batteries age? " * 50)
            chosen.append(told(answer)["chosen"])
    assert refused.value.reason == "spent"
    assert chosen == sorted(chosen)  # the quick one until the cap has no room for it, then the other one
    assert set(chosen) == {"gpt-5", "gpt-5-nano"}
    kinds = [record.kind for record in model.maestro.ledger.records()]
    assert kinds == ["settled"] * len(chosen) + ["refused"]  # an endpoint that was passed over is no refusal
    assert_sound(model.maestro, west, east)
    assert west.bill_nanos + east.bill_nanos <= 3_000_000


@pytest.mark.parametrize(
    ("behavior", "cap", "turns"), [("error", "0.0045", 14), ("end", "0.0045", 14), ("wrap_up", "0.008", 24)]
)
async def test_an_agent_finishes_on_the_cheaper_endpoint(behavior, cap, turns, routed, west, east):
    def reply(request):
        if len(request.messages) > 2 * turns:
            return Reply(text="done")
        return Reply(tool_calls=[("add", {"a": 1, "b": len(request.messages)})], output_tokens=30)

    west.reply = east.reply = reply
    model = routed(*slow_and_quick(west, east), sla=QUICKLY, caps=[Cap(cap, per="run")])
    agent = create_agent(model, [add], middleware=[MaestroMiddleware(model.maestro, exit_behavior=behavior)])
    found = await agent.ainvoke(ASK, {"recursion_limit": 200})
    assert found["messages"][-1].text == "done"
    assert east.requests
    assert west.requests
    assert {record.kind for record in model.maestro.ledger.records()} == {"settled"}
    assert_sound(model.maestro, west, east)


@pytest.mark.parametrize("behavior", ["error", "end", "wrap_up"])
def test_an_agent_leaves_at_the_cap_as_it_is_told(behavior, routed, west, east):
    def reply(request):
        if not request.tools:
            return Reply(text="in short", output_tokens=5)
        return Reply(tool_calls=[("add", {"a": 1, "b": 2})], output_tokens=90)

    west.reply = east.reply = reply
    model = routed(caps=[Cap("0.004", per="run")])
    agent = create_agent(model, [add], middleware=[MaestroMiddleware(model.maestro, exit_behavior=behavior)])
    if behavior == "error":
        with pytest.raises(CapExceeded):
            agent.invoke(ASK, {"recursion_limit": 200})
    else:
        last = agent.invoke(ASK, {"recursion_limit": 200})["messages"][-1]
        assert last.text.startswith("in short" if behavior == "wrap_up" else "Stopped: cap exceeded")
    assert_sound(model.maestro, west, east)
    assert west.bill_nanos + east.bill_nanos <= 4_000_000


@pytest.mark.parametrize("behavior", ["error", "end"])
def test_an_answer_that_was_cut_because_of_the_cap_is_no_answer_for_an_agent(behavior, routed, west):
    west.reply = Reply(text="word " * 3_000)
    plain = routed(chat(west, max_tokens=4_000), caps=[Cap("0.0025")]).invoke("Hello")
    assert told(plain)["fitted_output_tokens"] < 3_000
    assert plain.response_metadata["finish_reason"] == "length"
    model = routed(chat(west, max_tokens=4_000), caps=[Cap("0.0025")])
    agent = create_agent(model, [], middleware=[MaestroMiddleware(model.maestro, exit_behavior=behavior)])
    if behavior == "end":
        assert "Stopped: cap exceeded" in agent.invoke(ASK)["messages"][-1].text
    else:
        with pytest.raises(CapExceeded, match="was cut at"):
            agent.invoke(ASK)
    assert len(west.requests) == 2


# -- waiting and breakers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
async def test_a_single_endpoint_is_asked_again_as_often_as_its_client_would(mode, routed, west):
    replies = iter([Reply(status=429, retry_after=0.1), DOWN, FINE])
    west.reply = lambda request: next(replies)
    model = routed(chat(west, max_retries=2))
    assert (await run(model, mode)).text == "fine"
    assert len(west.requests) == 3
    assert [record.kind for record in model.maestro.ledger.records()] == ["released", "released", "settled"]


def test_a_client_that_would_not_ask_again_is_not_asked_again(routed, west):
    west.reply = DOWN
    with pytest.raises(EndpointsExhausted):
        routed(chat(west, max_retries=0)).invoke("Hello")
    assert len(west.requests) == 1


def test_an_endpoint_that_asks_to_be_left_alone_is(routed, west, east):
    west.reply = Reply(status=429, retry_after=3_600)
    model = routed()
    for _ in range(5):
        assert told(model.invoke("Hello"))["chosen"] == "claude-sonnet-5"
    assert (len(west.requests), len(east.requests)) == (1, 5)
    verdicts = {each["name"]: each["verdict"] for each in told(model.invoke("Hello"))["candidates"]}
    assert verdicts["gpt-5-mini"].startswith("breaker:rate limited 3")


def test_an_open_breaker_keeps_calls_away_and_a_probe_brings_them_back(routed, west, east):
    model = routed()
    west.reply = DOWN
    for _ in range(10):
        model.invoke("Hello")
    assert (len(west.requests), len(east.requests)) == (3, 10)
    west.reply = FINE
    (breaker,) = [
        h.breaker for h in model.maestro.learned.health.values() if h.breaker.open_until_s is not None
    ]
    breaker.open_until_s = 0  # its time has come
    for _ in range(5):
        model.invoke("Hello")
    assert (len(west.requests), len(east.requests)) == (8, 10)


def test_what_one_model_object_learned_holds_for_the_next(routed, west, east, make_maestro):
    maestro = make_maestro()
    west.reply = DOWN
    for _ in range(6):
        routed(maestro=maestro).invoke("Hello")  # made anew for each request, as web applications do
    assert len(west.requests) == 3
    other_key = ChatOpenAI(model="gpt-5-mini", base_url=west.openai_url, api_key="another", max_retries=0)
    west.reply = FINE
    assert told(routed(other_key, claude(east), maestro=maestro).invoke("Hello"))["chosen"] == "gpt-5-mini"


def test_when_every_breaker_is_open_nothing_is_sent(routed, west, east):
    west.reply = east.reply = Reply(status=401)
    model = routed()
    with pytest.raises(EndpointsExhausted):
        model.invoke("Hello")
    with pytest.raises(NoEndpoint, match="until its credentials change") as raised:
        model.invoke("Hello")
    assert set(raised.value.rejected) == {"gpt-5-mini", "claude-sonnet-5"}
    assert (len(west.requests), len(east.requests)) == (1, 1)


async def test_of_many_calls_at_once_one_is_the_probe(routed, west, east):
    model = routed()
    west.reply = DOWN
    for _ in range(3):
        await model.ainvoke("Hello")
    (breaker,) = [
        h.breaker for h in model.maestro.learned.health.values() if h.breaker.open_until_s is not None
    ]
    breaker.open_until_s = 0
    west.reply = Reply(text="fine", delay_s=0.3)
    await asyncio.gather(*(model.ainvoke("Hello") for _ in range(8)))
    assert len(west.requests) == 3 + 1
    assert_sound(model.maestro, west, east)


class Hands:
    """A clock that only the test moves: no pause ends, and no probe takes too long, before it does.

    The router is made by the first call, which stands in the provider's books as request 1.
    """

    def __init__(self, model):
        assert model.invoke("Hello").text == "fine"
        self.now_s = 1_000.0
        model._router.now_s = lambda: self.now_s
        model.maestro.learned.health.clear()  # what was learned on the other clock

    async def past(self, seconds, provider, requests):
        """Let time pass, and return once so many requests have been made; whoever else would go has time to."""
        self.now_s += seconds
        async with asyncio.timeout(20):
            while len(provider.requests) < requests:  # noqa: ASYNC110 - another thread fills the list
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)


async def test_after_a_pause_one_call_sees_whether_a_lone_endpoint_still_refuses(routed, west):
    model = routed(chat(west, max_retries=2))
    hands = Hands(model)
    west.reply = Reply(status=429, retry_after=0.2)
    calls = [asyncio.create_task(model.ainvoke("Hello"))]
    await hands.past(0, west, 2)
    calls += [asyncio.create_task(model.ainvoke("Hello")) for _ in range(30)]
    await hands.past(0.3, west, 3)
    assert len(west.requests) == 3, "31 were waiting; one was refused again"
    west.reply = FINE
    await hands.past(0.3, west, 3 + 31)
    assert [answer.text for answer in await asyncio.gather(*calls)] == ["fine"] * 31
    assert len(west.requests) == 3 + 31
    assert_sound(model.maestro, west)


async def test_those_who_wait_go_when_the_probe_was_let_in_even_if_its_answer_takes_long(routed, west):
    answer = threading.Event()

    def slowly(request):
        answer.wait(30)
        return FINE

    turns = chain([lambda _: Reply(status=429, retry_after=0.2), slowly], repeat(lambda _: FINE))
    model = routed(chat(west, max_retries=1))
    hands = Hands(model)
    west.reply = lambda request: next(turns)(request)
    calls = [asyncio.create_task(model.ainvoke("Hello"))]
    await hands.past(0, west, 2)
    calls += [asyncio.create_task(model.ainvoke("Hello")) for _ in range(5)]
    await hands.past(0.3, west, 3)
    assert len(west.requests) == 3
    await hands.past(3.0, west, 3 + 5)
    assert sum(call.done() for call in calls) == 5
    answer.set()
    assert [answer.text for answer in await asyncio.gather(*calls)] == ["fine"] * 6
    assert_sound(model.maestro, west)


async def test_nobody_waits_for_the_probe_while_another_endpoint_is_well(routed, west, east):
    model = routed()
    hands = Hands(model)
    west.reply = Reply(status=429, retry_after=5)
    await model.ainvoke("Hello")
    answer = threading.Event()
    west.reply = lambda request: FINE if answer.wait(30) else DOWN
    hands.now_s += 6
    calls = [asyncio.create_task(model.ainvoke("Hello")) for _ in range(20)]
    done, (probe,) = await first(19, calls)
    assert {told(call.result())["chosen"] for call in done} == {"claude-sonnet-5"}
    assert len(west.requests) == 3
    answer.set()
    assert told(await probe)["chosen"] == "gpt-5-mini"
    back = await asyncio.gather(*(model.ainvoke("Hello") for _ in range(5)))
    assert {told(each)["chosen"] for each in back} == {"gpt-5-mini"}
    assert_sound(model.maestro, west, east)


async def first(many, calls):
    """Wait until so many have ended; return these, and the others."""
    done, rest = set(), set(calls)
    async with asyncio.timeout(20):
        while len(done) < many:
            ended, rest = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
            done |= ended
    return done, rest


# -- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["stream", "astream"])
@pytest.mark.parametrize(
    "status", [200, 503]
)  # a lost connection; an error after the chunk that says who speaks
async def test_a_stream_that_breaks_before_its_first_token_goes_on_elsewhere(
    mode, status, routed, west, east
):
    west.reply, model = Reply(text="fine", status=status, cut_after=0), routed()
    if mode == "stream":
        chunks = await asyncio.to_thread(lambda: list(model.stream("Hello")))
    else:
        chunks = [chunk async for chunk in model.astream("Hello")]
    assert "".join(chunk.text for chunk in chunks) == "fine"
    assert len({chunk.id for chunk in chunks}) == 1  # nothing of the first was passed on
    assert (len(west.requests), len(east.requests)) == (1, 1)


class Mute(BaseChatModel):
    """A user's own model, whose streams begin without a word and break."""

    @property
    def _llm_type(self):
        return "mute"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise ConnectionError

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        yield ChatGenerationChunk(message=AIMessageChunk(content=""))
        raise ConnectionError


@pytest.mark.parametrize("mode", ["stream", "astream"])
async def test_what_says_nothing_yet_is_not_passed_on(mode, routed, west):
    model = routed(Endpoint(Mute(), price={"input": "0", "output": "0"}), chat(west))
    if mode == "stream":
        chunks = await asyncio.to_thread(lambda: list(model.stream("Hello")))
    else:
        chunks = [chunk async for chunk in model.astream("Hello")]
    assert len({chunk.id for chunk in chunks}) == 1
    assert [each["failed"] for each in told(chunks[-1])["attempts"]] == ["connection"]


LONG = Reply(text="one two three four five six seven eight nine ten", cut_after=6)


@pytest.mark.parametrize("mode", ["stream", "astream"])
async def test_a_stream_that_breaks_later_raises_its_error_and_is_paid(mode, routed, west, east):
    west.reply, model, seen = LONG, routed(caps=[Cap("1")]), []
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each client has an error of its own
        if mode == "stream":
            for chunk in model.stream("Hello"):
                seen.append(chunk.text)  # noqa: PERF401 - what came before the error is wanted
        else:
            async for chunk in model.astream("Hello"):
                seen.append(chunk.text)  # noqa: PERF401 - what came before the error is wanted
    assert not isinstance(raised.value, EndpointsExhausted)
    assert "".join(seen).startswith("one")
    assert len(east.requests) == 0
    west.wait_idle()
    (record,) = model.maestro.ledger.records()
    assert record.kind == "settled"
    assert record.cost_nanos >= west.bill_nanos > 0


@pytest.mark.parametrize("mode", ["stream", "astream"])
async def test_a_stream_may_be_continued_elsewhere(mode, routed, west, east):
    west.reply, east.reply = LONG, Reply(text=" and so on")
    model = routed(resume_streams=True)
    answer = await run(model, mode)
    assert answer.text.startswith("one two")
    assert answer.text.endswith(" and so on")
    sent = [message["role"] for message in east.requests[0].messages]
    assert sent == ["user", "assistant", "user"]
    assert told(answer)["attempts"][0]["endpoint"] == "gpt-5-mini"


@pytest.mark.parametrize("mode", ["stream", "astream"])
async def test_a_stream_that_nobody_reads_to_its_end_is_paid_and_closed(mode, routed, west, east):
    west.reply, model = Reply(text="one two three four five", chunk_delay_s=0.02), routed(caps=[Cap("1")])
    if mode == "stream":
        for chunk in (flow := model.stream("Hello")):
            if chunk.text:
                break
        flow.close()
    else:
        async for chunk in (flow := model.astream("Hello")):
            if chunk.text:
                break
        await flow.aclose()
    west.wait_idle()
    (record,) = model.maestro.ledger.records()
    assert record.cost_nanos >= west.bill_nanos
    assert model.maestro.ledger.holds() == []


async def test_a_call_that_is_cancelled_keeps_its_money_and_goes_nowhere_else(routed, west, east):
    west.reply, model = Reply(hang_s=30), routed(caps=[Cap("1")])
    task = asyncio.create_task(model.ainvoke("Hello"))
    while not west.requests:  # noqa: ASYNC110 - the provider runs in threads
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(east.requests) == 0
    assert model.maestro.ledger.holds() == [] or model.maestro.ledger.holds()[0].state == "presumed"
    assert sum(s.cost_nanos for s in model.maestro.ledger.sums(())) >= west.bill_nanos


def test_the_last_chunk_says_that_it_is_and_bears_the_decision(routed, west, east):
    chunks = list(routed().stream("Hello"))
    assert [chunk.chunk_position for chunk in chunks][-1] == "last"
    assert [bool(chunk.response_metadata.get("maestro")) for chunk in chunks] == [False] * (
        len(chunks) - 1
    ) + [True]
    assert told(chunks[-1])["ttft_ms"] <= told(chunks[-1])["latency_ms"]


# -- what LangChain asks of a chat model ------------------------------------------------------------------------------


def test_generate_opens_no_run_of_its_own(routed, west, east):
    from langchain_core.messages import HumanMessage

    model, seen = routed(), Runs()
    found = model.generate([[HumanMessage("a")], [HumanMessage("b")]], callbacks=[seen])
    assert [each[0].text for each in found.generations] == ["fine", "fine"]
    assert seen.started == ["gpt-5-mini", "gpt-5-mini"]
    assert_sound(model.maestro, west, east)


@pytest.mark.filterwarnings("ignore:The method .* is in beta")
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_events_of_the_third_kind_show_one_run_and_pay_once(asynchronous, routed, west, east):
    west.reply = DOWN
    model = routed()
    handler = MaestroCallbackHandler(model.maestro)
    if asynchronous:
        flow = await model.astream_events("Hello", {"callbacks": [handler]}, version="v3")
        answer = await flow
    else:
        flow = model.stream_events("Hello", {"callbacks": [handler]}, version="v3")
        answer = flow.output
    assert answer.text == "fine"
    assert [record.kind for record in model.maestro.ledger.records()] == ["released", "settled"]
    assert_sound(model.maestro, west, east)


def test_a_run_id_names_the_first_attempt(routed, west, east):
    from uuid import uuid4

    west.reply, seen, name = DOWN, [], uuid4()

    class Ids(BaseCallbackHandler):
        def on_chat_model_start(self, *args, run_id, **kwargs):
            seen.append(run_id)

    routed().invoke("Hello", {"run_id": name, "callbacks": [Ids()]})
    assert seen[0] == name
    assert len(set(seen)) == 2


def test_tags_and_metadata_of_its_own_reach_the_attempts(routed, west, east):
    seen = []

    class Facts(BaseCallbackHandler):
        def on_chat_model_start(self, *args, tags, metadata, **kwargs):
            seen.append((set(tags), metadata["team"]))

    model = routed(tags=["routed"], metadata={"team": "growth"}, callbacks=[Facts()])
    model.with_config(tags=["mine"]).invoke("Hello")
    assert seen == [({"routed", "mine"}, "growth")]
    assert model.maestro.report("team", since="all").rows[0].key == {"team": "growth"}


def test_it_says_what_it_is(routed):
    model = routed(sla=SLA(latency_ms_p95=4_000))
    assert model._llm_type == "maestro-routed"
    assert model._identifying_params["sla"] == {"latency_ms_p95": 4_000}
    assert [each["name"] for each in model._identifying_params["endpoints"]] == [
        "claude-sonnet-5",
        "gpt-5-mini",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(["gpt-5"], "str is no chat model"), ([], "at least 1"), (["routed"], "no endpoint of another")],
)
def test_what_is_no_endpoint_is_told(wrong, message, routed):
    with pytest.raises((TypeError, ValueError), match=message):
        RoutedChatModel(endpoints=[routed() if each == "routed" else each for each in wrong])


# -- prices, needs, caches --------------------------------------------------------------------------------------------


def test_a_declared_price_decides_and_settles(routed, west, east):
    own = Endpoint(chat(west), name="gpu", price={"input": "0.01", "output": "0.02"})
    model = routed(chat(east, "gpt-5-nano"), own)
    answer = model.invoke("Hello")
    assert told(answer)["chosen"] == "gpu"
    (record,) = model.maestro.ledger.records()
    assert record.cost_nanos == 40 * 10 + 20 * 20
    with pytest.raises(Exception, match="endpoint price"):
        routed(Endpoint(chat(west), price={"inputs": "1"})).invoke("Hello")


def test_an_endpoint_without_a_price_comes_last(routed, west, east):
    model = routed(chat(west, "gpt-from-the-future"), chat(east, "gpt-5"))
    assert told(model.invoke("Hello"))["chosen"] == "gpt-5"


def test_what_a_model_is_known_not_to_do_excludes_it(routed, west, east):
    blind = chat(west, profile={"image_inputs": False, "max_input_tokens": 100_000})
    model = routed(blind, chat(east, "gpt-5"))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    answer = model.invoke([("user", [{"type": "text", "text": "What is it?"}, picture])])
    assert told(answer)["chosen"] == "gpt-5"
    assert told(answer)["candidates"][0]["verdict"] == "needs:images"


def test_a_prompt_that_is_too_long_goes_to_a_longer_context(routed, west, east):
    short = chat(west, profile={"max_input_tokens": 1_000})
    model = routed(short, chat(east, "gpt-5"))
    assert told(model.invoke("word " * 200))["chosen"] == "gpt-5-mini"
    answer = model.invoke("word " * 4_000)
    assert told(answer)["chosen"] == "gpt-5"
    assert told(answer)["candidates"][0]["verdict"].endswith("k>900")


def test_a_context_overflow_is_remembered_and_is_no_ill_health(routed, west, east):
    west.reply = Reply(status=400, error="too long", error_code="context_length_exceeded")
    model = routed(chat(west), chat(east, "gpt-5"))
    for _ in range(5):
        assert told(model.invoke("word " * 1_000))["chosen"] == "gpt-5"
    assert len(west.requests) == 1
    west.reply = FINE
    assert told(model.invoke("Hello"))["chosen"] == "gpt-5-mini"


def test_a_conversation_stays_where_its_prompt_is_cached(routed, west, east):
    """Sonnet's list price is three times Haiku's; a long prompt that it has in its cache is cheaper than anew."""
    west.reply = east.reply = None
    strong = Endpoint(claude(west, "claude-sonnet-4-5"), quality=0.9)
    weak = Endpoint(claude(east, "claude-haiku-4-5"), quality=0.5)
    model = routed(strong, weak)
    long = {"type": "text", "text": "word " * 20_000, "cache_control": {"type": "ephemeral"}}
    first = [("user", [long])]
    with sla(quality_min=0.9):
        answer = model.invoke(first)
    follow_up = [*first, answer, ("user", "And?")]
    found = told(model.invoke(follow_up))
    assert found["chosen"] == "claude-sonnet-4-5"
    assert "cached" in found["why"]
    assert told(model.invoke("And without a past?"))["chosen"] == "claude-haiku-4-5"
    assert_sound(model.maestro, west, east)


def test_history_of_another_maker_is_understood(routed, west, east):
    """Blocks that only their maker understands do not follow a conversation to another one."""
    from langchain_core.messages import AIMessage

    thought = AIMessage(
        [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "text", "text": "Three."},
            {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": 2}},
        ],
        tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "toolu_1"}],
        response_metadata={"model_provider": "anthropic"},
    )
    past = [("user", "1+2?"), thought, {"role": "tool", "tool_call_id": "toolu_1", "content": "3"}]
    reasoned = AIMessage(
        [{"type": "reasoning", "id": "rs_1", "summary": []}, {"type": "text", "text": "Three."}],
        response_metadata={"model_provider": "openai"},
    )
    assert routed(chat(west)).invoke(past).text == "fine"
    assert routed(chat(west, use_responses_api=True)).invoke(past).text == "fine"
    assert routed(claude(east)).invoke([("user", "1+2?"), reasoned, ("user", "Sure?")]).text == "fine"
    sent = [str(request.body) for request in (*west.requests, *east.requests)]
    assert not any("c2ln" in body or "rs_1" in body for body in sent)


# -- rules, savings, and being told -----------------------------------------------------------------------------------


def test_rules_say_which_endpoints_may_serve_whom(west, east, make_maestro):
    rules = [
        {"where": {"customer": "acme"}, "allow": ["anthropic:*"]},
        {"where": {"team": "growth"}, "deny": ["claude-*"]},
    ]
    model = RoutedChatModel(endpoints=[claude(east), chat(west)], maestro=make_maestro(rules=rules))
    assert told(model.invoke("Hello"))["chosen"] == "gpt-5-mini"
    with attribution(customer="acme"):
        found = told(model.invoke("Hello"))
        assert found["chosen"] == "claude-sonnet-5"
        assert found["candidates"][1]["verdict"] == "rule:allow anthropic:*"
        with attribution(team="growth"), pytest.raises(NoEndpoint, match="rule:deny claude-"):
            model.invoke("Hello")
    assert told(model.invoke("Hello", {"metadata": {"customer": "acme"}}))["chosen"] == "claude-sonnet-5"


def test_a_call_may_be_pinned_and_comes_under_the_rules_still(west, east, make_maestro):
    rules = [{"where": {"customer": "acme"}, "deny": ["claude-*"]}]
    model = RoutedChatModel(endpoints=[claude(east), chat(west)], maestro=make_maestro(rules=rules))
    found = told(model.invoke("Hello", model="claude-sonnet-5"))
    assert found["chosen"] == "claude-sonnet-5"
    assert found["candidates"][1]["verdict"] == "rule:pinned to claude-sonnet-5"
    with attribution(customer="acme"), pytest.raises(NoEndpoint):
        model.invoke("Hello", model="claude-sonnet-5")


def test_a_rule_that_says_nothing_is_told(make_maestro):
    with pytest.raises(Exception, match="a rule allows or denies endpoints"):
        make_maestro(rules=[{"where": {"customer": "acme"}}])


def test_a_plugin_knows_better_what_is_good_enough(routed, west, east):
    from maestro_core import hookimpl

    class Judge:
        @hookimpl
        def maestro_quality(self, call, endpoint):
            hard = "prove" in str(call.history)
            return 0.3 if hard and endpoint.quality < 0.8 else None

    model = routed(
        Endpoint(chat(west), quality=0.7), Endpoint(claude(east), quality=0.9), sla=SLA(quality_min=0.6)
    )
    model.maestro.plugins.register(Judge())
    assert told(model.invoke("greet me"))["chosen"] == "gpt-5-mini"
    assert told(model.invoke("prove it"))["chosen"] == "claude-sonnet-5"


def test_savings_are_told_against_a_baseline_with_a_cache_of_its_own(routed, west, east):
    """What the same calls come to at the baseline alone, by its provider's own bill, is what was told."""
    west.reply = east.reply = None
    text = {"type": "text", "text": "word " * 6_000, "cache_control": {"type": "ephemeral"}}
    cheap, strong = claude(west, "claude-haiku-4-5"), claude(east, "claude-sonnet-4-5")
    model = routed(cheap, strong, baseline="claude-sonnet-4-5")
    past, would = [("user", [text])], 0
    for _ in range(3):
        answer = model.invoke(past)
        strong.invoke(past)
        would += told(answer)["baseline"]["cost_nanos"]
        past = [*past, answer, ("user", "And?")]
    assert len(west.requests) == 3
    assert would == pytest.approx(east.bill_nanos, rel=0.02)
    assert would > 2 * west.bill_nanos
    with pytest.raises(ValueError, match="none of the endpoints"):
        routed(baseline="gpt-9")


def test_a_run_is_told_with_its_decisions(routed, west, east, tmp_path, make_maestro, capsys):
    from maestro_core.cli import main

    url = f"sqlite:///{tmp_path}/told.db"
    maestro = make_maestro(ledger=url)
    west.reply = DOWN
    model = routed(maestro=maestro, baseline="claude-sonnet-5")
    with attribution(run="run-7"):
        model.invoke("Hello")
    maestro.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAESTRO_LEDGER", url)
        assert main(["show", "run-7"]) in {0, None}
    shown = capsys.readouterr().out
    assert "routed to claude-sonnet-5: the only one that qualifies" in shown
    assert "before it, gpt-5-mini failed: server_error" in shown
    assert "not gpt-5-mini: failed:server_error" in shown
    assert "claude-sonnet-5 would have cost $" in shown


@pytest.mark.parametrize(
    ("tool", "need", "chosen"),
    [
        ({"type": "web_search_20250305", "name": "web_search"}, "anthropic_tools", "claude-sonnet-5"),
        ({"type": "web_search_preview"}, "openai_tools", "gpt-5"),
        ({"google_search": {}}, "google_tools", None),
    ],
)
def test_a_tool_that_runs_at_its_makers_goes_to_that_maker(tool, need, chosen, routed, west, east):
    model = routed(chat(west, "gpt-5"), claude(east)).bind_tools([tool, add])
    if chosen is None:
        with pytest.raises(NoEndpoint, match=f"needs:{need}"):
            model.invoke("Hello")
        return
    found = told(model.invoke("Hello"))
    assert found["chosen"] == chosen
    assert f"needs:{need}" in {each["verdict"] for each in found["candidates"]}


@pytest.mark.parametrize("choice", ["any", "required", "add", "auto", "none", None])
def test_a_choice_of_tools_is_understood_by_every_maker(choice, routed, west, east):
    for endpoint, provider in ((chat(west), west), (claude(east), east)):
        routed(endpoint).bind_tools([add], tool_choice=choice).invoke("Hello")
        sent = provider.requests[-1].body.get("tool_choice")
        kind = sent if isinstance(sent, str | None) else sent.get("type")
        wanted = {"any": {"any", "required"}, "required": {"any", "required"}, "add": {"tool", "function"}}
        assert kind in wanted.get(choice, {choice})
