"""Prices of a place: what is behind a URL, and what an endpoint was declared to cost."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from maestro_core import Cap, PriceNotFound, Usage, hookimpl
from maestro_core.errors import SettingsError
from maestro_core.prices.entries import endpoint_price
from maestro_core.prices.fields import normal_url
from maestro_core.settings import Settings
from maestro_core.types import Call, Cost
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware, governed

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
USED = Usage(input_tokens=1_000, output_tokens=100)
OWN = "llama-3.3-70b-of-our-own"  # no price book has it
RATES = {"input": "0.10", "output": "0.30"}  # 1,000 in and 100 out: $0.00013
ONE = 130_000
# The server has the model under another name, which the price book knows: that must not decide.
SERVED = {"extra_body": {"model": "gpt-5-mini"}}


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def ask(model, maestro, door):
    """Call a model through a bare handler, or as an agent with middleware."""
    if door == "handler":
        model.invoke("Hello", config={"callbacks": [MaestroCallbackHandler(maestro)]})
    else:
        agent = create_agent(model, tools=[], middleware=[MaestroMiddleware(maestro)])
        agent.invoke({"messages": [("user", "Hello")]})
    (record,) = (each for each in maestro.ledger.records())
    return record


# -- by URL


@pytest.mark.parametrize("door", ["handler", "middleware"])
def test_a_server_of_ones_own_has_its_own_price(door, provider, openai, make_maestro):
    url = f"{provider.openai_url}/"
    maestro = make_maestro(caps=[Cap("1")], prices=[{"base_url": url, **RATES}])
    record = ask(openai(model=OWN, **SERVED), maestro, door)
    assert (record.cost_nanos, record.unpriced, record.detail["layer"]) == (ONE, (), "user")
    assert record.price_id == f"user:*:*/{provider.openai_url}"
    assert record.held_nanos > record.cost_nanos
    assert not record.overrun


@pytest.mark.parametrize("door", ["handler", "middleware"])
def test_the_price_of_another_url_is_not_its_price(door, provider, openai, make_maestro):
    maestro = make_maestro(caps=[Cap("1")], prices=[{"base_url": "http://other:1/v1", **RATES}])
    with pytest.raises(PriceNotFound, match=f'base_url = "{provider.openai_url}"'):
        ask(openai(model=OWN, **SERVED), maestro, door)
    assert provider.requests == []


@pytest.mark.parametrize("door", ["handler", "middleware"])
def test_anthropics_url_is_seen_too(door, provider, anthropic, make_maestro):
    maestro = make_maestro(caps=[Cap("1")], prices=[{"base_url": provider.anthropic_url, **RATES}])
    assert ask(anthropic(), maestro, door).cost_nanos == ONE


def test_the_url_that_only_the_sdk_reads_is_seen(provider, make_maestro, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", provider.openai_url)
    maestro = make_maestro(caps=[Cap("1")], prices=[{"base_url": provider.openai_url, **RATES}])
    model = ChatOpenAI(model=OWN, api_key="none", max_tokens=100, max_retries=0, **SERVED)
    assert ask(model, maestro, "handler").cost_nanos == ONE


def test_embeddings_have_a_url_too(provider, make_maestro):
    maestro = make_maestro(
        caps=[Cap("1")], prices=[{"base_url": provider.openai_url, "input": "1", "output": "0"}]
    )
    plain = OpenAIEmbeddings(
        model="bge-of-our-own",
        base_url=provider.openai_url,
        api_key="none",
        check_embedding_ctx_length=False,
        model_kwargs={"extra_body": {"model": "text-embedding-3-small"}},
    )
    governed(plain, maestro).embed_query("Hello")
    (record,) = maestro.ledger.records()
    assert record.price_id == f"user:*:*/{provider.openai_url}"
    assert record.cost_nanos == record.usage["input_tokens"] * 1_000


def test_a_providers_own_address_is_not_a_place_of_ones_own(make_maestro):
    seen = []

    class Look:
        @hookimpl
        def maestro_estimate(self, call):
            seen.append(call.base_url)
            raise SettingsError("seen enough")

    maestro = make_maestro()
    maestro.plugins.register(Look())
    for url in (None, "https://API.openai.com/v1/"):
        model = ChatOpenAI(model="gpt-5-mini", base_url=url, api_key="none", max_retries=0)
        with pytest.raises(SettingsError):
            ask(model, maestro, "handler")
    assert seen == ["", ""]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://GPU:8000/v1/", "http://gpu:8000/v1"),
        ("https://gpu:443/V1", "https://gpu/V1"),
        ("https://me:secret@gpu/v1?key=x#y", "https://gpu/v1"),
        ("http://[::1]:80/v1", "http://[::1]/v1"),
    ],
)
def test_urls_are_compared_without_what_does_not_matter(one, other):
    assert normal_url(one) == other


def test_the_least_broad_entry_holds():
    entries = [
        {"provider": "openai", "input": "1", "output": "1"},
        {"base_url": "http://gpu/v1", "input": "2", "output": "2"},
        {"endpoint": "fast", "input": "3", "output": "3"},
        {"endpoint": "fast", "base_url": "http://gpu/v1", "input": "4", "output": "4"},
    ]
    quotes = _quotes(entries)
    call = Call(provider="openai", model=OWN, input="", max_output_tokens=0, at=AT)
    found = {
        (endpoint, url): quotes.bound(replace(call, endpoint=endpoint, base_url=url)).lines[0].picos_per_unit
        for endpoint in ("", "fast")
        for url in ("", "http://gpu/v1")
    }
    assert found == {
        ("", ""): 1_000_000,
        ("", "http://gpu/v1"): 2_000_000,
        ("fast", ""): 3_000_000,
        ("fast", "http://gpu/v1"): 4_000_000,
    }


def _quotes(entries=()):
    from maestro_core.plugins import load
    from maestro_core.quote import Quotes

    return Quotes(load(), Settings(prices=entries).prices)


def test_the_place_of_a_call_is_kept_so_that_it_can_be_priced_again(make_maestro):
    prices = [{"endpoint": "fast", "input": "1", "output": "1"}, {"base_url": "http://gpu/v1", **RATES}]
    maestro = make_maestro(prices=prices)
    for place in ({"endpoint": "fast"}, {"base_url": "http://GPU/v1/"}):
        call = Call(provider="openai", model=OWN, max_output_tokens=100, **place)
        record = maestro.settle(maestro.reserve(call), USED)
        assert maestro.admission.quotes.again(record).cost_nanos == record.cost_nanos


# -- what an endpoint was declared to cost


class _Rates:
    @hookimpl
    def maestro_price(self, call, usage):
        return Cost(nanos=7, price_id="plugin")


def test_a_declared_price_comes_before_every_other(make_maestro):
    maestro = make_maestro(caps=[Cap("1")], prices=[{"endpoint": "local", "input": "9", "output": "9"}])
    maestro.plugins.register(_Rates())
    call = Call(provider="openai", model="gpt-5-mini", input="Hello", max_output_tokens=100, endpoint="local",
                price=endpoint_price(RATES), at=AT)  # fmt: skip
    reservation = maestro.reserve(call)
    record = maestro.settle(reservation, USED)
    assert (record.cost_nanos, record.price_id, record.detail["layer"]) == (ONE, "endpoint:local", "endpoint")
    assert record.sheet_nanos == 450_000  # the book's price of gpt-5-mini stays beside it
    assert reservation.bound.price_id == "endpoint:local"
    assert maestro.admission.quotes.again(record) is None  # the code that declared it is not here


def test_other_models_in_one_answer_cost_what_the_endpoint_costs(make_maestro):
    maestro = make_maestro()
    call = Call(
        provider="openai", model=OWN, max_output_tokens=9, endpoint="local", price=endpoint_price(RATES)
    )
    usage = Usage(input_tokens=2_000, output_tokens=200, lines=[(None, USED), ("helper", USED)])
    assert maestro.settle(maestro.reserve(call), usage).cost_nanos == 2 * ONE


def test_what_is_declared_by_the_hour_is_charged_by_the_hour(make_maestro):
    maestro = make_maestro()
    price = endpoint_price({"per_hour": "36", "concurrency": 10, "timeout_s": 60})
    call = Call(provider="openai", model=OWN, max_output_tokens=9, endpoint="gpu", price=price)
    reservation = maestro.reserve(call)
    assert reservation.bound.usd == Decimal("0.06")
    record = maestro.settle_with(reservation, USED, {"latency_ms": 5_000})
    assert (record.cost, record.price_id) == (Decimal("0.005"), "endpoint:gpu")


def test_free_is_said_by_zeros(make_maestro):
    maestro = make_maestro(caps=[Cap("0.000001")])
    price = endpoint_price({"input": "0", "output": 0})
    call = Call(
        provider="openai", model=OWN, input="Hello", max_output_tokens=100, endpoint="local", price=price
    )
    record = maestro.settle(maestro.reserve(call), USED)
    assert (record.cost_nanos, record.unpriced, record.price_id) == (0, (), "endpoint:local")


@pytest.mark.parametrize(
    ("price", "says"),
    [
        ({}, "'input'"),
        ({"input": "0.15"}, "no 'output'"),
        ({"output": "0.15", "per_request": "1"}, "no 'input'"),
        ({"input": "0", "output": None}, "no 'output'"),
        ({"input": 0.15, "output": "0.60"}, "in quotes"),
        ({"input": "-1", "output": "0.60"}, "zero or more"),
        ({"input": "cheap", "output": "0.60"}, "not a number"),
        ({"inputs": "0.15", "output": "0.60"}, "unknown key 'inputs'"),
        ({"free": True}, "unknown key 'free'"),
        ({"discount": "0.5"}, "unknown key 'discount'"),
        ({"per_hour": "0"}, "every rate is 0"),
        ({"per_hour": "1", "input": "1", "output": "1"}, "one of them"),
        ("0.15", "is no table"),
    ],
)
def test_what_is_wrong_with_a_declared_price_is_said_in_one_line(price, says):
    with pytest.raises(SettingsError, match=says) as caught:
        endpoint_price(price)
    assert "\n" not in str(caught.value)


def test_entries_read_as_they_were_written():
    entry = {"base_url": "http://gpu:8000/v1", "input": "0.10", "output": "0.30"}
    assert str(Settings(prices=[entry]).prices[0]) == "base_url=http://gpu:8000/v1, input=0.1, output=0.3"
