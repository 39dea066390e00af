"""A SQLite file that many threads and processes share: connections, transactions, forks, versions, errors."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from contextlib import closing, contextmanager
from importlib import resources
from itertools import count
from typing import TYPE_CHECKING

from maestro_core.errors import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

__all__ = ["Database", "Transaction"]

_PATIENCE_S = 5.0
_APPLICATION_ID = 0x4D535452  # "MSTR", so that a file of another application is not taken for a ledger

# Each step takes the schema from its place in the list to the next version; steps are only ever added.
_STEPS = ("schema.sql", "schema_2.sql", "schema_3.sql", "schema_4.sql")

# By the start of SQLite's name of the error (https://www.sqlite.org/rescode.html): what is wrong and what to do.
_FIXES = {
    "SQLITE_BUSY": f"another process has kept it locked for {_PATIENCE_S:.0f} s; look for a stuck process or a long"
    " transaction",
    "SQLITE_CANTOPEN": "it cannot be opened; check that it is a file, and that it and its folder may be written",
    "SQLITE_CORRUPT": 'it is damaged; restore a backup, or rescue it with "sqlite3 FILE .recover"',
    "SQLITE_FULL": "the disk is full; free some space. Nothing is lost: open holds stay as they are",
    "SQLITE_IOERR": "reading or writing it failed; look at the disk, its quota and the limit on file sizes (ulimit -f)."
    " Nothing is lost: open holds stay as they are",
    "SQLITE_NOTADB": "it is not a SQLite database; move it away or name another file",
    "SQLITE_READONLY": "it is read-only; let this process write to the file and its folder, or name another file",
}


class Transaction:
    """One connection and its lock; `with transaction as connection:` is atomic, and waits its turn.

    A transaction that fails leaves nothing behind. Errors of SQLite become `LedgerUnavailable`.
    """

    def __init__(self, path: Path, begin: str) -> None:
        self._path = path
        self._begin = begin
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._closed = False

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            connection = self._current()
            connection.execute(self._begin)
        except sqlite3.Error as error:
            self._lock.release()
            raise unavailable(self._path, error) from error
        except BaseException:
            self._lock.release()
            raise
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._finish(failed=kind is not None)
        except sqlite3.Error as failure:
            raise unavailable(self._path, failure) from failure
        finally:
            self._lock.release()
        if isinstance(error, sqlite3.Error):
            raise unavailable(self._path, error) from error

    def version(self) -> int | None:
        """Return SQLite's `data_version`, which any other connection's commit changes; None if it cannot be read now."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            (found,) = self._current().execute("PRAGMA data_version").fetchone()
            return int(found)
        except (sqlite3.Error, LedgerUnavailable):
            return None  # whoever tries next is told why
        finally:
            self._lock.release()

    def pause(self) -> bool:
        """Wait for the turn, then disconnect and keep others out; return whether the turn came in time."""
        if not self._lock.acquire(timeout=2 * _PATIENCE_S):
            return False
        self._disconnect()
        return True

    def resume(self) -> None:
        """Let others in again, after `pause`."""
        self._lock.release()

    def close(self) -> None:
        """Disconnect for good."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _finish(self, *, failed: bool) -> None:
        connection = self._connection
        if connection is None or not connection.in_transaction:
            return  # SQLite has rolled back by itself, as it does when the disk is full
        try:
            connection.execute("ROLLBACK" if failed else "COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _current(self) -> sqlite3.Connection:
        connection = self._connection
        return self._connect() if connection is None or self._pid != os.getpid() else connection

    def _connect(self) -> sqlite3.Connection:
        if self._closed:
            raise _closed(self._path)
        if self._connection is not None:
            # Forked behind Python's back: closing an inherited connection would drop the parent's state.
            _inherited.append(self._connection)
        self._connection = connect(self._path)
        self._pid = os.getpid()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
            self._connection = None


class Database:
    """A SQLite file in WAL mode with one writer and one reader per process.

    Writers of one process queue at a lock, which is fair and quicker than many connections that poll for SQLite's;
    the reader has its own connection, so that a long report never delays a call.

    Args:
        path: The file; created where there is none.

    Raises:
        LedgerUnavailable: If it cannot be opened, is no ledger, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        # Absolute, because connections are opened again after a fork, perhaps from another folder.
        self.path = path.absolute()
        if not self.path.parent.is_dir():
            raise LedgerUnavailable(
                f"the ledger file {self.path} cannot be made: the folder {self.path.parent} does not exist;"
                " create it or name another file"
            )
        try:
            _prepare(self.path)
        except sqlite3.Error as error:
            raise unavailable(self.path, error) from error
        self.writing = Transaction(self.path, "BEGIN IMMEDIATE")
        self.reading = Transaction(self.path, "BEGIN")
        self.close = weakref.finalize(self, _close, self.writing, self.reading)
        self._unknown = count(-1, -1)
        _databases.add(self)

    def changed(self) -> int:
        """Return a number that is another one after any commit, for 5 us or so; if it cannot be known, always."""
        found = self.reading.version()
        return next(self._unknown) if found is None else found

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Read the file as it is now for as long as it takes, without holding up this process's other readers."""
        if not self.close.alive:
            raise _closed(self.path)
        try:
            with closing(connect(self.path)) as connection:
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as error:
            raise unavailable(self.path, error) from error


def connect(path: Path) -> sqlite3.Connection:
    """Return a new connection in autocommit mode, with the settings that every connection needs."""
    connection = sqlite3.connect(
        path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        # A checkpoint waits for the disk, in the middle of some call: every 200 calls or so instead of every 50.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
    except BaseException:
        connection.close()
        raise
    return connection


def unavailable(path: Path, error: sqlite3.Error) -> LedgerUnavailable:
    """Return an error of SQLite as one line that names the file and the fix."""
    name = getattr(error, "sqlite_errorname", "")
    for start, fix in _FIXES.items():
        if name.startswith(start):
            return LedgerUnavailable(f"the ledger file {path} cannot be used: {fix}")
    return LedgerUnavailable(f"the ledger file {path} cannot be used: {error}")


def _closed(path: Path) -> LedgerUnavailable:
    return LedgerUnavailable(f"the ledger file {path} is closed; open a new ledger")


def _prepare(path: Path) -> None:
    connection = connect(path)
    try:
        _use_wal(connection)
        if _version(connection, path) < len(_STEPS):
            _migrate(connection, path)
    finally:
        connection.close()


def _use_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # SQLite does not wait here by itself when several processes make the file at the same moment.
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (tables or version):
        raise LedgerUnavailable(
            f"the ledger file {path} cannot be used: it is a database of another application; name another file"
        )
    if version > len(_STEPS):
        raise LedgerUnavailable(
            f"the ledger file {path} cannot be used: a newer Maestro wrote it (schema {version}, this one knows"
            f" {len(_STEPS)}); upgrade maestro-finops or name another file"
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in _STEPS[
            _version(connection, path) :
        ]:  # again, since another process may have been quicker
            for statement in _statements(resources.files(__package__).joinpath(step).read_text("utf-8")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(_STEPS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _close(*transactions: Transaction) -> None:
    for transaction in transactions:
        transaction.close()


# A connection must not cross a fork: the child would believe in file locks that only its parent holds. So all are
# closed before, with nobody inside a transaction, and both sides open new ones when they need them.
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_fork_lock = threading.Lock()
_paused: list[Transaction] = []
_inherited: list[sqlite3.Connection] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    for database in list(_databases):
        _paused.extend(t for t in (database.writing, database.reading) if t.pause())


def _after_fork() -> None:
    while _paused:
        _paused.pop().resume()
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
