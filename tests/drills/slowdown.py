"""A slowdown, simulated: two cheap endpoints and a dear one, the cheapest of which becomes 2.5 times slower.

The router decides with its own clock moved by hand; only the latencies are made up (log-normal, as providers' are).
Run: python tests/drills/slowdown.py [seeds]
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from random import Random

from maestro_core import SLA, Endpoint, Maestro
from maestro_core.endpoints import Facts
from maestro_core.learned import Outcome
from maestro_core.router import Ask, Router

LIMIT_MS = 4_000.0
SIGMA = 0.35
# Medians in milliseconds; the cheap ones meet the SLA with room to spare.
USUAL_MS = {"cheap": 1_200.0, "near": 1_300.0, "dear": 800.0}
MODELS = {"cheap": "gpt-5-nano", "near": "gpt-5-mini", "dear": "gpt-5"}
FACTOR = 2.5
BEFORE, AFTER = 300, 600


@dataclass(frozen=True)
class Run:
    """What one seed showed.

    Attributes:
        calls_until_diverted: Calls that went to the slow endpoint after the slowdown, before another one was chosen.
        missed_before: The share of calls over the SLA before the slowdown.
        missed_after: Likewise after it, once diverted.
        dear: Calls to the dearest while a cheaper endpoint was expected to meet the SLA.
        explored: Calls that were made to learn whether the slow one still is.
    """

    calls_until_diverted: int
    missed_before: float
    missed_after: float
    dear: int
    explored: int


class Simulation:
    """One router over endpoints whose latencies are drawn."""

    def __init__(self, seed: int, *, every_s: float = 1.0) -> None:
        self.random = Random(seed)
        self.now_s = 1_000.0
        self.median_ms = dict(USUAL_MS)
        self._every_s = every_s
        facts = [
            Facts(endpoint=Endpoint(None), name=n, provider="openai", model=m) for n, m in MODELS.items()
        ]
        self.maestro = Maestro(ledger="memory:")
        self.router = Router(self.maestro, facts, now_s=lambda: self.now_s)
        self.ask = Ask(input="How do batteries age?", sla=SLA(latency_ms_p95=LIMIT_MS), max_output_tokens=200)

    def call(self) -> tuple[str, float, bool, bool]:
        """Route one call, and learn from it.

        Returns:
            Who served it, how long it took, whether it was an exploration, and whether the dearest was chosen although
            a cheaper one would have done.
        """
        decision = self.router.decide(self.ask)
        latency_ms = self.random.lognormvariate(math.log(self.median_ms[decision.chosen]), SIGMA)
        self.now_s += self._every_s
        self.maestro.learned.answered(
            self.router.facts[decision.chosen].key,
            Outcome(latency_ms=latency_ms, output_tokens=60),
            self.now_s,
        )
        able = [each for each in decision.candidates if each.verdict == "ok"]
        cheaper = any(each.name != "dear" for each in able)
        return decision.chosen, latency_ms, bool(decision.explore), decision.chosen == "dear" and cheaper


def simulate(seed: int) -> Run:
    """Let the cheapest endpoint become slow after 300 calls."""
    simulation = Simulation(seed)
    before = [simulation.call() for _ in range(BEFORE)]
    simulation.median_ms["cheap"] *= FACTOR
    after = [simulation.call() for _ in range(AFTER)]
    simulation.maestro.close()
    diverted = next((n for n, (chosen, *_) in enumerate(after) if chosen != "cheap"), AFTER)
    steady = after[diverted:]
    return Run(
        calls_until_diverted=diverted,
        missed_before=sum(ms > LIMIT_MS for _, ms, _, _ in before) / len(before),
        missed_after=sum(ms > LIMIT_MS for _, ms, _, _ in steady) / max(1, len(steady)),
        dear=sum(dear for *_, dear in (*before, *after)),
        explored=sum(explored for _, _, explored, _ in after),
    )


def percentile(values: list[float], share: float) -> float:
    """Return the value that so large a share is not above."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main(seeds: int) -> int:
    """Run the drill; return 1 if it misses what was promised."""
    runs = [simulate(seed) for seed in range(seeds)]
    diverted = [run.calls_until_diverted for run in runs]
    missed = [run.missed_after for run in runs]
    print(
        f"{seeds} seeds: diverted after {percentile(diverted, 0.5)} calls (p50), {percentile(diverted, 0.9)} (p90);"
        f" over the SLA {max(run.missed_before for run in runs):.1%} before and {percentile(missed, 0.9):.1%} after (p90;"
        f" worst {max(missed):.1%}); the dearest for nothing {sum(run.dear for run in runs)} times;"
        f" {sum(run.explored for run in runs) / seeds:.1f} of {AFTER} calls explored"
    )
    return int(
        percentile(diverted, 0.9) > 40 or percentile(missed, 0.9) > 0.05 or any(run.dear for run in runs)
    )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
