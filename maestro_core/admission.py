"""Whether a call may be sent: whom it is for, what it may cost, which caps apply, and the hold that follows."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from . import plugins, refusal
from .caps import charged_values, charges
from .clock import from_micros
from .declared import Declared
from .errors import CapExceeded, LedgerError, LedgerUnavailable, MaestroError, PriceNotFound
from .fitting import Outputs, fit, tokens_for
from .grants import Grants
from .latches import Latches
from .payers import Payers
from .quick import quick
from .quote import Quotes, ceiling_tokens
from .types import (
    Bucket,
    Call,
    Hold,
    Refused,
    Reservation,
    SharedLedger,
    Ticket,
)
from .waiting import Line, here, lineage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pluggy import PluginManager

    from .settings import Settings
    from .spool import Spool
    from .types import Cap, Cost, Fit, Held, Ledger, Meter
    from .usage import Usage
    from .waiting import BucketName

__all__ = ["Admission", "Request"]

_log = logging.getLogger("maestro")

# How often those who wait for money look whether its holders are alive.
_LOOK_US = 500_000


@quick
@dataclass(frozen=True, slots=True)
class Request:
    """A call that asks to be admitted: its attribution complete, its bound known, the caps that apply found.

    `names` are the buckets with a cap that it charges. A `tentative` one is refused without a word in the journal: whoever
    asks has another endpoint to try.
    """

    call: Call
    caps: tuple[tuple[Cap, Meter], ...]
    bound: Cost | None
    hold: Hold
    names: frozenset[BucketName]
    keeps_last: bool = False
    tentative: bool = False

    def comfortable(self) -> Request:
        """Return the request as one that would rather be refused than have its answer cut."""
        fit = self.hold.fit
        if fit is None:
            return self
        return replace(self, hold=replace(self.hold, fit=replace(fit, least_nanos=fit.comfort_nanos)))


class Admission:
    """The steps from a call to its reservation, for one Maestro."""

    def __init__(
        self,
        settings: Settings,
        manager: PluginManager,
        ledger: Ledger,
        spool: Spool,
        *,
        refused: Callable[[Call, CapExceeded], object] = lambda _call, _error: None,
        presume_lost: Callable[[], int] = lambda: 0,
    ) -> None:
        self.quotes = Quotes(manager, settings.prices)
        self.line = Line()
        self.latches = Latches()
        self.grants = Grants(ledger)
        self.outputs = Outputs()
        self._settings = settings
        self._plugins = manager
        self._ledger = ledger
        self._presume_lost = presume_lost
        self._looked_us = 0
        self._spool = spool
        self.shared: SharedLedger | None = ledger if isinstance(ledger, SharedLedger) else None
        self.payers = Payers(settings, manager)
        self.declared = Declared(settings, manager, ledger)
        self._refused = refused

    def prepare(
        self,
        call: Call,
        *,
        fits: bool = False,
        keeps_last: bool = False,
        last: bool = False,
        tentative: bool = False,
    ) -> Request:
        """Return what has to be held for a call.

        Args:
            call: As the door sees it.
            fits: Whether the door can set the request's output limit, so that the hold may be less than its ceiling.
            keeps_last: Whether a last call on the same context, with the least output, must still fit afterwards into
                every bucket that belongs to the run alone.
            last: Whether this is that last call; it may go although its run was told that the money is spent.
            tentative: Whether a refusal only means that another endpoint is tried.

        Raises:
            CapExceeded: With reason `ceiling`, if it can never fit; with reason `latched`, if its run was told before.
            PriceNotFound: If a cap applies and there is no price or no bound.
            MaestroError: If a required dimension is missing.
        """
        call = self.payers.attributed(call)
        caps = self.declared.caps_for(call)
        self.payers.check_required(call)
        bound = self._bound(call, capped=bool(caps))
        run = call.attribution.dimensions.get("run")
        hold = Hold(
            key=call.key,
            amount_nanos=bound.nanos if bound else 0,
            provider=call.provider,
            model=call.model,
            attribution=call.attribution,
            limits=self.grants.limits(run, caps),
            fit=self._fit(call, bound) if fits and bound and caps else None,
            ticket=self._at_once() if caps and self.shared else None,
        )
        if keeps_last:
            hold = self._limited(hold, caps, keeps_last=True)
        names = [
            (meter.id, values)
            for _, meter in caps
            for values in charged_values(meter, call.attribution, call.provider, call.model)
        ]
        request = Request(call, caps, bound, hold, frozenset(names), keeps_last, tentative)
        if not last:
            request = self._unlatched(request)
        if bound:
            request = self._below_ceiling(request, bound)
        return request

    def attempt(
        self, request: Request, *, rest: bool = False, ticket: Ticket | None = None
    ) -> Reservation | Refused:
        """Ask the ledger once.

        Args:
            request: From `prepare`.
            rest: Take whatever is left, although other calls hold money.
            ticket: The caller's place in the line of all processes; None if it cannot wait. It still leaves alone what
                is set aside for those who do, unless it was inside an open call when it was prepared.

        Raises:
            LedgerUnavailable: If a cap applies and the ledger cannot be reached.
        """
        hold = request.hold
        if self.grants.raised(request.call.attribution.dimensions.get("run")):
            hold = self._limited(hold, request.caps, keeps_last=request.keeps_last)
        if rest and hold.fit:
            hold = replace(hold, fit=replace(hold.fit, rest=True))
        if ticket and hold.ticket:
            hold = replace(hold, ticket=ticket)
        try:
            outcome = self._asked(request, hold)
        except LedgerUnavailable as error:
            if request.caps and not self._spool.allow(hold.amount_nanos):
                raise
            self._spool.say_once(error)
            return _reservation(request, hold.amount_nanos, self._spool.now_us(), spooled=True)
        if isinstance(outcome, Refused):
            return outcome
        if request.names:
            self.line.opened(hold.key, outcome.amount_nanos, request.names, here())
        self._spool.replay()
        return self._admitted(request, outcome)

    def _asked(self, request: Request, hold: Hold) -> Held | Refused:
        """Return the ledger's answer; asked again where the first one need not be true any more."""
        if request.caps and not self.declared.announced:  # a command that only reads enforces nothing
            self.declared.announce()
        outcome = self._ledger.reserve(hold)
        if isinstance(outcome, Refused) and "run" in outcome.bucket.meter.per and self._let_go_on(request):
            hold = self._limited(hold, request.caps, keeps_last=request.keeps_last)
            outcome = self._ledger.reserve(hold)
        if isinstance(outcome, Refused) and not outcome.spent and self._find_lost(outcome.at_us):
            outcome = self._ledger.reserve(hold)  # which tells whether that money is worth waiting for
        return outcome

    def refuse(self, request: Request, refused: Refused) -> NoReturn:
        """Journal a refusal and raise it; money that is spent latches the run.

        Raises:
            CapExceeded: Always.
        """
        error = self.refusal(request, refused)
        if error.reason == "spent":
            # so that only what is granted from now on lifts the latch
            self.grants.reload(request.call.attribution.dimensions.get("run"))
            self.latches.add(request.call, refused, error)
        self._raise(request, error)

    def refusal(self, request: Request, refused: Refused) -> CapExceeded:
        """Return the error for a ledger's refusal."""
        bucket = refused.bucket
        found = [cap for cap, meter in request.caps if meter == bucket.meter]
        cap = min(found, key=lambda cap: cap.limit_nanos)
        run = request.call.attribution.dimensions.get("run")
        limit_nanos = self.grants.limit(run, bucket.meter, cap.limit_nanos)
        inside = self.line.inside(here(), lineage.get())
        return refusal.from_ledger(refused, cap, request.call, limit_nanos=limit_nanos, inside=inside)

    def covers(self, reservation: Reservation, call: Call) -> bool:
        """Return whether what is held suffices for a call that turned out as `call`, at its own output limit."""
        if reservation.bound is None:
            return True
        held = reservation.call
        if call.base_url and held.base_url and call.base_url != held.base_url:
            return False
        try:
            bound = self.quotes.bound(
                replace(
                    call,
                    at=held.at,
                    endpoint=held.endpoint,
                    base_url=held.base_url or call.base_url,
                    price=held.price,
                )
            )
        except PriceNotFound:
            return False
        return bound.nanos <= reservation.held_nanos

    def cut(self, reservation: Reservation, partial: str) -> CapExceeded:
        """Return the refusal for an answer that was cut because its limit was fitted; `partial` is its text."""
        call = reservation.call
        tightest: tuple[int, Cap, Bucket] | None = None
        for cap, meter in self.declared.caps_for(call):
            charged = [values for _, values in charges([meter], call.attribution, call.provider, call.model)]
            for bucket in self._ledger.buckets(meter):
                free = cap.limit_nanos - bucket.used
                if bucket.values in charged and (tightest is None or free < tightest[0]):
                    tightest = free, cap, bucket
        if tightest is None:
            raise MaestroError("an answer was cut at a fitted limit, but no cap applies to it any more")
        _, cap, bucket = tightest
        return refusal.cut(cap, bucket, call, reservation.fitted_output_tokens or 0, partial)

    def learn(self, calls: Iterable[Call], usage: Usage, reply: Mapping[str, object] | None) -> None:
        """Remember what the provider counted, for the next turn of the conversation."""
        for call in calls:
            self.quotes.prefixes.learn(call, usage, reply)

    def settled(self, reservation: Reservation, usage: Usage | None) -> None:
        """A reservation is settled: remember how long the answer was, and wake who waits for the difference."""
        call, fitted = reservation.call, reservation.fitted_output_tokens
        if usage is not None and call.operation == "chat":
            answered = usage.output_tokens // call.n
            if fitted is None or answered < fitted:  # one that was cut would make the next holds ever smaller
                self.outputs.add(call, answered)
        self.line.closed(reservation.key)

    def resume(self, run: str, key: str, *, add_nanos: int, by: str | None, reason: str | None) -> None:
        """Let a run go on that was told that its money is spent, with so much more in the caps that are its own."""
        self.grants.give(run, key, add_nanos=add_nanos, by=by, reason=reason)
        self.latches.lift(run)

    def halt(self, run: str, error: CapExceeded) -> None:
        """Refuse a run's further calls, until `resume`."""
        self.grants.reload(run)  # so that only what is granted from now on lifts the latch
        self.latches.halt(run, error)

    def closed(self, key: str) -> None:
        """A reservation is released or presumed: whoever waits for its money looks again."""
        self.line.closed(key)

    # -- the steps of prepare -------------------------------------------------------------------------------------

    def _bound(self, call: Call, *, capped: bool) -> Cost | None:
        try:
            return self.quotes.bound(call)
        except PriceNotFound as error:
            if capped or self._settings.on_unknown_price == "refuse":
                raise
            self.quotes.warn_unpriced(call, error)
            return None

    def _fit(self, call: Call, bound: Cost) -> Fit | None:
        ceiling = ceiling_tokens(call)
        return fit(call, bound, ceiling, self._settings.min_output_tokens, self.outputs) if ceiling else None

    def _unlatched(self, request: Request) -> Request:
        """Return the request if its run may ask; with the limits as they are now, if a person has let it go on."""
        first = self.latches.find(request.call, request.names, request.hold.limits, self._ledger.now_us)
        if first is None:
            return request
        if not self._let_go_on(request):
            self._raise(request, refusal.latched(first, request.call))
        return replace(request, hold=self._limited(request.hold, request.caps, keeps_last=request.keeps_last))

    def _below_ceiling(self, request: Request, bound: Cost) -> Request:
        """Return the request if it can fit its caps at all; with what a person has granted its run meanwhile."""
        call, needed = request.call, request.hold.needed_nanos
        for (cap, meter), (_, limit_nanos) in zip(request.caps, request.hold.limits, strict=True):
            if needed > limit_nanos:
                if "run" in meter.per and self._let_go_on(request):
                    hold = self._limited(request.hold, request.caps, keeps_last=request.keeps_last)
                    return self._below_ceiling(replace(request, hold=hold), bound)
                _, values = charges([meter], call.attribution, call.provider, call.model)[-1]
                bucket = Bucket(meter, values, None)
                if request.hold.fit:
                    run = call.attribution.dimensions.get("run")
                    kept = self.grants.limit(run, meter, cap.limit_nanos) - limit_nanos
                    error = refusal.too_small(cap, bucket, call, needed, kept)
                else:
                    error = refusal.above_ceiling(cap, bucket, call, bound, ceiling_tokens(call))
                self._raise(request, error)
        return request

    def _raise(self, request: Request, error: CapExceeded) -> NoReturn:
        if request.tentative:
            raise error
        try:
            facts = {"why": str(error), "reason": error.reason, "name": request.call.name}
            self._ledger.refuse(request.hold, facts)
        except LedgerError:
            _log.exception("a refusal could not be journalled")
        self._refused(request.call, error)
        plugins.observe(self._plugins, "maestro_refused", call=request.call, error=error)
        raise error

    def _limited(self, hold: Hold, caps: Sequence[tuple[Cap, Meter]], *, keeps_last: bool) -> Hold:
        """Return a hold with the limits as they are now: raised by grants, less what is kept for a last answer."""
        run = hold.attribution.dimensions.get("run")
        limits = self.grants.limits(run, caps)
        if keeps_last:
            limits = tuple([_less_last(hold, meter, limit) for meter, limit in limits])
        return replace(hold, limits=limits)

    def _find_lost(self, now_us: int) -> bool:
        """Return whether held money turns out to be lost: its process has ended. Not asked at every poll."""
        if now_us - self._looked_us < _LOOK_US:
            return False
        self._looked_us = now_us
        return self._presume_lost() > 0

    def _let_go_on(self, request: Request) -> bool:
        """Return whether a person has let the run go on since it was refused, here or in another process."""
        run = request.call.attribution.dimensions.get("run")
        if not self.grants.reload(run):
            return False
        self.latches.lift(run or "")
        return True

    # -- small helps ----------------------------------------------------------------------------------------------

    def _admitted(self, request: Request, held: Held) -> Reservation:
        reservation = _reservation(request, held.amount_nanos, held.at_us)
        fit = request.hold.fit
        if fit is None or held.amount_nanos >= fit.fixed_nanos + fit.ceiling_nanos:
            return reservation
        output_nanos = held.amount_nanos - fit.fixed_nanos
        tokens = tokens_for(request.call, request.bound, output_nanos) if request.bound else None
        return replace(reservation, fitted_output_tokens=tokens)

    def _at_once(self) -> Ticket:
        return Ticket(self.line.process, inside=self.line.inside(here(), lineage.get()))


def _less_last(hold: Hold, meter: Meter, limit_nanos: int) -> tuple[Meter, int]:
    # Shared caps keep nothing back: every agent would keep something for itself, and the last of a cap go unused.
    return meter, max(0, limit_nanos - hold.needed_nanos) if "run" in meter.per else limit_nanos


def _reservation(request: Request, held_nanos: int, at_us: int, *, spooled: bool = False) -> Reservation:
    return Reservation(
        key=request.call.key,
        call=request.call,
        held_nanos=held_nanos,
        at=from_micros(at_us),
        bound=request.bound,
        capped=bool(request.caps),
        spooled=spooled,
    )
