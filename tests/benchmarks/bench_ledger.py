"""How long reserve + settle take over five buckets. Run it: `python tests/benchmarks/bench_ledger.py [--calls N] [--threads N]`.

Aims: memory p50 <= 15 us, SQLite p50 <= 0.15 ms. Each run ends with the ledger's own audit.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Held, Hold, Meter, Settlement, new_key

LIMIT = 10**18
METERS = (
    Meter(),
    Meter(("team",), (), "month"),
    Meter(("customer",), (), "day"),
    Meter(("run",)),
    Meter(("agent",), (), "hour"),
)
USAGE = {"input_tokens": 1200, "output_tokens": 340, "cache_read_tokens": 1000}


def call(number):
    """Return the hold of one call: one of 4 teams, 100 customers, a run of ten calls."""
    dimensions = {
        "team": f"team-{number % 4}",
        "customer": f"customer-{number % 100}",
        "run": f"run-{number // 10}",
    }
    attribution = Attribution(dimensions, (("agent", "researcher"),))
    limits = tuple((meter, LIMIT) for meter in METERS)
    return Hold(new_key(), 5_000_000, "openai", "gpt-5-mini", attribution, limits)


def work(ledger, numbers, took_ns):
    """Reserve and settle, noting how long each pair took."""
    for number in numbers:
        hold = call(number)
        truth = Settlement(
            cost_nanos=3_210_000, usage=USAGE, sheet_nanos=3_210_000, price_id="openai:gpt-5-mini@2025-08-07"
        )
        started = time.perf_counter_ns()
        held = ledger.reserve(hold)
        ledger.settle(hold.key, truth)
        took_ns.append(time.perf_counter_ns() - started)
        assert isinstance(held, Held)


def measure(url, calls, threads):
    """Print one line of results for one ledger."""
    ledger = open_ledger(url)
    ledger.declare(METERS)
    work(ledger, range(500), [])
    took_ns = []
    shares = [range(500 + i, 500 + calls, threads) for i in range(threads)]
    workers = [threading.Thread(target=work, args=(ledger, share, took_ns)) for share in shares]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed_s = time.perf_counter() - started
    problems = ledger.check()
    ledger.close()
    cuts_us = [cut / 1000 for cut in statistics.quantiles(took_ns, n=100)]
    audit = "; ".join(problems[:3]) or "counters = journal + holds"
    print(
        f"{url.partition(':')[0]:<8} {threads:>3} thread(s)  p50 {cuts_us[49]:>8.1f} us  p99 {cuts_us[98]:>8.1f} us"
        f"  {calls / elapsed_s:>8,.0f} pairs/s  {audit}"
    )
    return not problems


def main():
    """Measure both ledgers; exit 1 if an audit finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for threads in options.threads:
            for url in ("memory:", f"sqlite:///{Path(folder) / f'{threads}.db'}"):
                good &= measure(url, options.calls, threads)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
