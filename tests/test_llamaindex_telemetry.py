"""LlamaIndex's agents, tools and calls as spans, the conventions those of LangChain's; loops are found, too."""

from __future__ import annotations

from weakref import WeakSet

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sound import assert_sound

from maestro_core import CapExceeded, attribution
from maestro_core.testing import Reply
from maestro_llamaindex import _spans, attach

ASKED = "the secret question"


@pytest.fixture
def spans(monkeypatch):
    """The user's own tracer provider, with what it exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    # Every Maestro of the process is told of LlamaIndex's spans, those of earlier tests, too.
    monkeypatch.setattr(_spans, "_maestros", WeakSet())
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
