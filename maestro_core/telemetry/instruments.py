"""What a meter provider reads from us: money as sums of integers, tokens and durations as histograms.

Money is added up here, as integers, and read by the SDK when it exports: an addition to a dictionary costs a tenth of
what the SDK's own counter costs, and the number of series is bounded by us. Run, conversation, customer and user never
become an attribute.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeter, Observation

from maestro_core.forks import fork_safe_lock, tell_child
from maestro_core.money import NANOS_PER_USD
from maestro_core.types import UNATTRIBUTED

from . import names
from .pending import Pending
from .spans import cost_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider
    from opentelemetry.trace import SpanContext
    from opentelemetry.util.types import AttributeValue

    from maestro_core.types import CapStatus, Record

__all__ = ["Instruments", "Labels", "Operated", "instruments"]

_log = logging.getLogger("maestro")

# The SDK folds everything beyond 2,000 attribute sets into one without attributes; we keep provider and model.
_MOST_SERIES = 1_000
_OTHER = "(other)"

Labels = tuple[tuple[str, str], ...]


class _Totals:
    """Amounts by labels, of one metric."""

    def __init__(self, kept: int) -> None:
        self._kept = kept  # this many labels, from the front, are kept when there are too many series
        self._lock = fork_safe_lock()
        self._amounts: dict[Labels, int] = defaultdict(int)

    def add(self, labels: Labels, amount: int) -> None:
        with self._lock:
            if len(self._amounts) >= _MOST_SERIES and labels not in self._amounts:
                labels = (*labels[: self._kept], *((name, _OTHER) for name, _ in labels[self._kept :]))
            self._amounts[labels] += amount

    def observed(self, divisor: int = 1) -> list[Observation]:
        with self._lock:
            found = list(self._amounts.items())
        return [
            Observation(amount / divisor if divisor > 1 else amount, dict(labels)) for labels, amount in found
        ]


class Operated(NamedTuple):
    """A call that has ended. Neither the call itself, its error nor its span: they hold what was said."""

    operation: names.Operation
    provider: str
    model: str
    duration_s: float
    record: Record | None
    error: str  # its class; empty if there was none
    first_chunk_s: float | None
    exemplar: SpanContext


class Instruments:
    """What one meter provider reads from us; made once for each in a process, however many Maestros there are.

    What calls have to say goes through `pending`, which hands it to `settled`, `refused` and `operated` when somebody reads.
    """

    def __init__(self, provider: MeterProvider, *, again: bool = False) -> None:
        # Sums begin at zero in a forked child: what was spent before is its parent's to tell. A provider that takes
        # differences knows what it was told last, and by which scope.
        meter = provider.get_meter("maestro", attributes={"process.pid": os.getpid()} if again else None)
        self.inherited = False
        tell_child(self._forked)
        self.heard = not isinstance(meter, NoOpMeter)
        self.pending = Pending()
        self.watched: weakref.WeakKeyDictionary[object, Callable[[], Sequence[CapStatus]]] = (
            weakref.WeakKeyDictionary()
        )
        usd, calls = ("{USD}", NANOS_PER_USD), ("{call}", 1)
        self._cost = self._total(meter, names.COST_METRIC, usd, "What calls cost.", kept=2)
        self._by_agent = self._total(meter, names.COST_BY_AGENT, usd, "The same, by agent and tool.", kept=0)
        self._corrections = self._total(
            meter, names.CORRECTIONS_METRIC, usd, "By how much late truths lowered costs counted before.", kept=2
        )  # fmt: skip
        self._refusals = self._total(
            meter, names.REFUSALS_METRIC, calls, "Calls that a cap did not admit.", kept=1
        )
        self._overruns = self._total(
            meter, names.OVERRUNS_METRIC, calls, "Calls that cost more than was held.", kept=2
        )
        self._decisions = self._total(
            meter, names.DECISIONS_METRIC, calls, "Calls by the endpoint chosen.", kept=1
        )
        self._failovers = self._total(
            meter, names.FAILOVERS_METRIC, calls, "Calls that an endpoint failed and another took over.", kept=1
        )  # fmt: skip
        meter.create_observable_gauge(
            names.HEADROOM_METRIC, [lambda _: self._caps()[0]], "{USD}", "Of each cap's tightest bucket."
        )
        meter.create_observable_gauge(
            names.USED_METRIC, [lambda _: self._caps()[1]], "1", "Of each cap's tightest bucket."
        )
        self._histograms(meter)

    def _forked(self) -> None:
        self.inherited = True

    def settled(self, record: Record) -> None:
        """Count what a journal row adds to the bill; the sum over all series is the ledger's."""
        if record.overrun:
            self._overruns.add(_model(record.provider, record.model), 1)
        self._routed(record)
        if record.cost_nanos < 0:
            self._corrections.add(_model(record.provider, record.model), -record.cost_nanos)
        elif record.cost_nanos:
            value = record.attribution.value
            team = names.TEAM, value("team")
            source, feature = (names.COST_SOURCE, cost_source(record)), (names.FEATURE, value("feature"))
            self._cost.add((*_model(record.provider, record.model), source, team, feature), record.cost_nanos)
            parts = (names.AGENT, value("agent")), (names.TOOL, value("tool"))
            known = tuple(part for part in parts if part[1] != UNATTRIBUTED)
            self._by_agent.add((team, *known), record.cost_nanos)

    def refused(self, where: Labels) -> None:
        """Count a refusal."""
        self._refusals.add(where, 1)

    def operated(self, call: Operated) -> None:
        """Record how long a call took, and its tokens."""
        context = trace.set_span_in_context(trace.NonRecordingSpan(call.exemplar), Context())
        where: dict[str, AttributeValue] = {names.OPERATION: call.operation}
        where.update(_model(call.provider, call.model))
        if call.record is not None:
            if answered := call.record.detail.get("response_model"):
                where[names.RESPONSE_MODEL] = answered
            for kind, histogram in self._tokens.items():
                count = call.record.usage.get(f"{kind}_tokens")
                if count is not None:
                    histogram.record(count, {**where, names.TOKEN_TYPE: kind}, context)
        if call.first_chunk_s is not None:
            self._first_chunk.record(call.first_chunk_s, where, context)
        if call.error:
            where[names.ERROR_TYPE] = call.error
        self._duration.record(call.duration_s, where, context)

    def _routed(self, record: Record) -> None:
        decision = record.detail.get("decision")
        if decision and record.calls:
            team = names.TEAM, record.attribution.value("team")
            self._decisions.add(((names.ENDPOINT, decision["chosen"]), team), 1)
            for each in record.detail.get("attempts", ()):
                reason = names.REASON, each["failed"]
                self._failovers.add(((names.ENDPOINT, each["endpoint"]), reason, team), 1)

    def _total(self, meter: Meter, name: str, unit: tuple[str, int], about: str, *, kept: int) -> _Totals:
        """Return a sum that the SDK reads; `unit` is its name and how many of ours are one of it."""
        totals = _Totals(kept)
        spelled, divisor = unit

        def read(_: CallbackOptions) -> Iterable[Observation]:
            self.pending.record()
            return totals.observed(divisor) if not self.inherited else ()

        meter.create_observable_counter(name, [read], spelled, about)
        return totals

    def _histograms(self, meter: Meter) -> None:
        latest = names.latest()
        seconds, tokens = list(names.SECOND_BUCKETS), list(names.TOKEN_BUCKETS)

        def histogram(name: str, unit: str, about: str, buckets: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, about, explicit_bucket_boundaries_advisory=buckets)

        self._duration = histogram(
            names.LATEST_DURATION if latest else names.DURATION, "s", "How long calls take.", seconds
        )
        self._first_chunk = histogram(
            names.LATEST_FIRST_CHUNK if latest else names.FIRST_CHUNK, "s", "Until a stream's first chunk.", seconds
        )  # fmt: skip
        self._tokens = {
            kind: histogram(
                names.LATEST_TOKENS.format(kind) if latest else names.TOKEN_USAGE, "{token}", "Tokens of calls.", tokens
            )
            for kind in (("input", "output") if latest else ("input",))
        }  # fmt: skip
        self._tokens.setdefault("output", self._tokens["input"])

    def _caps(self) -> tuple[list[Observation], list[Observation]]:
        """Return headroom and use of each cap's tightest bucket: as many series as there are caps."""
        tightest: dict[str, CapStatus] = {}
        for status in list(self.watched.values()) if not self.inherited else ():
            try:
                found = status()
            except Exception:  # noqa: BLE001 - a ledger that is away has no say in the other metrics
                _log.exception("caps could not be read for the metrics")
                continue
            for one in found:
                name = str(one.cap)
                if name not in tightest or one.headroom < tightest[name].headroom:
                    tightest[name] = one
        headroom = [Observation(float(one.headroom), {names.CAP: name}) for name, one in tightest.items()]
        used = [
            Observation(float(1 - one.headroom / one.limit), {names.CAP: name})
            for name, one in tightest.items()
            if one.limit
        ]
        return headroom, used


def _model(provider: str, model: str) -> Labels:
    return (names.PROVIDER, names.PROVIDER_NAMES.get(provider, provider)), (names.REQUEST_MODEL, model)


_instruments: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
_making = fork_safe_lock(outer=True)


def instruments(provider: MeterProvider) -> Instruments:
    """Return what a provider reads from us."""
    found = _instruments.get(provider)
    if found is None or found.inherited:
        with _making:
            found = _instruments.get(provider)
            if found is None or found.inherited:
                found = _instruments[provider] = Instruments(provider, again=found is not None)
    return found
