"""LlamaIndex under Maestro: an agent at its cap, two agents, a query engine with embeddings, an outage.

No key is needed and no money is spent: the models are those of a stand-in provider on this machine, which keeps the true
bill. At the end the ledger has to equal it to the nano-dollar.

    python examples/04_llamaindex.py
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI

from maestro_core import Cap, CapExceeded, Maestro, attribution
from maestro_core.testing import FakeProvider, Reply
from maestro_llamaindex import RoutedLLM, attach

if TYPE_CHECKING:
    from maestro_core.testing import Request

CAP = "0.002"


def search(query: str) -> str:
    """Search the library."""
    return f"nothing on {query}"


def reply(request: Request) -> Reply:
    """Act as a model that searches for ever, and hands over if it can."""
    names = [tool["function"]["name"] for tool in request.body.get("tools") or ()]
    if "handoff" in names:
        return Reply(tool_calls=[("handoff", {"to_agent": "writer", "reason": "it writes"})])
    if "search" in names:
        return Reply(tool_calls=[("search", {"query": "wind"})])
    return Reply(text="Wind is limited by grids.", output_tokens=20)


def model(provider: FakeProvider, name: str = "gpt-4o-mini") -> OpenAI:
    """Return a model of the stand-in."""
    return OpenAI(model=name, api_base=provider.openai_url, api_key="none", max_tokens=200, max_retries=0)


async def at_its_cap(provider: FakeProvider, maestro: Maestro) -> None:
    """Run an agent that never stops by itself."""
    agent = FunctionAgent(name="researcher", tools=[search], llm=model(provider))
    try:
        await attach(agent, maestro).run(user_msg="What limits wind?", max_iterations=1_000)
    except CapExceeded as error:
        print(f"1  the agent was stopped: {error}")


async def two_agents(provider: FakeProvider, maestro: Maestro) -> None:
    """Run a workflow whose first agent hands over to the second."""
    planner: Any = FunctionAgent(
        name="planner", description="plans", llm=model(provider), can_handoff_to=["writer"]
    )
    writer: Any = FunctionAgent(name="writer", description="writes", llm=model(provider), can_handoff_to=[])
    flow = attach(AgentWorkflow(agents=[planner, writer], root_agent="planner"), maestro)
    with attribution(customer="acme"):
        print(f"2  two agents say: {await flow.run(user_msg='Write about wind.')}")


def with_embeddings(provider: FakeProvider, maestro: Maestro) -> None:
    """Ask an index."""
    embedding = OpenAIEmbedding(
        model="text-embedding-3-small", api_base=provider.openai_url, api_key="none", max_retries=0
    )
    index = VectorStoreIndex.from_documents(
        [Document(text="Grids limit wind.")], embed_model=attach(embedding, maestro)
    )
    engine = attach(index.as_query_engine(llm=model(provider)), maestro)
    print(f"3  the index says: {engine.query('What limits wind?')}")


def through_an_outage(provider: FakeProvider, broken: FakeProvider, maestro: Maestro) -> None:
    """Ask a routed model whose cheapest endpoint is down."""
    routed = RoutedLLM(
        endpoints=[model(broken, "gpt-4.1-nano"), model(provider, "gpt-4.1-mini")], maestro=maestro
    )
    told = routed.complete("What limits wind?").additional_kwargs["maestro"]
    print(f"4  {told['attempts'][0]['endpoint']} was down; {told['chosen']} answered")


def main() -> int:
    """Run all four; return 1 if the ledger differs from the bill."""
    with FakeProvider(reply) as provider, FakeProvider(Reply(status=503)) as broken:
        maestro = Maestro(ledger="memory:", caps=[Cap(CAP, per="run")])
        asyncio.run(at_its_cap(provider, maestro))
        asyncio.run(two_agents(provider, maestro))
        with_embeddings(provider, maestro)
        through_an_outage(provider, broken, maestro)
        provider.wait_idle()
        report = maestro.report(by="agent", since="all")
        print(report)
        same = report.total == provider.bill
        print(f"ledger and bill {'agree to the nano-dollar' if same else 'DIFFER'}: ${report.total}")
        maestro.close()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
