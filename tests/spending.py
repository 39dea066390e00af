"""An application whose metrics Prometheus can scrape: an agent, streams, a failover, a refusal, an error, an overrun.

It spends in rounds: one for every line on stdin, before it is scraped for the first time or later. After each round it says
on stdout what the provider has billed so far, in nano-dollars. It ends with its stdin.

python tests/spending.py LEDGER PORT TEAM
"""

from __future__ import annotations

import sys
from contextlib import suppress

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from maestro_core import Cap, CapExceeded, Maestro, attribution
from maestro_core.testing import FakeProvider, Reply
from maestro_core.types import Call
from maestro_langchain import MaestroCallbackHandler, RoutedChatModel


def reply(request):
    said = str(request.messages[-1])
    if "fail" in said:
        return Reply(status=400)
    if "dear" in said:
        return Reply(text="done", input_tokens=60_000_000, output_tokens=5_000)
    if request.model == "gpt-5-nano":
        return Reply(status=500)
    if request.tools and not request.tool_results:
        return Reply(tool_calls=[("search", {"query": "x"})], input_tokens=1_000, output_tokens=80)
    return Reply(text="done", input_tokens=1_201, output_tokens=61, cache_read_tokens=1_000)


def spend(maestro: Maestro, provider: FakeProvider, team: str) -> None:
    """One round: everything that a metric tells of."""
    config = {"callbacks": [MaestroCallbackHandler(maestro)]}

    def model(name: str = "gpt-5-mini", tokens: int = 100) -> ChatOpenAI:
        return ChatOpenAI(
            model=name, base_url=provider.openai_url, api_key="none", max_tokens=tokens, max_retries=0, stream_usage=True
        )  # fmt: skip

    @tool
    def search(query: str) -> str:
        """Search, and sum up what was found."""
        return str(model().invoke(query).text)

    with attribution(team=team, feature="search"):
        agent = create_agent(model(), [search], name="researcher")
        agent.invoke({"messages": [("user", "go")]}, config=config)
        list(model().stream("hello", config=config))
        with attribution(customer="acme"):
            # The first costs more than was held, and the cap is spent.
            for asked in ("something dear", "hello"):
                with suppress(CapExceeded):
                    model().invoke(asked, config=config)
        RoutedChatModel(endpoints=[model("gpt-5-nano"), model()], maestro=maestro).invoke("hello")
        with suppress(Exception):
            model().invoke("fail", config=config)
        # Its process seemed dead, and then told that it had cost less than was held.
        late = maestro.reserve(
            Call(provider="openai", model="gpt-5-mini", input="x" * 5_000, max_output_tokens=5_000)
        )
        maestro.presume([late.key])
        client = OpenAI(base_url=provider.openai_url, api_key="none")
        asked = [{"role": "user", "content": "hello"}]
        maestro.settle(late, client.chat.completions.create(model="gpt-5-mini", messages=asked).usage)
        client.close()


def main(ledger: str, port: str, team: str) -> None:
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    caps = [Cap("1000", per="team", every="day"), Cap("15.50", where={"customer": "acme", "team": team})]
    with FakeProvider(reply) as provider:
        maestro = Maestro(ledger=ledger, caps=caps)
        start_http_server(int(port), "127.0.0.1")
        say("ready")
        for _ in sys.stdin:
            spend(maestro, provider, team)
            say(provider.bill_nanos)
        maestro.close()


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
