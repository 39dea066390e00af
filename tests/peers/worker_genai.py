"""genai-prices' own calculator on the grid. Runs in an environment of its own."""

from __future__ import annotations

import json
import resource
import sys
import time
import timeit
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

_CONTEXTS = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}


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
from genai_prices import Usage, calc_price  # noqa: E402 - its import is measured

import_s, import_mb = time.perf_counter() - started, memory_mb()


def price(provider: str, model: str, usage: Usage, tier: str | None, at: datetime) -> tuple[str, str]:
    """Return the dollars as text (or why there are none), and the model that was found."""
    try:
        found = calc_price(
            usage,
            model,
            provider_id=provider,
            genai_request_timestamp=at,
            price_context=_CONTEXTS[tier] if tier else None,
        )
    except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
        return f"error: {type(error).__name__}", ""
    return str(found.total_price), found.model.id


def main() -> None:
    """Read the grid; write a price for each cell, and what the calculator weighs."""
    started = time.perf_counter()
    calc_price(Usage(input_tokens=1), "gpt-5.4", provider_id="openai")
    first_s, priced_mb = time.perf_counter() - started, memory_mb()
    task = json.load(sys.stdin)
    at = datetime.fromisoformat(task["at"])
    usages = {kind: Usage(**each["counts"]) for kind, each in task["kinds"].items()}
    tiers = {kind: each["tier"] for kind, each in task["kinds"].items()}
    found = [price(c["provider"], c["model"], usages[c["kind"]], tiers[c["kind"]], at) for c in task["cells"]]
    took_us = (
        timeit.timeit(lambda: price("openai", "gpt-5.4", usages["plain"], None, at), number=2_000)
        / 2_000
        * 1e6
    )
    measures = {"version": version("genai-prices"), "price_us": took_us, "import_s": import_s, "first_s": first_s,
                "import_mb": import_mb - before_mb, "priced_mb": priced_mb - before_mb}  # fmt: skip
    sys.stdout.write("\n")  # the answer is the last line, whatever a library printed before
    json.dump({"usd": found, "measures": measures}, sys.stdout)


if __name__ == "__main__":
    main()
