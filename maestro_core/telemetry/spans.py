"""Spans of model calls, tools and agents: drawn by us, or drawn by another instrumentation and annotated by us."""

from __future__ import annotations

import json
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import get_current

from maestro_core.errors import CapExceeded
from maestro_core.money import NANOS_PER_USD, to_usd

from . import content, names
from .guard import failed, harmless
from .places import server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from maestro_core.types import Attribution, Call, Record

    from .events import Events

__all__ = ["Drawing", "cost_attributes"]

_log = logging.getLogger("maestro")

_KINDS = {"chat": trace.SpanKind.CLIENT, "embeddings": trace.SpanKind.CLIENT}

# Dimensions that the conventions have a name for; the run tree knows agents better than whoever sets one.
_SPELLED = {"agent": names.AGENT, "conversation": names.CONVERSATION}

# What some backends read instead of gen_ai.usage.cost, as a JSON object of dollars.
_AS_JSON = {"langfuse.observation.cost_details": "total", "mlflow.llm.cost": "total_cost"}


class Drawing:
    """One run or call as a backend sees it.

    Either we drew the span, or another instrumentation does: then `found` returns its span, which may begin after us and
    ends after us, so that what we have to say is written when the run ends. If it turns out then that it draws none (some
    leave a maker's calls to their instrumentation of that maker), or has ended it before, `late` draws ours below it.
    """

    __slots__ = ("_attributes", "_costs", "_events", "_found", "_late", "_own", "captures", "first_chunk_s")

    def __init__(
        self,
        own: Span | None,
        found: Callable[[], Span | None] | None,
        attributes: dict[str, AttributeValue],
        costs: Sequence[str],
        events: Events,
        *,
        captures: bool = False,
        late: Callable[[Span | None], Span] | None = None,
    ) -> None:
        self.captures = captures  # whether what was said stands on it
        self._late = late
        self._own = own
        self._found = found
        self._attributes = attributes
        self._costs = costs
        self._events = events
        self.first_chunk_s: float | None = None

    @property
    def span(self) -> Span | None:
        """The span that we drew, below which others may stand."""
        return self._own

    def fade(self) -> Span | None:
        """It has ended, and is kept for what comes late: forget what stands on it; return what may be stood below."""
        self._attributes, self._found, self._late = {}, None, None
        if self._own is not None:
            self._own = trace.NonRecordingSpan(self._own.get_span_context())
        return self._own

    @harmless
    def belongs(self, attribution: Attribution) -> None:
        """Whom it is for has become known after it began."""
        facts = whom(attribution)
        self._attributes |= facts
        if self._own is not None:
            self._own.set_attributes(facts)

    @harmless
    def said(self, call: Call, reply: Mapping[str, Any], record: Record | None) -> None:
        """A model has answered: show what, where `capture_content` asks for it."""
        if self.captures and self._own is not None:
            self._own.set_attribute(names.OUTPUT_MESSAGES, content.said(call, reply, record))

    @harmless
    def refused(self, error: CapExceeded) -> None:
        """A cap did not admit it: say which, as attributes and as an event."""
        facts: dict[str, AttributeValue] = {
            names.REFUSED: error.reason,
            names.CAP: str(error.cap),
            names.BUCKET: error.bucket,
        }
        self._attributes |= facts
        span = self._own or (self._found() if self._found else None)
        if span is not None and span.is_recording():
            span.set_attributes(facts)
            self._tell(span, names.REFUSAL_EVENT, facts)

    @harmless
    def suspected(self, kind: str, tool: str) -> None:
        """Something about it is not as it should be, as `"loop"` of a tool, or of the model if `tool` is empty."""
        facts: dict[str, AttributeValue] = {
            names.ANOMALY: kind,
            names.REASON: f"tool {tool}" if tool else "model",
        }
        self._attributes[names.ANOMALY] = kind
        span = self._own or (self._found() if self._found else None)
        if span is not None and span.is_recording():
            span.set_attribute(names.ANOMALY, kind)
            self._tell(span, names.ANOMALY_EVENT, facts)

    def end(
        self,
        record: Record | None = None,
        error: BaseException | None = None,
        *,
        run_cost_nanos: int = 0,
        failed_inside: bool = False,
        ended_ns: int | None = None,
    ) -> bool:
        """End it with what the ledger says it cost, or with the error that ended it; return whether anybody saw.

        `failed_inside` says that a tool told its model of an error, instead of raising it; `ended_ns` when it ended, in
        nanoseconds since 1970, if that was earlier than now.
        """
        own = self._own
        try:
            if own is None:
                theirs = self._found() if self._found is not None else None
                if self._late is None or (theirs is not None and theirs.is_recording()):
                    return self._annotate(theirs, record, run_cost_nanos)
                own = self._own = self._late(theirs)
            facts: dict[str, AttributeValue] = {}
            if type(own) is not trace.NonRecordingSpan:  # sampled out: nobody would see what stands on it
                if record is not None:
                    facts = cost_attributes(record, self._costs)
                if run_cost_nanos or self.first_chunk_s is not None:
                    facts |= self._course(run_cost_nanos)
            if error is not None or failed_inside:
                facts[names.ERROR_TYPE] = _failed(own, error)
            if facts:
                own.set_attributes(facts)
            if record is not None:
                self._add_events(own, record)
            own.end(ended_ns)
        except Exception:  # noqa: BLE001 - as in `harmless`
            failed("Drawing.end")
        return True

    def _course(self, run_cost_nanos: int) -> dict[str, AttributeValue]:
        """Return how it went, beside what it cost."""
        facts: dict[str, AttributeValue] = {}
        if self.first_chunk_s is not None:
            facts = {names.REQUEST_STREAM: True, names.RESPONSE_FIRST_CHUNK: self.first_chunk_s}
        if run_cost_nanos:
            facts[names.RUN_COST] = run_cost_nanos / NANOS_PER_USD
        return facts

    def _annotate(self, span: Span | None, record: Record | None, run_cost_nanos: int) -> bool:
        if span is None or not span.is_recording():
            return False
        theirs: Mapping[str, AttributeValue] = getattr(span, "attributes", None) or {}
        facts = self._course(run_cost_nanos)
        if record is not None:
            facts |= cost_attributes(record, self._costs, to=theirs)
        # Tokens, models and errors are the other instrumentation's; what it says of them stays as it is.
        ours = {
            name: value
            for name, value in facts.items()
            if not name.startswith("gen_ai.") or name == names.COST
        }
        missing = {name: value for name, value in self._attributes.items() if name not in theirs}
        span.set_attributes(missing | ours)
        if record is not None:
            self._add_events(span, record)
        return True

    def _add_events(self, span: Span, record: Record) -> None:
        if record.overrun:
            self._tell(span, names.OVERRUN_EVENT, {names.COST_NANOS: record.cost_nanos})
        for attempt in record.detail.get("attempts", ()):
            facts = {names.ENDPOINT: attempt["endpoint"], names.REASON: attempt["failed"]}
            self._tell(span, names.FAILOVER_EVENT, facts)
        if decision := record.detail.get("decision"):
            facts = {names.ENDPOINT: decision["chosen"], names.DECISION: decision["why"]}
            self._tell(span, names.DECISION_EVENT, facts, severity="INFO")

    def _tell(
        self, span: Span, name: str, facts: Mapping[str, AttributeValue], *, severity: str = "WARN"
    ) -> None:
        # On the span for those who look at traces, and as a record of its own, which is what the conventions ask for.
        span.add_event(name, facts)
        self._events.emit(name, {**self._attributes, **facts}, span=span, severity=severity)


def _failed(span: Span, error: BaseException | None) -> str:
    """Give a span the status of what ended it; return its class. A framework's own kind of refusal is a refusal."""
    if error is None:
        what = names.TOOL_ERROR
    else:
        # The message may quote a prompt; the type says enough.
        what = CapExceeded.__qualname__ if isinstance(error, CapExceeded) else type(error).__qualname__
    if error is None or isinstance(
        error, Exception
    ):  # by OpenTelemetry, to cancel or to stop reading is no error
        span.set_status(trace.StatusCode.ERROR, what)
    return what


def draw(
    tracer: Tracer,
    operation: names.Operation,
    name: str,
    attributes: Mapping[str, AttributeValue],
    parent: Span | None,
    *,
    below: Context | None = None,
    began_ns: int | None = None,
) -> Span:
    """Start a span below `parent`, or below the current span; or, late, below what was current when it began.

    Nothing is attached to the context: frameworks do not promise that a start and its end share one.
    """
    return tracer.start_span(
        f"{operation} {name}" if name else operation,
        # Named in either case: an SDK would look for the current one three times.
        context=trace.set_span_in_context(parent) if parent else get_current() if below is None else below,
        kind=_KINDS.get(operation, trace.SpanKind.INTERNAL),
        attributes=attributes,
        start_time=began_ns,
    )


def start_attributes(
    operation: names.Operation, name: str, attribution: Attribution, call: Call | None, tool_call_id: str = ""
) -> dict[str, AttributeValue]:
    """Return what is known when a run begins; samplers look at it."""
    found: dict[str, AttributeValue] = {names.OPERATION: operation}
    found |= whom(attribution)
    if operation == "execute_tool":
        found[names.TOOL] = name
        # A framework runs it here; what a provider runs by itself has no span of its own.
        found[names.TOOL_TYPE] = "function"
        if tool_call_id:
            found[names.TOOL_CALL] = tool_call_id
    if call is not None:
        found[names.PROVIDER] = names.PROVIDER_NAMES.get(call.provider, call.provider)
        found[names.REQUEST_MODEL] = call.model
        if call.max_output_tokens is not None:
            found[names.REQUEST_MAX_TOKENS] = call.max_output_tokens
        if call.n != 1:
            found[names.REQUEST_CHOICES] = call.n
        if call.base_url:
            found |= server(call.base_url)
    return found


def whom(attribution: Attribution) -> dict[str, AttributeValue]:
    """Return whom a run is for; on every span, since backends group by what stands on the span itself."""
    found: dict[str, AttributeValue] = {}
    for dimension, value in attribution.dimensions.items():
        found[_SPELLED.get(dimension) or f"maestro.{dimension}"] = value
    for kind, name in reversed(attribution.path):
        if kind == "agent":
            found[names.AGENT] = name
            break
    return found


def cost_attributes(
    record: Record, spellings: Sequence[str] = (), *, to: Mapping[str, AttributeValue] = MappingProxyType({})
) -> dict[str, AttributeValue]:
    """Return what a settled call cost.

    Args:
        record: The call's.
        spellings: Further names for its dollars.
        to: What stands on the span already. Another instrumentation's may be of several requests, as of the batches that
            a list of texts is embedded in: their costs are added up.
    """
    earlier = to.get(names.COST_NANOS)
    nanos = record.cost_nanos + (earlier if isinstance(earlier, int) else 0)
    found: dict[str, AttributeValue] = {}
    for kind, attributes in names.KIND_NAMES.items():
        if kind in record.usage:
            for attribute in attributes:
                found[attribute] = record.usage[kind]
    usd = nanos / NANOS_PER_USD
    found[names.COST] = usd
    found[names.COST_NANOS] = nanos
    estimated = bool(to.get(names.COST_ESTIMATED))
    found[names.COST_ESTIMATED] = estimated or record.estimated_nanos > 0
    found[names.COST_SOURCE] = "estimated" if estimated else cost_source(record)
    if record.price_id:
        found[names.PRICE] = record.price_id
    if record.unpriced:
        found[names.COST_UNPRICED] = list(record.unpriced)
    found |= _how(record)
    for name in spellings:
        part = _AS_JSON.get(name)
        found[name] = json.dumps({part: float(to_usd(nanos))}) if part else usd
    return found


def _how(record: Record) -> dict[str, AttributeValue]:
    """Return how a call came about: its endpoint, its limit, and what became of it."""
    found: dict[str, AttributeValue] = {}
    if record.overrun:
        found[names.OVERRUN] = True
    if fitted := record.detail.get("fitted_output_tokens"):
        found[names.FITTED] = fitted
    if model := record.detail.get("response_model"):
        found[names.RESPONSE_MODEL] = model
    if decision := record.detail.get("decision"):
        found[names.ENDPOINT] = decision["chosen"]
        found[names.DECISION] = decision["why"]
    if attempts := record.detail.get("attempts"):
        found[names.FAILED_OVER] = [each["endpoint"] for each in attempts]
    return found


def cost_source(record: Record) -> str:
    """Return where a cost comes from: `"provider"` reported it, `"local"` is our price, `"estimated"` a bound."""
    if record.estimated_nanos:
        return "estimated"
    return "provider" if record.price_id == "provider" else "local"
