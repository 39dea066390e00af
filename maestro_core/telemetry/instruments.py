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
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeter, Observation

from maestro_core.forks import fork_safe_lock, tell_child
from maestro_core.money import NANOS_PER_USD
from maestro_core.types import UNATTRIBUTED, Cap

from . import names
from .pending import Pending
from .spans import cost_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider
    from opentelemetry.trace import SpanContext
    from opentelemetry.util.types import AttributeValue

    from maestro_core.types import Budget, CapStatus, Record

__all__ = ["Instruments", "Operated", "cap_name", "instruments"]

_log = logging.getLogger("maestro")

# The SDK folds everything beyond 2,000 attribute sets into one without attributes; we keep provider and model.
_MOST_SERIES = 1_000
_OTHER = "(other)"

# What never becomes an attribute, nor a part of one.
_PERSONAL = frozenset({"run", "conversation", "customer", "user"})

# A call that has ended: its operation, provider and model, the model that answered ("" if unknown), tokens in and out and
# until the first chunk in seconds (each if known), its duration in seconds, the class of its error ("" if there was none),
# and the span for an exemplar. Neither the call, the error nor the span itself: they hold what was said.
Operated = tuple[
    names.Operation, str, str, str, int | None, int | None, float | None, float, str, "SpanContext"
]


class _Totals:
    """Amounts of one metric, by the values of its labels; a label without a value is left out."""

    def __init__(self, labels: Sequence[str], kept: int) -> None:
        self._labels = labels
        self._kept = kept  # this many labels, from the front, are kept when there are too many series
        self._lock = fork_safe_lock()
        self._amounts: dict[tuple[str, ...], int] = defaultdict(int)

    def add(self, values: tuple[str, ...], amount: int) -> None:
        with self._lock:
            if len(self._amounts) >= _MOST_SERIES and values not in self._amounts:
                values = (*values[: self._kept], *(value and _OTHER for value in values[self._kept :]))
            self._amounts[values] += amount

    def observed(self, divisor: int) -> list[Observation]:
        with self._lock:
            found = list(self._amounts.items())
        return [
            Observation(
                amount / divisor if divisor > 1 else amount,
                {label: value for label, value in zip(self._labels, values, strict=True) if value},
            )
            for values, amount in found
        ]


class Instruments:
    """What one meter provider reads from us; made once for each in a process, however many Maestros there are.

    Money is counted at once; what calls took goes through `pending`, until somebody reads.
    """

    def __init__(self, provider: MeterProvider, *, again: bool = False) -> None:
        # Sums begin at zero in a forked child: what was spent before is its parent's to tell. A provider that takes
        # differences knows what it was told last, and by which scope.
        meter = provider.get_meter("maestro", attributes={"process.pid": os.getpid()} if again else None)
        self.inherited = False
        tell_child(self._forked)
        self.heard = not isinstance(meter, NoOpMeter)
        self.pending: Pending[Operated] = Pending(self._record)
        self.watched: weakref.WeakKeyDictionary[object, Callable[[], Sequence[CapStatus]]] = (
            weakref.WeakKeyDictionary()
        )
        usd, calls = ("{USD}", NANOS_PER_USD), ("{call}", 1)
        model, team = (names.PROVIDER, names.REQUEST_MODEL), names.TEAM

        def total(name: str, unit: tuple[str, int], about: str, *labels: str, kept: int) -> _Totals:
            return self._total(meter, name, unit, about, _Totals(labels, kept))

        self._cost = total(
            names.COST_METRIC, usd, "What calls cost.", *model, names.COST_SOURCE, team, names.FEATURE, kept=2
        )
        self._by_agent = total(
            names.COST_BY_AGENT, usd, "The same, by agent and tool.", team, names.AGENT, names.TOOL, kept=0
        )
        self._corrections = total(
            names.CORRECTIONS_METRIC, usd, "By how much late truths lowered costs counted before.", *model, kept=2
        )  # fmt: skip
        self._refusals = total(
            names.REFUSALS_METRIC, calls, "Calls that a cap did not admit.", names.REASON, names.CAP, team, kept=1
        )  # fmt: skip
        self._overruns = total(
            names.OVERRUNS_METRIC, calls, "Calls that cost more than was held.", *model, kept=2
        )
        self._decisions = total(
            names.DECISIONS_METRIC, calls, "Calls by the endpoint chosen.", names.ENDPOINT, team, kept=1
        )
        self._failovers = total(
            names.FAILOVERS_METRIC, calls, "Calls that an endpoint failed and another took over.", names.ENDPOINT,
            names.REASON, team, kept=1,
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
        nanos, model = record.cost_nanos, (_spelled(record.provider), record.model)
        innermost: dict[str, str] = dict(record.attribution.path)  # which stand last
        whom = {**record.attribution.dimensions, **innermost}
        team = whom.get("team", UNATTRIBUTED)
        if nanos < 0:
            self._corrections.add(model, -nanos)
        elif nanos:
            source, feature = cost_source(record), whom.get("feature", UNATTRIBUTED)
            self._cost.add((*model, source, team, feature), nanos)
            self._by_agent.add((team, whom.get("agent", ""), whom.get("tool", "")), nanos)
        if record.overrun:
            self._overruns.add(model, 1)
        decision = record.detail.get("decision")
        if decision and record.calls:
            self._decisions.add((decision["chosen"], team), 1)
            for each in record.detail.get("attempts", ()):
                self._failovers.add((each["endpoint"], each["failed"], team), 1)

    def refused(self, reason: str, cap: str, team: str) -> None:
        """Count a refusal."""
        self._refusals.add((reason, cap, team), 1)

    def _record(self, call: Operated) -> None:
        """Record how long a call took, and its tokens."""
        operation, provider, model, answered, tokens_in, tokens_out, first_s, taken_s, error, span = call
        context = trace.set_span_in_context(trace.NonRecordingSpan(span), Context())
        where: dict[str, AttributeValue] = {
            names.OPERATION: operation,
            names.PROVIDER: _spelled(provider),
            names.REQUEST_MODEL: model,
        }
        if answered:
            where[names.RESPONSE_MODEL] = answered
        if tokens_in is not None:
            self._input.record(tokens_in, {**where, names.TOKEN_TYPE: "input"}, context)
        if tokens_out is not None:
            self._output.record(tokens_out, {**where, names.TOKEN_TYPE: "output"}, context)
        if first_s is not None:
            self._first_chunk.record(first_s, where, context)
        if error:
            where[names.ERROR_TYPE] = error
        self._duration.record(taken_s, where, context)

    def _total(self, meter: Meter, name: str, unit: tuple[str, int], about: str, totals: _Totals) -> _Totals:
        """Let the SDK read sums; `unit` is its name and how many of ours are one of it."""
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
        about = "Tokens of calls."
        if latest:
            self._input = histogram(names.LATEST_TOKENS.format("input"), "{token}", about, tokens)
            self._output = histogram(names.LATEST_TOKENS.format("output"), "{token}", about, tokens)
        else:
            self._input = self._output = histogram(names.TOKEN_USAGE, "{token}", about, tokens)

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
                name = cap_name(one.cap)
                if name not in tightest or one.headroom < tightest[name].headroom:
                    tightest[name] = one
        headroom = [Observation(float(one.headroom), {names.CAP: name}) for name, one in tightest.items()]
        used = [
            Observation(float(1 - one.headroom / one.limit), {names.CAP: name})
            for name, one in tightest.items()
            if one.limit
        ]
        return headroom, used


def _spelled(provider: str) -> str:
    return names.PROVIDER_NAMES.get(provider, provider)


def cap_name(cap: Cap | Budget) -> str:
    """Return what metrics call a cap: there may be one for each customer, and whom it is about stays out of them."""
    if _PERSONAL.isdisjoint(dimension for dimension, _ in cap.where):
        return str(cap)
    where = {dimension: "*" if dimension in _PERSONAL else value for dimension, value in cap.where}
    return str(Cap(cap.limit, per=cap.per or None, where=where, every=cap.every))


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
