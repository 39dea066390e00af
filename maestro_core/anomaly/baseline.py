"""What a series usually spends at this time of the week, learned as it goes. Constant in size."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DAY", "STEP", "Baseline"]

STEP = 15  # minutes
DAY = 24 * 60
WEEK = 7 * DAY
_OF_DAY = DAY // STEP
_OF_WEEK = WEEK // STEP
# The weight of the newest week, and of the newest day: a month's habits, not a year's.
_NEWEST = 0.25
_NEWEST_OF_DAYS = 0.12
# How many weeks of this quarter of an hour weigh as much as the same quarter of all such days.
_TRUST = 3.0
# The mean of all times says little of this one: more would hide a weekend, which is far below it.
_TRUST_IN_LEVEL = 0.1
_SATURDAY = 5


class Baseline:
    """Mean spend per minute, by quarter of an hour of the week, backed by that of working days or weekends and the overall mean."""

    __slots__ = ("_of_day", "_of_week", "_seen_of_day", "_seen_of_week", "level", "steps")

    def __init__(self) -> None:
        self._of_week = array("f", bytes(4 * _OF_WEEK))
        self._seen_of_week = array("B", bytes(_OF_WEEK))
        self._of_day = array("f", bytes(8 * _OF_DAY))
        self._seen_of_day = array("B", bytes(2 * _OF_DAY))
        self.level = 0.0
        self.steps = 0

    def expected(self, minute: int) -> float:
        """Return what is usual for a minute; between the middles of two steps it changes steadily."""
        place, into = divmod(minute - STEP // 2, STEP)
        share = into / STEP
        return (1 - share) * self._at(place) + share * self._at(place + 1)

    def learn(self, step: int, mean: float) -> None:
        """Take in a step (counted from 1970) with its mean spend per minute."""
        self.steps += 1
        self.level += (mean - self.level) * max(1 / self.steps, 1 / (2 * _OF_WEEK))
        _blend(self._of_week, self._seen_of_week, step % _OF_WEEK, mean, _NEWEST)
        _blend(self._of_day, self._seen_of_day, _of_kind(step), mean, _NEWEST_OF_DAYS)

    def scale(self, times: float) -> None:
        """From now on, so many times as much is usual."""
        self.level *= times
        self._of_week = array("f", [times * value for value in self._of_week])
        self._of_day = array("f", [times * value for value in self._of_day])

    def dump(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "week": [float(f"{value:.4g}") for value in self._of_week],
            "weeks": self._seen_of_week.tolist(),
            "day": [float(f"{value:.4g}") for value in self._of_day],
            "days": self._seen_of_day.tolist(),
            "level": self.level,
            "steps": self.steps,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        self._of_week, self._seen_of_week = array("f", state["week"]), array("B", state["weeks"])
        self._of_day, self._seen_of_day = array("f", state["day"]), array("B", state["days"])
        self.level, self.steps = float(state["level"]), int(state["steps"])

    def _at(self, step: int) -> float:
        place = _of_kind(step)
        seen = self._seen_of_day[place]
        if not seen:  # no weekend yet
            place %= _OF_DAY
            seen = self._seen_of_day[place]
        usual = (
            (seen * self._of_day[place] + _TRUST_IN_LEVEL * self.level) / (seen + _TRUST_IN_LEVEL)
            if seen
            else self.level
        )
        place = step % _OF_WEEK
        seen = self._seen_of_week[place]
        return (seen * self._of_week[place] + _TRUST * usual) / (seen + _TRUST)


def _of_kind(step: int) -> int:
    # Days are counted from a Thursday. Where other days are free, the week's own quarters learn it, more slowly.
    day, place = divmod(step, _OF_DAY)
    return place + _OF_DAY if (day + 3) % 7 >= _SATURDAY else place


def _blend(means: array[float], seen: array[int], place: int, value: float, newest: float) -> None:
    seen[place] = min(255, seen[place] + 1)
    means[place] += (value - means[place]) * max(1 / seen[place], newest)
