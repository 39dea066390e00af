"""How long a decision between eight endpoints takes, for a short and a long conversation; beside litellm's Router.

Each takes turns with the other, in processes of their own, so that whatever else the machine does falls on both; compare
the ratios. litellm's environment is made by `make peers`, or by this file with --peers; without it there is no ratio.
Run: python tests/benchmarks/bench_routing.py [--peers] [rounds]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from maestro_core import SLA, Endpoint, Maestro
from maestro_core.cachestate import Seen
from maestro_core.endpoints import Facts
from maestro_core.learned import Outcome
from maestro_core.router import Ask, Router

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests/peers/worker_litellm_router.py"
PYTHON = ROOT / ".venv-peers/litellm/bin/python"
MODELS = [
    "gpt-5-mini",
    "gpt-5",
    "gpt-4o-mini",
    "gpt-4.1",
    "gpt-5-nano",
    "gpt-4.1-mini",
    "gpt-4o",
    "gpt-4.1-nano",
]
TURNS = {"2 messages": 1, "60 messages": 30}
TAKES = 3
SEEN = Seen(input_tokens=1_000, read_tokens=0, written_tokens=0, implicit=True, ttl_s=300.0)


def conversation(turns: int) -> list[dict[str, str]]:
    """Return a conversation of so many turns, about 400 characters each."""
    roles = ("user", "assistant")
    return [
        {"role": roles[i % 2], "content": f"turn {i}: " + "how do batteries age? " * 18}
        for i in range(2 * turns)
    ]


def warm_router() -> Router:
    """Return a router that has learned from 50 calls to each endpoint."""
    facts = [Facts(endpoint=Endpoint(None), name=m, provider="openai", model=m) for m in MODELS]
    router = Router(Maestro(ledger="memory:"), facts)
    for number in range(50):
        for each in facts:
            outcome = Outcome(latency_ms=800 + number, output_tokens=200, size=4_000, seen=SEEN)
            router.maestro.learned.answered(each.key, outcome, router.now_s())
    return router


def decisions_us(router: Router, messages: list[dict[str, str]], rounds: int) -> list[float]:
    """Return how many microseconds each decision took, all its measuring included."""
    took_us = []
    for _ in range(rounds + 50):
        ask = Ask(history=messages, max_output_tokens=500, sla=SLA(latency_ms_p95=4_000, error_rate_max=0.02))
        started = time.perf_counter()
        decision = router.decide(ask)
        took_us.append((time.perf_counter() - started) * 1e6)
        assert len(decision.candidates) == len(MODELS)
    return took_us[50:]


def litellm_us(messages: list[dict[str, str]], rounds: int) -> tuple[str, dict[str, list[float]]]:
    """Return litellm's version, and what each of its strategies took."""
    asked = json.dumps({"models": MODELS, "messages": messages, "rounds": rounds})
    done = subprocess.run([PYTHON, WORKER], input=asked, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["version"], found["took_us"]


def percentile(values: list[float], share: float) -> float:
    """Return the value that so large a share is not above."""
    return sorted(values)[int(share * (len(values) - 1))]


def make_environment() -> None:
    """Install litellm in an environment of its own, as `make peers` does."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", PYTHON.parents[1]], check=True)
        subprocess.run(
            [PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "litellm"], check=True
        )


def show(name: str, values: list[float], base: float) -> None:
    """Print one row."""
    p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
    print(f"  {name:34} p50 {p50:7.0f} us   p99 {p99:7.0f} us   {p50 / base:5.1f}x")


def main(arguments: list[str]) -> None:
    """Measure and print."""
    rounds = int(next((each for each in arguments if each.isdigit()), "1000"))
    if "--peers" in arguments:
        make_environment()
    router = warm_router()
    for name, turns in TURNS.items():
        messages, ours, theirs, version = conversation(turns), [], {}, ""
        for _ in range(TAKES):
            ours += decisions_us(router, messages, rounds // TAKES)
            if PYTHON.exists():
                version, found = litellm_us(messages, rounds // TAKES)
                for strategy, values in found.items():
                    theirs.setdefault(strategy, []).extend(values)
        print(f"one decision between {len(MODELS)} endpoints, {name}:")
        base = percentile(ours, 0.5)
        show("maestro, price and SLA and cache", ours, base)
        for strategy, values in theirs.items():
            show(f"litellm {version} {strategy}", values, base)
    router.maestro.close()


if __name__ == "__main__":
    main(sys.argv[1:])
