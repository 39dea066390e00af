"""LlamaIndex agents and models as they stand, governed over real HTTP; the provider's own bill is the witness."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI
from sound import assert_sound

from maestro_core import Cap, CapExceeded, attribution
from maestro_core.testing import Reply
from maestro_llamaindex import attach, detach


def work(question: str) -> str:
    """Find something out."""
    return f"{question}: nothing"


def loops(request):
    """A model that calls a tool for ever, as long as it has one."""
    if request.tools:
        return Reply(tool_calls=[("work", {"question": "x"})], output_tokens=30)
    return Reply(text="This is what I know.", output_tokens=30)


# -- agents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_cap_comes_out_of_the_handler_unchanged(streaming, provider, llama, make_maestro):
    maestro = make_maestro(caps=[Cap("0.0005", per="run")])
    provider.reply = loops
    agent = FunctionAgent(name="boss", tools=[work], llm=llama(), streaming=streaming)
    assert attach(agent, maestro) is agent
    with pytest.raises(CapExceeded) as caught:
        await agent.run(user_msg="Go", max_iterations=100)
    assert type(caught.value) is CapExceeded
    assert caught.value.reason == "spent"
    assert len(provider.requests) > 3
    assert_sound(maestro, provider, 500_000)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(("exit_behavior", "answer"), [("end", "Stopped: cap"), ("wrap_up", "This is what")])
async def test_an_agent_leaves_as_it_was_told(
    exit_behavior, answer, streaming, provider, llama, make_maestro
):
    maestro = make_maestro(caps=[Cap("0.0005", per="run")])
    provider.reply = loops
    agent = FunctionAgent(name="boss", tools=[work], llm=llama(), streaming=streaming)
    attach(agent, maestro, exit_behavior=exit_behavior)
    output = await agent.run(user_msg="Go", max_iterations=100)
    assert str(output).startswith(answer)
    assert_sound(maestro, provider, 500_000)
    assert bool(provider.requests[-1].tools) == (exit_behavior == "end")  # the last answer has none


async def test_calls_belong_to_agent_run_and_whom_it_is_for(provider, llama, make_maestro):
    maestro = make_maestro()
    agent = attach(FunctionAgent(name="boss", tools=[], llm=llama()), maestro)
    with attribution(team="growth"):
        handler = agent.run(user_msg="Go")
    await handler
    (record,) = maestro.ledger.records()
    assert record.attribution.path == (("agent", "boss"),)
    assert record.attribution.dimensions == {"team": "growth", "run": handler.run_id}
    assert record.estimated_nanos == 0
    assert_sound(maestro, provider)


async def test_a_react_agent_is_governed_too(provider, llama, make_maestro):
    maestro = make_maestro(caps=[Cap("0.001", per="run")])
    provider.reply = lambda r: 'Thought: I need a tool.\nAction: work\nAction Input: {"question": "x"}'
    agent = attach(ReActAgent(name="boss", tools=[work], llm=llama()), maestro)
    with pytest.raises(CapExceeded):
        await agent.run(user_msg="Go", max_iterations=100)
    assert_sound(maestro, provider, 1_000_000)


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_model_is_itself_again_after_detach(provider, llama, make_maestro):
    llm = llama(max_retries=3, max_tokens=50)
    llm.chat([ChatMessage("before")])
    assert attach(llm, make_maestro()) is llm
    assert isinstance(llm, OpenAI)
    llm.chat([ChatMessage("inside")], max_tokens=7)
    detach(llm)
    assert type(llm) is OpenAI
    assert llm.max_retries == 3
    assert llm._get_client().max_retries == 3
    assert not [name for name in vars(llm) if "maestro" in name]
    llm.chat([ChatMessage("after")], max_tokens=7)
    # LlamaIndex ignores the call's own limit; attached, it counts.
    assert [request.max_output_tokens for request in provider.requests] == [50, 7, 50]
