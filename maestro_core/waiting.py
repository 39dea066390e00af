"""Who waits for held money, in which order, and when waiting is in vain.

Everything here is logic on an injected clock and source of chance: `turns` says how long to wait and what to do next,
and whoever drives it (a thread, an event loop, a simulation) does the waiting.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from .forks import fork_safe_lock, tell_child
from .quick import quick
from .types import Refused, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from random import Random

__all__ = ["BucketName", "Desk", "Line", "Place", "bucket_name", "here", "lineage", "turns"]

T = TypeVar("T")

# A bucket whatever its window: (meter id, values).
BucketName = tuple[str, tuple[str, ...]]

# How often the first at a bucket looks for itself: money may come free in another process, which cannot wake it. Soon
# again while something happens, less often while nothing does.
_SHORTEST_S, _SHORT_S, _LONG_S = 0.05, 0.1, 0.25
_LONGER = 1.5

# How long it may go without trying, although nobody wrote: windows end, tickets of the dead lapse, and its own must not.
_BEAT_S = 0.3

# The others are woken when it is their turn.
_TURN_S = 60.0

# For how long what a process has taken counts as its share, even if it was quick to spend it.
_LATELY_S = 1.0

_NONE: frozenset[str] = frozenset()

# The calls that this context is inside of. A child call may run while its ancestor's money is still held.
lineage: ContextVar[tuple[str, ...]] = ContextVar("maestro_lineage", default=())


class Place(NamedTuple):
    """Where code runs: a thread, and a task of its event loop if it has one."""

    thread: int
    task: int


def here() -> Place:
    """Return the place of the caller."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - documented; without a loop, current_task() raises, which is slow
    task = 0 if loop is None else id(asyncio.current_task(loop))
    return tuple.__new__(Place, (threading.get_ident(), task))  # its own constructor is in Python, and slow


def bucket_name(refused: Refused) -> BucketName:
    """Return the name of the bucket that refused."""
    return refused.bucket.meter.id, refused.bucket.values


@quick
@dataclass(frozen=True, slots=True)
class _Open:
    amount_nanos: int
    names: frozenset[BucketName]
    place: Place
    around: frozenset[str]  # the open calls that it was made inside of
    at_s: float


@dataclass(slots=True, eq=False)
class _Waiter:
    at: BucketName
    wake: Callable[[], None]
    place: Place
    ancestors: tuple[str, ...]


class Line:
    """The open holds of one process, and the calls that wait for them: first come, first served, at each bucket.

    A waiter stands at one bucket, the one that lacks the most room, and blocks only younger calls that need that
    bucket. A call *inside* another one, whose money it would wait for in vain, blocks others and is not blocked.
    `process` is who this is to other processes; a fork is another one. `changes` counts what may let somebody go on; a
    waiter that saw it change does not go to sleep.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._lock = fork_safe_lock()
        self._now_s = now_s
        self._open: dict[str, _Open] = {}
        self._lately: deque[_Open] = deque()  # closed, and still counted
        self._totals: dict[BucketName, int] = {}
        self._waiters: list[_Waiter] = []
        self._id = secrets.token_hex(4)
        self._name_process()
        self.changes = 0
        tell_child(self.forked)

    def forked(self) -> None:
        """This is a child of the process that these calls and waiters belong to."""
        self._open.clear()
        self._totals.clear()
        self._lately.clear()
        self._waiters.clear()
        self._name_process()

    def _name_process(self) -> None:
        self.process = f"{os.getpid()}-{self._id}"

    def opened(self, key: str, amount_nanos: int, names: frozenset[BucketName], place: Place) -> None:
        """A call of this process holds money now."""
        with self._lock:
            around = frozenset(self._family(place, lineage.get())) if self._open else _NONE
            self._open[key] = _Open(amount_nanos, names, place, around, self._now_s())
            self._count(names, amount_nanos)

    def closed(self, key: str) -> None:
        """A call's money is settled or free; whoever is first at a bucket looks again."""
        with self._lock:
            one = self._open.pop(key, None)
            if one:
                self._lately.append(one)
            self._forget()
            wakes = self._changed()
        for wake in wakes:
            wake()

    @contextmanager
    def asking(
        self, names: frozenset[BucketName], wanted_nanos: int, *, waits: bool, inside: bool
    ) -> Iterator[Ticket]:
        """Give a caller that asks inside the block its place among all processes.

        Threads ask at the same time; each counts what those before it are about to take as held by the process.
        """
        if not waits:
            yield Ticket(self.process, inside=inside)
            return
        with self._lock:
            self._forget()
            holds = {name: self._totals[name] for name in names if name in self._totals}
            self._count(names, wanted_nanos)
        try:
            yield Ticket(self.process, waits=True, inside=inside, holds=holds)
        finally:
            with self._lock:
                self._count(names, -wanted_nanos)

    def inside(self, place: Place, ancestors: tuple[str, ...]) -> bool:
        """Return whether the caller is inside an open call: of its own thread and task, or around it."""
        if not self._open:
            return False
        with self._lock:
            return bool(self._family(place, ancestors))

    def in_vain(self, waiter: _Waiter) -> int:
        """Return how much of the bucket that a waiter stands at is held by calls that cannot end before it goes on.

        Those are the calls that it is inside of, and those around callers that wait for such money themselves: two
        open calls, each with a call inside that waits for the other's money, would wait for ever.
        """
        with self._lock:
            own = self._family(waiter.place, waiter.ancestors)
            if not own:
                return 0
            ending = self._ending()
            return sum(
                one.amount_nanos
                for key, one in self._open.items()
                if waiter.at in one.names and (key in own or key not in ending)
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

    def join(self, waiter: _Waiter) -> None:
        """Stand in line, last."""
        with self._lock:
            self._waiters.append(waiter)

    def move(self, waiter: _Waiter, at: BucketName) -> None:
        """Stand at another bucket; whoever it blocked at the one before looks again, or a wake-up would be lost."""
        if waiter.at != at:
            with self._lock:
                waiter.at = at
                wakes = self._changed()
            for wake in wakes:
                wake()

    def leave(self, waiter: _Waiter) -> None:
        """Leave the line, served or not; the next in line looks again, or a wake-up would be lost."""
        with self._lock:
            if waiter in self._waiters:  # it is not, if it began to wait before this process was forked
                self._waiters.remove(waiter)
            wakes = self._changed()
        for wake in wakes:
            wake()

    def _forget(self) -> None:
        # In the order of closing, which is near enough: one that was open for long is over at once when its turn comes.
        while self._lately and self._lately[0].at_s + _LATELY_S <= self._now_s():
            one = self._lately.popleft()
            self._count(one.names, -one.amount_nanos)

    def _count(self, names: frozenset[BucketName], amount_nanos: int) -> None:
        for name in names:
            total = self._totals.pop(name, 0) + amount_nanos
            if total:
                self._totals[name] = total

    def _changed(self) -> list[Callable[[], None]]:
        """Return how to wake everybody who may go on now: the first at each bucket, and callers inside open calls."""
        self.changes += 1
        firsts: set[BucketName] = set()
        wakes = []
        for waiter in self._waiters:
            if waiter.at not in firsts or self._family(waiter.place, waiter.ancestors):
                wakes.append(waiter.wake)
            firsts.add(waiter.at)
        return wakes

    def _family(self, place: Place, ancestors: tuple[str, ...]) -> set[str]:
        found: set[str] = set()
        for key, one in self._open.items():
            if one.place == place or key in ancestors:
                found |= {key} | one.around
        return found & self._open.keys()

    def _ending(self) -> set[str]:
        """Return the open calls that will end: nobody inside them waits, or only for calls that will end."""
        families = [(waiter.at, self._family(waiter.place, waiter.ancestors)) for waiter in self._waiters]
        ending = set(self._open).difference(*(family for _, family in families))
        while True:
            more: set[str] = set()
            for at, family in families:
                if any(at in self._open[key].names for key in ending - family):
                    more |= family
            if more <= ending:
                return ending
            ending |= more


@quick
@dataclass(frozen=True, slots=True)
class Desk(Generic[T]):
    """Where a caller asks for money.

    Args:
        attempt: Reserves, or says which bucket lacks room. Its arguments: whether to take whatever is left although
            other calls hold money, and the caller's place among all processes.
        changed: Returns a number that is another one if other processes have done anything; None if nobody can tell.
        withdraw: Says that the caller does not wait any more.
        wanted_nanos: About what it asks for.
    """

    attempt: Callable[[bool, Ticket], T | Refused]
    changed: Callable[[], int] | None = None
    withdraw: Callable[[], None] | None = None
    wanted_nanos: int = 0


def turns(
    line: Line,
    names: frozenset[BucketName],
    desk: Desk[T],
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
        desk: Where to ask.
        wake: Wakes whoever drives this.
        now_s: A monotonic clock.
        until_s: When to give up; a time that has passed means not to wait at all.
        chance: Spreads the polls of many processes.

    Returns:
        What `desk.attempt` returned last.
    """
    place, ancestors = here(), lineage.get()
    waiter: _Waiter | None = None
    polls = _Polls(line, desk.changed, now_s, chance)
    ended = False
    try:
        while True:
            polls.begin(waits=waiter is not None)
            inside = line.inside(place, ancestors)
            at, held, turn_s = None if inside else line.ahead(names, waiter), None, 0.0
            if at is None:
                waits = now_s() < until_s
                with line.asking(names, desk.wanted_nanos, waits=waits, inside=inside) as ticket:
                    outcome = desk.attempt(False, ticket)
                if not isinstance(outcome, Refused) or outcome.spent:
                    ended = True
                    return outcome
                at, held = bucket_name(outcome), outcome.bucket.held + outcome.promised_nanos
                turn_s = outcome.turn_us / 1_000_000
            if waiter is None and now_s() < until_s:
                waiter = _Waiter(at, wake, place, ancestors)
                line.join(waiter)
                if held is not None and not inside and (older := _stood_behind(line, names, waiter, desk)):
                    at, held, turn_s = older, None, 0.0
            if waiter is not None:
                line.move(waiter, at)
            # Nothing held: it is only not its turn yet.
            in_vain = waiter is not None and held is not None and 0 < held <= line.in_vain(waiter)
            if in_vain or now_s() >= until_s:
                outcome = desk.attempt(True, Ticket(line.process, inside=inside))
                ended = True
                return outcome
            yield from polls.until(until_s, first=held is not None, turn_s=turn_s)
    finally:
        if waiter is not None:
            line.leave(waiter)
            if not ended and desk.withdraw:
                desk.withdraw()


def _stood_behind(
    line: Line, names: frozenset[BucketName], waiter: _Waiter, desk: Desk[T]
) -> BucketName | None:
    """Return where an older waiter stands, if a new one has to wait for it; else None.

    Threads that asked at the same time have a ticket each by now. One is due to all of them: that of the first in line.
    """
    older = line.ahead(names, waiter)
    if older is not None and desk.withdraw:
        desk.withdraw()
    return older


class _Polls:
    """When a waiter tries again: when it is woken, when another process has written, when its ticket needs it."""

    def __init__(
        self,
        line: Line,
        changed: Callable[[], int] | None,
        now_s: Callable[[], float],
        chance: Random,
    ) -> None:
        self._line = line
        self._changed = changed
        self._now_s = now_s
        self._chance = chance
        self._longest_s = _SHORT_S

    def begin(self, *, waits: bool) -> None:
        """Remember how things are, before they are looked at; who does not wait yet is not made to ask for that."""
        self._changes = self._line.changes
        self._version = self._changed() if waits and self._changed else None
        self._beat_s = self._now_s() + _BEAT_S

    def until(self, until_s: float, *, first: bool, turn_s: float) -> Generator[float]:
        """Yield pauses until it is time to try again; no longer than `until_s`, and not at all if anything changed."""
        while self._line.changes == self._changes:
            left_s = max(0.0, until_s - self._now_s())
            if not first or turn_s:
                # One that is not due yet asks soon again: threads that asked beside it may have got less than it was told.
                yield min(turn_s, _SHORTEST_S, left_s) if turn_s else min(_TURN_S, left_s)
                return
            yield min(self._chance.uniform(_SHORTEST_S, self._longest_s), left_s)
            if self._changed is None or self._changed() != self._version:
                self._longest_s = _SHORT_S
                return
            self._longest_s = min(_LONG_S, self._longest_s * _LONGER)
            if self._now_s() >= min(self._beat_s, until_s):
                return
