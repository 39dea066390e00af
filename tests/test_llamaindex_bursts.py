"""64 calls at once under a cap worth 10, in every way that LlamaIndex has to make them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai import OpenAIEmbedding
from sound import assert_sound, usd

from maestro_core import Cap, CapExceeded
from maestro_core.testing import Reply
from maestro_llamaindex import MaestroCallbackHandler, attach

BURST = 64
PROMPT = "How do batteries age?"
ASK = [ChatMessage(PROMPT)]


async def in_threads(one):
    def guarded(_):
        try:
            return one()
        except CapExceeded as error:
            return error

    def all_of_them():
        with ThreadPoolExecutor(BURST) as pool:
            return list(pool.map(guarded, range(BURST)))

    return await asyncio.to_thread(all_of_them)


async def in_tasks(one):
    return await asyncio.gather(*(one() for _ in range(BURST)), return_exceptions=True)


async def listen(llm):
    return [chunk async for chunk in await llm.astream_chat(ASK)][-1]


async def listen_to_text(llm):
    return [chunk async for chunk in await llm.astream_complete(PROMPT)][-1]


WAYS = {
    "chat": lambda llm: in_threads(lambda: llm.chat(ASK)),
    "stream_chat": lambda llm: in_threads(lambda: list(llm.stream_chat(ASK))[-1]),
    "complete": lambda llm: in_threads(lambda: llm.complete(PROMPT)),
    "stream_complete": lambda llm: in_threads(lambda: list(llm.stream_complete(PROMPT))[-1]),
    "achat": lambda llm: in_tasks(lambda: llm.achat(ASK)),
    "astream_chat": lambda llm: in_tasks(lambda: listen(llm)),
    "acomplete": lambda llm: in_tasks(lambda: llm.acomplete(PROMPT)),
    "astream_complete": lambda llm: in_tasks(lambda: listen_to_text(llm)),
    "FunctionAgent": lambda llm: in_tasks(lambda: run(FunctionAgent(name="one", llm=llm, tools=[]))),
    "AgentWorkflow": lambda llm: in_tasks(
        lambda: run(AgentWorkflow(agents=[FunctionAgent(name="one", description="-", llm=llm, tools=[])]))
    ),
}


async def run(agent):
    return await agent.run(user_msg=PROMPT)


def bill_of_one(provider, llm):
    llm.chat(ASK)
    provider.wait_idle()
    bill = provider.bill_nanos
    provider.reset()
    return bill


@pytest.mark.parametrize("limit", [10_000, None], ids=["max_tokens", "no_limit"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_burst_is_served_while_money_is_there(way, limit, provider, llama, make_maestro):
    provider.reply = Reply(output_tokens=1_000, delay_s=0.03)
    llm = llama(max_tokens=limit)
    cap = 10 * bill_of_one(provider, llm)
    maestro = make_maestro(caps=[Cap(usd(cap))])
    outcomes = await WAYS[way](attach(llm, maestro))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, CapExceeded)]
    served = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(served) + len(refusals) == BURST == len(outcomes)
    assert len(served) >= 9
    assert_sound(maestro, provider, cap)
    assert {error.reason for error in refusals} == {"spent"}


async def test_tools_in_parallel_stay_under_the_cap(provider, llama, make_maestro):
    """One agent whose tools all ask a model at once: every call is the same run's."""
    llm = llama(max_tokens=10_000)

    async def ask(question: str) -> str:
        """Ask a model."""
        return str(await llm.achat([ChatMessage(question)]))

    def reply(request):
        if request.tools:
            return Reply(tool_calls=[("ask", {"question": str(i)}) for i in range(BURST)], output_tokens=100)
        return Reply(output_tokens=1_000, delay_s=0.03)

    provider.reply = reply
    maestro = make_maestro(caps=[Cap("0.007", per="run")])
    agent = attach(FunctionAgent(name="boss", tools=[ask], llm=llm), maestro)
    with pytest.raises(CapExceeded):
        await agent.run(user_msg="Go")
    assert_sound(maestro, provider, 7_000_000)
    assert len(provider.requests) >= 10
    assert {record.attribution.dimensions["run"] for record in maestro.ledger.records()} != set()
    assert len({record.attribution.dimensions["run"] for record in maestro.ledger.records()}) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_bare_handler_never_lets_the_bill_pass_the_cap(way, provider, llama, make_maestro):
    provider.reply = Reply(output_tokens=1_000, delay_s=0.03)
    cap = 10 * bill_of_one(provider, llama(max_tokens=1_000))
    maestro = make_maestro(caps=[Cap(usd(cap))])
    llm = llama(max_tokens=1_000, callback_manager=CallbackManager([MaestroCallbackHandler(maestro)]))
    outcomes = await WAYS[way](llm)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, CapExceeded)]
    served = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(served) + len(refusals) == BURST == len(outcomes)
    assert served
    assert_sound(maestro, provider, cap)
    assert all(
        record.estimated_nanos == 0 for record in maestro.ledger.records()
    )  # streams said what they used


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_embeddings_have_a_cap_of_their_own(way, provider, make_maestro):
    model = OpenAIEmbedding(
        model="text-embedding-3-small", api_base=provider.openai_url, api_key="none", max_retries=0
    )
    text = "How do batteries age? " * 100
    model.get_text_embedding(text)
    provider.wait_idle()
    cap, _ = 10 * provider.bill_nanos, provider.reset()
    maestro = make_maestro(caps=[Cap(usd(cap))])
    attach(model, maestro)
    burst = (
        in_threads(lambda: model.get_text_embedding(text))
        if way == "sync"
        else in_tasks(lambda: model.aget_text_embedding(text))
    )
    outcomes = await burst
    refusals = [outcome for outcome in outcomes if isinstance(outcome, CapExceeded)]
    served = [outcome for outcome in outcomes if isinstance(outcome, list)]
    assert len(served) + len(refusals) == BURST == len(outcomes)
    assert served
    assert_sound(maestro, provider, cap)
    assert all(record.estimated_nanos == 0 for record in maestro.ledger.records())  # OpenAI's usage is heard
