"""How LlamaIndex's calls settle: retries, failures, streams that are left, tools that swallow refusals."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI, OpenAIResponses
from pydantic import BaseModel
from sound import assert_sound

from maestro_core import Cap, CapExceeded
from maestro_core.testing import Reply
from maestro_llamaindex import RoutedLLM, attach, detach
from maestro_llamaindex._models import can_limit, limit_kwargs

ASK = [ChatMessage("How do batteries age?")]


@pytest.fixture
def claude(provider):
    return Anthropic(
        model="claude-sonnet-4-5",
        max_tokens=100,
        max_retries=0,
        base_url=provider.anthropic_url,
        api_key="none",
    )


async def every_way(llm):
    llm.chat(ASK)
    await llm.achat(ASK)
    list(llm.stream_chat(ASK))
    [chunk async for chunk in await llm.astream_chat(ASK)]
    llm.complete("q")
    list(llm.stream_complete("q"))


@pytest.mark.parametrize("maker", ["openai", "anthropic"])
async def test_every_way_settles_at_the_bill(maker, provider, llama, claude, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    await every_way(attach(llama() if maker == "openai" else claude, maestro))
    assert_sound(maestro, provider)
    records = [record for record in maestro.ledger.records() if record.kind == "settled"]
    assert len(records) == len(provider.requests) == 6
    assert all(record.estimated_nanos == 0 for record in records)


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_clients_retries_are_held_for_one_by_one(streaming, provider, llama, make_maestro):
    provider.reply = [Reply(status=500, retry_after=0), Reply(status=429, retry_after=0), Reply(text="fine")]
    maestro = make_maestro(caps=[Cap("1")])
    llm = attach(llama(max_retries=3), maestro)
    if streaming:
        assert "".join(chunk.delta for chunk in llm.stream_chat(ASK)) == "fine"
    else:
        assert (await llm.achat(ASK)).message.content == "fine"
    assert len(provider.requests) == 3
    assert_sound(maestro, provider)


@pytest.mark.parametrize("how", ["sync", "async", "cancelled"])
async def test_a_stream_that_is_left_is_charged(how, provider, llama, make_maestro):
    provider.reply = Reply(output_tokens=90, chunks=30, chunk_delay_s=0.02)
    maestro = make_maestro(caps=[Cap("1")])
    llm = attach(llama(), maestro)
    if how == "sync":
        stream = llm.stream_chat(ASK)
        next(stream)
        stream.close()
    elif how == "async":
        chunks = await llm.astream_chat(ASK)
        await anext(chunks)
        await chunks.aclose()
    else:
        begun = asyncio.Event()

        async def listen():
            async for _ in await llm.astream_chat(ASK):
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    provider.wait_idle()
    assert maestro.ledger.holds() == []
    (record,) = [record for record in maestro.ledger.records() if record.kind == "settled"]
    assert record.cost_nanos >= provider.bill_nanos > 0
    assert record.estimated_nanos > 0


def test_a_stream_that_nobody_listens_to_holds_nothing(provider, llama, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    stream = attach(llama(), maestro).stream_chat(ASK)
    assert maestro.ledger.holds() == []
    stream.close()
    assert provider.requests == []
    assert list(maestro.ledger.records()) == []


async def test_a_tool_that_swallows_the_refusal_changes_nothing(provider, llama, make_maestro):
    llm = llama()

    async def work(question: str) -> str:
        """Ask a model."""
        try:
            return str(await llm.achat([ChatMessage(question)]))
        except Exception:  # noqa: BLE001 - the obstacle
            return "It did not work."

    provider.reply = lambda request: (
        Reply(tool_calls=[("work", {"question": "x"})], output_tokens=30)
        if request.tools
        else Reply(text="fine", output_tokens=90)
    )
    maestro = make_maestro(caps=[Cap("0.0005", per="run")])
    agent = attach(FunctionAgent(name="boss", tools=[work], llm=llm), maestro)
    with pytest.raises(CapExceeded):
        await agent.run(user_msg="Go", max_iterations=200)
    assert_sound(maestro, provider, 500_000)


def test_embeddings_are_themselves_again_after_detach(provider, make_maestro):
    model = OpenAIEmbedding(model="text-embedding-3-small", api_base=provider.openai_url, api_key="none")
    maestro = make_maestro()
    attach(model, maestro)
    model.get_text_embedding("one")
    assert_sound(maestro, provider)
    detach(model)
    assert type(model) is OpenAIEmbedding
    assert model.max_retries == 10
    model.get_text_embedding("two")
    assert len([record for record in maestro.ledger.records() if record.kind == "settled"]) == 1


@pytest.mark.parametrize("way", ["chat", "stream_chat"])
@pytest.mark.parametrize("built", [None, 9_000])
@pytest.mark.parametrize("maker", ["openai", "anthropic"])
def test_the_fitted_limit_is_on_the_wire(maker, built, way, provider, llama, claude, make_maestro):
    provider.reply = Reply(output_tokens=16_000)
    limit = 0.02 if maker == "anthropic" else 0.004
    maestro = make_maestro(caps=[Cap(str(limit), per="run")])
    llm = llama(max_tokens=built) if maker == "openai" else claude
    if maker == "anthropic":
        llm.max_tokens = built or 8_000
    answer = getattr(attach(llm, maestro), way)(ASK)
    last = list(answer)[-1] if way == "stream_chat" else answer
    assert provider.requests[0].max_output_tokens == last.additional_kwargs["maestro"]["fitted_output_tokens"]
    assert_sound(maestro, provider, int(limit * 1e9))


@pytest.mark.parametrize(
    "model",
    [
        OpenAI(model="gpt-4o-mini", api_key="none"),
        OpenAI(model="gpt-3.5-turbo-instruct", api_key="none"),  # its limit is what the context leaves
        OpenAIResponses(model="gpt-4o-mini", api_key="none"),
        Anthropic(model="claude-sonnet-4-5", api_key="none"),
        MockLLM(),
    ],
    ids=lambda model: f"{type(model).__name__} {getattr(model, 'model', '')}",
)
def test_a_limit_can_be_set_where_it_is_known_how(model):
    assert can_limit(model) == (limit_kwargs(model, 1) is not None)


def test_what_the_provider_keeps_of_a_conversation_is_held_for(provider, make_maestro):
    provider.reply = Reply(text="fine", output_tokens=20)
    llm = OpenAIResponses(
        model="gpt-4o-mini",
        max_output_tokens=100,
        instructions="Answer in one word. " * 50,
        track_previous_responses=True,
        api_base=provider.openai_url,
        api_key="none",
    )
    maestro = make_maestro(caps=[Cap("1")])
    attach(llm, maestro)
    llm.chat([ChatMessage("How do batteries age? " * 200)])
    llm.chat([ChatMessage("Why?")])
    assert provider.charges[1].input_tokens > 1_000  # the first question is billed again
    assert_sound(maestro, provider)
    assert not any(record.overrun for record in maestro.ledger.records())


class Song(BaseModel):
    """A song."""

    title: str
    year: int


@pytest.mark.parametrize("maker", ["openai", "responses", "anthropic", "routed"])
async def test_asking_for_data_is_held_for(maker, provider, llama, claude, make_maestro):
    """Anthropic's and OpenAI's Responses' own way to ask for data passes neither `chat` nor any callback."""
    provider.reply = None  # a value that fits the schema, if one is forced
    maestro = make_maestro(caps=[Cap("1")])
    responses = OpenAIResponses(model="gpt-4o-mini", api_base=provider.openai_url, api_key="none")
    made = {"openai": llama(), "responses": responses, "anthropic": claude}
    llm = (
        RoutedLLM(endpoints=[claude, llama()], maestro=maestro)
        if maker == "routed"
        else attach(made[maker], maestro)
    )
    prompt, topic = PromptTemplate("A song about {topic}"), {"topic": "wind"}
    assert isinstance(llm.structured_predict(Song, prompt, **topic), Song)
    assert isinstance(await llm.astructured_predict(Song, prompt, **topic), Song)
    parts = [part async for part in await llm.astream_structured_predict(Song, prompt, **topic)]
    assert [*llm.stream_structured_predict(Song, prompt, **topic)]
    assert parts
    agent = attach(FunctionAgent(name="boss", tools=[], llm=llm, output_cls=Song), maestro)
    assert (await agent.run(user_msg="Sing")).structured_response
    assert len(provider.requests) == 6
    assert_sound(maestro, provider)


def test_asking_for_data_is_refused_at_the_cap(provider, claude, make_maestro):
    attach(claude, make_maestro(caps=[Cap("0.000001")]))
    with pytest.raises(CapExceeded):
        claude.structured_predict(Song, PromptTemplate("A song"))
    assert provider.requests == []
