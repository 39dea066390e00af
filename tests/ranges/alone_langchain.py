"""Where LlamaIndex is not installed, LangChain agents work under caps all the same."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

FOREIGN = ("llama_index", "llama_index_instrumentation", "workflows", "maestro_llamaindex")
PROGRAM = f"""
import sys
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from maestro_core import Cap, CapExceeded, Maestro
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import MaestroCallbackHandler, MaestroMiddleware, RoutedChatModel, governed, install

def search(query: str) -> str:
    "Search."
    return "nothing"

def main(provider):
    maestro = Maestro(ledger="memory:", caps=[Cap("0.003", per="run")])
    model = ChatOpenAI(model="gpt-4o-mini", base_url=provider.openai_url, api_key="none")
    agent = create_agent(model, [search], middleware=[MaestroMiddleware(maestro)])
    try:
        agent.invoke({{"messages": [("user", "Go")]}}, {{"recursion_limit": 1_000}})
    except CapExceeded as error:
        print(error.reason)
    assert 1 < len(provider.requests)
    assert 0 < provider.bill_nanos <= 3_000_000
    maestro.close()

reply = Reply(tool_calls=[("search", {{"query": "x"}})], input_tokens=1_000, output_tokens=100)
with FakeProvider(reply, keep_alive=False) as provider:
    main(provider)
print([name for name in sys.modules if name.partition(".")[0] in {FOREIGN!r}])
"""


def test_nothing_of_llamaindex_is_there_or_imported():
    assert [name for name in FOREIGN[:3] if find_spec(name)] == []
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["spent", "[]"]


def test_the_other_adapter_names_what_is_missing():
    with pytest.raises(ImportError, match=r"maestro-finops\[llamaindex\]"):
        __import__("maestro_llamaindex")
