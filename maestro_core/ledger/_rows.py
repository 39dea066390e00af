"""Rows of the SQLite tables, to and from Maestro's own types."""

from __future__ import annotations

import json
from functools import lru_cache
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from maestro_core.clock import from_micros
from maestro_core.types import Attribution, Meter, OpenHold, Record

from ._records import numbers
from ._rules import Counted

if TYPE_CHECKING:
    import sqlite3

    from maestro_core.types import Step

__all__ = [
    "ADD_TO_BUCKET",
    "ADD_TO_HOUR",
    "HOLD_COLUMNS",
    "INSERT_BUCKET",
    "INSERT_HOLD",
    "NOT_ROLLED_UP",
    "RECORD_COLUMNS",
    "AttributionIds",
    "archived_before_us",
    "attribution_of",
    "filling",
    "hold_of",
    "insert_meter",
    "insert_record",
    "packed",
    "packed_values",
    "read_meters",
    "record_of",
    "rollup_values",
    "unpacked_values",
]

_HOUR_US = 3_600_000_000

# One value of these covers a handful of calls, so sums per hour would be as long as the journal.
NOT_ROLLED_UP = frozenset(["run", "conversation", "provider", "model"])

HOLD_COLUMNS = "key, amount_nanos, reserved_at_us, provider, model, dimensions, path, run, owner, state"
RECORD_COLUMNS = (
    "seq, kind, key, reserved_at_us, written_at_us, provider, model, dimensions, path, run, cost_nanos, held_nanos,"
    " estimated_nanos, sheet_nanos, calls, usage, price_id, price_book, unpriced, overrun, detail"
)

INSERT_HOLD = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'held')"
INSERT_BUCKET = "INSERT INTO buckets VALUES (?, ?, ?, ?, ?, ?)"
ADD_TO_BUCKET = (
    f"{INSERT_BUCKET} ON CONFLICT (meter_id, window_start_us, value) DO UPDATE SET"
    " spent_nanos = spent_nanos + excluded.spent_nanos, held_nanos = held_nanos + excluded.held_nanos,"
    " presumed_nanos = presumed_nanos + excluded.presumed_nanos"
)

ADD_TO_HOUR = (
    "INSERT INTO hourly_spend VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT"
    " (dimension, hour_us, value, provider, model) DO UPDATE SET"
    " cost_nanos = cost_nanos + excluded.cost_nanos, calls = calls + excluded.calls,"
    " input_tokens = input_tokens + excluded.input_tokens,"
    " output_tokens = output_tokens + excluded.output_tokens,"
    " estimated_nanos = estimated_nanos + excluded.estimated_nanos,"
    " unpriced_calls = unpriced_calls + excluded.unpriced_calls"
)

packed = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str).encode


class AttributionIds:
    """Each attribution's row in the file, made on first use; recent ones are remembered."""

    _MOST = 10_000

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[tuple[str, str], ...], tuple[Step, ...]], int] = {}

    def find(self, connection: sqlite3.Connection, attribution: Attribution) -> int:
        """Return the id of an attribution without its run, inside a writing transaction."""
        key = (tuple([pair for pair in attribution.dimensions.items() if pair[0] != "run"]), attribution.path)
        known = self._known.get(key)
        if known is not None:
            return known
        dimensions = dict(key[0])
        columns = (packed(dimensions), packed(attribution.path))
        row = connection.execute(
            "SELECT attribution_id FROM attributions WHERE dimensions = ? AND path = ?", columns
        ).fetchone()
        if row is None:
            # Not remembered yet: this transaction may be rolled back, and the id with it.
            made = connection.execute("INSERT INTO attributions (dimensions, path) VALUES (?, ?)", columns)
            return int(made.lastrowid or 0)
        if len(self._known) >= self._MOST:
            self._known.clear()
        self._known[key] = row[0]
        return int(row[0])


def attribution_of(dimensions: str, path: str, run: str | None) -> Attribution:
    """Return an attribution from its row and its run."""
    pairs, steps = _unpacked(dimensions, path)
    return Attribution(dict(pairs) if run is None else {**dict(pairs), "run": run}, steps)


@lru_cache(maxsize=4096)
def _unpacked(dimensions: str, path: str) -> tuple[tuple[tuple[str, str], ...], tuple[Any, ...]]:
    return tuple(json.loads(dimensions).items()), tuple([(kind, name) for kind, name in json.loads(path)])


def read_meters(connection: sqlite3.Connection) -> dict[int, Counted]:
    """Return every meter by its id in the file."""
    rows = connection.execute("SELECT meter_id, per, matching, every, time_zone, since_us FROM meters")
    return {
        meter_id: Counted(
            Meter(
                tuple(json.loads(per)),
                tuple([(k, v) for k, v in json.loads(matching)]),
                every,
                time_zone,
            ),
            since,
        )
        for meter_id, per, matching, every, time_zone, since in rows
    }


def filling(connection: sqlite3.Connection) -> frozenset[str]:
    """Return the meters that do not count everything yet that the journal said when they were added."""
    rows = connection.execute("SELECT name FROM meters WHERE fill_to_seq > 0")
    return frozenset(name for (name,) in rows)


def archived_before_us(connection: sqlite3.Connection) -> int:
    """Return the hour before which calls may be archived; 0 if nothing ever was."""
    (before_us,) = connection.execute("SELECT coalesce(max(before_us), 0) FROM archives").fetchone()
    return int(before_us)


def insert_meter(connection: sqlite3.Connection, counted: Counted) -> int:
    """Write a new meter; return its id in the file."""
    meter = counted.meter
    row = (meter.id, packed(meter.per), packed(meter.where), meter.every, meter.time_zone, counted.since_us)
    made = connection.execute(
        "INSERT INTO meters (name, per, matching, every, time_zone, since_us) VALUES (?, ?, ?, ?, ?, ?)", row
    )
    return int(made.lastrowid or 0)


@lru_cache(maxsize=16_384)
def packed_values(values: tuple[str, ...]) -> str:
    """Return a bucket's values as the row's JSON array."""
    return f"[{','.join(map(encode_basestring, values))}]"  # as `packed`, in a third of the time


def unpacked_values(text: str) -> tuple[str, ...]:
    """Return a bucket's values from the row's JSON array."""
    return tuple(json.loads(text))


def hold_of(row: tuple[Any, ...]) -> OpenHold:
    """Return a hold from a row of `HOLD_COLUMNS`."""
    key, amount, at_us, provider, model, dimensions, path, run, owner, state = row
    attribution = attribution_of(dimensions, path, run)
    return OpenHold(key, amount, at_us, provider, model, attribution, owner, state)


def record_of(row: tuple[Any, ...]) -> Record:
    """Return a record from a row of `RECORD_COLUMNS`."""
    (
        seq, kind, key, at_us, written_us, provider, model, dimensions, path, run, cost, held, estimated, sheet,
        calls, usage, price_id, price_book, unpriced, overrun, detail,
    ) = row  # fmt: skip
    return Record(
        seq=seq,
        kind=kind,
        key=key,
        at=from_micros(at_us),
        written_at=from_micros(written_us),
        provider=provider,
        model=model,
        attribution=attribution_of(dimensions, path, run),
        cost_nanos=cost,
        held_nanos=held,
        estimated_nanos=estimated,
        sheet_nanos=sheet,
        calls=calls,
        usage=json.loads(usage),
        price_id=price_id,
        price_book=price_book,
        unpriced=tuple(json.loads(unpriced)),
        overrun=bool(overrun),
        detail=json.loads(detail),
    )


def insert_record(
    connection: sqlite3.Connection, record: Record, attribution_id: int, at_us: int, written_us: int
) -> None:
    """Append a record to the journal and to the hourly sums; its two times once more, as the file has them."""
    attribution = record.attribution
    cost, calls, input_tokens, output_tokens, estimated, unpriced_calls = added = numbers(record)
    connection.execute(
        "INSERT INTO journal (seq, kind, key, reserved_at_us, written_at_us, provider, model, attribution_id, run,"
        " cost_nanos, held_nanos, estimated_nanos, sheet_nanos, calls, input_tokens, output_tokens, unpriced_calls,"
        " usage, price_id, price_book, unpriced, overrun, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.seq, record.kind, record.key, at_us, written_us, record.provider, record.model,
            attribution_id, attribution.dimensions.get("run"), cost, record.held_nanos, estimated, record.sheet_nanos, calls, input_tokens,
            output_tokens, unpriced_calls, packed(record.usage), record.price_id, record.price_book,
            packed(record.unpriced) if record.unpriced else "[]", record.overrun,
            packed(record.detail) if record.detail else "{}",
        ),
    )  # fmt: skip
    if any(added):
        hour_us = at_us - at_us % _HOUR_US
        connection.executemany(
            ADD_TO_HOUR,
            [
                (dimension, hour_us, value, record.provider, record.model, *added)
                for dimension, value in rollup_values(attribution)
            ],
        )


def rollup_values(attribution: Attribution) -> list[tuple[str, str]]:
    """Return the (dimension, value) pairs that the hourly sums count a call under; `""` is the total."""
    values = {"": "", **attribution.dimensions}
    values.update(attribution.path)  # outermost first, so that the innermost agent and tool stand
    return [pair for pair in values.items() if pair[0] not in NOT_ROLLED_UP]
