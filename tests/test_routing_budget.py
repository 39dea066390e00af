"""Money that runs out makes a router choose a cheaper endpoint before anything is refused, and the agent finishes."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from maestro_core import SLA, Cap, CapExceeded
from maestro_core.learned import Outcome
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import MaestroMiddleware, RoutedChatModel

STEPS = 8
SECONDS = {"gpt-5-nano": 9.0, "gpt-5.4": 0.5}  # the cheap one is too slow for the SLA, on the router's clock


@tool
def look_up(topic: str) -> str:
    """Look a topic up."""
    return f"{topic}: nothing new"


@pytest.fixture
def research(make_maestro, fake_clock):
    """An agent of eight steps over a slow cheap endpoint and a fast dear one; the SLA wants the dear one."""
    stack = ExitStack()

    def answer(request):
        fake_clock.advance(SECONDS[request.model])
        done = sum(message.get("role") == "assistant" for message in request.messages)
        if done == STEPS - 1:
            return Reply(text="done", input_tokens=900, output_tokens=80)
        return Reply(tool_calls=[("look_up", {"topic": "x"})], input_tokens=900, output_tokens=80)

    with stack:
        providers = {name: stack.enter_context(FakeProvider(answer, keep_alive=False)) for name in SECONDS}

        def run(*caps):
            maestro = make_maestro(caps=list(caps))
            endpoints = [
                ChatOpenAI(model=name, base_url=provider.openai_url, api_key="none", max_tokens=100)
                for name, provider in providers.items()
            ]
            model = RoutedChatModel(endpoints=endpoints, sla=SLA(latency_ms_p95=3_000), maestro=maestro)
            model.invoke("Hello", config={"metadata": {"team": "warm-up"}})  # makes the router
            model._router.now_s = lambda: fake_clock.now_us() / 1e6
            maestro.learned.health.clear()
            for facts in model._router.facts.values():
                for _ in range(20):
                    latency = Outcome(latency_ms=SECONDS[facts.name] * 1_000)
                    maestro.learned.answered(facts.key, latency, model._router.now_s())
            for provider in providers.values():
                provider.reset()
            middleware = [MaestroMiddleware(maestro)]
            agent = create_agent(model, [look_up], name="researcher", middleware=middleware)
            messages = agent.invoke({"messages": [("user", "Research batteries.")]})["messages"]
            told = [each.response_metadata["maestro"] for each in messages if each.type == "ai"]
            return messages[-1].text, told, sum(each.bill_nanos for each in providers.values())

        yield run


def test_with_money_the_fast_one_serves_all(research):
    text, told, bill = research()
    assert (text, [each["chosen"] for each in told]) == ("done", ["gpt-5.4"] * STEPS)
    assert bill == STEPS * (900 * 2_500 + 80 * 15_000)


def test_when_it_runs_out_a_cheaper_one_finishes(research):
    text, told, bill = research(Cap("0.012", per="run"))
    chosen = [each["chosen"] for each in told]
    dear = chosen.count("gpt-5.4")
    assert (text, chosen) == ("done", ["gpt-5.4"] * dear + ["gpt-5-nano"] * (STEPS - dear))
    assert 2 <= dear < STEPS
    assert bill <= 12_000_000
    last = {each["name"]: each["verdict"] for each in told[-1]["candidates"]}
    assert last["gpt-5.4"].startswith("budget:need $")
    assert told[-1]["relaxed"] == ["sla"]


def test_when_nothing_fits_it_is_refused(research):
    with pytest.raises(CapExceeded, match=r"run="):
        research(Cap("0.0002", per="run"))
