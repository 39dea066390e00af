"""Which limits the processes on a file enforce. Each enforces its own; this is so that people see where they differ."""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from typing import TYPE_CHECKING

from ._rows import read_meters

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from maestro_core.types import Meter

    from ._owners import Owners

__all__ = ["announce", "read", "withdraw"]

# A process may use a file through several ledgers, each with limits of its own: OWNER/1, OWNER/2, ...
_numbers = count(1)


def announce(connection: sqlite3.Connection, owners: Owners, limits: Iterable[tuple[Meter, int]]) -> str:
    """Write limits down, in a writing transaction; return the name they stand under. Those of ended processes go."""
    name = f"{owners.name()}/{next(_numbers)}"
    for (other,) in connection.execute("SELECT DISTINCT owner FROM limits").fetchall():
        if owners.gone(other.partition("/")[0]):
            connection.execute("DELETE FROM limits WHERE owner = ?", (other,))
    ids = {counted.meter: meter_id for meter_id, counted in read_meters(connection).items()}
    connection.executemany(
        "INSERT OR IGNORE INTO limits VALUES (?, ?, ?)",
        [(ids[meter], name, limit) for meter, limit in limits],
    )
    return name


def withdraw(connection: sqlite3.Connection, names: Iterable[str]) -> None:
    """Take back what was announced under these names."""
    connection.executemany("DELETE FROM limits WHERE owner = ?", [(name,) for name in names])


def read(connection: sqlite3.Connection, owners: Owners) -> dict[Meter, set[int]]:
    """Return the limits of living processes by meter."""
    found: defaultdict[Meter, set[int]] = defaultdict(set)
    meters = read_meters(connection)
    for meter_id, owner, limit in connection.execute("SELECT meter_id, owner, limit_nanos FROM limits"):
        if not owners.gone(owner.partition("/")[0]):
            found[meters[meter_id].meter].add(limit)
    return dict(found)
