"""The core: reserve before a call, settle after it, and answer what was spent."""

from __future__ import annotations

import logging
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from . import plugins, queries
from .admission import Admission
from .alerts import Alerts
from .circles import Circles
from .doors import Doors
from .forks import before_the_end, fork_safe_lock, tell_child
from .incidents import Incidents
from .learned import Learned
from .ledger import open_ledger
from .money import Dollars, parse_usd
from .open_call import OpenCall
from .runs import Runs
from .settings import Settings
from .spool import Spool
from .telemetry import Telemetry
from .thresholds import Thresholds
from .types import Call, Refused, new_key
from .usage import Usage
from .watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from threading import Lock

    from .types import CapStatus, Ledger, Record, Report, Reservation, Tree

__all__ = ["Maestro"]

_log = logging.getLogger("maestro")
_MOST_TOLD = 10_000

# How long closing waits for the watch and for telemetry; and, of that, for the last look at caps and budgets.
_LEAVE_S = 2.0
_LOOK_S = 1.0


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
    _default_lock: ClassVar[Lock] = fork_safe_lock(outer=True)

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.plugins = plugins.load()
        self.telemetry = Telemetry(self.settings)
        self.ledger: Ledger = self.plugins.hook.maestro_ledger(url=self.settings.ledger) or open_ledger(
            self.settings.ledger
        )
        self.alerts = Alerts(self.settings.alerts, self.ledger, self.plugins, events=self.telemetry.events)
        self.circles = Circles(self)
        self._told: dict[tuple[str, str], object] = {}
        self.runs = Runs(self)
        self.doors = Doors(self)
        self.learned = Learned()
        self._spool = Spool(self.ledger, self.settings.allow_nanos)
        self.admission = Admission(
            self.settings,
            self.plugins,
            self.ledger,
            self._spool,
            refused=self.telemetry.metrics.refused,
            presume_lost=self._presume_lost,
        )
        self.thresholds = Thresholds(
            [*self.settings.caps, *self.settings.budgets], self.settings.time_zone, self.ledger, self.alerts
        )
        self.watch = self._make_watch()
        self.incidents = Incidents(
            self.settings,
            ledger=self.ledger,
            alerts=self.alerts,
            admission=self.admission,
            thresholds=self.thresholds,
            watch=self.watch,
        )
        self.plugins.register(self.incidents, name="maestro incidents")
        self._presume_lost()
        self.telemetry.metrics.watch(_status_of(self))
        self._finalizer = weakref.finalize(
            self,
            _close,
            self._spool,
            self.telemetry,
            self.ledger,
            thresholds=self.thresholds,
            watch=self.watch,
            alerts=self.alerts,
        )
        tell_child(self._forked)

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
        request = self.admission.prepare(call)
        outcome = self.admission.attempt(request)
        if isinstance(outcome, Refused):
            self.admission.refuse(request, outcome)
        return outcome

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
        if reservation.detail:
            detail = {**reservation.detail, **detail}
        if usage is not None and usage.model and usage.model != reservation.call.model:
            detail = {**detail, "response_model": usage.model}
        settlement = self.admission.quotes.settlement(reservation, usage, detail)
        record = self._spool.settle(reservation, settlement)
        if not self._is_news(record):
            return record
        self.admission.settled(reservation, usage)
        if record.overrun:
            _log.warning(
                "overrun: call %s of %s cost more than was held for it; its caps refuse from now on as spent",
                record.key, record.model,
            )  # fmt: skip
        self._tell(record)
        return record

    def release(self, reservation: Reservation, reason: str) -> None:
        """Give the held money back; only when the request provably was not billed.

        Raises:
            ReservationClosed: If it was settled.
        """
        if not reservation.spooled:
            record = self.ledger.release(reservation.key, reason)
            if self._is_news(record):
                self.admission.closed(reservation.key)
                self._tell(record)

    def presume(self, keys: Collection[str]) -> Sequence[Record]:
        """Count the open holds with these keys as spent, until their truth is known; it is posted as a correction."""
        records = self.ledger.presume(keys=keys)
        for record in records:
            self.admission.closed(record.key)
            self._tell(record)
        return records

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
        self._presume_lost()
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
        self._presume_lost()
        return queries.report(
            self.ledger, by, since=since, until=until, where=where, time_zone=self.settings.time_zone
        )

    def tree(self, run_id: str) -> Tree:
        """Return one run as agents, tools, models and refusals, with the dollars of each.

        Raises:
            LookupError: If the ledger has no call of that run.
        """
        return queries.tree(run_id, self.ledger.records(run=run_id))

    def resume(
        self, run_id: str, *, add: Dollars | None = None, by: str | None = None, reason: str | None = None
    ) -> None:
        """Let a run go on after it was told that its money is spent; journalled.

        Args:
            run_id: The run, as `CapExceeded.attribution.dimensions["run"]` has it.
            add: US dollars by which the caps of this run alone (`per="run"`) are raised; other caps stay.
            by: Who decided it.
            reason: Why.

        Raises:
            ValueError: For a malformed amount.
        """
        add_nanos = parse_usd(add, name="add") if add is not None else 0
        self.admission.resume(run_id, new_key(), add_nanos=add_nanos, by=by, reason=reason)

    def close(self) -> None:
        """Deliver what is pending and release the ledger; also done at exit."""
        self._finalizer()
        cls = type(self)
        with cls._default_lock:
            if cls._default is self:
                cls._default = None

    def _forked(self) -> None:
        before_the_end(self, self._finalizer)

    def _is_news(self, record: Record) -> bool:
        """Return whether nobody was told of this record yet: every verb may be repeated, what follows from it not."""
        mine, name = object(), (record.key, record.kind)
        if self._told.setdefault(name, mine) is not mine:
            return False
        if len(self._told) > _MOST_TOLD:
            with suppress(RuntimeError):  # another thread is at it, too
                self._told.pop(next(iter(self._told)), None)
        return True

    def _make_watch(self) -> Watch | None:
        if not self.settings.alerts.detect:
            return None
        detectors = [one for found in self.plugins.hook.maestro_detectors() for one in found or ()]
        return Watch(self.settings.alerts, self.ledger, self.alerts, detectors)

    def _tell(self, record: Record) -> None:
        # The money is safe in the ledger; from here on nothing may raise.
        self.telemetry.metrics.settled(record)
        plugins.observe(self.plugins, "maestro_settled", record=record)

    def _presume_lost(self) -> int:
        """Count as spent what ended processes hold, and what is held for too long; return how many calls that are."""
        ttl_us = int(self.settings.hold_ttl_s * 1_000_000)
        records = self.ledger.presume(older_than_us=self.ledger.now_us() - ttl_us)
        for record in records:
            _log.warning("call %s was never settled; it is presumed spent", record.key)
            self.admission.closed(record.key)
            self._tell(record)
        return len(records)


def _status_of(maestro: Maestro) -> Callable[[], Sequence[CapStatus]]:
    # The metrics outlive an instance that nobody uses any more.
    found = weakref.ref(maestro)

    def status() -> Sequence[CapStatus]:
        live = found()
        return live.status() if live is not None else ()

    return status


def _close(
    spool: Spool,
    telemetry: Telemetry,
    ledger: Ledger,
    *,
    thresholds: Thresholds,
    watch: Watch | None,
    alerts: Alerts,
) -> None:
    telemetry.metrics.freeze()
    # The money first: spans may be lost, records may not.
    spool.close()
    # Their two seconds and those of the watch are the same ones: whoever ends waits once.
    telemetry.leave()
    until_s = time.monotonic() + _LEAVE_S
    thresholds.close(until_s - _LOOK_S)
    if watch is not None:
        watch.close(until_s)
    alerts.close()
    ledger.close()
    telemetry.close()
