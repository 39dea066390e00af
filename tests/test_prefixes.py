"""What the provider counted of a conversation is not bounded by its bytes again."""

from __future__ import annotations

import enum
import hashlib
import random
from collections import UserDict, UserList

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.tools import tool

from maestro_core import Cap, Usage
from maestro_core import prefixes as prefixes_module
from maestro_core.prefixes import History, Prefixes, beginnings, fingerprint
from maestro_core.testing import Reply
from maestro_core.types import Call
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware

HISTORY = [{"role": "human", "content": "word " * 1_000}, {"role": "ai", "content": "reply"}]
NEXT = {"role": "human", "content": "and then?"}


def call(history, **changes):
    return Call(provider="openai", model="gpt-5-mini", history=history, **changes)


def test_a_counted_beginning_is_known_with_and_without_its_reply():
    prefixes = Prefixes()
    assert prefixes.known(call(HISTORY)) is None
    prefixes.learn(call(HISTORY[:1]), Usage(input_tokens=1_010, output_tokens=5), HISTORY[1])
    assert prefixes.known(call(HISTORY[:1])) == (1_010, [], True)
    assert prefixes.known(call(HISTORY[:1], tools=[{"name": "search"}])) == (1_010, [], False)
    tokens, new, _ = prefixes.known(call([*HISTORY, NEXT]))
    assert 1_015 <= tokens < 1_050
    assert new == [NEXT]
    edited = {**HISTORY[1], "content": "another reply"}
    assert prefixes.known(call([HISTORY[0], edited, NEXT])) == (1_010, [edited, NEXT], True)


@pytest.mark.parametrize(
    "changed",
    [
        call([{"role": "human", "content": "words " * 1_000}]),
        Call(provider="openai", model="gpt-5", history=HISTORY[:1]),
        Call(provider="azure", model="gpt-5-mini", history=HISTORY[:1]),
        call(()),
    ],
)
def test_whatever_changed_makes_it_unknown(changed):
    prefixes = Prefixes()
    prefixes.learn(call(HISTORY[:1]), Usage(input_tokens=1_010, output_tokens=5), None)
    assert prefixes.known(changed) is None


def test_tools_that_were_counted_are_not_added_again(make_maestro):
    tools = [{"name": "search", "description": "It searches. " * 500}]
    quotes = make_maestro().admission.quotes
    asked = call(HISTORY[:1], tools=tools, max_output_tokens=10)
    quotes.prefixes.learn(asked, Usage(input_tokens=2_500, output_tokens=5), None)
    counted = quotes.bound(asked).nanos
    assert counted < quotes.bound(call(HISTORY[:1], tools=[*tools, {}], max_output_tokens=10)).nanos
    assert counted <= 3_000 * 250 + 10 * 2_000  # nano-dollars a token


@pytest.mark.parametrize(
    "usage", [Usage(output_tokens=5), Usage(input_tokens=5, output_tokens=1, flags=("total_mismatch",))]
)
def test_a_doubtful_count_is_not_learned(usage):
    prefixes = Prefixes()
    prefixes.learn(call(HISTORY[:1]), usage, None)
    assert prefixes.known(call(HISTORY[:1])) is None


# -- fingerprints: a wrong match would lower a bound --------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN, PLAIN)
def test_what_differs_has_another_fingerprint(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (repr(one) == repr(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([0], [2**61 - 1]),
        (["short", -1], ["short", -2]),
        ("", 0),
        (1, True),
        ([["a"], "b"], [["a", "b"]]),
        (b"text", "text"),
    ],
)
def test_values_that_python_hashes_alike_are_told_apart(one, other):
    prefixes = Prefixes()
    prefixes.learn(call([{"role": "ai", "content": one}]), Usage(input_tokens=10, output_tokens=5), None)
    assert prefixes.known(call([{"role": "ai", "content": one}])) is not None
    assert prefixes.known(call([{"role": "ai", "content": other}])) is None


@pytest.mark.parametrize("length", [10, 999, 1_000, 2_000, 32_767, 32_768, 100_000])
def test_a_long_text_counts_to_its_last_character(length):
    text = "é" * length
    said = [text, text[:-1] + "e", text + "e", [text], None]
    assert len({beginnings([{"role": "human", "content": each}]) for each in said}) == len(said)
    assert beginnings([{"role": "human", "content": text}]) != beginnings([{"role": "ai", "content": text}])
    copy = text.encode().decode()
    assert beginnings([{"role": "human", "content": text}]) == beginnings(
        [{"role": "human", "content": copy}]
    )


@pytest.mark.parametrize("length", [5_000, 40_000])
def test_a_long_text_counts_at_every_place(length):
    def said(place):
        text = "x" * length
        return beginnings([{"role": "human", "content": text[:place] + "y" + text[place + 1 :]}])

    places = range(1_800, 4_200)
    assert len({said(place) for place in places}) == len(places)


@pytest.mark.parametrize("content", ["x" * 100_000, ["x" * 100_000], "é" * 1_500])
def test_no_other_thread_is_let_in_while_it_hashes(monkeypatch, content):
    """hashlib does that from 2,048 bytes on; getting back to it costs each message of a history up to 5 ms."""
    sizes = []

    class Spy:
        def __init__(self, data):
            self.hashed = hashlib.sha256()
            self.update(data)

        def update(self, data):
            sizes.append(len(data))
            self.hashed.update(data)

        def digest(self):
            return self.hashed.digest()

    plain = beginnings([{"role": "human", "content": content}])
    monkeypatch.setattr(prefixes_module, "sha256", Spy)
    assert beginnings([{"role": "human", "content": content}]) == plain
    assert max(sizes) < 2_048


def test_every_beginning_depends_on_all_before_it():
    rng = random.Random(5)
    messages = [{"role": "human", "content": str(rng.random())} for _ in range(9)]
    found = beginnings(messages)
    assert len(set(found)) == 9
    assert found[:5] == beginnings(messages[:5])
    assert set(found).isdisjoint(beginnings(messages[1:]))
    assert set(found[1:]).isdisjoint(beginnings([messages[1], messages[0], *messages[2:]])[1:])


class Answer(enum.StrEnum):
    YES = "yes"


class Nameless:
    pass


def schema(*fields):
    return type("Schema", (), {"model_json_schema": lambda: list(fields)})


def test_other_than_plain_data_has_a_fingerprint():
    for value in (Answer.YES, UserDict(a=[1]), UserList("ab"), {"a": Answer.YES}, {1, 2}, [range(3)], Answer):
        assert fingerprint(value) == fingerprint(value)
    assert fingerprint(UserDict(a=1)) != fingerprint(UserDict(a=2))
    assert fingerprint([UserList("ab"), "c"]) != fingerprint([UserList("a"), "bc"])


def test_what_does_not_say_what_it_is_matches_nothing():
    thing = Nameless()
    assert fingerprint([thing]) != fingerprint([thing])
    kept = schema("a")
    assert fingerprint([kept]) == fingerprint([kept])
    assert fingerprint([kept]) != fingerprint([schema("a", "b")])  # by the same name


def test_a_history_is_what_it_was_when_it_was_sent():
    """The provider counts what was sent; a message that is changed while it answers was not counted."""
    said = {"role": "human", "content": ["short"]}
    prefixes, sent = Prefixes(), call(History([said]))
    assert prefixes.known(sent) is None
    said["content"].append("word " * 10_000)
    prefixes.learn(sent, Usage(input_tokens=10, output_tokens=5), None)
    assert prefixes.known(call([said])) is None
    assert prefixes.known(call(History([{"role": "human", "content": ["short"]}]))) is not None


@pytest.mark.parametrize("door", ["handler", "middleware"])
@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_long_conversation_is_held_at_what_it_costs(
    streams, api, door, provider, openai, anthropic, make_maestro
):
    """An agent whose context grows: bounds stay bounds, and come near the truth after the first turn."""

    @tool
    def read(page: str) -> str:
        """Read a page."""
        return "All work and no play makes Jack a dull boy. " * 300

    turns = 6
    provider.reply = lambda r: (
        Reply(text="More. ", tool_calls=[("read", {"page": str(r.number)})])
        if r.number < turns
        else Reply(text="done")
    )
    maestro = make_maestro(caps=[Cap("5", per="run")])
    model = {
        "chat": lambda: openai(),
        "responses": lambda: openai(use_responses_api=True),
        "anthropic": lambda: anthropic(),
    }[api]()
    middleware = [MaestroMiddleware(maestro)] if door == "middleware" else []
    agent = create_agent(model, [read], middleware=middleware, name="reader")
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    ask = {"messages": [("user", "Read on. " * 500)]}
    list(agent.stream(ask, config, stream_mode="messages")) if streams else agent.invoke(ask, config)
    records = list(maestro.ledger.records())
    assert [record.kind for record in records] == ["settled"] * turns
    assert not any(record.overrun for record in records)
    assert sum(record.cost_nanos for record in records) == provider.bill_nanos
    first, last = records[0], records[-1]
    assert last.usage["input_tokens"] > 5 * first.usage["input_tokens"]
    assert last.held_nanos / last.cost_nanos < 0.6 * first.held_nanos / first.cost_nanos
