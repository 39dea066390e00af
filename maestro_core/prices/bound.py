"""The most that a call can cost, before it is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from maestro_core.errors import PriceNotFound
from maestro_core.money import PICOS_PER_NANO
from maestro_core.types import Cost, CostLine

from .pricing import timestamp
from .sheet import sheet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from .sheet import Picos, Rate, Rates, Sheet

__all__ = ["CacheWrites", "Modality", "worst_case", "worst_case_at"]

Modality = Literal["text", "audio", "image", "video"]
CacheWrites = Literal["none", "5m", "1h"]

# Providers bill at the price of their own clock, some when a call starts and some when it ends; no call lasts longer.
_HORIZON_S = 3600.0
_TEXT: frozenset[Modality] = frozenset({"text"})
_INPUTS = ("input_tokens", "cache_read_tokens")
_OUTPUTS = ("output_tokens", "output_reasoning_tokens", "output_citation_tokens")
_WRITES: dict[CacheWrites, tuple[str, ...]] = {
    "none": (),
    "5m": ("cache_write_tokens",),
    "1h": ("cache_write_tokens", "cache_write_1h_tokens"),
}
# Makers whose models write to the prompt cache only where the request marks what to keep. Others (OpenAI from GPT-5.6
# on) write unasked, and bill it.
_WRITE_WHEN_ASKED = ("claude", "nova")


def worst_case(
    provider: str,
    model: str | None,
    *,
    input_tokens: int,
    output_tokens: int,
    n: int = 1,
    attempts: int = 1,
    tier: str | None = None,
    at: datetime | None = None,
    fees: Mapping[str, int] | None = None,
    modalities: frozenset[Modality] = _TEXT,
    cache_writes: CacheWrites = "1h",
) -> Cost:
    """Return the most that a call can cost; rounded up.

    Every input token at the dearest rate that it can meet (plain, read from or written to the cache), in the dearest
    band of input length that so many tokens can reach; every output token at the dearer of answer and reasoning;
    at the dearest prices that hold in the hour after `at`.

    Args:
        provider: Provider id.
        model: The model, as the provider names it.
        input_tokens: At most so many tokens are sent.
        output_tokens: At most so many tokens are in one completion, reasoning included.
        n: How many completions are asked for; the input is billed once.
        attempts: How often it may be sent, and billed: 1 + the retries of the client library.
        tier: The service tier asked for. None is standard: a priority tier that is set for a whole OpenAI project has
            to be named. `"auto"` may be served as priority, so it is bounded by the dearer of both.
        at: When it is sent; now, if None.
        fees: Most uses of paid tools, e.g. `{"web_searches": 3}`.
        modalities: What the input and output consist of, if not text alone.
        cache_writes: What the request lets the provider keep: nothing, for 5 minutes, or for an hour (the dearest).
            It matters for Claude and Nova only; others write to their cache without being asked.

    Raises:
        PriceNotFound: If a price is missing: of the model, the tier, its input, its output or a fee.
        ValueError: For a negative count, or a naive `at`.
    """
    if input_tokens < 0 or output_tokens < 0 or n < 1:
        raise ValueError(
            f"{input_tokens=}, {output_tokens=}, {n=}: tokens are zero or more, n is one or more"
        )
    ceiling = _ceilings(provider, model, tier, modalities, cache_writes).at(timestamp(at))
    return _most(ceiling, input_tokens, output_tokens * n, fees, attempts)


def worst_case_at(
    rates: Rates,
    *,
    input_tokens: int,
    output_tokens: int,
    n: int = 1,
    attempts: int = 1,
    cache_writes: CacheWrites = "1h",
    fees: Mapping[str, int] | None = None,
) -> Cost:
    """As `worst_case`, of a text call at declared rates, which hold at any time.

    Raises:
        PriceNotFound: If they have none for input, output or a fee.
    """
    rules = _Ceilings((), _INPUTS, _WRITES[cache_writes], _OUTPUTS)
    return _most(rules.over((rates,), -1e18, 1e18), input_tokens, output_tokens * n, fees, attempts)


def _most(
    ceiling: _Ceiling, input_tokens: int, count: int, fees: Mapping[str, int] | None, attempts: int
) -> Cost:
    for step in ceiling.steps:  # the longest that so many tokens reach
        if input_tokens >= step.first:
            break
    if count and not step.output.priced:
        raise PriceNotFound(
            f"no price: {ceiling.price_id} has no output rate, so {count} output tokens have no bound"
        )
    total = input_tokens * step.input.picos + count * step.output.picos
    lines = [
        CostLine(step.input.kind, input_tokens * attempts, step.input.picos, ceiling.model),
        CostLine(step.output.kind, count * attempts, step.output.picos, ceiling.model),
    ]
    for kind, uses in ceiling.fees(fees) if fees or ceiling.request_picos else ():
        total += uses * kind.picos
        lines.append(CostLine(kind.kind, uses * attempts, kind.picos, ceiling.model))
    nanos = -(-total // PICOS_PER_NANO) * attempts  # each is billed, and rounded, by itself
    return Cost(nanos, tuple(lines), ceiling.price_id, ceiling.unpriced)


@dataclass(frozen=True, slots=True)
class _Step:
    """The dearest rates that a call with at least `first` input tokens can meet, at its own or any lesser length."""

    first: int
    input: Rate
    output: Rate


@dataclass(frozen=True, slots=True)
class _Ceiling:
    """Worst rates of the calls that start in [since, until); `steps` are longest first."""

    since: float
    until: float
    rates: tuple[Rates, ...]
    steps: tuple[_Step, ...]
    request_picos: Picos
    price_id: str
    model: str
    unpriced: tuple[str, ...]

    def fees(self, uses: Mapping[str, int] | None) -> list[tuple[Rate, int]]:
        """Return the dearest rate of each fee, with its uses."""
        found = []
        for kind, count in {"requests": 1, **(uses or {})}.items():
            known = [band.rates[kind] for rates in self.rates for band in rates.bands if kind in band.rates]
            if kind == "requests" and not self.request_picos:
                continue
            if not known or not all(rate.priced for rate in known):
                raise PriceNotFound(
                    f"no price: {self.price_id} has no fee for {kind!r}, so its use has no bound"
                )
            found.append((max(known, key=_picos), count))
        return found


@dataclass(slots=True)
class _Ceilings:
    """The worst rates of one way to call a model, kept until time changes them. Safe to share between threads."""

    sheets: tuple[Sheet, ...]
    inputs: tuple[str, ...]
    writes: tuple[str, ...]
    outputs: tuple[str, ...]
    _latest: _Ceiling | None = field(default=None)

    def at(self, start: float) -> _Ceiling:
        latest = self._latest  # read once: another thread may replace it
        if latest is None or not latest.since <= start < latest.until:
            latest = self._latest = self._ceiling(start)
        return latest

    def _ceiling(self, start: float) -> _Ceiling:
        end = start + _HORIZON_S
        edges = sorted({edge for sheet in self.sheets for edge in sheet.edges(start, end)})
        inside = [edge for edge in edges if start < edge <= end]
        # The same prices overlap the hour until one of its ends meets a change.
        since = [edge for edge in edges if edge <= start] + [edge - _HORIZON_S for edge in inside]
        until = [edge - _HORIZON_S for edge in edges if edge > end] + inside
        found = tuple(_held(self.sheets, (start, *inside)))
        return self.over(found, max(since, default=-1e18), min(until, default=1e18))

    def over(self, found: tuple[Rates, ...], since: float, until: float) -> _Ceiling:
        """Return the worst of these rates, which hold for calls that start in [since, until)."""
        firsts = sorted({band.first for rates in found for band in rates.bands}, reverse=True)
        return _Ceiling(
            since=since,
            until=until,
            rates=found,
            steps=tuple(self._step(first, found) for first in firsts),
            request_picos=max(band.request_picos for rates in found for band in rates.bands),
            price_id=found[0].price_id,
            model=found[0].model,
            unpriced=self._unpriced(found),
        )

    def _step(self, first: int, found: tuple[Rates, ...]) -> _Step:
        bands = [band for rates in found for band in rates.bands if band.first <= first]
        inputs = [band.rates[kind] for band in bands for kind in self.inputs]
        # A write that has no rate is billed as input, if at all; price() marks it as unpriced.
        inputs += [band.rates[kind] for band in bands for kind in self.writes if band.rates[kind].priced]
        if not all(band.rates["input_tokens"].priced for band in bands):
            raise PriceNotFound(
                f"no price: {found[0].price_id} has no rate for input tokens, so a call has no bound"
            )
        outputs = [band.rates[kind] for band in bands for kind in self.outputs]
        return _Step(first, max(inputs, key=_picos), max(outputs, key=_picos))

    def _unpriced(self, found: tuple[Rates, ...]) -> tuple[str, ...]:
        kinds = dict.fromkeys(self.inputs + self.outputs)
        bands = [band for rates in found for band in rates.bands]
        missing = [k for k in kinds if any(not band.rates[k].priced for band in bands)]
        return tuple(
            bands[0].rates[kind].kind for kind in missing if kind not in {"input_tokens", "output_tokens"}
        )


@lru_cache(maxsize=4096)
def _ceilings(
    provider: str,
    model: str | None,
    tier: str | None,
    modalities: frozenset[Modality],
    cache_writes: CacheWrites,
) -> _Ceilings:
    sheets = [sheet(provider, model, tier)]
    if tier is not None and tier.strip().lower() == "auto":
        sheets.append(sheet(provider, model, "priority"))
    asked = any(maker in sheets[0].entry.model.id.lower() for maker in _WRITE_WHEN_ASKED)
    others = sorted(modalities - {"text"})
    return _Ceilings(
        tuple(sheets),
        (*_INPUTS, *(k for m in others for k in (f"input_{m}_tokens", f"cache_{m}_read_tokens"))),
        _WRITES[cache_writes if asked else "1h"],
        (*_OUTPUTS, *(f"output_{m}_tokens" for m in others)),
    )


def _held(sheets: tuple[Sheet, ...], moments: Iterable[float]) -> Iterable[Rates]:
    """Yield the rates that hold at these moments; the first sheet must have some, a second one may."""
    for moment in moments:
        yield sheets[0].at(moment)
        for other in sheets[1:]:
            try:
                yield other.at(moment)
            except PriceNotFound:  # "auto" cannot be served at a tier that does not exist
                continue


def _picos(rate: Rate) -> Picos:
    return rate.picos
