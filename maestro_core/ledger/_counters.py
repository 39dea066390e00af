"""The meters of a SQLite file and their buckets, read and changed inside a writing transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.clock import to_micros

from ._filling import add_meter
from ._rows import ADD_TO_BUCKET, filling, packed_values, read_meters
from ._rules import Counted, Place, charged, since_us
from ._run_buckets import drop_old, has_called, restore, run_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from maestro_core.types import Hold, Meter, OpenHold, Record

__all__ = ["Counters"]

_MOST_RECENT = 10_000
_MINUTE_US = 60_000_000

_READ = (
    "SELECT spent_nanos, held_nanos, presumed_nanos FROM buckets"
    " WHERE meter_id = ? AND window_start_us = ? AND value = ?"
)


class Counters:
    """What one process knows of the file's meters, and how their buckets are read and changed.

    Any process may add a meter, and from then on every process must feed it. So the file counts its meters' version,
    and each writing transaction calls `refresh` first.
    """

    def __init__(self) -> None:
        self._version = -1
        self._counted: list[Counted] = []
        self._ids: dict[str, int] = {}
        self._filling: frozenset[str] = frozenset()
        self._of_runs: dict[int, Meter] = {}
        self._recent: dict[str, tuple[int, list[Place]]] = {}
        self._none_old_us = 0  # when no old run was found to drop; it takes a while for one to become old

    def know(self, meters: Iterable[Meter]) -> bool:
        """Return whether all these meters are known to be in the file, and filled; meters are never removed."""
        return all(meter.id in self._ids and meter.id not in self._filling for meter in meters)

    def refresh(self, connection: sqlite3.Connection, version: int) -> None:
        """Read the meters again if the file's version is another than the one last seen."""
        if version == self._version:
            return
        meters = read_meters(connection)
        self._ids = {counted.meter.id: meter_id for meter_id, counted in meters.items()}
        self._counted = list(meters.values())
        self._filling = filling(connection)
        self._of_runs = {
            meter_id: counted.meter
            for meter_id, counted in meters.items()
            if "run" in counted.meter.per and not counted.meter.every
        }
        self._version = version
        self._recent.clear()

    def declare(
        self, connection: sqlite3.Connection, meters: Sequence[Meter], now_us: int, last_seq: int
    ) -> list[Counted]:
        """Add the meters that are not in the file; return those of all these that `fill` has to be called for."""
        new = [meter for meter in dict.fromkeys(meters) if meter.id not in self._ids]
        for meter in new:
            add_meter(connection, Counted(meter, since_us(meter, now_us)), last_seq)
        if new:
            connection.execute(
                "UPDATE store SET meters_version = meters_version + 1, clock_us = ?", (now_us,)
            )
        wanted, waiting = {meter.id for meter in meters}, filling(connection)
        return [
            counted for counted in read_meters(connection).values() if counted.meter.id in wanted & waiting
        ]

    def places(self, hold: Hold, at_us: int) -> list[Place]:
        """Return every place that a call reserved now charges; remembered for its settling by the same process."""
        places = charged(self._counted, hold.attribution, hold.provider, hold.model, at_us)
        if len(self._recent) >= _MOST_RECENT:
            self._recent.clear()
        self._recent[hold.key] = (at_us, places)
        return places

    def places_of(self, hold: OpenHold) -> list[Place]:
        """Return every place where an open or presumed hold is counted."""
        at_us, places = self._recent.pop(hold.key, (-1, []))
        if at_us == hold.at_us:  # else that attempt came to nothing, and a later one made the hold
            return places
        return charged(self._counted, hold.attribution, hold.provider, hold.model, hold.at_us)

    def places_at(self, record: Record) -> list[Place]:
        """Return every place where a record's call is counted."""
        at_us = to_micros(record.at)
        return charged(self._counted, record.attribution, record.provider, record.model, at_us)

    def read(
        self, connection: sqlite3.Connection, places: Iterable[Place], now_us: int
    ) -> list[tuple[int, int, int]]:
        """Return the counter of each place; zeros where nothing was counted yet. A run's that was dropped comes back."""
        execute = connection.execute
        return [
            execute(_READ, self._row(place)).fetchone() or self._returned(connection, place, now_us)
            for place in places
        ]

    def add(
        self, connection: sqlite3.Connection, places: Iterable[Place], change: tuple[int, int, int]
    ) -> None:
        """Add to spent, held and presumed at every place."""
        connection.executemany(ADD_TO_BUCKET, [(*self._row(place), *change) for place in places])

    def _returned(self, connection: sqlite3.Connection, place: Place, now_us: int) -> tuple[int, int, int]:
        run = run_of(place.meter, place.values)
        if run is None:
            return (0, 0, 0)
        if not 0 <= now_us - self._none_old_us < _MINUTE_US:
            self._none_old_us = 0 if drop_old(connection, self._of_runs, now_us, run) else now_us
        if not has_called(connection, run):
            return (0, 0, 0)
        restore(connection, self._ids[place.key[0]], place.meter, run)
        return connection.execute(_READ, self._row(place)).fetchone() or (0, 0, 0)

    def _row(self, place: Place) -> tuple[int, int, str]:
        meter_id, values, start_us = place.key
        return self._ids[meter_id], start_us, packed_values(values)
