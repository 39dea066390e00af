"""One series of spend, minute by minute: far above the usual, or a little above it for long."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .baseline import DAY, STEP, Baseline
from .detector import Finding
from .spread import WINDOWS, Spread

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Series"]

# What a window forgets in a minute; how far above the usual it must be, in multiples and in deviations; what that is.
_TESTS = tuple(
    (1 - 1 / minutes, multiple, deviations, kind)
    for minutes, multiple, deviations, kind in zip(
        WINDOWS, (2.0, 1.8, 1.4, 1.2), (5.1, 5.0, 3.8, 4.1), ("spike", "spike", "spike", "leak"), strict=True
    )
)
_HOUR = WINDOWS.index(60)
_ABOVE = 1.3
_LEAST_SHARE = 0.02  # of the mean: even where nothing is usual, something is not nothing
# A leak counts from so much above the usual on, and is told at so many deviations of a day:
# few, since a day's noise takes turns and a leak does not.
_LEAK_FROM = 1.13
_LEAK_DEVIATIONS = 1.8
# An incident is over when spend has stayed below this multiple of the usual for a while.
_OVER = 1.3
# What has lasted for two days is the new usual, and is learned.
_NEW_USUAL = 2 * DAY
_FORM = 2  # of what is kept
_YOUNG = DAY // STEP
_GROWN = 7 * _YOUNG
_YOUNG_TIMES = 10


class Series:
    """The state of one series: some 250 numbers, whatever its length.

    Amounts are nano-dollars as floats: this is statistics, not accounting.

    Args:
        least_nanos: What has to have been spent beyond the usual before anything is told.
        day_share: The same, as a share of a usual day.
    """

    __slots__ = (
        "_base", "_calm", "_day_share", "_lasted", "_leak", "_least", "_minute", "_open", "_prior", "_since_leak", "_since_spike", "_spread", "_step",
        "_sums", "_today", "_usuals",
    )  # fmt: skip

    def __init__(self, minute: int, *, least_nanos: float = 0.0, day_share: float = 0.003) -> None:
        self._minute = minute
        self._least = least_nanos
        self._day_share = day_share
        self._base = Baseline()
        self._spread = Spread()
        self._sums = [0.0] * len(WINDOWS)
        self._usuals = [0.0] * len(WINDOWS)
        self._step = 0.0
        self._today = _Since(minute)
        self._leak = 0.0
        self._since_spike = _Since(minute)
        self._since_leak = _Since(minute)
        self._open: tuple[str, _Since] | None = None
        self._calm = 0
        self._lasted = 0  # minutes since the incident was told
        self._prior = 0.0

    @property
    def minute(self) -> int:
        """The minute that comes next."""
        return self._minute

    @property
    def level(self) -> float:
        """What is usually spent in a minute."""
        return self._base.level

    @property
    def alarmed(self) -> bool:
        """Whether an incident is open."""
        return self._open is not None

    def add(self, spent: float, prior: float = 0.0) -> Finding | None:
        """Take in what the next minute has spent; return what it shows.

        Args:
            spent: In this minute.
            prior: What comparable series spend in a minute, while this one is too young to know its own.
        """
        base, minute = self._base, self._minute
        self._minute = minute + 1
        usual = max(base.expected(minute), _LEAST_SHARE * base.level)
        if base.steps < _GROWN and prior > usual:
            usual += (1 - base.steps / _GROWN) * (prior - usual)
        self._prior = prior
        found = self._decide(minute, spent, usual, self._weigh(minute, spent, usual))
        calm = self._open is None
        if calm:
            self._spread.learn(spent, usual, self._sums, self._usuals)
        # What an incident spends is not what is usual; of a day without one, a peak counts no more than thrice.
        self._step += spent if calm else min(spent, usual)
        self._today.add(spent, usual)
        if (minute + 1) % DAY == 0:
            self._learn_day(minute + 1, calm=calm)
        if (minute + 1) % STEP == 0:
            mean = self._step / STEP
            base.learn(minute // STEP, min(mean, 3 * usual) if base.steps > _GROWN else mean)
            self._step = 0.0
        return found

    def learn(self, minute: int, minutes: int, spent: float, calls: int) -> None:
        """Take in the past, of which only totals are known: nothing is told of it.

        Args:
            minute: When the span begins; what was seen already is left out.
            minutes: How long it is: one or several quarters of an hour, which it begins and ends with.
            spent: In all of it.
            calls: So many calls spent it.
        """
        if minute < self._minute:
            return
        self._minute = minute + minutes
        base, mean = self._base, spent / minutes
        steps = range(minute // STEP, (minute + minutes) // STEP)
        usual = STEP * sum(
            max(base.expected(STEP * step + STEP // 2), _LEAST_SHARE * base.level) for step in steps
        )
        if base.steps >= _YOUNG:
            for window, length in enumerate(WINDOWS):
                keep = math.exp(-minutes / length)
                for sums, added in ((self._sums, mean), (self._usuals, usual / minutes)):
                    sums[window] = keep * sums[window] + (1 - keep) * length * added
            call = spent / calls if calls else 0.0
            self._spread.learn_past(minutes, usual=usual, call=call, sums=self._sums, usuals=self._usuals)
            self._today.add(spent, usual)
        if (minute + minutes) % DAY == 0:
            self._learn_day(minute + minutes, calm=True)
        for step in steps:
            base.learn(step, min(mean, 3 * usual / minutes) if self.grown else mean)

    @property
    def grown(self) -> bool:
        """Whether it has a week of its own to be compared with."""
        return self._base.steps >= _GROWN

    def skip(self, minute: int) -> None:
        """Go to a later minute, without having seen those between."""
        self._minute = max(self._minute, minute)

    def dump(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        kind, since = self._open or ("", _Since(0))
        return {
            "form": _FORM,
            "minute": self._minute,
            "base": self._base.dump(),
            "spread": self._spread.dump(),
            "sums": self._sums,
            "usuals": self._usuals,
            "plain": [self._step, self._leak, self._calm, self._lasted],
            "since": [each.dump() for each in (self._today, self._since_spike, self._since_leak, since)],
            "open": kind,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned; of another release's form, what it has in common with this one's."""
        self._minute = int(state["minute"])
        self._base.load(state["base"])
        if state.get("form") != _FORM:
            return
        self._spread.load(state["spread"])
        self._sums, self._usuals = list(state["sums"]), list(state["usuals"])
        self._step, self._leak, self._calm, self._lasted = state["plain"]
        self._today, self._since_spike, self._since_leak, since = (_Since(*each) for each in state["since"])
        self._open = (state["open"], since) if state["open"] else None

    def _weigh(self, minute: int, spent: float, usual: float) -> str:
        """Take a minute into the windows; return what the shortest that is too high shows."""
        sums, usuals, far = self._sums, self._usuals, ""
        least = max(self._least, self._day_share * DAY * self._base.level)
        for i, (keep, multiple, deviations, kind) in enumerate(_TESTS):
            total = sums[i] = sums[i] * keep + spent
            normal = usuals[i] = usuals[i] * keep + usual
            excess = total - normal
            if excess > least and total > multiple * normal and not far:
                variance = self._spread.of_window(i, normal)
                far = kind if excess * excess > deviations * deviations * variance else ""
        if sums[0] > _ABOVE * usuals[0]:
            self._since_spike.add(spent, usual)
        else:
            self._since_spike = _Since(minute + 1)
        self._leak += spent - _LEAK_FROM * usual
        if self._leak <= 0 or not self.grown:
            self._leak, self._since_leak = 0.0, _Since(minute + 1)
        else:
            self._since_leak.add(spent, usual)
        return far

    def _decide(self, minute: int, spent: float, usual: float, far: str) -> Finding | None:
        young = self._base.steps < _YOUNG
        if self._open is not None:
            # What goes far up while a leak is open is worse than what people know of.
            worse = far == "spike" and self._open[0] == "leak" and not young
            return self._begin(far, self._since_spike) if worse else self._go_on(minute, spent, usual)
        if young:
            return self._begin("spike", self._since_spike) if self._young_and_far() else None
        if far:
            return self._begin(far, self._since_spike if far == "spike" else self._since_leak)
        day, leak = DAY * self._base.level, self._leak
        if leak > max(
            self._least, self._day_share * day
        ) and leak * leak > _LEAK_DEVIATIONS**2 * self._spread.of_day(day):
            return self._begin("leak", self._since_leak)
        return None

    def _young_and_far(self) -> bool:
        # What is new has no habits: it is compared with its like, and given ten times as much.
        return self._prior > 0 and self._sums[_HOUR] > _YOUNG_TIMES * self._prior * WINDOWS[_HOUR]

    def _begin(self, kind: str, since: _Since) -> Finding:
        self._open = kind, since
        self._calm = self._lasted = 0
        return self._finding(kind, since)

    def _go_on(self, minute: int, spent: float, usual: float) -> Finding | None:
        assert self._open is not None  # noqa: S101 - the caller has looked
        kind, since = self._open
        since.add(spent, usual)
        # A spike is over after a calm half hour, a leak after six hours: it is no louder than the noise.
        calm, window = (30, 0) if kind == "spike" else (360, _HOUR)
        self._calm = self._calm + 1 if self._sums[window] <= _OVER * self._usuals[window] else 0
        self._lasted += 1
        if self._calm < calm and self._lasted < _NEW_USUAL:
            return None
        if self._calm < calm and since.usual > 0:
            self._base.scale(since.spent / since.usual)
        self._open, self._leak = None, 0.0
        self._sums = list(self._usuals)  # the longer windows still know of it
        self._since_leak = _Since(minute + 1)
        return self._finding("recovered", since)

    def _finding(self, kind: str, since: _Since) -> Finding:
        excess = max(0.0, since.spent - since.usual)
        pace, usual_pace = (60 * window[0] / WINDOWS[0] for window in (self._sums, self._usuals))
        return Finding(kind, since.minute, round(excess), round(since.usual), round(pace), round(usual_pace))

    def _learn_day(self, minute: int, *, calm: bool) -> None:
        today, self._today = self._today, _Since(minute)
        if calm and self.grown and today.usual > 0:
            self._spread.learn_day(today.spent, today.usual)


class _Since:
    """What was spent since a minute, and what would have been usual."""

    __slots__ = ("minute", "spent", "usual")

    def __init__(self, minute: int, spent: float = 0.0, usual: float = 0.0) -> None:
        self.minute = minute
        self.spent = spent
        self.usual = usual

    def add(self, spent: float, usual: float) -> None:
        self.spent += spent
        self.usual += usual

    def dump(self) -> list[float]:
        return [self.minute, self.spent, self.usual]
