"""An outage over HTTP: the primary of three endpoints fails in four ways in turn, under concurrent calls.

For each trouble: a burst that meets it, bursts once the breaker is open, each followed by one of the fallback without a
router, and the return after recovery. Run: python tests/drills/outage.py [calls] [rounds]
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

DELAY_S = 1.0  # as short answers of real models take
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
        return median_ms(self.diverted) / median_ms(self.alone) - 1


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

    async def burst(self, calls: int, *, stream: bool, model: object = None) -> Burst:
        """Start so many calls at once."""
        burst = Burst()

        async def one() -> None:
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

        await asyncio.gather(*(one() for _ in range(calls)))
        return burst

    async def trouble(self, name: str, calls: int, rounds: int = 1) -> Seen:
        """Let the primary fail in one way, recover, and be found again."""
        stream, primary = name == "drops streams", self.primary
        primary.reply = TROUBLES[name]
        before = len(primary.requests)
        meeting = await self.burst(calls, stream=stream)
        between = len(primary.requests)
        diverted, alone = [], []
        for _ in range(rounds):
            diverted.append(await self.burst(calls, stream=stream))
            alone.append(await self.without_router(calls, stream=stream))
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

    async def without_router(self, calls: int, *, stream: bool) -> Burst:
        """Ask the fallback itself, off Maestro's books."""
        before = self.bill_nanos
        burst = await self.burst(calls, stream=stream, model=self.fallback)
        self.unrouted_nanos += self.bill_nanos - before
        return burst

    async def sleep(self, seconds: float) -> None:
        """Wait for a breaker; a test moves its clock instead."""
        await asyncio.sleep(seconds)


async def main(calls: int, rounds: int) -> int:
    """Run the drill; return how many calls failed."""
    failed = 0
    with Outage(timeout_s=8.0) as outage:
        await outage.burst(calls, stream=False)  # opens the connections
        healthy = await outage.burst(calls, stream=False)
        print(
            f"{calls} concurrent calls, all well: {set(healthy.chosen)}, median {median_ms([healthy]):.0f} ms"
        )
        for name in TROUBLES:
            seen = await outage.trouble(name, calls, rounds)
            failed += len(seen.failed)
            print(
                f"primary {name:13}: {len(seen.failed)} calls failed; asked {seen.asked_meeting} times before its breaker"
                f" opened, {seen.asked_open} times after; then {median_ms(seen.diverted):.0f} ms against the fallback's"
                f" own {median_ms(seen.alone):.0f} ms ({seen.added:+.0%}); back {seen.waited_s:.1f} s after recovery,"
                f" {seen.returned.chosen.count('gpt-5-nano')} of {calls} calls"
            )
            for error in seen.failed[:3]:
                print("   ", repr(error)[:200])
        bill_nanos = outage.bill_nanos - outage.unrouted_nanos
        report = outage.maestro.report(by="model")
        print(report)
        print(
            f"the providers bill ${bill_nanos / 1e9:.6f}; Maestro counts ${report.total}, what it could not know at its hold"
        )
    return failed


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[1:]]
    sys.exit(1 if asyncio.run(main(*[*numbers, *(200, 3)[len(numbers) :]])) else 0)
