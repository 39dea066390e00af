"""What tracing and metering add to `invoke` and to an agent: nothing, a no-op, a hand-written tree, Maestro, others.

Variants take turns in one process, so that whatever else the machine does falls on all of them; compare the multiples.
Each is measured with the SDK's spans and metrics on and nothing exported; the agent makes six model and five tool calls.
Run: python tests/benchmarks/bench_telemetry.py [rounds]
With `--everywhere`, in each environment that `make peers` has made, as one table.
"""

from __future__ import annotations

import importlib
import json
import logging
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
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
PEERS = Path(__file__).parents[2] / ".venv-peers"
ENVIRONMENTS = ("openinference", "official", "traceloop", "langfuse")

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


class Bare(BaseCallbackHandler):
    """Two transactions a call that change one row of a file: the least that a ledger can do which outlives its process."""

    run_inline = True

    def __init__(self, path):
        self.connection = sqlite3.connect(path, isolation_level=None)
        for each in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = NORMAL",
            "PRAGMA wal_autocheckpoint = 4000",
        ):
            self.connection.execute(each)
        self.connection.execute("CREATE TABLE held (call INTEGER PRIMARY KEY, nanos INTEGER)")
        self.connection.execute("INSERT INTO held VALUES (1, 0)")

    def _change(self, nanos):
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("UPDATE held SET nanos = nanos + ? WHERE call = 1", (nanos,))
        self.connection.execute("COMMIT")

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, **kwargs):
        self._change(3_000_000)

    def on_llm_end(self, response, *, run_id, **kwargs):
        self._change(-2_000_000)


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


def unwrap():
    """Undo what an instrumentor has left: Traceloop's goes on after it was switched off, and would be in every base."""
    from langchain.agents.middleware import AgentMiddleware
    from langchain_core.callbacks import BaseCallbackManager
    from langgraph.pregel import Pregel
    from langgraph.types import Command
    from wrapt import FunctionWrapper

    for cls in (AgentMiddleware, BaseCallbackManager, Command, Pregel):
        for name, value in tuple(vars(cls).items()):
            if isinstance(value, FunctionWrapper):
                setattr(cls, name, value.__wrapped__)


@dataclass
class Times:
    """What one variant took, by round: wall time of the median invoke, and CPU of all threads, in nanoseconds."""

    invoke: list[float] = field(default_factory=list)
    invoke_cpu: list[float] = field(default_factory=list)
    agent: list[float] = field(default_factory=list)
    agent_cpu: list[float] = field(default_factory=list)

    def least(self) -> list[float]:
        """Return the least of each: what it takes while nothing else runs."""
        return [min(each) for each in (self.invoke, self.invoke_cpu, self.agent, self.agent_cpu)]


def take(times, model, agent, config) -> None:
    """Measure one round of one variant."""
    walls, cpu = [], time.process_time_ns()
    for _ in range(INVOKES):
        began = time.perf_counter_ns()
        model.invoke("How do batteries age?", config=config)
        walls.append(time.perf_counter_ns() - began)
    times.invoke.append(statistics.median(walls))
    times.invoke_cpu.append((time.process_time_ns() - cpu) / INVOKES)
    for _ in range(3):
        began, cpu = time.perf_counter_ns(), time.process_time_ns()
        agent.invoke({"messages": [("user", "agent")]}, config=config)
        times.agent.append(time.perf_counter_ns() - began)
        times.agent_cpu.append(time.process_time_ns() - cpu)


def measured(whose, rounds) -> dict[str, list[float]]:
    """Return the least times of each variant: `ours`, or the `others` that this environment has.

    Not of both in one process: beside another instrumentation Maestro looks for its spans, and draws none.
    """
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(NullExporter(), max_queue_size=1_000_000))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False))
    caps = [Cap("1000000", per="run")]
    memory = Maestro(ledger="memory:", caps=caps)
    folder = Path(tempfile.mkdtemp())
    sqlite = Maestro(ledger=f"sqlite:///{folder / 'bench.db'}", caps=caps)
    ours = {
        "no-op handler": NoOpHandler(),
        "two bare SQLite transactions": Bare(folder / "bare.db"),
        "hand-written tree + 3 metrics": HandWritten(),
        "Maestro memory: (spans, metrics, cap)": MaestroCallbackHandler(memory),
        "Maestro sqlite: (spans, metrics, cap)": MaestroCallbackHandler(sqlite),
    }
    variants = {"no handler": None, **(ours if whose == "ours" else others())}
    model = NoOpModel()
    agent = create_agent(model, [look], name="bench")
    times = {name: Times() for name in variants}
    for turn in range(rounds + 2):  # two rounds warm everything up
        for name, handler in variants.items():
            if hasattr(handler, "instrument"):
                handler.instrument(tracer_provider=provider, skip_dep_check=True)
            config = {"callbacks": [handler]} if isinstance(handler, BaseCallbackHandler) else {}
            take(times[name] if turn >= 2 else Times(), model, agent, config)
            if hasattr(handler, "instrument"):
                handler.uninstrument()
                unwrap()
    memory.close()
    sqlite.close()
    provider.shutdown()
    return {name: each.least() for name, each in times.items()}


def table(python, whose, rounds) -> None:
    """Measure in an environment, and print it beside that environment's own agent without a handler."""
    command = [str(python), __file__, "--measure", whose, str(rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    base = found["no handler"]
    for name, least in found.items():
        if whose == "ours" or name != "no handler":
            cells = "".join(f"{n / 1e3:10.0f}{n / b:7.2f}" for n, b in zip(least, base, strict=True))
            print(f"{name:40}{cells}", flush=True)


def main() -> None:
    (rounds, *_) = [int(each) for each in sys.argv[1:] if each.isdecimal()] or [15]
    if "--measure" in sys.argv:
        print(json.dumps(measured(sys.argv[2], rounds)))
        return
    others_in = [sys.executable]
    if "--everywhere" in sys.argv:
        others_in = [str(PEERS / name / "bin" / "python") for name in ENVIRONMENTS]
        if missing := [each for each in others_in if not Path(each).exists()]:
            sys.exit(f"{missing[0]} is missing; `make peers` makes it")
    heads = ("invoke p50", "invoke CPU", "agent", "agent CPU")
    print("least of all rounds, in us and as a multiple of the same environment without a handler")
    print(f"{'variant':40}" + "".join(f"{head:>10}{'x':>7}" for head in heads))
    table(sys.executable, "ours", rounds)
    for python in others_in:
        table(python, "others", rounds)


if __name__ == "__main__":
    main()
