"""How the SQLite ledger finds holds and records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._rows import HOLD_COLUMNS, RECORD_COLUMNS, hold_of, record_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from maestro_core.types import Kind, OpenHold, Record

    from ._owners import Owners

__all__ = [
    "ASK_BEFORE_CLOSING",
    "ASK_BEFORE_HOLDING",
    "count_before",
    "find_closing",
    "find_hold",
    "find_note",
    "find_rows",
    "holds_of_run",
    "open_holds",
    "read_page",
    "span",
    "stale_keys",
]

_HOLDS = f"SELECT {HOLD_COLUMNS} FROM holds JOIN attributions USING (attribution_id)"  # noqa: S608 - constants
_RECORDS = f"SELECT {RECORD_COLUMNS} FROM journal JOIN attributions USING (attribution_id)"  # noqa: S608 - constants

_CLOSING = "('settled', 'corrected', 'released')"

# All that a reserve has to know besides counters, which nearly always is that nothing is in its way: the stored clock, the
# meters' version; whether the key is held; whether it was settled, corrected or released; whether anybody has a ticket.
# The plus keeps the kinds out of the search in the index: one look instead of three.
ASK_BEFORE_HOLDING = (
    "SELECT clock_us, meters_version, EXISTS (SELECT 1 FROM holds WHERE key = :key),"  # noqa: S608 - constants
    f" EXISTS (SELECT 1 FROM journal WHERE key = :key AND +kind IN {_CLOSING}), EXISTS (SELECT 1 FROM tickets) FROM store"
)

# All that closing a hold has to know: the stored clock, the meters' version, the journal's last number; and of the hold, if
# there is one, what its process does not remember for sure.
ASK_BEFORE_CLOSING = (
    "SELECT clock_us, meters_version, (SELECT max(seq) FROM journal), attribution_id, reserved_at_us, amount_nanos,"
    " owner, state FROM store LEFT JOIN holds ON key = ?"
)


def find_hold(connection: sqlite3.Connection, key: str) -> OpenHold | None:
    """Return the open or presumed hold of a key."""
    row = connection.execute(f"{_HOLDS} WHERE key = ?", (key,)).fetchone()
    return hold_of(row) if row else None


def open_holds(connection: sqlite3.Connection) -> list[OpenHold]:
    """Return the open and the presumed holds, oldest first."""
    return [hold_of(row) for row in connection.execute(f"{_HOLDS} ORDER BY reserved_at_us, key")]


def holds_of_run(connection: sqlite3.Connection, run: str) -> list[OpenHold]:
    """Return the open and the presumed holds of one run."""
    return [hold_of(row) for row in connection.execute(f"{_HOLDS} WHERE run = ?", (run,))]


def stale_keys(
    connection: sqlite3.Connection, owners: Owners, older_than_us: int, keys: Collection[str]
) -> list[str]:
    """Return the keys of the open holds whose owner is gone, that were made before that time, or that are named.

    A process that was forked from the owner cannot name them: the call may be going on there.
    """
    rows = connection.execute(
        "SELECT key, owner, reserved_at_us FROM holds WHERE state = 'held' ORDER BY reserved_at_us, key"
    ).fetchall()
    gone = {owner for owner in {owner for _, owner, _ in rows} if owners.gone(owner)}
    return [
        key
        for key, owner, at_us in rows
        if owner in gone or at_us < older_than_us or (key in keys and not owners.inherited(owner))
    ]


def find_closing(connection: sqlite3.Connection, key: str) -> Record | None:
    """Return the record that first settled, corrected or released a key."""
    row = connection.execute(
        f"{_RECORDS} WHERE key = ? AND kind IN {_CLOSING} ORDER BY seq LIMIT 1", (key,)
    ).fetchone()
    return record_of(row) if row else None


def find_rows(connection: sqlite3.Connection, key: str) -> list[Record]:
    """Return everything that the journal says of a key, in the order it was written."""
    return [record_of(row) for row in connection.execute(f"{_RECORDS} WHERE key = ? ORDER BY seq", (key,))]


def find_note(connection: sqlite3.Connection, key: str, kind: Kind) -> Record | None:
    """Return the record of a key that moved no money: its refusal, or its grant."""
    row = connection.execute(f"{_RECORDS} WHERE key = ? AND kind = ?", (key, kind)).fetchone()
    return record_of(row) if row else None


def count_before(connection: sqlite3.Connection, before_us: int) -> int:
    """Return how many rows there are of calls reserved before then."""
    (rows,) = connection.execute(
        "SELECT count(*) FROM journal WHERE reserved_at_us < ?", (before_us,)
    ).fetchone()
    return int(rows)


def span(
    connection: sqlite3.Connection, since_us: int, until_us: int | None, run: str | None
) -> tuple[int, int]:
    """Return the first and the last number of the records reserved in [since_us, until_us); (1, 0) if there are none.

    Calls are written about when they are reserved, so reading between the two skips nearly all that is outside.
    """
    where, values = _filter(since_us, until_us, run)
    row = connection.execute(f"SELECT min(seq), max(seq) FROM journal WHERE {where}", values).fetchone()  # noqa: S608 - constants
    return (row[0], row[1]) if row[0] is not None else (1, 0)


def read_page(
    connection: sqlite3.Connection,
    seqs: tuple[int, int],
    span_us: tuple[int, int | None],
    run: str | None,
    most: int,
) -> list[Record]:
    """Return the next records, at most so many, with numbers in [first, last] and reserved in [since, until)."""
    where, values = _filter(*span_us, run)
    rows = connection.execute(
        f"{_RECORDS} WHERE {where} AND seq BETWEEN ? AND ? ORDER BY seq LIMIT ?", (*values, *seqs, most)
    )
    return [record_of(row) for row in rows]


def _filter(since_us: int, until_us: int | None, run: str | None) -> tuple[str, list[Any]]:
    where, values = "reserved_at_us >= ?", [since_us]
    if until_us is not None:
        where, values = f"{where} AND reserved_at_us < ?", [*values, until_us]
    return (f"run = ? AND {where}", [run, *values]) if run is not None else (where, values)
