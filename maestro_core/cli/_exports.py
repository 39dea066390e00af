"""Reading what providers export: usage or cost by day and model, as CSV.

A format is known by the columns that it must have; a file may have others beside them, in any order.
"""

from __future__ import annotations

import csv
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Literal

from maestro_core.money import to_nanos

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["FORMATS", "Export", "Line", "open_export"]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of export.

    Args:
        name: What people call it.
        day: The column with the day, a time with a zone, or seconds since 1970.
        model: The column with the model.
        cost: The column with US dollars, or "".
        inputs: Columns whose sum is the input tokens, cached ones included.
        outputs: Columns whose sum is the output tokens.
        currency: The column with the currency, or "".
        optional: Columns that may be missing.
    """

    name: str
    day: str
    model: str
    cost: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    currency: str = ""
    optional: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read."""
        named = (self.day, self.model, self.cost, self.currency)
        return (*(name for name in named if name), *self.inputs, *self.outputs)

    @property
    def needed(self) -> frozenset[str]:
        """The columns by which it is known."""
        return frozenset(self.columns) - self.optional


FORMATS = (
    Format(
        "Anthropic usage", "usage_date_utc", "model_version",
        inputs=("usage_input_tokens_no_cache", "usage_input_tokens_cache_write_5m",
                "usage_input_tokens_cache_write_1h", "usage_input_tokens_cache_read"),
        outputs=("usage_output_tokens",),
    ),
    Format("Anthropic cost", "usage_date_utc", "model", "cost_usd"),
    Format("OpenAI cost", "start_time", "line_item", "amount_value", currency="amount_currency"),
    Format("OpenAI usage", "start_time", "model", inputs=("input_tokens",), outputs=("output_tokens",)),
    Format(
        "generic", "date", "model", "cost_usd", inputs=("input_tokens",), outputs=("output_tokens",),
        optional=frozenset({"input_tokens", "output_tokens"}),
    ),
)  # fmt: skip

_SECONDS = re.compile(r"\d{9,11}")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an export. `amount` is nano-dollars, or tokens."""

    day: date
    model: str
    amount: int


@dataclass(frozen=True, slots=True)
class Export:
    """An open export: what it says (`"cost"` wins over `"tokens"`), and its lines, read one by one."""

    unit: Literal["cost", "tokens"]
    format: str
    lines: Iterator[Line]


@contextmanager
def open_export(path: Path) -> Iterator[Export]:
    """Open a file by its header.

    Raises:
        ValueError: If the header is of no known format, or, while reading, for a line that cannot be read; one line
            that says where.
        OSError: If the file cannot be read.
    """
    # Excel writes a byte order mark in front.
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        header = {name.strip() for name in rows.fieldnames or ()}
        found = next((each for each in FORMATS if each.needed <= header), None)
        if found is None:
            known = "; ".join(f"{each.name}: {','.join(each.columns)}" for each in FORMATS)
            raise ValueError(f"{path} has no header that is known; {known}")
        yield Export("cost" if found.cost else "tokens", found.name, _lines(path, rows, found))


def _lines(path: Path, rows: csv.DictReader[str], form: Format) -> Iterator[Line]:
    try:
        for row in rows:
            cells = {name.strip(): cell for name, cell in row.items() if name and cell and cell.strip()}
            if cells:
                yield _line(cells, form)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} line {rows.line_num}: {error}") from None


def _line(cells: Mapping[str, str], form: Format) -> Line:
    return Line(_day(cells.get(form.day, "")), _model(cells.get(form.model, ""), form), _amount(cells, form))


def _day(text: str) -> date:
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return datetime.fromtimestamp(int(text), UTC).date()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no day, as 2026-11-23") from None
    return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date()


def _model(text: str, form: Format) -> str:
    if form.name == "OpenAI cost":  # "gpt-5-mini-2025-08-07, input"
        text = text.partition(",")[0]
    return text.strip()


def _amount(cells: Mapping[str, str], form: Format) -> int:
    if not form.cost:
        return sum(_tokens(cells.get(name, "")) for name in (*form.inputs, *form.outputs))
    currency = cells.get(form.currency, "usd").strip().lower() if form.currency else "usd"
    if currency not in {"", "usd"}:
        raise ValueError(f"the amount is in {currency!r}; only US dollars can be compared")
    text = cells.get(form.cost, "").strip().removeprefix("$").replace(",", "") or "0"
    try:
        dollars = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no amount of dollars") from None
    if not dollars.is_finite():
        raise ValueError(f"{text!r} is no amount of dollars")
    return to_nanos(dollars)


def _tokens(text: str) -> int:
    digits = text.strip().replace(",", "").removesuffix(".0") or "0"
    if not digits.isdecimal():
        raise ValueError(f"{text!r} is no number of tokens")
    return int(digits)
