"""Metrics: tokens, durations, money, caps. They are right whatever the sampler of spans says.

Money is added up here, as integers, and read by the SDK when it exports: an addition to a dictionary costs a tenth of
what the SDK's own counter costs, and the number of series is bounded by us. Run, conversation, customer and user never
become an attribute.
"""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.metrics import Observation

from maestro_core.forks import fork_safe_lock
from maestro_core.money import NANOS_PER_USD
from maestro_core.types import UNATTRIBUTED

from . import names
from .guard import harmless
from .spans import cost_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from maestro_core.errors import CapExceeded
    from maestro_core.types import Call, CapStatus, Record

__all__ = ["Metrics"]

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


class _Instruments:
    """What one meter provider reads from us; made once for each, however many Maestros there are."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("maestro")
        self.cost = _Totals(kept=2)
        self.by_agent = _Totals(kept=0)
        self.corrections = _Totals(kept=2)
        self.refusals = _Totals(kept=1)
        self.overruns = _Totals(kept=2)
        self.decisions = _Totals(kept=1)
        self.failovers = _Totals(kept=1)
        self.watched: weakref.WeakKeyDictionary[Metrics, Callable[[], Sequence[CapStatus]]] = (
            weakref.WeakKeyDictionary()
        )
        _observe(meter, names.COST_METRIC, "{USD}", "What calls cost.", self.cost, NANOS_PER_USD)
        _observe(
            meter, names.COST_BY_AGENT, "{USD}", "The same, by agent and tool.", self.by_agent, NANOS_PER_USD
        )
        _observe(
            meter, names.CORRECTIONS_METRIC, "{USD}", "By how much late truths lowered costs counted before.",
            self.corrections, NANOS_PER_USD,
        )  # fmt: skip
        _observe(meter, names.REFUSALS_METRIC, "{call}", "Calls that a cap did not admit.", self.refusals)
        _observe(meter, names.OVERRUNS_METRIC, "{call}", "Calls that cost more than was held.", self.overruns)
        _observe(meter, names.DECISIONS_METRIC, "{call}", "Calls by the endpoint chosen.", self.decisions)
        _observe(
            meter,
            names.FAILOVERS_METRIC,
            "{call}",
            "Calls that an endpoint failed and another took over.",
            self.failovers,
        )
        meter.create_observable_gauge(
            names.HEADROOM_METRIC, [lambda _: self._caps()[0]], "{USD}", "Of each cap's tightest bucket."
        )
        meter.create_observable_gauge(
            names.USED_METRIC, [lambda _: self._caps()[1]], "1", "Of each cap's tightest bucket."
        )
        self._histograms(meter)

    def _histograms(self, meter: Meter) -> None:
        latest = names.latest()
        seconds, tokens = list(names.SECOND_BUCKETS), list(names.TOKEN_BUCKETS)

        def histogram(name: str, unit: str, about: str, buckets: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, about, explicit_bucket_boundaries_advisory=buckets)

        self.duration = histogram(
            names.LATEST_DURATION if latest else names.DURATION, "s", "How long calls take.", seconds
        )
        self.first_chunk = histogram(
            names.LATEST_FIRST_CHUNK if latest else names.FIRST_CHUNK, "s", "Until a stream's first chunk.", seconds
        )  # fmt: skip
        self.tokens = {
            kind: histogram(
                names.LATEST_TOKENS.format(kind) if latest else names.TOKEN_USAGE, "{token}", "Tokens of calls.", tokens
            )
            for kind in (("input", "output") if latest else ("input",))
        }  # fmt: skip
        self.tokens.setdefault("output", self.tokens["input"])

    def _caps(self) -> tuple[list[Observation], list[Observation]]:
        """Return headroom and use of each cap's tightest bucket: as many series as there are caps."""
        tightest: dict[str, CapStatus] = {}
        for status in list(self.watched.values()):
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


def _observe(meter: Meter, name: str, unit: str, about: str, totals: _Totals, divisor: int = 1) -> None:  # noqa: PLR0917 - the parts of one instrument
    def read(_: CallbackOptions) -> Iterable[Observation]:
        return totals.observed(divisor)

    meter.create_observable_counter(name, [read], unit, about)


_instruments: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = weakref.WeakKeyDictionary()
_making = fork_safe_lock(outer=True)


def instruments(provider: MeterProvider) -> _Instruments:
    """Return what a provider reads from us."""
    found = _instruments.get(provider)
    if found is None:
        with _making:
            found = _instruments.get(provider)
            if found is None:
                found = _instruments[provider] = _Instruments(provider)
    return found


class Metrics:
    """The metrics of one Maestro, given to the user's meter provider, or to our own if only an endpoint is set."""

    def __init__(self, own: Callable[[], MeterProvider | None]) -> None:
        self._own = own
        self._latest: tuple[object, _Instruments] | None = None
        self._status: Callable[[], Sequence[CapStatus]] | None = None

    def watch(self, status: Callable[[], Sequence[CapStatus]]) -> None:
        """Show where caps stand, as `status` says when the metrics are read."""
        self._status = status

    @harmless
    def freeze(self) -> None:
        """Caps stay as they stand now: the ledger is about to close, and the metrics are read once more after it."""
        if self._latest is not None and self._status is not None:
            found = tuple(self._status())
            self._latest[1].watched[self] = lambda: found

    @harmless
    def settled(self, record: Record) -> None:
        """Count what a journal row adds to the bill; the sum over all series is the ledger's."""
        to = self._instruments()
        if to is None:
            return
        if record.overrun:
            to.overruns.add(_model(record), 1)
        _routed(to, record)
        value = record.attribution.value
        if record.cost_nanos < 0:
            to.corrections.add(_model(record), -record.cost_nanos)
        elif record.cost_nanos:
            where = (
                *_model(record),
                (names.COST_SOURCE, cost_source(record)),
                (names.TEAM, value("team")),
                (names.FEATURE, value("feature")),
            )
            to.cost.add(where, record.cost_nanos)
            parts = [(names.TEAM, value("team")), (names.AGENT, value("agent")), (names.TOOL, value("tool"))]
            to.by_agent.add(
                tuple((k, v) for k, v in parts if v != UNATTRIBUTED or k == names.TEAM), record.cost_nanos
            )

    @harmless
    def refused(self, call: Call, error: CapExceeded) -> None:
        """Count a refusal."""
        to = self._instruments()
        if to is not None:
            team = call.attribution.value("team")
            to.refusals.add(
                ((names.REASON, error.reason), (names.CAP, str(error.cap)), (names.TEAM, team)), 1
            )

    @harmless
    def operated(
        self,
        operation: names.Operation,
        call: Call,
        duration_s: float,
        *,
        record: Record | None = None,
        error: BaseException | None = None,
        first_chunk_s: float | None = None,
        span: Span | None = None,
    ) -> None:
        """Record how long a call took, and its tokens; `span` becomes the exemplar."""
        to = self._instruments()
        if to is None:
            return
        context = trace.set_span_in_context(span) if span is not None else None
        where: dict[str, AttributeValue] = {
            names.OPERATION: operation,
            names.PROVIDER: names.PROVIDER_NAMES.get(call.provider, call.provider),
            names.REQUEST_MODEL: call.model,
        }
        if record is not None:
            if model := record.detail.get("response_model"):
                where[names.RESPONSE_MODEL] = model
            for kind, histogram in to.tokens.items():
                count = record.usage.get(f"{kind}_tokens")
                if count is not None:
                    histogram.record(count, {**where, names.TOKEN_TYPE: kind})
        if first_chunk_s is not None:
            to.first_chunk.record(first_chunk_s, where, context)
        if error is not None:
            where[names.ERROR_TYPE] = type(error).__qualname__
        to.duration.record(duration_s, where, context)

    def _instruments(self) -> _Instruments | None:
        provider: MeterProvider | None = metrics.get_meter_provider()
        if self._latest is not None and self._latest[0] is provider:
            return self._latest[1]
        key = provider
        if type(provider).__name__ == "_ProxyMeterProvider":  # nobody has set one
            provider = self._own()
        if provider is None:
            return None
        found = instruments(provider)
        if self._status is not None:
            found.watched[self] = self._status
        self._latest = key, found
        return found


def _routed(to: _Instruments, record: Record) -> None:
    decision = record.detail.get("decision")
    if decision and record.calls:
        team = names.TEAM, record.attribution.value("team")
        to.decisions.add(((names.ENDPOINT, decision["chosen"]), team), 1)
        for each in record.detail.get("attempts", ()):
            to.failovers.add(((names.ENDPOINT, each["endpoint"]), (names.REASON, each["failed"]), team), 1)


def _model(record: Record) -> Labels:
    provider = names.PROVIDER_NAMES.get(record.provider, record.provider)
    return (names.PROVIDER, provider), (names.REQUEST_MODEL, record.model)
