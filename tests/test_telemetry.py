"""Spans as a backend receives them: through the user's provider, and over OTLP to a real HTTP receiver."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from opentelemetry import trace
from opentelemetry._logs import _internal as logs_internal
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

from maestro_core import Cap, CapExceeded, attribution
from maestro_core.telemetry import guard
from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware, RoutedChatModel


@pytest.fixture
def spans(monkeypatch):
    """The user's own tracer provider, with what it exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def ask(agent, maestro, **config):
    with attribution(team="growth", customer="acme"):
        config = {"callbacks": [MaestroCallbackHandler(maestro)], **config}
        return agent.invoke({"messages": [("user", "go " * 500)]}, config=config)


def test_the_tree_is_agent_tool_and_model(spans, researcher, provider, make_maestro):
    ask(researcher, make_maestro(), configurable={"thread_id": "t-1"})
    found = {span.name: span for span in spans.get_finished_spans()}
    assert sorted(found) == ["chat gpt-5-mini", "execute_tool search", "invoke_agent researcher"]
    agent = found["invoke_agent researcher"]
    assert agent.parent is None
    for span in spans.get_finished_spans():
        assert span.attributes["maestro.team"] == "growth"
        assert span.attributes["gen_ai.agent.name"] == "researcher"
        assert span.attributes["gen_ai.conversation.id"] == "t-1"
        if span is not agent:
            assert span.parent.span_id == agent.context.span_id
    chat = found["chat gpt-5-mini"]
    assert chat.kind is trace.SpanKind.CLIENT
    assert chat.attributes["gen_ai.provider.name"] == "openai"
    assert chat.attributes["gen_ai.usage.input_tokens"] == 1_200
    assert chat.attributes["gen_ai.usage.cache_read.input_tokens"] == 1_000


def test_a_span_that_has_ended_is_not_kept(spans, researcher, make_maestro):
    class Watching(SpanProcessor):
        def on_start(self, span, parent_context=None):
            started.append(weakref.ref(span))

    started = []
    trace.get_tracer_provider().add_span_processor(Watching())
    maestro = make_maestro()
    ask(researcher, maestro)
    gc.collect()
    assert [each() for each in started] == [None] * 4


def test_what_comes_after_its_agents_end_stands_below_it(spans, make_maestro):
    runs = make_maestro().runs
    runs.enter("a", None, kind="agent", name="boss")
    runs.leave("a")
    runs.enter("t", "a", kind="tool", name="search")
    runs.leave("t")
    agent, tool = spans.get_finished_spans()
    assert (tool.context.trace_id, tool.parent.span_id) == (agent.context.trace_id, agent.context.span_id)


def test_span_costs_add_up_to_the_bill(spans, researcher, provider, make_maestro):
    ask(researcher, make_maestro())
    costs = [span.attributes.get("maestro.cost.nano_usd") for span in spans.get_finished_spans()]
    assert sum(filter(None, costs)) == provider.bill_nanos > 0
    assert costs.count(None) == 2  # the agent and the tool carry no cost, so that no sum doubles


def test_a_refusal_is_an_error_without_cost(spans, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    with pytest.raises(CapExceeded):
        openai().invoke("hello " * 300, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    (span,) = spans.get_finished_spans()
    assert span.attributes["maestro.refused"] == "ceiling"
    assert span.attributes["error.type"] == "CapExceeded"
    assert "gen_ai.usage.cost" not in span.attributes


ASKED = {"messages": [("user", "go")]}


@pytest.mark.parametrize("door", ["middleware", "routed", "routed in middleware"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_a_door_refuses_stands_below_its_agent(spans, openai, make_maestro, door, asynchronous):
    maestro = make_maestro(caps=[Cap("0.000001")])
    model = openai() if door == "middleware" else RoutedChatModel(endpoints=[openai()], maestro=maestro)
    middleware = [] if door == "routed" else [MaestroMiddleware(maestro)]
    agent = create_agent(model, [], middleware=middleware, name="boss")
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    with pytest.raises(CapExceeded):
        if asynchronous:
            await agent.ainvoke(ASKED, config=config)
        else:
            agent.invoke(ASKED, config=config)
    refused, top = spans.get_finished_spans()
    assert (refused.name, top.name) == ("chat gpt-5-mini", "invoke_agent boss")
    assert refused.parent.span_id == top.context.span_id
    assert refused.attributes["maestro.refused"] == "ceiling"
    assert refused.status.status_code is trace.StatusCode.ERROR
    assert [event.name for event in refused.events] == ["maestro.refusal"]


def test_an_agent_that_ends_quietly_at_its_cap_shows_why(spans, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    agent = create_agent(openai(), [], middleware=[MaestroMiddleware(maestro, exit_behavior="end")])
    agent.invoke(ASKED)
    refused, top = spans.get_finished_spans()
    assert top.status.status_code is trace.StatusCode.UNSET
    assert refused.attributes["maestro.refused"] == "ceiling"


def test_a_tool_that_may_not_be_paid_for_is_shown(spans, make_researcher, make_maestro):
    prices = [{"tool": "search", "per_call": "0.05"}]
    maestro = make_maestro(caps=[Cap("0.04")], prices=prices)
    with pytest.raises(CapExceeded):
        ask(make_researcher(), maestro)
    (tool,) = [s for s in spans.get_finished_spans() if s.name == "execute_tool search"]
    assert tool.attributes["maestro.refused"]
    assert tool.attributes["gen_ai.agent.name"] == "researcher"


def test_a_loop_is_shown_on_its_agent(spans, provider, make_researcher, make_maestro):
    agent = make_researcher()
    provider.reply = lambda request: (
        Reply(tool_calls=[("search", {"query": "x"})]) if len(request.messages) < 14 else Reply(text="done")
    )
    maestro = make_maestro(alerts={"log": False})
    agent.invoke(ASKED, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    (top,) = [s for s in spans.get_finished_spans() if s.name == "invoke_agent researcher"]
    assert top.attributes["maestro.anomaly"] == "loop"
    assert [(e.name, e.attributes["maestro.reason"]) for e in top.events] == [
        ("maestro.anomaly", "tool search")
    ]


@pytest.fixture
def logs(monkeypatch):
    """The user's own logger provider, with what it exported."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(logs_internal, "_LOGGER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def test_events_are_log_records_of_their_span(spans, logs, provider, openai, make_maestro):
    provider.reply = lambda request: (
        Reply(status=500) if request.model == "gpt-5-nano" else Reply(text="fine")
    )
    endpoints = [openai(model="gpt-5-nano"), openai(model="gpt-5-mini")]
    with attribution(team="growth"):
        RoutedChatModel(endpoints=endpoints, maestro=make_maestro()).invoke("hello")
    served = max(spans.get_finished_spans(), key=lambda span: span.start_time)
    failover, decision = [each.log_record for each in logs.get_finished_logs()]
    assert (failover.event_name, decision.event_name) == ("maestro.failover", "maestro.decision")
    assert (failover.severity_text, decision.severity_text) == ("WARN", "INFO")
    for record in (failover, decision):
        assert (record.trace_id, record.span_id) == (served.context.trace_id, served.context.span_id)
        assert record.attributes["maestro.team"] == "growth"
    assert decision.attributes["maestro.endpoint"] == "gpt-5-mini"


def test_a_broken_logger_provider_ends_every_span(spans, openai, make_maestro, monkeypatch):
    class Broken(LoggerProvider):
        def get_logger(self, *args, **kwargs):
            raise RuntimeError("no logs today")

    monkeypatch.setattr(logs_internal, "_LOGGER_PROVIDER", Broken(shutdown_on_exit=False))
    model = RoutedChatModel(endpoints=[openai()], maestro=make_maestro())
    assert model.invoke("hello").content == "fine"
    (span,) = spans.get_finished_spans()
    assert span.attributes["gen_ai.usage.cost"] > 0


def test_a_call_that_is_sampled_out_still_tells_its_events(logs, openai, make_maestro, monkeypatch):
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    with attribution(team="growth"):
        RoutedChatModel(endpoints=[openai()], maestro=make_maestro()).invoke("hello")
    told = {each.log_record.event_name: each.log_record for each in logs.get_finished_logs()}
    decision = told["maestro.decision"]
    assert decision.attributes["maestro.team"] == "growth"
    assert not exporter.get_finished_spans()


class BrokenSampler(Sampler):
    def should_sample(self, *args, **kwargs):
        raise RuntimeError("no samples today")

    def get_description(self):
        return "broken"


class BrokenProcessor(SpanProcessor):
    def on_end(self, span):
        raise RuntimeError("no spans today")


@pytest.mark.parametrize("part", ["sampler", "processor"])
def test_a_broken_tracer_provider_stops_nothing(provider, openai, make_maestro, monkeypatch, caplog, part):
    tracers = TracerProvider(sampler=BrokenSampler() if part == "sampler" else None, shutdown_on_exit=False)
    if part == "processor":
        tracers.add_span_processor(BrokenProcessor())
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    monkeypatch.setattr(guard, "_told", set())
    maestro = make_maestro()
    model = openai()
    for _ in range(2):
        assert model.invoke("hello", config={"callbacks": [MaestroCallbackHandler(maestro)]}).content
    assert maestro.report(since="all").total == provider.bill > 0
    assert caplog.text.count("telemetry failed") == 1  # it is not told with every call


def test_a_provider_that_comes_later_gets_the_spans_that_follow(openai, make_maestro, monkeypatch):
    handler = MaestroCallbackHandler(make_maestro())
    openai().invoke("hello", config={"callbacks": [handler]})
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    openai().invoke("hello", config={"callbacks": [handler]})
    assert [span.name for span in exporter.get_finished_spans()] == ["chat gpt-5-mini"]


def test_a_request_that_was_not_billed_has_no_cost(spans, provider, openai, make_maestro):
    provider.reply = Reply(status=503)
    with pytest.raises(Exception, match="503"):
        openai().invoke("hello", config={"callbacks": [MaestroCallbackHandler(make_maestro())]})
    (span,) = spans.get_finished_spans()
    assert "gen_ai.usage.cost" not in span.attributes
    assert "maestro.cost.nano_usd" not in span.attributes
    assert span.attributes["error.type"]


@pytest.mark.parametrize("door", ["handler", "middleware", "routed", "chain"])
async def test_a_cancelled_call_is_shown_at_what_it_counts_for(spans, provider, openai, make_maestro, door):
    maestro, arrived = make_maestro(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def reply(request):
        loop.call_soon_threadsafe(arrived.set)
        return Reply(delay_s=1)

    provider.reply = reply
    model = RoutedChatModel(endpoints=[openai()], maestro=maestro) if door == "routed" else openai()
    middleware = [MaestroMiddleware(maestro)] if door == "middleware" else []
    agent = create_agent(model, [], middleware=middleware, name="boss") if door != "chain" else model | str
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    task = asyncio.create_task(agent.ainvoke(ASKED if door != "chain" else "go", config=config))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (chat,) = [s for s in spans.get_finished_spans() if s.name == "chat gpt-5-mini"]
    counted = round(maestro.report("team", since="all").total * 10**9)
    assert chat.attributes["maestro.cost.nano_usd"] == counted > 0
    assert chat.attributes["maestro.cost.source"] == "estimated"
    assert chat.attributes["error.type"] == "CancelledError"
    assert all(each.status.status_code is trace.StatusCode.UNSET for each in spans.get_finished_spans())
    for top in (s for s in spans.get_finished_spans() if s.name == "invoke_agent boss"):
        assert round(top.attributes["maestro.run.cost.usd"] * 1e9) == counted


def test_a_stream_that_nobody_reads_to_its_end_has_not_failed(spans, provider, openai, make_maestro):
    provider.reply = Reply(text="a long story " * 20, chunk_delay_s=0.01)
    stream = openai().stream("go", config={"callbacks": [MaestroCallbackHandler(make_maestro())]})
    next(stream)
    stream.close()
    (chat,) = spans.get_finished_spans()
    assert chat.status.status_code is trace.StatusCode.UNSET
    assert chat.attributes["error.type"] == "GeneratorExit"
    assert chat.attributes["gen_ai.request.stream"]
    assert chat.attributes["maestro.cost.nano_usd"] > 0


def test_a_call_stands_below_the_users_current_span(spans, openai, make_maestro):
    with trace.get_tracer("app").start_as_current_span("request") as request:
        openai().invoke("hello " * 300, config={"callbacks": [MaestroCallbackHandler(make_maestro())]})
    chat = next(span for span in spans.get_finished_spans() if span.name.startswith("chat"))
    assert chat.parent.span_id == request.get_span_context().span_id


def test_no_content_enters_a_span(spans, provider, openai, make_maestro):
    provider.reply = Reply(text="mellon")
    openai().invoke("speak, friend", config={"callbacks": [MaestroCallbackHandler(make_maestro())]})
    text = spans.get_finished_spans()[0].to_json()
    assert "mellon" not in text
    assert "friend" not in text


@tool
def search(query: str) -> str:
    """Search."""
    return "found"


def test_content_that_is_asked_for_stands_on_spans_of_models_alone(spans, provider, openai, make_maestro):
    provider.reply = [Reply(tool_calls=[("search", {"query": "gate"})]), "mellon"]
    agent = create_agent(openai(), [search], name="gimli", system_prompt="Be brief.")
    maestro = make_maestro(capture_content=True)
    ask(agent, maestro)
    found = {span.name: span for span in spans.get_finished_spans()}
    assert not any("messages" in str(span.attributes) for name, span in found.items() if "chat" not in name)
    first, last = [span.attributes for span in spans.get_finished_spans() if "chat" in span.name]
    system, user = json.loads(first["gen_ai.input.messages"])
    assert system == {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]}
    assert user["role"] == "user"
    (called,) = json.loads(first["gen_ai.output.messages"])
    assert (called["role"], called["finish_reason"]) == ("assistant", "tool_call")
    (part,) = called["parts"]
    assert (part["type"], part["name"], part["arguments"]) == ("tool_call", "search", {"query": "gate"})
    response = json.loads(last["gen_ai.input.messages"])[-1]
    assert response["role"] == "tool"
    assert response["parts"][0] == {"type": "tool_call_response", "id": part["id"], "response": "found"}
    assert json.loads(last["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "mellon"}], "finish_reason": "stop"}
    ]
    assert "mellon" not in str(list(maestro.ledger.records()))


def test_an_image_is_named_and_not_carried(spans, openai, make_maestro):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,c2VjcmV0"}}
    asked = HumanMessage([{"type": "text", "text": "what is this?"}, image])
    handler = MaestroCallbackHandler(make_maestro(capture_content=True))
    openai().invoke([asked], config={"callbacks": [handler]})
    (chat,) = spans.get_finished_spans()
    (message,) = json.loads(chat.attributes["gen_ai.input.messages"])
    assert message["parts"] == [{"type": "text", "content": "what is this?"}, {"type": "image_url"}]


def test_a_routed_call_says_where_it_went_and_why(spans, provider, openai, make_maestro):
    provider.reply = lambda request: (
        Reply(status=500) if request.model == "gpt-5-nano" else Reply(text="fine")
    )
    endpoints = [openai(model="gpt-5-nano"), openai(model="gpt-5-mini")]
    RoutedChatModel(endpoints=endpoints, maestro=make_maestro()).invoke("hello")
    failed, served = sorted(spans.get_finished_spans(), key=lambda span: span.start_time)
    assert failed.name == "chat gpt-5-nano"
    assert failed.attributes["error.type"]
    assert "gen_ai.usage.cost" not in failed.attributes
    assert served.attributes["maestro.endpoint"] == "gpt-5-mini"
    assert served.attributes["maestro.decision"]
    assert served.attributes["maestro.failed_over_from"] == ("gpt-5-nano",)
    failover, decision = served.events
    assert (failover.name, failover.attributes["maestro.reason"]) == ("maestro.failover", "server_error")
    assert (decision.name, decision.attributes["maestro.endpoint"]) == ("maestro.decision", "gpt-5-mini")


def test_what_is_wrong_with_an_agent_stands_on_its_own_span(spans, make_maestro):
    runs = make_maestro().runs
    runs.enter("boss", None, kind="agent", name="boss")
    runs.enter("tool", "boss", kind="tool", name="ask")
    runs.enter("helper", "tool", kind="agent", name="helper")
    runs.enter("step", "boss")  # the latest that began; nothing tells it from the boss
    runs.suspect("loop", "search", runs.attribution("helper"))
    for run_id in ("step", "helper", "tool", "boss"):
        runs.leave(run_id)
    found = {span.name: span.attributes.get("maestro.anomaly") for span in spans.get_finished_spans()}
    assert found == {"invoke_agent helper": "loop", "execute_tool ask": None, "invoke_agent boss": None}


def test_a_call_without_a_framework_is_a_span(spans, provider, openai, make_maestro):
    maestro = make_maestro()
    client = openai().root_client
    with (
        trace.get_tracer("app").start_as_current_span("request") as request,
        attribution(team="growth", conversation="c-1", agent="planner"),
        maestro.call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=100) as call,
    ):
        answer = client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}], max_completion_tokens=100
        )
        call.settle(answer.usage)
    chat = next(span for span in spans.get_finished_spans() if span.name == "chat gpt-5-mini")
    assert chat.parent.span_id == request.get_span_context().span_id
    assert chat.attributes["maestro.cost.nano_usd"] == provider.bill_nanos > 0
    assert (chat.attributes["maestro.team"], chat.attributes["gen_ai.conversation.id"]) == ("growth", "c-1")
    assert chat.attributes["gen_ai.agent.name"] == "planner"


@pytest.mark.parametrize("way", ["refused", "failed", "settled elsewhere"])
def test_a_call_without_a_framework_that_does_not_go_well(spans, make_maestro, way):
    maestro = make_maestro(caps=[Cap("0.000001" if way == "refused" else "1")])
    ask = maestro.call(provider="openai", model="gpt-5-mini", input="hello" * 300, max_output_tokens=100)
    if way == "settled elsewhere":
        with ask as call:
            maestro.settle(call.reservation, None)
    else:
        with pytest.raises(CapExceeded if way == "refused" else RuntimeError), ask:
            raise RuntimeError
    (chat,) = spans.get_finished_spans()
    assert ("maestro.refused" in chat.attributes) is (way == "refused")
    assert ("gen_ai.usage.cost" in chat.attributes) is (way != "refused")
    assert chat.attributes.get("error.type") == {"refused": "CapExceeded", "failed": "RuntimeError"}.get(way)
