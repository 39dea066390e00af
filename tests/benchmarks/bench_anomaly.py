"""How soon runaways are told, what they have cost by then, and how often nothing is wrong: in a simulation.

Four workloads for 28 days, of which 14 to learn; five kinds of runaway at random times of the rest. The same minutes are
shown to Maestro's detector and to what users have today: burn rates against a monthly budget (Google SRE's windows, a
budget of 1.3 times the mean), and the daily total against mean + 3 standard deviations. Seeds below 800 were used for
tuning; those from 800 on were not.

Burned is what a runaway has cost beyond the usual from its first minute to the one that tells it, in dollars and as a share
of the workload's mean working day; the median is over the runaways that were found, of all workloads. Beside it stands
what whoever reacts after the first minute would have burned, over the same runaways: nobody who sees minutes burns less.

Run: python tests/benchmarks/bench_anomaly.py [seeds, default 801,802] [trials of each kind, workload and seed, default 10]
     python tests/benchmarks/bench_anomaly.py costs       what a tool call, a minute of a series and 10,000 series cost
     python tests/benchmarks/bench_anomaly.py sparse      what is found in series of few calls
     python tests/benchmarks/bench_anomaly.py delay       from a real runaway's first call to the webhook, over HTTP
"""

from __future__ import annotations

import copy
import random
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import defaultdict, deque

from _simulation import DAY, RUNAWAYS, START, WORKLOADS, Source, Workload, begins, costs

from maestro_core.anomaly import Burn, Series
from maestro_core.clock import SystemClock
from maestro_core.loops import Guard

WARM_UP = 14 * DAY
# What of a minute's spend is beyond the usual.
EXCESS = {"retry loop x10": 0.9, "leak x1.5": 1 / 3, "model swap x5": 0.8, "weekend burst": 0.7}


class Ours:
    """Maestro's detector, without a least amount."""

    name = "maestro"

    def __init__(self, workload):
        self._series = Series(START)
        self._told = ""

    def add(self, nanos):
        found = self._series.add(nanos)
        if found is None:
            return False
        self._told = "" if found.kind == "recovered" else found.kind
        return bool(self._told)

    @property
    def busy(self):
        return self._told == "spike"  # while a leak is told, a spike is told besides


class Begun(Ours):
    """Maestro's detector as it begins on a ledger of two weeks that nobody watched: from the totals of hours or quarters."""

    def __init__(self, workload, span):
        super().__init__(workload)
        self.name = f"maestro, begun on {span} minutes' totals"
        self._span, self._spent, self._seen = span, 0, 0
        self._call = statistics.fmean(costs(workload.trace))

    def add(self, nanos):
        if self._seen >= WARM_UP:
            return super().add(nanos)
        self._seen += 1
        self._spent += nanos
        if self._seen % self._span == 0:
            calls = round(self._spent / self._call)
            self._series.learn(START + self._seen - self._span, self._span, self._spent, calls)
            self._spent = 0
        return False


class BudgetBurn:
    """Multi-window burn rates against a monthly budget, as for service levels: 14.4, 6, 3 and 1 times."""

    name = "monthly burn rate"
    rules = ((14.4, 60, 5), (6, 360, 30), (3, 1_440, 120), (1, 4_320, 360))

    def __init__(self, workload):
        self._pace = 1.3 * workload.usd_per_day * 1e9 * 5.6 / 7 / DAY  # weekends cost less
        self._minutes = deque(maxlen=4_320)
        self._sums = dict.fromkeys({w for _, *windows in self.rules for w in windows}, 0.0)
        self._quiet = 0

    def add(self, nanos):
        seen = self._minutes
        for window in self._sums:
            self._sums[window] += nanos - (seen[-window] if len(seen) >= window else 0)
        seen.append(nanos)
        fires = any(
            all(self._sums[w] > times * self._pace * w for w in windows) for times, *windows in self.rules
        )
        first, self._quiet = fires and not self._quiet, 60 if fires else max(0, self._quiet - 1)
        return first

    @property
    def busy(self):
        return self._quiet > 0


class DailySigma:
    """The total of a day against the 14 before it: told at midnight, as billing data is at best."""

    name = "daily 3 sigma"
    busy = False

    def __init__(self, workload):
        self._days, self._today, self._minute = deque(maxlen=14), 0, 0

    def add(self, nanos):
        self._today += nanos
        self._minute += 1
        if self._minute % DAY:
            return False
        today, self._today = self._today, 0
        known = len(self._days) >= 7 and statistics.fmean(self._days) + 3 * statistics.stdev(self._days)
        self._days.append(today)
        return bool(known) and today > known


DETECTORS = (Ours, lambda w: Begun(w, 15), lambda w: Begun(w, 60), BudgetBurn, DailySigma)


def simulate(workload, seed, trials, detectors=DETECTORS):
    """Yield (detector, kind of runaway or "", minutes until told or None, shares of a day burned: then, in the first minute)."""
    source, chance = Source(workload, seed), random.Random(f"{seed} {workload.name}")
    detectors = [make(workload) for make in detectors]
    plan = defaultdict(list)
    for runaway in RUNAWAYS:
        if not (workload.nightly and runaway.name == "weekend burst"):
            for _ in range(trials):
                plan[begins(workload, runaway, chance)].append(runaway)
    day = workload.usd_per_day * 1e9
    for minute in range(28 * DAY):
        for runaway in plan.get(minute, ()):
            yield from trial(runaway, copy.deepcopy(source), minute, copy.deepcopy(detectors), day)
        nanos = source.minute(minute)
        for detector in detectors:
            if detector.add(nanos) and minute >= WARM_UP:
                yield detector.name, "", None, 0.0, 0.0


def trial(runaway, source, minute, detectors, day):
    waiting = {detector.name: detector for detector in detectors if not detector.busy}
    burned, least, usual = 0.0, 0.0, copy.deepcopy(source)
    # Billing is looked at until the end of the day after.
    for n in range(runaway.minutes + 2 * DAY - (minute + runaway.minutes) % DAY):
        if n < runaway.minutes:
            nanos = runaway.spend(source, minute + n, n)
            burned += (
                nanos * EXCESS[runaway.name] if runaway.name in EXCESS else nanos - usual.minute(minute + n)
            )
        else:
            nanos = source.minute(minute + n)
        least = least if n else burned / day
        for name in list(waiting):
            # A detector that sees minutes has until the end of the runaway; then it would be chance.
            if n >= runaway.minutes and name != DailySigma.name:
                del waiting[name]
                yield name, runaway.name, None, 0.0, least
            elif waiting[name].add(nanos):
                del waiting[name]
                yield name, runaway.name, n + 1, burned / day, least
        if not waiting:
            return
    for name in waiting:
        yield name, runaway.name, None, 0.0, least


# What may be burned; where the first minute alone burns more, nobody can do it.
AIM = 0.02


def report(seeds, trials):
    results, false = defaultdict(list), defaultdict(int)
    for seed in seeds:
        for workload in WORKLOADS:
            for name, kind, *found in simulate(workload, seed, trials):
                if kind:
                    results[name, kind].append((workload, *found))
                else:
                    false[name, workload.name] += 1
    days = len(seeds) * 14
    print(f"seeds {seeds}; {days * len(WORKLOADS)} series-days without a runaway")
    for name in dict.fromkeys(name for name, _ in results):
        each = [false[name, workload.name] / days for workload in WORKLOADS]
        print(f"\n{name}: {statistics.fmean(each):.3f} false alerts per series and day (", end="")
        print(", ".join(f"{w.name} {rate:.3f}" for w, rate in zip(WORKLOADS, each, strict=True)), end=")\n")
        print(
            f"  {'':16} recall  minutes: median    p90   burned: median of a day    $  in the first minute   trials"
        )
        mine = {runaway.name: results[name, runaway.name] for runaway in RUNAWAYS}
        mine["all"] = [one for found in mine.values() for one in found]
        mine[f"first min < {AIM:.0%}"] = [one for one in mine["all"] if one[-1] < AIM]
        for kind, found in mine.items():
            row(kind, found)
    print(f"\n{Ours.name}, by workload: recall, median minutes, burned (in the first minute)")
    for runaway in RUNAWAYS:
        cells = [cell([one for one in results[Ours.name, runaway.name] if one[0] is w]) for w in WORKLOADS]
        print(
            f"  {runaway.name:16}",
            " | ".join(f"{w.name}: {c}" for w, c in zip(WORKLOADS, cells, strict=True) if c),
        )


def row(kind, found):
    hits = [
        (minutes, burned, burned * w.usd_per_day, least) for w, minutes, burned, least in found if minutes
    ]
    if not hits:
        print(f"  {kind:16} {0:6.3f} {'':67} {len(found):9}")
        return
    minutes, burned, usd, least = zip(*hits, strict=True)
    print(
        f"  {kind:16} {len(hits) / len(found):6.3f} {statistics.median(minutes):16.0f} {sorted(minutes)[int(0.9 * len(hits))]:6d}"
        f" {statistics.median(burned):23.1%} {statistics.median(usd):5.2f} {statistics.median(least):19.1%} {len(found):9}"
    )


def cell(found):
    hits = [(minutes, burned, least) for _, minutes, burned, least in found if minutes]
    if not found:
        return ""
    minutes, burned, least = map(statistics.median, zip(*hits, strict=True)) if hits else (0, 0, 0)
    return f"{len(hits) / len(found):.2f}, {minutes:.0f}, {burned:.1%} ({least:.1%})"


def sparse(seeds, trials):
    """Print what is found in series of few calls: a call more is then a large part of what is usual."""
    mean = statistics.fmean(costs("code"))
    for calls in (1, 3, 10, 30, 100):
        workload = Workload(f"{calls} calls an hour", "code", 24 * calls * mean / 1e9, 0.6, 0.0)
        found, false = defaultdict(list), 0
        for seed in seeds:
            for name, kind, minutes, *_ in simulate(workload, seed, trials, [Ours]):
                false += name == Ours.name and not kind
                found[kind].append(minutes)
        print(f"{workload.name:18} {false / 14 / len(seeds):.3f} false alerts a day", end="")
        for kind in ("retry loop x10", "leak x1.5"):
            hits = [minutes for minutes in found[kind] if minutes]
            median = f"{statistics.median(hits):.0f} min" if hits else "-"
            print(f"; {kind}: {len(hits) / len(found[kind]):.2f} of {len(found[kind])}, {median}", end="")
        print(flush=True)


def per_call_us(act, count=20_000):
    return min(timed(act, count) for _ in range(5))


def timed(act, count):
    began = time.thread_time_ns()  # this thread's own, whatever else the machine does
    for n in range(count):
        act(n)
    return (time.thread_time_ns() - began) / count / 1_000


def measure():
    guard, scope = Guard(SystemClock()), ("run", (("agent", "boss"),))
    text = "some results: " + "lorem ipsum dolor 12345 " * 5

    def tool(n):
        guard.ask(scope, n)
        guard.begin(scope)
        guard.end(scope, "search", guard.asked({"query": "x", "limit": n}), f"{text}{n}", failed=False)

    series = Series(START)
    print(f"loop guard, one turn with one tool: {per_call_us(tool):.1f} us")
    print(
        f"a minute of a series: {per_call_us(lambda n: series.add(5e6)):.1f} us (once a minute, on no call's path)"
    )
    burn = Burn()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for n in range(10_000):
        burn.observe(f"customer={n}", START, 10**7)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"memory: {(size - before) / 10_000:,.0f} bytes per series, {(size - before) / 1e6:.0f} MB for 10,000"
    )
    began = time.perf_counter()
    for n in range(10_000):
        burn.observe(f"customer={n}", START + 1, 10**7)
    print(f"a minute of 10,000 series: {1_000 * (time.perf_counter() - began):.0f} ms")
    with tempfile.TemporaryDirectory() as folder:
        ledgers(f"sqlite:///{folder}/ledger.db")


def ledgers(url, customers=10_000):
    """Print what a call pays, and what those pay who look at a ledger with many customers, on threads of their own."""
    from maestro_core import Budget, Maestro, Usage, attribution

    def spend():
        for n in range(customers):
            with (
                attribution(customer=str(n)),
                maestro.call(provider="openai", model="gpt-5-mini", input="hi", max_output_tokens=10) as call,
            ):
                call.settle(Usage(input_tokens=100))

    maestro = Maestro(ledger=url, alerts={"detect": False})
    spend()
    maestro.close()
    maestro = Maestro(
        ledger=url, budgets=[Budget("1000", per="customer", every="month")], alerts={"log": False}
    )
    record = next(iter(maestro.ledger.records()))
    settled = maestro.incidents.maestro_settled
    print(f"of a call's path, for budgets and series: {per_call_us(lambda n: settled(record)):.1f} us")
    looks = {"budgets": maestro.thresholds.look, "series": maestro.watch.look}
    for look in looks.values():
        look()
    for what, look in looks.items():
        maestro.watch._minute -= 1
        began = time.perf_counter()
        look()
        took_ms = 1_000 * (time.perf_counter() - began)
        print(f"a look at {customers:,} {what}: {took_ms:.0f} ms, on a thread of its own")
    maestro.close()


def delay():
    import json
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from langchain.agents import create_agent
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    from maestro_core import Maestro
    from maestro_core.testing import FakeProvider, Reply
    from maestro_langchain import MaestroCallbackHandler

    arrived, got = [], threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            arrived.append(
                (time.perf_counter(), json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            )
            got.set()
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    @tool
    def search(query: str) -> str:
        """Search."""
        return "nothing found"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    stuck = Reply(tool_calls=[("search", {"query": "x"})], input_tokens=1_000, output_tokens=50, delay_s=0.2)
    for on_loop in ("alert", "halt"):
        arrived.clear()
        got.clear()
        maestro = Maestro(ledger="memory:", alerts={"webhook": url, "log": False}, on_loop=on_loop)
        with FakeProvider([*[stuck] * 12, "I give up."]) as provider:
            model = ChatOpenAI(model="gpt-5-mini", base_url=provider.openai_url, api_key="x", max_retries=0)
            agent = create_agent(model, [search], name="boss")
            began = time.perf_counter()
            try:
                agent.invoke(
                    {"messages": [("user", "hi")]},
                    {"callbacks": [MaestroCallbackHandler(maestro)], "recursion_limit": 50},
                )
            except Exception as error:  # noqa: BLE001 - the halt is the point
                print(f"  ended by {type(error).__name__}")
            calls = len(provider.requests)
        got.wait(10)
        maestro.close()
        print(
            f"on_loop={on_loop}: webhook {arrived[0][0] - began:.2f} s after the first call (0.2 s per answer),"
            f" {calls} calls, {len(arrived)} alert"
        )
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["costs"]:
        measure()
    elif arguments[:1] == ["delay"]:
        delay()
    elif arguments[:1] == ["sparse"]:
        sparse((801, 802, 803), 15)
    else:
        report(
            [int(seed) for seed in (arguments or ["801,802"])[0].split(",")], int((arguments[1:] or [10])[0])
        )
