"""Who spends most: what an alert names."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .types import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .types import Ledger

__all__ = ["Contributors", "contributors"]


class Contributors(NamedTuple):
    """The run, the model and the tool that spent most; None where there is none."""

    run: str | None
    model: str | None
    tool: str | None


def contributors(ledger: Ledger, where: Mapping[str, str], since_us: int) -> Contributors:
    """Return who spent most since, of the calls that match."""
    rows = ledger.sums(Contributors._fields, since_us=since_us, where=where)

    def top(place: int) -> str | None:
        costs: dict[str, int] = {}
        for row in rows:
            costs[row.values[place]] = costs.get(row.values[place], 0) + row.cost_nanos
        found = max(costs, key=lambda value: costs[value], default=UNATTRIBUTED)
        return None if found == UNATTRIBUTED else found

    return Contributors(*map(top, range(3)))
