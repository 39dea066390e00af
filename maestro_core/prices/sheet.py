"""The compiled price sheet of one model at one tier: exact rates per kind, in bands of input length and in time.

Rates are pico-dollars (1e-12 US dollars) per token or use: 99 % of the price book's rates are whole numbers of them,
the others (audio by the hour) are fractions.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from maestro_core.errors import PriceNotFound
from maestro_core.usage.kinds import ALIASES

from .free import is_free
from .names import find
from .tiers import CONTEXTS, parse_tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import date

    from .names import Entry

__all__ = [
    "PLAIN",
    "Band",
    "Picos",
    "Rate",
    "Rates",
    "Sheet",
    "ancestors",
    "flat_rates",
    "price_starts",
    "sheet",
]

Picos = int | Fraction

# The kinds of `Usage.plain`, in its order.
PLAIN = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "output_tokens")

# What a kind without a rate of its own may cost as, because providers say so: reasoning and citations are billed as
# output; a cached token is never billed above the input rate.
_PARENTS = {
    "output_reasoning_tokens": "output_tokens",
    "output_citation_tokens": "output_tokens",
    "cache_read_tokens": "input_tokens",
}
# Gemini's price page has one input price for text, image and video, and for audio where it lists none apart.
_GEMINI_PARENTS = {
    **{f"input_{modality}_tokens": "input_tokens" for modality in ("audio", "image", "video")},
    **{f"cache_{modality}_read_tokens": "cache_read_tokens" for modality in ("audio", "image", "video")},
}
# Models that are named for the one thing they put out; their output rate is its rate.
_NAMED_FOR = {"output_image_tokens": "image", "output_audio_tokens": "tts"}
_PICOS_PER_USD = 10**12
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Rate:
    """What one kind costs.

    Args:
        kind: The line it is charged on: `"input"`, `"cache_read"`, `"web_searches"`, ...
        picos: Pico-dollars each.
        own: Whether the kind is charged apart from its parent.
        priced: False if the book has no rate: `picos` is then its parent's, and a lower bound.
    """

    kind: str
    picos: Picos
    own: bool = True
    priced: bool = True


@dataclass(frozen=True, slots=True)
class Band:
    """Rates from some input length on.

    Args:
        first: The smallest number of input tokens that is billed at these rates.
        rates: By kind of usage, for every kind there is.
        plain: Line and pico-dollars of each of `PLAIN` (None for a kind that is not priced), so that ordinary calls
            need no look-ups; None where reasoning or each request costs extra.
        request_picos: A fee for each request.
    """

    first: int
    rates: dict[str, Rate]
    plain: tuple[tuple[str, Picos] | None, ...] | None
    request_picos: Picos


@dataclass(frozen=True, slots=True)
class Rates:
    """Everything that holds at one time. `bands` start at ascending input lengths, the first at 0."""

    price_id: str
    model: str
    bands: tuple[Band, ...]
    free: bool

    def band(self, input_tokens: int) -> Band:
        """Return the band of a call with that many input tokens, cached ones included."""
        for band in reversed(self.bands):
            if input_tokens >= band.first:
                return band
        return self.bands[0]


@dataclass(slots=True)
class Sheet:
    """The prices of one model at one tier through time. Safe to share between threads."""

    entry: Entry
    tier: str
    _known: dict[tuple[int, ...], Rates] = field(default_factory=dict)
    _span: tuple[float, float, Rates] | None = None

    def at(self, timestamp: float) -> Rates:
        """Return the rates at a time in seconds since 1970.

        Raises:
            PriceNotFound: If the tier has no rates at that time.
        """
        span = self._span  # read once: another thread may replace it
        if span is None or not span[0] <= timestamp < span[1]:
            since, until = self._bounds(timestamp)
            span = self._span = (since, until, self._rates(timestamp))
        return span[2]

    def _bounds(self, timestamp: float) -> tuple[float, float]:
        edges = sorted(self.edges(timestamp, timestamp))
        place = bisect.bisect_right(edges, timestamp)
        return (
            edges[place - 1] if place else float("-inf"),
            edges[place] if place < len(edges) else float("inf"),
        )

    def edges(self, since: float, until: float) -> set[float]:
        """Return when prices change: every start date, and the edges of daily windows from the day before to the day after."""
        instants: set[float] = set()
        for constraint in _constraints(self.entry.model):
            if (start := getattr(constraint, "start_date", None)) is not None:
                instants.add(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp())
                continue
            day = datetime.fromtimestamp(since, UTC).date() - _DAY
            while day <= datetime.fromtimestamp(until, UTC).date() + _DAY:
                for edge in (constraint.start_time, constraint.end_time):
                    moment = datetime.combine(day, edge)
                    instants.add((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
                day += _DAY
        return instants

    def _rates(self, timestamp: float) -> Rates:
        when = datetime.fromtimestamp(timestamp, UTC)
        base, variants = _active_price(self.entry.model, when), self._variants(when)
        key = (id(base), *map(id, variants))
        if key not in self._known:
            self._known[key] = _compile(self.entry, self.tier, base, variants)
        return self._known[key]

    def _variants(self, when: datetime) -> list[Any]:
        if self.tier == "standard":
            return []
        found = [
            variant
            for variant in (self.entry.model.price_variants or ()) if self.entry.home
            if variant.when in CONTEXTS[self.tier] and vars(variant.prices) and _is_active(variant.constraint, when)
        ]  # fmt: skip
        if not found:
            raise PriceNotFound(
                f"no price: the price book has no {self.tier} rates for {self.entry.model.id} of "
                f"{self.entry.provider} at {when:%Y-%m-%d}; set a [[prices]] entry",
                ("standard",),
            )
        return found


@lru_cache(maxsize=4096)
def sheet(provider: str, model: str | None, tier: str | None) -> Sheet:
    """Return the sheet of a model; compiled on first use.

    Raises:
        PriceNotFound: For an unknown provider, model or tier.
    """
    return Sheet(find(provider, model), parse_tier(tier))


def flat_rates(price_id: str, model: str, picos: Mapping[str, Picos], *, free: bool = False) -> Rates:
    """Return declared rates as a sheet that holds at any time and length; here a zero is a price.

    Args:
        price_id: What records say was used.
        model: The model's name on the lines.
        picos: Pico-dollars each, by kind of usage. A kind that is missing is billed as on any sheet, or unpriced.
        free: Whether nothing is charged for anything.
    """
    return Rates(price_id, model, (_band_of(0, picos, free=free, parents=_parents(model.lower())),), free)


def price_starts(entry: Entry) -> Iterator[date]:
    """Yield the days on which prices of a model begin."""
    for constraint in _constraints(entry.model):
        if (start := getattr(constraint, "start_date", None)) is not None:
            yield start


@lru_cache(maxsize=1)
def _units() -> dict[str, tuple[str, int, frozenset[tuple[str, str]]]]:
    """Return, by the name of a price, the kind it is for, how many units it buys, and what the kind is made of."""
    from genai_prices.data_units import unit_data

    return {
        unit.get("price_key", kind): (kind, unit["per"], frozenset(unit["dimensions"].items()))
        for kind, unit in unit_data.items()
    }


@lru_cache(maxsize=1)
def ancestors() -> dict[str, tuple[str, ...]]:
    """Return, for each kind, the totals that include it, nearest first; most specific kinds come first."""
    units = sorted(_units().values(), key=lambda unit: (-len(unit[2]), unit[0]))
    return {
        kind: tuple(other for other, _, wider in units if wider < dimensions) for kind, _, dimensions in units
    }


def _constraints(model: Any) -> Iterator[Any]:
    prices = model.prices if isinstance(model.prices, list) else ()
    for holder in (*prices, *(model.price_variants or ())):
        if holder.constraint is not None:
            yield holder.constraint


def _is_active(constraint: Any, when: datetime) -> bool:
    return constraint is None or constraint.active(when)


def _active_price(model: Any, when: datetime) -> Any:
    """Return the conditional price that holds: the last one listed whose condition is met, else the first."""
    if not isinstance(model.prices, list):
        return model
    active = (price for price in reversed(model.prices) if _is_active(price.constraint, when))
    return next(active, model.prices[0])


def _compile(entry: Entry, tier: str, base: Any, variants: Iterable[Any]) -> Rates:
    prices: dict[str, Any] = {}
    for source in (*variants, base):  # the first that names a price wins
        for name, value in vars(source.prices).items():
            if value is not None:
                prices.setdefault(name, value)
    firsts = sorted(
        {0, *(step.start + 1 for value in prices.values() for step in getattr(value, "tiers", ()))}
    )
    free = not prices and is_free(entry.provider, entry.model.id)
    parents = _parents(entry.model.id.lower())
    return Rates(
        _price_id(entry, tier, base),
        entry.model.id,
        tuple(_band(first, prices, free=free, parents=parents) for first in firsts),
        free,
    )


def _price_id(entry: Entry, tier: str, base: Any) -> str:
    name = f"{entry.provider}:{entry.model.id}" + ("" if tier == "standard" else f"/{tier}")
    constraint = getattr(base, "constraint", None)
    if constraint is None:
        return name
    start = getattr(constraint, "start_date", None)
    return (
        f"{name}@{start}" if start else f"{name}@{constraint.start_time:%H:%M}-{constraint.end_time:%H:%M}Z"
    )


def _parents(model_id: str) -> dict[str, str]:
    """Return what the kinds without a rate of their own are billed as."""
    named_for = {kind: "output_tokens" for kind, name in _NAMED_FOR.items() if name in model_id}
    return {**(_GEMINI_PARENTS if "gemini" in model_id else {}), **_PARENTS, **named_for, **ALIASES}


def _band(first: int, prices: dict[str, Any], *, free: bool, parents: dict[str, str]) -> Band:
    listed: dict[str, Picos] = {}
    for name, value in prices.items():
        kind, per, _ = _units()[name]
        dollars = getattr(value, "base", value)
        for step in getattr(value, "tiers", ()):
            if first > step.start:
                dollars = step.price
        picos = Fraction(dollars) * _PICOS_PER_USD / per
        if picos:  # a zero on the sheet is no price; the reviewed list alone says what is free
            listed[kind] = picos.numerator if picos.denominator == 1 else picos
    return _band_of(first, listed, free=free, parents=parents)


def _band_of(first: int, listed: Mapping[str, Picos], *, free: bool, parents: Mapping[str, str]) -> Band:
    rates = {kind: _rate(kind, listed, free=free, parents=parents) for kind in ancestors()}
    plain = tuple((rates[kind].kind, rates[kind].picos) if rates[kind].priced else None for kind in PLAIN)
    ordinary = not rates["output_reasoning_tokens"].own and "requests" not in listed
    return Band(first, rates, plain if ordinary else None, listed.get("requests", 0))


def _rate(kind: str, listed: Mapping[str, Picos], *, free: bool, parents: Mapping[str, str]) -> Rate:
    line = kind.removesuffix("_tokens")
    if free:
        return Rate(line, 0)
    if kind in listed:
        return Rate(line, listed[kind])
    if parent := parents.get(kind):
        above = _rate(parent, listed, free=free, parents=parents)
        return Rate(above.kind, above.picos, own=False, priced=above.priced)
    wider = (listed[other] for other in ancestors()[kind] if other in listed)
    return Rate(line, next(wider, 0), priced=False)
