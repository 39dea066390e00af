"""What a plugin may implement. One sentence each; all take keywords by name, in any subset.

Deciders stop at the first answer and may raise. Collectors are merged. Observers run after the money is safe, one
plugin at a time; what they raise is logged and goes no further.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .anomaly import Detector
    from .endpoints import Endpoint
    from .errors import MaestroError
    from .types import Alert, Call, Cap, Cost, Ledger, Record
    from .usage import Usage

__all__ = ["hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("maestro")
hookimpl = pluggy.HookimplMarker("maestro")


@hookspec(firstresult=True)
def maestro_ledger(url: str) -> Ledger | None:
    """Open a ledger for a URL that Maestro does not know itself."""


@hookspec(firstresult=True)
def maestro_estimate(call: Call) -> Usage | None:
    """Return the most that a call can use, e.g. with an exact tokenizer; it replaces Maestro's own bound."""


@hookspec(firstresult=True)
def maestro_price(call: Call, usage: Usage) -> Cost | None:
    """Price usage by own rates: a contract, a GPU of one's own; also asked for the bound, with the most it can use."""


@hookspec(firstresult=True)
def maestro_quality(call: Call, endpoint: Endpoint) -> float | None:
    """Return how good an endpoint is at this call, from 0 to 1, in place of what was declared."""


@hookspec
def maestro_attribution(call: Call) -> Mapping[str, str] | None:
    """Add dimensions, e.g. the customer from the request context."""


@hookspec
def maestro_caps(call: Call) -> Sequence[Cap] | None:
    """Add caps for this call, e.g. from a plan table."""


@hookspec
def maestro_detectors() -> Sequence[Detector] | None:
    """Add anomaly detectors, which are shown what each series spends, minute by minute."""


@hookspec
def maestro_settled(record: Record) -> None:
    """Observe a journal row, after it was written."""


@hookspec
def maestro_refused(call: Call, error: MaestroError) -> None:
    """Observe a refusal, after it was journalled."""


@hookspec
def maestro_alert(alert: Alert) -> None:
    """Observe an alert, when it is told: once for each incident, on a thread of its own."""
