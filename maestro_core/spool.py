"""What happens while the ledger cannot be reached: settlements wait here and are replayed once."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from .clock import SystemClock, from_micros
from .errors import LedgerUnavailable, ReservationClosed
from .forks import fork_safe_lock, tell_child
from .types import Hold, Record

if TYPE_CHECKING:
    from .types import Ledger, Reservation, Settlement

__all__ = ["Spool"]

_log = logging.getLogger("maestro")
_MOST = 100_000


class Spool:
    """Settlements that the ledger has not taken yet, in this process's memory; at most 100,000, then the oldest go.

    Args:
        ledger: Where they belong.
        allow_nanos: How much this process may spend under caps while the ledger cannot be reached.
    """

    def __init__(self, ledger: Ledger, allow_nanos: int) -> None:
        self._ledger = ledger
        self._allowance = allow_nanos
        self._waiting: deque[tuple[Reservation, Settlement]] = deque()
        self._lock = fork_safe_lock()
        self._said = False
        self._clock = SystemClock()
        tell_child(self._forked)

    def _forked(self) -> None:
        # They are written down by the process that this one was forked from.
        self._waiting.clear()

    def now_us(self) -> int:
        """Return this machine's time; the store's cannot be had."""
        return self._clock.now_us()

    def allow(self, amount_nanos: int) -> bool:
        """Take an amount from the allowance; False if it does not suffice."""
        with self._lock:
            if amount_nanos > self._allowance or amount_nanos <= 0:
                return False
            self._allowance -= amount_nanos
            return True

    def say_once(self, error: LedgerUnavailable) -> None:
        """Log that calls go on without the ledger, once per outage."""
        if not self._said:
            self._said = True
            _log.warning("%s; calls go on and are written down once it is back", error)

    def settle(self, reservation: Reservation, settlement: Settlement) -> Record:
        """Settle in the ledger, or keep the settlement until the ledger is back."""
        try:
            if reservation.spooled:
                self._reserve(reservation)
            record = self._ledger.settle(reservation.key, settlement)
        except LedgerUnavailable as error:
            self.say_once(error)
            with self._lock:
                if len(self._waiting) >= _MOST:
                    lost, _ = self._waiting.popleft()
                    _log.error("the spool is full; call %s is lost from the ledger", lost.key)
                self._waiting.append((reservation, settlement))
            return _unwritten(reservation, settlement)
        self.replay()
        return record

    def replay(self) -> None:
        """Write down what waits, oldest first; stop at the first failure."""
        while self._waiting:
            with self._lock:
                if not self._waiting:
                    return
                reservation, settlement = self._waiting.popleft()
            try:
                if reservation.spooled:
                    self._reserve(reservation)
                self._ledger.settle(reservation.key, settlement)
            except LedgerUnavailable:
                with self._lock:
                    self._waiting.appendleft((reservation, settlement))
                return
            except ReservationClosed:
                _log.exception("call %s was closed otherwise meanwhile", reservation.key)
        self._said = False

    def close(self) -> None:
        """Try once more, and log what could not be written down."""
        self.replay()
        for reservation, settlement in self._waiting:
            _log.error(
                "call %s (%s nano-dollars) could not be written to the ledger",
                reservation.key,
                settlement.cost_nanos,
            )

    def _reserve(self, reservation: Reservation) -> None:
        # No limits: the money is spent already, and the ledger has to know.
        call = reservation.call
        self._ledger.reserve(
            Hold(call.key, reservation.held_nanos, call.provider, call.model, call.attribution, ())
        )


def _unwritten(reservation: Reservation, settlement: Settlement) -> Record:
    now = from_micros(SystemClock().now_us())
    return Record(
        seq=0,
        kind="settled",
        key=reservation.key,
        at=reservation.at,
        written_at=now,
        provider=reservation.call.provider,
        model=reservation.call.model,
        attribution=reservation.call.attribution,
        cost_nanos=settlement.cost_nanos,
        held_nanos=reservation.held_nanos,
        estimated_nanos=settlement.estimated_nanos,
        sheet_nanos=settlement.sheet_nanos,
        calls=1,
        usage=settlement.usage,
        price_id=settlement.price_id,
        price_book=settlement.price_book,
        unpriced=settlement.unpriced,
        detail=settlement.detail,
    )
