"""Comparing a provider's export with the ledger, by day (UTC) and model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from maestro_core.clock import to_micros
from maestro_core.errors import PriceNotFound
from maestro_core.prices.names import find, provider_id

from ._exports import open_export

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from maestro_core.types import Ledger

__all__ = ["Comparison", "Row", "compare"]

_DAY = timedelta(days=1)
_MOST_DAYS = 3_660


@dataclass(frozen=True, slots=True)
class Row:
    """One day and model; amounts are nano-dollars, or tokens. `day` is None for the total."""

    day: date | None
    model: str
    ledger: int
    provider: int

    @property
    def difference(self) -> int:
        """What the provider counted beyond the ledger; negative if the ledger has more."""
        return self.provider - self.ledger

    @property
    def unexplained(self) -> float:
        """The difference as a part of what the provider counted; 1 if only the ledger has any."""
        if not self.provider:
            return float(bool(self.ledger))
        return abs(self.difference) / abs(self.provider)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A file against the ledger. `unit` is `"cost"` (nano-dollars) or `"tokens"`."""

    format: str
    unit: Literal["cost", "tokens"]
    since: date
    until: date
    rows: tuple[Row, ...]

    @property
    def total(self) -> Row:
        """All rows together. Its `unexplained` adds up the differences of the rows, so that they cannot cancel out."""
        return Row(None, "total", sum(r.ledger for r in self.rows), sum(r.provider for r in self.rows))

    @property
    def unexplained(self) -> float:
        """The rows' differences, whatever their sign, as a part of what the provider counted."""
        apart, whole = sum(abs(row.difference) for row in self.rows), sum(abs(r.provider) for r in self.rows)
        return apart / whole if whole else float(bool(apart))


def compare(
    path: Path, ledger: Ledger, provider: str, *, since: datetime | None, until: datetime | None
) -> Comparison:
    """Compare an export with the ledger, over the days that the file covers within [since, until).

    Raises:
        ValueError: If the file cannot be read as an export, or has no line in the period.
        OSError: If it cannot be read at all.
    """
    first, last = _days(since, until)
    theirs: dict[tuple[date, str], int] = {}
    names: dict[str, str] = {}
    with open_export(path) as export:
        for line in export.lines:
            if first <= line.day <= last:
                key = line.day, _canonical(provider, line.model)
                names.setdefault(key[1], line.model or "(no model)")
                theirs[key] = theirs.get(key, 0) + line.amount
    if not theirs:
        raise ValueError(f"{path} has no line between {first} and {last}")
    days = [day for day, _ in theirs]
    begin, end = min(days), max(days)
    if (end - begin).days > _MOST_DAYS:
        raise ValueError(f"{path} covers {begin} to {end}; choose at most ten years with --since and --until")
    ours: dict[tuple[date, str], int] = {}
    for day in _each(begin, end):
        for model, amount in _spent(ledger, provider, day, export.unit):
            key = day, _canonical(provider, model)
            names.setdefault(key[1], model)
            ours[key] = ours.get(key, 0) + amount
    rows = [
        Row(day, names[model], ours.get((day, model), 0), theirs.get((day, model), 0))
        for day, model in sorted(theirs.keys() | ours.keys())
    ]
    return Comparison(export.format, export.unit, begin, end, tuple(rows))


def _days(since: datetime | None, until: datetime | None) -> tuple[date, date]:
    """Return the first and the last day that lie wholly in the period; a provider's days cannot be divided."""
    first, last = date.min, date.max
    if since is not None:
        day = since.astimezone(UTC)
        first = day.date() if day == _midnight(day.date()) else day.date() + _DAY
    if until is not None:
        last = until.astimezone(UTC).date() - _DAY
    return first, last


def _spent(ledger: Ledger, provider: str, day: date, unit: str) -> Iterator[tuple[str, int]]:
    """Yield what the ledger has for each of a provider's models on a day (UTC)."""
    since_us, until_us = to_micros(_midnight(day)), to_micros(_midnight(day + _DAY))
    for each in ledger.sums(("provider", "model"), since_us=since_us, until_us=until_us):
        whose, model = each.values
        amount = each.cost_nanos if unit == "cost" else each.input_tokens + each.output_tokens
        if amount and _provider(whose) == _provider(provider):
            yield model, amount


def _each(begin: date, end: date) -> Iterable[date]:
    return (begin + timedelta(days=n) for n in range((end - begin).days + 1))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@lru_cache(maxsize=256)
def _provider(name: str) -> str:
    try:
        return provider_id(name)
    except PriceNotFound:
        return name.strip().lower()


@lru_cache(maxsize=4096)
def _canonical(provider: str, model: str) -> str:
    """Return one name for a model: the price book's, for any of its spellings (`Claude Haiku 4.5`)."""
    spelled = model.strip().lower().replace(" ", "-")
    for name in (spelled, spelled.replace(".", "-")):
        try:
            return find(provider, name).model.id
        except PriceNotFound:
            continue
    return spelled
