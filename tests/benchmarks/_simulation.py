"""Four workloads for 28 days, and what may go wrong with them; token sizes are those of real traces.

Each call's tokens are drawn from the Azure LLM inference traces (examples/data/README.md), at $2.50 and $10 per million.
The burstiness from minute to minute is that of the traces; the shape of days and weeks is made up, as the traces are
an hour long: a working day's hump, nights at a twelfth, weekends at three tenths.
"""

from __future__ import annotations

import csv
import gzip
import math
import random
from dataclasses import dataclass
from pathlib import Path

DAY = 1_440
WEEK = 7 * DAY
START = 29_374_560 // WEEK * WEEK + 4 * DAY  # a Monday: 1970 began on a Thursday
DATA = Path(__file__).parents[2] / "examples/data"


def costs(name):
    """Return what each call of a trace costs, in nano-dollars."""
    with gzip.open(DATA / f"azure_llm_trace_{name}.csv.gz", "rt") as file:
        return [
            int(row["ContextTokens"]) * 2_500 + int(row["GeneratedTokens"]) * 10_000
            for row in csv.DictReader(file)
        ]


@dataclass(frozen=True)
class Workload:
    """One series: whose tokens, how much a day, how bursty, and when."""

    name: str
    trace: str
    usd_per_day: float
    sd: float
    phi: float
    nightly: bool = False

    def shape(self, minute):
        """Return the intensity of a minute of the week, about 1 on average over a working day."""
        if self.nightly:
            return 48.0 if 120 <= minute % DAY < 150 else 0.0
        hour = minute % DAY / 60
        hump = math.exp(-(((hour - 14) / 4) ** 2))
        weekend = (minute // DAY) % 7 >= 5
        return (0.15 + 1.95 * hump) * (0.3 if weekend else 1.0)


WORKLOADS = (
    Workload("chat", "conv", 72, 0.21, 0.82),
    Workload("code", "code", 38, 0.60, 0.0),
    Workload("sparse agent", "code", 1.4, 0.60, 0.0),
    Workload("nightly batch", "conv", 7.8, 0.21, 0.82, nightly=True),
)


class Source:
    """Draws a workload's minutes."""

    def __init__(self, workload, seed):
        self.workload = workload
        self._random = random.Random(f"{workload.name} {seed}")
        self._costs = costs(workload.trace)
        mean = sum(self._costs) / len(self._costs)
        whole = sum(workload.shape(m) for m in range(DAY)) / DAY
        self._rate = workload.usd_per_day * 1e9 / mean / DAY / whole
        self._noise = 0.0

    def minute(self, at, times=1.0, like=None):
        """Return the nano-dollars of a minute; `times` as many calls, at the intensity of the minute `like`."""
        w, chance = self.workload, self._random
        self._noise = w.phi * self._noise + math.sqrt(1 - w.phi**2) * w.sd * chance.gauss(0, 1)
        rate = (
            self._rate * w.shape(at if like is None else like) * math.exp(self._noise - w.sd**2 / 2) * times
        )
        return sum(chance.choices(self._costs, k=_poisson(chance, rate)))


def _poisson(chance, mean):
    if mean > 60:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, chance.random()
    while product > limit:
        count += 1
        product *= chance.random()
    return count


def growth(minute):
    """Return what an agent costs in its n-th minute that calls every six seconds, with 2,000 more tokens each time."""
    return sum(min(200_000, 4_000 + 2_000 * (10 * minute + call)) for call in range(10)) * 2_500


@dataclass(frozen=True)
class Runaway:
    """What goes wrong: for so many minutes, `spend(source, at, n)` instead of the usual."""

    name: str
    minutes: int
    spend: object


RUNAWAYS = (
    Runaway("retry loop x10", 120, lambda source, at, n: source.minute(at, 10)),
    Runaway("prompt growth", 60, lambda source, at, n: source.minute(at) + growth(n)),
    Runaway("leak x1.5", 24 * 60, lambda source, at, n: source.minute(at, 1.5)),
    Runaway("model swap x5", 360, lambda source, at, n: 5 * source.minute(at)),
    Runaway("weekend burst", 360, lambda source, at, n: source.minute(at, 1, like=at - 2 * DAY)),
)


def begins(workload, runaway, chance):
    """Return the minute of the 28 days at which a runaway begins: on days 15 to 26, when the workload runs at all."""
    day = chance.randrange(14, 26)
    if runaway.name == "weekend burst":
        day = chance.choice((19, 26))  # Saturdays
    if workload.nightly:
        return day * DAY + 120 + chance.randrange(5)
    return day * DAY + chance.randrange(DAY)
