"""Workers make real calls on one ledger while others of them are killed; then the books are compared with the true bill.

`make drill` kills a hundred; `tests/test_crashes.py` a few. The seed says who is killed when.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # when it runs as a script

from processes import Job, Nursery, billed, booked  # noqa: E402

from maestro_core import Cap, Maestro  # noqa: E402
from maestro_core.testing import FakeProvider, Reply  # noqa: E402

CALL_NANOS = 8 * 250 + 100 * 2_000  # eight tokens in, a hundred out
LIMIT_NANOS = 100 * CALL_NANOS  # of each customer; four workers in a row are for the same one
JOBS = (
    Job(threads=4, door="core"),
    Job(threads=4, door="door"),
    Job(tasks=6, door="door"),
    Job(threads=2, door="handler"),
    Job(threads=2, door="agent"),
)


@dataclass(slots=True)
class Findings:
    """What a drill came to. `wrong` has a line for each promise that was broken."""

    seed: int
    kills: int
    stops: int
    requests: int = 0
    bill_nanos: int = 0
    booked_nanos: int = 0
    presumed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, what: str, *, holds: bool) -> None:
        """Note a promise that does not hold."""
        if not holds:
            self.wrong.append(what)


def drill(folder: Path, *, kills: int, seed: int, stop_s: float = 0.0) -> Findings:
    """Kill `kills` of the workers at random moments; with `stop_s`, also stop two of them for so long.

    Returns:
        What happened, and what was wrong.
    """
    chance = random.Random(seed)
    found = Findings(seed, kills, 2 if stop_s else 0)
    url = f"sqlite:///{folder}/maestro.db"
    limit = f"{LIMIT_NANOS / 1e9:.9f}"
    caps = [{"limit": limit, "per": "customer", "every": "month"}]

    def answer(_):
        return Reply(input_tokens=8, output_tokens=100, delay_s=chance.uniform(0, 0.06))

    with FakeProvider(answer) as provider:
        with Nursery(provider, folder, ledger=url, caps=caps, wait_s=2) as nursery:
            _work(nursery, chance, kills, stop_s)
            found.outcomes = Counter(outcome.kind for outcome in nursery.outcomes())
            served = [outcome.call for outcome in nursery.outcomes() if outcome.kind == "served"]
        provider.wait_idle()
        _compare(found, provider, url, served)
        with Nursery(provider, folder, ledger=url, caps=caps, wait_s=2) as nursery:
            nursery.start(Job(calls=5, attribution={"customer": "next"}), name="next").wait()
            kinds = [outcome.kind for outcome in nursery.outcomes()]
            found.check(f"the next process is served: {kinds}", holds=kinds == ["served"] * 5)
    return found


def _work(nursery: Nursery, chance: random.Random, kills: int, stop_s: float) -> None:
    started = 0

    def start():
        nonlocal started
        job = JOBS[started % len(JOBS)]
        customer = {"customer": f"c{started // 4}"}
        started += 1
        return nursery.start(
            Job(
                threads=job.threads,
                tasks=job.tasks,
                door=job.door,
                attribution=customer,
                seed=started,
                pause_s=0.05,
            )
        )

    workers = [start() for _ in range(4)]
    for number in range(kills):
        time.sleep(chance.uniform(0.02, 0.2))
        if stop_s and number in {kills // 3, 2 * kills // 3}:
            stopped = workers[chance.randrange(4)]
            stopped.send(signal.SIGSTOP)
            time.sleep(stop_s)
            stopped.send(signal.SIGCONT)
        place = chance.randrange(4)
        workers[place].kill()
        workers[place] = start()
    for worker in workers:
        worker.kill()


def _compare(found: Findings, provider: FakeProvider, url: str, served: list[str]) -> None:
    bill = billed(provider)
    # The next process finds out by itself what the dead left behind.
    with closing(Maestro(ledger=url, caps=[Cap("1", per="customer")])) as maestro:
        ledger = maestro.ledger
        book = booked(ledger)
        kinds = Counter(record.kind for record in ledger.records())
        customers = {record.run: record.attribution.value("customer") for record in ledger.records()}
        found.check("no hold is left held", holds=all(each.state == "presumed" for each in ledger.holds()))
        found.check("counters, journal and holds agree", holds=ledger.check() == [])
    per_customer: Counter[str] = Counter()
    for name, nanos in bill.items():
        found.check(f"call {name}: billed {nanos}, booked {book[name]}", holds=book[name] >= nanos)
        per_customer[customers.get(name, "?")] += nanos
    for name in served:
        found.check(
            f"served call {name}: booked {book[name]}, billed {bill[name]}", holds=book[name] == bill[name]
        )
    for customer, nanos in per_customer.items():
        found.check(f"{customer}: billed {nanos} under a cap of {LIMIT_NANOS}", holds=nanos <= LIMIT_NANOS)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
    found.check(f"integrity: {integrity}", holds=integrity == "ok")
    found.requests, found.presumed = len(provider.requests), kinds["presumed"]
    found.bill_nanos, found.booked_nanos = bill.total(), book.total()


def main() -> int:
    """Run one drill and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument(
        "--stop", type=float, default=30.0, help="for how many seconds two workers are stopped"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = drill(Path(folder), kills=options.kills, seed=options.seed, stop_s=options.stop)
    print(f"seed {found.seed}: {found.kills} workers killed, {found.stops} stopped for {options.stop:g} s")
    print(
        f"requests {found.requests}; true bill ${found.bill_nanos / 1e9:.6f}; ledger ${found.booked_nanos / 1e9:.6f}"
    )
    print(f"calls presumed spent {found.presumed}; outcomes {json.dumps(found.outcomes)}")
    for line in found.wrong:
        print(f"WRONG: {line}")
    print("every promise held" if not found.wrong else f"{len(found.wrong)} promises broken")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
