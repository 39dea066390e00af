"""The tree of an agent's spans, whichever door it was given: one trace, with the agent at its top."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from maestro_core import Cap, CapExceeded, attribution
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


@pytest.fixture
def make(openai, provider, make_maestro):
    """Make agents behind a door, and say how to run them."""

    def reply(request):
        if request.tools and not request.tool_results:
            calls = [(each["function"]["name"], {"query": "x"}) for each in request.tools]
            return Reply(tool_calls=calls, input_tokens=1_000, output_tokens=80)
        return Reply(text="done", input_tokens=1_200, output_tokens=60)

    provider.reply = reply
    maestro = make_maestro()

    def make(door, tools, name=None, **more):
        middleware = [MaestroMiddleware(maestro)] if door != "handler" else []
        return create_agent(openai(), tools, middleware=middleware, name=name, **more)

    make.maestro = maestro
    make.config = lambda door: (
        {"callbacks": [MaestroCallbackHandler(maestro)]} if door != "middleware" else {}
    )
    return make


@tool
def search(query: str) -> str:
    """Search."""
    return "found"


def tree(spans):
    """Return the finished spans as (name, name of the parent), sorted."""
    names = {span.context.span_id: span.name for span in spans.get_finished_spans()}
    return sorted(
        (span.name, names[span.parent.span_id] if span.parent else None)
        for span in spans.get_finished_spans()
    )


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["boss", None])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_agent_is_one_trace(spans, make, provider, door, name, asynchronous):
    agent, config = make(door, [search], name), make.config(door)
    with attribution(team="growth"):
        if asynchronous:
            asyncio.run(agent.ainvoke(ASKED, config=config))
        else:
            agent.invoke(ASKED, config=config)
    top = f"invoke_agent {name}" if name else "invoke_agent"
    assert tree(spans) == [
        ("chat gpt-5-mini", top), ("chat gpt-5-mini", top), ("execute_tool search", top), (top, None),
    ]  # fmt: skip
    found = {span.name: span for span in spans.get_finished_spans()}
    assert round(found[top].attributes["maestro.run.cost.usd"] * 1e9) == provider.bill_nanos > 0
    assert len({span.attributes["maestro.run"] for span in found.values()}) == 1
    for span in found.values():
        assert span.attributes["maestro.team"] == "growth"
        assert span.attributes.get("gen_ai.agent.name") == name
    assert make.maestro.runs._runs == {}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["boss", None])
def test_an_agent_in_a_tool_stands_below_it(spans, make, provider, door, name):
    inner = make(door, [search], "inner")

    @tool
    def ask_inner(query: str) -> str:
        """Ask."""
        return inner.invoke(ASKED)["messages"][-1].content

    make(door, [ask_inner], name).invoke(ASKED, config=make.config(door))
    top = f"invoke_agent {name}" if name else "invoke_agent"
    assert tree(spans) == [
        ("chat gpt-5-mini", top), ("chat gpt-5-mini", top),
        ("chat gpt-5-mini", "invoke_agent inner"), ("chat gpt-5-mini", "invoke_agent inner"),
        ("execute_tool ask_inner", top), ("execute_tool search", "invoke_agent inner"),
        *sorted([(top, None), ("invoke_agent inner", "execute_tool ask_inner")]),
    ]  # fmt: skip
    spent = sum(span.attributes.get("maestro.cost.nano_usd", 0) for span in spans.get_finished_spans())
    assert spent == provider.bill_nanos
    paths = {record.attribution.path for record in make.maestro.ledger.records() if record.kind == "settled"}
    outer = (("agent", name),) if name else ()
    assert paths == {outer, (*outer, ("tool", "ask_inner"), ("agent", "inner"))}


@pytest.mark.parametrize("name", ["flow", None])
def test_a_graph_of_ones_own_is_one_trace(spans, make, openai, provider, name):
    model, boss = openai(), make("handler", [search], "boss")
    graph = StateGraph(MessagesState)
    graph.add_node("draft", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node(
        "check",
        RunnableLambda(lambda state: state["messages"][-1].text) | model | (lambda m: {"messages": [m]}),
    )
    graph.add_node("boss", boss)
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "check")
    graph.add_edge("check", "boss")
    graph.compile(name=name).invoke(ASKED, config=make.config("handler"))
    assert tree(spans) == [
        ("chat gpt-5-mini", "invoke_agent"), ("chat gpt-5-mini", "invoke_agent"),
        ("chat gpt-5-mini", "invoke_agent boss"), ("chat gpt-5-mini", "invoke_agent boss"),
        ("execute_tool search", "invoke_agent boss"),
        ("invoke_agent", None), ("invoke_agent boss", "invoke_agent"),
    ]  # fmt: skip
    top = next(span for span in spans.get_finished_spans() if span.name == "invoke_agent")
    assert round(top.attributes["maestro.run.cost.usd"] * 1e9) == provider.bill_nanos
    paths = {record.attribution.path for record in make.maestro.ledger.records()}
    assert paths == {(), (("agent", "boss"),)}


def test_an_agent_that_fails_has_ended(spans, make, provider):
    @tool
    def broken(query: str) -> str:
        """Break."""
        raise RuntimeError(query)

    with pytest.raises(RuntimeError):
        make("middleware", [broken], "boss").invoke(ASKED)
    (top,) = [span for span in spans.get_finished_spans() if span.name == "invoke_agent boss"]
    assert top.status.status_code is trace.StatusCode.ERROR
    assert top.attributes["error.type"] == "RuntimeError"
    assert tree(spans) == [
        ("chat gpt-5-mini", "invoke_agent boss"), ("execute_tool broken", "invoke_agent boss"), ("invoke_agent boss", None),
    ]  # fmt: skip


def test_a_tool_that_answers_with_an_error_has_failed(spans, make):
    @tool
    def broken(query: str) -> str:
        """Break."""
        raise ToolException("quoted prompt")

    broken.handle_tool_error = True
    make("handler", [broken], "boss").invoke(ASKED, config=make.config("handler"))
    found = {span.name: span for span in spans.get_finished_spans()}
    assert found["execute_tool broken"].status.status_code is trace.StatusCode.ERROR
    assert found["execute_tool broken"].attributes["error.type"] == "tool_error"
    assert "quoted" not in found["execute_tool broken"].to_json()
    assert found["invoke_agent boss"].status.status_code is trace.StatusCode.UNSET


def test_a_refused_agent_has_ended_by_the_refusal(spans, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    with pytest.raises(CapExceeded):
        create_agent(openai(), [], middleware=[MaestroMiddleware(maestro)], name="boss").invoke(ASKED)
    refused, top = spans.get_finished_spans()
    assert (refused.name, top.name) == ("chat gpt-5-mini", "invoke_agent boss")
    assert refused.parent.span_id == top.context.span_id
    assert (top.attributes["error.type"], top.status.description) == ("CapExceeded", "CapExceeded")


def test_an_agent_that_is_paused_has_not_failed(spans, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    door = MaestroMiddleware(maestro, exit_behavior="interrupt")
    agent = create_agent(openai(), [], middleware=[door], name="boss", checkpointer=InMemorySaver())
    agent.invoke(ASKED, config={"configurable": {"thread_id": "t"}})
    (top,) = [span for span in spans.get_finished_spans() if span.name == "invoke_agent boss"]
    assert top.status.status_code is trace.StatusCode.UNSET
    assert top.attributes["gen_ai.conversation.id"] == "t"


def test_agents_in_many_threads_are_a_trace_each(spans, make, provider):
    agent = make("middleware", [search], "boss")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: agent.invoke(ASKED), range(12)))
    found = spans.get_finished_spans()
    traces = {span.context.trace_id for span in found}
    assert len(traces) == 12
    assert {sum(span.context.trace_id == each for span in found) for each in traces} == {4}
    assert sum(span.attributes.get("maestro.cost.nano_usd", 0) for span in found) == provider.bill_nanos
    assert make.maestro.runs._runs == {}


def test_an_agent_that_nobody_ends_ends_before_the_next(spans, make):
    agent = make("middleware", [search], "boss")
    stream = agent.stream(ASKED)
    next(stream)
    stream.close()
    del stream
    with pytest.raises(GraphRecursionError):
        agent.invoke(ASKED, config={"recursion_limit": 3})
    agent.invoke(ASKED)
    tops = [span for span in spans.get_finished_spans() if span.name == "invoke_agent boss"]
    assert len(tops) == 3
    assert len({span.context.trace_id for span in spans.get_finished_spans()}) == 3
    assert make.maestro.runs._runs == {}
