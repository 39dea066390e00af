"""How much output to hold for when the door can set the request's output limit."""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .forks import fork_safe_lock
from .money import PICOS_PER_NANO
from .types import Fit

if TYPE_CHECKING:
    from fractions import Fraction

    from .types import Call, Cost

__all__ = ["Outputs", "fit", "tokens_for"]

_KEPT = 200
_ENOUGH = 50
_HALVES = 3
_MOST_SERIES = 10_000


@dataclass(slots=True)
class _Series:
    latest: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))
    ordered: list[int] = field(default_factory=list)

    def add(self, tokens: int) -> None:
        if len(self.latest) == _KEPT:
            self.ordered.remove(self.latest[0])
        self.latest.append(tokens)
        insort(self.ordered, tokens)

    def p99(self) -> int:
        return self.ordered[(len(self.ordered) * 99 - 1) // 100]


class Outputs:
    """What models have answered lately: the last 200 output lengths of each (provider, model, agent)."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._lock = fork_safe_lock()

    def add(self, call: Call, tokens: int) -> None:
        """Remember the length of a complete answer."""
        with self._lock:
            name = _series_of(call)
            series = self._series.get(name)
            if series is None:
                series = self._series[name] = _Series()
            series.add(tokens)
            if len(self._series) > _MOST_SERIES:
                del self._series[next(iter(self._series))]

    def comfort(self, call: Call, ceiling: int) -> int:
        """Return the output tokens that hardly any answer exceeds: 1.5 x p99, or half the ceiling before 50 samples."""
        with self._lock:
            series = self._series.get(_series_of(call))
            if series is None or len(series.ordered) < _ENOUGH:
                return -(-ceiling // 2)
            return min(ceiling, series.p99() * _HALVES // 2 + 1)


def _series_of(call: Call) -> tuple[str, str, str]:
    return call.provider, call.model, call.attribution.value("agent")


def fit(call: Call, bound: Cost, ceiling: int, least: int, outputs: Outputs) -> Fit | None:
    """Return how far the hold for a call may shrink, or None where its price does not depend on the output.

    Args:
        call: The call, with its attribution.
        bound: Its worst case at the ceiling.
        ceiling: Output tokens of one completion at most: the request's own limit, else the model's.
        least: Output tokens below which an answer is not worth its input. A call's own, larger floor (a thinking
            budget) counts unless the request's limit is below that too: whoever set it has seen that it suffices.
        outputs: What the model answered lately.
    """
    rate = _picos_per_token(call, bound)
    if not rate or ceiling <= 0:
        return None
    ceiling_nanos = _nanos(rate * ceiling)
    least = min(ceiling, max(least, call.least_output_tokens if call.least_output_tokens < ceiling else 1))
    return Fit(
        fixed_nanos=max(0, bound.nanos - ceiling_nanos),
        ceiling_nanos=ceiling_nanos,
        comfort_nanos=_nanos(rate * max(least, outputs.comfort(call, ceiling))),
        least_nanos=_nanos(rate * least),
    )


def tokens_for(call: Call, bound: Cost, output_nanos: int) -> int:
    """Return how many output tokens of each completion an amount pays for; rounded down."""
    rate = _picos_per_token(call, bound)
    return int(output_nanos * PICOS_PER_NANO // rate) if rate else 0


def _picos_per_token(call: Call, bound: Cost) -> int | Fraction:
    """Return what one more token of output costs at most, all completions and attempts together."""
    rates = [line.picos_per_unit for line in bound.lines if line.kind.startswith("output")]
    return max(rates) * call.n * call.attempts if rates else 0


def _nanos(picos: int | Fraction) -> int:
    return int(-(-picos // PICOS_PER_NANO))
