"""What the GenAI conventions recommend on spans of calls and tools, through LlamaIndex."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.tools import FunctionTool
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maestro_core.testing import Reply
from maestro_llamaindex import _spans, attach


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


def the(name, spans):
    """Return the attributes of the only span of this name."""
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found.attributes


def search(query: str) -> str:
    """Search."""
    return f"{query}: nothing"


@pytest.mark.parametrize("workflow", [False, True])
async def test_a_tools_call_is_the_one_that_the_model_asked_for(
    spans, provider, llama, make_maestro, workflow
):
    provider.reply = [Reply(tool_calls=[("search", {"query": "x"})]), "fine"]
    agent = FunctionAgent(name="boss", tools=[search], llm=llama())
    agent = attach(AgentWorkflow([agent]) if workflow else agent, make_maestro())
    answer = await agent.run(user_msg="go")
    tool = the("execute_tool search", spans)
    assert tool["gen_ai.tool.call.id"] == answer.tool_calls[0].tool_id
    assert tool["gen_ai.tool.type"] == "function"


def test_a_tool_that_no_model_asked_for_has_no_call(spans, llama, make_maestro):
    attach(llama(), make_maestro())
    FunctionTool.from_defaults(search).call(query="x")
    assert "gen_ai.tool.call.id" not in the("execute_tool search", spans)


async def test_a_call_says_where_it_goes(spans, provider, llama, make_maestro):
    await attach(llama(), make_maestro()).acomplete("hello")
    chat = the("chat gpt-4o-mini", spans)
    assert f"http://{chat['server.address']}:{chat['server.port']}" == provider.url
