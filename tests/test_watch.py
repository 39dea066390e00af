"""Middleware that defeats ours is noticed, in real agents; middleware that does not, is not."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import suppress

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware, ModelRetryMiddleware
from langchain.agents.middleware.types import ModelResponse
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from maestro_core import Cap, CapExceeded
from maestro_core.errors import MaestroWarning
from maestro_langchain import MaestroMiddleware

ASK = {"messages": [("user", "Hello")]}
TINY = [Cap("0.0000001")]


class Swallows(AgentMiddleware):
    def wrap_model_call(self, request, handler):
        try:
            return handler(request)
        except CapExceeded:
            return AIMessage("Sorry, try again later.")

    async def awrap_model_call(self, request, handler):
        try:
            return await handler(request)
        except CapExceeded:
            return AIMessage("Sorry, try again later.")


class CallsItself(AgentMiddleware):
    def wrap_model_call(self, request, handler):
        return ModelResponse(result=[request.model.invoke(request.messages)])

    async def awrap_model_call(self, request, handler):
        return ModelResponse(result=[await request.model.ainvoke(request.messages)])


class Caches(AgentMiddleware):
    def __init__(self):
        super().__init__()
        self.kept = None

    def wrap_model_call(self, request, handler):
        self.kept = self.kept or handler(request)
        return self.kept


class AsksTwice(AgentMiddleware):
    def wrap_model_call(self, request, handler):
        handler(request)
        return handler(request)


@pytest.fixture(params=["invoke", "ainvoke"])
def invoke(request):
    if request.param == "invoke":
        return lambda agent: agent.invoke(ASK)
    return lambda agent: asyncio.run(agent.ainvoke(ASK))


def test_a_refusal_that_was_swallowed_is_said_once(invoke, provider, openai, make_maestro):
    maestro = make_maestro(caps=TINY)
    agent = create_agent(openai(), [], middleware=[Swallows(), MaestroMiddleware(maestro)])
    with pytest.warns(MaestroWarning, match=r"swallowed a refusal.*cap exceeded.*first in"):
        invoke(agent)
    invoke(agent)  # a second warning would be an error
    assert provider.requests == []


def test_a_model_that_was_called_past_the_door_is_said(invoke, provider, openai, make_maestro):
    maestro = make_maestro(caps=TINY)
    agent = create_agent(openai(), [], middleware=[CallsItself(), MaestroMiddleware(maestro)])
    with pytest.warns(MaestroWarning, match=r"stands before it.*first in"):
        invoke(agent)
    assert len(provider.requests) == 1


def test_an_answer_from_a_cache_in_front_is_said(openai, make_maestro):
    agent = create_agent(openai(), [], middleware=[Caches(), MaestroMiddleware(make_maestro())])
    agent.invoke(ASK)
    with pytest.warns(MaestroWarning, match="answers from a cache"):
        agent.invoke(ASK)


@pytest.mark.parametrize("exit_behavior", ["error", "end", "wrap_up"])
@pytest.mark.parametrize(
    "others",
    [
        lambda model: [],
        lambda model: [AsksTwice()],
        lambda model: [ModelRetryMiddleware(max_retries=1, initial_delay=0)],
        lambda model: [ModelFallbackMiddleware(model)],
    ],
    ids=["alone", "asks twice", "retries", "falls back"],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_does_no_harm_is_not_said(first, others, exit_behavior, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("0.0015")])
    ours, more = MaestroMiddleware(maestro, exit_behavior=exit_behavior), others(openai())
    agent = create_agent(
        openai(), [], middleware=[ours, *more] if first else [*more, ours], checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "one"}}  # with the answers of earlier turns in its messages
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            with suppress(CapExceeded):
                agent.invoke(ASK, config)
    assert 0 < provider.bill_nanos <= 1_500_000


def test_swallowing_behind_the_door_does_no_harm(provider, openai, make_maestro):
    maestro = make_maestro(caps=TINY)
    agent = create_agent(openai(), [], middleware=[MaestroMiddleware(maestro), Swallows()])
    with pytest.raises(CapExceeded):
        agent.invoke(ASK)
    assert provider.requests == []
