"""The meters of a SQLite file and their buckets, read and changed inside a writing transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.clock import to_micros

from ._queries import open_holds
from ._reports import spends
from ._rows import insert_meter, packed_values, read_meters
from ._rules import Counted, Place, charged, rebuild, since_us

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from maestro_core.types import Hold, Meter, OpenHold, Record

__all__ = ["Counters"]

_MOST_RECENT = 10_000

_ADD = (
    "INSERT INTO buckets VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (meter_id, window_start_us, value) DO UPDATE SET"
    " spent_nanos = spent_nanos + excluded.spent_nanos, held_nanos = held_nanos + excluded.held_nanos,"
    " presumed_nanos = presumed_nanos + excluded.presumed_nanos"
)
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
        self._recent: dict[str, tuple[int, list[Place]]] = {}

    def know(self, meters: Iterable[Meter]) -> bool:
        """Return whether all these meters are known to be in the file already; meters are never removed."""
        return all(meter.id in self._ids for meter in meters)

    def refresh(self, connection: sqlite3.Connection, version: int) -> None:
        """Read the meters again if the file's version is another than the one last seen."""
        if version == self._version:
            return
        meters = read_meters(connection)
        self._ids = {counted.meter.id: meter_id for meter_id, counted in meters.items()}
        self._counted = list(meters.values())
        self._version = version
        self._recent.clear()

    def declare(self, connection: sqlite3.Connection, meters: Sequence[Meter], now_us: int) -> None:
        """Add the meters that are not in the file, each filled with this window's records and open holds."""
        new = [meter for meter in dict.fromkeys(meters) if meter.id not in self._ids]
        for meter in new:
            counted = Counted(meter, since_us(meter, now_us))
            meter_id = insert_meter(connection, counted)
            filled = rebuild([counted], spends(connection, counted.since_us), open_holds(connection))
            connection.executemany(
                _ADD,
                [(meter_id, key[2], packed_values(key[1]), *counter) for key, (_, counter) in filled.items()],
            )
        if new:
            connection.execute(
                "UPDATE store SET meters_version = meters_version + 1, clock_us = ?", (now_us,)
            )

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

    def read(self, connection: sqlite3.Connection, places: Iterable[Place]) -> list[tuple[int, int, int]]:
        """Return the counter of each place; zeros where nothing was counted yet."""
        execute = connection.execute
        return [execute(_READ, self._row(place)).fetchone() or (0, 0, 0) for place in places]

    def add(
        self, connection: sqlite3.Connection, places: Iterable[Place], change: tuple[int, int, int]
    ) -> None:
        """Add to spent, held and presumed at every place."""
        connection.executemany(_ADD, [(*self._row(place), *change) for place in places])

    def _row(self, place: Place) -> tuple[int, int, str]:
        meter_id, values, start_us = place.key
        return self._ids[meter_id], start_us, packed_values(values)
