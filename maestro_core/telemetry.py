"""Spans by OpenTelemetry's GenAI conventions. They follow the money and never decide about it.

Names are kept here as constants, because the conventions still move
(https://github.com/open-telemetry/semantic-conventions-genai).
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Literal

from opentelemetry import trace

from .money import NANOS_PER_USD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from .types import Attribution, Call, Record

__all__ = ["Operation", "Telemetry"]

_log = logging.getLogger("maestro")

Operation = Literal["invoke_agent", "execute_tool", "chat", "embeddings"]

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
RESPONSE_MODEL = "gen_ai.response.model"
AGENT = "gen_ai.agent.name"
TOOL = "gen_ai.tool.name"
CONVERSATION = "gen_ai.conversation.id"
COST = "gen_ai.usage.cost"
COST_NANOS = "maestro.cost.nano_usd"
ERROR_TYPE = "error.type"

# Usage kinds and their attributes; each is a part of the input or output total, as the conventions ask.
_USAGE = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "output_reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}

# OpenTelemetry spells some providers differently from genai-prices.
_PROVIDERS = {
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gen_ai",
    "mistral": "mistral_ai",
    "x-ai": "x_ai",
}

_KINDS = {"chat": trace.SpanKind.CLIENT, "embeddings": trace.SpanKind.CLIENT}

_JOIN_S = 2.0
_QUEUE = 65_536


class Telemetry:
    """Draws spans with the user's tracer provider, or with one of its own if only an OTLP endpoint is set."""

    def __init__(self) -> None:
        self._own: TracerProvider | None = None
        self._latest: tuple[object, Tracer] | None = None  # making a tracer costs as much as a span
        self._lock = threading.Lock()

    def start(
        self,
        operation: Operation,
        name: str,
        attribution: Attribution,
        *,
        parent: Span | None,
        call: Call | None = None,
    ) -> Span | None:
        """Start a span below `parent` (or below the current span), or return None if nobody listens.

        Nothing is attached to the context: frameworks do not promise that a start and its end share one.
        """
        tracer = self._tracer()
        if tracer is None:
            return None
        attributes: dict[str, AttributeValue] = {OPERATION: operation}
        for dimension, value in attribution.dimensions.items():
            attributes[CONVERSATION if dimension == "conversation" else f"maestro.{dimension}"] = value
        if (agent := attribution.value("agent")) and any(kind == "agent" for kind, _ in attribution.path):
            attributes[AGENT] = agent
        if operation == "execute_tool":
            attributes[TOOL] = name
        if call is not None:
            attributes[PROVIDER] = _PROVIDERS.get(call.provider, call.provider)
            attributes[REQUEST_MODEL] = call.model
            if call.max_output_tokens is not None:
                attributes[REQUEST_MAX_TOKENS] = call.max_output_tokens
        return tracer.start_span(
            f"{operation} {name}",
            context=trace.set_span_in_context(parent) if parent else None,
            kind=_KINDS.get(operation, trace.SpanKind.INTERNAL),
            attributes=attributes,
        )

    def end(
        self, span: Span | None, record: Record | None = None, error: BaseException | None = None
    ) -> None:
        """End a span, with what the ledger says it cost, or with the error that ended it."""
        if span is None:
            return
        if record is not None:
            span.set_attributes(_cost_attributes(record))
        if error is not None:
            name = type(error).__qualname__
            span.set_attribute(ERROR_TYPE, name)
            # The message may quote a prompt; the type says enough.
            span.set_status(trace.StatusCode.ERROR, name)
        span.end()

    def close(self) -> None:
        """Deliver what is queued, in at most two seconds; the user's own provider is left alone."""
        with self._lock:
            own, self._own = self._own, None
        if own is None:
            return
        # An exporter may retry a dead backend for many seconds; the agent's exit does not wait for it.
        worker = threading.Thread(target=own.shutdown, name="maestro-spans", daemon=True)
        worker.start()
        worker.join(_JOIN_S)
        if worker.is_alive():
            _log.warning("spans were not delivered within %s s; the ledger has every call", _JOIN_S)

    def _tracer(self) -> Tracer | None:
        provider = trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            if self._latest is None or self._latest[0] is not provider:
                self._latest = provider, provider.get_tracer("maestro")
            return self._latest[1]
        if not any(os.environ.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_")):
            return None
        with self._lock:
            if self._own is None:
                self._own = _own_provider()
            return self._own.get_tracer("maestro")


def _own_provider() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=_QUEUE))
    return provider


def _cost_attributes(record: Record) -> Mapping[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        name: record.usage[kind] for kind, name in _USAGE.items() if kind in record.usage
    }
    found[COST] = record.cost_nanos / NANOS_PER_USD
    found[COST_NANOS] = record.cost_nanos
    found["maestro.cost.estimated"] = record.estimated_nanos > 0
    if record.unpriced:
        found["maestro.cost.unpriced"] = list(record.unpriced)
    if record.overrun:
        found["maestro.overrun"] = True
    if model := record.detail.get("response_model"):
        found[RESPONSE_MODEL] = model
    return found
