"""Agents that pause for a person, hand over to another, or are left: each ends, none of it is an error."""

from __future__ import annotations

from typing import Annotated

import pytest
from langchain.agents import create_agent
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


def test_an_agent_that_hands_over_has_not_failed(spans, doors):
    graph = StateGraph(MessagesState)
    graph.add_node("alice", doors.agent([transfer], "alice"), destinations=("bob",))
    graph.add_node("bob", doors.agent([], "bob"))
    graph.add_edge(START, "alice")
    graph.compile().invoke(ASKED, config=doors.config())
    assert "chat gpt-5-mini" in {span.name for span in spans.get_finished_spans()}
    assert failed(spans) == []
