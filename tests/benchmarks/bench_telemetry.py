"""What tracing and metering add to `invoke` and to an agent: nothing, a no-op, a hand-written tree, Maestro, others.

Variants take turns in one process, so that whatever else the machine does falls on all of them; compare the ratios.
Each is measured with the SDK's spans and metrics on and nothing exported. Of the other instrumentations, those that are
installed take part; after `make peers`, `.venv-peers/traceloop/bin/python` (and `official`, `langfuse`) has each of them.
Run: python tests/benchmarks/bench_telemetry.py [rounds]
"""

from __future__ import annotations

import importlib
import logging
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from maestro_core import Cap, Maestro
from maestro_langchain import MaestroCallbackHandler

INVOKES = 40

# Title -> where its instrumentor lives.
INSTRUMENTORS = {
    "OpenInference (spans)": ("openinference.instrumentation.langchain", "LangChainInstrumentor"),
    "Traceloop (spans)": ("opentelemetry.instrumentation.langchain", "LangchainInstrumentor"),
    "OpenTelemetry's own (spans)": ("opentelemetry.instrumentation.genai.langchain", "LangChainInstrumentor"),
}


class NoOpModel(BaseChatModel):
    """Answers at once, with usage, as gpt-5-mini would report it; asks for a tool five times."""

    max_tokens: int = 500

    @property
    def _llm_type(self):
        return "openai-chat"

    def bind_tools(self, tools, **kwargs):
        return self

    def _get_ls_params(self, stop=None, **kwargs):
        return {
            "ls_provider": "openai",
            "ls_model_name": "gpt-5-mini",
            "ls_model_type": "chat",
            "ls_max_tokens": 500,
        }

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        usage = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
        said = {"usage_metadata": usage, "response_metadata": {"model_name": "gpt-5-mini"}}
        turns = sum(isinstance(message, AIMessage) for message in messages)
        if messages[0].content == "agent" and turns < 5:
            calls = [{"name": "look", "args": {"place": str(turns)}, "id": f"c{turns}"}]
            message = AIMessage("", tool_calls=calls, **said)
        else:
            message = AIMessage("fine", **said)
        return ChatResult(generations=[ChatGeneration(message=message)])


@tool
def look(place: str) -> str:
    """Look somewhere."""
    return f"nothing at {place}"


class NullExporter(SpanExporter):
    """Takes every span and sends none."""

    def export(self, spans):
        return SpanExportResult.SUCCESS


class NoOpHandler(BaseCallbackHandler):
    """Does nothing, inline, as cheaply as LangChain allows."""

    run_inline = True


class HandWritten(BaseCallbackHandler):
    """The least that draws the whole tree with fifteen attributes on model spans, a counter and two histograms."""

    run_inline = True

    def __init__(self):
        self.spans = {}
        self.tracer = trace.get_tracer("hand")
        meter = metrics.get_meter("hand")
        self.tokens, self.took = meter.create_histogram("tokens"), meter.create_histogram("took")
        self.cost = meter.create_counter("cost")

    def _start(self, name, run_id, parent_run_id):
        parent = self.spans.get(parent_run_id)
        context = trace.set_span_in_context(parent[0]) if parent else None
        self.spans[run_id] = self.tracer.start_span(name, context), time.perf_counter()

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, name=None, **kwargs):
        self._start(name or "chain", run_id, parent_run_id)

    def on_tool_start(self, serialized, text, *, run_id, parent_run_id=None, name=None, **kwargs):
        self._start(name or "tool", run_id, parent_run_id)

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, **kwargs):
        self._start("chat", run_id, parent_run_id)

    def on_llm_end(self, response, *, run_id, **kwargs):
        span, began = self.spans.pop(run_id)
        span.set_attributes({f"attribute.{i}": i for i in range(15)})
        span.end()
        self.tokens.record(150, {"model": "gpt-5-mini"})
        self.took.record(time.perf_counter() - began, {"model": "gpt-5-mini"})
        self.cost.add(0.000125, {"model": "gpt-5-mini"})

    def _end(self, result, *, run_id, **kwargs):
        self.spans.pop(run_id)[0].end()

    on_chain_end = on_tool_end = _end


def others():
    """Return title -> instrumentor, or handler, of each other instrumentation that is installed."""
    found = {}
    for title, (module, name) in INSTRUMENTORS.items():
        with suppress(ImportError):
            found[title] = getattr(importlib.import_module(module), name)()
    with suppress(ImportError):
        from langfuse import Langfuse
        from langfuse.langchain import CallbackHandler

        logging.disable(logging.ERROR)  # nobody listens where it sends
        provider = trace.get_tracer_provider()
        Langfuse(public_key="pk", secret_key="sk", base_url="http://127.0.0.1:9", tracer_provider=provider)
        found["Langfuse's handler (spans)"] = CallbackHandler(public_key="pk")
    return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(NullExporter(), max_queue_size=1_000_000))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False))
    caps = [Cap("1000000", per="run")]
    folder = tempfile.mkdtemp()
    memory = Maestro(ledger="memory:", caps=caps)
    sqlite = Maestro(ledger=f"sqlite:///{Path(folder, 'bench.db')}", caps=caps)
    variants = {
        "no handler": None,
        "no-op handler": NoOpHandler(),
        "hand-written tree + 3 metrics": HandWritten(),
        "Maestro memory: (spans, metrics, cap)": MaestroCallbackHandler(memory),
        "Maestro sqlite: (spans, metrics, cap)": MaestroCallbackHandler(sqlite),
        **others(),
    }
    model = NoOpModel()
    agent = create_agent(model, [look], name="bench")
    invokes = {name: [] for name in variants}
    agents = {name: [] for name in variants}
    for turn in range(rounds + 2):  # two rounds warm everything up
        for name, handler in variants.items():
            if hasattr(handler, "instrument"):
                handler.instrument(tracer_provider=provider, skip_dep_check=True)
            config = {"callbacks": [handler]} if isinstance(handler, BaseCallbackHandler) else {}
            for _ in range(INVOKES):
                began = time.perf_counter_ns()
                model.invoke("How do batteries age?", config=config)
                if turn >= 2:
                    invokes[name].append(time.perf_counter_ns() - began)
            for _ in range(3):
                began = time.process_time_ns()
                agent.invoke({"messages": [("user", "agent")]}, config=config)
                if turn >= 2:
                    agents[name].append(time.process_time_ns() - began)
            if hasattr(handler, "instrument"):
                handler.uninstrument()
    base, agent_base = statistics.median(invokes["no handler"]), statistics.median(agents["no handler"])
    print(f"{'variant':40}{'invoke p50 us':>14}{'x none':>8}{'p99 us':>9}{'agent CPU ms':>14}{'x none':>8}")
    for name in variants:
        p50, p99 = statistics.median(invokes[name]), statistics.quantiles(invokes[name], n=100)[98]
        cpu = statistics.median(agents[name])
        print(
            f"{name:40}{p50 / 1e3:14.0f}{p50 / base:8.2f}{p99 / 1e3:9.0f}{cpu / 1e6:14.2f}{cpu / agent_base:8.2f}"
        )
    memory.close()
    sqlite.close()
    provider.shutdown()


if __name__ == "__main__":
    main()
