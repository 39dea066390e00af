"""What a call costs its user: the `prices` setting, what the provider says it billed, and the price book.

At settle the first of these that says something wins: what an endpoint was declared to cost; the user's own rates; the provider's own figure, where it is
trusted; a discount or multiplier on the price book; the price book; what is assumed for models without a price.
The same layers bound a call before it is sent, each at the dearest that may apply.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from maestro_core.errors import PriceNotFound
from maestro_core.money import NANOS_PER_USD, PICOS_PER_NANO
from maestro_core.types import Cost, CostLine

from .bound import worst_case, worst_case_at
from .caching import asked_writes
from .fields import known_url
from .occasions import Layer, Priced, Spent, Worst
from .pricing import plain_nanos, price, price_at, to_nanos
from .sheet import sheet
from .tiers import parse_tier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from decimal import Decimal

    from maestro_core.types import Call
    from maestro_core.usage import Usage

    from .entries import PriceEntry
    from .sheet import Rates

__all__ = ["Layer", "Layers", "Priced", "Spent", "Worst"]

# Who reports the money itself, and is right: OpenRouter bills its users by this number.
_TRUSTED = frozenset({"openrouter"})
# Clocks of machines and stores differ, and a provider bills by its own: a bound covers the days around.
_SKEW = timedelta(hours=1)
_FEES = frozenset({"requests", "web_searches", "social_searches", "storage_searches", "code_executions"})
_PICOS_PER_USD = NANOS_PER_USD * PICOS_PER_NANO
_MS_PER_HOUR = 3_600_000


class Layers:
    """The layers of one configuration. Safe to share between threads.

    Args:
        entries: The `prices` setting: of several that fit, the least broad one holds, of equals the first.
    """

    def __init__(self, entries: Sequence[PriceEntry] = ()) -> None:
        calls = sorted((e for e in entries if e.kind != "tool"), key=lambda entry: entry.breadth)
        self._rates = [e for e in calls if e.kind != "factor" and not e.assumes]
        self._factors = [e for e in calls if e.kind == "factor"]
        self._assumed = [e for e in calls if e.assumes]
        self._any = bool(calls)

    def price(self, spent: Spent) -> Priced:
        """Return what a call cost.

        Raises:
            PriceNotFound: If no layer has a price.
        """
        book, missing = _book(spent)
        sheet_nanos = book.nanos if book else None
        if book and not self._any and spent.usage.provider_cost is None and spent.declared is None:
            return Priced(book, "book", sheet_nanos)
        if spent.declared is not None:
            return self._by_rates(spent.declared, spent, "endpoint", sheet_nanos)
        day = spent.at.astimezone(UTC).date()
        if entry := self._find(self._rates, spent, day):
            return self._by_rates(entry, spent, "user", sheet_nanos)
        if reported := _reported(spent, book):
            return Priced(reported, "provider", sheet_nanos)
        if entry := self._find(self._factors, spent, day):
            try:
                return Priced(_contract(entry, _standard(entry, spent)), "contract", sheet_nanos)
            except PriceNotFound as error:
                missing = error
        elif book:
            return Priced(book, "book", sheet_nanos)
        if entry := self._find(self._assumed, spent, day):
            return self._by_rates(entry, spent, "assumed", sheet_nanos)
        raise _with_url(missing or _unknown(spent), spent.base_url)

    def plain_nanos(self, call: Call, plain: Sequence[int], at: datetime) -> int | None:
        """Return what an ordinary text call costs where the price book alone decides; None where `price` has to be asked.

        Args:
            call: The call.
            plain: What it used, as `Usage.plain`.
            at: When (aware).

        Raises:
            PriceNotFound: If the book has no price.
        """
        if self._any or call.price is not None:
            return None
        return plain_nanos(plain, sheet(call.provider, call.model, call.tier).at(at.timestamp()))

    def plain(self, call: Call, usage: Usage, at: datetime) -> Cost | None:
        """Return what an ordinary text call cost where the price book alone decides, without its lines; else None.

        What nearly every call is settled by: `price` says the same, and why.

        Args:
            call: The call.
            usage: What was reported.
            at: When (aware).
        """
        plain = usage.plain
        if plain is None or self._any or call.price is not None:
            return None
        if usage.provider_cost is not None or usage.region is not None:
            return None
        tier = call.tier if usage.tier is None else usage.tier
        try:
            rates = sheet(call.provider, usage.model or call.model, tier).at(at.timestamp())
        except PriceNotFound:
            return None
        nanos = plain_nanos(plain, rates)
        return None if nanos is None else Cost(nanos, (), rates.price_id)

    def bound_of(
        self, call: Call, input_tokens: int, output_tokens: int, fees: Mapping[str, int] | None
    ) -> Cost:
        """Return the most that a call can cost, all its attempts together; rounded up.

        Args:
            call: The call.
            input_tokens: The most that is sent.
            output_tokens: The most that one completion answers.
            fees: The most uses of what the provider runs itself.

        Raises:
            PriceNotFound: If one of the ways in which it may be priced has no bound.
        """
        if self._any or call.price is not None:
            return self.bound(
                Worst(
                    provider=call.provider, model=call.model, input_tokens=input_tokens, output_tokens=output_tokens,
                    at=call.at or datetime.now(UTC), n=call.n, attempts=call.attempts, tier=call.tier,
                    cache_writes=asked_writes(call), fees=fees, endpoint=call.endpoint,
                    base_url=known_url(call.base_url), declared=call.price,
                )
            )  # fmt: skip
        try:
            return worst_case(
                call.provider, call.model, input_tokens=input_tokens, output_tokens=output_tokens, n=call.n,
                attempts=call.attempts, tier=call.tier, at=call.at, cache_writes=asked_writes(call), fees=fees,
            )  # fmt: skip
        except PriceNotFound as missing:
            raise _with_url(missing, known_url(call.base_url)) from None

    def bound(self, worst: Worst) -> Cost:
        """As `bound_of`, of what is known apart from a call.

        Of entries that depend on the day, or on the region that will serve the call, the dearest counts.

        Raises:
            PriceNotFound: If one of the ways in which it may be priced has no bound.
        """
        if worst.declared is not None:
            return _named(_bound_of(worst.declared, worst), worst)
        cost = self._bound(worst)
        if self._assumed and len(_reachable(worst.tier)) > 1:
            # The book need not know the tier that "auto" turns out to be; then the assumption is what counts.
            with suppress(PriceNotFound):
                return max(cost, self._bound(replace(worst, tier="priority")), key=lambda each: each.nanos)
        return cost

    def _bound(self, worst: Worst) -> Cost:
        at = worst.at.astimezone(UTC)
        days = sorted({(at - _SKEW).date(), (at + _SKEW).date()}) if self._any else []
        found, missing = _bounds([way for day in days for way in self._ways(worst, day)] or [None], worst)
        if missing:
            assumed, _ = _bounds(
                [e for day in days for e in _candidates(self._assumed, worst, day)[0]], worst
            )
            if not assumed:
                raise _with_url(missing, worst.base_url)
            found += assumed
        return max(found, key=lambda cost: cost.nanos)

    def _ways(self, worst: Worst, day: date) -> list[PriceEntry | None]:
        """Return every entry that may price the call on a day; None is the price book."""
        ways: list[PriceEntry | None] = []
        rates, certain = _candidates(self._rates, worst, day)
        ways += rates
        if certain:
            return ways
        if _canonical(worst.provider) in _TRUSTED:
            ways.append(None)  # what it reports knows nothing of our discounts
        factors, certain = _candidates(self._factors, worst, day)
        ways += factors
        return ways if certain else [*ways, None]

    def _find(self, entries: Sequence[PriceEntry], spent: Spent, day: date) -> PriceEntry | None:
        for model in dict.fromkeys((spent.model, spent.usage.model or spent.model)):
            for entry in entries:
                if entry.holds(day) and _fits(entry, spent) and _names(entry, spent, model):
                    return entry
        return None

    def _by_rates(self, entry: PriceEntry, spent: Spent, layer: Layer, sheet_nanos: int | None) -> Priced:
        if entry.kind == "hourly":
            known = spent.latency_ms is not None
            cost = _by_time(entry, spent.latency_ms if known else entry.timeout_s * 1000)  # type: ignore[arg-type]
            return Priced(_named(cost, spent), layer, sheet_nanos, estimated=layer == "assumed" or not known)

        def rates_of(name: str) -> Rates:
            if spent.declared is not None:
                return spent.declared.rates(name)
            other = self._find(self._rates, replace(spent, model=name), spent.at.astimezone(UTC).date())
            if other is not None and other.kind == "rates":
                return other.rates(name)
            return sheet(spent.provider, name, spent.served_tier).at(spent.at.timestamp())

        cost = price_at(spent.usage, entry.rates(spent.model), rates_of)
        return Priced(_named(cost, spent), layer, sheet_nanos, estimated=layer == "assumed")


def _book(spent: Spent) -> tuple[Cost | None, PriceNotFound | None]:
    missing = None
    # The model that answered decides the bill; the one asked for is the next best name for it.
    for model in dict.fromkeys((spent.usage.model or spent.model, spent.model)):
        try:
            found = price(spent.provider, model, spent.usage, at=spent.at, tier=spent.served_tier)
        except PriceNotFound as error:
            missing = error
        else:
            return found, None
    return None, missing


def _names(entry: PriceEntry, asked: Spent | Worst, model: str) -> bool:
    return entry.names(asked.provider, model, endpoint=asked.endpoint, base_url=asked.base_url)


def _named(cost: Cost, asked: Spent | Worst) -> Cost:
    """Return a cost by its endpoint's name, where it is what that was declared to cost."""
    if asked.declared is None:
        return cost
    return replace(cost, price_id=f"endpoint:{asked.endpoint or asked.model}")


def _unknown(spent: Spent) -> PriceNotFound:
    return PriceNotFound(f"no price for {spent.model!r} of {spent.provider}")


def _with_url(missing: PriceNotFound, base_url: str) -> PriceNotFound:
    """Return the error with the fix for models of one's own, which stand behind a URL of one's own."""
    if not base_url:
        return missing
    fix = f'; it goes to {base_url}: say what that costs in a [[prices]] entry with base_url = "{base_url}"'
    return PriceNotFound(f"{missing}{fix}", missing.closest)


def _fits(entry: PriceEntry, spent: Spent) -> bool:
    region = spent.usage.region
    if entry.region is not None and (region is None or entry.region.lower() != region.strip().lower()):
        return False
    return entry.tier is None or _tier(spent.served_tier) == parse_tier(entry.tier)


def _candidates(entries: Sequence[PriceEntry], worst: Worst, day: date) -> tuple[list[PriceEntry], bool]:
    """Return the entries that may come to price a call, and whether one of them will.

    Which region serves a call is not known before, nor the tier if "auto" is asked for.
    """
    tiers, found = _reachable(worst.tier), []
    for entry in entries:
        tier = None if entry.tier is None else parse_tier(entry.tier)
        if (tier is None or tier in tiers) and entry.holds(day) and _names(entry, worst, worst.model):
            found.append(entry)
            if entry.region is None and (tier is None or len(tiers) == 1):
                return found, True
    return found, False


def _bounds(ways: Sequence[PriceEntry | None], worst: Worst) -> tuple[list[Cost], PriceNotFound | None]:
    """Return the bound of each way, and why the first one without a bound has none."""
    found, missing = [], None
    for way in {id(way): way for way in ways}.values():
        try:
            found.append(_bound_of(way, worst))
        except PriceNotFound as error:
            missing = missing or error
    return found, missing


def _tier(name: str | None) -> str | None:
    try:
        return parse_tier(name)
    except PriceNotFound:
        return None


def _reachable(tier: str | None) -> set[str | None]:
    auto = tier is not None and tier.strip().lower() == "auto"
    return {_tier(tier), "priority"} if auto else {_tier(tier)}


def _reported(spent: Spent, book: Cost | None) -> Cost | None:
    """Return what the provider says it billed, if that can be relied on."""
    dollars: Decimal | None = spent.usage.provider_cost
    if dollars is None or _canonical(spent.provider) not in _TRUSTED:
        return None
    if not dollars and (book is None or book.nanos or book.unpriced):
        return None  # with a key of one's own, a zero says nothing about what the upstream provider bills
    picos = Fraction(dollars) * _PICOS_PER_USD
    return Cost(to_nanos(picos), (CostLine("reported", 1, _plain(picos), spent.model),), "provider")


def _standard(entry: PriceEntry, spent: Spent) -> Cost:
    """Return the price that a factor multiplies: at the standard tier and region, where the entry is for another."""
    tier = "standard" if entry.tier is not None else spent.served_tier
    # Without a region of its own an entry cannot know what an unknown region adds.
    region = "global" if entry.region is not None else spent.usage.region
    missing: PriceNotFound | None = None
    for model in dict.fromkeys((spent.usage.model or spent.model, spent.model)):
        try:
            return price(spent.provider, model, spent.usage, at=spent.at, tier=tier, region=region)
        except PriceNotFound as error:
            missing = error
    raise missing or _unknown(spent)


def _contract(entry: PriceEntry, cost: Cost, *, up: bool = False) -> Cost:
    lines = tuple(
        line
        if line.kind in _FEES and not entry.fees
        else replace(line, picos_per_unit=_plain(line.picos_per_unit * entry.factor))
        for line in cost.lines
    )
    total = sum(line.picos for line in lines)
    nanos = int(-(-total // PICOS_PER_NANO)) if up else to_nanos(total)
    return Cost(nanos, lines, f"{entry.label} of {cost.price_id}", cost.unpriced)


def _by_time(entry: PriceEntry, latency_ms: int) -> Cost:
    """Return what a call costs on a machine paid by the hour: its time, shared with the calls beside it."""
    each = _plain(Fraction(entry.per_hour or 0) * _PICOS_PER_USD / _MS_PER_HOUR / entry.concurrency)
    line = CostLine("milliseconds", latency_ms, each, entry.model or "")
    return Cost(to_nanos(line.picos), (line,), entry.label)


def _bound_of(entry: PriceEntry | None, worst: Worst) -> Cost:
    if entry is None or entry.kind == "factor":
        tier = "standard" if entry is not None and entry.tier is not None else worst.tier
        most = worst_case(
            worst.provider, worst.model, input_tokens=worst.input_tokens, output_tokens=worst.output_tokens,
            n=worst.n, attempts=worst.attempts, tier=tier, at=worst.at, cache_writes=worst.cache_writes, fees=worst.fees,
        )  # fmt: skip
        return most if entry is None else _contract(entry, most, up=True)
    if entry.kind == "hourly":
        cost = _by_time(entry, entry.timeout_s * 1000 * worst.attempts)
        return replace(cost, nanos=int(-(-cost.lines[0].picos // PICOS_PER_NANO)))
    return worst_case_at(
        entry.rates(worst.model), input_tokens=worst.input_tokens, output_tokens=worst.output_tokens,
        n=worst.n, attempts=worst.attempts, cache_writes=worst.cache_writes, fees=worst.fees,
    )  # fmt: skip


def _canonical(provider: str) -> str:
    return provider.strip().lower()


def _plain(picos: int | Fraction) -> int | Fraction:
    return picos.numerator if isinstance(picos, Fraction) and picos.denominator == 1 else picos
