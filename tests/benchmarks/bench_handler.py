"""What a handler adds to `invoke`: none, no-op, OpenInference, and Maestro with spans, cap and each ledger.

Variants take turns in one process, so that whatever else the machine does falls on all of them; compare the ratios.
Run: python tests/benchmarks/bench_handler.py [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from maestro_core import Cap, Maestro
from maestro_langchain import MaestroCallbackHandler

CALLS = 40


class NoOpModel(BaseChatModel):
    """Answers at once, with usage, as gpt-5-mini would report it."""

    max_tokens: int = 500

    @property
    def _llm_type(self):
        return "openai-chat"

    def _get_ls_params(self, stop=None, **kwargs):
        return {
            "ls_provider": "openai",
            "ls_model_name": "gpt-5-mini",
            "ls_model_type": "chat",
            "ls_max_tokens": 500,
        }

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        usage = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
        message = AIMessage("fine", usage_metadata=usage, response_metadata={"model_name": "gpt-5-mini"})
        return ChatResult(generations=[ChatGeneration(message=message)])


class NullExporter(SpanExporter):
    """Takes every span and sends none."""

    def export(self, spans):
        return SpanExportResult.SUCCESS


class NoOpHandler(BaseCallbackHandler):
    """Does nothing, inline, as cheaply as LangChain allows."""

    run_inline = True


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(NullExporter(), max_queue_size=1_000_000))
    trace.set_tracer_provider(provider)
    folder = tempfile.mkdtemp()
    caps = [Cap("1000000", per="run"), Cap("1000000", per="team", every="day")]
    memory = Maestro(ledger="memory:", caps=caps)
    sqlite = Maestro(ledger=f"sqlite:///{Path(folder, 'bench.db')}", caps=caps)
    instrumentor = LangChainInstrumentor()
    variants = {
        "no handler": None,
        "no-op handler": NoOpHandler(),
        "OpenInference (spans)": "openinference",
        "Maestro memory: (spans, 2 caps)": MaestroCallbackHandler(memory),
        "Maestro sqlite: (spans, 2 caps)": MaestroCallbackHandler(sqlite),
    }
    model, times = NoOpModel(), {name: [] for name in variants}
    for turn in range(rounds + 2):  # two rounds warm everything up
        for name, handler in variants.items():
            if handler == "openinference":
                instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
            config = {"callbacks": [handler]} if isinstance(handler, BaseCallbackHandler) else {}
            for _ in range(CALLS):
                began = time.perf_counter_ns()
                model.invoke("How do batteries age?", config=config)
                if turn >= 2:
                    times[name].append(time.perf_counter_ns() - began)
            if handler == "openinference":
                instrumentor.uninstrument()
    base = statistics.median(times["no handler"])
    print(f"{'variant':34}{'p50 us':>9}{'p99 us':>9}{'+us':>8}{'x none':>8}")
    for name, taken in times.items():
        p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        print(f"{name:34}{p50 / 1e3:9.0f}{p99 / 1e3:9.0f}{(p50 - base) / 1e3:8.0f}{p50 / base:8.2f}")
    memory.close()
    sqlite.close()
    provider.shutdown()


if __name__ == "__main__":
    main()
