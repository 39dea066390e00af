"""LlamaIndex's clients of other makers, attached: each settles at what its provider says, or at its hold."""

from __future__ import annotations

import asyncio
import os

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.llms.bedrock_converse import BedrockConverse
from llama_index.llms.google_genai import GoogleGenAI
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike
from ranges.dialects import RATES, Dialects

from maestro_core import Cap, CapExceeded
from maestro_llamaindex import MaestroCallbackHandler, RoutedLLM, attach, detach

os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
ASK = [ChatMessage("How do batteries age?")]
ANSWER = "This is what I know."
CLAUDE = "anthropic.claude-sonnet-4-5-20250929-v1:0"


def gemini(url):
    return GoogleGenAI(
        model="gemini-2.5-flash", api_key="x", max_tokens=500, context_window=100_000, http_options={"base_url": url}
    )  # fmt: skip


def converse(url):
    return BedrockConverse(model=CLAUDE, endpoint_url=url, region_name="us-east-1", max_tokens=500)


def ollama(url):
    return Ollama(
        model="llama3.2", base_url=url, context_window=8_000, additional_kwargs={"num_predict": 500}
    )


def like(url):
    return OpenAILike(
        model="house-model", api_base=f"{url}/v1", api_key="x", max_tokens=500, is_chat_model=True,
        is_function_calling_model=True, context_window=100_000,
    )  # fmt: skip


MAKERS = {"google": gemini, "aws": converse, "ollama": ollama, "openai": like}
PRICES = [
    {"provider": provider, "model": model, **RATES}
    for provider, model in {
        "google": "gemini-2.5-flash", "aws": CLAUDE, "ollama": "llama3.2", "openai": "house-model",
    }.items()
]  # fmt: skip


@pytest.fixture
def dialects():
    with Dialects() as running:
        yield running


def settled(maestro):
    return [record for record in maestro.ledger.records() if record.kind == "settled"]


def plain_ways(llm):
    return [llm.chat(ASK).message.content, list(llm.stream_chat(ASK))[-1].message.content]


async def every_way(llm):
    """Return what the model said in each of its ways."""
    said = await asyncio.to_thread(plain_ways, llm)  # Google's client needs a thread without an event loop
    said.append((await llm.achat(ASK)).message.content)
    said.append([chunk async for chunk in await llm.astream_chat(ASK)][-1].message.content)
    return said


def ways(maker):
    return 2 if maker == "aws" else 4  # its asynchronous client speaks through another library


async def ask(maker, llm):
    if maker == "aws":
        return plain_ways(llm)
    return await every_way(llm)


@pytest.mark.parametrize("maker", MAKERS)
async def test_what_was_used_is_settled(maker, dialects, make_maestro):
    maestro = make_maestro(caps=[Cap("1")], prices=PRICES)
    said = await ask(maker, attach(MAKERS[maker](dialects.url), maestro))
    assert said == [ANSWER] * ways(maker)
    records = settled(maestro)
    assert len(records) == len(dialects.bodies) == ways(maker)
    assert {record.provider for record in records} == {maker}
    assert [record.estimated_nanos for record in records] == [0] * ways(maker)
    assert sum(record.cost_nanos for record in records) == dialects.bill_nanos > 0
    assert maestro.ledger.holds() == []


@pytest.mark.parametrize("maker", MAKERS)
async def test_what_is_not_said_settles_at_the_hold(maker, dialects, make_maestro):
    dialects.tells_usage = False
    maestro = make_maestro(caps=[Cap("1")], prices=PRICES)
    await ask(maker, attach(MAKERS[maker](dialects.url), maestro))
    records = settled(maestro)
    assert len(records) == len(dialects.bodies) == ways(maker)
    for record in records:
        assert record.estimated_nanos == record.cost_nanos >= 500 * 4_000
    assert maestro.ledger.holds() == []


def test_what_gemini_says_before_its_end_is_not_taken_for_the_whole(dialects, make_maestro):
    dialects.tells_usage = "as it goes"  # and the last word of all is in a chunk that LlamaIndex drops
    maestro = make_maestro(caps=[Cap("1")], prices=PRICES)
    assert list(attach(gemini(dialects.url), maestro).stream_chat(ASK))[-1].message.content == ANSWER
    (record,) = settled(maestro)
    assert record.cost_nanos >= dialects.bill_nanos
    assert record.estimated_nanos == record.cost_nanos


@pytest.mark.parametrize("maker", MAKERS)
def test_the_handler_settles_too(maker, dialects, make_maestro):
    from llama_index.core.callbacks import CallbackManager

    maestro = make_maestro(caps=[Cap("1")], prices=PRICES)
    llm = MAKERS[maker](dialects.url)
    llm.callback_manager = CallbackManager([MaestroCallbackHandler(maestro)])
    llm.chat(ASK)
    list(llm.stream_chat(ASK))
    assert len(settled(maestro)) == len(dialects.bodies) == 2
    assert sum(record.cost_nanos for record in settled(maestro)) == dialects.bill_nanos
    assert sum(record.estimated_nanos for record in settled(maestro)) == 0


@pytest.mark.parametrize("way", ["chat", "stream_chat"])
@pytest.mark.parametrize("maker", ["google", "aws", "openai"])
def test_each_retry_has_a_hold_of_its_own(maker, way, dialects, make_maestro):
    dialects.failures = 2
    maestro = make_maestro(caps=[Cap("1")], prices=PRICES)
    llm = MAKERS[maker](dialects.url)
    llm.max_retries = 3
    answer = getattr(attach(llm, maestro), way)(ASK)
    assert (list(answer)[-1] if way == "stream_chat" else answer).message.content == ANSWER
    kinds = [record.kind for record in maestro.ledger.records()]
    assert kinds == ["released", "released", "settled"]
    assert len(dialects.bodies) == 3
    detach(llm)
    assert llm.max_retries == 3


LIMITS = {
    "google": lambda body: body["generationConfig"]["maxOutputTokens"],
    "aws": lambda body: body["inferenceConfig"]["maxTokens"],
    "openai": lambda body: body["max_tokens"],
}


@pytest.mark.parametrize("way", ["chat", "stream_chat"])
@pytest.mark.parametrize("maker", LIMITS)
def test_the_fitted_limit_is_on_the_wire(maker, way, dialects, make_maestro):
    # 300 tokens of output are left by what the input may take; the constructor's limit is 500.
    maestro = make_maestro(caps=[Cap("0.004")], prices=PRICES, min_output_tokens=10)
    answer = getattr(attach(MAKERS[maker](dialects.url), maestro), way)(ASK)
    last = list(answer)[-1] if way == "stream_chat" else answer
    fitted = last.additional_kwargs["maestro"]["fitted_output_tokens"]
    assert LIMITS[maker](dialects.bodies[0]) == fitted < 500


@pytest.mark.parametrize("maker", ["google", "ollama", "openai"])
async def test_an_agent_stops_at_its_cap(maker, dialects, make_maestro):
    maestro = make_maestro(caps=[Cap("0.01", per="team")], prices=PRICES)
    agent = attach(FunctionAgent(name="boss", tools=[], llm=MAKERS[maker](dialects.url)), maestro)
    with pytest.raises(CapExceeded):
        for _ in range(30):
            await agent.run(user_msg="Go")
    assert 2 <= len(dialects.bodies) < 30
    assert dialects.bill_nanos <= 10_000_000


def test_a_routed_llm_goes_to_the_cheapest_of_them(dialects, make_maestro):
    prices = [{**each, "output": "9"} if each["provider"] != "ollama" else each for each in PRICES]
    maestro = make_maestro(caps=[Cap("1")], prices=prices)
    routed = RoutedLLM(endpoints=[make(dialects.url) for make in MAKERS.values()], maestro=maestro)
    assert routed.complete("q").additional_kwargs["maestro"]["chosen"] == "llama3.2"
    assert [record.provider for record in settled(maestro)] == ["ollama"]
