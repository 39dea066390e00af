"""Where time comes from. Everything that decides on time takes a `Clock`, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "from_micros", "to_micros"]


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
    seconds, rest = divmod(micros, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def to_micros(at: datetime) -> int:
    """Return an aware datetime as microseconds since 1970, exactly.

    Raises:
        ValueError: For a naive datetime, which names no instant.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone; use an aware datetime, for example datetime.now(UTC)")
    whole = at.astimezone(UTC)
    return int(whole.replace(microsecond=0).timestamp()) * 1_000_000 + whole.microsecond
