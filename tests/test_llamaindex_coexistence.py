"""Beside other instrumentations of LlamaIndex: their model spans carry the cost, and there are none of ours next to them."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")
pytest.importorskip("openinference.instrumentation.llama_index", reason="pip install --group test")

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage
from llama_index_instrumentation import get_dispatcher
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sound import assert_sound

from maestro_core import Cap, CapExceeded, attribution
from maestro_core.testing import Reply
from maestro_llamaindex import MaestroCallbackHandler, RoutedLLM, _spans, attach

ASK = [ChatMessage("How do batteries age?")]
# OpenInference uses what pydantic deprecates; as an error, that would end its span.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
COST = "maestro.cost.nano_usd"


@pytest.fixture(params=["instrumented first", "instrumented last"])
def instrument(request, monkeypatch):
    """Instrument the process with OpenInference, before or after Maestro follows LlamaIndex's spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(_spans, "_maestros", [])
    monkeypatch.setattr(_spans, "_pending", [])
    root = get_dispatcher()
    events, spans = list(root.event_handlers), list(root.span_handlers)
    root.span_handlers[:] = [each for each in spans if type(each).__name__ != "_Tree"]
    instrumentor = LlamaIndexInstrumentor()

    def start():
        instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)

    early = request.param == "instrumented first"
    if early:
        start()
    yield exporter, (lambda: None) if early else start
    instrumentor.uninstrument()
    root.event_handlers[:], root.span_handlers[:] = events, spans
    provider.shutdown()


def ours(spans):
    return [span.name for span in spans.get_finished_spans() if span.instrumentation_scope.name == "maestro"]


def costs(spans):
    return [span.attributes[COST] for span in spans.get_finished_spans() if COST in span.attributes]


async def ask(way, llm):
    if way == "chat":
        llm.chat(ASK)
    elif way == "achat":
        await llm.achat(ASK)
    elif way == "stream_chat":
        list(llm.stream_chat(ASK))
    elif way == "astream_chat":
        [chunk async for chunk in await llm.astream_chat(ASK)]
    elif way == "complete":
        llm.complete("q")
    else:
        list(llm.stream_complete("q"))


@pytest.mark.parametrize("door", ["attach", "RoutedLLM", "handler"])
@pytest.mark.parametrize(
    "way", ["chat", "achat", "stream_chat", "astream_chat", "complete", "stream_complete"]
)
async def test_a_model_span_carries_its_cost(way, door, instrument, provider, llama, make_maestro):
    spans, start = instrument
    maestro = make_maestro()
    if door == "attach":
        llm = attach(llama(), maestro)
    elif door == "RoutedLLM":
        llm = RoutedLLM(endpoints=[llama()], maestro=maestro)
    else:
        llm = llama(callback_manager=CallbackManager([MaestroCallbackHandler(maestro)]))
    start()
    with attribution(team="growth"):
        await ask(way, llm)
    assert_sound(maestro, provider)
    (span,) = [each for each in spans.get_finished_spans() if COST in each.attributes]
    assert span.attributes[COST] == provider.bill_nanos > 0
    assert span.attributes["maestro.team"] == "growth"
    assert span.name.startswith("OpenAI.")
    assert span.attributes["openinference.span.kind"] == "LLM"
    assert ours(spans) == []


@pytest.mark.parametrize("door", ["attach", "handler"])
@pytest.mark.parametrize("way", ["batch", "abatch", "query", "aquery"])
async def test_an_embedding_span_carries_the_cost_of_all_its_requests(
    way, door, instrument, provider, make_maestro
):
    embeddings = pytest.importorskip("llama_index.embeddings.openai", reason="pip install --group test")
    spans, start = instrument
    provider.reply = lambda request: Reply(input_tokens=7 + len(provider.requests))
    maestro = make_maestro()
    model = embeddings.OpenAIEmbedding(
        model="text-embedding-3-small",
        embed_batch_size=2,
        api_base=provider.openai_url,
        api_key="none",
        max_retries=0,
    )
    if door == "attach":
        attach(model, maestro)
    else:
        model.callback_manager = CallbackManager([MaestroCallbackHandler(maestro)])
    start()
    with attribution(team="growth"):
        if way == "batch":
            model.get_text_embedding_batch(["a", "b", "c", "d", "e"])
        elif way == "abatch":
            await model.aget_text_embedding_batch(["a", "b", "c", "d", "e"])
        elif way == "query":
            model.get_query_embedding("a")
        else:
            await model.aget_query_embedding("a")
    assert len(provider.requests) == (3 if "batch" in way else 1)
    (span,) = [each for each in spans.get_finished_spans() if COST in each.attributes]
    assert span.attributes["openinference.span.kind"] == "EMBEDDING"
    assert span.attributes["maestro.team"] == "growth"
    assert span.attributes[COST] == round(maestro.report(since="all").total * 10**9) > 0
    assert span.attributes["gen_ai.usage.cost"] == pytest.approx(span.attributes[COST] / 1e9)
    if door == "attach":  # the handler is not told what the provider counted
        assert span.attributes[COST] == provider.bill_nanos
    assert ours(spans) == []


async def test_an_agents_spans_are_annotated(instrument, provider, llama, make_maestro):
    spans, start = instrument
    maestro = make_maestro()

    def search(query: str) -> str:
        """Search."""
        return "nothing"

    provider.reply = [Reply(tool_calls=[("search", {"query": "x"})]), "fine"]
    agent = attach(FunctionAgent(name="boss", tools=[search], llm=llama()), maestro)
    start()
    handler = agent.run(user_msg="Go")
    await handler
    assert_sound(maestro, provider)
    assert ours(spans) == []
    assert sum(costs(spans)) == provider.bill_nanos
    assert len(costs(spans)) == len(provider.requests) == 2
    (top,) = [span for span in spans.get_finished_spans() if span.name == "FunctionAgent.run"]
    assert top.attributes["gen_ai.agent.name"] == "boss"
    assert top.attributes["maestro.run"] == handler.run_id
    assert top.attributes["maestro.run.cost.usd"] == pytest.approx(provider.bill_nanos / 1e9)
    assert "execute_tool" in {
        span.attributes.get("gen_ai.operation.name") for span in spans.get_finished_spans()
    }


@pytest.mark.parametrize("way", ["chat", "stream_chat"])
async def test_retries_and_failures_are_told_apart(way, instrument, provider, llama, make_maestro):
    spans, start = instrument
    provider.reply = [Reply(status=500, retry_after=0), Reply(text="fine")]
    maestro = make_maestro(caps=[Cap("1")])
    llm = attach(llama(max_retries=2), maestro)
    start()
    await ask(way, llm)
    assert_sound(maestro, provider)
    assert costs(spans) == [provider.bill_nanos]
    assert ours(spans) == []


async def test_a_refusal_stays_a_refusal(instrument, provider, llama, make_maestro):
    _, start = instrument
    llm = attach(llama(), make_maestro(caps=[Cap("0.000001")]))
    start()
    with pytest.raises(CapExceeded):
        llm.chat(ASK)
    assert provider.requests == []


@pytest.fixture
def otel(monkeypatch):
    """LlamaIndex's own instrumentation, which ends the span of a stream before the stream begins."""
    base = pytest.importorskip("llama_index.observability.otel.base", reason="pip install --group test")
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    root = get_dispatcher()
    events, spans = list(root.event_handlers), list(root.span_handlers)
    root.add_span_handler(base.OTelCompatibleSpanHandler(tracer=provider.get_tracer("theirs")))
    yield exporter
    root.event_handlers[:], root.span_handlers[:] = events, spans
    provider.shutdown()


async def test_where_theirs_has_ended_the_call_is_drawn_below_it(otel, provider, llama, make_maestro):
    provider.reply = [Reply(tool_calls=[("search", {"query": "x"})]), "fine"]
    maestro = make_maestro()

    def search(query: str) -> str:
        """Search."""
        return "nothing"

    with attribution(team="growth"):
        await attach(FunctionAgent(name="boss", tools=[search], llm=llama()), maestro).run(user_msg="Go")
    assert_sound(maestro, provider)
    spans = {span.context.span_id: span for span in otel.get_finished_spans()}
    drawn = [span for span in spans.values() if span.instrumentation_scope.name == "maestro"]
    assert [span.name for span in drawn] == ["chat gpt-4o-mini"] * 2
    assert sum(costs(otel)) == sum(span.attributes[COST] for span in drawn) == provider.bill_nanos
    for span in drawn:
        theirs = spans[span.parent.span_id]
        step = spans[theirs.parent.span_id]
        assert (theirs.name, step.name) == ("OpenAI.astream_chat", "BaseWorkflowAgent.run_agent_step")
        assert step.start_time <= span.start_time < span.end_time <= step.end_time
    assert len({span.context.trace_id for span in spans.values()}) == 1
    (top,) = [span for span in spans.values() if span.name == "FunctionAgent.run"]
    assert top.attributes["maestro.run.cost.usd"] == pytest.approx(provider.bill_nanos / 1e9)


@pytest.mark.parametrize("way", ["chat", "achat"])
async def test_where_theirs_lives_it_is_annotated(way, otel, provider, llama, make_maestro):
    await ask(way, attach(llama(), make_maestro()))
    (span,) = otel.get_finished_spans()
    assert span.name == f"OpenAI.{way}"
    assert span.attributes[COST] == provider.bill_nanos


async def test_a_stream_alone_is_one_trace(otel, provider, llama, make_maestro):
    await ask("astream_chat", attach(llama(), make_maestro()))
    theirs, drawn = otel.get_finished_spans()
    assert (theirs.name, drawn.name) == ("OpenAI.astream_chat", "chat gpt-4o-mini")
    assert drawn.parent.span_id == theirs.context.span_id
    assert drawn.attributes[COST] == provider.bill_nanos


async def test_annotate_never_draws(otel, provider, llama, make_maestro):
    await ask("stream_chat", attach(llama(), make_maestro(spans="annotate")))
    assert [span.name for span in otel.get_finished_spans()] == ["OpenAI.stream_chat"]
    assert provider.bill_nanos > 0
