"""Whether processes that share a cap get a fair part of it: real calls over HTTP, a bill kept by the provider.

`python tests/benchmarks/bench_shares.py [--times 20] [--spread 0.3] [--delay 0.02]`. Four processes begin together, or
`--spread` seconds one after the other, and ask for more than the cap is worth. A share is what a process was served, in
parts of an even share; printed are the lowest of each run's four, and how often one was below a half.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import Job, Nursery

from maestro_core.testing import FakeProvider, Reply

PROCESSES = 4
CALL_NANOS = 8 * 250 + 100 * 2_000  # eight tokens in, a hundred out, of gpt-5-mini
CASES = [
    ("4 x 16 threads, worth 10", Job(calls=16, threads=16, door="door"), 10),
    ("4 x 16 tasks, worth 10", Job(calls=16, tasks=16, door="door"), 10),
    ("4 x 64 tasks, worth 100", Job(calls=64, tasks=64, door="door"), 100),
]


def served(job, worth, *, spread_s, delay_s):
    """Return how many calls each process was served, and what the provider billed in calls."""
    cap = {"limit": f"{CALL_NANOS * worth / 1e9:.9f}", "per": "customer"}
    reply = Reply(input_tokens=8, output_tokens=100, delay_s=delay_s)
    with FakeProvider(reply) as provider, tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/maestro.db"
        with Nursery(provider, Path(folder), ledger=url, caps=[cap], wait_s=60) as nursery:
            workers = nursery.run(
                replace(job, attribution={"customer": "acme"}, together=True, late_s=number * spread_s)
                for number in range(PROCESSES)
            )
            counts = [sum(one.kind == "served" for one in worker.outcomes()) for worker in workers]
            kinds = Counter(one.kind for one in nursery.outcomes())
        return counts, provider.bill_nanos / CALL_NANOS, kinds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument(
        "--spread", type=float, default=0.0, help="seconds between the processes' first calls"
    )
    parser.add_argument("--delay", type=float, default=0.02, help="how long the provider takes, in seconds")
    parser.add_argument("--case", type=int, help="only this one")
    options = parser.parse_args()
    print(f"spread {options.spread:g} s, calls of {options.delay:g} s, {options.times} times")
    for number, (name, job, worth) in enumerate(CASES):
        if options.case not in (None, number):
            continue
        runs = [
            served(job, worth, spread_s=options.spread, delay_s=options.delay) for _ in range(options.times)
        ]
        lowest = sorted(min(counts) / (worth / PROCESSES) for counts, _, _ in runs)
        below = sum(low < 0.5 for low in lowest)
        bills = [bill for _, bill, _ in runs]
        print(
            f"{name}: lowest share {lowest[0]:.2f}, median {lowest[len(lowest) // 2]:.2f}; below a half in "
            f"{below} of {len(runs)} runs; served {min(sum(c) for c, _, _ in runs)} to {max(bills):g} of {worth}"
        )


if __name__ == "__main__":
    main()
