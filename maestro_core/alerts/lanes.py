"""A bounded queue and the thread that empties it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lane"]

_log = logging.getLogger("maestro")
_T = TypeVar("_T")


class Lane(Generic[_T]):
    """Hands things over to a thread of its own, which is started when there is something to do.

    A fork's child has a lane of its own: it starts empty, because its parent delivers what was in it.

    Args:
        name: What the thread and messages call it.
        work: What is done with each thing; what it raises is logged.
        most: How many wait at once; a further one is lost, and the loss is reported with the next that is done.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[_T], None],
        *,
        most: int = 1_000,
    ) -> None:
        self.name = name
        self._work = work
        self._most = most
        self._reset()

    def _reset(self) -> None:
        self._waiting: deque[_T] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._closed = False
        self._lost = 0
        self._pid = os.getpid()

    def put(self, thing: _T) -> bool:
        """Hand something over, without waiting; return False if it is lost because too much waits already."""
        if self._pid != os.getpid():
            self._reset()
        with self._changed:
            if self._closed or len(self._waiting) >= self._most:
                self._lost += 1
                return False
            self._waiting.append(thing)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"maestro-{self.name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    @property
    def waiting(self) -> bool:
        """Whether something waits to be begun."""
        return bool(self._waiting) and self._pid == os.getpid()

    def join(self, until_s: float) -> bool:
        """Wait until nothing waits any more, at most until that time (`time.monotonic`); return whether it came."""
        if self._pid != os.getpid():
            return True
        with self._changed:
            while self._waiting or self._busy:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def close(self) -> int:
        """Take nothing more, and end the thread; return how many were not done."""
        if self._pid != os.getpid():
            return 0
        with self._changed:
            self._closed = True
            left = len(self._waiting) + self._busy
            self._waiting.clear()
            self._changed.notify_all()
        return left

    def _run(self) -> None:
        while (thing := self._next()) is not None:
            try:
                self._work(thing[0])
            except Exception:  # noqa: BLE001 - one thing that goes wrong must not stop the others
                _log.exception("%s: something could not be done; the rest goes on", self.name)
            with self._changed:
                self._busy = False
                lost, self._lost = self._lost, 0
                self._changed.notify_all()
            if lost:
                _log.warning("%s: %s were lost, because more than %s waited", self.name, lost, self._most)

    def _next(self) -> tuple[_T] | None:
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            self._busy = True
            return (self._waiting.popleft(),)
