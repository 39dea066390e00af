"""The rates of one model, to show to people."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING

from .names import entries
from .pricing import timestamp
from .sheet import price_starts, sheet

if TYPE_CHECKING:
    from datetime import date, datetime

    from .sheet import Picos

__all__ = ["RateRow", "describe", "newest_price"]


@dataclass(frozen=True, slots=True)
class RateRow:
    """One rate of a price sheet.

    Args:
        kind: The line that it is charged on, e.g. `"cache_read"`; see `Cost.lines`.
        picos: Pico-dollars for each token or use; exact.
        from_tokens: The input length from which it holds.
    """

    kind: str
    picos: Picos
    from_tokens: int = 0

    @property
    def usd_each(self) -> Decimal:
        """US dollars for one token or use; to 15 digits where the rate is a fraction."""
        exact = Fraction(self.picos)
        return Decimal(exact.numerator) / exact.denominator / 10**12

    @property
    def usd_per_million(self) -> Decimal:
        """US dollars for a million tokens, as providers list them."""
        return self.usd_each * 10**6


def describe(
    provider: str, model: str, *, at: datetime | None = None, tier: str | None = None
) -> tuple[RateRow, ...]:
    """Return every rate that a model has at a time; what a call came to is in the lines of its `price()`.

    Raises:
        PriceNotFound: For an unknown provider, model or tier.
    """
    rates = sheet(provider, model, tier).at(timestamp(at))
    rows: dict[RateRow, None] = {}
    for band in rates.bands:
        listed = {
            rate.kind: rate.picos for rate in band.rates.values() if rate.priced and rate.own and rate.picos
        }
        for kind, picos in listed.items():
            if not any(row.kind == kind and row.picos == picos for row in rows):  # fees repeat in every band
                rows[RateRow(kind, picos, band.first)] = None
    return tuple(sorted(rows, key=lambda row: (row.kind, row.from_tokens)))


def newest_price(today: date) -> date | None:
    """Return the day of the latest dated price in the price book, up to today: how old the book is at most."""
    days = {start for entry in entries() for start in price_starts(entry) if start <= today}
    return max(days, default=None)
