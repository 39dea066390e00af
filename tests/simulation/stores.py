"""The ledgers that the simulation drives; a new one needs a line here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_core.ledger.memory import MemoryLedger
from maestro_core.ledger.sqlite import SQLiteLedger

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["STORES", "Open", "opened"]

Open = Callable[[Any], Any]


@contextmanager
def _memory() -> Iterator[Open]:
    yield MemoryLedger


@contextmanager
def _sqlite() -> Iterator[Open]:
    """A file for each schedule, in memory where the machine has a file system for that."""
    where = Path("/dev/shm")  # noqa: S108 - a temporary folder is made in it
    with tempfile.TemporaryDirectory(dir=where if where.is_dir() else None) as folder:
        empty = Path(folder, "empty.db")
        SQLiteLedger(empty).close()
        number, last = 0, None

        def open_store(clock: Any) -> SQLiteLedger:
            nonlocal number, last
            if last is not None:
                last.close()
                for leftover in Path(folder).glob(f"{number}.db*"):
                    with suppress(IsADirectoryError):
                        leftover.unlink()
            number += 1
            path = Path(folder, f"{number}.db")
            shutil.copyfile(empty, path)
            last = SQLiteLedger(path, clock)
            last._since_boot_us = clock.now_us
            return last

        try:
            yield open_store
        finally:
            if last is not None:
                last.close()


STORES = {"memory": _memory, "sqlite": _sqlite}


def opened(name: str) -> Any:
    """Return a context manager that gives a function which opens a new, empty ledger, given a clock."""
    return STORES[name]()
