"""What a person is told, and the notes that processes leave each other about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._call import Attribution

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

__all__ = ["Alert", "Note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One incident, told once.

    Args:
        kind: `"loop"` (an agent goes round in circles), `"spike"` (far above the usual), `"leak"` (a little above it, for
            long), `"recovered"` (a spike or leak is over), `"threshold"` (a cap or budget reached `alert_at`),
            `"refused"` (a cap refuses), `"overrun"` (a call cost more than was held), `"forecast"` (a budget will not
            last), `"test"`; plugins may have kinds of their own.
        scope: What it is about, e.g. `"team=growth"`, `"customer=acme every day"`, `"run=01J..., agent=boss"`.
        since: When it began.
        excess_usd: What it has cost so far beyond the usual, or beyond the limit; None if that is not known.
        projected_usd: What the window comes to at its end at this pace; where there is no window, what the next 24 hours
            cost.
        run_id: The run that contributes most.
        model: The model that contributes most.
        tool: The tool that is stuck, or contributes most.
        stop: The line of code or configuration that would stop it.
        text: All of it in one readable line.
        key: The incident: it is told once, whichever process sees it first.
        attribution: Whom it is about; what routes look at.
    """

    kind: str
    scope: str
    since: datetime
    excess_usd: Decimal | None = None
    projected_usd: Decimal | None = None
    run_id: str | None = None
    model: str | None = None
    tool: str | None = None
    stop: str = ""
    text: str = ""
    key: str
    attribution: Attribution = field(default_factory=Attribution)

    def __str__(self) -> str:
        return self.text or f"{self.kind}: {self.scope}"

    def to_dict(self) -> dict[str, Any]:
        """Return what webhooks and `maestro alerts --json` say: JSON values, money as decimal strings."""
        return {
            "kind": self.kind,
            "scope": self.scope,
            "since": self.since.isoformat(),
            "excess_usd": _decimal(self.excess_usd),
            "projected_usd": _decimal(self.projected_usd),
            "run_id": self.run_id,
            "model": self.model,
            "tool": self.tool,
            "stop": self.stop,
        }


@dataclass(frozen=True, slots=True)
class Note:
    """What a process has left in the ledger for the others: an alert, or what a detector has learned.

    `revision` is 1 when it is first written, and rises with each change; `at_us` is the store's time of the last one.
    """

    key: str
    kind: str
    body: Mapping[str, Any]
    revision: int
    at_us: int


def _decimal(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount:f}"
