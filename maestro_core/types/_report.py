"""What `maestro.status`, `maestro.report` and `maestro.tree` return."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maestro_core.money import format_usd, to_nanos, to_usd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

    from ._caps import Budget, Cap

__all__ = ["CapStatus", "Report", "ReportRow", "Tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapStatus:
    """Where one bucket of one cap stands. Amounts in US dollars; `resets_at` is aware UTC or None.

    `other_limits` are those that other processes enforce there now, where they are not `limit`.

    `projected` is what its window comes to at its end at the pace so far, `reached_at` when the limit is reached: both
    None where there is no window, or too little of it has passed.
    """

    cap: Cap | Budget
    bucket: str
    limit: Decimal
    spent: Decimal
    held: Decimal
    presumed: Decimal
    headroom: Decimal
    resets_at: datetime | None
    other_limits: tuple[Decimal, ...] = ()
    projected: Decimal | None = None
    reached_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """What one key spent. Money in US dollars; `estimated` is the part of `cost` that no provider reported.

    `unpriced_calls` counts calls that have no price, or used a token kind without one: their true cost is higher.
    """

    key: Mapping[str, str]
    cost: Decimal
    calls: int
    input_tokens: int
    output_tokens: int
    estimated: Decimal
    unpriced_calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Spend of a period, by one or more dimensions, dearest first. The rows add up to `total`."""

    by: tuple[str, ...]
    since: datetime | None
    until: datetime
    total: Decimal
    rows: tuple[ReportRow, ...]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as plain dicts, money as decimal strings: what `maestro report --json` prints."""
        return [
            {
                "key": dict(row.key),
                "cost": f"{row.cost:f}",
                "calls": row.calls,
                "input_tokens": row.input_tokens,
                "output_tokens": row.output_tokens,
                "estimated": f"{row.estimated:f}",
                "unpriced_calls": row.unpriced_calls,
            }
            for row in self.rows
        ]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return header and body as text, the total as last line; what every rendering shows."""
        header = [*self.by, "cost", "calls", "input", "output"]
        notes = (any(r.estimated for r in self.rows), any(r.unpriced_calls for r in self.rows))
        header += [name for name, shown in zip(("estimated", "unpriced"), notes, strict=True) if shown]
        places = _places(self.total)
        return header, [self._line(row, notes, places) for row in (*self.rows, self._total_row())]

    def _line(self, row: ReportRow, notes: tuple[bool, bool], places: int) -> list[str]:
        counts = (f"{row.calls:,}", f"{row.input_tokens:,}", f"{row.output_tokens:,}")
        extra = (f"${row.estimated:,.{places}f}", f"{row.unpriced_calls:,}")
        shown = [text for text, wanted in zip(extra, notes, strict=True) if wanted]
        return [*(row.key[d] for d in self.by), f"${row.cost:,.{places}f}", *counts, *shown]

    def _total_row(self) -> ReportRow:
        return ReportRow(
            key={d: "total" if i == 0 else "" for i, d in enumerate(self.by)},
            cost=self.total,
            calls=sum(r.calls for r in self.rows),
            input_tokens=sum(r.input_tokens for r in self.rows),
            output_tokens=sum(r.output_tokens for r in self.rows),
            estimated=to_usd(sum(to_nanos(r.estimated) for r in self.rows)),
            unpriced_calls=sum(r.unpriced_calls for r in self.rows),
        )

    def __str__(self) -> str:
        header, body = self.cells()
        widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]

        def align(line: list[str]) -> str:
            cells = [
                t.ljust(w) if i < len(self.by) else t.rjust(w)
                for i, (t, w) in enumerate(zip(line, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        return "\n".join(map(align, (header, *body)))

    def _repr_html_(self) -> str:
        header, body = self.cells()

        def row(line: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line) + "</tr>"

        return f"<table><thead>{row(header, 'th')}</thead><tbody>{''.join(row(line, 'td') for line in body)}</tbody></table>"


@dataclass(slots=True)
class Tree:
    """One run, drawn as its agents, tools and models.

    `cost` counts the calls made directly at this node, `total` also those of everything below; both in US dollars.
    """

    kind: str  # "run" | "agent" | "tool" | "model"
    name: str
    cost: Decimal
    total: Decimal
    calls: int
    refusals: tuple[str, ...]
    children: tuple[Tree, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, depth: int = 0) -> list[str]:
        """Return the tree as text lines, indented from `depth`."""
        plural = "" if self.calls == 1 else "s"
        lines = [
            f"{'  ' * depth}{self.kind} {self.name}  {_dollars(self.total)}  ({self.calls} call{plural})"
        ]
        lines += [f"{'  ' * (depth + 1)}refused: {why}" for why in self.refusals]
        return lines + [line for child in self.children for line in child.lines(depth + 1)]


def _places(total: Decimal) -> int:
    """Return how many decimals a column of dollars has, so that its points stand below each other."""
    if total >= 100:  # noqa: PLR2004 - cents suffice
        return 2
    return 4 if total >= 1 or not total else min(9, 3 - total.adjusted())


def _dollars(amount: Decimal) -> str:
    return format_usd(to_nanos(amount))
