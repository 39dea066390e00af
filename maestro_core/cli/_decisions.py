"""Routed calls, told: where each went, why, what was against the others, and what it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_core.money import format_usd, to_usd
from maestro_core.types import Decision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maestro_core.types import Record

__all__ = ["decisions_json", "told"]


def decisions_json(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the decisions of a run as JSON values, in the order of their calls; money as decimal strings."""
    return [
        {
            "at": record.at.isoformat(),
            "cost": f"{to_usd(record.cost_nanos):f}",
            "latency_ms": record.detail.get("latency_ms"),
            "attempts": record.detail.get("attempts", []),
            "baseline": record.detail.get("baseline"),
            **record.detail["decision"],
        }
        for record in _routed(records)
    ]


def told(records: Iterable[Record]) -> list[str]:
    """Return the decisions of a run as lines of text."""
    lines = []
    for record in _routed(records):
        decision = Decision.from_dict(record.detail["decision"])
        chosen = next(each for each in decision.candidates if each.name == decision.chosen)
        lines.append(f"{record.at:%H:%M:%S} routed to {decision.chosen}: {decision.why}")
        expected = f", expected {format_usd(chosen.cost_nanos)}" if chosen.cost_nanos is not None else ""
        lines.append(f"  {format_usd(record.cost_nanos)}{expected}; {record.detail.get('latency_ms')} ms")
        before = record.detail.get("attempts", ())
        lines += [
            f"  before it, {each['endpoint']} failed: {each['failed']} ({each['error']})" for each in before
        ]
        if decision.runner_up:
            more = "" if decision.margin_nanos is None else f", {_signed(decision.margin_nanos)}"
            lines.append(f"  next: {decision.runner_up}{more}")
        lines += [
            f"  not {each.name}: {each.verdict}" for each in decision.candidates if each.verdict != "ok"
        ]
        if baseline := record.detail.get("baseline"):
            saved = baseline["cost_nanos"] - record.cost_nanos
            lines.append(
                f"  {baseline['endpoint']} would have cost {format_usd(baseline['cost_nanos'])}, {_signed(saved)}"
            )
    return lines


def _routed(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.calls and record.detail.get("decision")]


def _signed(nanos: int) -> str:
    return f"{format_usd(abs(nanos))} {'more' if nanos >= 0 else 'less'}"
