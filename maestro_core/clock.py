"""Where time comes from. Everything that decides on time takes a `Clock`, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

__all__ = ["Clock", "SystemClock", "from_micros", "to_micros"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """Wall-clock time in integer microseconds since 1970-01-01 UTC."""

    def now_us(self) -> int:
        """Return the current time in microseconds."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now_us(self) -> int:
        """Return the current time in microseconds."""
        return time.time_ns() // 1_000


def from_micros(micros: int) -> datetime:
    """Return microseconds since 1970 as an aware UTC datetime, exactly."""
    return _EPOCH + timedelta(microseconds=micros)


def to_micros(at: datetime) -> int:
    """Return an aware datetime as microseconds since 1970, exactly.

    Raises:
        ValueError: For a naive datetime, which names no instant.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone; use an aware datetime, for example datetime.now(UTC)")
    return (at - _EPOCH) // _MICROSECOND
