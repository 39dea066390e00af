"""Spans and metrics by OpenTelemetry's GenAI conventions. They follow the money and never decide about it."""

from __future__ import annotations

import logging
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from opentelemetry import trace
from opentelemetry.context import get_current

from maestro_core.forks import fork_safe_lock, tell_child

from . import content, export, names
from .events import Events
from .guard import failed
from .metrics import Metrics
from .names import Operation
from .spans import Drawing, draw, start_attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from maestro_core.settings import Settings
    from maestro_core.types import Attribution, Call

__all__ = ["Drawing", "Operation", "Telemetry"]

_log = logging.getLogger("maestro")


class Finishes(Protocol):
    """What knows of runs that may be open at the end."""

    def finish(self) -> None:
        """End them."""


class Telemetry:
    """Spans, metrics and events of one Maestro: through the user's providers, or through our own if only an endpoint is set."""

    def __init__(self, settings: Settings) -> None:
        self._mode = settings.spans
        self._costs = settings.cost_attributes
        self._captures = settings.capture_content
        self._lock = fork_safe_lock(outer=True)
        self._delivery = export.Delivery()
        self._own_tracers: TracerProvider | None = None
        self._own_meters: MeterProvider | None = None
        self._own_logs: LoggerProvider | None = None
        self._latest: tuple[object, Tracer | None] | None = None  # making a tracer costs as much as a span
        self._wants_spans, self._wants_metrics = export.wanted("traces"), export.wanted("metrics")
        self._wants_logs = export.wanted("logs")
        self._departures: list[export.Departure] = []
        self._left = self._closed = False
        self._missed = False
        self._finishes: weakref.ref[Finishes] | None = None
        self.metrics = Metrics(self._meters)
        self.events = Events(self._logs)
        tell_child(self._forked)

    def _forked(self) -> None:
        # What was queued is the parent's to deliver, and its totals are the parent's to tell: a child that told them, too,
        # would double them. So what the child does leaves through providers of its own.
        self._own_tracers = self._own_meters = self._own_logs = self._latest = None
        self._delivery = export.Delivery()
        self._departures.clear()
        self.metrics.forget()
        self.events.forget()

    def start(
        self,
        operation: Operation,
        name: str,
        attribution: Attribution,
        *,
        parent: Span | None,
        call: Call | None = None,
        found: Callable[[], Span | None] | None = None,
        tool_call_id: str = "",
    ) -> Drawing | None:
        """Begin a run's span, or return None if nobody listens.

        Args:
            operation: What it is.
            name: The model's, the tool's or the agent's.
            attribution: Whom it is for.
            parent: The span that it stands below; the current one if None.
            call: The call, of a model.
            found: Finds the span that another instrumentation draws for the same run; None if there is no other.
            tool_call_id: The identity of a tool's call, which the model's answer bears, too; if it is known.
        """
        if self._mode == "off" or (self._mode == "annotate" and found is None):
            return None
        try:
            if found is not None and self._mode != "own":
                facts = start_attributes(operation, name, attribution, call, tool_call_id)
                late = self._later(operation, name, facts, parent) if call is not None else None
                return Drawing(None, found, facts, self._costs, self.events, late=late)
            tracer = self._tracer()
            if tracer is None:
                return None
            attributes = start_attributes(operation, name, attribution, call, tool_call_id)
            captures = self._captures and operation == "chat" and call is not None
            if captures and call is not None:
                attributes[names.INPUT_MESSAGES] = content.asked(call)
            span = draw(tracer, operation, name, attributes, parent)
            return Drawing(span, None, attributes, self._costs, self.events, captures=captures)
        except Exception:  # noqa: BLE001 - as in `harmless`
            failed("Telemetry.start")
            return None

    def _later(
        self, operation: Operation, name: str, facts: dict[str, AttributeValue], parent: Span | None
    ) -> Callable[[Span | None], Span] | None:
        """Return how to draw a call that has begun now, once it has ended; below another's span of it, if there was one."""
        tracer = self._tracer() if self._mode == "auto" else None
        if tracer is None:
            return None
        below, began_ns = get_current(), time.time_ns()
        return lambda theirs: draw(
            tracer, operation, name, facts, theirs or parent, below=below, began_ns=began_ns
        )

    def missed(self) -> None:
        """Another instrumentation's span was not found, or had ended; say so once."""
        if not self._missed:
            self._missed = True
            _log.warning(
                "a span of another instrumentation could not be annotated with its cost;"
                ' put the Maestro handler first in `callbacks`, or set spans = "own"'
            )

    def finishes(self, runs: Finishes) -> None:
        """Finish these runs before the last spans leave."""
        self._finishes = weakref.ref(runs)

    def leave(self) -> None:
        """Begin to deliver what is queued of spans and metrics; `close` waits for it. Only events may follow."""
        runs = self._finishes() if self._finishes is not None else None
        if runs is not None:
            runs.finish()
        with self._lock:
            self._left, self._latest = True, None
            made = (self._own_tracers, self._own_meters)
            self._own_tracers = self._own_meters = None
        self._departures.append(export.Departure([one.shutdown for one in made if one is not None]))

    def close(self) -> None:
        """Wait until all is delivered, two seconds at most; the user's own providers are left alone."""
        self.leave()
        with self._lock:
            self._closed = True
            logs, self._own_logs = self._own_logs, None
            departures, self._departures = self._departures, []
        if logs is not None:
            departures.append(export.Departure([logs.shutdown]))
        done = [each.join() for each in departures]
        if not all(done) or self._delivery.lost:
            _log.warning(
                "%d of %d spans were not delivered; the ledger has every call",
                self._delivery.lost,
                self._delivery.ended,
            )

    def _tracer(self) -> Tracer | None:
        provider = trace.get_tracer_provider()
        latest = self._latest
        if latest is not None and latest[0] is provider:
            return latest[1]
        if isinstance(provider, trace.ProxyTracerProvider):  # nobody has set one
            return self._own_tracer(provider)
        tracer = provider.get_tracer("maestro")
        self._latest = provider, tracer
        return tracer

    def _own_tracer(self, unset: object) -> Tracer | None:
        """Return a tracer of ours, if the environment asks for it, and keep the answer for as long as none is set."""
        with self._lock:
            tracer = None
            if self._wants_spans and not self._left:
                if self._own_tracers is None:
                    self._own_tracers = export.trace_provider(self._delivery)
                tracer = self._own_tracers.get_tracer("maestro")
            self._latest = unset, tracer
            return tracer

    def _meters(self) -> MeterProvider | None:
        if not self._wants_metrics:
            return None
        with self._lock:
            if self._own_meters is None and not self._left:
                self._own_meters = export.metrics_provider()
            return self._own_meters

    def _logs(self) -> LoggerProvider | None:
        if not self._wants_logs:
            return None
        with self._lock:
            if self._own_logs is None and not self._closed:
                self._own_logs = export.logs_provider()
            return self._own_logs
