"""What is done to a SQLite ledger besides calls: its audit, its archive, and who enforces which limits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from . import _archive, _limits, _records
from ._archive import Archived
from ._audit import Findings, compare, compare_newest, repair
from ._queries import count_before
from ._rows import AttributionIds, insert_record, read_meters
from ._rules import since_us

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

    from maestro_core.clock import Clock
    from maestro_core.types import Meter, Record

    from ._database import Database
    from ._owners import Owners

__all__ = ["Moment", "Upkeep"]

_log = logging.getLogger("maestro")

_MOST_LINES = 20  # of a repair, in its row


class Moment(NamedTuple):
    """What a writing transaction begins with: the store's time and the journal's next number."""

    now_us: int
    seq: int


class Upkeep:
    """The part of a `SQLiteLedger` that people and its own care call for."""

    url: str
    _clock: Clock
    _database: Database
    _owners: Owners
    _attributions: AttributionIds
    _announced: list[str]

    def _begin(self, connection: sqlite3.Connection) -> Moment:
        raise NotImplementedError

    def _now_us(self, connection: sqlite3.Connection) -> int:
        raise NotImplementedError

    def _write(self, connection: sqlite3.Connection, record: Record, at_us: int, written_us: int) -> None:
        attribution_id = self._attributions.find(connection, record.attribution)
        insert_record(connection, record, attribution_id, at_us, written_us)

    def check(self) -> list[str]:
        """Compare every counter with the journal and the open holds; return one line for each difference."""
        with self._database.snapshot() as connection:
            return compare(connection).lines()

    def reconcile(self) -> list[str]:
        """Do as `check`, and put right what differs, while others go on; the journal says what was done."""
        while True:
            with self._database.snapshot() as connection:
                found = compare(connection)
            if not found.can_be_repaired:
                return found.lines()
            with self._database.writing as connection:
                now_us, seq = self._begin(connection)
                if found.is_current(connection):  # else counters were changed by something else than calls
                    self._repair(connection, found, now_us, seq)
                    return found.lines()

    def archive(self, before_us: int, file: Path) -> Archived:
        """Move the rows of calls reserved before a full hour into another file, while others go on.

        Hourly sums and counters stay as they are. The file is a ledger's file like any other; it may hold what was
        archived before.

        Args:
            before_us: Microseconds since 1970; rounded down to the hour.
            file: Where to; made if there is none.

        Raises:
            ValueError: If rows from before are needed still, or the file holds rows of another ledger.
            LedgerUnavailable: If one of the files cannot be used.
        """
        with self._database.reading as connection:
            before_us = _archive.check_time(connection, before_us, self._now_us(connection))
        copied = _archive.copy(self._database, file, before_us)
        with self._database.writing as connection:
            now_us, seq = self._begin(connection)
            _archive.remember(connection, file, before_us, now_us)
            record = _records.note(
                "archived", {"before_us": before_us, "file": str(file)}, seq=seq, now_us=now_us
            )
            self._write(connection, record, now_us, now_us)
        moved = cost_nanos = 0
        for seqs in _archive.steps(copied):
            with self._database.writing as connection:
                records, nanos = _archive.take_out(connection, seqs, copied.to_seq)
            moved, cost_nanos = moved + records, cost_nanos + nanos
        with self._database.reading as connection:
            return Archived(before_us, file, moved, cost_nanos, count_before(connection, before_us))

    def correct_clock(self) -> int:
        """Set the store's time back to the machine's, because a person knows that the machine's was ahead once.

        Calls that were made meanwhile stay where they were counted, which may be windows that are to come. Meters that were
        declared meanwhile count from the current window on. Other processes follow with their next call.

        Returns:
            By how many microseconds it was ahead; 0 if it was not, and nothing was done.
        """
        with self._database.writing as connection:
            was_us, seq = self._begin(connection)
            now_us = self._clock.now_us()
            if was_us <= now_us:
                return 0
            connection.execute(
                "UPDATE store SET clock_us = ?, meters_version = meters_version + 1", (now_us,)
            )
            for meter_id, counted in read_meters(connection).items():
                if counted.since_us > now_us:
                    begins_us = since_us(counted.meter, now_us)
                    connection.execute(
                        "UPDATE meters SET since_us = ? WHERE meter_id = ?", (begins_us, meter_id)
                    )
            repair(connection, compare(connection))  # at once, since they must not admit before they know
            detail = {"clock_was_us": was_us, "clock_is_us": now_us}
            record = _records.note("repaired", detail, seq=seq, now_us=now_us)
            self._write(connection, record, now_us, now_us)
        return was_us - now_us

    def archives(self) -> list[tuple[int, str]]:
        """Return before when calls were archived (microseconds), and to which file, in the order it was done."""
        with self._database.reading as connection:
            return connection.execute("SELECT before_us, file FROM archives ORDER BY archive_id").fetchall()

    def announce(self, limits: Sequence[tuple[Meter, int]]) -> None:
        """Let other processes know which limits this ledger's user enforces from now on, until it is closed."""
        self.declare([meter for meter, _ in limits])
        with self._database.writing as connection:
            name = _limits.announce(connection, self._owners, limits)
        self._announced.append(name)

    def limits(self) -> dict[Meter, set[int]]:
        """Return the limits that living processes enforce, in nano-dollars, by meter."""
        with self._database.reading as connection:
            return _limits.read(connection, self._owners)

    def declare(self, meters: Sequence[Meter]) -> None:
        """Count for these meters from now on."""
        raise NotImplementedError

    def _repair_newest(self) -> None:
        """Look at what the newest rows of the journal can tell, which is quick, and put right what differs."""
        with self._database.reading as connection:
            found = compare_newest(connection)
        if not found.can_be_repaired:
            return
        with self._database.writing as connection:
            now_us, seq = self._begin(connection)
            found = compare_newest(connection)
            self._repair(connection, found, now_us, seq)
        lines = found.lines()
        _log.warning("ledger %s: %d counters were wrong and are repaired: %s", self.url, len(lines), lines[0])

    def _repair(self, connection: sqlite3.Connection, found: Findings, now_us: int, seq: int) -> None:
        repair(connection, found)
        lines = found.lines()
        detail = {"differences": len(lines), "first": lines[:_MOST_LINES]}
        record = _records.note("repaired", detail, seq=seq, now_us=now_us)
        self._write(connection, record, now_us, now_us)
