"""What the SQLite ledger reads and adds up: reports, the material to rebuild counters, and its own audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.types import UNATTRIBUTED, Attribution

from ._rows import NOT_ROLLED_UP, attribution_of, rollup_values
from ._rules import Spend

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from ._totals import Totals

__all__ = ["add_up", "hourly_differences", "spends"]

_HOUR_US = 3_600_000_000
_QUARTER_US = _HOUR_US // 4  # every time zone's windows begin and end on a quarter of an hour UTC
_END_OF_TIME_US = 2**62

_SUMS = (
    "sum(cost_nanos), sum(calls), sum(input_tokens), sum(output_tokens), sum(estimated_nanos),"
    " sum(unpriced_calls)"
)


def add_up(connection: sqlite3.Connection, totals: Totals, since_us: int, until_us: int | None) -> None:
    """Add the calls reserved in [since_us, until_us) to `totals`, from the hourly sums as far as they can tell."""
    end_us = _END_OF_TIME_US if until_us is None else until_us
    first_us, last_us = -(-since_us // _HOUR_US) * _HOUR_US, end_us // _HOUR_US * _HOUR_US
    dimensions = totals.dimensions - {"provider", "model"}
    if len(dimensions) > 1 or dimensions & set(NOT_ROLLED_UP) or first_us >= last_us:
        _add_journal(connection, totals, since_us, end_us)
        return
    _add_journal(connection, totals, since_us, first_us)
    _add_hours(connection, totals, next(iter(dimensions), ""), (first_us, last_us))
    _add_journal(connection, totals, last_us, end_us)


def spends(connection: sqlite3.Connection, since_us: int) -> Iterator[Spend]:
    """Yield what the journal's calls reserved since then cost, in sums no longer than a quarter of an hour."""
    rows = connection.execute(
        "SELECT dimensions, path, run, provider, model, at_us, cost FROM (SELECT attribution_id, run, provider, model,"
        " min(reserved_at_us) AS at_us, sum(cost_nanos) AS cost FROM journal WHERE reserved_at_us >= ?"
        " GROUP BY attribution_id, run, provider, model, reserved_at_us / ?) JOIN attributions USING (attribution_id)",
        (since_us, _QUARTER_US),
    )
    for dimensions, path, run, provider, model, at_us, cost in rows:
        yield Spend(attribution_of(dimensions, path, run), provider, model, at_us, cost)


def hourly_differences(connection: sqlite3.Connection) -> list[str]:
    """Return one line for each hourly sum that differs from the journal."""
    expected: dict[tuple[str, int, str, str, str], list[int]] = {}
    rows = connection.execute(
        "SELECT dimensions, path, hour, provider, model, cost, calls FROM (SELECT attribution_id, provider, model,"
        " reserved_at_us / ? AS hour, sum(cost_nanos) AS cost, sum(calls) AS calls FROM journal"
        " GROUP BY attribution_id, provider, model, hour) JOIN attributions USING (attribution_id)",
        (_HOUR_US,),
    )
    for dimensions, path, hour, provider, model, cost, calls in rows:
        for dimension, value in rollup_values(attribution_of(dimensions, path, None)):
            sums = expected.setdefault((dimension, hour * _HOUR_US, value, provider, model), [0, 0])
            sums[0] += cost
            sums[1] += calls
    actual = {
        tuple(row[:5]): list(row[5:])
        for row in connection.execute(
            "SELECT dimension, hour_us, value, provider, model, cost_nanos, calls FROM hourly_spend"
        )
    }
    return [
        f"hourly spend {key}: is {actual.get(key, [0, 0])} (nano-dollars, calls), the journal says"
        f" {expected.get(key, [0, 0])}"
        for key in sorted(expected.keys() | actual.keys())
        if expected.get(key, [0, 0]) != actual.get(key, [0, 0])
    ]


def _add_journal(connection: sqlite3.Connection, totals: Totals, since_us: int, until_us: int) -> None:
    if since_us >= until_us:
        return
    run = (
        "run" if "run" in totals.dimensions else "NULL"
    )  # grouping by run is only worth its price when asked for
    rows = connection.execute(
        f"SELECT dimensions, path, run, provider, model, sums.* FROM (SELECT attribution_id, {run} AS run, provider,"  # noqa: S608 - constants
        f" model, {_SUMS} FROM journal WHERE reserved_at_us >= ? AND reserved_at_us < ?"
        " GROUP BY 1, 2, 3, 4) AS sums JOIN attributions USING (attribution_id)",
        (since_us, until_us),
    )
    for dimensions, path, name, provider, model, _, _, _, _, *sums in rows:
        totals.add_call(attribution_of(dimensions, path, name), provider, model, sums)


def _add_hours(
    connection: sqlite3.Connection, totals: Totals, dimension: str, span_us: tuple[int, int]
) -> None:
    def rows(name: str) -> Iterator[tuple[str, str, str, list[int]]]:
        query = f"SELECT value, provider, model, {_SUMS} FROM hourly_spend WHERE dimension = ? AND hour_us >= ? AND hour_us < ? GROUP BY 1, 2, 3"  # noqa: S608 - constants
        for value, provider, model, *sums in connection.execute(query, (name, *span_us)):
            yield value, provider, model, sums

    for _, provider, model, sums in rows(""):
        totals.add_call(Attribution(), provider, model, sums)
    if not dimension:
        return
    for value, provider, model, sums in rows(dimension):
        # What has a value is not left over: take it out of the total's remainder, which stays (unattributed).
        totals.add_call(Attribution({dimension: value}), provider, model, sums)
        totals.add_call(Attribution({dimension: UNATTRIBUTED}), provider, model, sums, sign=-1)
