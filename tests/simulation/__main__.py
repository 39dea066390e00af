"""`make simulate`: play schedules until one breaks a promise, or as many as asked; or replay one with its trace."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from . import stores
from .world import run

_REPORT_S = 30


def main() -> int:
    """Return 1 if a schedule broke a promise."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, with its trace")
    parser.add_argument("--schedules", type=int, help="how many; without it, until it is interrupted")
    parser.add_argument("--start", type=int, help="the first seed; by default another one each time")
    parser.add_argument("--store", choices=sorted(stores.STORES), default="memory")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # overruns and losses are what schedules are full of
    with stores.opened(options.store) as open_store:
        if options.seed is not None:
            return replay(options.seed, open_store)
        start = options.start if options.start is not None else int(time.time()) * 1_000
        return play(start, options.schedules, open_store, options.store)


def replay(seed: int, open_store: stores.Open) -> int:
    """Play one schedule and print everything that happens in it."""
    trace: list[str] = []
    try:
        run(seed, open_store, trace)
    except Exception as error:  # noqa: BLE001 - whatever it is, the trace leads to it
        trace.append(f"VIOLATION {type(error).__name__}: {error}")
    print("\n".join(trace))
    return int(trace[-1].startswith("VIOLATION"))


def play(start: int, schedules: int | None, open_store: stores.Open, store: str) -> int:
    """Play schedules one after the other, and say now and then how far it is."""
    fates: Counter[str] = Counter()
    began_s = said_s = time.monotonic()
    seed = start
    try:
        while schedules is None or seed < start + schedules:
            try:
                fates.update(run(seed, open_store).fates.values())
            except Exception as error:  # noqa: BLE001
                print(f"VIOLATION in seed {seed}: {type(error).__name__}: {error}")
                print(f"replay it: make simulate SEED={seed} STORE={store}")
                return 1
            seed += 1
            if time.monotonic() - said_s > _REPORT_S:
                said_s = time.monotonic()
                say(seed - start, start, said_s - began_s, fates)
    except KeyboardInterrupt:
        pass
    say(seed - start, start, time.monotonic() - began_s, fates)
    return 0


def say(played: int, start: int, took_s: float, fates: Counter[str]) -> None:
    """Print one line."""
    ends = ", ".join(f"{count:,} {fate}" for fate, count in fates.most_common())
    print(
        f"{played:,} schedules from seed {start} in {took_s:,.0f} s, no violation; calls: {ends}", flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
