"""A clock that moves only when a test says so."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from maestro_core.clock import from_micros, to_micros

__all__ = ["FakeClock"]

_DEFAULT_START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """A `maestro_core.clock.Clock` that stands still until it is advanced; safe from any thread.

    Args:
        start: The first time it shows, an aware datetime; 2026-01-01 00:00 UTC by default.

    Raises:
        ValueError: For a naive datetime, which names no instant.
    """

    def __init__(self, start: datetime = _DEFAULT_START) -> None:
        self._lock = threading.Lock()
        self._now_us = to_micros(start)

    def now_us(self) -> int:
        """Return the current time in microseconds since 1970-01-01 UTC."""
        return self._now_us

    @property
    def now(self) -> datetime:
        """The current time as an aware UTC datetime."""
        return from_micros(self._now_us)

    def advance(self, seconds: float = 0, **units: Any) -> datetime:
        """Move time on and return the new time.

        Args:
            seconds: How far, in seconds.
            **units: Further keywords of `timedelta`: `days=1`, `hours=2`, `milliseconds=250`.

        Raises:
            ValueError: For a step back: every clock that Maestro reads goes forward.
        """
        step_us = timedelta(seconds=seconds, **units) // timedelta(microseconds=1)
        if step_us < 0:
            raise ValueError(f"cannot advance by {step_us} microseconds; time does not go back")
        with self._lock:
            self._now_us += step_us
            return from_micros(self._now_us)

    def __repr__(self) -> str:
        return f"FakeClock({self.now.isoformat()})"
