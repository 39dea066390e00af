"""The counters against the journal: what differs, and putting it right. The journal is the truth and is never touched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from maestro_core.caps import window

from ._queries import open_holds
from ._reports import carried, hours, spends
from ._rows import (
    ADD_TO_BUCKET,
    ADD_TO_HOUR,
    archived_before_us,
    filling,
    packed_values,
    read_meters,
    unpacked_values,
)
from ._rules import Counted, differences, rebuild
from ._run_buckets import restore, run_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from maestro_core.types import Meter

    from ._reports import HourKey, Sums
    from ._rules import BucketKey, Difference

__all__ = ["Findings", "add_to_hours", "compare", "compare_newest", "repair", "wrong_hours"]

_NEWEST = 5_000  # rows of the journal that are looked at when a file is opened: some 30 ms
_HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Findings:
    """What differs from the journal.

    Attributes:
        repairs: How often counters had been repaired when this was found; another number means that it is outdated.
        counters: Buckets that are wrong.
        hours: Hourly sums that are wrong, each with what it should be and what it is.
        lost: A line on what cannot be put right, because the rows are archived; usually empty.
    """

    repairs: int
    counters: list[Difference]
    hours: list[tuple[HourKey, Sums, Sums]]
    lost: str = ""

    @property
    def can_be_repaired(self) -> bool:
        """Whether there is anything to put right."""
        return bool(self.counters or self.hours)

    def lines(self) -> list[str]:
        """Return one line for each difference."""
        lines = [line for difference in self.counters for line in difference.lines()]
        lines += [
            f"hourly spend {key}: is {wrong} (nano-dollars, calls, tokens in and out, estimated, unpriced),"
            f" the journal says {right}"
            for key, right, wrong in self.hours
        ]
        return [*lines, self.lost] if self.lost else lines

    def is_current(self, connection: sqlite3.Connection) -> bool:
        """Return whether no counter was repaired since: what calls add meanwhile does not matter to a difference."""
        return self.repairs == _repairs(connection)


def compare(connection: sqlite3.Connection) -> Findings:
    """Compare everything; reads the whole journal."""
    archived_us = archived_before_us(connection)
    return Findings(
        _repairs(connection),
        _counters(connection, _since(_filled(connection), archived_us), 0),
        wrong_hours(connection, archived_us),
        _lost(connection, archived_us),
    )


def compare_newest(connection: sqlite3.Connection) -> Findings:
    """Compare what the newest rows of the journal can tell: windows that began since, and everything in a short one.

    The store's time never goes back, so calls reserved after a row was written stand behind it.
    """
    row = connection.execute(
        "SELECT written_at_us FROM journal ORDER BY seq DESC LIMIT 1 OFFSET ?", (_NEWEST,)
    ).fetchone()
    archived_us = archived_before_us(connection)
    since_us = max(row[0] + 1 if row else 0, archived_us)
    meters = _since(_filled(connection), since_us)
    if row is None and _is_short(connection):
        found = _counters(connection, meters, 0)
    else:
        found = _counters(connection, {i: each for i, each in meters.items() if each.meter.every}, since_us)
    hour_us = -(-since_us // _HOUR_US) * _HOUR_US
    return Findings(_repairs(connection), found, wrong_hours(connection, hour_us))


def _is_short(connection: sqlite3.Connection) -> bool:
    """Return whether what archived calls left behind is quickly read."""
    (rows,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM carried LIMIT ?)", (_NEWEST + 1,)
    ).fetchone()
    return bool(rows <= _NEWEST)


def repair(connection: sqlite3.Connection, found: Findings) -> None:
    """Put right what differs, in a writing transaction, by adding what is missing.

    Calls that were counted since the difference was found change neither it nor what has to be added.
    """
    ids = {
        counted.meter.id: (meter_id, counted.meter) for meter_id, counted in read_meters(connection).items()
    }
    for key, right, wrong in found.counters:
        name, values, start_us = key
        meter_id, meter = ids[name]
        run = run_of(meter, values)
        if run is None:
            added = [a - b for a, b in zip(right, wrong, strict=True)]
            connection.execute(ADD_TO_BUCKET, (meter_id, start_us, packed_values(values), *added))
        else:  # such a bucket may have been dropped meanwhile
            connection.execute(
                "DELETE FROM buckets WHERE meter_id = ? AND window_start_us = 0 AND value = ?",
                (meter_id, packed_values(values)),
            )
            restore(connection, meter_id, meter, run)
    add_to_hours(connection, found.hours)
    connection.execute("UPDATE store SET repairs = repairs + 1")


def add_to_hours(connection: sqlite3.Connection, wrong: Iterable[tuple[HourKey, Sums, Sums]]) -> None:
    """Put hourly sums right."""
    connection.executemany(
        ADD_TO_HOUR,
        [(*key, *[a - b for a, b in zip(right, does, strict=True)]) for key, right, does in wrong],
    )


def _repairs(connection: sqlite3.Connection) -> int:
    (repairs,) = connection.execute("SELECT repairs FROM store").fetchone()
    return int(repairs)


def _filled(connection: sqlite3.Connection) -> dict[int, Counted]:
    waiting = filling(connection)
    return {
        meter_id: counted
        for meter_id, counted in read_meters(connection).items()
        if counted.meter.id not in waiting
    }


def _since(meters: Mapping[int, Counted], since_us: int) -> dict[int, Counted]:
    """Return the meters with only those of their windows that begin at `since_us` or later."""
    return {
        meter_id: replace(counted, since_us=max(counted.since_us, _first_window(counted.meter, since_us)))
        for meter_id, counted in meters.items()
    }


def _first_window(meter: Meter, since_us: int) -> int:
    found = window(meter.every, meter.time_zone, since_us)
    if found is None or found.start_us >= since_us:
        return found.start_us if found else 0
    return found.end_us


def _counters(
    connection: sqlite3.Connection, meters: Mapping[int, Counted], since_us: int
) -> list[Difference]:
    if not meters:
        return []
    counted = list(meters.values())
    spent = chain(spends(connection, since_us), () if since_us else carried(connection))
    holds = open_holds(connection)
    rebuilt = rebuild(counted, spent, holds)
    actual: dict[BucketKey, list[int]] = {}
    for meter_id, each in meters.items():
        rows = connection.execute(
            "SELECT value, window_start_us, spent_nanos, held_nanos, presumed_nanos FROM buckets"
            " WHERE meter_id = ? AND window_start_us >= ?",
            (meter_id, each.since_us if each.meter.every else 0),
        )
        for value, start_us, *counter in rows:
            actual[each.meter.id, unpacked_values(value), start_us] = counter
    # The bucket of a run may be dropped, and comes back when the run calls; not so while one of its calls is open.
    away = {
        place.key: run_of(place.meter, place.values)
        for place, _ in rebuilt.values()
        if place.key not in actual
    }
    active = {None, *[hold.attribution.dimensions.get("run") for hold in holds]}
    expected = {key: counter for key, (_, counter) in rebuilt.items() if key in actual or away[key] in active}
    return differences(expected, actual)


def wrong_hours(connection: sqlite3.Connection, since_us: int) -> list[tuple[HourKey, Sums, Sums]]:
    """Return the hourly sums from a full hour on that differ from the journal: what they should be, what they are."""
    expected, written = hours(connection, since_us)
    nothing = [0] * 6
    return [
        (key, expected.get(key, nothing), written.get(key, nothing))
        for key in sorted(expected.keys() | written.keys())
        if expected.get(key, nothing) != written.get(key, nothing)
    ]


def _lost(connection: sqlite3.Connection, archived_us: int) -> str:
    """Compare the hours whose rows are archived with what the archive left behind; only their total can be compared."""
    if not archived_us:
        return ""
    written, left = connection.execute(
        "SELECT (SELECT coalesce(sum(cost_nanos), 0) FROM hourly_spend WHERE dimension = '' AND hour_us < :archived_us),"
        " (SELECT coalesce(sum(cost_nanos), 0) FROM carried)"
        " + (SELECT coalesce(sum(cost_nanos), 0) FROM journal WHERE reserved_at_us < :archived_us)",
        {"archived_us": archived_us},
    ).fetchone()
    if written == left:
        return ""
    return (
        f"hourly spend of archived calls comes to {written} nano-dollars, the sums carried forward to {left};"
        " the archive files have the rows"
    )
