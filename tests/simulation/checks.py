"""What must hold after every step, whatever happens; reckoned apart from the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maestro_core.caps import charges, window
from maestro_core.errors import ReservationClosed
from maestro_core.ledger._rules import Counted, admit, charged
from maestro_core.types import Held, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maestro_core.types import Hold, Meter

    from .scheduler import Scheduler

__all__ = ["Bill", "Violation", "Watched"]

# A ticket that was shown so lately is alive, and one that was not for so long is dead. In between nobody can say,
# because a ledger need not write down each time that it is shown.
_ALIVE_US, _DEAD_US = 800_000, 1_000_000


class Violation(AssertionError):
    """A promise that was broken."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A ticket, as the checks remember it."""

    key: str
    process: str
    inside: bool
    at: tuple[str, tuple[str, ...]]
    place: int
    seen_us: int
    wanted: int
    sure: bool  # whether its place is known


class Bill:
    """The provider's true bill, by the bucket that each call was admitted to."""

    def __init__(self, limits: dict[Meter, int]) -> None:
        self._limits = limits
        self._totals: dict[Any, int] = {}
        self._allowed: dict[Any, int] = {}
        self.of: dict[str, int] = {}

    def add(self, key: str, hold: Hold, held: Held, nanos: int) -> None:
        """A call costs so much; more than was held is an overrun, which is allowed and counted."""
        self.of[key] = nanos
        for meter, values in charges(list(self._limits), hold.attribution, hold.provider, hold.model):
            current = window(meter.every, meter.time_zone, held.at_us)
            name = meter.id, values, current.start_us if current else 0
            self._totals[name] = self._totals.get(name, 0) + nanos
            over = max(0, nanos - held.amount_nanos)
            self._allowed[name] = self._allowed.get(name, self._limits[meter]) + over
            if self._totals[name] > self._allowed[name]:
                raise Violation(f"the bill of {name} is {self._totals[name]}, its cap {self._limits[meter]}")


class Watched:
    """The shared store. Each verb that reaches it is checked at that moment, before anybody else can act.

    Args:
        store: A real ledger.
        scheduler: Tells the time.
    """

    def __init__(self, store: Any, scheduler: Scheduler) -> None:
        self.store = store
        self.version = 0
        self.held: dict[str, tuple[Hold, Held]] = {}
        self.open: set[str] = set()
        self.tickets: dict[str, Shown] = {}
        self._scheduler = scheduler
        self._places = 0
        self._closings: dict[str, tuple[Any, Any]] = {}

    def reserve(self, hold: Hold) -> Held | Refused:
        closed = hold.key in self._closings
        aside = self.aside(hold)
        outcome = self.store.reserve(hold)
        if closed:
            raise Violation(f"{hold.key} is closed, and was admitted again")
        stood = hold.key in self.tickets
        self._show(hold, outcome)
        if not isinstance(outcome, Refused) or stood is not (hold.key in self.tickets):
            self.version += 1
        if isinstance(outcome, Refused):
            self._check_refused(hold, outcome)
        elif hold.key in self.held:
            if outcome != self.held[hold.key][1]:
                raise Violation(f"{hold.key} was admitted twice: {self.held[hold.key][1]}, then {outcome}")
        else:
            self.held[hold.key] = hold, outcome
            self.open.add(hold.key)
            self._check_admitted(hold, aside or {})
        return outcome

    def settle(self, key: str, settlement: Any) -> Any:
        return self._close(key, settlement.cost_nanos, lambda: self.store.settle(key, settlement))

    def release(self, key: str, reason: str) -> Any:
        return self._close(key, "released", lambda: self.store.release(key, reason))

    def presume(self, *, older_than_us: int = 0, keys: Any = ()) -> Any:
        self.version += 1
        return self.store.presume(older_than_us=older_than_us, keys=keys)

    def withdraw(self, key: str) -> None:
        self.version += 1
        self.tickets.pop(key, None)
        self.store.withdraw(key)

    def refuse(self, hold: Hold, detail: Any) -> Any:
        return self.store.refuse(hold, detail)

    def grant(self, key: str, run: str, detail: Any) -> Any:
        self.version += 1
        return self.store.grant(key, run, detail)

    def changed(self) -> int:
        return self.version

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    # -- what is asked of the store between steps -----------------------------------------------------------------

    def counters(self, hold: Hold) -> Iterator[tuple[Any, tuple[int, int, int]]]:
        """Yield each place that a call would be counted at now, with its counter."""
        meters = [meter for meter, _ in hold.limits]
        counted = [Counted(meter, 0) for meter in meters]
        quick = getattr(self.store, "_buckets", None)  # in memory, looking costs less than asking
        if quick is not None:
            for place in charged(counted, hold.attribution, hold.provider, hold.model, self.store.now_us()):
                yield place, quick[place.key][1] if place.key in quick else (0, 0, 0)
            return
        buckets = {(meter.id, b.values): b for meter in meters for b in self.store.buckets(meter)}
        now_us = self.store.now_us()
        for place in charged(counted, hold.attribution, hold.provider, hold.model, now_us):
            bucket = buckets.get(place.key[:2])
            yield place, (bucket.spent, bucket.held, bucket.presumed) if bucket else (0, 0, 0)

    def aside(self, hold: Hold, *, perhaps: bool = False) -> dict[tuple[str, tuple[str, ...]], int] | None:
        """Return what belongs to those who stand before a call, of what is free; None if nobody can say.

        With `perhaps`, also what belongs to those who may stand before it.
        """
        ticket, aside = hold.ticket, {}
        if ticket is None or ticket.inside:
            return aside
        own = self.tickets.get(hold.key)
        if own and (not own.sure or not self._lives(own)):
            if own.sure and self._is_dead(own):
                own = None
            else:
                return None
        for one in self.tickets.values():
            mine = one.key == hold.key or (ticket.waits and one.process == ticket.process)
            older = own is None or (not one.inside, one.place) < (not own.inside, own.place)
            certain = one.sure and older and self._lives(one)
            possible = perhaps and not self._is_dead(one) and (older or not one.sure)
            if not mine and (certain or possible):
                aside[one.at] = aside.get(one.at, 0) + one.wanted
        return aside

    def suffices(self, hold: Hold) -> bool:
        """Return whether a waiter's money is free, and belongs to nobody who stands before it."""
        aside = self.aside(hold, perhaps=True)
        return aside is not None and not isinstance(admit(hold, list(self.counters(hold)), 0, aside), Refused)

    def hopeless(self, hold: Hold) -> bool:
        """Return whether a waiter's money is spent."""
        outcome = admit(hold, list(self.counters(hold)), 0)
        return isinstance(outcome, Refused) and outcome.spent

    # -- checks ---------------------------------------------------------------------------------------------------

    def _lives(self, one: Shown) -> bool:
        return self._scheduler.now_us - one.seen_us <= _ALIVE_US

    def _is_dead(self, one: Shown) -> bool:
        return self._scheduler.now_us - one.seen_us > _DEAD_US

    def _show(self, hold: Hold, outcome: Held | Refused) -> None:
        ticket = hold.ticket
        if not isinstance(outcome, Refused) or outcome.spent or not ticket or not ticket.waits:
            self.tickets.pop(hold.key, None)
            return
        at = outcome.bucket.meter.id, outcome.bucket.values
        own = self.tickets.get(hold.key)
        sure = own is None or self._lives(own) or self._is_dead(own)
        sure &= own is None or own.sure or self._is_dead(own)
        place = own.place if own and self._lives(own) else self._places + 1
        self._places = max(place, self._places)
        now_us = self._scheduler.now_us
        self.tickets[hold.key] = Shown(
            hold.key, ticket.process, ticket.inside, at, place, now_us, hold.wanted_nanos, sure
        )

    def _check_admitted(self, hold: Hold, aside: dict[Any, int]) -> None:
        limits = {meter.id: limit for meter, limit in hold.limits}
        for place, counter in self.counters(hold):
            name, values, _ = place.key
            free = limits[name] - sum(counter)
            if free < 0:
                raise Violation(f"{hold.key} was admitted to {name} {values} above its limit, by {-free}")
            if free < aside.get((name, values), 0):
                raise Violation(f"{hold.key} took what older callers wait for at {name} {values}")

    def _check_refused(self, hold: Hold, outcome: Refused) -> None:
        if not outcome.spent:
            return
        for place, (spent, _, presumed) in self.counters(hold):
            limit = min(limit for meter, limit in hold.limits if meter == place.meter)
            if spent + presumed + hold.needed_nanos > limit:
                return
        raise Violation(f"{hold.key} was refused as spent, and no money is spent: {outcome}")

    def _close(self, key: str, how: Any, verb: Any) -> Any:
        self.version += 1
        before = self._closings.get(key)
        try:
            record = verb()
        except ReservationClosed:
            if before is not None and before[0] == how:
                raise Violation(f"{key} was closed the same way twice, and the second was an error") from None
            raise
        if before is not None and record != before[1]:
            raise Violation(f"{key} was closed twice: {before[1]}, then {record}")
        self._closings.setdefault(key, (how, record))
        self.open.discard(key)
        return record
