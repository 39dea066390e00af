"""A SQLite file that many threads and processes share: connections, transactions, forks, versions, errors."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import threading
import time
import weakref
from contextlib import closing, contextmanager
from importlib import resources
from itertools import count
from typing import TYPE_CHECKING

from maestro_core.errors import LedgerUnavailable
from maestro_core.forks import fork_safe_lock, guard, tell_child

from ._failures import PATIENCE_S, moved, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

__all__ = ["Database", "Transaction"]

_READ = "BEGIN"
_WRITE = "BEGIN IMMEDIATE"

_PATIENCE_S = PATIENCE_S
_APPLICATION_ID = 0x4D535452  # "MSTR", so that a file of another application is not taken for a ledger

# A call changes some ten pages, a few bytes in each, and each is written whole: half of SQLite's usual size is a tenth
# less time for a call, and reports are as quick; a quarter would make those over many values a third slower.
_PAGE_BYTES = 2048

# Each step takes the schema from its place in the list to the next version; steps are only ever added.
_STEPS = ("schema.sql", "schema_2.sql", "schema_3.sql", "schema_4.sql", "schema_5.sql")

# How long a writer that found the file locked sleeps before it tries again, shortest and longest.
_NAP_S = (0.000_05, 0.000_3)
_LONG_NAP_S = (0.001, 0.005)
_SHORT_NAPS = 200


class Transaction:
    """One connection and its lock; `with transaction as connection:` is atomic, and waits its turn.

    A transaction that fails leaves nothing behind. Errors of SQLite become `LedgerUnavailable`.

    Args:
        path: The file.
        begin: The statement that begins a transaction.
        identity: Which file it was when the ledger was opened. Another one of that name is not used: what calls hold
            is in the first.
    """

    def __init__(self, path: Path, begin: str, identity: tuple[int, int]) -> None:
        self._path = path
        self._name = str(path)
        self._begin = begin
        self._identity = identity
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._closed = False

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            connection = self._connected()
            try:
                connection.execute(self._begin)
            except sqlite3.OperationalError as error:
                self._begin_later(connection, error)
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
            (found,) = self._connected().execute("PRAGMA data_version").fetchone()
            return int(found)
        except (sqlite3.Error, LedgerUnavailable):
            return None  # whoever tries next is told why
        finally:
            self._lock.release()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as a lock has it
        """Before a fork: wait for the turn, disconnect, and keep others out; return whether that was in time."""
        if not self._lock.acquire(blocking, timeout):
            return False
        self._disconnect()
        return True

    def release(self) -> None:
        """After a fork: let others in again."""
        self._lock.release()

    def forked(self) -> None:
        """In the child of a fork that came in the middle of a long transaction: its thread is not here to end it."""
        if self._lock.locked():
            self._lock = threading.Lock()

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

    def _begin_later(self, connection: sqlite3.Connection, error: sqlite3.OperationalError) -> None:
        """Begin as soon as the other process that is inside a transaction has left it.

        SQLite's own busy handler sleeps up to a tenth of a second at a time, and whoever sleeps long finds the file
        locked again: with four busy processes one of them waited for up to two seconds. Short naps share fairly.
        """
        deadline = time.monotonic() + _PATIENCE_S
        tries = 0
        while True:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise error
            tries += 1
            # Somebody who is stopped in the middle of a transaction is not worth a busy processor.
            time.sleep(random.uniform(*(_NAP_S if tries < _SHORT_NAPS else _LONG_NAP_S)))  # noqa: S311 - guards nothing
            try:
                connection.execute(self._begin)
            except sqlite3.OperationalError as again:
                error = again
            else:
                return

    def _connected(self) -> sqlite3.Connection:
        if self._closed:
            raise _closed(self._path)
        try:
            found = os.stat(self._name)  # noqa: PTH116 - every call asks; it is half as long as Path.stat
        except OSError:
            raise moved(self._path) from None
        if (found.st_dev, found.st_ino) != self._identity:
            raise moved(self._path)
        if self._connection is not None and self._pid == os.getpid():
            return self._connection
        if self._connection is not None:
            # Forked behind Python's back: closing an inherited connection would drop the parent's state.
            _inherited.append(self._connection)
        self._connection = connect(self._path)
        self._pid = os.getpid()
        if self._begin == _WRITE:
            self._connection.execute("PRAGMA busy_timeout = 0")  # `_start` waits instead
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
        if _is_missing(self.path.parent):
            raise LedgerUnavailable(
                f"the ledger file {self.path} cannot be made: the folder {self.path.parent} does not exist;"
                " create it or name another file"
            )
        try:
            _prepare(self.path)
        except sqlite3.Error as error:
            raise unavailable(self.path, error) from error
        self._identity = _identity(self.path)
        self._snapshots = fork_safe_lock(outer=True)  # so that none is open when a fork comes
        self.writing = Transaction(self.path, _WRITE, self._identity)
        self.reading = Transaction(self.path, _READ, self._identity)
        for transaction in (self.writing, self.reading):
            guard(transaction)
            tell_child(transaction.forked)
        self.close = weakref.finalize(self, _close, self.writing, self.reading)
        self._unknown = count(-1, -1)

    def changed(self) -> int:
        """Return a number that is another one after any commit, for 5 us or so; if it cannot be known, always."""
        found = self.reading.version()
        return next(self._unknown) if found is None else found

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Read the file as it is now for as long as it takes, without holding up this process's other readers."""
        if not self.close.alive:
            raise _closed(self.path)
        if _identity(self.path) != self._identity:
            raise moved(self.path)
        try:
            with self._snapshots, closing(connect(self.path)) as connection:
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as error:
            raise unavailable(self.path, error) from error


def _is_missing(folder: Path) -> bool:
    try:
        return not stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # it is closed to us, or worse: SQLite, too, cannot open a file in it


def connect(path: Path) -> sqlite3.Connection:
    """Return a new connection in autocommit mode, with the settings that every connection needs."""
    connection = sqlite3.connect(
        path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        # A checkpoint waits for the disk, in the middle of some call: every 300 calls or so instead of every 75.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
    except BaseException:
        connection.close()
        raise
    return connection


def _closed(path: Path) -> LedgerUnavailable:
    return LedgerUnavailable(f"the ledger file {path} is closed; open a new ledger")


def _prepare(path: Path) -> None:
    connection = connect(path)
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # decided when a file is made; then it stays
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
# closed before, with nobody inside a transaction, and both sides open new ones when they need them. What crosses a fork
# behind Python's back all the same is kept here: closing it would drop the parent's locks.
_inherited: list[sqlite3.Connection] = []


def _identity(path: Path) -> tuple[int, int]:
    """Return which file that is now, whatever its name; (0, 0) if there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino
