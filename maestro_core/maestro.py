"""The core: reserve before a call, settle after it, and answer what was spent."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from . import plugins, queries, refusal
from .attribution import MOST_DIMENSIONS, cleaned, current, environment_defaults
from .caps import charges, matches
from .clock import from_micros
from .errors import CapExceeded, LedgerError, LedgerUnavailable, MaestroError, PriceNotFound
from .ledger import open_ledger
from .open_call import OpenCall
from .quote import Quotes, ceiling_tokens
from .runs import Runs
from .settings import Settings
from .spool import Spool
from .telemetry import Telemetry
from .types import UNATTRIBUTED, Attribution, Bucket, Call, Hold, Refused, Reservation
from .usage import Usage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .types import Cap, CapStatus, Cost, Ledger, Meter, Record, Report, Tree

__all__ = ["Maestro"]

_log = logging.getLogger("maestro")


class Maestro:
    """Prices, attributes and caps model calls. One instance serves a whole process, from any thread or task.

    Args:
        settings: Every key of `maestro_core.settings.Settings` as a keyword; what is not given comes from the
            environment (`MAESTRO_*`), `maestro.toml` or pyproject.toml.

    Raises:
        SettingsError: For an unknown or malformed setting; the message names the fix.
        LedgerUnavailable: If the ledger cannot be opened.
    """

    _default: ClassVar[Maestro | None] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.plugins = plugins.load()
        self.telemetry = Telemetry()
        self.ledger: Ledger = self.plugins.hook.maestro_ledger(url=self.settings.ledger) or open_ledger(
            self.settings.ledger
        )
        self.runs = Runs(self)
        self._quotes = Quotes(self.plugins)
        self._defaults = environment_defaults()
        self._spool = Spool(self.ledger, self.settings.allow_nanos)
        self._warned: set[str] = set()
        zone = self.settings.time_zone
        self._caps: tuple[tuple[Cap, Meter], ...] = tuple(
            (cap, cap.meter(zone)) for cap in self.settings.caps
        )
        self._declared: set[Meter] = set()
        self._declare([limit.meter(zone) for limit in (*self.settings.caps, *self.settings.budgets)])
        self._presume_old()
        self._finalizer = weakref.finalize(self, _close, self._spool, self.telemetry, self.ledger)

    @classmethod
    def default(cls) -> Maestro:
        """Return the process's own instance, built from settings on first use."""
        with cls._default_lock:
            if cls._default is None:
                cls._default = cls()
            return cls._default

    # -- the three verbs ------------------------------------------------------------------------------------------

    def reserve(self, call: Call) -> Reservation:
        """Hold the call's worst case in every cap that applies, or refuse it.

        Raises:
            CapExceeded: If a cap does not admit it; nothing is held.
            PriceNotFound: If a cap applies and no price is known, or an input has no bound.
            LedgerUnavailable: If a cap applies and the ledger cannot be reached.
            MaestroError: If a required dimension is missing.
        """
        call = self._attributed(call)
        caps = self._caps_for(call)
        self._check_required(call)
        bound = self._bound(call, capped=bool(caps))
        hold = Hold(
            key=call.key,
            amount_nanos=bound.nanos if bound else 0,
            provider=call.provider,
            model=call.model,
            attribution=call.attribution,
            limits=tuple((meter, cap.limit_nanos) for cap, meter in caps),
        )
        if bound:
            self._check_ceiling(call, caps, bound, hold)
        try:
            outcome = self.ledger.reserve(hold)
        except LedgerUnavailable as error:
            if caps and not self._spool.allow(hold.amount_nanos):
                raise
            self._spool.say_once(error)
            at = from_micros(self._spool.now_us())
            return Reservation(
                key=call.key,
                call=call,
                held_nanos=hold.amount_nanos,
                at=at,
                bound=bound,
                capped=bool(caps),
                spooled=True,
            )
        if isinstance(outcome, Refused):
            cap = _cap_of(caps, outcome.bucket, outcome.limit_nanos)
            self._refuse(call, hold, refusal.from_ledger(outcome, cap, call, hold.amount_nanos))
        self._spool.replay()
        return Reservation(
            key=call.key, call=call, held_nanos=outcome.amount_nanos, at=from_micros(outcome.at_us), bound=bound,
            capped=bool(caps),
        )  # fmt: skip

    def settle(self, reservation: Reservation, usage: Any) -> Record:
        """Replace the hold by what the call came to; settling again returns the first record.

        Args:
            reservation: From `reserve`.
            usage: A `Usage`, the provider's own usage object or response, or None if it is not known: the call then
                settles at its hold, marked as estimated.

        Raises:
            ReservationClosed: If it was released, or settled at another cost.
            ValueError: If the usage object is of no known shape.
        """
        return self.settle_with(reservation, usage, {})

    def settle_with(self, reservation: Reservation, usage: Any, detail: Mapping[str, Any]) -> Record:
        """As `settle`, with further facts for the journal (JSON values)."""
        if usage is not None and not isinstance(usage, Usage):
            usage = Usage.parse(reservation.call.provider, usage)
        if usage is not None and usage.model and usage.model != reservation.call.model:
            detail = {**detail, "response_model": usage.model}
        settlement = self._quotes.settlement(reservation, usage, detail)
        record = self._spool.settle(reservation, settlement)
        if record.overrun:
            _log.warning(
                "overrun: call %s of %s cost more than was held for it; its caps refuse from now on as spent",
                record.key, record.model,
            )  # fmt: skip
        plugins.observe(self.plugins, "maestro_settled", record=record)
        return record

    def release(self, reservation: Reservation, reason: str) -> None:
        """Give the held money back; only when the request provably was not billed.

        Raises:
            ReservationClosed: If it was settled.
        """
        if not reservation.spooled:
            record = self.ledger.release(reservation.key, reason)
            plugins.observe(self.plugins, "maestro_settled", record=record)

    def presume(self, keys: Collection[str]) -> None:
        """Count the open holds with these keys as spent, until their truth is known; it is posted as a correction."""
        for record in self.ledger.presume(keys=keys):
            plugins.observe(self.plugins, "maestro_settled", record=record)

    async def areserve(self, call: Call) -> Reservation:
        """As `reserve`. The embedded ledgers answer in microseconds, so it does not leave the event loop's thread."""
        return self.reserve(call)

    async def asettle(self, reservation: Reservation, usage: Any) -> Record:
        """As `settle`."""
        return self.settle(reservation, usage)

    async def arelease(self, reservation: Reservation, reason: str) -> None:
        """As `release`."""
        self.release(reservation, reason)

    def call(
        self,
        *,
        provider: str,
        model: str,
        input: object = None,  # noqa: A002 - the field's word
        max_output_tokens: int | None = None,
        tools: Sequence[object] = (),
    ) -> OpenCall:
        """Return a context manager (`with` or `async with`) that reserves on entry; settle inside it.

        Left without settling, the call settles at its hold, marked as estimated.
        """
        call = Call(
            provider=provider, model=model, input=input, max_output_tokens=max_output_tokens, tools=tools
        )
        return OpenCall(self, call)

    # -- questions ------------------------------------------------------------------------------------------------

    def status(self) -> list[CapStatus]:
        """Return where every bucket of every declared cap stands, the nearest to its limit first."""
        self._presume_old()
        return queries.cap_status(self.ledger, self.settings.caps, self.settings.time_zone)

    def report(
        self,
        by: str | Sequence[str] = "team",
        since: queries.Since = "24h",
        until: queries.Since | None = None,
        where: Mapping[str, str] | None = None,
    ) -> Report:
        """Return who spent what; see `maestro_core.queries.parse_time` for `since` and `until`.

        Raises:
            ValueError: For a time that names no instant (a naive datetime, for one).
        """
        self._spool.replay()
        self._presume_old()
        return queries.report(
            self.ledger, by, since=since, until=until, where=where, time_zone=self.settings.time_zone
        )

    def tree(self, run_id: str) -> Tree:
        """Return one run as agents, tools, models and refusals, with the dollars of each.

        Raises:
            LookupError: If the ledger has no call of that run.
        """
        return queries.tree(run_id, self.ledger.records(run=run_id))

    def close(self) -> None:
        """Deliver what is pending and release the ledger; also done at exit."""
        self._finalizer()
        cls = type(self)
        with cls._default_lock:
            if cls._default is self:
                cls._default = None

    # -- the steps of reserve -------------------------------------------------------------------------------------

    def _attributed(self, call: Call) -> Call:
        own = call.attribution
        merged: dict[str, str] = dict(self._defaults)
        for found in self.plugins.hook.maestro_attribution(call=call):
            merged.update(cleaned(found, check_names=True))
        merged |= {**current(), **cleaned(own.dimensions)}
        if len(merged) > MOST_DIMENSIONS:
            merged = self._fewer(merged)
        return replace(call, attribution=Attribution(merged, own.path))

    def _fewer(self, dimensions: Mapping[str, str]) -> dict[str, str]:
        # Refusing would stop a call for a label. What caps look at stays: without it a call would pass them by.
        self._warn_once(f"a call has {len(dimensions)} dimensions; {MOST_DIMENSIONS} are kept")
        needed = {"run", *self.settings.require}
        for cap in self.settings.caps:
            needed.update(cap.per, dict(cap.where))
        kept = sorted(dimensions, key=lambda name: name not in needed)[:MOST_DIMENSIONS]
        return {name: dimensions[name] for name in kept}

    def _caps_for(self, call: Call) -> list[tuple[Cap, Meter]]:
        added = [cap for found in self.plugins.hook.maestro_caps(call=call) for cap in found]
        extra = [(cap, cap.meter(self.settings.time_zone)) for cap in added]
        if extra:
            self._declare([meter for _, meter in extra])
        return [
            pair
            for pair in (*self._caps, *extra)
            if matches(pair[1], call.attribution, call.provider, call.model)
        ]

    def _check_required(self, call: Call) -> None:
        missing = [d for d in self.settings.require if call.attribution.value(d) == UNATTRIBUTED]
        if not missing:
            return
        names = ", ".join(missing)
        if self.settings.require_mode == "warn":
            self._warn_once(f"calls without {names} are counted as {UNATTRIBUTED}")
            return
        raise MaestroError(
            f"this call has no {names}, which is required; wrap it in attribution({missing[0]}=...)"
        )

    def _bound(self, call: Call, *, capped: bool) -> Cost | None:
        try:
            return self._quotes.bound(call)
        except PriceNotFound as error:
            if capped or self.settings.on_unknown_price == "refuse":
                raise
            self._quotes.warn_unpriced(call, error)
            return None

    def _check_ceiling(self, call: Call, caps: Sequence[tuple[Cap, Meter]], bound: Cost, hold: Hold) -> None:
        for cap, meter in caps:
            if bound.nanos > cap.limit_nanos:
                _, values = charges([meter], call.attribution, call.provider, call.model)[-1]
                bucket = Bucket(meter, values, None)
                self._refuse(
                    call, hold, refusal.above_ceiling(cap, bucket, call, bound, ceiling_tokens(call))
                )

    def _refuse(self, call: Call, hold: Hold, error: CapExceeded) -> NoReturn:
        try:
            self.ledger.refuse(hold, {"why": str(error), "reason": error.reason, "name": call.name})
        except LedgerError:
            _log.exception("a refusal could not be journalled")
        plugins.observe(self.plugins, "maestro_refused", call=call, error=error)
        raise error

    def _declare(self, meters: Sequence[Meter]) -> None:
        new = [meter for meter in meters if meter not in self._declared]
        if new:
            self.ledger.declare(new)
            self._declared.update(new)

    def _presume_old(self) -> None:
        ttl_us = int(self.settings.hold_ttl_s * 1_000_000)
        for record in self.ledger.presume(older_than_us=self.ledger.now_us() - ttl_us):
            _log.warning("call %s was never settled; it is presumed spent", record.key)
            plugins.observe(self.plugins, "maestro_settled", record=record)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message)


def _cap_of(caps: Sequence[tuple[Cap, Meter]], bucket: Bucket, limit_nanos: int) -> Cap:
    return next(cap for cap, meter in caps if meter == bucket.meter and cap.limit_nanos == limit_nanos)


def _close(spool: Spool, telemetry: Telemetry, ledger: Ledger) -> None:
    # The money first: spans may be lost, records may not.
    spool.close()
    ledger.close()
    telemetry.close()
