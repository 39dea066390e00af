"""What a long SQLite ledger costs. Run it: `python tests/benchmarks/bench_ledger_scale.py [--records N] [--pairs N]`.

One file gets N settled calls (a million) of a year, with 10,000 customers each day's buckets; another one is empty. Then,
side by side: reserve + settle, reports, opening, a new meter, the audit. Aims at a million records: a call costs at most
1.2 times what it costs in an empty ledger; a report over everything takes at most 100 ms.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from journals import write_journal

from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Hold, Meter, Settlement, new_key

LIMIT = 10**18
DAY_US = 24 * 3_600_000_000
CUSTOMERS = 10_000
METERS = (
    Meter(),
    Meter(("team",), (), "month"),
    Meter(("customer",)),
    Meter(("run",)),
    Meter(("agent",), (), "hour"),
)
USAGE = {"input_tokens": 1200, "output_tokens": 340, "cache_read_tokens": 1000}
BLOCK = 250  # pairs measured in one ledger before it is the other's turn


def pair(ledger, number):
    """Reserve and settle one call; return microseconds. A run has ten calls, customers take turns."""
    dimensions = {
        "team": f"team-{number % 4}",
        "customer": f"customer-{number * 7919 % CUSTOMERS}",
        "run": f"fresh-{number // 10}",
    }
    hold = Hold(
        new_key(), 5_000_000, "openai", "gpt-5-mini", Attribution(dimensions, (("agent", "researcher"),)),
        tuple((meter, LIMIT) for meter in METERS),
    )  # fmt: skip
    truth = Settlement(cost_nanos=3_210_000, usage=USAGE, price_id="openai:gpt-5-mini@2025-08-07")
    started = time.perf_counter_ns()
    ledger.reserve(hold)
    ledger.settle(hold.key, truth)
    return (time.perf_counter_ns() - started) / 1000


def timed(work):
    """Return what it returns, and the milliseconds it took."""
    started = time.perf_counter()
    found = work()
    return found, (time.perf_counter() - started) * 1000


def measure_pairs(ledgers, pairs):
    """Print how long pairs take in each ledger, in turns."""
    took = {name: [] for name in ledgers}
    for first in range(0, pairs, BLOCK):
        for name, ledger in ledgers.items():
            took[name] += [pair(ledger, number) for number in range(first, first + BLOCK)]
    p50 = {}
    for name, each in took.items():
        cuts = statistics.quantiles(each[BLOCK:], n=100)
        p50[name] = cuts[49]
        mean = statistics.fmean(each[BLOCK:])
        print(f"  pair, {name:<7} p50 {cuts[49]:>7.0f} us   p99 {cuts[98]:>7.0f} us   mean {mean:>7.0f} us")
    print(f"  pair, long / empty: {p50['long'] / p50['empty']:.2f} at p50 (aim: 1.2)")


def measure_reports(ledger):
    """Print how long reports over everything take, the best of three; and the processor's part of it."""
    for by in ((), ("team",), ("model",), ("team", "model"), ("customer",), ("team", "customer"), ("run",)):
        took, used = [], []
        for _ in range(3):
            started = time.process_time()
            rows, each = timed(lambda by=by: ledger.sums(by))
            took.append(each)
            used.append((time.process_time() - started) * 1000)
        note = " (aim: 100)" if by == ("team",) else ""
        print(
            f"  report by {','.join(by) or 'nothing':<14} {min(took):>8.1f} ms{note}, processor {min(used):>8.1f} ms"
            f"   {len(rows):,} rows"
        )


def measure_new_meter(url):
    """Print how long a new meter takes to fill, and how long a caller in between waits at most."""
    with closing(open_ledger(url)) as ledger, closing(open_ledger(url)) as other:
        waits, stop = [], threading.Event()

        def call():
            while not stop.is_set():
                waits.append(pair(other, len(waits)) / 1000)
                time.sleep(0.001)

        caller = threading.Thread(target=call)
        pair(other, 0)
        caller.start()
        for meter in (Meter(("model",)), Meter(("customer", "model")), Meter(("run", "model"))):
            waits.clear()
            _, took = timed(lambda meter=meter: ledger.declare([meter]))
            print(
                f"  new meter {meter.id:<15} {took:>8.0f} ms, while other calls took {statistics.median(waits):.1f} ms,"
                f" the longest {max(waits):.0f} ms"
            )
        stop.set()
        caller.join()


def main():
    """Build both ledgers and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        long, empty = Path(folder) / "long.db", Path(folder) / "empty.db"
        now_us = open_ledger("memory:").now_us()
        _, took = timed(
            lambda: write_journal(
                long, options.records, since_us=now_us - 365 * DAY_US, until_us=now_us, customers=CUSTOMERS
            )
        )
        print(f"  {options.records:,} records written in {took / 1000:.0f} s")
        print(f"  file: {long.stat().st_size / options.records:,.0f} bytes per record, hourly sums included")
        urls = {"long": f"sqlite:///{long}", "empty": f"sqlite:///{empty}"}
        for name, url in urls.items():
            _, took = timed(lambda url=url: open_ledger(url).close())
            print(f"  open, {name:<7} {took:>8.1f} ms, newest counters checked")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ledgers = {name: open_ledger(url) for name, url in urls.items()}
        for ledger in ledgers.values():
            ledger.declare(METERS)
        measure_pairs(ledgers, options.pairs)
        measure_reports(ledgers["long"])
        print(
            f"  memory: at most {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MiB more"
        )
        for ledger in ledgers.values():
            ledger.close()
        measure_new_meter(urls["long"])
        with closing(open_ledger(urls["long"])) as ledger:
            problems, took = timed(ledger.check)
        print(
            f"  whole audit {took / 1000:>6.1f} s: {'; '.join(problems[:3]) or 'counters = journal + holds'}"
        )
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
