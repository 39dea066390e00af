"""Where LangChain is not installed, LlamaIndex agents work under caps all the same."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

FOREIGN = ("langchain", "langchain_core", "langgraph", "maestro_langchain")
PROGRAM = f"""
import asyncio, sys
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai import OpenAI
from maestro_core import Cap, CapExceeded, Maestro
from maestro_core.testing import FakeProvider, Reply
from maestro_llamaindex import MaestroCallbackHandler, RoutedLLM, attach, install

def search(query: str) -> str:
    return "nothing"

async def main(provider):
    maestro = Maestro(ledger="memory:", caps=[Cap("0.003", per="run")])
    llm = OpenAI(model="gpt-4o-mini", api_base=provider.openai_url, api_key="none")
    agent = attach(FunctionAgent(name="boss", tools=[search], llm=llm), maestro)
    try:
        await agent.run(user_msg="Go", max_iterations=1_000)
    except CapExceeded as error:
        print(error.reason)
    assert 1 < len(provider.requests)
    assert 0 < provider.bill_nanos <= 3_000_000
    maestro.close()

reply = Reply(tool_calls=[("search", {{"query": "x"}})], input_tokens=1_000, output_tokens=100)
with FakeProvider(reply, keep_alive=False) as provider:
    asyncio.run(main(provider))
print([name for name in sys.modules if name.partition(".")[0] in {FOREIGN!r}])
"""


def test_nothing_of_langchain_is_there_or_imported():
    assert [name for name in FOREIGN[:3] if find_spec(name)] == []
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["spent", "[]"]


def test_the_other_adapter_names_what_is_missing():
    with pytest.raises(ImportError, match=r"maestro-finops\[langchain\]"):
        __import__("maestro_langchain")
