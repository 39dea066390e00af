"""What the SQLite ledger reads and adds up: reports, the material to rebuild counters, and its own audit."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from maestro_core.clock import from_micros
from maestro_core.types import UNATTRIBUTED, Attribution

from ._rows import NOT_ROLLED_UP, archived_before_us, attribution_of, rollup_values
from ._rules import Spend
from ._totals import ARCHIVED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping

    from ._totals import Totals

__all__ = ["HourKey", "Sums", "add_up", "carried", "hours", "run_spends", "spends"]

_HOUR_US = 3_600_000_000
_QUARTER_US = _HOUR_US // 4  # every time zone's windows begin and end on a quarter of an hour UTC
_END_OF_TIME_US = 2**62
_LAST_SEQ = 2**62

# Rows that are about money. The others need no bucket of their own.
_OF_CALLS = "kind IN ('settled', 'corrected', 'presumed', 'released')"

# Dimension, hour, value, provider, model.
HourKey = tuple[str, int, str, str, str]

# As the columns of `hourly_spend`: cost, calls, input and output tokens, estimated, unpriced calls.
Sums = list[int]
_NOTHING = [0, 0, 0, 0, 0, 0]

_SUMS = (
    "sum(cost_nanos), sum(calls), sum(input_tokens), sum(output_tokens), sum(estimated_nanos),"
    " sum(unpriced_calls)"
)


def add_up(connection: sqlite3.Connection, totals: Totals, since_us: int, until_us: int | None) -> None:
    """Add the calls reserved in [since_us, until_us) to `totals`, from the hourly sums as far as they can tell.

    Raises:
        ValueError: If a filter needs rows that are archived.
    """
    end_us = _END_OF_TIME_US if until_us is None else until_us
    archived_us = archived_before_us(connection)
    if since_us < archived_us:
        # Rows of part of an hour are gone: an hour counts whole in the period that has its beginning.
        _add_archived(
            connection,
            totals,
            (_hour(since_us + _HOUR_US - 1), min(_hour(end_us + _HOUR_US - 1), archived_us)),
        )
        since_us = archived_us
    first_us, last_us = _hour(since_us + _HOUR_US - 1), _hour(end_us)
    dimensions = totals.dimensions - {"provider", "model"}
    if len(dimensions) > 1 or dimensions & set(NOT_ROLLED_UP) or first_us >= last_us:
        _add_journal(connection, totals, since_us, end_us)
        return
    _add_journal(connection, totals, since_us, first_us)
    _add_hours(connection, totals, next(iter(dimensions), ""), (first_us, last_us))
    _add_journal(connection, totals, last_us, end_us)


def _hour(at_us: int) -> int:
    return at_us - at_us % _HOUR_US


def _add_archived(connection: sqlite3.Connection, totals: Totals, span_us: tuple[int, int]) -> None:
    """Add hours whose rows are archived: what hourly sums do not tell apart stands under `(archived)`."""
    dimensions, filters = (names - {"provider", "model"} for names in (totals.dimensions, totals.filters))
    if len(dimensions) <= 1 and not dimensions & set(NOT_ROLLED_UP):
        _add_hours(connection, totals, next(iter(dimensions), ""), span_us)
        return
    if len(filters) > 1 or filters & set(NOT_ROLLED_UP):
        raise ValueError(
            f"calls before {from_micros(archived_before_us(connection)):%Y-%m-%dT%H:%MZ} are archived, and the sums that are"
            f" left do not tell {' and '.join(sorted(filters))} apart; ask for later calls, or the archive's file"
        )
    known = next(iter(filters), "")
    rest = dict.fromkeys(dimensions - filters, ARCHIVED)
    _add_hours(connection, totals, known, span_us, rest)
    # Rows that are still there, of calls that are not over, are known in detail.
    for attribution, provider, model, sums in _journal(connection, totals, *span_us):
        totals.add_call(attribution, provider, model, sums)
        value = {known: attribution.value(known)} if known else {}
        totals.add_call(Attribution(rest | value), provider, model, sums, sign=-1)


def spends(
    connection: sqlite3.Connection,
    since_us: int = 0,
    *,
    to_seq: int = _LAST_SEQ,
    by_time: bool = True,
    runs: Literal["all", "together", "none"] = "all",
) -> Iterator[Spend]:
    """Yield what the journal's calls reserved since then cost, summed as far as the counters allow.

    Args:
        connection: Where to read.
        since_us: Only calls reserved from then on.
        to_seq: Only rows up to this one.
        by_time: Whether windows matter: sums are then no longer than a quarter of an hour.
        runs: `all` apart, all `together` as if without a run, or `none`: only calls without one.
    """
    run = "run" if runs == "all" else "NULL"
    only = f"AND {_OF_CALLS}" + (" AND run IS NULL" if runs == "none" else "")
    time = f"reserved_at_us / {_QUARTER_US}" if by_time else "NULL"
    # The unary plus keeps SQLite from walking a long journal in the order of its time index.
    since = "reserved_at_us" if since_us else "+reserved_at_us"
    rows = connection.execute(
        f"SELECT dimensions, path, run, provider, model, at_us, cost FROM (SELECT attribution_id, {run} AS run, provider,"  # noqa: S608 - constants
        " model, min(reserved_at_us) AS at_us, sum(cost_nanos) AS cost FROM journal"
        f" WHERE {since} >= ? AND seq <= ? {only} GROUP BY attribution_id, {run}, provider, model, {time})"
        " JOIN attributions USING (attribution_id)",
        (since_us, to_seq),
    )
    return _spends(rows)


def run_spends(connection: sqlite3.Connection, run: str) -> Iterator[Spend]:
    """Yield what the journal's calls of one run cost."""
    rows = connection.execute(
        "SELECT dimensions, path, :run, provider, model, 0, cost FROM (SELECT attribution_id, provider, model,"  # noqa: S608 - constants
        f" sum(cost_nanos) AS cost FROM journal WHERE run = :run AND {_OF_CALLS} GROUP BY attribution_id, provider, model)"
        " JOIN attributions USING (attribution_id)",
        {"run": run},
    )
    return _spends(rows)


def carried(connection: sqlite3.Connection, run: str | None = None) -> Iterator[Spend]:
    """Yield what archived calls cost: all, those of one run, or (`""`) those without. Only windowless meters count them."""
    only, values = ("", ()) if run is None else ("WHERE run = ?", (run,))
    rows = connection.execute(
        "SELECT dimensions, path, nullif(run, ''), provider, model, 0, cost_nanos FROM carried"  # noqa: S608 - constants
        f" JOIN attributions USING (attribution_id) {only}",
        values,
    )
    return _spends(rows)


def _spends(rows: Iterable[tuple[Any, ...]]) -> Iterator[Spend]:
    for dimensions, path, run, provider, model, at_us, cost in rows:
        yield Spend(attribution_of(dimensions, path, run), provider, model, at_us, cost)


def hours(connection: sqlite3.Connection, since_us: int) -> tuple[dict[HourKey, Sums], dict[HourKey, Sums]]:
    """Return the hourly sums from a full hour on: what the journal says, and what is written down."""
    expected: dict[HourKey, Sums] = {}
    rows = connection.execute(
        f"SELECT dimensions, path, hour, sums.* FROM (SELECT attribution_id, provider, model, {_SUMS},"  # noqa: S608 - constants
        f" reserved_at_us / {_HOUR_US} AS hour FROM journal WHERE reserved_at_us >= ?"
        " GROUP BY attribution_id, provider, model, hour) AS sums JOIN attributions USING (attribution_id)",
        (since_us,),
    )
    for dimensions, path, hour, _, provider, model, *added, _ in rows:
        for dimension, value in rollup_values(attribution_of(dimensions, path, None)):
            key = (dimension, hour * _HOUR_US, value, provider, model)
            expected[key] = [a + b for a, b in zip(expected.get(key, _NOTHING), added, strict=True)]
    written = {
        (dimension, hour_us, value, provider, model): sums
        for dimension, hour_us, value, provider, model, *sums in connection.execute(
            "SELECT * FROM hourly_spend WHERE hour_us >= ?", (since_us,)
        )
    }
    return expected, written


def _add_journal(connection: sqlite3.Connection, totals: Totals, since_us: int, until_us: int) -> None:
    for row in _journal(connection, totals, since_us, until_us):
        totals.add_call(*row)


def _journal(
    connection: sqlite3.Connection, totals: Totals, since_us: int, until_us: int
) -> Iterator[tuple[Attribution, str, str, Sums]]:
    if since_us >= until_us:
        return
    # Each column less to group by is less to sort.
    run, provider, model = _wanted(totals, "run", "provider", "model")
    rows = connection.execute(
        f"SELECT dimensions, path, run, provider, model, sums.* FROM (SELECT attribution_id, {run} AS run,"  # noqa: S608 - constants
        f" {provider} AS provider, {model} AS model, {_SUMS} FROM journal WHERE reserved_at_us >= ? AND"
        " reserved_at_us < ? GROUP BY 1, 2, 3, 4) AS sums JOIN attributions USING (attribution_id)",
        (since_us, until_us),
    )
    for dimensions, path, name, provider, model, _, _, _, _, *sums in rows:
        yield attribution_of(dimensions, path, name), provider, model, sums


def _add_hours(
    connection: sqlite3.Connection,
    totals: Totals,
    dimension: str,
    span_us: tuple[int, int],
    rest: Mapping[str, str] = MappingProxyType({}),
) -> None:
    def rows(name: str) -> Iterator[tuple[str, str, str, list[int]]]:
        columns = [*(["value"] if name else []), *sorted(totals.dimensions & {"provider", "model"})]
        value, provider, model = (c if c in columns else "''" for c in ("value", "provider", "model"))
        # Only the columns that matter, and no constants: each one costs a third of the sorting.
        group = f"GROUP BY {', '.join(columns)}" if columns else ""
        query = (
            f"SELECT {value}, {provider}, {model}, {_SUMS} FROM hourly_spend"  # noqa: S608 - constants
            f" WHERE dimension = ? AND hour_us >= ? AND hour_us < ? {group}"
        )
        for value, provider, model, *sums in connection.execute(query, (name, *span_us)):
            if sums[0] is not None:  # the sum of no rows
                yield value, provider, model, sums

    for _, provider, model, sums in rows(""):
        totals.add_call(Attribution(rest), provider, model, sums)
    if not dimension:
        return
    for value, provider, model, sums in rows(dimension):
        # What has a value is not left over: take it out of the total's remainder, which stays (unattributed).
        totals.add_call(Attribution({**rest, dimension: value}), provider, model, sums)
        totals.add_call(Attribution({**rest, dimension: UNATTRIBUTED}), provider, model, sums, sign=-1)


def _wanted(totals: Totals, *columns: str) -> list[str]:
    """Return the columns that a report looks at, and nothing in place of the others."""
    return [
        column if column in totals.dimensions else ("NULL" if column == "run" else "''") for column in columns
    ]
