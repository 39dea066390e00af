"""Adding up the journal by dimensions, exactly and without losing a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.types import Attribution, Sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ARCHIVED", "Totals", "value_of"]

# The value, in reports, of what archived calls were attributed to where hourly sums no longer tell.
ARCHIVED = "(archived)"


def value_of(dimension: str, attribution: Attribution, provider: str, model: str) -> str:
    """Return the one value under which reports count a call: the innermost agent or tool, `(unattributed)` if none."""
    if dimension == "provider":
        return provider
    if dimension == "model":
        return model
    return attribution.value(dimension)


class Totals:
    """Running totals by the values of some dimensions, of the calls that match a filter.

    Args:
        by: The dimensions; none makes one total.
        where: Values that a call must have; as in reports, the innermost agent or tool counts.
    """

    def __init__(self, by: Sequence[str], where: Mapping[str, str] | None = None) -> None:
        self._by = tuple(by)
        self._where = dict(where or {})
        self._rows: dict[tuple[str, ...], list[int]] = {}

    @property
    def dimensions(self) -> set[str]:
        """Every dimension that grouping or filtering looks at."""
        return {*self._by, *self._where}

    @property
    def filters(self) -> set[str]:
        """Every dimension that filtering looks at."""
        return set(self._where)

    def add_call(
        self, attribution: Attribution, provider: str, model: str, numbers: Sequence[int], sign: int = 1
    ) -> None:
        """Add what journal rows of one attribution, provider and model come to, in the order of `Sum`."""
        for name, wanted in self._where.items():
            if value_of(name, attribution, provider, model) != wanted:
                return
        values = tuple([value_of(name, attribution, provider, model) for name in self._by])
        row = self._rows.setdefault(values, [0, 0, 0, 0, 0, 0])
        for i, number in enumerate(numbers):
            row[i] += sign * number

    def sums(self) -> list[Sum]:
        """Return the rows, dearest first; rows in which everything is zero are left out, save a grand total."""
        if not self._by and not self._rows:
            return [Sum(())]
        rows = [Sum(values, *row) for values, row in self._rows.items() if any(row) or not self._by]
        return sorted(rows, key=lambda row: (-row.cost_nanos, row.values))
