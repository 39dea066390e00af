"""One instrumentation of LangChain beside Maestro: which spans there are, and what they carry; JSON on stdout.

python tests/peers/worker_telemetry.py openinference|traceloop|official|langfuse
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maestro_core import Maestro, attribution
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import MaestroCallbackHandler

ASKED = {"messages": [("user", "go")]}


def instrument(peer: str, provider: TracerProvider) -> list:
    """Switch the peer on; return the handlers that its users pass themselves."""
    if peer == "openinference":
        from openinference.instrumentation.langchain import LangChainInstrumentor

        LangChainInstrumentor().instrument(tracer_provider=provider)
    elif peer == "traceloop":
        from opentelemetry.instrumentation.langchain import LangchainInstrumentor

        LangchainInstrumentor().instrument(tracer_provider=provider)
    elif peer == "official":
        from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor as Official

        Official().instrument(tracer_provider=provider)
    elif peer == "langfuse":
        from langfuse import Langfuse
        from langfuse.langchain import CallbackHandler

        logging.disable(logging.ERROR)  # nobody listens where it sends
        Langfuse(public_key="pk", secret_key="sk", base_url="http://127.0.0.1:9", tracer_provider=provider)
        return [CallbackHandler(public_key="pk")]
    return []


def is_model(span) -> bool:
    """Whether a span is a model call, by the peer's own word."""
    said = {
        span.attributes.get("openinference.span.kind"),
        span.attributes.get("gen_ai.operation.name"),
        span.attributes.get("langfuse.observation.type"),
    }
    return bool(said & {"LLM", "chat", "generation"})


def main(peer: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    theirs = instrument(peer, provider)
    maestro = Maestro(ledger="memory:")
    callbacks = [MaestroCallbackHandler(maestro), *theirs]

    @tool
    def search(query: str) -> str:
        """Search."""
        return "found"

    def reply(request):
        if request.tools and not request.tool_results:
            return Reply(tool_calls=[("search", {"query": "x"})], input_tokens=1_000, output_tokens=80)
        return Reply(text="done", input_tokens=1_200, output_tokens=60)

    with FakeProvider(reply) as stand_in, asyncio.Runner() as loop:
        model = ChatOpenAI(model="gpt-5-mini", base_url=stand_in.openai_url, api_key="x", stream_usage=True)
        agent = create_agent(model, [search], name="researcher")

        async def crowd():
            await asyncio.gather(*(agent.ainvoke(ASKED, config={"callbacks": callbacks}) for _ in range(10)))

        ways = {
            "sync": lambda: agent.invoke(ASKED, config={"callbacks": callbacks}),
            "async": lambda: loop.run(agent.ainvoke(ASKED, config={"callbacks": callbacks})),
            "stream": lambda: list(model.stream("go", config={"callbacks": callbacks})),
            "10 at once": lambda: loop.run(crowd()),
        }
        found = {}
        for way, run in ways.items():
            exporter.clear()
            before, requests = stand_in.bill_nanos, len(stand_in.requests)
            with attribution(team="growth"):
                run()
            spans = exporter.get_finished_spans()
            models = [span for span in spans if is_model(span)]
            found[way] = {
                "requests": len(stand_in.requests) - requests,
                "model spans": len(models),
                "with cost": sum("gen_ai.usage.cost" in span.attributes for span in models),
                "cost equals bill": sum(s.attributes.get("maestro.cost.nano_usd", 0) for s in spans)
                == stand_in.bill_nanos - before,
                "ours": sum(span.instrumentation_scope.name == "maestro" for span in spans),
                "traces": len({span.context.trace_id for span in spans}),
                "spans": len(spans),
            }
    print(json.dumps(found))
    maestro.close()


if __name__ == "__main__":
    main(sys.argv[1])
