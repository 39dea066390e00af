"""What Maestro adds to an LLM's `chat` in LlamaIndex, beside OpenInference, each with spans: through `attach` and the handler.

Variants take turns in one process, so that whatever else the machine does falls on all of them; compare the ratios.
Times are of the calling thread's processor.
Run: python tests/benchmarks/bench_llamaindex.py [rounds]
(OpenInference takes part where it is installed: pip install openinference-instrumentation-llama-index)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.llms.openai import OpenAI
from llama_index_instrumentation import get_dispatcher
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from maestro_core import Cap, Maestro
from maestro_llamaindex import MaestroCallbackHandler, attach

CALLS = 40
SAID = [ChatMessage("How do batteries age? " * 8)]


class NoOp(OpenAI):
    """Answers at once, with usage, as OpenAI would report it."""

    def _chat(self, messages, **kwargs):
        usage = {"prompt_tokens": 60, "completion_tokens": 50, "total_tokens": 110}
        raw = {"model": "gpt-4o-mini", "usage": usage, "choices": [{"finish_reason": "stop"}]}
        return ChatResponse(message=ChatMessage(role="assistant", content="fine"), raw=raw)


class NullExporter(SpanExporter):
    """Takes every span and sends none."""

    def export(self, spans):
        return SpanExportResult.SUCCESS


def model(**kwargs):
    return NoOp(model="gpt-4o-mini", max_tokens=500, max_retries=0, api_key="none", **kwargs)


@contextmanager
def following(whose):
    """Let only one side follow LlamaIndex's spans: both keep their handlers for good."""
    root = get_dispatcher()
    events, spans = list(root.event_handlers), list(root.span_handlers)
    root.event_handlers[:] = [each for each in events if type(each).__module__.startswith(whose)]
    root.span_handlers[:] = [each for each in spans if type(each).__module__.startswith(whose)]
    try:
        yield
    finally:
        root.event_handlers[:], root.span_handlers[:] = events, spans


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(NullExporter(), max_queue_size=1_000_000))
    trace.set_tracer_provider(provider)
    caps = [Cap("1000000", per="run"), Cap("1000000", per="team", every="day")]
    memory = Maestro(ledger="memory:", caps=caps)
    sqlite = Maestro(ledger=f"sqlite:///{Path(tempfile.mkdtemp(), 'bench.db')}", caps=caps)
    manager = CallbackManager([MaestroCallbackHandler(memory)])
    variants = {
        "nothing": (model(), "nobody"),
        "attach, memory: (spans, 2 caps)": (attach(model(), memory), "maestro_llamaindex"),
        "attach, sqlite: (spans, 2 caps)": (attach(model(), sqlite), "maestro_llamaindex"),
        "handler, memory: (spans, 2 caps)": (model(callback_manager=manager), "maestro_llamaindex"),
    }
    if find_spec("openinference.instrumentation.llama_index"):
        from openinference.instrumentation.llama_index import LlamaIndexInstrumentor

        LlamaIndexInstrumentor().instrument(tracer_provider=provider)
        variants["OpenInference (spans)"] = model(), "openinference"
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, (llm, whose) in variants.items():
            with following(whose):
                began = time.thread_time()
                for _ in range(CALLS):
                    llm.chat(SAID)
                taken = (time.thread_time() - began) / CALLS
            if number >= 2:
                times[name].append(taken * 1e6)
    report(times)
    for maestro in (memory, sqlite):
        maestro.close()


def report(times: dict[str, list[float]]) -> None:
    base = statistics.median(times["nothing"])
    peer = statistics.median(times.get("OpenInference (spans)", [0.0])) - base
    print(f"{'':36}{'us per call':>12}{'added':>9}{'of OpenInference':>18}")
    for name, found in times.items():
        middle = statistics.median(found)
        share = f"{(middle - base) / peer:.0%}" if peer > 0 else "-"
        print(f"{name:36}{middle:12.1f}{middle - base:9.1f}{share:>18}")


if __name__ == "__main__":
    main()
