"""The detector that Maestro brings: each series against its own habits, or its like's while it is young."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .baseline import DAY
from .series import Series

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .detector import Finding

__all__ = ["Burn"]

# After a longer silence the minutes between are not gone through one by one.
_LONGEST_SILENCE = DAY
_PRIOR_EVERY = 60
_FEWEST = 3


class Burn:
    """Burn rates in three windows, and a running sum for slow leaks, against a learned week.

    Args:
        least_nanos: What a spike or a leak has to have cost beyond the usual to be told.
    """

    name = "burn"

    def __init__(self, *, least_nanos: int = 0) -> None:
        self._least = least_nanos
        self._series: dict[str, Series] = {}
        self._priors: dict[str, tuple[int, float]] = {}  # by dimension: when it was found, what it is

    def observe(self, series: str, minute: int, spent_nanos: int) -> Finding | None:
        """Look at what a series has spent in a minute."""
        state = self._series.get(series)
        if state is None:
            state = self._series[series] = Series(minute, least_nanos=self._least)
        if minute < state.minute:
            return None
        if minute - state.minute > _LONGEST_SILENCE:
            state.skip(minute)
        prior = 0.0 if state.grown else self._prior(series.partition("=")[0], minute)
        found = None
        while state.minute < minute:
            found = state.add(0.0, prior) or found
        return state.add(float(spent_nanos), prior) or found

    def learn(self, minute: int, minutes: int, spent: Mapping[str, tuple[int, int]]) -> list[str]:
        """Take in the past, which nobody watched; return the series that were learned.

        Args:
            minute: When it began.
            minutes: For how long: one or several quarters of an hour.
            spent: What each series spent in it, and by how many calls; those left out spent nothing.
        """
        for name in spent:
            if name not in self._series:
                self._series[name] = Series(minute, least_nanos=self._least)
        for name, state in self._series.items():
            nanos, calls = spent.get(name, (0, 0))
            state.learn(minute, minutes, float(nanos), calls)
        return list(self._series)

    def dump(self, series: str) -> Mapping[str, Any]:
        """Return what was learned of a series, as JSON values."""
        return self._series[series].dump() if series in self._series else {}

    def load(self, series: str, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        loaded = Series(0, least_nanos=self._least)
        loaded.load(state)
        self._series[series] = loaded

    def skip(self, minute: int) -> None:
        """Go to a minute, without having seen those before."""
        for state in self._series.values():
            state.skip(minute)

    def alarmed(self) -> list[str]:
        """Return the series with an incident that is not over: they want to be looked at, though nothing be spent."""
        return [name for name, state in self._series.items() if state.alarmed]

    def _prior(self, dimension: str, minute: int) -> float:
        found_at, prior = self._priors.get(dimension, (-_PRIOR_EVERY, 0.0))
        if minute - found_at >= _PRIOR_EVERY:
            start = f"{dimension}="
            levels = [s.level for name, s in self._series.items() if s.grown and name.startswith(start)]
            prior = sum(levels) / len(levels) if len(levels) >= _FEWEST else 0.0
            self._priors[dimension] = minute, prior
        return prior
