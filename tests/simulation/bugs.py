"""Bugs that the simulation has to find: each breaks one rule of the design, the way somebody might."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from maestro_core.ledger import _tickets
from maestro_core.ledger.memory import MemoryLedger
from maestro_core.types import Refused, Ticket
from maestro_core.waiting import Line

from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BUGS", "planted"]


def _check_then_act(wire: Wire, hold: Any) -> Any:
    """Look whether the money suffices, and take it a moment later, in another step."""
    seen = wire._store.suffices(hold)
    wire._pass()
    return wire._ask(lambda: wire._store.reserve(replace(hold, limits=()) if seen else hold), "reserve")


def _release_on_timeout(ledger: MemoryLedger, *, older_than_us: int = 0, keys: Any = ()) -> list[Any]:
    """Give the money of the dead back, though the provider may have been at work for them."""
    return [ledger.release(key, "timeout") for key in sorted(keys) if key in ledger._open]


_close_hold = MemoryLedger._close_hold


def _settle_into_the_current_window(ledger: MemoryLedger, opened: Any, record: Any, cost_nanos: int) -> None:
    """Count a call where it settles instead of where it was reserved."""
    here = ledger._places(opened.hold, ledger._now_us())
    for place, counter in here:
        ledger._buckets.setdefault(place.key, (place, counter))
    for (_, then), (_, now) in zip(opened.places, here, strict=True):
        then[0] -= cost_nanos
        now[0] += cost_nanos
    _close_hold(ledger, opened, record, cost_nanos)


def _leave_without_waking(line: Line, waiter: Any) -> None:
    """Leave the line and tell nobody."""
    line._waiters.remove(waiter)


def _close_without_waking(line: Line, key: str) -> None:
    """Set money free and tell nobody."""
    line._open.pop(key, None)


def _no_tickets(standing: Any, hold: Any, now_us: int) -> dict[Any, int]:
    """Mind nobody's ticket."""
    return {}


_renewed = _tickets.renewed


def _always_last(standing: Any, hold: Any, outcome: Any, now_us: int) -> Any:
    """Stand in line anew each time, so that whoever asks least often is served first, or never."""
    return _renewed({k: v for k, v in standing.items() if k != hold.key}, hold, outcome, now_us)


def _kept_for_ever(standing: Any, hold: Any, outcome: Any, now_us: int) -> Any:
    """Keep the ticket of a caller that was served, or has given up."""
    if isinstance(outcome, Refused) and hold.ticket and not outcome.spent:
        hold = replace(hold, ticket=Ticket(hold.ticket.process, waits=True, inside=hold.ticket.inside))
    return _renewed(standing, hold, outcome, now_us) or standing.get(hold.key)


def _counted_twice(ledger: MemoryLedger, key: str, settlement: Any) -> Any:
    """Count a settlement that comes twice, twice."""
    record = _settle(ledger, key, settlement)
    if record.written_at.timestamp() * 1_000_000 < ledger._now_us() - 1:
        for _, counter in ledger._buckets.values():
            counter[0] += settlement.cost_nanos
    return record


_settle = MemoryLedger.settle


def _admit_again(ledger: MemoryLedger, hold: Any) -> Any:
    """Forget that a call was closed, so that a request that comes late holds money once more."""
    ledger._closing.pop(hold.key, None)
    return _reserve(ledger, hold)


_reserve = MemoryLedger.reserve

# name -> (where, what, instead)
BUGS = {
    "check-then-act": (Wire, "reserve", _check_then_act),
    "release on timeout": (MemoryLedger, "presume", _release_on_timeout),
    "settle into the current window": (MemoryLedger, "_close_hold", _settle_into_the_current_window),
    "lost wake-up: leaving": (Line, "leave", _leave_without_waking),
    "lost wake-up: set free": (Line, "closed", _close_without_waking),
    "bypassed ticket": (_tickets, "promised", _no_tickets),
    "ticket that loses its place": (_tickets, "renewed", _always_last),
    "ticket that is never taken back": (_tickets, "renewed", _kept_for_ever),
    "settled twice": (MemoryLedger, "settle", _counted_twice),
    "admitted after its end": (MemoryLedger, "reserve", _admit_again),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Put a bug into the code under test, for a while."""
    where, what, instead = BUGS[name]
    with patch.object(where, what, instead):
        yield
