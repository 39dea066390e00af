"""An agent answers a mixed queue: hard tickets need a strong model, the rest do not. The provider's own bill is the witness.

The queue is answered twice, by an agent on the strong model alone and by the same agent on a routed model that has a
cheap endpoint, too. Hard tickets ask for `quality_min=0.9`; which are hard, the application knows (here by their team).
No key is needed: the models are those of a stand-in provider on this machine, with the real models' prices. Both times it
answers with the same tokens, so what differs is only who was asked.

    python examples/03_route_by_difficulty.py
"""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext
from decimal import Decimal
from typing import TYPE_CHECKING

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from maestro_core import Endpoint, Maestro, attribution, sla
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import RoutedChatModel

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from maestro_core.testing import Request

LEAST_SAVING = Decimal("0.40")
TICKETS = [
    ("support", "Where is order 1041?"),
    ("support", "Can I change the address of order 1042?"),
    ("legal", "Does the refund of order 1043 fall under the new directive?"),
    ("support", "Order 1044 arrived broken. What now?"),
    ("support", "When will order 1045 be sent?"),
    ("support", "I was charged twice for order 1046."),
    ("legal", "May we resell the return of order 1047 as new?"),
    ("support", "Cancel order 1048, please."),
    ("support", "Which carrier has order 1049?"),
]


def answer(request: Request) -> Reply:
    """Play the model: look the order up, then answer; about as long as such answers are."""
    if not request.tool_results:
        number = "".join(char for char in request.prompt if char.isdigit())
        return Reply(tool_calls=[("look_up", {"order": number})], input_tokens=900, output_tokens=60)
    return Reply(text="Here is what I found out for you.", input_tokens=1_200, output_tokens=250)


@tool
def look_up(order: str) -> str:
    """Look an order up."""
    return f"order {order}: paid, in transit since Monday, carrier Albatross"


def work(model: BaseChatModel) -> list[str]:
    """Answer the queue; return which model gave each answer."""
    agent = create_agent(model, [look_up], name="helpdesk")
    answered_by = []
    for team, ticket in TICKETS:
        asked = sla(quality_min=0.9) if team == "legal" else nullcontext()
        with attribution(team=team), asked:
            messages = agent.invoke({"messages": [("user", ticket)]})["messages"]
        answered_by.append(messages[-1].response_metadata["model_name"])
    return answered_by


def main() -> int:
    """Answer the queue in both ways; return 0 if routing kept what it promises."""
    with FakeProvider(answer, keep_alive=False) as provider, closing(Maestro(ledger="memory:")) as maestro:
        strong = ChatAnthropic(
            model="claude-opus-4-8", base_url=provider.anthropic_url, api_key="none", max_tokens=1_000
        )
        cheap = ChatOpenAI(model="gpt-5-mini", base_url=provider.openai_url, api_key="none", max_tokens=1_000)
        work(strong)
        always_strong = provider.bill

        routed = RoutedChatModel(
            endpoints=[Endpoint(strong, quality=0.95), Endpoint(cheap, quality=0.7)], maestro=maestro
        )
        answered_by = work(routed)
        bill = provider.bill - always_strong

        print(maestro.report(by=("team", "model"), since="all"))
        saving = 1 - bill / always_strong
        print(
            f"always strong ${always_strong:.4f}, routed ${bill:.4f} by the provider's bill: {saving:.0%} less"
        )
        wrong = [
            ticket
            for (team, ticket), model in zip(TICKETS, answered_by, strict=True)
            if (team == "legal") != (model == "claude-opus-4-8")
        ]
        print(f"hard tickets answered below quality 0.9, or easy ones above it: {len(wrong)}")
        reconciles = maestro.report(since="all").total == bill
        print(f"ledger and bill {'agree to the nano-dollar' if reconciles else 'DIFFER'}")
    return 0 if saving >= LEAST_SAVING and not wrong and reconciles else 1


if __name__ == "__main__":
    sys.exit(main())
