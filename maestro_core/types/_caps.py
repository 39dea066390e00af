"""What a user declares: caps and budgets; and the meters that count for them."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, get_args

from maestro_core.money import Dollars, format_usd, parse_usd, to_usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

__all__ = ["Budget", "Cap", "Every", "Meter", "Window", "check_dimension"]

Every = Literal["hour", "day", "week", "month"]

_MOST_CHARACTERS = 128
_MOST_ALERT_RATIO = 100


def check_dimension(name: object) -> str:
    """Return `name` if it can be a dimension: text of 1 to 128 characters without spaces, `=` or `,`.

    Raises:
        ValueError: If it cannot.
    """
    if not isinstance(name, str) or not name or len(name) > _MOST_CHARACTERS:
        raise ValueError(f"a dimension is a name of 1 to {_MOST_CHARACTERS} characters, not {name!r}")
    if any(c.isspace() or c in "=,()" or not c.isprintable() for c in name):
        raise ValueError(f"dimension {name!r} may not contain spaces, '=', ',' or parentheses")
    return name


@dataclass(frozen=True, slots=True)
class Window:
    """One calendar window: `start_us` <= t < `end_us`, microseconds since 1970 UTC."""

    start_us: int
    end_us: int


@dataclass(frozen=True)
class Meter:
    """What one running total counts: which dimensions split it, which calls match, which windows it has.

    A meter's identity never includes a limit, an order or a name, so editing a cap keeps its history.
    """

    per: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    every: Every | None = None
    time_zone: str = "UTC"

    @cached_property
    def id(self) -> str:
        """The identity as readable text, e.g. `customer every day UTC` or `customer,model where team=growth`."""
        parts = [",".join(self.per) or "all"]
        if self.where:
            parts.append("where " + ",".join(f"{k}={_quoted(v)}" for k, v in self.where))
        if self.every:
            parts.append(f"every {self.every} {self.time_zone}")
        return " ".join(parts)

    def label(self, values: Sequence[str]) -> str:
        """Return the name of one bucket, e.g. `customer=acme where team=growth every day`."""
        named = [f"{d}={v}" for d, v in zip(self.per, values, strict=True)]
        matched = [f"{k}={v}" for k, v in self.where]
        parts = [",".join(named)] if named else []
        if matched:
            parts.append(("where " if named else "") + ",".join(matched))
        if self.every:
            parts.append(f"every {self.every}")
        return " ".join(parts) or "everything"


@dataclass(frozen=True, init=False)
class _Limit:
    """What `Cap` and `Budget` share: an amount, and the calls it is about."""

    limit_nanos: int
    per: tuple[str, ...]
    where: tuple[tuple[str, str], ...]
    every: Every | None
    alert_at: tuple[float, ...]

    def _fill(
        self,
        limit: Dollars,
        per: str | Sequence[str] | None,
        where: Mapping[str, str] | None,
        every: Every | None,
        alert_at: Sequence[float],
    ) -> Self:
        kind = type(self).__name__
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "limit_nanos", parse_usd(limit, name=f"{kind} limit"))
        set_(self, "per", _check_per(per))
        set_(self, "where", _check_where(where))
        set_(self, "every", _check_every(every))
        set_(self, "alert_at", _check_alert_at(alert_at))
        return self

    @property
    def limit(self) -> Decimal:
        """The limit in US dollars."""
        return to_usd(self.limit_nanos)

    def meter(self, time_zone: str) -> Meter:
        """Return the meter that counts for this limit."""
        return Meter(self.per, self.where, self.every, time_zone if self.every else "UTC")

    def __str__(self) -> str:
        parts = [format_usd(self.limit_nanos)]
        if self.per:
            parts.append("per " + ",".join(self.per))
        if self.where:
            parts.append("where " + ",".join(f"{k}={v}" for k, v in self.where))
        if self.every:
            parts.append(f"every {self.every}")
        return " ".join(parts)


class Cap(_Limit):
    """A ceiling that stops spend: no call is admitted unless its worst case fits.

    Args:
        limit: US dollars as `str`, `Decimal` or `int`. A float is an error.
        per: A dimension or a tuple of them: one bucket for each value (`"run"`, `"customer"`, `("team", "model")`).
        where: `{dimension: value}`; only calls that match all of them count.
        every: None (no window), `"hour"`, `"day"`, `"week"` or `"month"`: calendar windows in the `time_zone` setting.
        alert_at: Fractions of the limit at which to alert, e.g. `0.8` or `(0.5, 0.8)`.

    Raises:
        TypeError: For a float limit.
        ValueError: For anything else malformed; the message names the fix.
    """

    def __init__(
        self,
        limit: Dollars,
        *,
        per: str | Sequence[str] | None = None,
        where: Mapping[str, str] | None = None,
        every: Every | None = None,
        alert_at: float | Sequence[float] = (),
    ) -> None:
        self._fill(limit, per, where, every, _as_sequence(alert_at))


class Budget(_Limit):
    """A target that is tracked and alerts, and stops nothing. Arguments are those of `Cap`."""

    def __init__(
        self,
        limit: Dollars,
        *,
        per: str | Sequence[str] | None = None,
        where: Mapping[str, str] | None = None,
        every: Every | None = None,
        alert_at: float | Sequence[float] = (0.5, 0.8, 1.0),
    ) -> None:
        self._fill(limit, per, where, every, _as_sequence(alert_at))


def _quoted(value: str) -> str:
    # Without quotes, where={"team": "a,user=b"} would have the identity of where={"team": "a", "user": "b"}.
    return json.dumps(value) if set(value) & set(' ,="') else value


def _as_sequence(value: float | Sequence[float]) -> Sequence[float]:
    return (value,) if isinstance(value, int | float) else value


def _check_per(per: str | Sequence[str] | None) -> tuple[str, ...]:
    names = (per,) if isinstance(per, str) else tuple(per or ())
    checked = tuple(sorted(check_dimension(name) for name in names))
    if len(set(checked)) < len(checked):
        raise ValueError(f"per={per!r} names a dimension twice")
    return checked


def _check_where(where: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    if where is None:
        return ()
    if not hasattr(where, "items"):
        raise ValueError(f'where={where!r} is not a mapping; write for example where={{"team": "growth"}}')
    for name, value in where.items():
        check_dimension(name)
        if not isinstance(value, str) or not value or len(value) > _MOST_CHARACTERS:
            raise ValueError(f"where {name}={value!r}: a value is text of 1 to {_MOST_CHARACTERS} characters")
    return tuple(sorted(where.items()))


def _check_every(every: str | None) -> Every | None:
    windows = get_args(Every)
    if every is None:
        return None
    for window in windows:
        if every == window:
            return window  # type: ignore[no-any-return]
    closest = difflib.get_close_matches(str(every), windows, 1, 0.3)
    hint = f'; did you mean "{closest[0]}"?' if closest else ""
    raise ValueError(f'every={every!r} is not a window; use "hour", "day", "week", "month" or None{hint}')


def _check_alert_at(ratios: Sequence[float]) -> tuple[float, ...]:
    for ratio in ratios:
        if (
            isinstance(ratio, bool)
            or not isinstance(ratio, int | float)
            or not 0 < ratio <= _MOST_ALERT_RATIO
        ):
            raise ValueError(
                f"alert_at={ratios!r}: each is a fraction of the limit, for example 0.8 for 80 %"
            )
    return tuple(sorted({float(ratio) for ratio in ratios}))
