"""How many calls cost more than was held for them: an hour of production traffic, again and again, through fitting doors.

`python tests/benchmarks/bench_overruns.py [--rounds N]`. Each round replays the 28,185 requests of two services (the data
of example 02) for customers of its own, whose caps suffice for half of what they ask for. A request's text has four bytes for
each token that the provider counted; nothing else is known of it before it is sent. The provider obeys the output limit that the
door sets, and no other. The bill is added up apart from Maestro, per customer, and compared with the cap.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import heapq
import logging
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from maestro_core import Cap, CapExceeded, Maestro, Usage, attribution
from maestro_core.types import Call

DATA = Path(__file__).parents[2] / "examples" / "data"
INPUT_NANOS, OUTPUT_NANOS = 250, 2_000  # gpt-5-mini, as its maker publishes it
LIMIT = 2_048  # the output limit that each request carries
SECONDS_PER_TOKEN = 0.03
CUSTOMERS = 20
TEXT = "text" * 20_000


def requests():
    """Return (arrival in seconds, tokens sent, tokens answered), in order."""
    rows = []
    for name in ("azure_llm_trace_code.csv.gz", "azure_llm_trace_conv.csv.gz"):
        with gzip.open(DATA / name, "rt", encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                arrived = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC).timestamp()
                rows.append((arrived, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    rows.sort()
    return rows


def cost(sent, answered):
    return INPUT_NANOS * sent + OUTPUT_NANOS * answered


class Replay:
    """One round."""

    def __init__(self, maestro, rows, number):
        self.maestro, self.rows, self.number = maestro, rows, number
        self.bill = Counter()
        self.counts = Counter()
        self.ends = []

    def run(self):
        for index, row in enumerate(self.rows):
            self.settle(row[0])
            self.send(index, row)
        self.settle(float("inf"))

    def send(self, index, row):
        arrived, sent, answered = row
        customer = f"customer-{self.number}-{index % CUSTOMERS}"
        call = Call(provider="openai", model="gpt-5-mini", input=TEXT[: 4 * sent], max_output_tokens=LIMIT)
        try:
            with attribution(customer=customer):
                held = self.maestro.doors.reserve(call)
        except CapExceeded as error:
            self.counts[error.reason] += 1
            return
        limit = held.fitted_output_tokens or LIMIT
        self.counts["fitted"] += held.fitted_output_tokens is not None
        self.counts["cut"] += limit < answered
        answered = min(answered, limit)
        end = arrived + answered * SECONDS_PER_TOKEN, index
        heapq.heappush(self.ends, (end, held, sent, answered))
        self.bill[customer] += cost(sent, answered)

    def settle(self, until_s):
        while self.ends and self.ends[0][0][0] <= until_s:
            _, held, sent, answered = heapq.heappop(self.ends)
            record = self.maestro.settle(held, Usage(input_tokens=sent, output_tokens=answered))
            self.counts["calls"] += 1
            self.counts["overruns"] += record.overrun


async def main():
    """Print what happened. On an event loop's thread a sync door fits or refuses at once, so a replay need not wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("maestro").setLevel(logging.CRITICAL)  # half of the calls are refused
    rows = requests()
    limit = sum(cost(*row[1:]) for row in rows) // CUSTOMERS // 2
    counts, broken, spent = Counter(), 0, 0
    began = time.monotonic()
    for number in range(options.rounds):
        maestro = Maestro(ledger="memory:", caps=[Cap(f"{limit / 1e9:.9f}", per="customer")])
        replay = Replay(maestro, rows, number)
        replay.run()
        counts += replay.counts
        broken += sum(bill > limit for bill in replay.bill.values())
        spent += sum(replay.bill.values())
        assert maestro.ledger.check() == []
        maestro.close()
    took = time.monotonic() - began
    calls = counts["calls"]
    print(f"{len(rows) * options.rounds:,} requests, {calls:,} sent, {took:,.0f} s: {dict(counts)}")
    print(f"overruns per million calls: {counts['overruns'] / calls * 1e6:.1f}")
    print(f"caps that the bill passed: {broken} of {CUSTOMERS * options.rounds}")
    print(f"spent of the caps: {spent / (limit * CUSTOMERS * options.rounds):.2%}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
