"""How long a price, a bound and an estimate take, and what the price book weighs. Run it; it asserts nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
import timeit
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from maestro_core.estimate import input_bound
from maestro_core.prefixes import History, Prefixes
from maestro_core.prices import price, worst_case
from maestro_core.types import Call
from maestro_core.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

_CALLS = 20_000
_AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


def micros(call: Callable[[], object], calls: int = _CALLS) -> float:
    """Return the best mean of seven rounds, in microseconds."""
    call()
    return min(timeit.repeat(call, number=calls, repeat=7)) / calls * 1e6


def turn(length: int, text: str) -> float:
    """Return what it takes to find what is known of a conversation before a call, and to learn its count after it."""
    messages = [
        {
            "role": "ai" if i % 2 else "human",
            "content": f"{i} {text}",
            "name": None,
            "tool_calls": [],
            "more": {},
        }
        for i in range(length + 1)
    ]
    prefixes, usage = Prefixes(), Usage(input_tokens=100 * length, output_tokens=50)
    prefixes.learn(Call(provider="openai", model="gpt-5.4", history=messages[: length - 1]), usage, None)

    def go() -> None:
        call = Call(provider="openai", model="gpt-5.4", history=History(messages[:length]))
        prefixes.known(call)
        prefixes.learn(call, usage, messages[length])

    return micros(go, calls=_CALLS // (10 * length))


def fresh(statement: str) -> float:
    """Return how long a statement takes in a new process, in milliseconds, without starting Python."""
    code = f"import time; t = time.perf_counter(); {statement}; print((time.perf_counter() - t) * 1e3)"
    took = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    return min(took)


def main() -> None:
    """Print one line per measurement."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    price("openai", "gpt-5.4", Usage(input_tokens=1))
    first_ms = (time.perf_counter() - started) * 1e3
    after_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    plain = Usage(
        input_tokens=12_000, cache_read_tokens=8_000, output_tokens=3_000, output_reasoning_tokens=2_400
    )
    audio = Usage(input_tokens=1_500, input_audio_tokens=500, output_tokens=500, output_audio_tokens=300)
    body = {
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
    }
    long = "The quick brown fox. " * 25
    history = [{"role": "user", "content": long}] * 40
    rows = {
        "price, text": micros(lambda: price("openai", "gpt-5.4", plain)),
        "price, text, dated": micros(lambda: price("openai", "gpt-5.4", plain, at=_AT)),
        "price, audio": micros(lambda: price("openai", "gpt-audio", audio)),
        "bound": micros(lambda: worst_case("openai", "gpt-5.4", input_tokens=12_000, output_tokens=3_000)),
        "Usage(...)": micros(
            lambda: Usage(input_tokens=12_000, cache_read_tokens=8_000, output_tokens=3_000)
        ),
        "Usage.parse": micros(lambda: Usage.parse("openai", body)),
        "input_bound, 40 messages": micros(lambda: input_bound(history)),
        **{f"a turn, {length} messages": turn(length, long) for length in (2, 20, 200)},
        "a turn, 20 x 20 kB": turn(20, long * 40),
        "an empty call": micros(lambda: None),
    }
    for name, took_us in rows.items():
        print(f"{name:28} {took_us:8.2f} us")
    print(f"{'import maestro_core.prices':28} {fresh('import maestro_core.prices'):8.1f} ms")
    print(f"{'first price of a process':28} {first_ms:8.1f} ms")
    print(f"{'memory of the first price':28} {(after_kb - before_kb) / 1024:8.1f} MB")


if __name__ == "__main__":
    main()
