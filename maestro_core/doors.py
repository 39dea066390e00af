"""Doors that can wait, and can set a request's output limit: what agent middleware and wrapped models stand on.

A door reserves before it lets a call go, and *offers* the reservation to the handler that will see the call's run. The
handler takes the offer once, if it covers the call, and settles it. What nobody took was not sent, and is released.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import CapExceeded, LedgerError, MaestroError
from .forks import tell_child
from .types import Refused
from .waiting import Desk, lineage, turns

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterator, Mapping

    from .admission import Request
    from .maestro import Maestro
    from .types import Call, Record, Reservation, SharedLedger
    from .usage import Usage

__all__ = ["Doors", "Offer", "Terms"]

_log = logging.getLogger("maestro")

_offer: ContextVar[Offer | None] = ContextVar("maestro_offer", default=None)


@dataclass(frozen=True, slots=True)
class Terms:
    """What an agent's door asks of a door inside it, which reserves in its place.

    Args:
        keeps_last: As in `Admission.prepare`.
        last: Likewise.
        whole: Whether an answer that was cut, because the cap left no more, is no answer.
    """

    keeps_last: bool = False
    last: bool = False
    whole: bool = False


_PLAIN = Terms()
_terms: ContextVar[Terms] = ContextVar("maestro_terms", default=_PLAIN)


@dataclass(slots=True)
class Offer:
    """A reservation on its way from a door to the handler; taken at most once.

    `limit` are the call arguments by which the door sets a fitted output limit. Once the call has ended, `record` is what
    it came to and `usage` what the provider reported; both stay None if it was not billed. `tells` adds facts to its row
    of the journal, once its usage is known.
    """

    maestro: Maestro
    reservation: Reservation
    limit: Mapping[str, int] | None = None
    taken: bool = False
    record: Record | None = None
    usage: Usage | None = None
    tells: Callable[[Usage], Mapping[str, Any]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, maestro: Maestro, call: Call, settings: Mapping[str, object]) -> Reservation | None:
        """Return the reservation if it is still there and covers the call.

        It does not, if an inner middleware chose another model or made the request larger than what was held for, or if
        this is another call on the way, which does not carry the output limit that was fitted.
        """
        held = self.reservation
        if maestro is not self.maestro or (call.provider, call.model) != (
            held.call.provider,
            held.call.model,
        ):
            return None
        if held.fitted_output_tokens is not None:
            if not self.limit or any(settings.get(name) != value for name, value in self.limit.items()):
                return None
            call = replace(call, max_output_tokens=held.fitted_output_tokens)
        with self._lock:
            if self.taken or not maestro.admission.covers(held, call):
                return None
            self.taken = True
        if call.base_url and not held.call.base_url:  # the door did not know where it goes
            return replace(held, call=replace(held.call, base_url=call.base_url))
        return held


class Doors:
    """The doors of one Maestro."""

    def __init__(self, maestro: Maestro) -> None:
        self._maestro = maestro
        self.now_s = time.monotonic
        self._chance = random.Random()  # noqa: S311 - spreads polls, guards nothing
        tell_child(self._forked)

    def _forked(self) -> None:
        # What is on offer around this belongs to the process that this one was forked from.
        if (offer := _offer.get()) is not None:
            offer.taken = True

    def reserve(
        self,
        call: Call,
        *,
        fits: bool = True,
        keeps_last: bool = False,
        last: bool = False,
        parent_id: Hashable | None = None,
    ) -> Reservation:
        """Reserve, waiting for money that other calls hold; on a thread that runs an event loop, fit or refuse at once.

        Args:
            call: The call.
            fits: Whether the caller sets `fitted_output_tokens` on the request.
            keeps_last: As in `Admission.prepare`.
            last: Likewise.
            parent_id: The run around it, if that is known: a refusal is shown below.

        Raises:
            CapExceeded, PriceNotFound, LedgerUnavailable, MaestroError: As `Maestro.reserve`; `held` only after `wait_s`.
        """
        wake = threading.Event()
        try:
            request = self._maestro.admission.prepare(call, fits=fits, keeps_last=keeps_last, last=last)
            steps = self._steps(request, wake.set, may_wait=not _runs_event_loop())
            try:
                for pause_s in steps:
                    wake.wait(pause_s)
                    wake.clear()
            finally:  # an interrupt's traceback would keep the place in line
                steps.close()
            return steps.reservation  # noqa: TRY300 - it may raise the refusal
        except CapExceeded as error:
            self._maestro.runs.refused(parent_id, call, error)
            raise

    async def areserve(
        self,
        call: Call,
        *,
        fits: bool = True,
        keeps_last: bool = False,
        last: bool = False,
        parent_id: Hashable | None = None,
    ) -> Reservation:
        """As `reserve`; waits without blocking the event loop."""
        wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            request = self._maestro.admission.prepare(call, fits=fits, keeps_last=keeps_last, last=last)
            steps = self._steps(request, lambda: _wake_on(loop, wake), may_wait=True)
            try:
                for pause_s in steps:
                    try:
                        await asyncio.wait_for(wake.wait(), pause_s)
                    except TimeoutError:
                        continue
                    finally:
                        wake.clear()
            finally:
                steps.close()
            return steps.reservation  # noqa: TRY300 - it may raise the refusal
        except CapExceeded as error:
            self._maestro.runs.refused(parent_id, call, error)
            raise

    def ask(self, call: Call, *, fits: bool = True, terms: Terms = _PLAIN) -> Reservation | CapExceeded:
        """Reserve at once, with room for an answer of usual length; or return why not, unless it is no matter of money.

        For callers that have another endpoint to try: a refusal is neither journalled, nor does it latch the run.

        Raises:
            PriceNotFound, LedgerUnavailable, MaestroError: As `Maestro.reserve`.
        """
        try:
            request = self._maestro.admission.prepare(
                call, fits=fits, keeps_last=terms.keeps_last, last=terms.last, tentative=True
            ).comfortable()
        except CapExceeded as error:
            return error
        steps = self._steps(request, lambda: None, may_wait=False)
        for _ in steps:
            pass
        outcome = steps.outcome
        return self._maestro.admission.refusal(request, outcome) if isinstance(outcome, Refused) else outcome

    @contextmanager
    def terms(self, terms: Terms) -> Iterator[None]:
        """Doors inside the block reserve on these terms."""
        token = _terms.set(terms)
        try:
            yield
        finally:
            _terms.reset(token)

    def asked(self) -> Terms:
        """Return the terms of the door around the caller."""
        return _terms.get()

    def offered(self) -> Offer | None:
        """Return the offer of the surrounding door, taken or not."""
        return _offer.get()

    @contextmanager
    def offer(self, reservation: Reservation, limit: Mapping[str, int] | None = None) -> Iterator[Offer]:
        """Offer a reservation to the handler inside the block; afterwards, release it if nobody took it.

        The block is the sending of one request. Calls inside it never wait for this reservation's money.

        Args:
            reservation: What is held.
            limit: The call arguments that set its fitted output limit; the call that takes it has to carry them.
        """
        offer = Offer(self._maestro, reservation, limit)
        offered, inside = _offer.set(offer), lineage.set((*lineage.get(), reservation.key))
        try:
            yield offer
        except BaseException as error:
            # A cancelled call tells no handler that it ended. It may have been billed, so its money is presumed spent;
            # one that ended in another way is closed already.
            if offer.taken:
                self._maestro.runs.abandon(reservation.key, error)
            raise
        finally:
            lineage.reset(inside)
            _offer.reset(offered)
            if not offer.taken:
                offer.taken = True
                try:
                    self._maestro.release(reservation, "not sent")
                except MaestroError:  # the caller has a result, or an error of its own
                    _log.exception("a hold could not be released; it stays held until it is presumed spent")

    def take(self, call: Call, settings: Mapping[str, object]) -> Reservation | None:
        """Return the reservation that the surrounding door offers, if it covers the call with these arguments."""
        offer = _offer.get()
        return offer.take(self._maestro, call, settings) if offer else None

    def _steps(self, request: Request, wake: Callable[[], None], *, may_wait: bool) -> _Steps:
        admission = self._maestro.admission
        wait_s = self._maestro.settings.wait_s if may_wait else 0.0
        shared = admission.shared
        key = request.call.key
        desk: Desk[Reservation] = Desk(
            lambda rest, ticket: admission.attempt(request, rest=rest, ticket=ticket),
            shared.changed if shared else None,
            (lambda: _withdraw(shared, key)) if shared else None,
            request.hold.wanted_nanos,
        )
        generator = turns(
            admission.line,
            request.names,
            desk,
            wake=wake,
            now_s=self.now_s,
            until_s=self.now_s() + wait_s if may_wait else 0.0,
            chance=self._chance,
        )
        return _Steps(generator, lambda refused: admission.refuse(request, refused))


class _Steps:
    """Drives `turns` as a plain iterator of pauses; afterwards has the reservation, or raises the refusal."""

    def __init__(
        self,
        generator: Generator[float, None, Reservation | Refused],
        refuse: Callable[[Refused], None],
    ) -> None:
        self._generator = generator
        self._refuse = refuse
        self._outcome: Reservation | Refused | None = None

    def __iter__(self) -> Iterator[float]:
        self._outcome = yield from self._generator

    def close(self) -> None:
        """Leave the line, if the caller was cancelled while it waited."""
        self._generator.close()

    @property
    def outcome(self) -> Reservation | Refused:
        assert self._outcome is not None  # noqa: S101 - the iterator was exhausted, or raised
        return self._outcome

    @property
    def reservation(self) -> Reservation:
        outcome = self.outcome
        if isinstance(outcome, Refused):
            self._refuse(outcome)
        return outcome  # type: ignore[return-value]


def _withdraw(shared: SharedLedger, key: str) -> None:
    # It lapses by itself; what the caller was interrupted with matters more.
    with suppress(LedgerError):
        shared.withdraw(key)


def _runs_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _wake_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    # Money may come free in any thread, and the loop of a waiter may be gone by then.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)
