"""What one call meets on its way through the endpoints: attempts, how they failed, and the money that was short."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .deadlines import deadline_s
from .money import format_usd, to_nanos

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from .doors import Offer
    from .endpoints import Facts
    from .errors import CapExceeded
    from .failures import Failure
    from .types import Decision, Reservation

__all__ = ["Attempt", "Failed", "Money"]


@dataclass(slots=True, eq=False)
class Attempt:
    """One request to one endpoint, its money held.

    Attributes:
        facts: The endpoint.
        reservation: What is held for it.
        decision: Why this endpoint.
    """

    facts: Facts
    reservation: Reservation
    decision: Decision
    probe: bool
    began_s: float
    first_s: float | None = None
    offer: Offer | None = None
    baseline: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self.facts.name

    def deadline_s(self, *, streamed: bool = False) -> float | None:
        """Return how many seconds the endpoint has, of a stream until its first token; None if as many as it takes."""
        return deadline_s(self.decision, streamed=streamed, probe=self.probe)

    @property
    def fitted_output_tokens(self) -> int | None:
        """The output limit that the request has to carry, if it was fitted to what the caps leave."""
        return self.reservation.fitted_output_tokens


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that failed: where, with what, and after how long."""

    name: str
    error: BaseException
    failure: Failure
    latency_ms: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as the framework's reply carries it; JSON values."""
        return {
            "endpoint": self.name,
            "failed": self.failure.kind,
            "error": type(self.error).__qualname__,
            "latency_ms": self.latency_ms,
        }


@dataclass(slots=True)
class Money:
    """Which endpoints the caps have no money for, and what the least of them would need."""

    short: dict[str, str] = field(default_factory=dict)
    needed: dict[str, Decimal] = field(default_factory=dict)

    def refused(self, name: str, error: CapExceeded) -> None:
        """Remember why an endpoint got nothing."""
        needed, left = (format_usd(to_nanos(each)) for each in (error.needed, error.headroom))
        self.short[name] = f"need {needed} left {left}"
        self.needed[name] = error.needed

    def least(self, ranking: tuple[str, ...]) -> str:
        """Return the endpoint that is likeliest to fit; of those without a price, the best."""
        return min(self.needed, key=self.needed.__getitem__) if self.needed else ranking[0]
