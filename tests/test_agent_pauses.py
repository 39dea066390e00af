"""Agents that pause for a person, hand over to another, or are left: each ends, none of it is an error."""

from __future__ import annotations

import time
from typing import Annotated

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware

ASKED = {"messages": [("user", "go " * 200)]}
DOORS = ["middleware", "handler", "both"]


@pytest.fixture
def spans(monkeypatch):
    """The user's own tracer provider, with what it exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


class Doors:
    """Agents of one Maestro, behind a door."""

    def __init__(self, maestro, openai, door):
        self.maestro, self._openai, self._door = maestro, openai, door

    def agent(self, tools, name, *, middleware=(), **more):
        ours = [MaestroMiddleware(self.maestro)] if self._door != "handler" else []
        return create_agent(self._openai(), tools, middleware=[*ours, *middleware], name=name, **more)

    def config(self, **more):
        return {
            "callbacks": [MaestroCallbackHandler(self.maestro)] if self._door != "middleware" else [],
            **more,
        }


@pytest.fixture(params=DOORS)
def doors(request, openai, provider, make_maestro):
    """Agents that use each tool once, behind each door in turn."""

    def reply(asked):
        if asked.tools and not asked.tool_results:
            calls = [(each["function"]["name"], {"query": "x"}) for each in asked.tools]
            return Reply(tool_calls=calls, input_tokens=1_000, output_tokens=80)
        return Reply(text="done", input_tokens=1_200, output_tokens=60)

    provider.reply = reply
    return Doors(make_maestro(), openai, request.param)


@tool
def ask_person(query: str) -> str:
    """Ask."""
    return str(interrupt(query))


@tool
def transfer(query: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Command:
    """Hand over to bob."""
    told = {"messages": [ToolMessage("over to bob", tool_call_id=tool_call_id)]}
    return Command(goto="bob", graph=Command.PARENT, update=told)


def failed(spans):
    return [span.name for span in spans.get_finished_spans() if "error.type" in span.attributes]


def test_a_tool_that_asks_a_person_has_not_failed(spans, doors):
    agent = doors.agent([ask_person], "boss", checkpointer=InMemorySaver())
    config = doors.config(configurable={"thread_id": "t"})
    assert agent.invoke(ASKED, config=config)["__interrupt__"]
    assert "execute_tool ask_person" in {span.name for span in spans.get_finished_spans()}
    assert failed(spans) == []
    assert all(span.status.status_code is trace.StatusCode.UNSET for span in spans.get_finished_spans())


def tree(spans):
    """Return each trace as its spans' names, the agent's own first; every parent is there, and covers its children."""
    found = {span.context.span_id: span for span in spans.get_finished_spans()}
    for span in found.values():
        if span.parent is not None:
            around = found[span.parent.span_id]
            assert around.start_time <= span.start_time <= span.end_time <= around.end_time
    traces = {}
    for span in sorted(found.values(), key=lambda each: each.start_time):
        traces.setdefault(span.context.trace_id, []).append(span.name)
    return list(traces.values())


APPROVED = Command(resume={"decisions": [{"type": "approve"}]})


@tool
def search(query: str) -> str:
    """Search."""
    return "found"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_agent_that_was_paused_goes_on_as_a_trace_of_its_own(
    spans, doors, provider, make_maestro, elsewhere
):
    saved, asks = InMemorySaver(), HumanInTheLoopMiddleware(interrupt_on={"search": True})
    config = {"configurable": {"thread_id": "t"}}
    agent = doors.agent([search], "boss", middleware=[asks], checkpointer=saved)
    agent.invoke(ASKED, config=doors.config(**config))
    first = doors.maestro
    if elsewhere:
        first.close()
        doors.maestro = make_maestro()
        agent = doors.agent([search], "boss", middleware=[asks], checkpointer=saved)
    agent.invoke(APPROVED, config=doors.config(**config))
    assert tree(spans) == [
        ["invoke_agent boss", "chat gpt-5-mini"],
        ["invoke_agent boss", "execute_tool search", "chat gpt-5-mini"],
    ]
    tops = [span for span in spans.get_finished_spans() if span.parent is None]
    assert {span.attributes["gen_ai.conversation.id"] for span in spans.get_finished_spans()} == {"t"}
    assert round(sum(span.attributes["maestro.run.cost.usd"] for span in tops) * 1e9) == provider.bill_nanos
    assert first.runs._runs == doors.maestro.runs._runs == {}


def test_a_paused_agent_is_told_when_the_process_ends(spans, doors):
    asks = HumanInTheLoopMiddleware(interrupt_on={"search": True})
    agent = doors.agent([search], "boss", middleware=[asks], checkpointer=InMemorySaver())
    agent.invoke(ASKED, config=doors.config(configurable={"thread_id": "t"}))
    paused_ns = time.time_ns()
    doors.maestro.close()
    assert tree(spans) == [["invoke_agent boss", "chat gpt-5-mini"]]
    assert all(span.end_time <= paused_ns for span in spans.get_finished_spans())


def test_a_tool_beside_one_that_asks_does_not_begin_its_agent_again(spans, doors):
    agent = doors.agent([ask_person, search], "boss", checkpointer=InMemorySaver())
    config = doors.config(configurable={"thread_id": "t"})
    agent.invoke(ASKED, config=config)
    names = [span.name for span in spans.get_finished_spans()]
    assert names.count("invoke_agent boss") == 1
    agent.invoke(Command(resume="yes"), config=config)
    assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 2


def test_an_agent_that_hands_over_has_not_failed(spans, doors):
    graph = StateGraph(MessagesState)
    graph.add_node("alice", doors.agent([transfer], "alice"), destinations=("bob",))
    graph.add_node("bob", doors.agent([], "bob"))
    graph.add_edge(START, "alice")
    graph.compile().invoke(ASKED, config=doors.config())
    assert failed(spans) == []
    agents = [
        ["invoke_agent alice", "chat gpt-5-mini", "execute_tool transfer"],
        ["invoke_agent bob", "chat gpt-5-mini"],
    ]
    around = doors.config().get("callbacks")  # a handler sees the graph around them, middleware does not
    assert tree(spans) == ([["invoke_agent", *agents[0], *agents[1]]] if around else agents)
    assert doors.maestro.runs._runs == {}
