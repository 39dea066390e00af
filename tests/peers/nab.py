"""The detector of spend on the Numenta Anomaly Benchmark: 58 public series that have nothing to do with money.

Each value is taken as what a series spent in that interval, spread evenly over its minutes; a negative one as nothing. The
detector is the one that ships: no look-ahead, constant state, and blind to what falls. It says yes or no. For NAB, which
chooses one threshold over scores, it runs at several sensitivities beside each other: a row's score is the least sensitive
that tells of it. NAB's own code (`nab.sweeper` of the checkout) scores, and chooses thresholds. "As it ships" chooses none.
The threshold is tuned on the files whose name's MD5 is odd; the others are held out. NAB's table chooses it on all of them.

Run, with Maestro and `pip install 'pandas<3'` in an environment of its own (NAB's code needs it):

    python tests/peers/nab.py PATH_OF_A_CHECKOUT_OF_NAB
"""

from __future__ import annotations

import csv
import json
import random
import statistics
import sys
from datetime import datetime
from hashlib import md5
from itertools import pairwise
from multiprocessing import Pool
from pathlib import Path

from maestro_core.anomaly import Series
from maestro_core.anomaly import series as module

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - NAB's times have no zone
SHIPPED = 1.0
SENSITIVITIES = (0.8, SHIPPED, 1.4, 2.0, 3.0, 4.0)
TESTS, LEAK = module._TESTS, module._LEAK_DEVIATIONS
PROFILES = ("standard", "reward_low_FP_rate", "reward_low_FN_rate")


def read(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [datetime.fromisoformat(row["timestamp"]) for row in rows], [float(row["value"]) for row in rows]


def ours(path):
    """Return a score for each row: the least sensitive detector that tells of it, on a scale from 0 to 1."""
    times, values = read(path)
    scores = [0.0] * len(values)
    for sensitivity in SENSITIVITIES:
        for row in told(times, values, sensitivity):
            scores[row] = sensitivity / SENSITIVITIES[-1]
    return scores


def told(times, values, sensitivity):
    module._TESTS = tuple(
        (keep, 1 + (multiple - 1) * sensitivity, deviations * sensitivity, kind)
        for keep, multiple, deviations, kind in TESTS
    )
    module._LEAK_DEVIATIONS = LEAK * sensitivity
    minutes = [int((at - EPOCH).total_seconds()) // 60 for at in times]
    length = max(1, int(statistics.median(b - a for a, b in pairwise(minutes))))
    series = Series(minutes[0])
    for row, (minute, value) in enumerate(zip(minutes, values, strict=True)):
        series.skip(minute)  # over what is missing
        each = [series.add(max(0.0, value) * 1e9 / length) for _ in range(length)]
        if any(found and found.kind != "recovered" for found in each):
            yield row


def null(path):
    return [0.5] * len(read(path)[0])


def by_chance(path):
    random.seed(42)
    return [random.uniform(0, 1) for _ in read(path)[0]]


class Judge:
    """NAB's own scorer over a set of files."""

    def __init__(self, checkout):
        sys.path.insert(0, str(checkout))
        from nab.sweeper import Sweeper

        self._sweeper = Sweeper
        self.files = sorted(json.loads((checkout / "labels/combined_windows.json").read_text()))
        windows = json.loads((checkout / "labels/combined_windows.json").read_text())
        self._windows = {
            file: [tuple(map(datetime.fromisoformat, w)) for w in windows[file]] for file in self.files
        }
        self._times = {file: read(checkout / "data" / file)[0] for file in self.files}
        profiles = json.loads((checkout / "config/profiles.json").read_text())
        self._costs = {name: profiles[name]["CostMatrix"] for name in PROFILES}

    def curve(self, scores, files, profile):
        """Return NAB's score over these files at each threshold, from 0 (nothing is told) to 100 (perfect)."""
        costs = self._costs[profile]
        sweeper = self._sweeper(probationPercent=0.15, costMatrix=costs)
        points = []
        for file in files:
            points += sweeper.calcSweepScore(self._times[file], scores[file], self._windows[file], file)
        curve = sweeper.calcScoreByThreshold(points)
        nothing, perfect = curve[0].score, sum(len(self._windows[file]) for file in files) * costs["tpWeight"]
        return {row.threshold: 100 * (row.score - nothing) / (perfect - nothing) for row in curve}


def at(curve, threshold):
    """Return the score at the smallest threshold of the curve that is no smaller."""
    return curve[min(known for known in curve if known >= threshold)]


def main(checkout):
    judge = Judge(checkout)
    tuned = [file for file in judge.files if int(md5(Path(file).name.encode()).hexdigest(), 16) % 2]  # noqa: S324 - no secret
    held = [file for file in judge.files if file not in tuned]
    print(
        f"{len(judge.files)} files, {len(tuned)} to tune on, {len(held)} held out; standard / low FP / low FN"
    )
    for detector in (ours, null, by_chance):
        with Pool(2) as pool:
            paths = [checkout / "data" / file for file in judge.files]
            scores = dict(zip(judge.files, pool.map(detector, paths, chunksize=1), strict=True))
        for how in ("as it ships", "tuned on half", "tuned on all, as NAB's table is"):
            if how == "as it ships" and detector is not ours:
                continue
            cells = []
            for files in (judge.files, held):
                for profile in PROFILES:
                    chosen = judge.curve(scores, tuned if "half" in how else judge.files, profile)
                    threshold = SHIPPED / SENSITIVITIES[-1] if "ships" in how else max(chosen, key=chosen.get)
                    cells.append(at(judge.curve(scores, files, profile), threshold))
            whole, apart = (" / ".join(f"{cell:5.1f}" for cell in half) for half in (cells[:3], cells[3:]))
            print(f"{detector.__name__:10} {how:32} all {whole}   held out {apart}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "labels").is_dir():
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
