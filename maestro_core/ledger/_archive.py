"""Moving old journal rows into a file of their own. What they add to counters and reports stays behind.

First the rows are copied, and compared with the originals; then they are taken out in small steps, so that calls go on.
A crash in between leaves rows in both files, and archiving again goes on from there: a row is never in neither.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maestro_core.caps import window
from maestro_core.clock import from_micros

from ._audit import add_to_hours, wrong_hours
from ._database import Database, connect
from ._failures import unavailable
from ._queries import open_holds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Archived", "Copied", "check_time", "copy", "remember", "steps", "take_out"]

_HOUR_US = 3_600_000_000
_STEP = 1_000  # rows taken out in one transaction

_COLUMNS = (
    "seq, kind, key, reserved_at_us, written_at_us, provider, model, {}, run, cost_nanos, held_nanos, estimated_nanos,"
    " sheet_nanos, calls, input_tokens, output_tokens, unpriced_calls, usage, price_id, price_book, unpriced, overrun,"
    " detail"
)
_COPY = (
    f"INSERT OR IGNORE INTO main.journal ({_COLUMNS.format('attribution_id')})"  # noqa: S608 - constants
    f" SELECT {_COLUMNS.format('own.attribution_id')} FROM ledger.journal JOIN ledger.attributions AS theirs"
    " USING (attribution_id) JOIN main.attributions AS own"
    " ON own.dimensions = theirs.dimensions AND own.path = theirs.path WHERE seq IN (SELECT seq FROM old)"
)


@dataclass(frozen=True, slots=True)
class Archived:
    """What was moved.

    Attributes:
        before_us: Rows of calls reserved before that hour were moved.
        file: Where they are now; a ledger's file like any other.
        records: How many rows.
        cost_nanos: What they add up to.
        kept: How many rows from before are still in the journal, since their calls are not over.
    """

    before_us: int
    file: Path
    records: int
    cost_nanos: int
    kept: int


@dataclass(frozen=True, slots=True)
class Copied:
    """The rows that an archive file has of this ledger: their numbers; `to_seq` was the journal's last at the time."""

    seqs: list[int]
    to_seq: int


def check_time(connection: sqlite3.Connection, before_us: int, now_us: int) -> int:
    """Return the full hour before which calls may be archived.

    Raises:
        ValueError: If rows from before are needed still: by a window that is current somewhere, by an open call.
    """
    before_us -= before_us % _HOUR_US
    # The longest windows' beginnings where the date is the earliest on earth, at the earliest hour they begin anywhere.
    earliest_us = now_us - 12 * _HOUR_US
    starts = [
        found.start_us
        for found in (window("month", "UTC", earliest_us), window("week", "UTC", earliest_us))
        if found
    ]
    newest_us = min(starts) - 14 * _HOUR_US
    if before_us > newest_us:
        raise ValueError(
            "calls of the current month and week stay in the journal, where caps that are declared tomorrow count them;"
            f" archive what is before {from_micros(newest_us):%Y-%m-%dT%H:00Z} or earlier"
        )
    open_ = [hold for hold in open_holds(connection) if hold.state == "held" and hold.at_us < before_us]
    if open_:
        raise ValueError(
            f"{len(open_)} calls from before are still open, the oldest since {from_micros(open_[0].at_us):%Y-%m-%dT%H:%MZ}"
            " (maestro doctor lists them); settle or presume them first, or archive what is before that"
        )
    return before_us


def copy(database: Database, file: Path, before_us: int) -> Copied:
    """Copy the old rows that are not there yet into a file, which is made if there is none, and compare them.

    Raises:
        ValueError: If the file holds rows of another ledger.
        LedgerUnavailable: If it cannot be written, or is no ledger's.
    """
    if file.absolute() == database.path or (file.exists() and file.samefile(database.path)):
        raise ValueError(f"{file} is the ledger itself; name another file to archive to")
    Database(file).close()  # makes it, or brings it to the current schema
    try:
        with closing(connect(file)) as connection:
            connection.execute("PRAGMA synchronous = FULL")  # the originals are deleted next
            connection.execute("ATTACH ? AS ledger", (str(database.path),))
            connection.execute("BEGIN IMMEDIATE")
            copied = _copy_rows(connection, file, before_us)
            connection.execute("COMMIT")
            connection.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")
            return copied
    except sqlite3.Error as error:
        raise unavailable(file, error) from error


def _copy_rows(connection: sqlite3.Connection, file: Path, before_us: int) -> Copied:
    # A call that is not over keeps its rows: they are needed to correct it.
    connection.execute(
        "CREATE TEMP TABLE old AS SELECT seq, key, kind, reserved_at_us, written_at_us, cost_nanos, attribution_id"
        " FROM ledger.journal WHERE reserved_at_us < ? AND key NOT IN (SELECT key FROM ledger.holds)",
        (before_us,),
    )
    connection.execute(
        "INSERT INTO main.attributions (dimensions, path) SELECT dimensions, path FROM ledger.attributions"
        " WHERE attribution_id IN (SELECT attribution_id FROM old) ON CONFLICT DO NOTHING"
    )
    connection.execute(_COPY)
    old, same, first_us, to_seq = connection.execute(
        "SELECT count(*), count(copy.seq), min(old.reserved_at_us), (SELECT max(seq) FROM ledger.journal) FROM old"
        " LEFT JOIN main.journal AS copy ON copy.seq = old.seq AND copy.key = old.key AND copy.kind = old.kind"
        " AND copy.cost_nanos = old.cost_nanos AND copy.written_at_us = old.written_at_us"
    ).fetchone()
    if old != same:
        raise ValueError(f"{file} holds rows of another ledger; name another file to archive to")
    add_to_hours(connection, wrong_hours(connection, (first_us or 0) // _HOUR_US * _HOUR_US))
    seqs = connection.execute("SELECT seq FROM old ORDER BY seq").fetchall()
    return Copied([seq for (seq,) in seqs], to_seq or 0)


def remember(connection: sqlite3.Connection, file: Path, before_us: int, now_us: int) -> None:
    """Write down what is archived where; from then on the journal lets go of rows from before."""
    connection.execute(
        "INSERT INTO archives (archived_at_us, before_us, file) VALUES (?, ?, ?)",
        (now_us, before_us, str(file.absolute())),
    )


def steps(copied: Copied) -> Iterator[list[int]]:
    """Yield the numbers of the rows to take out, a few at a time."""
    for first in range(0, len(copied.seqs), _STEP):
        yield copied.seqs[first : first + _STEP]


def take_out(connection: sqlite3.Connection, seqs: list[int], to_seq: int) -> tuple[int, int]:
    """Take rows out of the journal, and carry forward what they add to counters without windows.

    A call of which more became known since its rows were copied stays, whole.

    Returns:
        How many rows, and what they add up to in nano-dollars.
    """
    found = connection.execute(
        "SELECT seq, cost_nanos FROM journal WHERE seq IN (SELECT value FROM json_each(?))"
        " AND key NOT IN (SELECT key FROM holds)"
        " AND NOT EXISTS (SELECT 1 FROM journal AS later WHERE later.key = journal.key AND later.seq > ?)",
        (json.dumps(seqs), to_seq),
    ).fetchall()
    gone = (json.dumps([seq for seq, _ in found]),)
    connection.execute(
        "INSERT INTO carried SELECT coalesce(run, ''), attribution_id, provider, model, sum(cost_nanos) FROM journal"
        " WHERE seq IN (SELECT value FROM json_each(?)) AND kind IN ('settled', 'corrected', 'presumed', 'released')"
        " GROUP BY 1, 2, 3, 4 ON CONFLICT (run, attribution_id, provider, model)"
        " DO UPDATE SET cost_nanos = cost_nanos + excluded.cost_nanos",
        gone,
    )
    connection.execute("DELETE FROM journal WHERE seq IN (SELECT value FROM json_each(?))", gone)
    return len(found), sum(cost for _, cost in found)
