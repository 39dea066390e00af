"""The price of reported usage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from maestro_core.money import PICOS_PER_NANO
from maestro_core.types import Cost, CostLine
from maestro_core.usage.kinds import INPUT_PARTS, OUTPUT_PARTS

from .sheet import PLAIN, ancestors, sheet
from .tiers import check_region

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from maestro_core.usage import Usage

    from .sheet import Band, Picos, Rates

__all__ = ["plain_nanos", "price", "price_at", "timestamp", "to_nanos"]

# Lines read like a bill: input, cache, output, then everything else.
_ORDER = {kind.removesuffix("_tokens"): place for place, kind in enumerate(PLAIN)}


def price(
    provider: str,
    model: str | None,
    usage: Usage,
    *,
    at: datetime | None = None,
    tier: str | None = None,
    region: str | None = None,
) -> Cost:
    """Return the sheet price of a call: pure, exact, from the price book alone.

    Args:
        provider: Provider id, e.g. `"openai"`.
        model: The model, as the provider names it.
        usage: What the call used. If it has `lines`, each is priced at its own model, and fees are added once.
        at: When the call was made; now, if None.
        tier: Service tier in any provider's spelling; None: the tier in `usage`, else standard.
        region: Where it was processed; None: the region in `usage`, else the provider's normal price.

    Returns:
        The cost. `Cost.unpriced` names kinds that were used and have no rate: `Cost.nanos` is then a lower bound, in
        which they count at the rate of the wider kind that includes them, if there is one.

    Raises:
        PriceNotFound: For an unknown provider, model, tier or region, or a tier without rates.
        ValueError: If `at` has no time zone.
    """
    if region is not None or usage.region is not None:
        check_region(usage.region if region is None else region)
    if tier is None:
        tier = usage.tier

    start = timestamp(at)
    rates = sheet(provider, model, tier).at(start)
    return _price_plain(usage, rates) or _price_by_kind(
        usage, rates, lambda name: sheet(provider, name, tier).at(start)
    )


def price_at(usage: Usage, rates: Rates, rates_of: Callable[[str], Rates]) -> Cost:
    """Return the price of usage at known rates; `rates_of` gives those of the other models that its lines name."""
    return _price_plain(usage, rates) or _price_by_kind(usage, rates, rates_of)


def plain_nanos(plain: Sequence[int], rates: Rates) -> int | None:
    """Return in nano-dollars what `price_at` says of an ordinary text call, without its lines; None for any other.

    Args:
        plain: As `Usage.plain`.
        rates: Known rates.
    """
    band = rates.band(plain[0] + plain[1] + plain[2] + plain[3])
    if band.plain is None:
        return None
    total: Picos = 0
    for count, rate in zip(plain, band.plain, strict=True):
        if count:
            if rate is None:
                return None
            total += count * rate[1]
    return to_nanos(total)


def _price_plain(usage: Usage, rates: Rates) -> Cost | None:
    """Price an ordinary text call, or return None for any other."""
    plain = usage.plain
    if plain is None:
        return None
    band = rates.band(plain[0] + plain[1] + plain[2] + plain[3])
    if band.plain is None:
        return None
    total: Picos = 0
    lines = []
    model = rates.model
    for count, rate in zip(plain, band.plain, strict=True):
        if count:
            if rate is None:
                return None
            kind, picos = rate
            total += count * picos
            lines.append(CostLine(kind, count, picos, model))
    return Cost(to_nanos(total), tuple(lines), rates.price_id)


def timestamp(at: datetime | None) -> float:
    """Return seconds since 1970; now for None.

    Raises:
        ValueError: For a naive datetime, which names no instant.
    """
    if at is None:
        return time.time()
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone; use an aware datetime, for example datetime.now(UTC)")
    return at.timestamp()


def to_nanos(picos: Picos) -> int:
    """Return pico-dollars as nano-dollars, rounded half-even."""
    if not isinstance(picos, int):
        return round(picos / PICOS_PER_NANO)
    nanos, rest = divmod(picos, PICOS_PER_NANO)
    half = PICOS_PER_NANO // 2
    return nanos + (rest > half or (rest == half and nanos % 2 == 1))


def _price_by_kind(usage: Usage, rates: Rates, rates_of: Callable[[str], Rates]) -> Cost:
    """Price usage of any kinds, in several lines if it has them."""
    parts = [(rates, part) for name, part in usage.lines if name is None]
    parts += [(rates_of(name), part) for name, part in usage.lines if name is not None]
    lines: list[CostLine] = []
    unpriced: dict[str, None] = {}
    for its_rates, part in parts or [(rates, usage)]:
        _charge(its_rates, _disjoint(part, its_rates), lines, unpriced)
    if parts:
        listed = {kind for _, part in parts for kind in part.counts}
        fees = {k: n for k, n in usage.counts.items() if n and k not in listed and not k.endswith("_tokens")}
        _charge(rates, (rates.bands[0], fees), lines, unpriced)
    fee = rates.bands[0].request_picos
    if fee and "requests" not in usage.counts:
        lines.append(CostLine("requests", 1, fee, rates.model))
    total = sum(line.picos for line in lines)
    ids = dict.fromkeys(its_rates.price_id for its_rates, _ in parts or [(rates, usage)])
    return Cost(to_nanos(total), tuple(lines), "+".join(ids), tuple(unpriced))


def _charge(
    rates: Rates,
    counted: tuple[Band, Mapping[str, int]],
    lines: list[CostLine],
    unpriced: dict[str, None],
) -> None:
    band, counts = counted
    merged: dict[tuple[str, Picos], int] = {}
    for kind, count in counts.items():
        rate = band.rates[kind]
        if not rate.priced:
            unpriced[rate.kind] = None
        if rate.priced or rate.picos:
            merged[rate.kind, rate.picos] = merged.get((rate.kind, rate.picos), 0) + count
    made = [CostLine(kind, count, picos, rates.model) for (kind, picos), count in merged.items()]
    lines += sorted(made, key=lambda line: _ORDER.get(line.kind, len(_ORDER)))


def _disjoint(usage: Usage, rates: Rates) -> tuple[Band, dict[str, int]]:
    """Return the band, and disjoint counts of the kinds that are charged apart.

    Parts that exceed their total are charged in full: more than the provider reports as total, never less.
    """
    counts = _filled(usage)
    band = rates.band(counts.get("input_tokens", 0))
    leaves: dict[str, int] = {}
    for kind, wider in ancestors().items():
        count = counts.get(kind, 0)
        if count and (band.rates[kind].own or not wider):
            inside = sum(leaf for other, leaf in leaves.items() if kind in ancestors()[other])
            leaves[kind] = max(0, count - inside)
    return band, {kind: leaf for kind, leaf in leaves.items() if leaf}


def _filled(usage: Usage) -> dict[str, int]:
    """Return the counts, each total at least the sum of its parts."""
    counts = dict(usage.counts)
    get = counts.get
    five_minutes, hour = get("cache_write_5m_tokens", 0), get("cache_write_1h_tokens", 0)
    written = max(get("cache_write_tokens", 0), five_minutes + hour)
    counts["cache_write_tokens"] = written
    if "cache_ttl_unknown" in usage.flags:
        counts["cache_write_1h_tokens"] = written - five_minutes
    for total, splits in (("input_tokens", INPUT_PARTS), ("output_tokens", OUTPUT_PARTS)):
        counts[total] = max(get(total, 0), *(sum(get(kind, 0) for kind in split) for split in splits))
    return counts
