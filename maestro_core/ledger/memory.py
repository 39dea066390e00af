"""The ledger of one process, in its memory: for tests, notebooks and short scripts. Nothing survives the process."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from maestro_core.caps import window
from maestro_core.clock import Clock, SystemClock, to_micros
from maestro_core.errors import LedgerUnavailable, ReservationClosed
from maestro_core.forks import fork_safe_lock, tell_child
from maestro_core.types import Bucket, Held, Hold, Meter, Note, OpenHold, Record, Refused, Settlement, Sum

from . import _records, _tickets
from ._rules import (
    BucketKey,
    Counted,
    Counter,
    Place,
    Spend,
    admit,
    charged,
    differences,
    rebuild,
    since_us,
)
from ._totals import Totals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ["MemoryLedger"]


@dataclass(slots=True)
class _Open:
    """An open or presumed hold, and the places where it is counted."""

    hold: OpenHold
    places: list[tuple[Place, Counter]]


class MemoryLedger:
    """A ledger in memory, behind one lock.

    Args:
        clock: Where time comes from; the machine's clock if None.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.url = "memory:"
        self._clock = clock or SystemClock()
        self._lock = fork_safe_lock()
        self._closed = False
        self._latest_us = 0
        self._owner = _new_owner()
        self._counted: dict[str, Counted] = {}
        self._buckets: dict[BucketKey, tuple[Place, Counter]] = {}
        self._open: dict[str, _Open] = {}
        self._journal: list[tuple[int, Record]] = []
        self._closing: dict[str, Record] = {}
        self._refusals: dict[str, Record] = {}
        self._grants: dict[str, Record] = {}
        self._tickets: dict[str, _tickets.Standing] = {}
        self._notes: dict[str, Note] = {}
        tell_child(self._forked)

    def now_us(self) -> int:
        """Return the latest time seen, in microseconds; it never goes back."""
        with self._lock:
            return self._now_us()

    def declare(self, meters: Sequence[Meter]) -> None:
        """Count for these meters from now on; a new one starts with this window's records and open holds."""
        with self._lock:
            self._declare(meters)

    def reserve(self, hold: Hold) -> Held | Refused:
        """Hold the amount in every bucket the call charges, or in none.

        Raises:
            ReservationClosed: If the key was settled or released before.
        """
        with self._lock:
            now_us = self._now_us()
            if hold.key in self._open:
                opened = self._open[hold.key].hold
                return Held(hold.key, opened.amount_nanos, opened.at_us)
            if hold.key in self._closing:
                raise ReservationClosed(
                    f"reservation {hold.key} is closed; a new attempt of a call needs a new key"
                )
            for meter, _ in hold.limits:
                if meter.id not in self._counted:
                    self._declare([meter])
            places = self._places(hold, now_us)
            aside = _tickets.promised(self._tickets, hold, now_us) if self._tickets else {}
            amount = admit(hold, places, now_us, aside)
            if isinstance(amount, Refused):
                if ticket := _tickets.renewed(self._tickets, hold, amount, now_us):
                    self._tickets[hold.key] = ticket
                else:
                    self._tickets.pop(hold.key, None)
                return amount
            self._tickets.pop(hold.key, None)
            for place, counter in places:
                counter[1] += amount
                self._buckets.setdefault(place.key, (place, counter))
            opened = OpenHold(
                hold.key, amount, now_us, hold.provider, hold.model, hold.attribution, self._owner, "held"
            )
            self._open[hold.key] = _Open(opened, places)
            return Held(hold.key, amount, now_us)

    def settle(self, key: str, settlement: Settlement) -> Record:
        """Replace the hold by the true cost and journal it; also after the hold was presumed (a correction).

        Raises:
            ReservationClosed: If the key is unknown, was released, or was settled at another cost.
        """
        with self._lock:
            now_us = self._now_us()
            opened = self._open.get(key)
            if opened is None:
                return _records.repeated_settle(key, self._closing.get(key), settlement)
            if opened.hold.owner != self._owner:
                self._check_owner(opened.hold)
            record = _records.settled(opened.hold, settlement, seq=len(self._journal) + 1, now_us=now_us)
            self._close_hold(opened, record, settlement.cost_nanos)
            return record

    def correct(self, key: str, truth: Settlement) -> Record:
        """Journal that a settled call cost something else, as the difference; its rows stay as they are.

        Correcting to what the journal says already returns the call's last row.

        Raises:
            ReservationClosed: If the key is unknown, still open, or was released.
        """
        with self._lock:
            now_us, seq = self._now_us(), len(self._journal) + 1
            rows = [record for _, record in self._journal if record.key == key]
            record = _records.corrected(key, rows, truth, seq=seq, now_us=now_us)
            if record.seq == seq:
                at_us = to_micros(record.at)
                for place in charged(
                    self._counted.values(), record.attribution, record.provider, record.model, at_us
                ):
                    _, counter = self._buckets.setdefault(place.key, (place, [0, 0, 0]))
                    counter[0] += record.cost_nanos
                self._journal.append((at_us, record))
            return record

    def release(self, key: str, reason: str) -> Record:
        """Give the held money back and journal why. Releasing again returns the first record.

        Raises:
            ReservationClosed: If the key is unknown or was settled.
        """
        with self._lock:
            now_us = self._now_us()
            opened = self._open.get(key)
            if opened is None:
                return _records.repeated_release(key, self._closing.get(key))
            self._check_owner(opened.hold)
            record = _records.released(opened.hold, reason, seq=len(self._journal) + 1, now_us=now_us)
            self._close_hold(opened, record, 0)
            return record

    def refuse(self, hold: Hold, detail: Mapping[str, Any]) -> Record:
        """Journal that a call was refused; holds nothing. Refusing again returns the first record."""
        with self._lock:
            now_us = self._now_us()
            record = self._refusals.get(hold.key)
            if record is None:
                record = _records.refused(hold, detail, seq=len(self._journal) + 1, now_us=now_us)
                self._refusals[hold.key] = record
                self._journal.append((now_us, record))
            return record

    def grant(self, key: str, run: str, detail: Mapping[str, Any]) -> Record:
        """Journal that a person let a run go on; again with the same key is the same grant."""
        with self._lock:
            now_us = self._now_us()
            record = self._grants.get(key)
            if record is None:
                record = _records.granted(key, run, detail, seq=len(self._journal) + 1, now_us=now_us)
                self._grants[key] = record
                self._journal.append((now_us, record))
            return record

    def presume(self, *, older_than_us: int = 0, keys: Collection[str] = ()) -> list[Record]:
        """Count as spent every open hold whose owner is gone, was made before that time, or has one of the keys."""
        with self._lock:
            now_us = self._now_us()
            return [
                self._presume(opened, now_us)
                for opened in self._open.values()
                if opened.hold.state == "held"
                and (
                    opened.hold.owner != self._owner  # settled where this process was forked from, if at all
                    or opened.hold.at_us < older_than_us
                    or opened.hold.key in keys
                )
            ]

    def changed(self) -> int:
        """Return always the same: no other process writes to this ledger, and its own waiters are woken."""
        return 0

    def withdraw(self, key: str) -> None:
        """Take back the ticket of a call that does not wait any more; nothing happens if it has none."""
        with self._lock:
            self._tickets.pop(key, None)

    def meters(self) -> list[Meter]:
        """Return every meter that the ledger counts for."""
        with self._lock:
            self._check_open()
            return [counted.meter for counted in self._counted.values()]

    def buckets(self, meter: Meter) -> list[Bucket]:
        """Return a meter's buckets of the current window (all buckets, where it has no windows)."""
        with self._lock:
            current = window(meter.every, meter.time_zone, self._now_us())
            found = [
                place.bucket(counter)
                for place, counter in self._buckets.values()
                if place.meter == meter and place.window == current
            ]
        return sorted(found, key=lambda bucket: bucket.values)

    def holds(self) -> list[OpenHold]:
        """Return the open and the presumed holds, oldest first."""
        with self._lock:
            self._check_open()
            return sorted((opened.hold for opened in self._open.values()), key=lambda h: (h.at_us, h.key))

    def records(
        self, *, since_us: int = 0, until_us: int | None = None, run: str | None = None
    ) -> Iterator[Record]:
        """Yield journal rows of calls reserved in [since_us, until_us), in the order they were written."""
        for at_us, record in self._rows():
            if (
                since_us <= at_us
                and (until_us is None or at_us < until_us)
                and (run is None or record.run == run)
            ):
                yield record

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
        for record in self.records(since_us=since_us, until_us=until_us):
            totals.add_call(record.attribution, record.provider, record.model, _records.numbers(record))
        return totals.sums()

    def keep(self, key: str, kind: str, body: Mapping[str, Any], *, revision: int = 0) -> bool:
        """Write a note, if the note with this key is at that revision (0: there is none yet); return whether it was."""
        with self._lock:
            now_us = self._now_us()
            found = self._notes.get(key)
            if (found.revision if found else 0) != revision:
                return False
            self._notes[key] = Note(key, kind, dict(body), revision + 1, now_us)
            return True

    def notes(self, kind: str, *, key: str | None = None, since_us: int = 0) -> list[Note]:
        """Return the notes of a kind that were written at or after that time, oldest first; or the one with a key."""
        with self._lock:
            self._check_open()
            if key is None:
                found = list(self._notes.values())
            else:
                found = [self._notes[key]] if key in self._notes else []
        return sorted(
            (n for n in found if n.kind == kind and n.at_us >= since_us), key=lambda n: (n.at_us, n.key)
        )

    def check(self) -> list[str]:
        """Compare every counter with the journal and the open holds; return one line for each difference."""
        with self._lock:
            self._check_open()
            expected = self._rebuild(list(self._counted.values()))
            found = differences(
                {key: counter for key, (_, counter) in expected.items()},
                {key: counter for key, (_, counter) in self._buckets.items()},
            )
            return [line for difference in found for line in difference.lines()]

    def close(self) -> None:
        """Release the store. Further verbs raise `LedgerUnavailable`."""
        self._closed = True

    def _forked(self) -> None:
        # A ledger in memory is one for each process from now on. What was held belongs to the other one.
        self._owner = _new_owner()

    def _check_owner(self, hold: OpenHold) -> None:
        if hold.state == "held" and hold.owner != self._owner:
            raise _records.inherited(hold)

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerUnavailable("the ledger memory: is closed; open a new one")

    def _now_us(self) -> int:
        if self._closed:
            self._check_open()
        self._latest_us = max(self._latest_us, self._clock.now_us())
        return self._latest_us

    def _declare(self, meters: Sequence[Meter]) -> None:
        new = [meter for meter in meters if meter.id not in self._counted]
        if not new:
            return
        now_us = self._now_us()
        counted = [Counted(meter, since_us(meter, now_us)) for meter in dict.fromkeys(new)]
        self._buckets |= self._rebuild(counted)
        self._counted |= {one.meter.id: one for one in counted}
        for opened in self._open.values():
            opened.places = self._places(opened.hold, opened.hold.at_us)

    def _rebuild(self, counted: Sequence[Counted]) -> dict[BucketKey, tuple[Place, Counter]]:
        spends = (Spend(r.attribution, r.provider, r.model, at, r.cost_nanos) for at, r in self._journal)
        return rebuild(counted, spends, [opened.hold for opened in self._open.values()])

    def _places(self, of: Hold | OpenHold, at_us: int) -> list[tuple[Place, Counter]]:
        places = charged(self._counted.values(), of.attribution, of.provider, of.model, at_us)
        found = self._buckets.get
        return [found(place.key) or (place, [0, 0, 0]) for place in places]

    def _close_hold(self, opened: _Open, record: Record, cost_nanos: int) -> None:
        state = 1 if opened.hold.state == "held" else 2
        for _, counter in opened.places:
            counter[state] -= opened.hold.amount_nanos
            counter[0] += cost_nanos
        del self._open[opened.hold.key]
        self._closing[opened.hold.key] = record
        self._journal.append((opened.hold.at_us, record))

    def _presume(self, opened: _Open, now_us: int) -> Record:
        record = _records.presumed(opened.hold, seq=len(self._journal) + 1, now_us=now_us)
        for _, counter in opened.places:
            counter[1] -= opened.hold.amount_nanos
            counter[2] += opened.hold.amount_nanos
        opened.hold = replace(opened.hold, state="presumed")
        self._journal.append((opened.hold.at_us, record))
        return record

    def _rows(self) -> list[tuple[int, Record]]:
        with self._lock:
            self._check_open()
            return self._journal.copy()


def _new_owner() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"
