"""Measurements that were taken during calls and are recorded when somebody reads them.

An SDK's instrument takes forty function calls for one value, and a call has five. So a call only notes what there is to
record, and whoever reads the metrics records it first: an SDK asks our observable instruments, inside `collect`,
before it reads the others. Nothing is lost and nothing counted twice, for any number of readers. What differs is the time
that an exemplar bears: it is the reading's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from maestro_core.forks import fork_safe_lock, tell_child

from .guard import harmless

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pending"]

# A thousand calls: 17 in every second between two readings a minute apart. Where nobody reads, or too seldom, one call in
# 250 records this many of those that are due, which takes it some milliseconds.
_MOST = 2_000
_AT_ONCE = 500

# A reader waits for the thread that is recording; not for ever, since it may be the same one, interrupted by a signal.
_PATIENCE_S = 1.0


class Pending:
    """What is due to be recorded, oldest first. Safe from any thread; a forked child starts with nothing."""

    def __init__(self) -> None:
        self._due: deque[Callable[[], object]] = deque()
        self._lock = fork_safe_lock(outer=True)
        tell_child(self._forked)

    def add(self, measurement: Callable[[], object]) -> None:
        """Record this later: `measurement` is called once, in the thread of whoever reads. It is kept until then."""
        self._due.append(measurement)
        if len(self._due) > _MOST and self._lock.acquire(blocking=False):
            try:
                self._record(_AT_ONCE)
            finally:
                self._lock.release()

    def record(self) -> None:
        """Record all that was added before; when this returns, no other thread is about to record any of it."""
        if self._lock.acquire(timeout=_PATIENCE_S):
            try:
                self._record(len(self._due))
            finally:
                self._lock.release()

    def _record(self, count: int) -> None:
        for _ in range(min(count, len(self._due))):
            _record_one(self._due.popleft())

    def _forked(self) -> None:
        self._due.clear()  # the parent records it


@harmless
def _record_one(measurement: Callable[[], object]) -> None:
    measurement()
