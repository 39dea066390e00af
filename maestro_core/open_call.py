"""One call without a framework: `with maestro.call(...) as call: call.settle(response.usage)`."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from .errors import CapExceeded, ReservationClosed
from .runtree import not_sent

if TYPE_CHECKING:
    from types import TracebackType

    from .maestro import Maestro
    from .telemetry import Drawing
    from .types import Call, Record, Reservation

__all__ = ["OpenCall"]


class OpenCall:
    """A reserved call; works with `with` and `async with`.

    Attributes:
        reservation: What is held; set on entry.
        record: The journal row, once settled.
    """

    reservation: Reservation

    def __init__(self, maestro: Maestro, call: Call) -> None:
        self._maestro = maestro
        self._call = call
        self._released = False
        self._drawing: Drawing | None = None
        self._began_ns = 0
        self.record: Record | None = None

    def settle(self, usage: Any) -> Record:
        """Replace the hold by the true cost; `usage` as in `Maestro.settle`."""
        self.record = self._maestro.settle(self.reservation, usage)
        return self.record

    def release(self, reason: str) -> None:
        """Give the money back; only when the request provably was not billed."""
        self._maestro.release(self.reservation, reason)
        self._released = True

    def __enter__(self) -> Self:
        try:
            self.reservation = self._maestro.reserve(self._call)
        except CapExceeded as error:
            not_sent(self._draw(replace(self._call, attribution=error.attribution)), None, error)
            raise
        self._drawing, self._began_ns = self._draw(self.reservation.call), time.perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.record is None and not self._released:
            why = f"left by {kind.__qualname__}" if kind else "left without settling"
            # It may have been closed through its reservation, as `maestro.settle(call.reservation, usage)`.
            with suppress(ReservationClosed):
                self.record = self._maestro.settle_with(self.reservation, None, {"reason": why})
        if self._drawing is not None:
            self._drawing.end(self.record, error)
        self._maestro.telemetry.metrics.operated(
            "chat",
            self.reservation.call,
            (time.perf_counter_ns() - self._began_ns) / 1e9,
            record=self.record,
            error=error,
            span=self._drawing.span if self._drawing is not None else None,
        )

    def _draw(self, call: Call) -> Drawing | None:
        return self._maestro.telemetry.start("chat", call.model, call.attribution, parent=None, call=call)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
