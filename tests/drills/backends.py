"""An agent while its trace backend is well, slow, refuses, fails, hangs or is killed halfway: latencies, money, exit.

Every agent runs in one process against the stand-in provider, taking turns, so that whatever else the machine does falls on
all of them; compare the rows. Each has a Maestro, exporters and a ledger of its own.
Run: python tests/drills/backends.py [rounds]
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the receivers are

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from receiver import HttpReceiver

from maestro_core import Cap, Maestro
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import MaestroCallbackHandler

ASKED = {"messages": [("user", "go")]}
WARM = 5
NONE = ("no telemetry", "again, for noise")


@tool
def search(query: str) -> str:
    """Search."""
    return "found"


def reply(request):
    if not request.tool_results:
        return Reply(tool_calls=[("search", {"query": "x"})], input_tokens=1_000, output_tokens=80)
    return Reply(text="done", input_tokens=1_200, output_tokens=60)


class Case:
    """An agent and its backend. `endpoint` is None where there is no telemetry."""

    def __init__(self, name, endpoint):
        self.name, self.spent_nanos, self.times_ms = name, 0, []
        if endpoint:
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        self.maestro = Maestro(ledger="memory:", caps=[Cap("100", per="run")], alerts={"log": False})
        self.config = {"callbacks": [MaestroCallbackHandler(self.maestro)]}

    def run(self, agent, provider, *, counts):
        before, began = provider.bill_nanos, time.perf_counter()
        agent.invoke(ASKED, config=self.config)
        if counts:
            self.times_ms.append((time.perf_counter() - began) * 1e3)
        self.spent_nanos += provider.bill_nanos - before


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    logging.disable(logging.ERROR)  # what exporters say of dead backends
    with ExitStack() as stack, FakeProvider(reply) as provider:
        model = ChatOpenAI(
            model="gpt-5-mini", base_url=provider.openai_url, api_key="none", max_tokens=500, max_retries=0
        )
        agent = create_agent(model, [search], name="drill")
        receivers = {
            "well": HttpReceiver(),
            "slow (1 s)": HttpReceiver(delay_s=1.0),
            "fails (503)": HttpReceiver(status=503),
            "hangs": HttpReceiver(delay_s=3_600),
            "killed halfway": HttpReceiver(),
        }
        for name, receiver in receivers.items():
            if name != "killed halfway":
                stack.enter_context(receiver)
        killed = receivers["killed halfway"].__enter__()
        cases = []
        endpoints = {name: receiver.url for name, receiver in receivers.items()}
        for name, endpoint in {**dict.fromkeys(NONE), "refused": "http://127.0.0.1:9", **endpoints}.items():
            cases.append(Case(name, endpoint))
            cases[-1].run(agent, provider, counts=False)  # its exporters look for their endpoint now
        for number in range(rounds + WARM):
            if number == rounds // 2:
                killed.__exit__()
            for case in cases:
                case.run(agent, provider, counts=number >= WARM)
        report(cases)


def report(cases) -> None:
    print(f"{'backend':18}{'p50 ms':>9}{'p99 ms':>9}{'x none':>8}{'lost $':>9}{'exit s':>8}")
    bases = statistics.quantiles(cases[0].times_ms, n=100)
    for case in cases:
        found = statistics.quantiles(case.times_ms, n=100)
        counted = sum(each.cost_nanos for each in case.maestro.ledger.sums(()))
        began = time.perf_counter()
        case.maestro.close()
        taken_s = time.perf_counter() - began
        lost = (case.spent_nanos - counted) / 1e9
        print(
            f"{case.name:18}{found[49]:9.2f}{found[98]:9.2f}{found[98] / bases[98]:8.2f}{lost:9.2f}{taken_s:8.2f}"
        )


if __name__ == "__main__":
    main()
