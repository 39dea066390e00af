"""One table of the `prices` setting: what a user pays where it is not what the price book says."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from maestro_core.errors import PriceNotFound
from maestro_core.usage.kinds import KINDS

from .names import find, provider_id
from .sheet import Picos, Rates, flat_rates
from .tiers import parse_tier

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ANY_UNKNOWN", "PriceEntry", "explain"]

ANY_UNKNOWN = "*"

_PICOS_PER_USD = 10**12
_TOKENS = 1_000_000
_MOST_MODELS = 1_024
_FEWEST_DIGITS = 15  # more is a slip, or a float's rounding error
# Keys that come with a later version, and what to write until then.
_LATER = {"endpoint": "Endpoint(price=...)", "base_url": "provider and model"}

# What users call the kinds of usage.
_PER_MILLION = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cached": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "reasoning": "output_reasoning_tokens",
    "input_audio": "input_audio_tokens",
    "cached_audio": "cache_audio_read_tokens",
    "output_audio": "output_audio_tokens",
    "input_image": "input_image_tokens",
    "output_image": "output_image_tokens",
}
_PER_USE = {"per_request": "requests", "per_search": "web_searches"}


def _dollars(value: object) -> Fraction:
    if isinstance(value, float):
        raise ValueError(f'an amount of dollars may not be a float; write "{value}" in quotes')  # noqa: TRY004
    return _number(value)


def _number(value: object) -> Fraction:
    """Return the number that a decimal's text says: 0.15 is 15/100, which no float is."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f'{value!r} is not a number; write for example "0.15"')  # noqa: TRY004 - pydantic passes on only ValueErrors
    try:
        number = Decimal(str(value).strip().removeprefix("$"))
    except InvalidOperation:
        raise ValueError(f'{value!r} is not a number; write for example "0.15"') from None
    if not number.is_finite() or number < 0:
        raise ValueError(f"{value!r} is not a number of zero or more")
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and -exponent > _FEWEST_DIGITS:
        raise ValueError(f"{value!r} has more than {_FEWEST_DIGITS} decimal places")
    return Fraction(number)


def _day(value: object) -> object:
    if isinstance(value, datetime):
        raise ValueError(f"{value} is a time; write the day alone, which is counted in UTC")  # noqa: TRY004
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a name")
    return value.strip()


_Dollars = Annotated[Fraction, BeforeValidator(_dollars)]
_Ratio = Annotated[Fraction, BeforeValidator(_number)]
_Day = Annotated[date, BeforeValidator(_day)]
_Name = Annotated[str, BeforeValidator(_name)]


class PriceEntry(BaseModel):
    """What calls of a provider and model cost.

    Exactly one of: rates (dollars per million tokens, per request, per search), `per_hour`, `free = true`, `discount`
    and/or `multiplier` on the price book, or a paid `tool` with `per_call`.

    Attributes:
        provider: Provider id; every provider, if not given.
        model: The model asked for, or another name of the same model in the price book; every model of the provider,
            if not given. `"*"`: every model without a price, for which the entry says what to assume.
        tier: Only calls served at this tier; with a multiplier it multiplies the standard rates.
        region: Only calls that the provider says it processed there; likewise.
        from_: The first day (UTC) on which it holds; the key is `from`.
        until: The last day, included.
        input: Dollars per million tokens, as `output`, `cached`, `cache_write` (5 minutes), `cache_write_1h`,
            `reasoning`, `input_audio`, `cached_audio`, `output_audio`, `input_image`, `output_image`.
        per_request: Dollars for each request; `per_search` for each web search.
        per_hour: Dollars per hour of the machine: a call costs per_hour / 3600 x its seconds / concurrency.
        concurrency: How many calls the machine serves at a time, on average.
        timeout_s: The longest that a call lasts: what is held for it.
        free: Nothing is charged. It has to be said; rates that are all zero are an error.
        discount: Part taken off the price book's token rates: `0.15`.
        multiplier: Factor on them: `"1.1"`.
        fees: Whether discount and multiplier hold for fees, such as web searches, too.
        tool: A paid tool's name, and `per_call`, dollars for each use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    provider: _Name | None = None
    model: _Name | None = None
    tier: _Name | None = None
    region: _Name | None = None
    from_: _Day | None = Field(None, alias="from")
    until: _Day | None = None
    input: _Dollars | None = None
    output: _Dollars | None = None
    cached: _Dollars | None = None
    cache_write: _Dollars | None = None
    cache_write_1h: _Dollars | None = None
    reasoning: _Dollars | None = None
    input_audio: _Dollars | None = None
    cached_audio: _Dollars | None = None
    output_audio: _Dollars | None = None
    input_image: _Dollars | None = None
    output_image: _Dollars | None = None
    per_request: _Dollars | None = None
    per_search: _Dollars | None = None
    per_hour: _Dollars | None = None
    concurrency: int = Field(1, ge=1)
    timeout_s: int = Field(600, ge=1)
    free: bool = False
    discount: _Ratio | None = None
    multiplier: _Ratio | None = None
    fees: bool = False
    tool: _Name | None = None
    per_call: _Dollars | None = None

    _compiled: dict[str, Rates] = PrivateAttr(default_factory=dict)

    @property
    def kind(self) -> Literal["rates", "hourly", "factor", "tool"]:
        """What the entry says."""
        if self.tool is not None:
            return "tool"
        if self.discount is not None or self.multiplier is not None:
            return "factor"
        return "rates" if self.per_hour is None else "hourly"

    @property
    def assumes(self) -> bool:
        """Whether it is a fallback for models without a price."""
        return self.model == ANY_UNKNOWN

    @property
    def picos(self) -> dict[str, Picos]:
        """The declared rates: pico-dollars each, by kind of usage."""
        rates = {kind: _rate(getattr(self, name), _TOKENS) for name, kind in _PER_MILLION.items()}
        rates |= {kind: _rate(getattr(self, name), 1) for name, kind in _PER_USE.items()}
        return {kind: rate for kind, rate in rates.items() if rate is not None}

    @property
    def factor(self) -> Fraction:
        """What the price book's rates are multiplied by."""
        times = Fraction(1) if self.multiplier is None else self.multiplier
        return times * (1 - (self.discount or Fraction(0)))

    @property
    def label(self) -> str:
        """The entry's name in `price_id`."""
        if self.kind == "factor":
            said = {"multiplier": self.multiplier, "discount": self.discount}
            return " ".join(f"{name} {_text(value)}" for name, value in said.items() if value is not None)
        name = f"{'fallback' if self.assumes else 'user'}:{self.provider or '*'}:{self.model or '*'}"
        name += "".join(f"/{part}" for part in (self.tier, self.region) if part)
        return f"{name}@{self.from_}" if self.from_ else name

    def rates(self, model: str) -> Rates:
        """Return the declared rates as the sheet of a model; compiled once."""
        found = self._compiled.get(model)
        if found is None:
            if len(self._compiled) >= _MOST_MODELS:
                self._compiled.clear()
            picos = self.picos
            if not any(
                kind.endswith("_tokens") for kind in picos
            ):  # a fee for each request is the whole price
                picos |= {kind: 0 for kind in KINDS if kind.endswith("_tokens")}
            found = self._compiled[model] = flat_rates(self.label, model, picos, free=self.free)
        return found

    def names(self, provider: str, model: str) -> bool:
        """Return whether the entry is about a provider and model."""
        if self.provider is not None and _provider(self.provider) != _provider(provider):
            return False
        if self.model is None or self.assumes:
            return True
        return self.model.lower() == model.lower() or _is_same(provider, self.model, model)

    def holds(self, day: date) -> bool:
        """Return whether it holds on a day (UTC)."""
        return (self.from_ is None or self.from_ <= day) and (self.until is None or day <= self.until)

    @model_validator(mode="after")
    def _says_one_thing(self) -> PriceEntry:
        given = self.model_fields_set
        rates = bool(given & (_PER_MILLION.keys() | _PER_USE.keys()))
        if (self.tool is None) != (self.per_call is None):
            raise ValueError("a paid tool needs both tool and per_call")
        said = [
            name
            for name, is_said in (
                ("rates", rates),
                ("per_hour", self.per_hour is not None),
                ("free", self.free),
                ("discount or multiplier", self.kind == "factor"),
                ("tool", self.tool is not None),
            )
            if is_said
        ]
        if not said:
            raise ValueError("it says no price; give rates, per_hour, free, discount, multiplier or a tool")
        if len(said) > 1:
            raise ValueError(f"it says {' and '.join(said)}; one entry says one of them")
        if (rates and not any(self.picos.values())) or 0 in {self.per_hour, self.per_call}:
            raise ValueError("every rate is 0; if nothing is charged, say free = true instead")
        self._check_place()
        return self

    def _check_place(self) -> None:
        given = self.model_fields_set
        if self.kind == "factor":
            if self.assumes:
                raise ValueError('model = "*" is for models without a price, so there is nothing to discount')
            if not self.factor or (self.discount or 0) >= 1:
                raise ValueError("nothing would be charged; discount is a part below 1, or say free = true")
        elif "fees" in given:
            raise ValueError("fees goes with discount or multiplier")
        if self.kind != "hourly" and given & {"concurrency", "timeout_s"}:
            raise ValueError("concurrency and timeout_s go with per_hour")
        if self.tool is None and self.provider is None and self.model is None:
            raise ValueError("it names no provider or model")
        if self.from_ and self.until and self.until < self.from_:
            raise ValueError("until is before from")
        if self.tier is not None:
            try:
                parse_tier(self.tier)
            except PriceNotFound as error:
                raise ValueError(str(error).removeprefix("no price: ")) from None


def explain(error: ValidationError, value: Mapping[str, Any]) -> str:
    """Return the first thing that is wrong with an entry, in one line that names the key and the fix."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        if key in _LATER:
            return f"{key} is not available in this version; match by {_LATER[key]}"
        known = ", ".join(field.alias or name for name, field in PriceEntry.model_fields.items())
        return f"unknown key {key!r}; a price has {known}"
    reason = first["msg"].removeprefix("Value error, ")
    about = ":".join(str(value[name]) for name in ("provider", "model", "tool") if value.get(name))
    return f"{f'{key}: ' if key else ''}{reason}{f' ({about})' if about else ''}"


def _rate(dollars: Fraction | None, per: int) -> Picos | None:
    if dollars is None:
        return None
    picos = dollars * _PICOS_PER_USD / per
    return picos.numerator if picos.denominator == 1 else picos


def _text(ratio: Fraction) -> str:
    return f"{Decimal(ratio.numerator) / ratio.denominator:f}"


@lru_cache(maxsize=1024)
def _provider(name: str) -> str:
    try:
        return provider_id(name)
    except PriceNotFound:  # a machine of one's own, or a gateway
        return name.strip().lower()


@lru_cache(maxsize=4096)
def _is_same(provider: str, one: str, other: str) -> bool:
    """Return whether two names are one model in the price book, e.g. with and without a date."""
    try:
        return find(provider, one).model is find(provider, other).model
    except PriceNotFound:
        return False
