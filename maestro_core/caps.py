"""Which meters a call charges, and which calendar window it falls into."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from .clock import from_micros
from .errors import SettingsError
from .types import UNATTRIBUTED, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .types import Attribution, Every, Meter

__all__ = ["charged_values", "charges", "matches", "window"]

_HOUR_US = 3_600_000_000

# The dimensions that a call's path gives, several values of each.
_PATH = ("agent", "tool")

# The window last found for each (every, time zone): nearly every call falls into the same one as the call before.
_latest: dict[tuple[Every | None, str], Window] = {}


def window(every: Every | None, time_zone: str, at_us: int) -> Window | None:
    """Return the calendar window that contains an instant, or None where there are no windows.

    Days, weeks and months run from local midnight to local midnight, so a day may have 23 or 25 hours; weeks start
    on Monday. Hours are counted from local midnight. Windows of one kind and zone never overlap and leave no gap.

    Args:
        every: The window's length; None for a meter without windows.
        time_zone: An IANA name, e.g. `"Europe/Berlin"`.
        at_us: Microseconds since 1970 UTC.

    Raises:
        SettingsError: If the time zone is unknown.
    """
    if every is None:
        return None
    found = _latest.get((every, time_zone))
    if found is None or not found.start_us <= at_us < found.end_us:
        found = _latest[every, time_zone] = _find(every, time_zone, at_us)
    return found


def matches(meter: Meter, attribution: Attribution, provider: str = "", model: str = "") -> bool:
    """Return whether a meter counts a call: every `where` matches; an agent or tool anywhere on the path does."""
    return all(value in _values(name, attribution, provider, model) for name, value in meter.where)


def charges(
    meters: Sequence[Meter], attribution: Attribution, provider: str, model: str
) -> list[tuple[Meter, tuple[str, ...]]]:
    """Return every bucket that a call charges, as (meter, one value for each of the meter's `per`).

    A meter per agent (or tool) is charged once for every agent on the path; several dimensions make every
    combination. A dimension that the call lacks is the value `(unattributed)`.

    Args:
        meters: The meters to look at.
        attribution: Whom the call is for.
        provider: Provider id; the value of the dimension `provider`.
        model: Model asked for; the value of the dimension `model`.
    """
    return [
        (meter, values) for meter in meters for values in charged_values(meter, attribution, provider, model)
    ]


def charged_values(
    meter: Meter, attribution: Attribution, provider: str, model: str
) -> list[tuple[str, ...]]:
    """Return the values of every bucket of one meter that a call charges; none if the meter does not count it."""
    if meter.where and not matches(meter, attribution, provider, model):
        return []
    if len(meter.per) == 1:  # the common case, worth half a microsecond
        found = _values(meter.per[0], attribution, provider, model)
        return [found] if len(found) == 1 else [(value,) for value in found]
    return list(product(*[_values(name, attribution, provider, model) for name in meter.per]))


def _values(dimension: str, attribution: Attribution, provider: str, model: str) -> tuple[str, ...]:
    if dimension == "model":
        return (model,)
    if dimension == "provider":
        return (provider,)
    if dimension in _PATH:
        return attribution.values(dimension)
    # What `values` would say, without looking along the path: this runs for every meter of every call.
    return (attribution.dimensions.get(dimension, UNATTRIBUTED),)


def _find(every: Every, time_zone: str, at_us: int) -> Window:
    zone = _zone(time_zone)
    if every == "hour":
        day = _find("day", time_zone, at_us)
        start_us = day.start_us + (at_us - day.start_us) // _HOUR_US * _HOUR_US
        return Window(start_us, min(start_us + _HOUR_US, day.end_us))
    first = _first_day(every, from_micros(at_us).astimezone(zone).date())
    # Clocks that are set back across midnight show a date again after the next one has begun: step to the window
    # that really contains the instant, so that windows stay a partition of time.
    while at_us < _midnight_us(first, zone):
        first = _first_day(every, first - timedelta(days=1))
    while at_us >= _midnight_us(_next(every, first), zone):
        first = _next(every, first)
    return Window(_midnight_us(first, zone), _midnight_us(_next(every, first), zone))


def _first_day(every: Every, day: date) -> date:
    if every == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if every == "month" else day


def _next(every: Every, first: date) -> date:
    if every == "month":
        return (first + timedelta(days=31)).replace(
            day=1
        )  # from a first, 31 days on is always the next month
    return first + timedelta(days=7 if every == "week" else 1)


def _midnight_us(day: date, zone: ZoneInfo) -> int:
    # A midnight that the zone skips resolves to the instant of the jump (PEP 495, fold=0): the day's true start.
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
    return int(midnight.timestamp()) * 1_000_000


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise SettingsError(
            f'time zone "{name}" is unknown; use an IANA name, for example "UTC" or "Europe/Berlin"'
        ) from None
