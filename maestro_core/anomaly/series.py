"""One series of spend, minute by minute: far above the usual, or a little above it for long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .baseline import DAY, STEP, Baseline
from .detector import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Series"]

# Windows as exponential memories, in minutes; how far above the usual each must be, in multiples and in deviations.
_MINUTES = (5, 60, 360)
_WINDOWS = tuple(
    (1 - 1 / minutes, multiple, deviations)
    for minutes, multiple, deviations in zip(_MINUTES, (2.5, 1.6, 1.5), (5.3, 6.0, 8.0), strict=True)
)
_ABOVE = 1.3
_CALLS = 1.2  # where next to nothing is usual, a spike is several calls
_DAYS = 21
_LEAST_SHARE = 0.02  # of the mean: even where nothing is usual, something is not nothing
# A leak counts from so much above the usual on, and is told at so many deviations of a day:
# few, since a day's noise takes turns and a leak does not.
_LEAK_FROM = 1.15
_LEAK_DEVIATIONS = 1.75
_LEAK_GRAIN = 1.5
# An incident is over when spend has stayed below this multiple of the usual for a while.
_OVER = 1.3
# What has lasted for two days is the new usual, and is learned.
_NEW_USUAL = 2 * DAY
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
        "_base", "_calm", "_daily", "_day_share", "_days", "_grain", "_lasted", "_leak", "_least", "_minute", "_open", "_prior", "_rough", "_since_leak",
        "_since_spike", "_step", "_sums", "_today", "_usuals",
    )  # fmt: skip

    def __init__(self, minute: int, *, least_nanos: float = 0.0, day_share: float = 0.003) -> None:
        self._minute = minute
        self._least = least_nanos
        self._day_share = day_share
        self._base = Baseline()
        self._sums = [0.0] * len(_WINDOWS)
        self._usuals = [0.0] * len(_WINDOWS)
        self._rough = [0.05] * len(
            _WINDOWS
        )  # the variance of a window around the usual, as a share of its square
        self._grain = 0.0  # the variance of a minute per usual dollar: about what one call costs
        self._step = 0.0
        self._daily = 0.004  # the variance of a whole day around the usual, as a share of its square
        self._days = 1  # that it was learned from
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
        far = self._weigh(minute, spent, usual)
        found = self._decide(minute, spent, usual, far=far)
        calm = self._open is None
        if calm:
            self._learn_spread(spent, usual)
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
            "minute": self._minute,
            "base": self._base.dump(),
            "sums": self._sums,
            "usuals": self._usuals,
            "rough": self._rough,
            "plain": [self._grain, self._step, self._daily, self._days, self._leak, self._calm, self._lasted],
            "since": [each.dump() for each in (self._today, self._since_spike, self._since_leak, since)],
            "open": kind,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        self._minute = int(state["minute"])
        self._base.load(state["base"])
        self._sums, self._usuals, self._rough = (list(state[name]) for name in ("sums", "usuals", "rough"))
        self._grain, self._step, self._daily, self._days, self._leak, self._calm, self._lasted = state[
            "plain"
        ]
        self._today, self._since_spike, self._since_leak, since = (_Since(*each) for each in state["since"])
        self._open = (state["open"], since) if state["open"] else None

    def _weigh(self, minute: int, spent: float, usual: float) -> bool:
        sums, usuals, grain = self._sums, self._usuals, self._grain
        least = max(self._least, self._day_share * DAY * self._base.level)
        far = False
        for i, (keep, multiple, deviations) in enumerate(_WINDOWS):
            total = sums[i] = sums[i] * keep + spent
            normal = usuals[i] = usuals[i] * keep + usual
            excess = total - normal
            if excess > least and total > multiple * normal:
                variance = grain * (0.5 * normal + _CALLS * grain) + self._rough[i] * normal * normal
                far = far or excess * excess > deviations * deviations * variance
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

    def _decide(self, minute: int, spent: float, usual: float, *, far: bool) -> Finding | None:
        if self._open is not None:
            return self._go_on(minute, spent, usual)
        if self._base.steps < _YOUNG:
            return self._begin("spike", self._since_spike) if self._young_and_far() else None
        if far:
            return self._begin("spike", self._since_spike)
        day = DAY * self._base.level
        variance = _LEAK_GRAIN * self._grain * day + self._daily * day * day
        leak = self._leak
        if leak > max(self._least, self._day_share * day) and leak * leak > _LEAK_DEVIATIONS**2 * variance:
            return self._begin("leak", self._since_leak)
        return None

    def _young_and_far(self) -> bool:
        # What is new has no habits: it is compared with its like, and given ten times as much.
        return self._prior > 0 and self._sums[1] > _YOUNG_TIMES * self._prior * _MINUTES[1]

    def _begin(self, kind: str, since: _Since) -> Finding:
        self._open = kind, since
        self._calm = self._lasted = 0
        return self._finding(kind, since)

    def _go_on(self, minute: int, spent: float, usual: float) -> Finding | None:
        assert self._open is not None  # noqa: S101 - the caller has looked
        kind, since = self._open
        since.add(spent, usual)
        # A spike is over after a calm half hour, a leak after six hours: it is no louder than the noise.
        calm, window = (30, 0) if kind == "spike" else (360, 1)
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
        pace, usual_pace = (60 * window[0] / _MINUTES[0] for window in (self._sums, self._usuals))
        return Finding(kind, since.minute, round(excess), round(since.usual), round(pace), round(usual_pace))

    def _learn_spread(self, spent: float, usual: float) -> None:
        weight = 1 / min(4_000, self._base.steps * STEP + 30)
        off = spent - usual
        if usual > 0:
            # A single minute may not teach more than ten times what is known, or a runaway would excuse the next.
            seen = off * off / usual
            self._grain += (
                min(seen, 30 * self._grain) if self._grain else seen
            ) * weight - self._grain * weight
        for i, normal in enumerate(self._usuals):
            if normal > 0:
                off = self._sums[i] - normal
                seen = max(0.0, off * off - self._grain * 0.5 * normal) / (normal * normal)
                rough = self._rough[i]
                self._rough[i] = rough + (min(seen, 9 * rough + 0.01) - rough) * weight

    def _learn_day(self, minute: int, *, calm: bool) -> None:
        today, self._today = self._today, _Since(minute)
        if calm and self.grown and today.usual > 0:
            off = (today.spent - today.usual) / today.usual
            self._days = min(_DAYS, self._days + 1)
            self._daily += (min(off * off, 9 * self._daily + 0.001) - self._daily) / self._days


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
