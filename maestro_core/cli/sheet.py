"""What a call would cost, line by line: `price`."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maestro_core.errors import PriceNotFound
from maestro_core.money import format_usd, to_usd

from ._shared import AsJson, echo_json

if TYPE_CHECKING:
    from maestro_core.types import Cost, CostLine

__all__ = ["price"]

# Few enough to stay below every price that rises with the length of the input.
_SAMPLE = 1_000


def price(
    model: Annotated[str, typer.Argument(metavar="PROVIDER:MODEL", help="As in openai:gpt-5-mini.")],
    *,
    input_tokens: Annotated[
        int, typer.Option("--input", min=0, metavar="N", help="Input tokens, the cached ones included.")
    ] = 0,
    cached: Annotated[
        int, typer.Option("--cached", min=0, metavar="N", help="Input tokens that are read from a cache.")
    ] = 0,
    output_tokens: Annotated[
        int, typer.Option("--output", min=0, metavar="N", help="Output tokens, reasoning included.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Explain what a call costs by the price book, line by line.

    Without any count it prices 1,000 tokens in and 1,000 out, which shows the rates.
    """
    from maestro_core.prices import price as sheet_price
    from maestro_core.usage import Usage

    provider, colon, name = model.partition(":")
    if not (provider and colon and name):
        raise typer.BadParameter(
            f"{model!r} is not PROVIDER:MODEL; write for example openai:gpt-5-mini",
            param_hint="PROVIDER:MODEL",
        )
    if cached > input_tokens:
        raise typer.BadParameter(
            "cached tokens are a part of --input, which is smaller", param_hint="--cached"
        )
    if not (input_tokens or output_tokens):
        input_tokens = output_tokens = _SAMPLE
    usage = Usage(input_tokens=input_tokens, cache_read_tokens=cached, output_tokens=output_tokens)
    try:
        cost = sheet_price(provider, name, usage)
    except PriceNotFound as error:
        raise _with_closest(error) from None
    if as_json:
        echo_json(_cost_json(cost))
    else:
        _print_cost(cost)


def _with_closest(error: PriceNotFound) -> PriceNotFound:
    message = str(error)
    unsaid = [name for name in error.closest if name not in message]
    return PriceNotFound(f"{message}; closest are {', '.join(unsaid)}" if unsaid else message, error.closest)


def _per_million(line: CostLine) -> int:
    """Return a line's rate in nano-dollars per million, rounded half-even."""
    return round(Fraction(line.picos_per_unit) * 1_000)


def _cost_json(cost: Cost) -> dict[str, Any]:
    from maestro_core.prices import price_book

    lines = [
        {
            "kind": line.kind,
            "count": line.count,
            "usd_per_million": f"{to_usd(_per_million(line)):f}",
            "cost": f"{line.usd:f}",
        }
        for line in cost.lines
    ]
    return {
        "total": f"{cost.usd:f}",
        "lines": lines,
        "unpriced": list(cost.unpriced),
        "price_id": cost.price_id,
        "price_book": price_book(),
    }


def _print_cost(cost: Cost) -> None:
    from maestro_core.prices import price_book
    from maestro_core.terminal import print_table

    rows = [
        [line.kind, f"{line.count:,}", format_usd(_per_million(line)), f"${line.usd:f}"]
        for line in cost.lines
    ]
    header = ["kind", "count", "per million", "dollars"]
    print_table(header, rows, text_columns=1, total=["total", "", "", f"${cost.usd:f}"])
    if cost.unpriced:
        typer.echo(f"without a price, so the total is too low: {', '.join(cost.unpriced)}")
    typer.echo(f"price {cost.price_id} of {price_book()}")
