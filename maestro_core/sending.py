"""One reserved request that its door sends by itself: whoever sends it says, once, how it ended."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from .failures import classify
from .waiting import lineage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from opentelemetry.trace import Span

    from .failures import Failure
    from .maestro import Maestro
    from .types import Reservation
    from .usage import Usage

__all__ = ["Sending"]


class Sending:
    """A request on its way; its reservation is settled or released when it has ended.

    Attributes:
        reservation: What is held for it.
        streamed: Whether output has arrived; from then on, a failure may be billed.
    """

    __slots__ = ("_maestro", "reservation", "streamed")

    def __init__(
        self,
        maestro: Maestro,
        reservation: Reservation,
        parent_id: Hashable | None = None,
        *,
        found: Callable[[], Span | None] | None = None,
    ) -> None:
        self._maestro = maestro
        self.reservation = reservation
        self.streamed = False
        maestro.runs.adopt(reservation, parent_id, found=found)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Calls inside the block never wait for this one's money. For streams: around each step."""
        token = lineage.set((*lineage.get(), self.reservation.key))
        try:
            yield
        finally:
            lineage.reset(token)

    def heard(self) -> None:
        """A part of the answer has arrived."""
        if not self.streamed:
            self.streamed = True
            self._maestro.runs.streamed(self.reservation.key)

    def settle(
        self, usage: Usage | None, *, reply: Mapping[str, object] | None = None, reason: str = ""
    ) -> None:
        """It was answered: settle at the usage, or, where there is none, at the hold; `reason` says why.

        `reply` is the answer in the form of the call's `history`.
        """
        self._maestro.runs.settle(self.reservation.key, usage, reply=reply, reason="" if usage else reason)

    def fail(self, error: BaseException, usage: Usage | None = None) -> Failure:
        """It ended in an error: release it if it provably was not billed, else settle it at its usage or its hold.

        Returns:
            What the error means.
        """
        failure = classify(error, streamed=self.streamed)
        key, runs = self.reservation.key, self._maestro.runs
        if failure.unbilled and usage is None:
            runs.release(key, failure.unbilled, error)
        else:
            runs.settle(key, usage, error=error, reason="" if usage else "ended without usage")
        return failure
