"""The meters of a SQLite file and their buckets, read and changed inside a writing transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from maestro_core.clock import to_micros

from ._filling import add_meter
from ._rows import ADD_TO_BUCKET, filling, packed_values, read_meters
from ._rules import Counted, Place, charged, since_us
from ._run_buckets import drop_old, has_called, restore, run_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from maestro_core.types import Hold, Meter, OpenHold, Record

__all__ = ["Asked", "Counters", "Row"]

# What finds a bucket in the file: the meter's id, the start of the window, the values.
Row = tuple[int, int, str]

_MOST_RECENT = 10_000
_MINUTE_US = 60_000_000

_READ = (
    "SELECT spent_nanos, held_nanos, presumed_nanos FROM buckets"
    " WHERE meter_id = ? AND window_start_us = ? AND value = ?"
)


class Asked(NamedTuple):
    """A hold that was asked for then, and the buckets that it charges."""

    hold: Hold
    at_us: int
    rows: list[Row]


class Counters:
    """What one process knows of the file's meters, and how their buckets are read and changed.

    Any process may add a meter, and from then on every process must feed it. So the file counts its meters' version,
    and each writing transaction calls `refresh` first.
    """

    def __init__(self) -> None:
        self.version = -1
        self._counted: list[Counted] = []
        self._ids: dict[str, int] = {}
        self.known: frozenset[str] = frozenset()  # meters in the file that are filled; none is ever removed
        self._of_runs: dict[int, Meter] = {}
        self._recent: dict[str, Asked] = {}
        self._none_old_us = 0  # when no old run was found to drop; it takes a while for one to become old

    def refresh(self, connection: sqlite3.Connection, version: int) -> None:
        """Read the meters, since the file's version is another than the one last seen."""
        meters = read_meters(connection)
        self._ids = {counted.meter.id: meter_id for meter_id, counted in meters.items()}
        self._counted = list(meters.values())
        self.known = frozenset(self._ids) - filling(connection)
        self._of_runs = {
            meter_id: counted.meter
            for meter_id, counted in meters.items()
            if "run" in counted.meter.per and not counted.meter.every
        }
        self.version = version
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

    def charge(self, hold: Hold, at_us: int) -> tuple[list[Place], list[Row]]:
        """Return where a call reserved now is counted; remembered for its settling by the same process."""
        places = charged(self._counted, hold.attribution, hold.provider, hold.model, at_us)
        rows = self._rows(places)
        if len(self._recent) >= _MOST_RECENT:
            self._recent.clear()
        self._recent[hold.key] = tuple.__new__(Asked, (hold, at_us, rows))  # its own constructor is in Python
        return places, rows

    def recall(self, key: str, at_us: int | None) -> Asked | None:
        """Return, once, what this process asked for then; None if that is not remembered."""
        found = self._recent.pop(key, None)
        # That attempt may have come to nothing, and a later one made the hold.
        return found if found and found.at_us == at_us else None

    def rows_of(self, hold: OpenHold) -> list[Row]:
        """Return the buckets in which an open or presumed hold is counted."""
        return self._rows(charged(self._counted, hold.attribution, hold.provider, hold.model, hold.at_us))

    def correct(self, connection: sqlite3.Connection, record: Record, now_us: int) -> None:
        """Add what a correction comes to where its call is counted."""
        at_us = to_micros(record.at)
        places = charged(self._counted, record.attribution, record.provider, record.model, at_us)
        rows = self._rows(places)
        self.read(connection, places, rows, now_us)  # so that a dropped bucket is there to add to
        self.add(connection, rows, (record.cost_nanos, 0, 0))

    def read(
        self, connection: sqlite3.Connection, places: Iterable[Place], rows: Iterable[Row], now_us: int
    ) -> list[tuple[Place, tuple[int, int, int]]]:
        """Return each place with its counter; zeros where nothing was counted yet. A run's that was dropped comes back."""
        execute = connection.execute
        return [
            (place, execute(_READ, row).fetchone() or self._returned(connection, place, row, now_us))
            for place, row in zip(places, rows, strict=True)
        ]

    def add(self, connection: sqlite3.Connection, rows: Iterable[Row], change: tuple[int, int, int]) -> None:
        """Add to spent, held and presumed in every bucket."""
        connection.executemany(ADD_TO_BUCKET, [row + change for row in rows])

    def _returned(
        self, connection: sqlite3.Connection, place: Place, row: Row, now_us: int
    ) -> tuple[int, int, int]:
        run = run_of(place.meter, place.values)
        if run is None:
            return (0, 0, 0)
        if not 0 <= now_us - self._none_old_us < _MINUTE_US:
            self._none_old_us = 0 if drop_old(connection, self._of_runs, now_us, run) else now_us
        if not has_called(connection, run):
            return (0, 0, 0)
        restore(connection, row[0], place.meter, run)
        return connection.execute(_READ, row).fetchone() or (0, 0, 0)

    def _rows(self, places: Iterable[Place]) -> list[Row]:
        ids = self._ids
        return [(ids[name], start_us, packed_values(values)) for _, _, _, (name, values, start_us) in places]
