"""Shared fixtures. Nothing here replaces a part of Maestro: the frameworks, the HTTP and the ledgers are real.

A fixture imports its own framework: `make ranges` runs tests where only one of them is installed.
"""

from __future__ import annotations

import os
import signal

import pytest

from maestro_core import Maestro
from maestro_core.testing import FakeProvider, Reply

for name in tuple(os.environ):  # a developer's own settings must not leak into the tests
    if name.startswith(("MAESTRO_", "OTEL_")):
        del os.environ[name]
os.environ["LANGSMITH_TRACING"] = "false"

# A shell starts what it puts into the background with Ctrl-C ignored, and every process below inherits that: a command
# that a test ends by Ctrl-C would never end. One that is handled here is at its default again in processes started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def provider():
    """A stand-in provider whose calls all cost the same: 1,000 tokens in, 100 out."""
    # Without keep-alive, because langchain-anthropic keeps its HTTP client, and a socket, for ever.
    with FakeProvider(Reply(text="fine", input_tokens=1_000, output_tokens=100), keep_alive=False) as running:
        yield running


@pytest.fixture
def west():
    """One of two providers that can be told apart; the one whose models are cheap."""
    with FakeProvider(Reply(text="fine", input_tokens=40, output_tokens=20), keep_alive=False) as running:
        yield running


@pytest.fixture
def east():
    """The other one."""
    with FakeProvider(Reply(text="fine", input_tokens=40, output_tokens=20), keep_alive=False) as running:
        yield running


@pytest.fixture
def path(tmp_path):
    """Where a ledger's file may be."""
    return tmp_path / "ledger.db"


@pytest.fixture
def openai(provider):
    """Make a ChatOpenAI that talks to the stand-in."""
    ChatOpenAI = pytest.importorskip("langchain_openai").ChatOpenAI  # noqa: N806 - a class

    def make(**kwargs):
        kwargs = {"model": "gpt-5-mini", "max_tokens": 100, "max_retries": 0, "stream_usage": True, **kwargs}
        return ChatOpenAI(base_url=provider.openai_url, api_key="none", **kwargs)

    return make


@pytest.fixture
def make_researcher(provider, openai):
    """Make an agent that calls its model twice, with a search between; 2,200 tokens in, 140 out."""
    from langchain.agents import create_agent
    from langchain_core.tools import tool

    @tool
    def search(query: str) -> str:
        """Search."""
        return "found"

    def reply(request):
        if request.tools and not request.tool_results:
            return Reply(tool_calls=[("search", {"query": "x"})], input_tokens=1_000, output_tokens=80)
        return Reply(text="done", input_tokens=1_200, output_tokens=60, cache_read_tokens=1_000)

    provider.reply = reply
    return lambda **more: create_agent(openai(), [search], name="researcher", **more)


@pytest.fixture
def researcher(make_researcher):
    """Such an agent."""
    return make_researcher()


@pytest.fixture
def anthropic(provider):
    """Make a ChatAnthropic that talks to the stand-in."""
    ChatAnthropic = pytest.importorskip("langchain_anthropic").ChatAnthropic  # noqa: N806

    def make(**kwargs):
        kwargs = {"model": "claude-sonnet-5", "max_tokens": 100, "max_retries": 0, **kwargs}
        return ChatAnthropic(base_url=provider.anthropic_url, api_key="none", **kwargs)

    return make


@pytest.fixture
def llama(provider):
    """Make a LlamaIndex OpenAI LLM that talks to the stand-in."""
    from llama_index.llms.openai import OpenAI

    def make(**kwargs):
        kwargs = {"model": "gpt-4o-mini", "max_tokens": 100, "max_retries": 0, **kwargs}
        return OpenAI(api_base=provider.openai_url, api_key="none", **kwargs)

    return make


@pytest.fixture
def make_maestro(tmp_path, monkeypatch):
    """Make a Maestro with a ledger of its own; all are closed at the end."""
    monkeypatch.chdir(tmp_path)
    made = []

    def make(**settings):
        made.append(Maestro(**{"ledger": "memory:", **settings}))
        return made[-1]

    yield make
    for maestro in made:
        maestro.close()
