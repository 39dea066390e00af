"""What people have let a run spend beyond its own caps. Kept in the journal, so that every process learns of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .forks import fork_safe_lock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .types import Cap, Ledger, Meter

__all__ = ["Grants"]

_MOST = 10_000


class Grants:
    """The grants of one ledger, by run; asked for in the ledger only when a run would otherwise be refused."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._nanos: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._lock = fork_safe_lock()

    def limit(self, run: str | None, meter: Meter, limit_nanos: int) -> int:
        """Return a cap's limit for a run: a grant raises the caps that belong to the run alone."""
        return limit_nanos + self._nanos.get(run, 0) if run and "run" in meter.per else limit_nanos

    def limits(self, run: str | None, caps: Iterable[tuple[Cap, Meter]]) -> tuple[tuple[Meter, int], ...]:
        """Return the limit of each cap for a run, with the cap's meter."""
        if not self.raised(run):
            return tuple([(meter, cap.limit_nanos) for cap, meter in caps])
        return tuple([(meter, self.limit(run, meter, cap.limit_nanos)) for cap, meter in caps])

    def raised(self, run: str | None) -> bool:
        """Return whether a run is known to have been granted money."""
        return bool(self._nanos.get(run or ""))

    def give(self, run: str, key: str, *, add_nanos: int, by: str | None, reason: str | None) -> None:
        """Journal a grant; again with the same key is the same grant."""
        self._ledger.grant(key, run, {"add_nanos": add_nanos, "by": by, "reason": reason})
        self.reload(run)

    def reload(self, run: str | None) -> bool:
        """Look into the ledger; return whether the run was given leave since it was last looked at."""
        if run is None:
            return False
        found = [record for record in self._ledger.records(run=run) if record.kind == "granted"]
        with self._lock:
            news = len(found) > self._counts.get(run, 0)
            self._counts[run] = len(found)
            self._nanos[run] = sum(int(record.detail.get("add_nanos", 0)) for record in found)
            while len(self._counts) > _MOST:
                oldest = next(iter(self._counts))
                del self._counts[oldest], self._nanos[oldest]
        return news
