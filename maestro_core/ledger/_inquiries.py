"""What a SQLite ledger is asked, and answers without writing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.caps import window
from maestro_core.types import Bucket

from . import _reports
from ._notes import read_notes
from ._queries import open_holds, read_page, span
from ._rows import read_meters, unpacked_values
from ._totals import Totals
from ._upkeep import Upkeep

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping, Sequence

    from maestro_core.types import Meter, Note, OpenHold, Record, Sum

__all__ = ["Inquiries"]

_PAGE = 500  # records read at a time, so that a slow reader of `records` holds nothing up


class Inquiries(Upkeep):
    """The part of a `SQLiteLedger` that reads."""

    _seen_us = 0
    _stored_us = 0

    def now_us(self) -> int:
        """Return the store's time in microseconds; it never goes back."""
        with self._database.reading as connection:
            return self._now_us(connection)

    def changed(self) -> int:
        """Return a number that is another one after any write to the file, by whatever process."""
        return self._database.changed()

    def meters(self) -> list[Meter]:
        """Return every meter that the ledger counts for."""
        with self._database.reading as connection:
            return [counted.meter for counted in read_meters(connection).values()]

    def buckets(self, meter: Meter) -> list[Bucket]:
        """Return a meter's buckets of the current window (all buckets, where it has no windows)."""
        with self._database.reading as connection:
            current = window(meter.every, meter.time_zone, self._now_us(connection))
            rows = connection.execute(
                "SELECT value, spent_nanos, held_nanos, presumed_nanos FROM buckets JOIN meters USING (meter_id)"
                " WHERE name = ? AND window_start_us = ?",
                (meter.id, current.start_us if current else 0),
            ).fetchall()
        found = [Bucket(meter, unpacked_values(value), current, *counter) for value, *counter in rows]
        return sorted(found, key=lambda bucket: bucket.values)

    def holds(self) -> list[OpenHold]:
        """Return the open and the presumed holds, oldest first."""
        with self._database.reading as connection:
            return open_holds(connection)

    def records(
        self, *, since_us: int = 0, until_us: int | None = None, run: str | None = None
    ) -> Iterator[Record]:
        """Yield journal rows of calls reserved in [since_us, until_us), in the order they were written."""
        with self._database.reading as connection:
            first, last = span(connection, since_us, until_us, run)
        while first <= last:
            with self._database.reading as connection:
                page = read_page(connection, (first, last), (since_us, until_us), run, _PAGE)
            yield from page
            first = page[-1].seq + 1 if page else last + 1

    def sums(
        self,
        by: Sequence[str],
        *,
        since_us: int = 0,
        until_us: int | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[Sum]:
        """Add up the journal by dimensions (`provider` and `model` are dimensions too); `by=()` gives one total row."""
        totals = Totals(by, where)
        with self._database.reading as connection:
            _reports.add_up(connection, totals, since_us, until_us)
        return totals.sums()

    def notes(self, kind: str, *, key: str | None = None, since_us: int = 0) -> list[Note]:
        """Return the notes of a kind that were written at or after that time, oldest first; or the one with a key."""
        with self._database.reading as connection:
            return read_notes(connection, kind, key, since_us)

    def _latest_us(self, stored_us: int) -> int:
        if stored_us < self._stored_us:  # only a person sets it back: `correct_clock`
            self._seen_us = 0
        self._stored_us = stored_us
        self._seen_us = max(self._seen_us, stored_us, self._clock.now_us())
        return self._seen_us

    def _now_us(self, connection: sqlite3.Connection) -> int:
        (stored_us,) = connection.execute("SELECT clock_us FROM store").fetchone()
        return self._latest_us(stored_us)
