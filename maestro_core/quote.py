"""What a call may cost at most before it is sent, and what it came to afterwards."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import PriceNotFound
from .estimate import context_window, input_bound, output_ceiling
from .prices import price, price_book, worst_case
from .types import Settlement
from .usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pluggy import PluginManager

    from .types import Call, Cost, Reservation

__all__ = ["Quotes", "ceiling_tokens"]

_log = logging.getLogger("maestro")

# A call without any price: everything about it is unpriced.
UNPRICED = ("*",)


def ceiling_tokens(call: Call) -> int | None:
    """Return the most output tokens that one completion can have: the request's own limit, else the model's."""
    if call.operation == "embeddings":
        return 0
    if call.max_output_tokens is not None:
        return call.max_output_tokens
    return output_ceiling(call.provider, call.model)


@dataclass(slots=True)
class Quotes:
    """Prices calls for one Maestro: its plugins first, then the price book."""

    plugins: PluginManager
    _warned: set[tuple[str, str]] = field(default_factory=set)

    def bound(self, call: Call) -> Cost:
        """Return the most that the call can cost, all its attempts together; rounded up.

        Raises:
            PriceNotFound: If no price is known, or a component has no limit (the message names the one to set).
        """
        most = self.plugins.hook.maestro_estimate(call=call)
        if most is None:
            most = Usage(input_tokens=_most_input(call), output_tokens=_most_output(call))
        cost: Cost | None = self.plugins.hook.maestro_price(call=call, usage=most)
        if cost is not None:
            return cost
        once = worst_case(
            call.provider,
            call.model,
            input_tokens=most.input_tokens or 0,
            output_tokens=most.output_tokens or 0,
            n=call.n,
            tier=call.tier,
            at=call.at,
        )
        return once if call.attempts == 1 else _times(once, call.attempts)

    def settlement(
        self, reservation: Reservation, usage: Usage | None, detail: Mapping[str, Any]
    ) -> Settlement:
        """Return what the call came to. Without usage it is the hold, marked as estimated; never silently 0."""
        facts = dict(detail)
        if usage is None:
            return self._at_hold(reservation, facts)
        call = reservation.call
        cost = self._price(call, usage, reservation.at)
        counts = {kind: count for kind, count in usage.counts.items() if count}
        if usage.flags:
            facts["usage_flags"] = list(usage.flags)
        if cost is None:
            return Settlement(cost_nanos=reservation.held_nanos, estimated_nanos=reservation.held_nanos,
                              usage=counts, unpriced=UNPRICED, detail=facts)  # fmt: skip
        nanos = cost.nanos
        if cost.unpriced and reservation.capped:
            nanos = max(nanos, reservation.held_nanos)  # .nanos is only a lower bound
        return Settlement(
            cost_nanos=nanos,
            usage=counts,
            estimated_nanos=nanos - cost.nanos,
            sheet_nanos=cost.nanos,
            price_id=cost.price_id,
            price_book=price_book(),
            unpriced=cost.unpriced,
            detail=facts,
        )

    def _at_hold(self, reservation: Reservation, facts: dict[str, Any]) -> Settlement:
        return Settlement(
            cost_nanos=reservation.held_nanos,
            estimated_nanos=reservation.held_nanos,
            price_id=reservation.bound.price_id if reservation.bound else "",
            price_book=price_book() if reservation.bound else "",
            unpriced=() if reservation.bound else UNPRICED,
            detail=facts,
        )

    def _price(self, call: Call, usage: Usage, at: datetime) -> Cost | None:
        cost: Cost | None = self.plugins.hook.maestro_price(call=call, usage=usage)
        if cost is not None:
            return cost
        # The model that answered decides the bill; the one asked for is the next best name for it.
        for model in dict.fromkeys((usage.model or call.model, call.model)):
            try:
                return price(call.provider, model, usage, at=call.at or at)
            except PriceNotFound as error:
                missing = error
        self.warn_unpriced(call, missing)
        return None

    def warn_unpriced(self, call: Call, error: PriceNotFound) -> None:
        """Say once per model that its calls are counted as unpriced."""
        if (call.provider, call.model) not in self._warned:
            self._warned.add((call.provider, call.model))
            _log.warning("%s; its calls are counted as unpriced", error)


def _times(cost: Cost, attempts: int) -> Cost:
    lines = tuple(replace(line, count=line.count * attempts) for line in cost.lines)
    return replace(cost, nanos=cost.nanos * attempts, lines=lines)


def _most_input(call: Call) -> int:
    tokens = input_bound(call.input, tools=call.tools, provider=call.provider)
    window = context_window(call.provider, call.model)
    if tokens is None:
        tokens = window
    if tokens is None:
        raise PriceNotFound(
            f"{call.name or call.model} sends content by reference, and its context window is not known, "
            "so its input has no bound; send the content itself"
        )
    return tokens


def _most_output(call: Call) -> int:
    tokens = ceiling_tokens(call)
    if tokens is None:
        raise PriceNotFound(
            f"{call.name or call.model} sets no output limit, and the most it can answer is not known; set max_tokens"
        )
    return tokens
