"""Metrics: tokens, durations, money, caps. They are right whatever the sampler of spans says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

from .guard import failed, harmless
from .instruments import cap_name, instruments

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span

    from maestro_core.errors import CapExceeded
    from maestro_core.types import Call, CapStatus, Record

    from . import names
    from .instruments import Instruments

__all__ = ["Metrics"]


class Metrics:
    """The metrics of one Maestro, given to the user's meter provider, or to our own if only an endpoint is set.

    A call only notes what it took (`Pending` says why), and nothing at all where nobody can read it.
    """

    def __init__(self, own: Callable[[], MeterProvider | None]) -> None:
        self._own = own
        self._latest: tuple[object, Instruments | None] | None = None
        self._status: Callable[[], Sequence[CapStatus]] | None = None

    def watch(self, status: Callable[[], Sequence[CapStatus]]) -> None:
        """Show where caps stand, as `status` says when the metrics are read."""
        self._status = status

    def forget(self) -> None:
        """Ask anew which provider there is."""
        self._latest = None

    @harmless
    def freeze(self) -> None:
        """Caps stay as they stand now: the ledger is about to close, and the metrics are read once more after it."""
        to = self._latest[1] if self._latest is not None else None
        if to is not None and self._status is not None:
            found = tuple(self._status())
            to.watched[self] = lambda: found

    def settled(self, record: Record) -> None:
        """Count what a journal row adds to the bill."""
        try:
            to = self._instruments()
            if to is not None:
                to.settled(record)
        except Exception:  # noqa: BLE001 - as in `harmless`
            failed("Metrics.settled")

    @harmless
    def refused(self, call: Call, error: CapExceeded) -> None:
        """Count a refusal."""
        to = self._instruments()
        if to is not None:
            to.refused(error.reason, cap_name(error.cap), call.attribution.value("team"))

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
        """Note how long a call took, and its tokens; `span`, or else the current one, becomes the exemplar."""
        try:
            to = self._instruments()
            if to is None:
                return
            answered, tokens_in, tokens_out = "", None, None
            if record is not None:
                answered = record.detail.get("response_model") or ""
                tokens_in, tokens_out = record.usage.get("input_tokens"), record.usage.get("output_tokens")
            what = "" if error is None else type(error).__qualname__
            exemplar = (span or trace.get_current_span()).get_span_context()
            to.pending.add(
                (
                    operation, call.provider, call.model, answered, tokens_in, tokens_out, first_chunk_s, duration_s,
                    what, exemplar,
                )
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - as in `harmless`
            failed("Metrics.operated")

    def _instruments(self) -> Instruments | None:
        provider = metrics.get_meter_provider()
        latest = self._latest
        if latest is not None and latest[0] is provider:
            return latest[1]
        # Nobody has set one: then it is ours, if the environment asks for one.
        unset = type(provider).__name__ == "_ProxyMeterProvider"
        found = self._own() if unset else provider
        to = instruments(found) if found is not None else None
        if to is not None and not to.heard:
            to = None
        if to is not None and self._status is not None:
            to.watched[self] = self._status
        self._latest = provider, to
        return to
