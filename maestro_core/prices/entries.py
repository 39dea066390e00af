"""One table of the `prices` setting: what a user pays where it is not what the price book says."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from maestro_core.errors import PriceNotFound, SettingsError
from maestro_core.usage.kinds import KINDS

from .fields import BaseUrl, Day, Dollars, Name, Ratio, dollars
from .names import find, provider_id
from .sheet import Picos, Rates, flat_rates
from .tiers import parse_tier

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

__all__ = ["ANY_UNKNOWN", "PriceEntry", "endpoint_price", "explain"]

ANY_UNKNOWN = "*"

_PICOS_PER_USD = 10**12
_TOKENS = 1_000_000
_MOST_MODELS = 1_024

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
_ENDPOINT_KEYS = (*_PER_MILLION, *_PER_USE, "per_hour", "concurrency", "timeout_s")


class PriceEntry(BaseModel):
    """What calls of a provider and model cost.

    Exactly one of: rates (dollars per million tokens, per request, per search), `per_hour`, `free = true`, `discount`
    and/or `multiplier` on the price book, or a paid `tool` with `per_call`.

    Attributes:
        provider: Provider id; every provider, if not given.
        model: The model asked for, or another name of the same model in the price book; every model of the provider,
            if not given. `"*"`: every model without a price, for which the entry says what to assume.
        endpoint: Only calls that are routed to the endpoint of this name.
        base_url: Only calls that go to this URL, as the model's constructor has it.
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

    provider: Name | None = None
    model: Name | None = None
    endpoint: Name | None = None
    base_url: BaseUrl | None = None
    tier: Name | None = None
    region: Name | None = None
    from_: Day | None = Field(None, alias="from")
    until: Day | None = None
    input: Dollars | None = None
    output: Dollars | None = None
    cached: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_1h: Dollars | None = None
    reasoning: Dollars | None = None
    input_audio: Dollars | None = None
    cached_audio: Dollars | None = None
    output_audio: Dollars | None = None
    input_image: Dollars | None = None
    output_image: Dollars | None = None
    per_request: Dollars | None = None
    per_search: Dollars | None = None
    per_hour: Dollars | None = None
    concurrency: int = Field(1, ge=1)
    timeout_s: int = Field(600, ge=1)
    free: bool = False
    discount: Ratio | None = None
    multiplier: Ratio | None = None
    fees: bool = False
    tool: Name | None = None
    per_call: Dollars | None = None

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
        name += "".join(f"/{part}" for part in (self.tier, self.region, self.endpoint, self.base_url) if part)
        return f"{name}@{self.from_}" if self.from_ else name

    def __str__(self) -> str:
        """Return what was written, for people."""
        fields = type(self).model_fields
        said = {
            fields[name].alias or name: getattr(self, name)
            for name in fields
            if name in self.model_fields_set
        }
        return ", ".join(
            f"{key}={_text(each) if isinstance(each, Fraction) else each}" for key, each in said.items()
        )

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

    @property
    def breadth(self) -> tuple[bool, bool]:
        """Of several entries that fit, the least broad holds: of an endpoint, then of a URL, then the others."""
        return self.endpoint is None, self.base_url is None

    def names(self, provider: str, model: str, *, endpoint: str = "", base_url: str = "") -> bool:
        """Return whether the entry is about a model at a provider, endpoint and (normal) URL."""
        if self.endpoint not in {None, endpoint} or self.base_url not in {None, base_url}:
            return False
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
        places = {"provider", "model", "endpoint", "base_url"}
        if self.tool is None and not given & places:
            raise ValueError("it names no provider or model, endpoint or base_url")
        if self.from_ and self.until and self.until < self.from_:
            raise ValueError("until is before from")
        if self.tier is not None:
            try:
                parse_tier(self.tier)
            except PriceNotFound as error:
                raise ValueError(str(error).removeprefix("no price: ")) from None


def endpoint_price(price: Mapping[str, Any]) -> PriceEntry:
    """Return what a user declares an endpoint to cost, as `Call.price` takes it.

    Args:
        price: As an entry of the `prices` setting without its selectors: `{"input": "0.15", "output": "0.60"}` in
            dollars per million tokens, further kinds beside them; or `per_request`, or `per_hour`. An endpoint is free
            if it says `"0"` for both input and output.

    Raises:
        SettingsError: If it is malformed; the message names the fix.
    """
    if not isinstance(price, Mapping):
        raise SettingsError(
            f'endpoint price: {price!r} is no table; write {{"input": "0.15", "output": "0.60"}}'
        )
    price = {name: value for name, value in price.items() if value is not None}
    unknown = price.keys() - _ENDPOINT_KEYS
    if unknown:
        known = ", ".join(_ENDPOINT_KEYS)
        raise SettingsError(f"endpoint price: unknown key {min(unknown)!r}; it has {known}")
    missing = {"input", "output"} - price.keys()
    if missing and (len(missing) == 1 or not price.keys() & {*_PER_USE, "per_hour"}):
        raise SettingsError(
            f'endpoint price: {dict(price)} has no {min(missing)!r}; write {{"input": "0.15", "output": "0.60"}}, '
            'dollars per million tokens, with "0" for both if nothing is charged'
        )
    entry = {"endpoint": ANY_UNKNOWN, **price}
    try:
        if not missing and _is_zero(price.values()):
            entry = {"endpoint": ANY_UNKNOWN, "free": True}
        return PriceEntry.model_validate(entry)
    except ValidationError as error:
        raise SettingsError(f"endpoint price: {explain(error, price)}") from None


def _is_zero(amounts: Iterable[Any]) -> bool:
    """Return whether every amount is zero; a malformed one is not, and the validation will say so."""
    try:
        return not any(map(dollars, amounts))
    except ValueError:
        return False


def explain(error: ValidationError, value: Mapping[str, Any]) -> str:
    """Return the first thing that is wrong with an entry, in one line that names the key and the fix."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(field.alias or name for name, field in PriceEntry.model_fields.items())
        return f"unknown key {key!r}; a price has {known}"
    reason = first["msg"].removeprefix("Value error, ")
    about = ":".join(
        str(value[name]) for name in ("provider", "model", "endpoint", "base_url", "tool") if value.get(name)
    )
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
