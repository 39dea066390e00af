"""What goes wrong with a ledger's file, as one line that names the file and the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.errors import LedgerUnavailable

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

__all__ = ["PATIENCE_S", "moved", "unavailable"]

# How long somebody else may keep the file locked.
PATIENCE_S = 5.0

# By the start of SQLite's name of the error (https://www.sqlite.org/rescode.html): what is wrong and what to do.
_FIXES = {
    "SQLITE_BUSY": f"another process has kept it locked for {PATIENCE_S:.0f} s; look for a stuck process or a long"
    " transaction",
    "SQLITE_CANTOPEN": "it cannot be opened; check that it is a file, and that it and its folder may be written",
    "SQLITE_CORRUPT": 'it is damaged; restore a backup, or rescue it with "sqlite3 FILE .recover"',
    "SQLITE_FULL": "the disk is full; free some space. Nothing is lost: open holds stay as they are",
    "SQLITE_IOERR": "reading or writing it failed; look at the disk, its quota and the limit on file sizes (ulimit -f)."
    " Nothing is lost: open holds stay as they are",
    "SQLITE_NOTADB": "it is not a SQLite database; move it away or name another file",
    "SQLITE_READONLY": "it is read-only; let this process write to the file and its folder, or name another file",
}


def unavailable(path: Path, error: sqlite3.Error) -> LedgerUnavailable:
    """Return an error of SQLite as one line that names the file and the fix."""
    name = getattr(error, "sqlite_errorname", "")
    for start, fix in _FIXES.items():
        if name.startswith(start):
            return LedgerUnavailable(f"the ledger file {path} cannot be used: {fix}")
    return LedgerUnavailable(f"the ledger file {path} cannot be used: {error}")


def moved(path: Path) -> LedgerUnavailable:
    """Return the error for a file that is not the one that was opened."""
    return LedgerUnavailable(
        f"the ledger file {path} was deleted or replaced while it was in use; put it back, or restart this program"
        " to go on with whatever file is there"
    )
