"""Beside another instrumentation: its model spans carry the cost, and there are no spans of ours next to them.

OpenInference stands here for all of them; the others have environments of their own (`make peers`).
"""

from __future__ import annotations

import asyncio

import pytest
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maestro_core import Cap, CapExceeded, attribution
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware
from maestro_langchain.installation import lent

MODEL = "LLM"


@pytest.fixture
def spans(monkeypatch):
    """The spans of an application that OpenInference instruments."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield exporter
    instrumentor.uninstrument()
    provider.shutdown()


def by_kind(spans, kind):
    return [s for s in spans.get_finished_spans() if s.attributes.get("openinference.span.kind") == kind]


def ours(spans):
    return [s for s in spans.get_finished_spans() if s.instrumentation_scope.name == "maestro"]


def costs(spans):
    return [s.attributes["maestro.cost.nano_usd"] for s in by_kind(spans, MODEL)]


ASKED = {"messages": [("user", "go")]}


@pytest.mark.parametrize("how", ["handler", "middleware", "installed", "model"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_model_span_carries_its_cost(
    spans, make_researcher, openai, provider, make_maestro, how, asynchronous
):
    maestro = make_maestro()
    config = {"callbacks": [MaestroCallbackHandler(maestro)]} if how in ("handler", "model") else {}
    agent = make_researcher(middleware=[MaestroMiddleware(maestro)] if how == "middleware" else [])
    subject, given = (openai(), "go") if how == "model" else (agent, ASKED)

    def run():
        with attribution(team="growth"):
            if asynchronous:
                return asyncio.run(subject.ainvoke(given, config=config))
            return subject.invoke(given, config=config)

    if how == "installed":
        with lent(maestro):
            run()
    else:
        run()
    assert ours(spans) == []
    assert len(by_kind(spans, MODEL)) == len(provider.requests) == len(costs(spans))
    assert sum(costs(spans)) == provider.bill_nanos == round(maestro.report(since="all").total * 10**9)
    for span in by_kind(spans, MODEL):
        assert span.attributes["maestro.team"] == "growth"


def test_no_other_span_carries_a_cost_that_would_double_the_sum(
    spans, make_researcher, provider, make_maestro
):
    maestro = make_maestro()
    make_researcher().invoke(ASKED, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    with_cost = [s for s in spans.get_finished_spans() if "gen_ai.usage.cost" in s.attributes]
    assert {s.attributes["openinference.span.kind"] for s in with_cost} == {MODEL}
    (agent,) = [s for s in spans.get_finished_spans() if s.name == "researcher"]
    assert round(agent.attributes["maestro.run.cost.usd"] * 1e9) == provider.bill_nanos


def test_ten_agents_at_once_are_ten_traces(spans, make_researcher, provider, make_maestro):
    maestro = make_maestro()
    agent = make_researcher()

    async def crowd():
        config = {"callbacks": [MaestroCallbackHandler(maestro)]}
        await asyncio.gather(*(agent.ainvoke(ASKED, config=config) for _ in range(10)))

    asyncio.run(crowd())
    assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 10
    assert len(costs(spans)) == 20
    assert sum(costs(spans)) == provider.bill_nanos


def test_streams_are_annotated(spans, openai, provider, make_maestro):
    list(openai().stream("go", config={"callbacks": [MaestroCallbackHandler(make_maestro())]}))
    assert sum(costs(spans)) == provider.bill_nanos > 0


def test_what_they_say_of_a_call_stays(spans, openai, make_maestro):
    class Theirs(SpanProcessor):
        def on_start(self, span, parent_context=None):
            span.set_attribute("gen_ai.request.model", "as they call it")

    trace.get_tracer_provider().add_span_processor(Theirs())
    openai().invoke("go", config={"callbacks": [MaestroCallbackHandler(make_maestro())]})
    (model,) = by_kind(spans, MODEL)
    assert model.attributes["gen_ai.request.model"] == "as they call it"
    assert model.attributes["gen_ai.provider.name"] == "openai"  # of which they say nothing
    assert model.attributes["gen_ai.usage.cost"] > 0


def test_a_refused_call_is_told_on_the_agents_span(spans, make_researcher, make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    with pytest.raises(CapExceeded):
        make_researcher().invoke(ASKED, config={"callbacks": [MaestroCallbackHandler(maestro)]})
    (agent,) = [s for s in spans.get_finished_spans() if s.name == "researcher"]
    assert agent.attributes["maestro.refused"] == "ceiling"


def test_own_draws_beside_them_and_off_does_nothing(spans, openai, make_maestro):
    openai().invoke("go", config={"callbacks": [MaestroCallbackHandler(make_maestro(spans="own"))]})
    assert [span.name for span in ours(spans)] == ["chat gpt-5-mini"]
    spans.clear()
    openai().invoke("go", config={"callbacks": [MaestroCallbackHandler(make_maestro(spans="off"))]})
    assert ours(spans) == []
    assert "gen_ai.usage.cost" not in by_kind(spans, MODEL)[0].attributes


def test_annotate_alone_draws_nothing(openai, make_maestro, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    openai().invoke("go", config={"callbacks": [MaestroCallbackHandler(make_maestro(spans="annotate"))]})
    assert exporter.get_finished_spans() == ()


def test_other_spellings_of_cost(spans, openai, make_maestro, provider):
    maestro = make_maestro(cost_attributes=["llm.cost.total", "mlflow.llm.cost"])
    openai().invoke("go", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    (span,) = by_kind(spans, MODEL)
    assert round(span.attributes["llm.cost.total"] * 1e9) == provider.bill_nanos
    assert span.attributes["mlflow.llm.cost"].startswith('{"total_cost": ')
