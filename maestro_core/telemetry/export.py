"""Providers of our own, for applications that set an OTLP endpoint and nothing else.

`OTEL_EXPORTER_OTLP_ENDPOINT` and its relatives are read by the exporters themselves, the protocol included
(`http/protobuf`, the default, or `grpc`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal

from maestro_core.forks import fork_safe_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Delivery", "Departure", "logs_provider", "metrics_provider", "trace_provider", "wanted"]

_log = logging.getLogger("maestro")

Signal = Literal["traces", "metrics", "logs"]

_JOIN_S = 2.0

# A burst of 100,000 spans fits; at some 3 kB each that is 0.4 GB at the very worst. The SDK's own 2,048 lose two
# thirds of such a burst.
_QUEUE = 131_072
_BATCH = 2_048

# What has ended just before the process does has two seconds to be delivered; the SDK's own five would let more pile up.
_DELAY_MS = 1_000.0


def wanted(signal: Signal) -> bool:
    """Return whether the environment names an OTLP endpoint for a signal, and does not switch it off.

    A backend that takes only traces answers metrics with an error: `OTEL_METRICS_EXPORTER=none` says so. Most backends of
    traces take no logs, so that these need an endpoint of their own, or `OTEL_LOGS_EXPORTER=otlp`.
    """
    exporter = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower()
    if (exporter and "otlp" not in exporter) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"):
        return True
    return bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")) and (signal != "logs" or bool(exporter))


class Delivery:
    """How many spans were handed over, and how many of them arrived."""

    def __init__(self) -> None:
        self._lock = fork_safe_lock()
        self.ended = 0
        self.arrived = 0

    @property
    def lost(self) -> int:
        """Spans that have not arrived, whatever the reason."""
        return self.ended - self.arrived

    def count(self, *, ended: int = 0, arrived: int = 0) -> None:
        """Add to the numbers."""
        with self._lock:
            self.ended += ended
            self.arrived += arrived


def trace_provider(delivery: Delivery) -> TracerProvider:
    """Return a tracer provider that exports over OTLP and counts what arrives."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Counted(SpanExporter):
        """Tells how many spans arrived."""

        def __init__(self, exporter: SpanExporter) -> None:
            self._exporter = exporter

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = self._exporter.export(spans)
            if result is SpanExportResult.SUCCESS:
                delivery.count(arrived=len(spans))
            return result

        def shutdown(self) -> None:
            self._exporter.shutdown()

    class Counting(BatchSpanProcessor):
        """Tells how many spans there were."""

        def on_end(self, span: ReadableSpan) -> None:
            if span.context is not None and span.context.trace_flags.sampled:
                delivery.count(ended=1)
            super().on_end(span)

    provider = TracerProvider(shutdown_on_exit=False)
    exporter = Counted(_span_exporter())
    delay_ms = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else _DELAY_MS
    processor = Counting(
        exporter, max_queue_size=_QUEUE, max_export_batch_size=_BATCH, schedule_delay_millis=delay_ms
    )
    provider.add_span_processor(processor)
    return provider


def metrics_provider() -> MeterProvider:
    """Return a meter provider that exports over OTLP, from this process alone."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        MetricExporter,
        MetricExportResult,
        PeriodicExportingMetricReader,
    )

    kind: type[MetricExporter]
    if _protocol("metrics") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        kind = Grpc
    else:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

        kind = Http
    pid = os.getpid()

    class Here(kind):  # type: ignore[misc, valid-type]  # one of two classes, of which one is imported
        """Says nothing in a forked child, where the SDK starts the reader's thread again, with the parent's totals."""

        def export(self, *args: Any, **kwargs: Any) -> MetricExportResult:
            return super().export(*args, **kwargs) if os.getpid() == pid else MetricExportResult.SUCCESS

    reader = PeriodicExportingMetricReader(Here())
    return MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)


def _resource() -> Resource:
    """Return who we are. Without an id of its own, two processes would write one series; not every SDK gives one."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create()
    if "service.instance.id" in found.attributes:
        return found
    return found.merge(Resource({"service.instance.id": str(uuid.uuid4())}))


def logs_provider() -> LoggerProvider:
    """Return a logger provider that exports over OTLP."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    exporter: LogRecordExporter
    if _protocol("logs") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as Grpc

        exporter = Grpc()
    else:
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as Http

        exporter = Http()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    return provider


class Departure:
    """Exporters that deliver what is queued and end, all at once, in threads of their own.

    One may retry a dead backend for half a minute, and its `force_flush` heeds no timeout; the agent's exit does not wait
    for it.
    """

    def __init__(self, shutdowns: Sequence[Callable[[], object]]) -> None:
        self._until_s = time.monotonic() + _JOIN_S
        self._workers = [
            threading.Thread(target=_quietly, args=(one,), name="maestro-telemetry", daemon=True)
            for one in shutdowns
        ]
        for worker in self._workers:
            worker.start()

    def join(self) -> bool:
        """Wait for them until two seconds after they began; return whether all are done."""
        for worker in self._workers:
            worker.join(max(0.0, self._until_s - time.monotonic()))
        return not any(worker.is_alive() for worker in self._workers)


def _quietly(shutdown: Callable[[], object]) -> None:
    try:
        shutdown()
    except Exception:  # noqa: BLE001 - whatever an exporter raises
        _log.exception("spans or metrics could not be delivered; the ledger has every call")


def _span_exporter() -> SpanExporter:
    if _protocol("traces") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()


def _protocol(signal: Signal) -> str:
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if found := os.environ.get(name):
            return found
    return "http/protobuf"
