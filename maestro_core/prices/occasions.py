"""What prices are asked for: a call that was made, one that is about to be made; and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from maestro_core.quick import quick

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from maestro_core.types import Cost
    from maestro_core.usage import Usage

    from .bound import CacheWrites
    from .entries import PriceEntry

__all__ = ["Layer", "Priced", "Spent", "Worst"]

Layer = Literal["endpoint", "plugin", "user", "provider", "contract", "book", "assumed"]


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A call that was made: what it used, and when and where.

    Args:
        provider: Provider id.
        model: The model asked for.
        usage: What was reported.
        at: When it was made (aware).
        tier: The service tier asked for; what the usage says was served comes first.
        latency_ms: How long it took, if known.
        endpoint: Name of the endpoint that it was routed to.
        base_url: Where it went, as `normal_url` writes it.
        declared: What the user says that endpoint costs.
    """

    provider: str
    model: str
    usage: Usage
    at: datetime
    tier: str | None = None
    latency_ms: int | None = None
    endpoint: str = ""
    base_url: str = ""
    declared: PriceEntry | None = None

    @property
    def served_tier(self) -> str | None:
        """The tier that the provider says it served, else the one asked for."""
        return self.tier if self.usage.tier is None else self.usage.tier


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """A call that is about to be made: the most that each of its attempts can use."""

    provider: str
    model: str
    input_tokens: int
    output_tokens: int
    at: datetime
    n: int = 1
    attempts: int = 1
    tier: str | None = None
    cache_writes: CacheWrites = "1h"
    fees: Mapping[str, int] | None = None
    endpoint: str = ""
    base_url: str = ""
    declared: PriceEntry | None = None


@quick
@dataclass(frozen=True, slots=True)
class Priced:
    """What a call costs.

    Args:
        cost: What the layer says; its `price_id` names the layer.
        layer: Which one it was.
        sheet_nanos: What the price book alone says, or None if it has no price.
        estimated: Whether the amount rests on an assumption.
    """

    cost: Cost
    layer: Layer
    sheet_nanos: int | None
    estimated: bool = False
