"""How far a series strays from what is usual while nothing is wrong, learned as it goes. Constant in size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["WINDOWS", "Spread"]

# Windows as exponential memories, in minutes.
WINDOWS = (4, 20, 60, 240)

_MEMORY = 4_000  # minutes
_MOST_OF_A_MINUTE = 1_000.0
_DAYS = 21
_UNKNOWN = 0.05
_CALLS = 0.7  # where next to nothing is usual, a spike is several calls
_LEAK_GRAIN = 1.3
# In a window of independent minutes with this memory, half as much varies as in as many plain minutes.
_HALF = 0.5
# How many times the mean call a call is that makes the noise: those of a trace are skewed.
_SKEW = 2


class Spread:
    """Two kinds of noise: of single calls, which averages out, and of the whole, which does not.

    Amounts are nano-dollars as floats: this is statistics, not accounting.
    """

    __slots__ = ("_daily", "_days", "_grain", "_mass", "_minutes", "_rough", "_usual", "_varied")

    def __init__(self) -> None:
        # The variance of a minute, what is usual in one, and the one per dollar of the other: about what a call costs.
        self._varied = self._usual = self._grain = 0.0
        # The variance of a window around the usual, as a share of its square; busy times weigh more.
        self._rough = [_UNKNOWN] * len(WINDOWS)
        self._mass = [0.0] * len(WINDOWS)
        self._minutes = 0
        self._daily = 0.002  # the variance of a whole day around the usual, as a share of its square
        self._days = 1

    def of_window(self, window: int, usual: float) -> float:
        """Return the variance of a window, in which so much is usual."""
        return self._grain * (_HALF * usual + _CALLS * self._grain) + self._rough[window] * usual * usual

    def of_day(self, usual: float) -> float:
        """Return the variance of a day, on which so much is usual."""
        return _LEAK_GRAIN * self._grain * usual + self._daily * usual * usual

    def learn(self, spent: float, usual: float, sums: Sequence[float], usuals: Sequence[float]) -> None:
        """Take in a minute, and the windows that it ends."""
        weight = self._weight(1)
        self._usual += (usual - self._usual) * weight
        seen = (spent - usual) ** 2
        # Where calls are rare, one is many times what is usual in its minute, and all the noise there is. Yet no minute
        # may teach much more than what is known, or a runaway would excuse the next.
        seen = min(seen, _MOST_OF_A_MINUTE * self._varied) if self._varied else seen
        self._varied += (seen - self._varied) * weight
        if self._usual > 0:
            self._grain = self._varied / self._usual
        for window, normal in enumerate(usuals):
            self._stray(window, sums[window] - normal, normal, weight)

    def learn_past(
        self, minutes: int, *, usual: float, call: float, sums: Sequence[float], usuals: Sequence[float]
    ) -> None:
        """Take in several minutes of which only the total is known, and the windows that they end.

        Args:
            minutes: How many.
            usual: In all of them.
            call: What a call in them cost; 0 if there was none.
            sums: The windows.
            usuals: What would be usual in them.
        """
        weight = self._weight(minutes)
        self._usual += (usual / minutes - self._usual) * weight
        if call > 0:
            self._grain += (_SKEW * call - self._grain) * (weight if self._grain else 1.0)
        self._varied = self._grain * self._usual
        for window, normal in enumerate(usuals):
            # What happens within so many minutes is not seen: it may stray as if each minute went its own way.
            unseen = max(1.0, minutes / WINDOWS[window]) ** 0.5
            self._stray(window, unseen * (sums[window] - normal), normal, weight)

    def learn_day(self, spent: float, usual: float) -> None:
        """Take in a whole day."""
        off = (spent - usual) / usual
        self._days = min(_DAYS, self._days + 1)
        self._daily += (min(off * off, 9 * self._daily + 0.001) - self._daily) / self._days

    def dump(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "grain": [self._varied, self._usual, self._grain],
            "rough": self._rough,
            "mass": self._mass,
            "minutes": self._minutes,
            "daily": self._daily,
            "days": self._days,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        self._varied, self._usual, self._grain = state["grain"]
        self._minutes = int(state["minutes"])
        self._rough, self._mass = list(state["rough"]), list(state["mass"])
        self._daily, self._days = float(state["daily"]), int(state["days"])

    def _weight(self, minutes: int) -> float:
        self._minutes = min(_MEMORY, self._minutes + minutes)
        return min(1.0, minutes / self._minutes)

    def _stray(self, window: int, off: float, normal: float, weight: float) -> None:
        if normal <= 0:
            return
        square = normal * normal
        mass = self._mass[window] = self._mass[window] + (square - self._mass[window]) * weight
        rough = self._rough[window]
        seen = max(0.0, off * off - self._grain * _HALF * normal) / square
        self._rough[window] = rough + (min(seen, 9 * rough + 0.01) - rough) * weight * square / mass
