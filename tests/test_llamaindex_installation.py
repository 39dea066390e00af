"""One line, or one environment variable, governs a whole LlamaIndex application over real HTTP; doors do not add up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai import OpenAIEmbedding
from sound import assert_sound

from maestro_core import Cap, CapExceeded, attribution
from maestro_core.testing import Reply
from maestro_llamaindex import MaestroCallbackHandler, attach, detach, install, installation

ROOT = Path(__file__).parents[1]
ASK = [ChatMessage("How do batteries age?")]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing is installed before or after a test."""
    monkeypatch.setattr(installation._everywhere, "handler", None)
    monkeypatch.setattr(installation._everywhere, "given", None)


@pytest.fixture
def embedding(provider):
    return OpenAIEmbedding(
        model="text-embedding-3-small", api_base=provider.openai_url, api_key="none", embed_batch_size=2
    )


def settled(maestro):
    return [record for record in maestro.ledger.records() if record.kind == "settled"]


async def test_models_that_exist_already_are_seen(provider, llama, make_maestro):
    maestro, llm = make_maestro(), llama()
    install(maestro)
    llm.chat(ASK)
    await llm.achat(ASK)
    list(llm.stream_chat(ASK))
    [chunk async for chunk in await llm.astream_chat(ASK)]
    llm.complete("q")
    await FunctionAgent(name="boss", tools=[], llm=llm).run(user_msg="Go")
    assert_sound(maestro, provider)
    assert len(settled(maestro)) == len(provider.requests) == 6
    assert settled(maestro)[-1].attribution.path == (("agent", "boss"),)


async def test_all_doors_together_count_a_call_once(provider, llama, make_maestro):
    maestro = make_maestro(caps=[Cap("1")])
    install(maestro)
    install(maestro)
    llm = llama(callback_manager=CallbackManager([MaestroCallbackHandler(maestro)]))
    llm.chat(ASK)
    attach(llm, maestro)
    llm.chat(ASK)
    await attach(FunctionAgent(name="boss", tools=[], llm=llm), maestro).run(user_msg="Go")
    detach(llm)
    assert_sound(maestro, provider)
    assert len(settled(maestro)) == len(provider.requests) == 3


@pytest.mark.parametrize("door", ["attach", "handler"])
def test_a_query_engine_pays_for_model_and_embeddings(
    door, provider, llama, embedding, make_maestro, monkeypatch
):
    maestro = make_maestro(caps=[Cap("1")])
    manager = CallbackManager([MaestroCallbackHandler(maestro)] if door == "handler" else [])
    # A query engine gives its model the manager of the settings, whatever it had.
    monkeypatch.setattr(Settings, "_callback_manager", manager)
    llm, embedding.callback_manager = llama(), manager
    if door == "attach":
        attach(embedding, maestro)
    documents = [Document(text=f"Batteries age, says paper {i}.") for i in range(5)]
    index = VectorStoreIndex.from_documents(documents, embed_model=embedding, callback_manager=manager)
    engine = index.as_query_engine(llm=llm)
    if door == "attach":
        assert attach(engine, maestro) is engine
    assert str(engine.query("How do batteries age?")) == "fine"
    provider.wait_idle()
    assert (
        len(provider.requests) == len(settled(maestro)) == 3 + 1 + 1
    )  # batches of two, the question, the answer
    assert maestro.ledger.holds() == []
    if door == "attach":
        assert_sound(maestro, provider)
    else:  # LlamaIndex tells no handler what embeddings used: they settle at their hold, marked
        assert provider.bill_nanos <= sum(s.cost_nanos for s in maestro.ledger.sums(()))
        assert sum(record.estimated_nanos > 0 for record in settled(maestro)) == 4


def test_an_unedited_application_is_governed(provider, tmp_path):
    program = f"""
import asyncio
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai import OpenAI
llm = OpenAI(model="gpt-4o-mini", max_tokens=100, api_base={provider.openai_url!r}, api_key="none")
async def main():
    print(await FunctionAgent(name="boss", tools=[], llm=llm).run(user_msg="Go"))
asyncio.run(main())
from maestro_core import Maestro
maestro = Maestro.default()
print(maestro.report("agent", since="all").total, [dict(r.key) for r in maestro.report("agent", since="all").rows])
"""
    start = "from maestro_core import auto; auto.watch()\n"  # what maestro_auto.pth runs
    env = {**os.environ, "MAESTRO_LEDGER": f"sqlite:///{tmp_path}/maestro.db", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", start + program],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    provider.wait_idle()
    assert str(provider.bill) in done.stdout
    assert "boss" in done.stdout


async def test_both_frameworks_share_a_customers_cap(provider, openai, llama, make_maestro):
    create_agent = pytest.importorskip("langchain.agents").create_agent
    from maestro_langchain import MaestroMiddleware

    maestro = make_maestro(caps=[Cap("0.003", per="customer")])

    def reply(request):
        return Reply(tool_calls=[("work", {"question": "x"})], output_tokens=30)

    def work(question: str) -> str:
        """Find something out."""
        return f"{question}: nothing"

    provider.reply = reply
    chain = create_agent(
        openai(model="gpt-4o-mini"), [work], middleware=[MaestroMiddleware(maestro)], name="chain"
    )
    flow = AgentWorkflow(agents=[FunctionAgent(name="flow", description="-", tools=[work], llm=llama())])
    attach(flow, maestro)
    asked = {"messages": [("user", "Go")]}
    with attribution(customer="acme"):
        first, second = await asyncio.gather(
            chain.ainvoke(asked, {"recursion_limit": 1_000}),
            flow.run(user_msg="Go", max_iterations=1_000),
            return_exceptions=True,
        )
    assert isinstance(first, CapExceeded)
    assert isinstance(second, CapExceeded)
    assert_sound(maestro, provider, 3_000_000)
    rows = {row.key["agent"]: row.calls for row in maestro.report("agent", since="all").rows}
    assert rows.keys() == {"chain", "flow"}
    assert min(rows.values()) > 1
