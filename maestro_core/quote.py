"""What a call may cost at most before it is sent, and what it came to afterwards."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .errors import PriceNotFound
from .estimate import context_window, input_bound, output_ceiling
from .money import NANOS_PER_USD, PICOS_PER_NANO
from .prefixes import Prefixes
from .prices import price_book
from .prices.fields import known_url
from .prices.layers import Layers, Priced, Spent
from .prices.served import FEES, searches_always, served
from .types import Call, Cost, CostLine, Reservation, Settlement
from .usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pluggy import PluginManager

    from .prices.entries import PriceEntry
    from .prices.served import Served
    from .types import Record
    from .usage._usage import Plain

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


class Quotes:
    """Prices calls for one Maestro: its plugins first, then the `prices` setting, then the price book.

    Args:
        plugins: Those that may price or estimate.
        prices: The `prices` setting.
    """

    def __init__(self, plugins: PluginManager, prices: Sequence[PriceEntry] = ()) -> None:
        self.plugins = plugins
        self._layers = Layers(prices)
        self._tools = [entry for entry in prices if entry.tool is not None]
        self.prefixes = Prefixes()
        self._warned: set[tuple[str, str]] = set()

    def bound(self, call: Call) -> Cost:
        """Return the most that the call can cost, all its attempts together; rounded up.

        Raises:
            PriceNotFound: If no price is known, or a component has no limit (the message names the one to set).
        """
        if call.operation == "tool":
            return self._tool_price(call)
        hook = self.plugins.hook.maestro_estimate
        most = hook(call=call) if hook.get_hookimpls() else None
        if most is not None:
            fees = {kind: most.counts[kind] for kind in FEES if most.counts.get(kind)}
            return self._bound_of(call, most.input_tokens or 0, most.output_tokens or 0, fees)
        extra = served(call) if call.tools else None
        tokens = _most_input(call, self.prefixes)
        if extra is None:
            return self._bound_of(call, tokens, _most_output(call), {})
        tokens = _with_looks(call, tokens, extra)
        bounds = [self._bound_of(call, tokens, _most_output(call), uses) for uses in extra.uses]
        return max(bounds, key=lambda cost: cost.nanos)

    def _bound_of(self, call: Call, input_tokens: int, output_tokens: int, fees: Mapping[str, int]) -> Cost:
        if self._prices_by_plugin(call):
            counts = dict[str, Any](fees)
            cost = self._by_plugin(
                call, Usage(input_tokens=input_tokens, output_tokens=output_tokens, **counts)
            )
            if cost is not None:
                return cost if call.attempts == 1 else _times(cost, call.attempts)
        bound = self._layers.bound_of(call, input_tokens, output_tokens, fees)
        if searches_always(call.model) and call.price is None and not bound.price_id.startswith("user:"):
            raise PriceNotFound(
                f"{call.name or call.model} searches the web in every call, for a fee that the price book does not have,"
                f' so it has no bound; declare [[prices]] with provider = "{call.provider}", model = "{call.model}", its'
                " input, its output, and per_request = the fee"
            )
        return bound

    def expected(self, call: Call, plain: Plain, at: datetime) -> int | None:
        """Return what an ordinary text call would come to, in nano-dollars, or None where no price is known.

        A decision asks this of every endpoint, so nothing is made that it does not read.

        Args:
            call: The call.
            plain: What it is expected to use, as `Usage.plain`.
            at: When (aware).
        """
        plugins = self._prices_by_plugin(call)
        try:
            if not plugins and (nanos := self._layers.plain_nanos(call, plain, at)) is not None:
                return nanos
        except PriceNotFound:
            return None
        usage = _plain_usage(plain)
        if plugins:
            cost = self._by_plugin(call, usage)
            if cost is not None:
                return cost.nanos
        spent = Spent(
            provider=call.provider,
            model=call.model,
            usage=usage,
            at=at,
            tier=call.tier,
            endpoint=call.endpoint,
            base_url=known_url(call.base_url),
            declared=call.price,
        )
        try:
            return self._layers.price(spent).cost.nanos
        except PriceNotFound:
            return None

    def _prices_by_plugin(self, call: Call) -> bool:
        return bool(self.plugins.hook.maestro_price.get_hookimpls()) and call.price is None

    def _by_plugin(self, call: Call, usage: Usage) -> Cost | None:
        found: Cost | None = self.plugins.hook.maestro_price(call=call, usage=usage)
        return found

    def sells(self, tool: str) -> bool:
        """Return whether the `prices` setting has a price for each use of a tool."""
        return any(entry.tool == tool for entry in self._tools)

    def _tool_price(self, call: Call) -> Cost:
        day = (call.at or datetime.now(UTC)).date()
        for entry in self._tools:
            if entry.tool == call.model and entry.per_call is not None and entry.holds(day):
                picos = entry.per_call * PICOS_PER_NANO * NANOS_PER_USD
                line = CostLine("tool", 1, picos, call.model)
                return Cost(
                    nanos=round(picos / PICOS_PER_NANO), lines=(line,), price_id=f"user:tool:{call.model}"
                )
        raise PriceNotFound(f"no price is declared for the tool {call.model} on {day}")

    def settlement(
        self, reservation: Reservation, usage: Usage | None, detail: Mapping[str, Any]
    ) -> Settlement:
        """Return what the call came to. Without usage it is the hold, marked as estimated; never silently 0."""
        facts = dict(detail)
        if reservation.call.operation == "tool" and reservation.bound:
            cost = reservation.bound
            return Settlement(
                cost_nanos=cost.nanos, sheet_nanos=cost.nanos, price_id=cost.price_id, detail=facts
            )
        if usage is None:
            return self._at_hold(reservation, facts)
        priced = self._price(reservation, usage, facts.get("latency_ms"))
        facts |= _facts(reservation.call, usage, priced)
        counts = {kind: count for kind, count in usage.total.counts.items() if count}
        if priced is None:
            return Settlement(cost_nanos=reservation.held_nanos, estimated_nanos=reservation.held_nanos,
                              usage=counts, unpriced=UNPRICED, detail=facts)  # fmt: skip
        cost = priced.cost
        if searches_always(reservation.call.model) and priced.layer in {"book", "contract"}:
            cost = replace(cost, unpriced=tuple(dict.fromkeys((*cost.unpriced, "web_searches"))))
        nanos = cost.nanos
        if cost.unpriced and reservation.capped:
            nanos = max(nanos, reservation.held_nanos)  # .nanos is only a lower bound
        return Settlement(
            cost_nanos=nanos,
            usage=counts,
            estimated_nanos=nanos if priced.estimated else nanos - cost.nanos,
            sheet_nanos=priced.sheet_nanos,
            price_id=cost.price_id,
            price_book=price_book(),
            unpriced=cost.unpriced,
            detail=facts,
        )

    def again(self, record: Record) -> Settlement | None:
        """Return what a recorded call comes to by today's price book and settings, at its own time.

        Args:
            record: The row that settled it.

        Returns:
            The whole truth, or None where nothing better is known: the record has no usage, no price is known still,
            or it was priced by what is not here: a plugin, or what the code declared its endpoint to cost.
        """
        facts = record.detail
        if not record.usage or facts.get("layer") == "endpoint":
            return None
        at = facts.get("priced_at")
        call = Call(
            provider=record.provider,
            model=record.model,
            attribution=record.attribution,
            key=record.key,
            tier=facts.get("tier"),
            at=datetime.fromisoformat(at) if at else None,
            endpoint=facts.get("endpoint", ""),
            base_url=facts.get("base_url", ""),
        )
        usage = _recorded_usage(record)
        reservation = Reservation(
            key=record.key,
            call=call,
            held_nanos=record.held_nanos,
            at=record.at,
            capped=record.held_nanos > 0,
        )
        if facts.get("layer") == "plugin" and self.plugins.hook.maestro_price(call=call, usage=usage) is None:
            return None
        kept = {name: facts[name] for name in ("latency_ms", "response_model") if name in facts}
        truth = self.settlement(reservation, usage, {**kept, "reason": "repriced"})
        return None if truth.unpriced == UNPRICED else truth

    def _at_hold(self, reservation: Reservation, facts: dict[str, Any]) -> Settlement:
        return Settlement(
            cost_nanos=reservation.held_nanos,
            estimated_nanos=reservation.held_nanos,
            price_id=reservation.bound.price_id if reservation.bound else "",
            price_book=price_book() if reservation.bound else "",
            unpriced=() if reservation.bound else UNPRICED,
            detail=facts,
        )

    def _price(self, reservation: Reservation, usage: Usage, latency_ms: object) -> Priced | None:
        call = reservation.call
        if self._prices_by_plugin(call):
            cost = self._by_plugin(call, usage)
            if cost is not None:
                return Priced(cost, "plugin", cost.nanos)
        at = call.at or reservation.at
        if (cost := self._layers.plain(call, usage, at)) is not None:
            return Priced(cost, "book", cost.nanos)
        spent = Spent(
            provider=call.provider,
            model=call.model,
            usage=usage,
            at=at,
            tier=call.tier,
            latency_ms=max(0, round(latency_ms)) if isinstance(latency_ms, int | float) else None,
            endpoint=call.endpoint,
            base_url=known_url(call.base_url),
            declared=call.price,
        )
        try:
            return self._layers.price(spent)
        except PriceNotFound as error:
            self.warn_unpriced(call, error)
            return None

    def warn_unpriced(self, call: Call, error: PriceNotFound) -> None:
        """Say once per model that its calls are counted as unpriced."""
        if (call.provider, call.model) not in self._warned:
            self._warned.add((call.provider, call.model))
            _log.warning("%s; its calls are counted as unpriced", error)


def _facts(call: Call, usage: Usage, priced: Priced | None) -> dict[str, Any]:
    """Return what a record needs, beside its counts, to be priced again; nothing for an ordinary call."""
    found: dict[str, Any] = {}
    if usage.flags:
        found["usage_flags"] = list(usage.flags)
    if tier := usage.tier if usage.tier is not None else call.tier:
        found["tier"] = tier
    if usage.region:
        found["region"] = usage.region
    if usage.provider_cost is not None:
        found["provider_cost"] = f"{usage.provider_cost:f}"
    if usage.lines:
        found["lines"] = [[model, dict(part.counts)] for model, part in usage.lines]
    if call.at is not None:
        found["priced_at"] = call.at.isoformat()
    if call.endpoint:
        found["endpoint"] = call.endpoint
    if base_url := known_url(call.base_url):
        found["base_url"] = base_url
    if priced is not None and priced.layer != "book":
        found["layer"] = priced.layer
    return found


def _recorded_usage(record: Record) -> Usage:
    """Return the usage that a record was made of; `_facts` and the settlement wrote it."""
    facts = record.detail
    reported = facts.get("provider_cost")
    return Usage(
        tier=facts.get("tier"),
        region=facts.get("region"),
        model=facts.get("response_model"),
        provider_cost=None if reported is None else Decimal(reported),
        lines=[(model, Usage(**counts)) for model, counts in facts.get("lines", ())],
        flags=facts.get("usage_flags", ()),
        **dict[str, Any](record.usage),
    )


def _plain_usage(plain: Plain) -> Usage:
    new, read, written, hour, output = plain
    cached = {
        "cache_read_tokens": read,
        "cache_write_tokens": written + hour,
        "cache_write_1h_tokens": hour,
    }
    known: dict[str, Any] = {kind: count for kind, count in cached.items() if count}
    return Usage(input_tokens=new + read + written + hour, output_tokens=output, **known)


def _times(cost: Cost, attempts: int) -> Cost:
    lines = [
        CostLine(line.kind, line.count * attempts, line.picos_per_unit, line.model) for line in cost.lines
    ]
    return Cost(cost.nanos * attempts, tuple(lines), cost.price_id, cost.unpriced)


def _with_looks(call: Call, tokens: int, extra: Served) -> int:
    """Return the most input tokens of a call that reads what the provider's own tools find."""
    if not extra.unknown:
        return tokens
    window = context_window(call.provider, call.model)
    if window is None:
        raise PriceNotFound(
            f"{call.name or call.model} reads what the provider's tools find, and its context window is not known, "
            "so its input has no bound; leave them out, or say what it may use with a maestro_estimate plugin"
        )
    return max(tokens, window * extra.looks)


def _most_input(call: Call, prefixes: Prefixes) -> int:
    counted = prefixes.known(call)
    if counted is None:
        tokens = input_bound(
            [call.input, *call.history], tools=call.tools, provider=call.provider, model=call.model
        )
    else:
        # A count with other tools in it is no less a bound, once these are added.
        tools = () if counted.same_tools else call.tools
        rest = input_bound([call.input, *counted.new], tools=tools, provider=call.provider, model=call.model)
        tokens = None if rest is None else counted.tokens + rest
    if tokens is None:
        tokens = context_window(call.provider, call.model)
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
