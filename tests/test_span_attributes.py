"""What the GenAI conventions recommend on spans of calls and tools, through LangChain and without a framework."""

from __future__ import annotations

import httpx
import pytest
from langchain_openai import ChatOpenAI
from openai import APIConnectionError
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from maestro_core.telemetry.places import server
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware

ASKED = {"messages": [("user", "go")]}


class Watching(Sampler):
    """Lets every span through, and keeps what it was shown of each."""

    def __init__(self):
        self.seen = {}

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, *args, **kwargs):
        self.seen[name] = dict(attributes)
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, *args, **kwargs)

    def get_description(self):
        return "watching"


@pytest.fixture
def sampler():
    return Watching()


@pytest.fixture
def spans(monkeypatch, sampler):
    """The user's own tracer provider, with what it exported."""
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    yield exporter
    tracers.shutdown()


@pytest.fixture
def config(make_maestro):
    return {"callbacks": [MaestroCallbackHandler(make_maestro())]}


def the(name, spans):
    """Return the attributes of the only span of this name."""
    (found,) = [span for span in spans.get_finished_spans() if span.name == name]
    return found.attributes


# -- where it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("http://gpu-7:8000/v1", "gpu-7", 8000),
        ("https://models.example.org/v1", "models.example.org", 443),
        ("http://models.example.org", "models.example.org", 80),
        ("http://[::1]:11434", "::1", 11434),
        ("unix://models.example.org/v1", "models.example.org", None),
        ("gpu-7:8000/v1", None, None),
        ("http://gpu-7:many/v1", None, None),
        ("", None, None),
    ],
)
def test_a_place_is_a_host_and_a_port(url, address, port):
    assert (server(url).get("server.address"), server(url).get("server.port")) == (address, port)


def test_samplers_see_where_a_call_goes(spans, sampler, provider, openai, config):
    openai().invoke("hello", config=config)
    (seen,) = sampler.seen.values()
    assert f"http://{seen['server.address']}:{seen['server.port']}" == provider.url


def test_a_makers_own_place_is_not_guessed(spans, sampler, config):
    def refuse(request):
        assert request.url.host == "api.openai.com"
        raise httpx.ConnectError("nothing leaves this machine")

    with httpx.Client(transport=httpx.MockTransport(refuse)) as client, pytest.raises(APIConnectionError):
        ChatOpenAI(api_key="none", max_retries=0, http_client=client).invoke("hello", config=config)
    (seen,) = sampler.seen.values()
    assert not [name for name in seen if name.startswith("server.")]


# -- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
def test_more_answers_than_one_are_counted(spans, openai, config, n):
    openai(n=n).invoke("hello", config=config)
    assert the("chat gpt-5-mini", spans).get("gen_ai.request.choice.count") == (None if n == 1 else n)


@pytest.mark.parametrize("door", ["handler", "middleware"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_tools_call_is_the_one_that_the_model_asked_for(
    spans, provider, make_researcher, make_maestro, door, asynchronous
):
    maestro = make_maestro()
    agent = make_researcher(middleware=[MaestroMiddleware(maestro)] if door == "middleware" else [])
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}
    answers = (await agent.ainvoke(ASKED, config) if asynchronous else agent.invoke(ASKED, config))[
        "messages"
    ]
    tool = the("execute_tool search", spans)
    assert tool["gen_ai.tool.call.id"] == answers[1].tool_calls[0]["id"]
    assert tool["gen_ai.tool.type"] == "function"
    assert "gen_ai.tool.type" not in the("invoke_agent researcher", spans)
