"""Long journals for tests and benchmarks, written row by row into a ledger's file and then reconciled."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from maestro_core.ledger._rows import packed
from maestro_core.ledger.sqlite import SQLiteLedger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from maestro_core.clock import Clock

__all__ = ["TEAMS", "write_journal"]

TEAMS = 4
_MODELS = ("gpt-5", "gpt-5-mini", "claude-sonnet-5")
_USAGE = packed({"input_tokens": 1200, "output_tokens": 340, "cache_read_tokens": 1000})
_ROW = f"INSERT INTO journal VALUES ({', '.join('?' * 23)})"  # noqa: S608 - constants


def write_journal(
    path: Path, calls: int, *, since_us: int, until_us: int, customers: int = 100, clock: Clock | None = None
) -> None:
    """Append settled calls, evenly spread over time: teams and customers in turn, ten calls to a run, cost 1,000 + i.

    Counters and hourly sums are then put right by the ledger's own reconciliation.
    """
    with closing(SQLiteLedger(path, clock)), closing(sqlite3.connect(path)) as connection, connection:
        (first,) = connection.execute("SELECT coalesce(max(seq), 0) + 1 FROM journal").fetchone()
        ids = _attributions(connection, customers)
        rows = _rows(first, calls, ids, (since_us, until_us))
        connection.executemany(_ROW, rows)
        connection.execute("UPDATE store SET clock_us = max(clock_us, ?)", (until_us,))
    with closing(SQLiteLedger(path, clock, repair=False)) as ledger:
        ledger.reconcile()


def _attributions(connection: sqlite3.Connection, customers: int) -> list[int]:
    ids = []
    for i in range(customers):
        dimensions = packed({"customer": f"customer-{i}", "team": f"team-{i % TEAMS}"})
        path = packed([("agent", "researcher")])
        connection.execute(
            "INSERT OR IGNORE INTO attributions (dimensions, path) VALUES (?, ?)", (dimensions, path)
        )
        query = "SELECT attribution_id FROM attributions WHERE dimensions = ? AND path = ?"
        ids.append(connection.execute(query, (dimensions, path)).fetchone()[0])
    return ids


def _rows(first: int, calls: int, ids: list[int], span_us: tuple[int, int]) -> Iterator[tuple[object, ...]]:
    since_us, until_us = span_us
    for i in range(calls):
        at_us = since_us + (until_us - since_us) * i // calls
        cost = 1000 + i
        yield (
            first + i, "settled", f"{first + i:026d}", at_us, at_us + 1, "openai", _MODELS[i % len(_MODELS)],
            ids[i % len(ids)], f"run-{(first + i) // 10}", cost, 2 * cost, 0, cost, 1, 1200, 340, 0, _USAGE,
            "openai:gpt-5-mini@2025-08-07", "genai-prices 0.2.3", "[]", 0, "{}",
        )  # fmt: skip
