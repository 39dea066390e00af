"""What a call came to: how it is settled, the rows of the journal, and their sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from maestro_core.money import to_usd
from maestro_core.quick import quick

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

    from ._call import Attribution

__all__ = ["Kind", "Record", "Settlement", "Sum"]

Kind = Literal["settled", "released", "presumed", "corrected", "refused", "granted", "repaired", "archived"]


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a call came to.

    Args:
        cost_nanos: The truth, or the best bound on it.
        usage: Tokens and fees by kind (the totals of `Usage`).
        estimated_nanos: How much of the cost is an estimate; 0 if the provider reported its usage.
        sheet_nanos: What the price book alone would say, or None if it has no price.
        price_id: Which price was used.
        price_book: Which price book, e.g. `"genai-prices 0.2.3"`.
        unpriced: Token kinds that have no rate; `("*",)` if the whole call has no price.
        model: The model that answered, if it differs from the one asked for.
        detail: Further facts as JSON values: `latency_ms`, `reason`, `fitted_output_tokens`, ...
    """

    cost_nanos: int
    usage: Mapping[str, int] = field(default_factory=dict)
    estimated_nanos: int = 0
    sheet_nanos: int | None = None
    price_id: str = ""
    price_book: str = ""
    unpriced: tuple[str, ...] = ()
    model: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of the journal. Amounts are what this row adds, so sums over rows are always right.

    `kind`: `settled` (usage known or estimated), `released` (provably not billed), `presumed` (its end was not seen:
    counted at the hold), `corrected` (the difference that a late truth makes), `refused` (never sent),
    `granted` (a person let a run spend more: `detail["add_nanos"]`), `repaired` (counters were put right),
    `archived` (old rows were moved to a file).
    `calls` is 1 on the row that first counts the call and 0 on the others. `at` is when it was reserved, which decides
    its window; `written_at` when the row was written.
    """

    seq: int
    kind: Kind
    key: str
    at: datetime
    written_at: datetime
    provider: str
    model: str
    attribution: Attribution
    cost_nanos: int = 0
    held_nanos: int = 0
    estimated_nanos: int = 0
    sheet_nanos: int | None = None
    calls: int = 0
    usage: Mapping[str, int] = field(default_factory=dict)
    price_id: str = ""
    price_book: str = ""
    unpriced: tuple[str, ...] = ()
    overrun: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> Decimal:
        """The amount in US dollars."""
        return to_usd(self.cost_nanos)

    @property
    def run(self) -> str | None:
        """The run that the call belongs to."""
        return self.attribution.dimensions.get("run")


@dataclass(frozen=True, slots=True)
class Sum:
    """One row of a report as the ledger adds it up; amounts in nano-dollars."""

    values: tuple[str, ...]
    cost_nanos: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_nanos: int = 0
    unpriced_calls: int = 0
