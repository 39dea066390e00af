"""Paid tools: held for, refused, settled and reported like calls."""

from __future__ import annotations

from decimal import Decimal

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from maestro_core import Cap, CapExceeded
from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware

PROMPT = "How do batteries age? " * 200
ASK = {"messages": [("user", PROMPT)]}
PRICES = [{"tool": "web_search", "per_call": "0.05"}]


@pytest.fixture
def searches():
    """The queries that the paid tool was really used for."""
    return []


@pytest.fixture
def web_search(searches):
    @tool
    def web_search(query: str) -> str:
        """Search the web."""
        searches.append(query)
        return "found"

    return web_search


def asks_for(times: int):
    def reply(request):
        if request.tools and len(request.messages) < 2 * times:
            return Reply(tool_calls=[("web_search", {"query": str(request.number)})], output_tokens=20)
        return Reply(text="done", output_tokens=20)

    return reply


def agent_with(door, model, tools, maestro, exit_behavior="error"):
    middleware = [] if door == "handler" else [MaestroMiddleware(maestro, exit_behavior=exit_behavior)]
    config = {"callbacks": [MaestroCallbackHandler(maestro)]} if door != "middleware" else {}
    return create_agent(model, tools, middleware=middleware, name="boss").with_config(config)


@pytest.mark.parametrize("door", ["handler", "middleware", "both"])
@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
async def test_a_use_costs_its_price_once(mode, door, web_search, searches, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1", per="run")], prices=PRICES)
    provider.reply = asks_for(2)
    agent = agent_with(door, openai(), [web_search], maestro)
    await agent.ainvoke(ASK) if mode == "ainvoke" else agent.invoke(ASK)
    assert len(searches) == 2
    by_tool = {row.key["tool"]: row for row in maestro.report("tool", since="all").rows}
    assert by_tool["web_search"].cost == Decimal("0.10")
    assert by_tool["web_search"].calls == 2
    assert maestro.report("model", since="all").total == provider.bill + Decimal("0.10")
    assert maestro.report("agent", since="all").rows[0].key == {"agent": "boss"}
    assert maestro.ledger.holds() == []
    assert maestro.ledger.check() == []


@pytest.mark.parametrize("door", ["middleware", "both"])
def test_a_cap_on_a_tool_stops_the_tool_and_leaves_the_run_alive(
    door, web_search, searches, provider, openai, make_maestro
):
    maestro = make_maestro(caps=[Cap("0.12", per="tool"), Cap("1", per="run")], prices=PRICES)
    provider.reply = asks_for(5)
    result = agent_with(door, openai(), [web_search], maestro).invoke(ASK, {"recursion_limit": 100})
    assert len(searches) == 2  # a third would have passed 0.12
    assert result["messages"][-1].text == "done"
    refused = [m for m in result["messages"] if getattr(m, "status", "") == "error"]
    assert len(refused) == 3
    assert refused[0].text.startswith("Not run: cap exceeded (spent): tool=web_search")
    assert maestro.ledger.check() == []


@pytest.mark.parametrize("door", ["handler", "middleware"])
def test_a_cap_on_the_run_stops_a_paid_tool_before_it_runs(
    door, web_search, searches, provider, openai, make_maestro
):
    maestro = make_maestro(caps=[Cap("0.07", per="run")], prices=PRICES)
    provider.reply = asks_for(9)
    with pytest.raises(CapExceeded, match="run="):
        agent_with(door, openai(), [web_search], maestro).invoke(ASK, {"recursion_limit": 100})
    assert len(searches) == 1
    assert maestro.report("model", since="all").total <= Decimal("0.07")
    assert maestro.ledger.holds() == []


def test_an_agent_that_wraps_up_answers_although_its_tool_was_refused(
    web_search, searches, provider, openai, make_maestro
):
    maestro = make_maestro(caps=[Cap("0.07", per="run")], prices=PRICES)
    provider.reply = asks_for(9)
    agent = agent_with("middleware", openai(), [web_search], maestro, "wrap_up")
    result = agent.invoke(ASK, {"recursion_limit": 100})
    assert len(searches) == 1
    assert result["messages"][-1].text == "done"


def test_a_tool_that_fails_has_been_paid_for(provider, openai, make_maestro):
    @tool
    def web_search(query: str) -> str:
        """Search the web."""
        raise RuntimeError("broken")

    maestro = make_maestro(prices=PRICES)
    provider.reply = asks_for(1)
    provider.reply = lambda r: Reply(tool_calls=[("web_search", {"query": "x"})], output_tokens=20)
    with pytest.raises(RuntimeError, match="broken"):
        agent_with("handler", openai(), [web_search], maestro).invoke(ASK)
    by_tool = {row.key["tool"]: row.cost for row in maestro.report("tool", since="all").rows}
    assert by_tool["web_search"] == Decimal("0.05")


def test_models_inside_tools_are_governed_with_middleware_alone(provider, openai, make_maestro):
    """The user attached no handler; the model in the tool's body is under the cap, and on the report."""
    inner = openai()

    @tool
    def ask(question: str) -> str:
        """Ask another model."""
        return inner.invoke(PROMPT).text

    maestro = make_maestro(caps=[Cap("1", per="run")])
    provider.reply = lambda r: (
        Reply(tool_calls=[("ask", {"question": "x"})])
        if r.tools and not r.tool_results
        else Reply(text="done")
    )
    create_agent(openai(), [ask], middleware=[MaestroMiddleware(maestro)], name="boss").invoke(ASK)
    assert len(provider.requests) == 3
    assert maestro.report("model", since="all").total == provider.bill
    by_tool = {row.key["tool"]: row.calls for row in maestro.report("tool", since="all").rows}
    assert by_tool == {"(unattributed)": 2, "ask": 1}
    assert len({record.run for record in maestro.ledger.records()}) == 1
    assert {agent for record in maestro.ledger.records() for _, agent in record.attribution.path[:1]} == {
        "boss"
    }
