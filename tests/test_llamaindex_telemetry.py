"""LlamaIndex's agents, tools and calls as spans, the conventions those of LangChain's; loops are found, too."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from opentelemetry import trace
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from sound import assert_sound

from maestro_core import Cap, CapExceeded, attribution
from maestro_core.testing import Reply
from maestro_llamaindex import RoutedLLM, _spans, attach

ASKED = "the secret question"


@pytest.fixture
def spans(monkeypatch):
    """The user's own tracer provider, with what it exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    # Every Maestro of the process is told of LlamaIndex's spans, those of earlier tests, too.
    monkeypatch.setattr(_spans, "_maestros", [])
    monkeypatch.setattr(_spans, "_pending", [])
    yield exporter
    provider.shutdown()


def search(query: str) -> str:
    """Search."""
    return f"{query}: nothing"


async def test_agents_tools_and_calls_are_spans(spans, provider, llama, make_maestro):
    provider.reply = [Reply(tool_calls=[("search", {"query": ASKED})]), "fine"]
    maestro = make_maestro()
    agent = attach(FunctionAgent(name="boss", tools=[search], llm=llama()), maestro)
    with attribution(team="growth"):
        handler = agent.run(user_msg=ASKED)
    await handler
    assert_sound(maestro, provider)
    found = {span.name: span for span in spans.get_finished_spans()}
    assert found.keys() == {"invoke_agent boss", "execute_tool search", "chat gpt-4o-mini"}
    top = found["invoke_agent boss"]
    chats = [span for span in spans.get_finished_spans() if span.name.startswith("chat")]
    assert {span.parent.span_id for span in (*chats, found["execute_tool search"])} == {top.context.span_id}
    assert sum(span.attributes["maestro.cost.nano_usd"] for span in chats) == provider.bill_nanos
    assert {span.attributes["gen_ai.agent.name"] for span in chats} == {"boss"}
    assert {span.attributes["maestro.team"] for span in found.values()} == {"growth"}
    # LlamaIndex tells the outermost span's run only after it has begun.
    assert {span.attributes["maestro.run"] for span in found.values()} == {handler.run_id}
    assert ASKED not in str([span.to_json() for span in spans.get_finished_spans()])
    assert ASKED not in str(list(maestro.ledger.records()))


async def test_a_tool_that_fails_is_shown(spans, provider, llama, make_maestro):
    def broken(query: str) -> str:
        """Break."""
        raise RuntimeError(query)

    provider.reply = [Reply(tool_calls=[("broken", {"query": ASKED})]), "fine"]
    await attach(FunctionAgent(name="boss", tools=[broken], llm=llama()), make_maestro()).run(user_msg="go")
    (failed,) = [span for span in spans.get_finished_spans() if span.name == "execute_tool broken"]
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.attributes["error.type"] == "tool_error"
    assert ASKED not in failed.to_json()


async def test_content_that_is_asked_for_stands_on_spans_of_models(spans, provider, llama, make_maestro):
    provider.reply = [Reply(tool_calls=[("search", {"query": "gate"})]), "mellon"]
    maestro = make_maestro(capture_content=True)
    await attach(FunctionAgent(name="gimli", tools=[search], llm=llama()), maestro).run(user_msg=ASKED)
    first, last = [span.attributes for span in spans.get_finished_spans() if span.name.startswith("chat")]
    asked = json.loads(first["gen_ai.input.messages"])[-1]
    assert asked == {"role": "user", "parts": [{"type": "text", "content": ASKED}]}
    (called,) = json.loads(first["gen_ai.output.messages"])
    (part,) = called["parts"]
    assert (called["finish_reason"], part["type"], part["name"]) == ("tool_call", "tool_call", "search")
    response = json.loads(last["gen_ai.input.messages"])[-1]
    assert response["parts"] == [
        {"type": "tool_call_response", "id": part["id"], "response": "gate: nothing"}
    ]
    assert json.loads(last["gen_ai.output.messages"])[0]["parts"] == [{"type": "text", "content": "mellon"}]


@pytest.mark.parametrize("ratio", [1.0, 0.1])
async def test_spans_ledger_and_counter_are_the_bill(provider, llama, make_maestro, monkeypatch, ratio):
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider(sampler=TraceIdRatioBased(ratio), shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    meters = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", meters)
    failed = []

    def reply(request):  # every model fails once, nano always
        if request.model == "gpt-4.1-nano" or request.model not in failed:
            failed.append(request.model)
            return Reply(status=500)
        return Reply(text="fine", input_tokens=900, output_tokens=70)

    provider.reply = reply
    maestro = make_maestro()
    one = attach(llama(max_retries=1), maestro)
    routed = RoutedLLM(
        endpoints=[llama(model="gpt-4.1-nano"), llama(model="gpt-4.1-mini"), llama()], maestro=maestro
    )
    for llm in (one, routed):
        for _ in range(3):
            llm.complete(ASKED)
            await llm.acomplete(ASKED)
            assert list(llm.stream_complete(ASKED))
            assert [part async for part in await llm.astream_complete(ASKED)]
    await FunctionAgent(tools=[search], llm=one).run(user_msg=ASKED)
    seen = sum(span.attributes.get("maestro.cost.nano_usd", 0) for span in exporter.get_finished_spans())
    # 25 traces: that all of them are among the one in ten is one chance in 10^25
    assert (seen == provider.bill_nanos) == (ratio == 1.0)
    assert seen <= provider.bill_nanos
    assert round(maestro.report(since="all").total * 10**9) == provider.bill_nanos > 0
    found = [
        metric
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]
    (cost,) = [metric for metric in found if metric.name == "maestro.cost.usd"]
    assert round(sum(point.value for point in cost.data.data_points) * 1e9) == provider.bill_nanos
    meters.shutdown()
    tracers.shutdown()


async def test_what_is_refused_stands_below_its_agent_and_its_run_has_one_name(spans, llama, make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    agent = attach(FunctionAgent(name="boss", tools=[search], llm=llama()), maestro)
    handler = agent.run(user_msg=ASKED)
    with pytest.raises(CapExceeded):
        await handler
    refused, top = spans.get_finished_spans()
    assert (refused.name, top.name) == ("chat gpt-4o-mini", "invoke_agent boss")
    assert refused.parent.span_id == top.context.span_id
    assert refused.attributes["maestro.refused"] == "ceiling"
    assert {span.attributes["maestro.run"] for span in (refused, top)} == {handler.run_id}


async def test_agents_that_hand_over_and_agents_in_tools(spans, provider, llama, make_maestro):
    helper = FunctionAgent(name="helper", tools=[], llm=llama())

    async def ask_helper(question: str) -> str:
        """Ask."""
        return str(await helper.run(user_msg=question))

    def reply(request):
        names = {tool["function"]["name"] for tool in request.body.get("tools") or ()}
        if "ask_helper" in names:
            done = any(message["role"] == "tool" for message in request.body["messages"])
            to = {"to_agent": "writer", "reason": "-"}
            return Reply(tool_calls=[("handoff", to) if done else ("ask_helper", {"question": "q"})])
        return Reply(text="fine")

    provider.reply = reply
    maestro = make_maestro()
    make = {"llm": llama(), "description": "-"}
    flow = AgentWorkflow(
        agents=[
            FunctionAgent(name="boss", tools=[ask_helper], can_handoff_to=["writer"], **make),
            FunctionAgent(name="writer", tools=[], can_handoff_to=[], **make),
        ],
        root_agent="boss",
    )
    attach(flow, maestro)
    attach(helper, maestro)
    handler = flow.run(user_msg="Go")
    await handler
    assert_sound(maestro, provider)
    paths = [record.attribution.path for record in maestro.ledger.records() if record.kind == "settled"]
    boss = ("agent", "boss")
    assert paths == [
        (boss,),
        (boss, ("tool", "ask_helper"), ("agent", "helper")),
        (boss,),
        (("agent", "writer"),),
    ]
    assert {r.attribution.dimensions["run"] for r in maestro.ledger.records()} == {handler.run_id}


async def test_a_stuck_agent_is_halted(provider, llama, make_maestro):
    maestro = make_maestro(on_loop="halt")
    provider.reply = lambda request: Reply(tool_calls=[("search", {"query": "x"})])
    agent = attach(FunctionAgent(name="boss", tools=[search], llm=llama()), maestro)
    with pytest.raises(CapExceeded, match="halted \\(loop\\): agent boss") as refused:
        await agent.run(user_msg="Go", max_iterations=100)
    assert refused.value.reason == "latched"
    assert len(provider.requests) <= 8
    assert_sound(maestro, provider)
