"""What one process has learned about its endpoints from the calls that it made."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from .cachestate import CacheState, Seen
from .forks import fork_safe_lock
from .health import Health, Prior

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from .failures import Failure

__all__ = ["Learned", "Outcome"]

# Before anything was counted: the tokens of one byte of English, and the length of an answer.
_TOKENS_PER_BYTE = 0.25
_OUTPUT_TOKENS = 256.0
_WEIGHT = 4.0
_KEEP = 2 ** (-1 / 30)
# How many calls an endpoint must have had for others to be compared with it.
_PEER = 4.0
_MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an answered call showed.

    Args:
        latency_ms: Until the whole answer was there.
        ttft_ms: Until its first token, where it was streamed.
        probe: Whether it was the one call that a half-open breaker let through.
        agent: Who asked, since agents' answers differ in length.
        size: The bytes of its prompt.
        chain: The beginnings of its conversation.
        seen: What its reply said about the cache and the prompt; None if the provider reported nothing.
        output_tokens: The length of the answer; None likewise, or if it was cut.
    """

    latency_ms: float
    ttft_ms: float | None = None
    probe: bool = False
    agent: str = ""
    size: int = 0
    chain: Sequence[Hashable] = ()
    seen: Seen | None = None
    output_tokens: int | None = None


@dataclass(slots=True)
class _Mean:
    weight: float = 0.0
    mean: float = 0.0

    def add(self, value: float) -> None:
        self.weight = self.weight * _KEEP + 1
        self.mean += (value - self.mean) / self.weight

    def shrunk(self, prior: float) -> float:
        return (self.weight * self.mean + _WEIGHT * prior) / (self.weight + _WEIGHT)


class Learned:
    """Health, caches and lengths by endpoint. Hold `lock` while using any of it."""

    def __init__(self) -> None:
        self.lock = fork_safe_lock()
        self.health: dict[Hashable, Health] = {}
        self.caches = CacheState()
        self.calls_since_explored = 0
        self._density: defaultdict[Hashable, _Mean] = defaultdict(_Mean)
        self._outputs: defaultdict[tuple[Hashable, str], _Mean] = defaultdict(_Mean)
        self._chance = Random()  # noqa: S311 - spreads probes, guards nothing

    def input_tokens(self, key: Hashable, size: int) -> int:
        """Return how many tokens a prompt of so many bytes is expected to be."""
        found = self._density.get(key)
        return int(size * (found.shrunk(_TOKENS_PER_BYTE) if found else _TOKENS_PER_BYTE))

    def output_tokens(self, keys: Iterable[Hashable], agent: str) -> dict[Hashable, int]:
        """Return how long an answer is expected to be; with few of its own, an endpoint is taken to be like the others."""
        own = {key: self._outputs.get((key, agent)) for key in keys}
        known = [each.mean for each in own.values() if each and each.weight >= _PEER]
        prior = sum(known) / len(known) if known else _OUTPUT_TOKENS
        return {key: round(mean.shrunk(prior) if mean else prior) for key, mean in own.items()}

    def peers(self, keys: Iterable[Hashable], now_s: float) -> Prior | None:
        """Return what the latency of endpoints like these is, or None where too little is known."""
        found = [self.health[key].latency for key in keys if key in self.health]
        known = [each.mean for each in found if each.known(now_s) >= _PEER]
        return Prior(sum(known) / len(known)) if known else None

    def known(self, key: Hashable) -> Health:
        """Return what was learned of an endpoint; whoever was asked last is forgotten last."""
        found = self.health.get(key)
        if found is None:
            while (
                len(self.health) >= _MOST
            ):  # an application may have a key, and so an endpoint, for each user
                oldest = next(iter(self.health))
                del self.health[oldest]
                self._density.pop(oldest, None)
            found = self.health[key] = Health()
        return found

    def answered(self, key: Hashable, outcome: Outcome, now_s: float) -> None:
        """A call was answered."""
        health = self.known(key)
        health.latency.add(outcome.latency_ms, now_s)
        health.errors.add(now_s, failed=False)
        health.breaker.succeeded(now_s, probe=outcome.probe)
        if outcome.ttft_ms is not None:
            health.ttft.add(outcome.ttft_ms, now_s)
        if outcome.output_tokens:
            self._outputs[key, outcome.agent].add(outcome.output_tokens)
            if len(self._outputs) > _MOST:
                del self._outputs[next(iter(self._outputs))]
            decoding_ms = outcome.latency_ms - (outcome.ttft_ms or 0)
            health.speed.add(decoding_ms / outcome.output_tokens, now_s)
        if outcome.seen is not None:
            if outcome.size:
                self._density[key].add(outcome.seen.input_tokens / outcome.size)
            self.caches.learn(key, outcome.chain, outcome.seen, now_s)

    def failed(
        self,
        key: Hashable,
        failure: Failure,
        now_s: float,
        *,
        probe: bool,
        input_tokens: int,
        alone: bool = False,
    ) -> None:
        """A call failed.

        Args:
            key: The endpoint.
            failure: How.
            now_s: The time.
            probe: Whether it was the one call that a half-open breaker let through.
            input_tokens: How long its prompt was expected to be.
            alone: Whether there is no other endpoint.
        """
        health = self.known(key)
        if failure.kind == "context_overflow":
            known = health.overflowed_tokens
            health.overflowed_tokens = input_tokens if known is None else min(known, input_tokens)
        if failure.breaker == "ignores":
            health.breaker.leave(probe=probe)
            return
        health.errors.add(now_s, failed=True)
        if failure.breaker == "counts":
            health.breaker.failed(now_s, probe=probe, chance=self._chance, alone=alone)
        elif failure.retry_after_s is not None:
            health.breaker.pause(now_s + failure.retry_after_s)
        else:
            health.breaker.shut(now_s + failure.open_s)
