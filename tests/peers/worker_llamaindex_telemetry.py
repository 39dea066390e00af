"""One instrumentation of LlamaIndex beside Maestro: which spans there are, and what they carry; JSON on stdout.

python tests/peers/worker_llamaindex_telemetry.py openinference|traceloop|langfuse|llamaindex
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maestro_core import Maestro, attribution
from maestro_core.testing import FakeProvider, Reply
from maestro_llamaindex import attach

ASK = [ChatMessage("How do batteries age?")]


def instrument(peer: str, provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    """Switch the peer on."""
    if peer in {"openinference", "langfuse"}:
        if peer == "langfuse":
            from langfuse import Langfuse

            logging.disable(logging.ERROR)  # nobody listens where it sends
            Langfuse(
                public_key="pk", secret_key="sk", base_url="http://127.0.0.1:9", tracer_provider=provider
            )
        from openinference.instrumentation.llama_index import LlamaIndexInstrumentor

        LlamaIndexInstrumentor().instrument(tracer_provider=provider)
    elif peer == "traceloop":
        from opentelemetry.instrumentation.llamaindex import LlamaIndexInstrumentor as Traceloop

        Traceloop().instrument(tracer_provider=provider)
    elif peer == "llamaindex":
        from llama_index.observability.otel import LlamaIndexOpenTelemetry

        LlamaIndexOpenTelemetry(
            tracer_provider=provider, span_exporter=exporter, span_processor="simple"
        ).start_registering()


def calls(spans) -> list:
    """Return the spans that say that they are a model's, of several around one request the innermost.

    OpenInference says so of what only prepares a request, too (`OpenAI._prepare_chat_with_tools`).
    """
    methods = [span for span in spans if not span.name.rpartition(".")[2].startswith("_")]
    said = [
        span
        for span in methods
        if span.attributes.get("openinference.span.kind") in {"LLM", "EMBEDDING"}
        or span.attributes.get("gen_ai.operation.name") in {"chat", "embeddings"}
    ]
    around = {span.parent.span_id for span in said if span.parent}
    return [span for span in said if span.context.span_id not in around]


def is_ours(span) -> bool:
    return span.instrumentation_scope.name == "maestro"


def reply(request):
    if request.tool_names and not request.tool_results:
        return Reply(tool_calls=[("search", {"query": "x"})], input_tokens=1_000, output_tokens=80)
    return Reply(text="done", input_tokens=1_200, output_tokens=60)


def search(query: str) -> str:
    """Search."""
    return "found"


class Other(OpenAI):
    """As another maker's, to whoever goes by the class's name."""


def main(peer: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    if peer != "llamaindex":  # which adds its own
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    instrument(peer, provider, exporter)
    maestro = Maestro(ledger="memory:")
    with FakeProvider(reply) as stand_in, asyncio.Runner() as loop:
        base = {"api_base": stand_in.openai_url, "api_key": "x"}
        llm = attach(OpenAI(model="gpt-5-mini", max_tokens=600, **base), maestro)
        other = attach(Other(model="gpt-5-mini", max_tokens=600, **base), maestro)
        vectors = attach(
            OpenAIEmbedding(model_name="text-embedding-3-small", embed_batch_size=2, **base), maestro
        )

        async def agent(model=llm):
            one = attach(FunctionAgent(name="researcher", tools=[search], llm=model), maestro)
            await one.run(user_msg="go")

        async def crowd():
            await asyncio.gather(*(agent() for _ in range(10)))

        async def astream():
            [chunk async for chunk in await llm.astream_chat(ASK)]

        ways = {
            "sync": lambda: llm.chat(ASK),
            "async": lambda: loop.run(agent()),
            "async, another LLM": lambda: loop.run(agent(other)),
            "stream": lambda: list(llm.stream_chat(ASK)),
            "async stream": lambda: loop.run(astream()),
            "embeddings": lambda: vectors.get_text_embedding_batch(["a", "b", "c", "d", "e"]),
            "async embeddings": lambda: loop.run(
                vectors.aget_text_embedding_batch(["a", "b", "c", "d", "e"])
            ),
            "10 at once": lambda: loop.run(crowd()),
        }
        found = {}
        for way, run in ways.items():
            exporter.clear()
            before, requests = stand_in.bill_nanos, len(stand_in.requests)
            with attribution(team="growth"):
                run()
            spans = exporter.get_finished_spans()
            models = calls(spans)
            theirs = [span for span in models if not is_ours(span)]
            found[way] = {
                "requests": len(stand_in.requests) - requests,
                "model spans": len(theirs),
                "with cost": sum("gen_ai.usage.cost" in span.attributes for span in theirs),
                "cost equals bill": sum(s.attributes.get("maestro.cost.nano_usd", 0) for s in spans)
                == sum(s.attributes.get("maestro.cost.nano_usd", 0) for s in models)
                == stand_in.bill_nanos - before,
                "ours": sum(map(is_ours, spans)),
                "traces": len({span.context.trace_id for span in spans}),
            }
    print(json.dumps(found))
    maestro.close()


if __name__ == "__main__":
    main(sys.argv[1])
