"""Where money is held and written down: `memory:` within one process, `sqlite:///` for many on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.errors import SettingsError

if TYPE_CHECKING:
    from maestro_core.clock import Clock
    from maestro_core.types import Ledger

__all__ = ["open_ledger"]

_FORMS = (
    '"memory:", "sqlite:///maestro.db" (relative) or "sqlite:////var/lib/maestro.db" (absolute, four slashes)'
)
_LATER = ("redis:", "rediss:", "postgresql:", "postgres:")


def open_ledger(url: str, *, clock: Clock | None = None, repair: bool = True) -> Ledger:
    """Open a ledger; a SQLite file is created where there is none.

    Args:
        url: `memory:`, `sqlite:///relative/or/name.db` or `sqlite:////absolute/path.db`.
        clock: Where time comes from; the machine's clock if None.
        repair: Whether a file's newest counters are checked, and put right if they are wrong.

    Raises:
        SettingsError: If the URL names no ledger that Maestro knows.
        LedgerUnavailable: If the file cannot be opened; the message names it and the fix.
    """
    if url == "memory:":
        from .memory import MemoryLedger

        return MemoryLedger(clock)
    path = url.removeprefix("sqlite:///")
    if path != url and path.strip("/") and "?" not in path:
        from .sqlite import SQLiteLedger

        return SQLiteLedger(path, clock, repair=repair)
    if url.startswith(_LATER):
        raise SettingsError(
            f'ledger "{url.partition(":")[0]}:" is not available in this version; use {_FORMS}'
        )
    raise SettingsError(f'ledger "{url}" is not known; use {_FORMS}')
