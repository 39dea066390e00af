"""Answers stay whole under a cap: how much of it is spent on answers that were not cut, for three ways to hold.

Real agents over HTTP, 64 at once; the stand-in provider's bill is the witness. Output lengths are log-normal (median
400, sigma 0.8), the requests' own limit is 8,000 tokens, and the cap is worth a part of the calls.
Run: python tests/benchmarks/bench_answers.py [calls] [worth] [seeds]
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import sys
from dataclasses import dataclass, replace
from unittest import mock

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

from maestro_core import Cap, CapExceeded, Maestro, admission, fitting
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import MaestroMiddleware

CEILING = 8_000
INPUT_TOKENS = 40
# gpt-4o-mini, in nano-dollars per token; the bill says the same, and `serve` checks that.
INPUT_NANOS, OUTPUT_NANOS = 150, 600


@dataclass
class Result:
    """What became of the calls, and of the cap."""

    cap_nanos: int
    bill_nanos: int
    whole_nanos: int
    whole: int
    cut: int
    refused: int
    refused_early: int
    held: int
    check: list[str]

    @property
    def whole_share(self) -> float:
        """The part of the cap that was spent on answers that were not cut."""
        return self.whole_nanos / self.cap_nanos

    @property
    def cut_share(self) -> float:
        """The part of the served calls that was cut."""
        return self.cut / max(1, self.whole + self.cut)


def full(*args):
    """Hold the ceiling, or refuse."""
    fit = fitting.fit(*args)
    return fit and replace(fit, comfort_nanos=fit.ceiling_nanos, least_nanos=fit.ceiling_nanos)


def half(*args):
    """Hold half the ceiling, whatever was answered before."""
    fit = fitting.fit(*args)
    return fit and replace(fit, comfort_nanos=max(fit.least_nanos, fit.ceiling_nanos // 2))


POLICIES = {"as built": fitting.fit, "always full": full, "half": half}


def lengths(calls: int, seed: int) -> list[int]:
    """Return how many tokens each answer would have by itself."""
    chance = random.Random(seed)
    return [max(1, min(CEILING, round(400 * math.exp(chance.gauss(0, 0.8))))) for _ in range(calls)]


async def serve(policy, *, calls: int, worth: int, seed: int, at_once: int = 64) -> Result:
    """Send the calls under a cap that is worth so many of them."""
    natural = lengths(calls, seed)
    average = INPUT_NANOS * INPUT_TOKENS + OUTPUT_NANOS * sum(natural) / calls
    cap_nanos = int(worth * average)

    def reply(request):
        tokens = natural[int(re.search(r"Question (\d+)", request.prompt).group(1))]
        return Reply(input_tokens=INPUT_TOKENS, output_tokens=tokens, delay_s=tokens / 20_000)

    with FakeProvider(reply) as provider, mock.patch.object(admission, "fit", policy):
        maestro = Maestro(ledger="memory:", caps=[Cap(f"{cap_nanos / 1e9:.9f}")])
        model = ChatOpenAI(
            model="gpt-4o-mini", max_tokens=CEILING, base_url=provider.openai_url, api_key="none"
        )
        agent = create_agent(model, [], middleware=[MaestroMiddleware(maestro)], name="writer")
        gate = asyncio.Semaphore(at_once)

        async def one(number: int):
            async with gate:
                try:
                    return await agent.ainvoke(
                        {"messages": [("user", f"Question {number}: how do batteries age?")]}
                    )
                except CapExceeded as error:
                    return error

        outcomes = await asyncio.gather(*(one(number) for number in range(calls)))
        provider.wait_idle()
        charges = provider.charges
        refused = [e for e in outcomes if isinstance(e, CapExceeded) and not e.partial]
        costs = {i: INPUT_NANOS * INPUT_TOKENS + OUTPUT_NANOS * natural[i] for i in range(calls)}
        whole = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, dict)]
        result = Result(
            cap_nanos=cap_nanos,
            bill_nanos=provider.bill_nanos,
            whole_nanos=sum(costs[i] for i in whole),
            whole=len(whole),
            cut=sum(isinstance(e, CapExceeded) and bool(e.partial) for e in outcomes),
            refused=len(refused),
            refused_early=sum(e.reason != "spent" or e.spent + e.needed <= e.cap.limit for e in refused),
            held=len(maestro.ledger.holds()),
            check=maestro.ledger.check(),
        )
        assert len(charges) == result.whole + result.cut
        maestro.close()
    return result


def main() -> None:
    calls, worth, seeds = (int(a) for a in (*sys.argv[1:], *("640", "100", "3")[len(sys.argv) - 1 :]))
    print(f"{calls} calls, 64 at once, a cap worth {worth} average calls, {seeds} seeds")
    print(
        f"{'policy':14}{'bill/cap':>10}{'on whole':>10}{'served':>8}{'cut':>5}{'cut %':>7}{'refused':>9}{'early':>7}"
    )
    for name, policy in POLICIES.items():
        for seed in range(seeds):
            r = asyncio.run(serve(policy, calls=calls, worth=worth, seed=seed))
            print(
                f"{name:14}{r.bill_nanos / r.cap_nanos:10.1%}{r.whole_share:10.1%}{r.whole + r.cut:8}{r.cut:5}"
                f"{r.cut_share:7.1%}{r.refused:9}{r.refused_early:7}"
            )
            assert r.bill_nanos <= r.cap_nanos
            assert r.check == []


if __name__ == "__main__":
    main()
