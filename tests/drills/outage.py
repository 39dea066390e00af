"""An outage over HTTP: the primary of three endpoints fails in four ways in turn, under concurrent calls.

For each trouble: a burst that meets it; once the breaker is open, waves of so many calls in flight, every other one to the
fallback without a router, so that whatever else the machine does falls on both; and the return after recovery. The calls
of a wave start one after the other within the time that an answer takes: what keeps a core busy would measure the core.

Run: python tests/drills/outage.py [calls] [rounds] [500] [hangs] [streams] [429]; without a name, all four.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

from maestro_core import Maestro
from maestro_core.testing import FakeProvider, Reply
from maestro_langchain import RoutedChatModel

DELAY_S = 8.0  # as answers of some hundred tokens take; a wave of 200 is then 25 calls in a second
LONGEST_S = 300.0  # of one trouble; it takes about two minutes
FINE = {"text": "a short answer", "input_tokens": 400, "output_tokens": 60}
TROUBLES = {
    "answers 500": Reply(status=500),
    "hangs": Reply(**FINE, hang_s=math.inf),
    "drops streams": Reply(**FINE, cut_after=0),
    "sends 429": Reply(status=429, retry_after=30),
}


@dataclass
class Burst:
    """What a number of calls that started together saw."""

    latencies_ms: list[float] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)


@dataclass
class Seen:
    """What one trouble did."""

    name: str
    meeting: Burst
    diverted: list[Burst]
    alone: list[Burst]
    returned: Burst
    asked_meeting: int
    asked_open: int
    waited_s: float

    @property
    def failed(self) -> list[BaseException]:
        """Every error that a caller saw."""
        bursts = [self.meeting, *self.diverted, *self.alone, self.returned]
        return [error for burst in bursts for error in burst.failed]

    @property
    def added(self) -> float:
        """By how much a call took longer than the fallback itself, once the breaker was open."""
        return self.added_ms / median_ms(self.alone)

    @property
    def added_ms(self) -> float:
        """The same in milliseconds, between the medians of all calls."""
        return median_ms(self.diverted) - median_ms(self.alone)


def median_ms(bursts: list[Burst]) -> float:
    """Return the median of all calls of some bursts."""
    return statistics.median(latency for burst in bursts for latency in burst.latencies_ms)


class Outage:
    """Three endpoints, the cheapest first in everything: the primary, its fallback, and a dear third."""

    def __init__(self, *, timeout_s: float = 1.5, delay_s: float = DELAY_S) -> None:
        self.well = Reply(**FINE, delay_s=delay_s)
        self._timeout_s = timeout_s
        self.unrouted_nanos = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        enter = self._stack.enter_context
        self.providers = [enter(FakeProvider(self.well)) for _ in range(3)]
        primary, second, third = self.providers
        self.maestro = Maestro(ledger="memory:")
        self._stack.callback(self.maestro.close)
        self.fallback = self._chat(second, "gpt-5-mini")
        claude = ChatAnthropic(
            model="claude-opus-4-8",
            base_url=third.anthropic_url,
            api_key="none",
            max_tokens=200,
            max_retries=0,
        )
        self.model = RoutedChatModel(
            endpoints=[self._chat(primary, "gpt-5-nano"), self.fallback, claude], maestro=self.maestro
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def _chat(self, provider: FakeProvider, model: str) -> ChatOpenAI:
        return ChatOpenAI(
            model=model, base_url=provider.openai_url, api_key="none", max_tokens=200, max_retries=0,
            stream_usage=True, timeout=self._timeout_s if model == "gpt-5-nano" else 60,
        )  # fmt: skip

    @property
    def primary(self) -> FakeProvider:
        return self.providers[0]

    @property
    def bill_nanos(self) -> int:
        """What all three bill, once nothing is under way."""
        for provider in self.providers:
            provider.wait_idle()
        return sum(provider.bill_nanos for provider in self.providers)

    async def burst(self, calls: int, *, stream: bool, model: object = None, over_s: float = 0.0) -> Burst:
        """Start so many calls, all at once or spread over some seconds."""
        burst = Burst()

        async def one(number: int) -> None:
            await asyncio.sleep(over_s * number / calls)
            began, target = time.perf_counter(), model or self.model
            try:
                if stream:
                    chunks = [chunk async for chunk in target.astream("How do batteries age?")]
                    answer = sum(chunks[1:], chunks[0])
                else:
                    answer = await target.ainvoke("How do batteries age?")
            except Exception as error:  # noqa: BLE001 - counted
                burst.failed.append(error)
                return
            if answer.text != FINE["text"]:
                burst.failed.append(AssertionError(f"a wrong answer: {answer.text!r}"))
            burst.latencies_ms.append((time.perf_counter() - began) * 1_000)
            burst.chosen.append(answer.response_metadata.get("maestro", {}).get("chosen", ""))

        await asyncio.gather(*map(one, range(calls)))
        return burst

    async def trouble(self, name: str, calls: int, rounds: int = 1) -> Seen:
        """Let the primary fail in one way, recover, and be found again."""
        stream, primary = name == "drops streams", self.primary
        primary.reply = TROUBLES[name]
        before = len(primary.requests)
        meeting = await self.burst(calls, stream=stream)
        between = len(primary.requests)
        waves = [await self.wave(calls, stream=stream) for _ in range(rounds)]
        diverted, alone = [[*each] for each in zip(*waves, strict=True)]
        after = len(primary.requests)
        primary.reply = self.well
        began, returned = time.monotonic(), Burst()
        while "gpt-5-nano" not in returned.chosen and time.monotonic() - began < 60:
            await self.sleep(0.25)
            found = await self.burst(1, stream=stream)
            returned.chosen += found.chosen
            returned.failed += found.failed
        waited_s = time.monotonic() - began
        found = await self.burst(calls, stream=stream)
        returned.failed += found.failed
        returned.chosen = found.chosen
        asked = between - before, after - between
        return Seen(name, meeting, diverted, alone, returned, *asked, waited_s)

    async def wave(self, calls: int, *, stream: bool) -> tuple[Burst, Burst]:
        """Have so many calls in flight, every other one to the fallback itself, off Maestro's books."""
        half, over_s = calls // 2, self.well.delay_s
        routed = self.burst(half, stream=stream, over_s=over_s)
        alone = self.burst(half, stream=stream, over_s=over_s, model=self.fallback)
        found = await asyncio.gather(routed, alone)
        self.unrouted_nanos += (
            len(found[1].latencies_ms) * self.providers[1].charges[-1].nanos
        )  # all are alike
        return found

    async def sleep(self, seconds: float) -> None:
        """Wait for a breaker; a test moves its clock instead."""
        await asyncio.sleep(seconds)


async def main(names: list[str], calls: int, rounds: int) -> int:
    """Run the drill; return how many calls failed."""
    failed = 0
    with Outage(timeout_s=2 * DELAY_S) as outage:
        healthy = await outage.burst(calls, stream=False, over_s=DELAY_S)
        print(
            f"{calls} calls in flight, all well: {set(healthy.chosen)}, median {median_ms([healthy]):.0f} ms"
        )
        for name in names:
            async with asyncio.timeout(LONGEST_S):
                seen = await outage.trouble(name, calls, rounds)
            failed += len(seen.failed)
            show(seen, calls)
        bill_nanos = outage.bill_nanos - outage.unrouted_nanos
        report = outage.maestro.report(by="model")
        print(report)
        print(
            f"the providers bill ${bill_nanos / 1e9:.6f}; Maestro counts ${report.total}, what it could not know at its hold"
        )
    return failed


def show(seen: Seen, calls: int) -> None:
    """Print what one trouble did."""
    slowest = max(latency for burst in seen.diverted for latency in burst.latencies_ms)
    print(
        f"primary {seen.name}: {len(seen.failed)} calls failed; asked {seen.asked_meeting} times before its breaker"
        f" opened, {seen.asked_open} times after\n"
        f"  then {median_ms(seen.diverted):.0f} ms (slowest {slowest:.0f}) against the fallback's own"
        f" {median_ms(seen.alone):.0f} ms: {seen.added_ms:+.0f} ms, {seen.added:+.1%}\n"
        f"  back {seen.waited_s:.1f} s after recovery, {seen.returned.chosen.count('gpt-5-nano')} of {calls} calls",
        flush=True,
    )
    for error in seen.failed[:3]:
        print("   ", repr(error)[:200])


def chosen(words: list[str]) -> list[str]:
    """Return the troubles that the words name, or all."""
    return [name for name in TROUBLES if any(word in name for word in words)] or list(TROUBLES)


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[1:] if each.isdigit() and each not in {"500", "429"}]
    words = [each for each in sys.argv[1:] if not each.isdigit() or each in {"500", "429"}]
    sys.exit(1 if asyncio.run(main(chosen(words), *[*numbers, *(200, 2)[len(numbers) :]])) else 0)
