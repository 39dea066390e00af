"""Who waits for held money, in which order, and when waiting is in vain.

Everything here is logic on an injected clock and source of chance: `turns` says how long to wait and what to do next,
and whoever drives it (a thread, an event loop, a simulation) does the waiting.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .types import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from random import Random

__all__ = ["BucketName", "Line", "Place", "bucket_name", "here", "lineage", "turns"]

T = TypeVar("T")

# A bucket whatever its window: (meter id, values).
BucketName = tuple[str, tuple[str, ...]]

# How often a waiter looks for itself: money may come free in another process, which cannot wake it.
_POLL_S = (0.05, 0.25)

# The calls that this context is inside of. A child call may run while its ancestor's money is still held.
lineage: ContextVar[tuple[str, ...]] = ContextVar("maestro_lineage", default=())


class Place(NamedTuple):
    """Where code runs: a thread, and a task of its event loop if it has one."""

    thread: int
    task: int


def here() -> Place:
    """Return the place of the caller."""
    try:
        task = id(asyncio.current_task())
    except RuntimeError:  # no running event loop
        task = 0
    return Place(threading.get_ident(), task)


def bucket_name(refused: Refused) -> BucketName:
    """Return the name of the bucket that refused."""
    return refused.bucket.meter.id, refused.bucket.values


@dataclass(frozen=True, slots=True)
class _Open:
    amount_nanos: int
    names: frozenset[BucketName]
    place: Place


@dataclass(slots=True)
class _Waiter:
    at: BucketName
    wake: Callable[[], None]


class Line:
    """The open holds of one process, and the calls that wait for them: first come, first served, at each bucket.

    A waiter stands at one bucket, the one that lacks the most room, and blocks only younger calls that need that
    bucket. `freed` counts how often money came free; a waiter that saw it change does not go to sleep.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._waiters: list[_Waiter] = []
        self.freed = 0

    def opened(self, key: str, amount_nanos: int, names: frozenset[BucketName], place: Place) -> None:
        """A call of this process holds money now."""
        with self._lock:
            self._open[key] = _Open(amount_nanos, names, place)

    def closed(self, key: str) -> None:
        """A call's money is settled or free; whoever is first at a bucket looks again."""
        with self._lock:
            self._open.pop(key, None)
            self.freed += 1
            wakes = self._firsts()
        for wake in wakes:
            wake()

    def owned(self, name: BucketName, place: Place, ancestors: tuple[str, ...]) -> int:
        """Return how much of a bucket is held by the caller itself: its thread and task, and the calls around it."""
        with self._lock:
            return sum(
                one.amount_nanos
                for key, one in self._open.items()
                if name in one.names and (one.place == place or key in ancestors)
            )

    def ahead(self, names: frozenset[BucketName], waiter: _Waiter | None) -> BucketName | None:
        """Return the bucket at which an older waiter stands that the caller needs too, or None."""
        with self._lock:
            for older in self._waiters:
                if older is waiter:
                    return None
                if older.at in names:
                    return older.at
        return None

    def join(self, at: BucketName, wake: Callable[[], None]) -> _Waiter:
        """Stand in line at a bucket, last."""
        waiter = _Waiter(at, wake)
        with self._lock:
            self._waiters.append(waiter)
        return waiter

    def leave(self, waiter: _Waiter) -> None:
        """Leave the line, served or not; the next in line looks again, or a wake-up would be lost."""
        with self._lock:
            self._waiters.remove(waiter)
            wakes = self._firsts()
        for wake in wakes:
            wake()

    def _firsts(self) -> list[Callable[[], None]]:
        firsts: dict[BucketName, Callable[[], None]] = {}
        for waiter in self._waiters:
            firsts.setdefault(waiter.at, waiter.wake)
        return list(firsts.values())


def turns(
    line: Line,
    names: frozenset[BucketName],
    attempt: Callable[[bool], T | Refused],
    *,
    wake: Callable[[], None],
    now_s: Callable[[], float],
    until_s: float,
    chance: Random,
) -> Generator[float, None, T | Refused]:
    """Try to reserve, in turn; yield how many seconds to wait at most (less, if `wake` is called) before going on.

    Args:
        line: The process's line.
        names: The buckets with a cap that the call charges.
        attempt: Reserves, or says which bucket lacks room. Its argument tells whether to take whatever is left
            although other calls hold money.
        wake: Wakes whoever drives this.
        now_s: A monotonic clock.
        until_s: When to give up; a time that has passed means not to wait at all.
        chance: Spreads the polls of many processes.

    Returns:
        What `attempt` returned last.
    """
    waiter: _Waiter | None = None
    mine = here()
    ancestors = lineage.get()
    try:
        while True:
            freed = line.freed
            at = line.ahead(names, waiter)
            if at is None:
                outcome = attempt(False)
                if not isinstance(outcome, Refused) or outcome.spent:
                    return outcome
                at = bucket_name(outcome)
                if outcome.bucket.held <= line.owned(at, mine, ancestors):
                    return attempt(True)
            if now_s() >= until_s:
                return attempt(True)
            if waiter is None:
                waiter = line.join(at, wake)
            else:
                waiter.at = at
            if line.freed == freed:
                yield min(chance.uniform(*_POLL_S), max(0.0, until_s - now_s()))
    finally:
        if waiter is not None:
            line.leave(waiter)
