"""A LlamaIndex agent with a tool, and with another agent inside a tool, against the stand-in provider.

Where its spans go is the environment's business. Prints what the provider has billed, in nano-dollars.

python tests/peers/worker_llamaindex.py LEDGER
"""

from __future__ import annotations

import asyncio
import sys

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI

from maestro_core import Cap, Maestro, attribution
from maestro_core.testing import FakeProvider, Reply
from maestro_llamaindex import attach


def reply(request):
    if "ask_librarian" in request.tool_names:
        asked = [("search", {"query": "batteries"}), ("ask_librarian", {"question": "which books?"})]
        done = sum(message["role"] == "tool" for message in request.messages)
        return Reply(tool_calls=asked[done : done + 1]) if done < len(asked) else Reply(text="They age.")
    return Reply(text="These two.", cache_read_tokens=100)


async def main(ledger: str) -> None:
    maestro = Maestro(ledger=ledger, caps=[Cap("1", per="run")])
    with FakeProvider(reply) as provider:
        openai = OpenAI(model="gpt-5-mini", api_base=provider.openai_url, api_key="none", max_tokens=600)
        claude = Anthropic(model="claude-haiku-4-5", base_url=provider.anthropic_url, api_key="none")
        librarian = attach(FunctionAgent(name="librarian", tools=[], llm=claude), maestro)

        def search(query: str) -> str:
            """Search."""
            return f"much about {query}"

        async def ask_librarian(question: str) -> str:
            """Ask the librarian."""
            return str(await librarian.run(user_msg=question))

        boss = attach(FunctionAgent(name="boss", tools=[search, ask_librarian], llm=openai), maestro)
        with attribution(team="growth", customer="acme", conversation="thread-7"):
            await boss.run(user_msg="How do batteries age?")
        print(provider.bill_nanos)
    maestro.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
