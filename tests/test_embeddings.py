"""Governed embeddings over real HTTP; the provider's own bill is the witness."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.runnables import RunnableLambda
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings

from maestro_core import Cap, CapExceeded, PriceNotFound, attribution
from maestro_core.testing import Reply
from maestro_langchain import MaestroCallbackHandler, governed

TEXT = "How do batteries age? " * 50
BURST = 64


@pytest.fixture
def embeddings(provider):
    provider.reply = None  # bill what the texts have

    def make(**kwargs):
        kwargs = {"model": "text-embedding-3-small", "check_embedding_ctx_length": False, **kwargs}
        return OpenAIEmbeddings(base_url=provider.openai_url, api_key="none", **kwargs)

    return make


def assert_exact(maestro, provider):
    provider.wait_idle()
    assert maestro.ledger.check() == []
    assert maestro.ledger.holds() == []
    assert sum(s.cost_nanos for s in maestro.ledger.sums(())) == provider.bill_nanos


def bill_of_one(provider, model) -> int:
    model.embed_query(TEXT)
    nanos = provider.bill_nanos
    provider.reset()
    return nanos


def dollars(nanos: int) -> str:
    return f"{nanos / 1_000_000_000:.9f}"


class Local(DeterministicFakeEmbedding):
    """A class that tells nothing but its vectors, from a package with a known provider."""

    model: str = "text-embedding-3-small"
    max_retries: int = 0


Local.__module__ = "langchain_mistralai.embeddings"


# -- what is counted --------------------------------------------------------------------------------------------------


async def test_every_method_is_counted_at_what_the_provider_reports(provider, embeddings, make_maestro):
    maestro = make_maestro()
    plain = embeddings()
    model = governed(plain, maestro)
    assert model.embed_query(TEXT) == plain.embed_query(TEXT)
    provider.reset()
    model.embed_query(TEXT)
    model.embed_documents([TEXT, "other"])
    await model.aembed_query(TEXT)
    await model.aembed_documents([TEXT, "other"])
    records = list(maestro.ledger.records())
    assert sum(r.cost_nanos for r in records[1:]) == provider.bill_nanos > 0
    assert {r.estimated_nanos for r in records} == {0}


def test_each_chunk_is_a_call_of_the_same_run(provider, embeddings, make_maestro):
    maestro = make_maestro(caps=[Cap("1", per="run")])
    vectors = governed(embeddings(chunk_size=2), maestro).embed_documents([f"{TEXT}{n}" for n in range(5)])
    assert len(vectors) == 5
    assert len(provider.requests) == 3
    assert len({r.attribution.value("run") for r in maestro.ledger.records()}) == 1
    assert_exact(maestro, provider)


def test_tokens_that_the_client_counted_are_held_for_as_they_are(provider, embeddings, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    governed(embeddings(), maestro).client.create(
        input=[[1] * 900, [2] * 100], model="text-embedding-3-small"
    )
    (record,) = maestro.ledger.records()
    assert record.usage == {"input_tokens": 1_000}
    assert record.held_nanos < 1.1 * record.cost_nanos
    assert_exact(maestro, provider)


def test_a_class_that_drops_the_usage_settles_at_its_hold(make_maestro):
    maestro = make_maestro(prices=[{"provider": "mistral", "model": "text-embedding-3-small", "input": "1"}])
    governed(Local(size=3), maestro).embed_documents([TEXT, TEXT])
    (record,) = maestro.ledger.records()
    assert record.cost_nanos == record.held_nanos == record.estimated_nanos
    assert record.cost_nanos >= 2 * len(TEXT) * 1_000  # a byte is a token at most


async def test_a_class_without_a_provider_is_counted_as_unpriced_and_refused_under_a_cap(make_maestro):
    maestro = make_maestro()
    model = DeterministicFakeEmbedding(size=3)
    assert len(await governed(model, maestro).aembed_query(TEXT)) == 3
    assert maestro.report("model", since="all").rows[0].unpriced_calls == 1
    with pytest.raises(PriceNotFound):
        governed(model, make_maestro(caps=[Cap("1")])).embed_query(TEXT)


# -- the cap ----------------------------------------------------------------------------------------------------------


def test_a_burst_of_threads_stays_under_the_cap(provider, embeddings, make_maestro):
    one = bill_of_one(provider, embeddings())
    maestro = make_maestro(caps=[Cap(dollars(one * 20))])
    model = governed(embeddings(), maestro)

    def ask(_):
        try:
            return bool(model.embed_query(TEXT))
        except CapExceeded:
            return False

    with ThreadPoolExecutor(BURST) as pool:
        served = sum(pool.map(ask, range(BURST)))
    assert served == len(provider.requests)
    assert one * 10 <= provider.bill_nanos <= one * 20
    assert_exact(maestro, provider)


async def test_a_burst_of_tasks_stays_under_the_cap(provider, embeddings, make_maestro):
    one = bill_of_one(provider, embeddings())
    maestro = make_maestro(caps=[Cap(dollars(one * 20))])
    model = governed(embeddings(), maestro)
    answers = await asyncio.gather(*(model.aembed_query(TEXT) for _ in range(BURST)), return_exceptions=True)
    served = [answer for answer in answers if isinstance(answer, list)]
    assert {type(a).__mro__[1] for a in answers if not isinstance(a, list)} == {CapExceeded}
    assert len(served) == len(provider.requests)
    assert one * 10 <= provider.bill_nanos <= one * 20
    assert_exact(maestro, provider)


async def test_nothing_leaves_above_a_cap(provider, embeddings, make_maestro):
    model = governed(embeddings(), make_maestro(caps=[Cap("0")]))
    for ask in (model.embed_query, model.aembed_query):
        with pytest.raises(CapExceeded):
            answer = ask(TEXT)
            await answer
    assert provider.requests == []


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_retries_are_calls_of_their_own(provider, embeddings, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    model = governed(embeddings(max_retries=2), maestro)
    again = Reply(status=429, retry_after=0)
    provider.reply = [again, again, Reply(), again, Reply()]
    model.embed_query(TEXT)
    await model.aembed_query(TEXT)
    assert len(provider.requests) == 5
    assert [r.kind for r in maestro.ledger.records()] == [
        "released",
        "released",
        "settled",
        "released",
        "settled",
    ]
    assert_exact(maestro, provider)


def test_a_failure_is_raised_as_it_is_and_costs_nothing(provider, embeddings, make_maestro):
    maestro = make_maestro()
    provider.reply = Reply(status=400)
    with pytest.raises(Exception, match="400"):
        governed(embeddings(), maestro).embed_query(TEXT)
    assert len(provider.requests) == 1
    assert_exact(maestro, provider)


# -- who it is for ----------------------------------------------------------------------------------------------------


def test_a_chain_around_it_is_its_run(provider, embeddings, make_maestro):
    maestro = make_maestro()
    model = governed(embeddings(), maestro)
    chain = RunnableLambda(model.embed_query)
    config = {"callbacks": [MaestroCallbackHandler(maestro)], "metadata": {"team": "growth"}}
    with attribution(customer="acme"):
        chain.invoke(TEXT, config)
    (record,) = maestro.ledger.records()
    where = record.attribution.dimensions
    assert (where["team"], where["customer"]) == ("growth", "acme")
    assert where["run"] != record.key


# -- what the wrapper is ----------------------------------------------------------------------------------------------


def test_it_is_embeddings_with_the_attributes_of_the_inner_ones(embeddings, make_maestro):
    maestro = make_maestro()
    plain = embeddings(dimensions=8)
    model = governed(plain, maestro)
    assert isinstance(model, Embeddings)
    assert (model.model, model.dimensions, model.chunk_size) == (plain.model, 8, plain.chunk_size)
    with pytest.raises(AttributeError):
        _ = model.nothing
    assert copy.copy(model).model == plain.model
    assert "_Requests" not in repr(plain.client)


def test_governing_twice_counts_once(provider, embeddings, make_maestro):
    maestro = make_maestro()
    governed(governed(embeddings(), maestro), maestro).embed_query(TEXT)
    assert_exact(maestro, provider)
    assert len(list(maestro.ledger.records())) == 1


def test_azure_is_azure(make_maestro):
    plain = AzureOpenAIEmbeddings(
        model="text-embedding-3-small",
        azure_endpoint="http://127.0.0.1:9",
        api_key="none",
        api_version="2024-10-21",
        max_retries=0,
    )
    maestro = make_maestro(caps=[Cap("1")])
    with pytest.raises(Exception, match="Connection error"):
        governed(plain, maestro).client.create(input=TEXT, model="text-embedding-3-small")
    (record,) = maestro.ledger.records()
    assert (record.provider, record.kind) == ("azure", "released")
