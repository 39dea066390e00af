"""Buckets of runs, of which there are ever more: they are dropped some days after the run, and come back on demand."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from maestro_core.types import UNATTRIBUTED

from ._queries import holds_of_run
from ._reports import carried, run_spends
from ._rows import INSERT_BUCKET, packed_values
from ._rules import Counted, rebuild

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from maestro_core.types import Meter

    from ._rules import BucketKey, Counter, Place

__all__ = ["drop_old", "has_called", "recent_runs", "restore", "run_of", "totals_of_run"]

_KEPT_US = 7 * 24 * 3_600_000_000
_SLICE = 32  # journal rows looked at each time a run begins: more than runs have on average, so this keeps up
_RECENT_ROWS = 10_000


def run_of(meter: Meter, values: tuple[str, ...]) -> str | None:
    """Return the run whose bucket this is, if it is one that may be dropped; None for all that stay.

    Buckets of windows end with their window, and calls without a run cannot be found by it.
    """
    if meter.every or "run" not in meter.per:
        return None
    run = values[meter.per.index("run")]
    return None if run == UNATTRIBUTED else run


def totals_of_run(
    connection: sqlite3.Connection, meter: Meter, run: str
) -> dict[BucketKey, tuple[Place, Counter]]:
    """Return what the counters of one run must say, from the journal, the archived sums and the open holds."""
    spent = chain(run_spends(connection, run), carried(connection, run))
    return rebuild([Counted(meter, 0)], spent, holds_of_run(connection, run))


def has_called(connection: sqlite3.Connection, run: str) -> bool:
    """Return whether anything of a run was written down: nearly always, one that lacks a bucket begins just now.

    The buckets of a run with open holds are never dropped, so nobody has to look through those.
    """
    found = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM journal WHERE run = :run) OR EXISTS (SELECT 1 FROM carried WHERE run = :run)",
        {"run": run},
    ).fetchone()
    return bool(found[0])


def restore(connection: sqlite3.Connection, meter_id: int, meter: Meter, run: str) -> None:
    """Write the buckets of a run that are not there."""
    connection.executemany(
        f"{INSERT_BUCKET} ON CONFLICT DO NOTHING",
        [
            (meter_id, 0, packed_values(values), *counter)
            for (_, values, _), (_, counter) in totals_of_run(connection, meter, run).items()
        ],
    )


def recent_runs(connection: sqlite3.Connection, most: int) -> list[str]:
    """Return the runs that called last, at most so many, from the journal's newest rows."""
    rows = connection.execute(
        "SELECT DISTINCT run FROM (SELECT run FROM journal ORDER BY seq DESC LIMIT ?) WHERE run IS NOT NULL LIMIT ?",
        (_RECENT_ROWS, most),
    )
    return [run for (run,) in rows]


def drop_old(connection: sqlite3.Connection, meters: Mapping[int, Meter], now_us: int, begins: str) -> bool:
    """Drop the buckets of a few runs that called last some days ago; a little work, to be done when a run begins.

    Args:
        connection: In a writing transaction.
        meters: Those with a bucket per run and no windows, by their id in the file.
        now_us: The store's time.
        begins: The run that begins, or goes on after a long time: some of its buckets may be in use already.

    Returns:
        Whether there were calls so old that had not been looked at; there may be more.
    """
    kept_us = now_us - _KEPT_US
    (looked_us,) = connection.execute("SELECT runs_dropped_us FROM store").fetchone()
    rows = connection.execute(
        "SELECT run, reserved_at_us FROM journal WHERE reserved_at_us > ? AND reserved_at_us < ?"
        " ORDER BY reserved_at_us LIMIT ?",
        (looked_us, kept_us, _SLICE),
    ).fetchall()
    if not rows:
        return False
    connection.execute("UPDATE store SET runs_dropped_us = ?", (rows[-1][1],))
    for run in dict.fromkeys(run for run, _ in rows if run not in (None, begins)):
        if not _is_active(connection, run, kept_us):
            _drop(connection, meters.items(), run)
    return True


def _is_active(connection: sqlite3.Connection, run: str, kept_us: int) -> bool:
    # A run with a hold is never dropped, not even one of nothing: settling adds to its buckets without reading them.
    (last_us,) = connection.execute(
        "SELECT max(reserved_at_us) FROM journal WHERE run = ?", (run,)
    ).fetchone()
    return (last_us or 0) >= kept_us or bool(holds_of_run(connection, run))


def _drop(connection: sqlite3.Connection, meters: Iterable[tuple[int, Meter]], run: str) -> None:
    for meter_id, meter in meters:
        connection.executemany(
            "DELETE FROM buckets WHERE meter_id = ? AND window_start_us = 0 AND value = ?",
            [(meter_id, packed_values(values)) for _, values, _ in totals_of_run(connection, meter, run)],
        )
