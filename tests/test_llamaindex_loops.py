"""A real FunctionAgent that goes round in circles is told, or halted; one that gets on is left alone."""

from __future__ import annotations

import asyncio
import itertools

import pytest

pytest.importorskip("llama_index.llms.openai")

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai import OpenAI

from maestro_core import CapExceeded
from maestro_core.testing import Reply
from maestro_llamaindex import attach

PAGES = ["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak"]


def search(query: str) -> str:
    """Search."""
    return "nothing found"


def broken(query: str) -> str:
    """Search, and fail."""
    raise ValueError(f"no connection for {query}")


def read(page: str) -> str:
    """Read a page."""
    return f"what is known of the {page}"


def run(maestro, provider, tools):
    llm = OpenAI(model="gpt-5-mini", api_base=provider.openai_url, api_key="x", max_retries=0)
    agent = attach(FunctionAgent(tools=tools, llm=llm, name="boss"), maestro)

    async def ask():
        return str(await agent.run("Find out.", max_iterations=30))

    return asyncio.run(ask())


def told(maestro):
    assert maestro.alerts.flush()
    return [note.body for note in maestro.ledger.notes("alert")]


@pytest.mark.parametrize("tool", [search, broken])
def test_a_stuck_agent_is_told_or_halted(tool, provider, make_maestro):
    replies = [Reply(tool_calls=[(tool.__name__, {"query": page})]) for page in PAGES]
    maestro = make_maestro()
    provider.reply = [*replies, "I give up."]
    assert run(maestro, provider, [tool]) == "I give up."
    (alert,) = told(maestro)
    assert (alert["kind"], alert["tool"], alert["model"]) == ("loop", tool.__name__, "gpt-5-mini")
    assert "agent boss" in alert["text"]

    maestro = make_maestro(on_loop="halt")
    provider.reset()
    provider.reply = [*replies, "I give up."]
    with pytest.raises(CapExceeded, match="halted"):
        run(maestro, provider, [tool])
    assert len(provider.requests) <= 8


def test_an_agent_that_gets_on_is_left_alone(provider, make_maestro):
    maestro = make_maestro(on_loop="halt")
    provider.reply = [
        Reply(tool_calls=[("search", {"query": "x"})] * 6),
        *[Reply(tool_calls=[("read", {"page": page})]) for page in PAGES],
        "Done.",
    ]
    assert run(maestro, provider, [search, read]) == "Done."
    assert told(maestro) == []


def save(page: str) -> str:
    """Keep a page."""
    return "saved"


def test_what_a_tool_is_asked_counts(provider, make_maestro):
    """A tool that only confirms makes progress with each new page; one that counts makes none with the same words."""
    maestro = make_maestro(on_loop="halt")
    provider.reply = [*(Reply(tool_calls=[("save", {"page": page})]) for page in PAGES), "Done."]
    assert run(maestro, provider, [save]) == "Done."
    assert told(maestro) == []

    tries = itertools.count(10)

    def count(query: str) -> str:
        """Search, and say how often."""
        return f"{next(tries)} searches, no result"

    provider.reset()
    provider.reply = [*(Reply(tool_calls=[("count", {"query": "x"})]) for _ in PAGES), "I give up."]
    with pytest.raises(CapExceeded, match="halted"):
        run(maestro, provider, [count])
