"""Events as OpenTelemetry wants them since it gave up the span's own: named log records that know their span.

They go to the user's logger provider; if none is set, to one of our own where the environment asks for logs over OTLP.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry._logs import LogRecord, NoOpLoggerProvider, SeverityNumber, get_logger_provider

from .guard import harmless

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry._logs import Logger, LoggerProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

__all__ = ["Events"]

_SEVERITIES = {"INFO": SeverityNumber.INFO, "WARN": SeverityNumber.WARN}


class Events:
    """The events of one Maestro.

    Args:
        own: Returns our own provider, or None if nobody asks for logs.
    """

    def __init__(self, own: Callable[[], LoggerProvider | None]) -> None:
        self._own = own
        self._latest: tuple[object, Logger | None] | None = None

    @harmless
    def emit(
        self,
        name: str,
        facts: Mapping[str, AttributeValue],
        *,
        span: Span | None = None,
        body: str | None = None,
        severity: str = "WARN",
    ) -> bool:
        """Tell that something happened, during `span` if there is one; return whether anybody listens.

        `severity` is `"INFO"` or `"WARN"`.
        """
        logger = self._logger()
        if logger is None:
            return False
        logger.emit(
            LogRecord(
                timestamp=time.time_ns(),
                context=trace.set_span_in_context(span) if span is not None else None,
                severity_number=_SEVERITIES[severity],
                severity_text=severity,
                body=body,
                attributes=dict(facts),
                event_name=name,
            )
        )
        return True

    def forget(self) -> None:
        """Ask anew which provider there is."""
        self._latest = None

    def _logger(self) -> Logger | None:
        provider: LoggerProvider | None = get_logger_provider()
        if self._latest is not None and self._latest[0] is provider:
            return self._latest[1]
        key = provider
        if type(provider).__name__ == "ProxyLoggerProvider":  # nobody has set one
            provider = self._own()
        logger = provider.get_logger("maestro") if provider is not None else None
        if isinstance(provider, NoOpLoggerProvider):
            logger = None
        self._latest = key, logger
        return logger
