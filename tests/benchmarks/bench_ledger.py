"""How long reserve + settle take over five buckets. Run it: `python tests/benchmarks/bench_ledger.py [--calls N] [--threads N]`.

Aims: memory p50 <= 15 us, SQLite p50 <= 0.15 ms. Each run ends with the ledger's own audit.

Then SQLite from 1 and 4 processes, in turns with its floor, measured in the same run: what a bare BEGIN IMMEDIATE, an UPDATE of
one row and COMMIT take, twice, since a pair is two transactions; and what the disk takes to write one page through.
"""

import argparse
import multiprocessing
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing
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


def bare_pairs(path, calls, took_ns):
    """Note how long two transactions take that change one row each: the floor of a pair, locks and disk included."""
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        for _ in range(calls):
            started = time.perf_counter_ns()
            for _ in range(2):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("UPDATE counter SET value = value + 1 WHERE id = 1")
                connection.execute("COMMIT")
            took_ns.append(time.perf_counter_ns() - started)


def process(kind, path, calls, barrier, results):
    """Measure in a process of its own, all at once."""
    took_ns = []
    if kind == "floor":
        barrier.wait()
        bare_pairs(path, calls, took_ns)
    else:
        with closing(open_ledger(f"sqlite:///{path}")) as ledger:
            ledger.declare(METERS)
            first = os.getpid() * 1_000_000
            barrier.wait()
            work(ledger, range(first, first + calls), took_ns)
    results.put(took_ns)


def measure_processes(folder, kind, processes, calls):
    """Return how long each pair took, in nanoseconds, with so many processes at work."""
    path = Path(folder) / f"{kind}.db"
    if kind == "floor" and not path.exists():
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE counter (id INTEGER PRIMARY KEY, value INTEGER)")
            connection.execute("INSERT INTO counter VALUES (1, 0)")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    share = calls // processes
    workers = [
        context.Process(target=process, args=(kind, path, share, barrier, results)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    took_ns = [took for _ in workers for took in results.get(timeout=600)]
    for worker in workers:
        worker.join()
    return took_ns


def compare_with_floor(folder, calls):
    """Print pairs beside their floor, at 1 and 4 processes; three rounds in turns."""
    for processes in (1, 4):
        took_ns = {"floor": [], "ledger": []}
        for _ in range(3):
            for kind in took_ns:
                took_ns[kind] += measure_processes(folder, kind, processes, calls // 3)
        cuts_us = {
            kind: [cut / 1000 for cut in statistics.quantiles(each, n=100)] for kind, each in took_ns.items()
        }
        for kind, cuts in cuts_us.items():
            longest = max(took_ns[kind]) / 1e6
            print(
                f"{kind:<8} {processes:>3} process(es) p50 {cuts[49]:>8.1f} us  p99 {cuts[98]:>8.1f} us"
                f"  longest {longest:>7.1f} ms"
            )
        ratios = [cuts_us["ledger"][i] / cuts_us["floor"][i] for i in (49, 98)]
        print(f"ledger / floor at {processes} process(es): {ratios[0]:.1f} at p50, {ratios[1]:.1f} at p99")
    with closing(open_ledger(f"sqlite:///{Path(folder) / 'ledger.db'}")) as ledger:
        return not ledger.check()


def measure_disk(folder):
    """Print how long the disk takes to write a page through: what power-safe commits would cost each."""
    took_us = []
    with (Path(folder) / "page").open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter_ns()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            took_us.append((time.perf_counter_ns() - started) / 1000)
    print(f"disk     fsync of a page: p50 {statistics.median(took_us):,.0f} us")


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
        measure_disk(folder)
        good &= compare_with_floor(folder, options.calls)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
