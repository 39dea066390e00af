"""Where a window's spend will end at its present pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .types import Window

__all__ = ["Forecast", "forecast"]

# Before this share of a window has passed, its pace says nothing about its end.
_LEAST_ELAPSED = 0.1


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a window comes to if it goes on as it did so far.

    Args:
        projected_nanos: At its end.
        reached_us: When the limit is reached; None if that is not within the window, or it is reached already.
        elapsed: The share of the window that has passed.
    """

    projected_nanos: int
    reached_us: int | None
    elapsed: float


def forecast(spent_nanos: int, limit_nanos: int, window: Window | None, now_us: int) -> Forecast | None:
    """Return where a window's spend will end, at the mean pace of what has passed of it.

    None without a window, and in its first tenth, which says too little. Of a day, and even of a week, the pace is no
    steady one: a forecast at noon takes the night for another morning.
    """
    if window is None:
        return None
    length, passed = window.end_us - window.start_us, now_us - window.start_us
    if not _LEAST_ELAPSED * length <= passed <= length:
        return None
    projected = spent_nanos * length // passed
    reached = None
    if spent_nanos < limit_nanos < projected:
        reached = window.start_us + limit_nanos * passed // spent_nanos
    return Forecast(projected, reached, passed / length)
