"""Maestro on the grid, in a process of its own like the others."""

from __future__ import annotations

import json
import resource
import sys
import time
import timeit
from datetime import datetime
from fractions import Fraction
from pathlib import Path


def memory_mb() -> float:
    """Return the memory that the process has now; the peak, where that cannot be read."""
    try:
        return (
            int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            * resource.getpagesize()
            / 2**20
        )
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


before_mb, started = memory_mb(), time.perf_counter()
from maestro_core.prices import price, price_book, worst_case  # noqa: E402 - its import is measured
from maestro_core.usage import Usage  # noqa: E402

import_s, import_mb = time.perf_counter() - started, memory_mb()

from maestro_core.errors import PriceNotFound  # noqa: E402
from maestro_core.prices.names import find  # noqa: E402


def answer(provider: str, model: str, usage: Usage, tier: str | None, at: datetime) -> dict[str, object]:
    """Return the exact picodollars as text, what is unpriced, or why there is no price."""
    try:
        entry = find(provider, model)
    except PriceNotFound as error:
        return {"refused": "provider" if "no provider" in str(error) else "name"}
    try:
        cost = price(provider, model, usage, at=at, tier=tier)
    except PriceNotFound:
        return {"refused": "tier", "id": entry.model.id}
    picos = Fraction(sum(line.picos for line in cost.lines))
    return {"picos": str(picos), "unpriced": cost.unpriced, "id": entry.model.id}


def main() -> None:
    """Read the grid; write an answer for each cell, and what Maestro weighs."""
    started = time.perf_counter()
    price("openai", "gpt-5.4", Usage(input_tokens=1))
    first_s, priced_mb = time.perf_counter() - started, memory_mb()
    task = json.load(sys.stdin)
    at = datetime.fromisoformat(task["at"])
    usages = {kind: Usage(**each["counts"]) for kind, each in task["kinds"].items()}
    tiers = {kind: each["tier"] for kind, each in task["kinds"].items()}
    found = [
        answer(c["provider"], c["model"], usages[c["kind"]], tiers[c["kind"]], at) for c in task["cells"]
    ]
    plain, number = usages["plain"], 20_000
    price_us = min(timeit.repeat(lambda: price("openai", "gpt-5.4", plain, at=at), number=number, repeat=5))
    bound_us = min(
        timeit.repeat(
            lambda: worst_case("openai", "gpt-5.4", input_tokens=10_000, output_tokens=1_000),
            number=number,
            repeat=5,
        )
    )
    measures = {
        "version": price_book(), "price_us": price_us / number * 1e6, "bound_us": bound_us / number * 1e6,
        "import_s": import_s, "first_s": first_s, "import_mb": import_mb - before_mb, "priced_mb": priced_mb - before_mb,
    }  # fmt: skip
    sys.stdout.write("\n")  # the answer is the last line, whatever a library printed before
    json.dump({"found": found, "measures": measures}, sys.stdout)


if __name__ == "__main__":
    main()
