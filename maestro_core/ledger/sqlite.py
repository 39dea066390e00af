"""The default ledger: one SQLite file for all threads and processes of a machine."""

from __future__ import annotations

import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from maestro_core.clock import Clock, SystemClock, to_micros
from maestro_core.errors import LedgerUnavailable, ReservationClosed
from maestro_core.types import Held, OpenHold, Refused

from . import _records, _tickets
from ._counters import Counters, Row
from ._database import Database
from ._filling import fill
from ._inquiries import Inquiries
from ._limits import withdraw
from ._notes import keep_note
from ._owners import Owners
from ._queries import (
    ASK_BEFORE_CLOSING,
    ASK_BEFORE_HOLDING,
    find_closing,
    find_hold,
    find_note,
    find_rows,
    stale_keys,
)
from ._rows import INSERT_HOLD, AttributionIds, insert_record
from ._rules import Place, admit
from ._upkeep import Moment

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Mapping, Sequence

    from maestro_core.types import Hold, Meter, Record, Settlement

__all__ = ["SQLiteLedger"]

_STEP = 500  # holds that are presumed spent at a time, so that a crowd of them holds nothing up


class _Opened(NamedTuple):
    """An open or presumed hold that is about to be closed: its buckets, and what its row in the journal needs."""

    hold: OpenHold
    attribution_id: int
    rows: list[Row]
    now_us: int
    seq: int


class SQLiteLedger(Inquiries):
    """A ledger in a SQLite file, which is created or brought to the current schema when opened.

    Args:
        path: The file, relative to the current folder or absolute.
        clock: Where time comes from; the machine's clock if None.
        repair: Whether to look at the newest counters first, and to put right what is wrong.

    Raises:
        LedgerUnavailable: If the file cannot be used; the message names it and the fix.
    """

    def __init__(self, path: str | Path, clock: Clock | None = None, *, repair: bool = True) -> None:
        self.url = f"sqlite:///{path}"
        self._clock = clock or SystemClock()
        self._database = Database(Path(path))
        self._attributions = AttributionIds()
        self._counters = Counters()
        self._company = _tickets.Company()
        self._owners = Owners(self._database.path)
        self._announced: list[str] = []
        self._close = weakref.finalize(self, _close, self._database, self._owners, self._announced)
        if repair:
            self._repair_newest()

    def declare(self, meters: Sequence[Meter]) -> None:
        """Count for these meters from now on; a new one starts with this window's records and open holds."""
        if self._counters.known.issuperset([meter.id for meter in meters]):
            return
        with self._database.writing as connection:
            now_us, seq = self._begin(connection)
            waiting = self._counters.declare(connection, meters, now_us, seq - 1)
        for counted in waiting:
            fill(self._database, counted.meter.id, counted)

    def reserve(self, hold: Hold) -> Held | Refused:
        """Hold the amount in every bucket the call charges, or in none.

        Raises:
            ReservationClosed: If the key was settled or released before.
        """
        if not self._counters.known.issuperset([meter.id for meter, _ in hold.limits]):
            self.declare([meter for meter, _ in hold.limits])
        key = hold.key
        with self._database.writing as connection:
            asked = connection.execute(ASK_BEFORE_HOLDING, {"key": key}).fetchone()
            clock_us, version, is_held, is_closed, any_waits = asked
            if version != self._counters.version:
                self._counters.refresh(connection, version)
            now_us = self._latest_us(clock_us)
            if is_held and (opened := find_hold(connection, key)):
                return Held(key, opened.amount_nanos, opened.at_us)
            if is_closed:
                raise ReservationClosed(
                    f"reservation {key} is closed; a new attempt of a call needs a new key"
                )
            places, rows = self._counters.charge(hold, now_us)
            counted = self._counters.read(connection, places, rows, now_us)
            standing = _tickets.read(connection) if any_waits else {}
            amount = self._admit(connection, hold, counted, now_us, standing)
            if isinstance(amount, Refused):
                return amount
            self._hold(connection, hold, amount, now_us)
            self._counters.add(connection, rows, (0, amount, 0))
        return Held(key, amount, now_us)

    def settle(self, key: str, settlement: Settlement) -> Record:
        """Replace the hold by the true cost and journal it; also after the hold was presumed (a correction).

        Raises:
            ReservationClosed: If the key is unknown, was released, was settled at another cost, or is held by a process
                that this one was forked from.
        """
        with self._database.writing as connection:
            opened = self._open_hold(connection, key)
            if opened is None:
                return _records.repeated_settle(key, find_closing(connection, key), settlement)
            record = _records.settled(opened.hold, settlement, seq=opened.seq, now_us=opened.now_us)
            self._close_hold(connection, opened, record, settlement.cost_nanos)
            return record

    def correct(self, key: str, truth: Settlement) -> Record:
        """Journal that a settled call cost something else, as the difference; its rows stay as they are.

        Correcting to what the journal says already returns the call's last row.

        Raises:
            ReservationClosed: If the key is unknown, still open, or was released.
        """
        with self._database.writing as connection:
            now_us, seq = self._begin(connection)
            record = _records.corrected(key, find_rows(connection, key), truth, seq=seq, now_us=now_us)
            if record.seq == seq:
                self._counters.correct(connection, record, now_us)
                self._write(connection, record, to_micros(record.at), now_us)
            return record

    def release(self, key: str, reason: str) -> Record:
        """Give the held money back and journal why. Releasing again returns the first record.

        Raises:
            ReservationClosed: If the key is unknown or was settled.
        """
        with self._database.writing as connection:
            opened = self._open_hold(connection, key)
            if opened is None:
                return _records.repeated_release(key, find_closing(connection, key))
            record = _records.released(opened.hold, reason, seq=opened.seq, now_us=opened.now_us)
            self._close_hold(connection, opened, record, 0)
            return record

    def refuse(self, hold: Hold, detail: Mapping[str, Any]) -> Record:
        """Journal that a call was refused; holds nothing. Refusing again returns the first record."""
        with self._database.writing as connection:
            now_us, seq = self._begin(connection)
            first = find_note(connection, hold.key, "refused")
            if first:
                return first
            record = _records.refused(hold, detail, seq=seq, now_us=now_us)
            self._write(connection, record, now_us, now_us)
            return record

    def grant(self, key: str, run: str, detail: Mapping[str, Any]) -> Record:
        """Journal that a person let a run go on; again with the same key is the same grant."""
        with self._database.writing as connection:
            now_us, seq = self._begin(connection)
            first = find_note(connection, key, "granted")
            if first:
                return first
            record = _records.granted(key, run, detail, seq=seq, now_us=now_us)
            self._write(connection, record, now_us, now_us)
            return record

    def presume(self, *, older_than_us: int = 0, keys: Collection[str] = ()) -> list[Record]:
        """Count as spent every open hold whose owner is gone, was made before that time, or has one of the keys."""
        with self._database.reading as connection:
            stale = stale_keys(connection, self._owners, older_than_us, keys)
        records: list[Record] = []
        while stale:  # nobody is alive for a hold again, so it need not be asked twice
            records += self._presume(stale[:_STEP])
            del stale[:_STEP]
        return records

    def withdraw(self, key: str) -> None:
        """Take back the ticket of a call that does not wait any more; nothing happens if it has none."""
        with self._database.reading as connection:
            if key not in _tickets.read(connection):
                return
        with self._database.writing as connection:
            connection.execute("DELETE FROM tickets WHERE key = ?", (key,))

    def keep(self, key: str, kind: str, body: Mapping[str, Any], *, revision: int = 0) -> bool:
        """Write a note, if the note with this key is at that revision (0: there is none yet); return whether it was."""
        with self._database.writing as connection:
            now_us = self._begin(connection).now_us
            return keep_note(connection, key, kind, body, revision=revision, now_us=now_us)

    @staticmethod
    def _since_boot_us() -> int:
        # The same for all processes of a machine, and nobody sets it: a wall clock that is set back would keep the
        # tickets of dead processes alive until it has caught up.
        return time.monotonic_ns() // 1_000

    def close(self) -> None:
        """Release the file. Further verbs raise `LedgerUnavailable`. What is held stays so while the process lives."""
        self._close()

    def _begin(self, connection: sqlite3.Connection) -> Moment:
        clock_us, version, last = connection.execute(
            "SELECT clock_us, meters_version, (SELECT max(seq) FROM journal) FROM store"
        ).fetchone()
        if version != self._counters.version:
            self._counters.refresh(connection, version)
        return Moment(self._latest_us(clock_us), (last or 0) + 1)

    def _presume(self, keys: Sequence[str]) -> list[Record]:
        records: list[Record] = []
        with self._database.writing as connection:
            now_us, seq = self._begin(connection)
            for key in keys:
                hold = find_hold(connection, key)
                if hold is None or hold.state != "held":
                    continue
                record = _records.presumed(hold, seq=seq + len(records), now_us=now_us)
                amount = hold.amount_nanos
                self._counters.add(connection, self._counters.rows_of(hold), (0, -amount, amount))
                connection.execute("UPDATE holds SET state = 'presumed' WHERE key = ?", (key,))
                self._write(connection, record, hold.at_us, now_us)
                records.append(record)
        return records

    def _open_hold(self, connection: sqlite3.Connection, key: str) -> _Opened | None:
        """Return the hold that is to be closed, or None if there is none.

        Raises:
            ReservationClosed: If it belongs to a process that this one was forked from.
        """
        asked = connection.execute(ASK_BEFORE_CLOSING, (key,)).fetchone()
        clock_us, version, last, attribution_id, at_us, amount, owner, state = asked
        if version != self._counters.version:
            self._counters.refresh(connection, version)
        now_us = self._latest_us(clock_us)
        asked_for = self._counters.recall(key, at_us)
        if asked_for:
            its, rows = asked_for.hold, asked_for.rows
            hold = OpenHold(key, amount, at_us, its.provider, its.model, its.attribution, owner, state)
        elif (found := find_hold(connection, key)) is not None:
            hold, rows = found, self._counters.rows_of(found)
        else:
            return None
        if state == "held" and self._owners.inherited(owner):
            raise _records.inherited(hold)
        return _Opened(hold, attribution_id, rows, now_us, (last or 0) + 1)

    def _hold(self, connection: sqlite3.Connection, hold: Hold, amount_nanos: int, now_us: int) -> None:
        connection.execute("UPDATE store SET clock_us = ? WHERE id = 1", (now_us,))
        whom = hold.attribution
        whose = (self._attributions.find(connection, whom), whom.dimensions.get("run"), self._owners.name())
        connection.execute(INSERT_HOLD, (hold.key, amount_nanos, now_us, hold.provider, hold.model, *whose))

    def _admit(
        self,
        connection: sqlite3.Connection,
        hold: Hold,
        places: Sequence[tuple[Place, tuple[int, int, int]]],
        now_us: int,
        standing: Mapping[str, _tickets.Standing],
    ) -> int | Refused:
        """Return how much to hold, or who refuses it, with a regard to other processes; and keep the caller's ticket."""
        tick_us = self._since_boot_us()
        aside = _tickets.promised(standing, hold, tick_us) if standing else {}
        amount = admit(hold, places, now_us, aside)
        if hold.ticket is not None and hold.ticket.waits:
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            if self._company.expected(version, tick_us) and not isinstance(amount, Refused):
                amount = _tickets.too_soon(standing, hold, places, now_us, tick_us) or amount
        if standing or isinstance(amount, Refused):
            ticket = _tickets.renewed(standing, hold, amount, tick_us)
            _tickets.write(connection, standing, hold.key, ticket, tick_us)
        return amount

    def _close_hold(
        self, connection: sqlite3.Connection, opened: _Opened, record: Record, cost_nanos: int
    ) -> None:
        hold = opened.hold
        freed = -hold.amount_nanos
        change = (cost_nanos, freed, 0) if hold.state == "held" else (cost_nanos, 0, freed)
        self._counters.add(connection, opened.rows, change)
        connection.execute("DELETE FROM holds WHERE key = ?", (hold.key,))
        insert_record(connection, record, opened.attribution_id, hold.at_us, opened.now_us)


def _close(database: Database, owners: Owners, announced: list[str]) -> None:
    if announced:
        with suppress(LedgerUnavailable), database.writing as connection:
            withdraw(connection, announced)
    keep = _holds_money(database, owners)
    database.close()
    owners.close(keep=keep)


def _holds_money(database: Database, owners: Owners) -> bool:
    names = owners.claimed()
    if not names:
        return False
    try:
        with database.reading as connection:
            held = connection.execute("SELECT DISTINCT owner FROM holds WHERE state = 'held'").fetchall()
    except LedgerUnavailable:
        return True
    return any(owner in names for (owner,) in held)
