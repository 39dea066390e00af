"""Measurements that were taken during calls and are recorded when somebody reads them.

An SDK's histogram takes forty function calls for one value, and a model call has three. So a call only notes what there is
to record, and whoever reads the metrics records it first: an SDK asks our observable instruments, inside `collect`,
before it reads the others. Nothing is lost and nothing counted twice, for any number of readers. What differs is the time
that an exemplar bears: it is the reading's.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from maestro_core.forks import fork_safe_lock, tell_child

from .guard import harmless

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pending"]

_T = TypeVar("_T")

# 17 calls in every second between two readings a minute apart. Where nobody reads, or too seldom, one call in twenty records
# as many, in half a millisecond. More at once would be a longer pause, and more for the garbage collector.
_MOST = 1_000
_AT_ONCE = 20

# A reader waits for the thread that is recording; not for ever, since it may be the same one, interrupted by a signal.
_PATIENCE_S = 1.0


class Pending(Generic[_T]):
    """What is due to be recorded, oldest first. Safe from any thread; a forked child starts with nothing.

    Args:
        take: Records one of them, in the thread of whoever reads. What it raises is logged, and loses only that one.
    """

    def __init__(self, take: Callable[[_T], None]) -> None:
        self._take = harmless(take)
        self._due: deque[_T] = deque()
        self._lock = fork_safe_lock(outer=True)
        tell_child(self._forked)

    def add(self, measurement: _T) -> None:
        """Record this later. It is kept until then: plain numbers and words are best."""
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
                for _ in range(0, len(self._due), _AT_ONCE):
                    self._record(_AT_ONCE)
                    time.sleep(0)  # else an event loop beside it would have a turn every five milliseconds
            finally:
                self._lock.release()

    def _record(self, most: int) -> None:
        for _ in range(min(most, len(self._due))):
            self._take(self._due.popleft())

    def _forked(self) -> None:
        self._due.clear()  # the parent records it
