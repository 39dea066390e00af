"""Exact money: integers of nano-dollars inside, `Decimal` US dollars at the edge, never a float."""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, InvalidOperation
from fractions import Fraction

__all__ = ["NANOS_PER_USD", "PICOS_PER_NANO", "Dollars", "format_usd", "parse_usd", "to_nanos", "to_usd"]

NANOS_PER_USD = 1_000_000_000
PICOS_PER_NANO = 1_000

# What a user may write where dollars are asked for. A float is refused: 0.1 is not a number of cents.
Dollars = str | Decimal | int

# 10**18 nano-dollars (a billion dollars) keeps every counter far from int64's limit, however many are added.
_MOST_USD = 10**9

# Arithmetic on Decimals rounds to the application's own decimal context, which may be narrower than money is.
_EXACT = Context(prec=40, traps=[Inexact])


def parse_usd(value: Dollars, *, name: str = "amount") -> int:
    """Return US dollars as nano-dollars.

    Args:
        value: Dollars as `"0.50"`, `Decimal("0.50")` or a whole `int`.
        name: What to call the value in an error.

    Raises:
        TypeError: For a float (or another type): floats cannot hold cents exactly.
        ValueError: For text that is no number, a negative, infinite or too precise amount.
    """
    if isinstance(value, bool) or not isinstance(value, str | Decimal | int):
        hint = f'; write "{value}" in quotes' if isinstance(value, float) else ""
        raise TypeError(
            f"{name} must be a str, Decimal or int of US dollars, not {type(value).__name__}{hint}"
        )
    try:
        amount = Decimal(value.strip().removeprefix("$")) if isinstance(value, str) else Decimal(value)
    except InvalidOperation:
        raise ValueError(
            f'{name} {value!r} is not an amount of US dollars; write for example "20" or "0.50"'
        ) from None
    if not amount.is_finite():
        raise ValueError(f"{name} {value!r} is not a finite amount of US dollars")
    if amount < 0:
        raise ValueError(f"{name} {value!r} is negative; amounts of US dollars are zero or more")
    if amount > _MOST_USD:
        raise ValueError(f"{name} {value!r} is more than Maestro counts (a billion US dollars)")
    nanos = _exact_nanos(amount)
    if nanos is None:
        raise ValueError(f"{name} {value!r} has more than nine decimal places of a US dollar")
    return nanos


def _exact_nanos(amount: Decimal) -> int | None:
    try:
        nanos = _EXACT.multiply(amount, Decimal(NANOS_PER_USD))
    except Inexact:
        return None
    return int(nanos) if nanos == nanos.to_integral_value() else None


def to_nanos(usd: Decimal) -> int:
    """Return `Decimal` US dollars of any sign, as `to_usd` made them, as nano-dollars."""
    return round(Fraction(usd) * NANOS_PER_USD)


def to_usd(nanos: int) -> Decimal:
    """Return nano-dollars as exact `Decimal` US dollars, without trailing zeros."""
    whole, rest = divmod(abs(nanos), NANOS_PER_USD)
    sign = "-" if nanos < 0 else ""
    return Decimal(f"{sign}{whole}.{rest:09}".rstrip("0").rstrip("."))


def format_usd(nanos: int) -> str:
    """Return nano-dollars as people read them: `$12.34`; below a dollar, four significant digits (`$0.0421`)."""
    sign = "-" if nanos < 0 else ""
    usd = to_usd(abs(nanos))
    if usd >= 1 or nanos == 0:
        return f"{sign}${usd:,.2f}"
    digits = min(9, 3 - usd.adjusted())  # adjusted() is the exponent of the first significant digit
    text = f"{usd:.{digits}f}"
    whole, _, fraction = text.partition(".")
    return f"{sign}${whole}.{fraction.rstrip('0').ljust(2, '0')}"
