"""The values of a price entry: amounts, ratios, days, names and URLs, as a person writes them."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator

__all__ = ["BaseUrl", "Day", "Dollars", "Name", "Ratio", "dollars", "known_url", "normal_url"]

_FEWEST_DIGITS = 15  # more is a slip, or a float's rounding error
_USUAL_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=1024)
def normal_url(url: str) -> str:
    """Return a URL as it is compared: host in lower case, no trailing slash, no usual port; never with credentials.

    Raises:
        ValueError: For text that is no URL with a host.
    """
    parts = urlsplit(url.strip())
    if not parts.scheme or not parts.hostname:
        raise ValueError(f'{url!r} is no URL; write it as the model has it, for example "http://gpu:8000/v1"')
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = "" if parts.port in {None, _USUAL_PORTS.get(parts.scheme)} else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


@lru_cache(maxsize=1024)
def known_url(url: str) -> str:
    """Return a call's URL as entries have theirs; one that cannot be read is none."""
    if not url:
        return ""
    try:
        return normal_url(url)
    except ValueError:
        return ""


def dollars(value: object) -> Fraction:
    """Return an amount of US dollars, exact as written.

    Raises:
        ValueError: For a float, which is not what was written, and for anything that is no number of zero or more.
    """
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


def _base_url(value: object) -> str:
    return normal_url(_name(value))


Dollars = Annotated[Fraction, BeforeValidator(dollars)]
Ratio = Annotated[Fraction, BeforeValidator(_number)]
Day = Annotated[date, BeforeValidator(_day)]
Name = Annotated[str, BeforeValidator(_name)]
BaseUrl = Annotated[str, BeforeValidator(_base_url)]
