"""A new meter begins with what the journal says: at once where that is little, else in steps that hold nobody up.

The journal is read outside the lock that writers take turns at, up to the row that was the last when the meter was
added; every process feeds the meter from then on. Counting is adding, so the two parts may come in any order. What was
read is added in small transactions, and each says how far it got: whoever declares the meter next can go on from there.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

from ._queries import open_holds
from ._reports import carried, spends
from ._rows import ADD_TO_BUCKET, insert_meter, packed_values
from ._rules import rebuild
from ._run_buckets import recent_runs, restore, run_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping

    from ._database import Database
    from ._rules import BucketKey, Counted, Counter, Place

__all__ = ["add_meter", "fill"]

# Start of the window, values as the row has them, counter.
_Row = tuple[int, str, list[int]]

_AT_ONCE = 2_000  # rows that are counted in within one transaction, some milliseconds
_BUCKETS = 1_000
_RUNS = 50
_MOST_RUNS = 1_000


def add_meter(connection: sqlite3.Connection, counted: Counted, last_seq: int) -> None:
    """Add a meter in a writing transaction, filled if the journal is short; else `fill` has to follow."""
    meter_id = insert_meter(connection, counted)
    holds = open_holds(connection)
    if _is_short(connection, counted):
        spent = chain(spends(connection, counted.since_us), carried(connection))
        _add(connection, meter_id, _counters(rebuild([counted], spent, holds)))
        return
    connection.execute("UPDATE meters SET fill_to_seq = ? WHERE meter_id = ?", (last_seq, meter_id))
    held = rebuild([counted], (), holds)
    runs = {key: run_of(counted.meter, key[1]) for key in held}
    _add(connection, meter_id, _counters({key: held[key] for key, run in runs.items() if run is None}))
    for run in {run for run in runs.values() if run is not None}:
        restore(connection, meter_id, counted.meter, run)


def fill(database: Database, name: str, counted: Counted) -> None:
    """Count in what the journal said when the meter was added; return when that is done, by whomever.

    Args:
        database: The file.
        name: The meter's identity.
        counted: The meter.
    """
    with database.snapshot() as connection:
        meter_id, to_seq, _ = _state(connection, name)
        if not to_seq:
            return
        # A run's bucket is made when it calls; only calls without a run have to be counted beforehand.
        by_run = not counted.meter.every and "run" in counted.meter.per
        spent = chain(
            spends(
                connection,
                counted.since_us,
                to_seq=to_seq,
                by_time=bool(counted.meter.every),
                runs=_runs(counted),
            ),
            carried(connection, "" if by_run else None),
        )
        rows = sorted(_counters(rebuild([counted], spent, ())))
        runs = recent_runs(connection, _MOST_RUNS) if by_run else []
    _show(database, meter_id, counted, runs)
    while True:
        with database.writing as connection:
            _, to_seq, done = _state(connection, name)
            if not to_seq:
                return
            step = rows[done : done + _BUCKETS]
            _add(connection, meter_id, step)
            _advance(connection, meter_id, done + len(step), ended=done + len(step) == len(rows))


def _show(database: Database, meter_id: int, counted: Counted, runs: list[str]) -> None:
    """Make the buckets of the newest runs, so that they are seen before they call again."""
    waiting = iter(runs)
    while some := list(islice(waiting, _RUNS)):
        with database.writing as connection:
            for run in some:
                restore(connection, meter_id, counted.meter, run)


def _runs(counted: Counted) -> Literal["all", "together", "none"]:
    meter = counted.meter
    if "run" in meter.per:
        return "all" if meter.every else "none"
    return "all" if "run" in dict(meter.where) else "together"


def _is_short(connection: sqlite3.Connection, counted: Counted) -> bool:
    journal = "SELECT 1 FROM journal WHERE reserved_at_us >= ?"
    (rows,) = connection.execute(
        f"SELECT count(*) FROM (SELECT * FROM ({journal} LIMIT {_AT_ONCE + 1}) UNION ALL"  # noqa: S608 - constants
        f" SELECT * FROM (SELECT 1 FROM carried LIMIT {_AT_ONCE + 1}))",
        (counted.since_us,),
    ).fetchone()
    return bool(rows <= _AT_ONCE)


def _state(connection: sqlite3.Connection, name: str) -> tuple[int, int, int]:
    meter_id, to_seq, done = connection.execute(
        "SELECT meter_id, fill_to_seq, fill_done FROM meters WHERE name = ?", (name,)
    ).fetchone()
    return meter_id, to_seq, done


def _advance(connection: sqlite3.Connection, meter_id: int, done: int, *, ended: bool) -> None:
    connection.execute("UPDATE meters SET fill_done = ? WHERE meter_id = ?", (done, meter_id))
    if ended:
        connection.execute("UPDATE meters SET fill_to_seq = 0, fill_done = 0 WHERE meter_id = ?", (meter_id,))
        connection.execute("UPDATE store SET meters_version = meters_version + 1")


def _counters(rebuilt: Mapping[BucketKey, tuple[Place, Counter]]) -> Iterator[_Row]:
    for (_, values, start_us), (_, counter) in rebuilt.items():
        yield start_us, packed_values(values), counter


def _add(connection: sqlite3.Connection, meter_id: int, rows: Iterable[_Row]) -> None:
    connection.executemany(
        ADD_TO_BUCKET, [(meter_id, start_us, value, *counter) for start_us, value, counter in rows]
    )
