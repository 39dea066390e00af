"""What calls teach about an endpoint: how long it takes, how often it fails, and whether to ask it at all now.

Everything is on a clock that is passed in, in seconds, and nothing waits. Latency is a decayed log-normal estimate:
half of what is known stems from the last 30 calls, and half of it is forgotten in ten minutes without any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

__all__ = ["LET_IN_S", "Breaker", "Errors", "Forecast", "Health", "LogNormal", "Prior"]

_HALF_LIFE_CALLS = 30
_HALF_LIFE_S = 600.0
_KEEP = 2 ** (-1 / _HALF_LIFE_CALLS)

# How many calls a prior is worth, and how wide it is: the spread that providers' latencies are known to have.
_PRIOR_WEIGHT = 4.0
_PRIOR_SIGMA = 0.5
_LEAST_SIGMA = 0.02
_NORMAL = NormalDist()
_Z95 = _NORMAL.inv_cdf(0.95)


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected before enough calls were seen: the logarithm of milliseconds, its mean and spread."""

    mean: float
    sigma: float = _PRIOR_SIGMA

    @classmethod
    def of_p95(cls, latency_ms: float) -> Prior:
        """Return the prior whose 95th percentile is what was declared."""
        return cls(math.log(latency_ms) - _Z95 * _PRIOR_SIGMA)


@dataclass(frozen=True, slots=True)
class Forecast:
    """A predicted latency: log-normal, and how many calls it rests on."""

    mean: float
    sigma: float
    weight: float

    @property
    def p95_ms(self) -> int:
        """The 95th percentile in milliseconds."""
        return round(math.exp(self.mean + _Z95 * self.sigma))

    def chance(self, limit_ms: float) -> float:
        """Return the probability of an answer within a limit; few calls make it less sure."""
        wide = self.sigma * math.sqrt(1 + 1 / self.weight) if self.weight else self.sigma
        return _NORMAL.cdf((math.log(limit_ms) - self.mean) / wide)


@dataclass(slots=True)
class LogNormal:
    """An online estimate of a latency's distribution."""

    weight: float = 0.0
    mean: float = 0.0
    variance: float = 0.0
    at_s: float = 0.0

    def add(self, milliseconds: float, now_s: float) -> None:
        """Learn from one call."""
        value = math.log(max(milliseconds, 0.001))
        old = self._aged(now_s) * _KEEP
        self.weight = old + 1
        step = value - self.mean
        self.mean += step / self.weight
        self.variance = (old * self.variance + old / self.weight * step * step) / self.weight
        self.at_s = now_s

    def forecast(self, prior: Prior | None, now_s: float) -> Forecast | None:
        """Return what is expected of the next call, or None if nothing is known.

        Args:
            prior: What was declared, or what peers are like; worth four calls.
            now_s: The time.
        """
        weight = self._aged(now_s)
        if prior is None:
            if weight < 1:
                return None
            prior = Prior(self.mean)
        if not weight:
            return Forecast(prior.mean, prior.sigma, 0.0)
        total = weight + _PRIOR_WEIGHT
        mean = (weight * self.mean + _PRIOR_WEIGHT * prior.mean) / total
        # Each part's spread about its own mean. How far the means are apart is not spread: the calls are right.
        variance = (weight * self.variance + _PRIOR_WEIGHT * prior.sigma**2) / total
        return Forecast(mean, max(_LEAST_SIGMA, math.sqrt(variance)), total)

    def known(self, now_s: float) -> float:
        """Return how many calls the estimate is worth by now."""
        return self._aged(now_s)

    def _aged(self, now_s: float) -> float:
        return self.weight * 2 ** (-max(0.0, now_s - self.at_s) / _HALF_LIFE_S) if self.weight else 0.0


@dataclass(slots=True)
class Errors:
    """The share of calls that failed, decayed as latencies are."""

    weight: float = 0.0
    failed: float = 0.0
    at_s: float = 0.0

    def add(self, now_s: float, *, failed: bool) -> None:
        """Learn from one call."""
        keep = _KEEP * self._age(now_s)
        self.weight = self.weight * keep + 1
        self.failed = self.failed * keep + failed
        self.at_s = now_s

    def rate(self) -> float:
        """Return the share; 0 if nothing is known."""
        return self.failed / self.weight if self.weight else 0.0

    def least(self, now_s: float) -> float:
        """Return what the share is at least, one standard error below (Wilson's interval), or 0 if nothing is known.

        One failure among thirty calls does not show that one of fifty is too many.
        """
        weight = self.weight * self._age(now_s)
        if not self.failed or weight < 1:
            return 0.0
        rate, part = self.rate(), 1 / weight
        centre = rate + part / 2
        spread = math.sqrt(rate * (1 - rate) * part + part * part / 4)
        return max(0.0, (centre - spread) / (1 + part))

    def _age(self, now_s: float) -> float:
        return 2 ** (-max(0.0, now_s - self.at_s) / _HALF_LIFE_S) if self.weight else 1.0


# Three failures in a row, or half of at least ten lately, open a breaker; the first time for so long.
_ROW = 3
_SHARE = 0.5
_ENOUGH = 10
_SHARE_HALF_LIFE_S = 30.0
_OPEN_S = 5.0
_MOST_OPEN_S = 120.0
# A probe that is never heard of again does not close an endpoint for good.
_PROBE_S = 120.0
# Who limits rates refuses at once. A probe after a pause that was not refused for so long was let in: the calls that
# wait for it need not wait for its answer, which may take minutes.
LET_IN_S = 2.0


@dataclass(slots=True)
class Breaker:
    """Whether an endpoint may be asked: closed (yes), open (no), half-open (one call, to see).

    A pause that the endpoint asked for ends half-open as well: else all who waited for its end would go at once.
    """

    row: int = 0
    calls: float = 0.0
    failures: float = 0.0
    at_s: float = 0.0
    trips: int = 0
    open_until_s: float | None = None
    paused_until_s: float = -math.inf  # once that has passed, until a probe was let in: half-open
    probe_until_s: float = -math.inf

    @property
    def limited(self) -> bool:
        """Whether all that can keep calls away is that the endpoint asked to be left alone for a while."""
        return self.open_until_s is None

    def says(self, now_s: float) -> str:
        """Return why the endpoint is not to be asked now; empty if it may be."""
        if now_s < self.paused_until_s:
            return f"breaker:rate limited {_span(self.paused_until_s - now_s)}"
        if self.open_until_s is not None and now_s < self.open_until_s:
            return f"breaker:open {_span(self.open_until_s - now_s)}"
        return "breaker:probing" if now_s < self.probe_until_s else ""

    def opens_at_s(self, now_s: float) -> float:
        """Return when it may be asked again, at the earliest; never, for credentials that were rejected.

        A probe under way may end at any moment, so it does not count.
        """
        return max(now_s, self.paused_until_s, -math.inf if self.open_until_s is None else self.open_until_s)

    def enter(self, now_s: float, *, let_in_s: float = LET_IN_S) -> bool | None:
        """Ask to send a call; return whether it is the probe that decides, or None if it may not be sent.

        Args:
            now_s: The time.
            let_in_s: After how long a probe after a pause, if it has not been refused, counts as let in.
        """
        if self.says(now_s):
            return None
        if self.open_until_s is not None:
            self.probe_until_s = now_s + _PROBE_S
            return True
        if math.isinf(self.paused_until_s):
            return False
        if math.isinf(self.probe_until_s):
            self.probe_until_s = now_s + let_in_s
            return True
        self._let_in(now_s)
        return False

    def leave(self, *, probe: bool) -> None:
        """A call ended without saying anything about the endpoint."""
        if probe:
            self.probe_until_s = -math.inf

    def succeeded(self, now_s: float, *, probe: bool) -> None:
        """A call was answered. Only a probe closes what is open: an older answer says nothing about now."""
        self._count(now_s, failed=False)
        self.row = 0
        if probe:
            if self.open_until_s is not None:
                self.open_until_s, self.trips = None, 0
                self.calls = self.failures = 0.0
            self._let_in(now_s)

    def failed(self, now_s: float, *, probe: bool, chance: Random, alone: bool = False) -> None:
        """A call failed by the endpoint's fault; one that stands `alone` is asked again sooner, for want of another.

        A probe after a pause is a call like any other then: one failure does not open what was only limited.
        """
        self._count(now_s, failed=True)
        self.row += 1
        decides = probe and self.open_until_s is not None
        if self.open_until_s is not None and not probe:
            return  # it was sent before the breaker opened
        often = self.calls >= _ENOUGH and self.failures >= _SHARE * self.calls
        if decides or self.row >= _ROW or often:
            span = min(_OPEN_S if alone else _MOST_OPEN_S, _OPEN_S * 2**self.trips)
            self.open_until_s = now_s + span * chance.uniform(0.8, 1.2)
            self.trips += 1
        self.leave(probe=probe)

    def pause(self, until_s: float) -> None:
        """The endpoint asked to be left alone until then; that is no failure. It takes a new probe to see that it is over."""
        self.paused_until_s = max(self.paused_until_s, until_s)
        self.probe_until_s = -math.inf

    def shut(self, until_s: float) -> None:
        """The endpoint cannot be of use until then; for rejected credentials that is until they change."""
        self.open_until_s = max(self.open_until_s or until_s, until_s)
        self.probe_until_s = -math.inf

    def _let_in(self, now_s: float) -> None:
        """A probe was not refused, so the pause is over; but for one that was asked for since."""
        if now_s >= self.paused_until_s:
            self.paused_until_s = -math.inf
        self.leave(probe=True)

    def _count(self, now_s: float, *, failed: bool) -> None:
        keep = 2 ** (-max(0.0, now_s - self.at_s) / _SHARE_HALF_LIFE_S)
        self.calls = self.calls * keep + 1
        self.failures = self.failures * keep + failed
        self.at_s = now_s


@dataclass(slots=True)
class Health:
    """All that was learned about one endpoint."""

    breaker: Breaker = field(default_factory=Breaker)
    latency: LogNormal = field(default_factory=LogNormal)
    ttft: LogNormal = field(default_factory=LogNormal)
    speed: LogNormal = field(default_factory=LogNormal)  # milliseconds for one output token
    errors: Errors = field(default_factory=Errors)
    explored_s: float = -math.inf
    overflowed_tokens: int | None = None  # a prompt of that length was too long for it

    def seen_s(self) -> float:
        """Return when it was last heard of."""
        return max(self.latency.at_s, self.errors.at_s, self.explored_s)


def _span(seconds: float) -> str:
    if math.isinf(seconds):
        return "until its credentials change"
    return f"{seconds:.0f}s" if seconds >= 1 else f"{max(0.1, seconds):.1f}s"
