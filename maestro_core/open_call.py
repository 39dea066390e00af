"""One call without a framework: `with maestro.call(...) as call: call.settle(response.usage)`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from .errors import ReservationClosed

if TYPE_CHECKING:
    from types import TracebackType

    from .maestro import Maestro
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
        self.reservation = self._maestro.reserve(self._call)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.record is None and not self._released:
            why = f"left by {kind.__qualname__}" if kind else "left without settling"
            # It may have been closed through its reservation, as `maestro.settle(call.reservation, usage)`.
            with suppress(ReservationClosed):
                self.record = self._maestro.settle_with(self.reservation, None, {"reason": why})

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
