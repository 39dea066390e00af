"""What a ledger knows of the weeks before anybody watched it, for detectors that begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .types import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .types import Ledger, Sum

__all__ = ["DIMENSIONS", "EVERYTHING", "past"]

DIMENSIONS = ("team", "feature", "customer", "agent", "model")
EVERYTHING = "everything"

_MINUTE_US = 60_000_000
_QUARTER, _HOUR, _DAY = 15, 60, 1_440
# More calls than this are read by the hour, from sums that the ledger keeps; fewer by the quarter, from its journal.
_FEW_CALLS = 100_000
# Of more series only the dearest are learned; the others begin as new ones do.
_MOST_SERIES = 2_000

# By series: nano-dollars, calls.
Spent = dict[str, tuple[int, int]]


def past(ledger: Ledger, since_minute: int, until_minute: int) -> Iterator[tuple[int, int, Spent]]:
    """Yield (minute since 1970 UTC, length in minutes, what each series spent in it), oldest first, without gaps.

    It begins with the first day on which anything was spent. A span without an entry for a series: it spent nothing.

    Args:
        ledger: Where it is written.
        since_minute: From the full hour after this on.
        until_minute: Up to the full hour before this.

    Raises:
        LedgerError: If the ledger cannot be read.
    """
    first, last = -(-since_minute // _HOUR) * _HOUR, until_minute // _HOUR * _HOUR
    whole = spent(ledger, first, last) if first < last else {}
    if not whole:
        return
    length = _QUARTER if whole[EVERYTHING][1] <= _FEW_CALLS else _HOUR
    dearest = set(sorted(whole, key=lambda name: -whole[name][0])[:_MOST_SERIES])
    began = False
    while first < last:
        until = min(last, (first // _DAY + 1) * _DAY)
        if any(row.calls for row in _sums(ledger, (), first, until)):
            began = True
            for minute in range(first, until, length):
                found = spent(ledger, minute, minute + length)
                yield minute, length, {name: found[name] for name in found.keys() & dearest}
        elif began:
            yield first, until - first, {}
        first = until


def spent(ledger: Ledger, since_minute: int, until_minute: int) -> Spent:
    """Return what each series spent in a time, and by how many calls; a series without calls is left out."""
    found: Spent = {}
    for dimension in DIMENSIONS:
        for row in _sums(ledger, (dimension,), since_minute, until_minute):
            if row.calls and row.values[0] != UNATTRIBUTED:
                found[f"{dimension}={row.values[0]}"] = row.cost_nanos, row.calls
    rows = [row for row in _sums(ledger, (), since_minute, until_minute) if row.calls]
    if rows:
        found[EVERYTHING] = sum(row.cost_nanos for row in rows), sum(row.calls for row in rows)
    return found


def _sums(ledger: Ledger, by: tuple[str, ...], since_minute: int, until_minute: int) -> list[Sum]:
    return ledger.sums(by, since_us=since_minute * _MINUTE_US, until_us=until_minute * _MINUTE_US)
