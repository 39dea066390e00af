"""What the provider counted of a conversation is not bounded by its bytes again."""

from __future__ import annotations

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from maestro_core import Cap, Usage
from maestro_core.prefixes import Prefixes
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
