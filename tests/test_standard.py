"""LangChain's own suites for chat models, over the stand-in: what plain ChatOpenAI passes, a routed one passes.

Skipped are images, PDFs and audio, which a text-only stand-in cannot show, recorded answers, and models built from the
environment, which nothing of ours has a part in.
"""

from __future__ import annotations

import re

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from maestro_core import Maestro
from maestro_core.testing import FakeProvider, Reply
from maestro_core.testing._schema import example
from maestro_langchain import RoutedChatModel

# Plain ChatOpenAI gives both, with structured output of a real provider as with the stand-in's.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
]


def clever(request):
    """Answer as a model that reads: calls the first tool with the numbers and the quoted names it was given."""
    if request.body.get("response_format") == {"type": "json_object"}:
        return Reply(text='{"setup": "Why?", "punchline": "Because."}')
    if not request.tools or request.tool_results:
        return None
    tool = request.tools[0].get("function") or request.tools[0]
    schema = tool.get("parameters") or tool.get("input_schema") or {}
    numbers = [int(found) for found in re.findall(r"-?\d+", request.prompt)]
    quoted = re.findall(r"'([^']+)'", request.prompt)
    wanted = {"integer": numbers, "string": quoted}
    arguments = example(schema)
    for name, part in (schema.get("properties") or {}).items():
        for found in wanted.get(part.get("type"), ())[:1]:
            arguments[name] = found
    return Reply(tool_calls=[(tool["name"], arguments)])


class Standing:
    """Where the models of the suite find the stand-in."""

    @pytest.fixture(autouse=True)
    def _stand_in(self):
        with FakeProvider(self.reply, keep_alive=False) as self.provider:
            yield

    def reply(self, request):
        return clever(request)

    @property
    def supports_json_mode(self):
        return True

    @property
    def model_override_value(self):
        return "gpt-5"


class TestPlainUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {"model": "gpt-5-mini", "api_key": "none"}

    @pytest.mark.xfail(reason="its snapshot belongs to langchain-openai")
    def test_serdes(self, model, snapshot):
        super().test_serdes(model, snapshot)


class TestPlain(Standing, ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "gpt-5-mini",
            "base_url": self.provider.openai_url,
            "api_key": "none",
            "max_retries": 0,
            "stream_usage": True,
        }


def plain(**kwargs):
    return ChatOpenAI(
        **{"model": "gpt-5-mini", "api_key": "none", "max_retries": 0, "stream_usage": True, **kwargs}
    )


class OwnLedger:
    """Gives the routed models a ledger of their own, in memory."""

    @pytest.fixture(autouse=True)
    def _ledger(self):
        self.maestro = Maestro(ledger="memory:")
        yield
        self.maestro.close()


class TestRoutedUnit(OwnLedger, ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return RoutedChatModel

    @property
    def chat_model_params(self):
        return {"endpoints": [plain(), plain(model="gpt-5")], "maestro": self.maestro}


class TestRouted(OwnLedger, Standing, ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return RoutedChatModel

    @property
    def chat_model_params(self):
        endpoints = [
            plain(base_url=self.provider.openai_url),
            plain(base_url=self.provider.openai_url, model="gpt-5"),
        ]
        return {"endpoints": endpoints, "maestro": self.maestro}


class TestFailingOver(TestRouted):
    """The same, while the cheaper endpoint fails every other request."""

    def reply(self, request):
        failing = request.model == "gpt-5-mini" and request.number % 2
        return Reply(status=500) if failing else clever(request)

    @pytest.fixture(autouse=True)
    def _two_runs(self, request):
        if request.node.originalname in ("test_structured_output", "test_structured_output_async"):
            reason = "counts the runs, of which each attempt is one"
            request.applymarker(pytest.mark.xfail(reason=reason))
