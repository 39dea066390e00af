"""Notes in the SQLite ledger: what processes leave each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from maestro_core.types import Note

from ._rows import packed

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

__all__ = ["keep_note", "read_notes"]


def keep_note(
    connection: sqlite3.Connection,
    key: str,
    kind: str,
    body: Mapping[str, Any],
    *,
    revision: int,
    now_us: int,
) -> bool:
    """Write a note, if the one with this key is at that revision; return whether it was."""
    if revision:
        done = connection.execute(
            "UPDATE notes SET kind = ?, body = ?, revision = revision + 1, written_at_us = ? WHERE key = ? AND revision = ?",
            (kind, packed(dict(body)), now_us, key, revision),
        )
    else:
        done = connection.execute(
            "INSERT INTO notes VALUES (?, ?, ?, 1, ?) ON CONFLICT DO NOTHING",
            (key, kind, packed(dict(body)), now_us),
        )
    return done.rowcount == 1


def read_notes(connection: sqlite3.Connection, kind: str, key: str | None, since_us: int) -> list[Note]:
    """Return the notes of a kind, or the one with a key, that were written at or after that time, oldest first."""
    where, values = ("kind = ?", [kind]) if key is None else ("key = ? AND kind = ?", [key, kind])
    rows = connection.execute(
        f"SELECT key, kind, body, revision, written_at_us FROM notes WHERE {where} AND written_at_us >= ?"  # noqa: S608 - constants
        " ORDER BY written_at_us, key",
        (*values, since_us),
    )
    return [Note(name, of, json.loads(body), number, at_us) for name, of, body, number, at_us in rows]
