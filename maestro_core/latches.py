"""A run that was told that its money is spent is told so again, without asking: small calls, too.

This is manners, kept in the process; the ledger is the safety.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .forks import fork_safe_lock
from .waiting import BucketName, bucket_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .errors import CapExceeded
    from .types import Call, Meter, Refused

__all__ = ["Latches"]

# More runs than a process has at once; the oldest latch goes first.
_MOST = 10_000

# In the place of a bucket: the whole run is halted, whatever it charges.
_HALTED: BucketName = ("(halted)", ())


@dataclass(frozen=True, slots=True)
class _Latch:
    limit_nanos: int
    until_us: int | None
    error: CapExceeded


class Latches:
    """Which runs were refused at which buckets. A latch ends with the window, a raised limit, or `lift`."""

    def __init__(self) -> None:
        self._latches: dict[tuple[str, BucketName], _Latch] = {}
        self._lock = fork_safe_lock()

    def add(self, call: Call, refused: Refused, error: CapExceeded) -> None:
        """Remember a refusal, if the call belongs to a run."""
        run = call.attribution.dimensions.get("run")
        if run is None:
            return
        window = refused.bucket.window
        latch = _Latch(refused.limit_nanos, window.end_us if window else None, error)
        self._set(run, bucket_name(refused), latch)

    def halt(self, run: str, error: CapExceeded) -> None:
        """Remember that a run is to make no further calls, until `lift`."""
        self._set(run, _HALTED, _Latch(0, None, error))

    def find(
        self,
        call: Call,
        names: Iterable[BucketName],
        limits: Iterable[tuple[Meter, int]],
        now_us: Callable[[], int],
    ) -> CapExceeded | None:
        """Return the first refusal of the call's run at one of these buckets, if it still stands."""
        run = call.attribution.dimensions.get("run")
        if run is None or not self._latches:
            return None
        with self._lock:
            found = [
                (name, self._latches[run, name]) for name in (_HALTED, *names) if (run, name) in self._latches
            ]
        current = {meter.id: limit for meter, limit in limits}
        for name, latch in found:
            raised = current.get(name[0], latch.limit_nanos) > latch.limit_nanos
            if raised or (latch.until_us is not None and now_us() >= latch.until_us):
                with self._lock:
                    self._latches.pop((run, name), None)
            else:
                return latch.error
        return None

    def lift(self, run: str) -> None:
        """Forget every refusal of a run."""
        with self._lock:
            for key in [key for key in self._latches if key[0] == run]:
                del self._latches[key]

    def _set(self, run: str, name: BucketName, latch: _Latch) -> None:
        with self._lock:
            self._latches[run, name] = latch
            while len(self._latches) > _MOST:
                del self._latches[next(iter(self._latches))]
